//go:build linux

// Command bareloop is the yardstick: an echo server on one level-triggered epoll
// loop with nothing around it. It reads up to 64 KiB, writes it back, and keeps
// what the socket did not take; a connection with a remainder is not read. What
// a framework costs is what it needs beyond this program.
package main

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

func must[T any](v T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bareloop:", err)
		os.Exit(1)
	}
	return v
}

func main() {
	addr := flag.String("addr", "127.0.0.1:7000", "IPv4 `address` to listen on")
	flag.Parse()
	ap := must(netip.ParseAddrPort(*addr))
	ln := must(syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0))
	syscall.SetsockoptInt(ln, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	must(0, syscall.Bind(ln, &syscall.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}))
	must(0, syscall.Listen(ln, 4096))
	port := must(syscall.Getsockname(ln)).(*syscall.SockaddrInet4).Port
	ep := must(syscall.EpollCreate1(syscall.EPOLL_CLOEXEC))
	ctl(ep, syscall.EPOLL_CTL_ADD, ln, syscall.EPOLLIN)
	fmt.Printf("listening on tcp://%s:%d\n", ap.Addr(), port)

	events, buf := make([]syscall.EpollEvent, 256), make([]byte, 64<<10)
	rest := map[int][]byte{} // by descriptor: bytes read and not yet written
	for {
		for _, ev := range events[:wait(ep, events)] {
			fd := int(ev.Fd)
			switch {
			case fd == ln:
				for {
					c, _, err := syscall.Accept4(ln, syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
					if err != nil {
						break
					}
					syscall.SetsockoptInt(c, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
					ctl(ep, syscall.EPOLL_CTL_ADD, c, syscall.EPOLLIN)
				}
			case ev.Events&syscall.EPOLLIN != 0:
				n, errno := io(syscall.SYS_READ, fd, buf)
				if errno == syscall.EAGAIN || errno == syscall.EINTR {
					continue
				}
				if n <= 0 {
					syscall.Close(fd)
				} else if w := send(fd, buf[:n]); w < 0 {
					syscall.Close(fd)
				} else if w < n {
					rest[fd] = append([]byte(nil), buf[w:n]...)
					ctl(ep, syscall.EPOLL_CTL_MOD, fd, syscall.EPOLLOUT)
				}
			default: // EPOLLOUT, or the connection is gone and the write says so
				if w := send(fd, rest[fd]); w < 0 || len(rest[fd]) == 0 {
					delete(rest, fd)
					syscall.Close(fd)
				} else if rest[fd] = rest[fd][w:]; len(rest[fd]) == 0 {
					delete(rest, fd)
					ctl(ep, syscall.EPOLL_CTL_MOD, fd, syscall.EPOLLIN)
				}
			}
		}
	}
}

// io reads or writes once, without telling the Go scheduler: the descriptor never blocks.
func io(call uintptr, fd int, p []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return int(n), errno
}

// send writes p once and returns how much was taken, -1 if the connection is gone.
func send(fd int, p []byte) int {
	w, errno := io(syscall.SYS_WRITE, fd, p)
	if errno == syscall.EAGAIN || errno == syscall.EINTR {
		return 0
	}
	return w
}

// wait polls raw; finding nothing it yields and polls again, and only then blocks.
func wait(ep int, events []syscall.EpollEvent) int {
	for try := range 2 {
		if try > 0 {
			runtime.Gosched()
		}
		n, _, _ := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
		if int(n) > 0 {
			return int(n)
		}
	}
	n, _ := syscall.EpollWait(ep, events, -1)
	return max(n, 0)
}

func ctl(ep, op, fd int, events uint32) {
	must(0, syscall.EpollCtl(ep, op, fd, &syscall.EpollEvent{Events: events, Fd: int32(fd)}))
}
