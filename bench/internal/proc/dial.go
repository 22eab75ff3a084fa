//go:build linux

package proc

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Target is where a raw socket connects to.
type Target struct {
	family int
	sa     unix.Sockaddr
}

// ParseTarget understands what servers print ("tcp://127.0.0.1:7000",
// "unix:///run/echo") and a bare HOST:PORT with an IP address as host.
func ParseTarget(s string) (Target, error) {
	if path, ok := strings.CutPrefix(s, "unix://"); ok {
		return Target{unix.AF_UNIX, &unix.SockaddrUnix{Name: path}}, nil
	}
	ap, err := netip.ParseAddrPort(strings.TrimPrefix(s, "tcp://"))
	if err != nil {
		return Target{}, fmt.Errorf("address %q: %w", s, err)
	}
	if ap.Addr().Is4() {
		return Target{unix.AF_INET, &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}}, nil
	}
	return Target{unix.AF_INET6, &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}}, nil
}

// SocketOptions are set before a socket connects.
type SocketOptions struct {
	Source     netip.Addr // IPv4 source; the zero value lets the kernel choose
	SendBuffer int        // SO_SNDBUF; 0 keeps the kernel's
	RecvBuffer int        // SO_RCVBUF; 0 keeps the kernel's
	MaxSegment int        // TCP_MAXSEG, both ways; 0 keeps the interface's, 64 KiB on loopback
}

// Connect opens a connection and returns its descriptor, non-blocking, with TCP_NODELAY.
func (t Target) Connect(o SocketOptions) (fd int, err error) {
	fd, err = unix.Socket(t.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if o.SendBuffer > 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, o.SendBuffer); err != nil {
			return -1, os.NewSyscallError("setsockopt", err)
		}
	}
	if o.RecvBuffer > 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, o.RecvBuffer); err != nil {
			return -1, os.NewSyscallError("setsockopt", err)
		}
	}
	if t.family != unix.AF_UNIX && o.MaxSegment > 0 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, o.MaxSegment); err != nil {
			return -1, os.NewSyscallError("setsockopt", err)
		}
	}
	if t.family == unix.AF_INET && o.Source.Is4() {
		// The port is chosen when connecting, by the whole four-tuple.
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return -1, os.NewSyscallError("setsockopt", err)
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: o.Source.As4()}); err != nil {
			return -1, os.NewSyscallError("bind", err)
		}
	}
	if err := unix.Connect(fd, t.sa); err != nil {
		return -1, os.NewSyscallError("connect", err)
	}
	if t.family != unix.AF_UNIX {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return -1, os.NewSyscallError("setsockopt", err)
		}
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	return fd, nil
}
