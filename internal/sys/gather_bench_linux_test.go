package sys

import (
	"fmt"
	"net"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkGather says what the thread that sends pays for sixteen messages over loopback:
// each by a call of its own, all by one writev, or copied together and sent by one write.
// On loopback the call does the receiver's TCP work, too; what it receives is dropped
// between two batches and not counted.
func BenchmarkGather(b *testing.B) {
	for _, size := range []int{16, 64, 256, 512, 1 << 10, 2 << 10, 4 << 10} {
		for _, how := range []string{"calls", "writev", "copied"} {
			b.Run(fmt.Sprintf("%dB/%s", size, how), func(b *testing.B) { benchmarkGather(b, size, how) })
		}
	}
}

func benchmarkGather(b *testing.B, size int, how string) {
	const batch = 16
	out, in := loopbackPair(b)
	defer Close(out)
	defer Close(in)
	memory := make([]byte, 4<<20)
	joined := make([]byte, batch*size)
	parts := make([]Iovec, batch)
	scratch := make([]byte, 1<<20)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	times := make([]int64, 0, b.N)
	for at := 0; b.Loop(); {
		if at += batch * 2 * size; at+batch*2*size > len(memory) {
			at = 0
		}
		message := func(i int) []byte { return memory[at+i*2*size:][:size] } // no two are neighbours
		start := threadTime()
		var err error
		switch how {
		case "calls":
			for i := 0; i < batch && err == nil; i++ {
				_, err = Write(out, message(i))
			}
		case "writev":
			for i := range parts {
				parts[i] = MakeIovec(message(i))
			}
			_, err = Writev(out, parts)
		case "copied":
			for i := range batch {
				copy(joined[i*size:], message(i))
			}
			_, err = Write(out, joined)
		}
		times = append(times, threadTime()-start)
		if err != nil {
			b.Fatal(err)
		}
		for left := batch * size; left > 0; {
			n, _, err := unix.Recvfrom(in, scratch[:left], unix.MSG_TRUNC)
			if err != nil && err != unix.EAGAIN {
				b.Fatal(err)
			}
			left -= max(n, 0)
		}
	}
	slices.Sort(times) // half of them had no interrupt
	b.ReportMetric(float64(times[len(times)/2])/batch, "cpu-ns/message")
}

// loopbackPair returns the ends of a connection, both non-blocking.
func loopbackPair(b *testing.B) (out, in int) {
	b.Helper()
	here := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}
	l, err := Socket(here)
	if err != nil {
		b.Fatal(err)
	}
	defer Close(l)
	_ = Bind(l, here)
	_ = Listen(l, 1)
	addr, err := LocalAddr(l, "tcp")
	if err != nil {
		b.Fatal(err)
	}
	if out, err = Socket(addr); err != nil {
		b.Fatal(err)
	}
	_ = Connect(out, addr)
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(l), Events: unix.POLLIN}}, -1)
	if in, _, err = Accept(l); err != nil {
		b.Fatal(err)
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(out), Events: unix.POLLOUT}}, -1)
	if err := SetNoDelay(out, true); err != nil {
		b.Fatal(err)
	}
	return out, in
}
