package sys

import (
	"fmt"
	"net"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkSend says what the thread that sends pays for a call, with and without a copy,
// and for reading that it is confirmed. The peer's window is closed, so that nothing is
// sent: what a device, and on one machine a receiver, would add is not in it. What is sent
// is not in the processor's nearer caches.
func BenchmarkSend(b *testing.B) {
	for _, kib := range []int{4, 10, 16, 32, 64, 128, 256, 1024} {
		for _, lend := range []bool{false, true} {
			name := "copied"
			if lend {
				name = "lent"
			}
			b.Run(fmt.Sprintf("%dKiB/%s", kib, name), func(b *testing.B) { benchmarkSend(b, kib<<10, lend) })
		}
	}
}

func benchmarkSend(b *testing.B, size int, lend bool) {
	from := make([]byte, 64<<20)
	for i := range from {
		from[i] = byte(i)
	}
	l, err := Socket(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	defer Close(l)
	_ = Bind(l, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	_ = Listen(l, 1)
	addr, err := LocalAddr(l, "tcp")
	if err != nil {
		b.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	calls := make([]int64, 0, b.N)
	var reads int64
	for left, at := b.N, 0; left > 0; {
		fd, peer := closedWindow(b, l, addr)
		before := len(calls)
		for ; left > 0; left-- {
			if at += size; at+size > len(from) {
				at = 0
			}
			part := []Iovec{MakeIovec(from[at : at+size])}
			start := threadTime()
			var n int
			if lend {
				n, err = SendZeroCopy(fd, part, false, false)
			} else {
				n, err = Sendmsg(fd, part, 0)
			}
			if n < size {
				break // the buffer is full
			}
			calls = append(calls, threadTime()-start)
		}
		if len(calls) == before {
			b.Fatal(err)
		}
		_ = Disconnect(fd)
		start := threadTime()
		for lend {
			if _, err := ReadConfirmation(fd); err != nil {
				break
			}
		}
		reads += threadTime() - start
		Close(fd)
		Close(peer)
	}
	slices.Sort(calls) // half of them had no interrupt
	each := float64(calls[len(calls)/2]) + float64(reads)/float64(b.N)
	b.ReportMetric(each, "cpu-ns/call")
	b.ReportMetric(each/float64(size)*(1<<20)/1e3, "cpu-us/MiB")
}

// closedWindow returns the ends of a connection whose receiver takes nothing any more, and
// whose sender has much room.
func closedWindow(b *testing.B, l int, addr net.Addr) (fd, peer int) {
	b.Helper()
	fd, err := Socket(addr)
	if err != nil {
		b.Fatal(err)
	}
	if err := EnableZeroCopy(fd); err != nil {
		b.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 32<<20); err != nil {
		b.Skip("a long send buffer: ", err)
	}
	_ = Connect(fd, addr)
	poll := func(fd int, ev int16) {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: ev}}, -1)
	}
	poll(l, EpollIn)
	if peer, _, err = Accept(l); err != nil {
		b.Fatal(err)
	}
	poll(fd, EpollOut)
	p := make([]byte, 64<<10)
	for unsent := 0; unsent < 64<<10; unsent, _ = unix.IoctlGetInt(fd, siocOutQNSD) {
		if _, err := Write(fd, p); err != nil {
			b.Fatal(err)
		}
	}
	return fd, peer
}

const siocOutQNSD = 0x894b // bytes that have not been sent once

func threadTime() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return ts.Nano()
}
