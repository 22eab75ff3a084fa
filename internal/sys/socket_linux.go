package sys

import (
	"bytes"
	"errors"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket returns a new socket of addr's family, non-blocking: a stream socket for a
// *net.TCPAddr or a *net.UnixAddr, a datagram socket for a *net.UDPAddr or a
// *net.UnixAddr of the network "unixgram". An address without an IP asks for IPv6
// where the machine has it; IPv6 sockets speak IPv4 too unless SetIPv6Only says
// otherwise.
func Socket(addr net.Addr) (int, error) {
	switch a := addr.(type) {
	case *net.TCPAddr:
		return ipSocket(a.IP, unix.SOCK_STREAM)
	case *net.UDPAddr:
		return ipSocket(a.IP, unix.SOCK_DGRAM)
	case *net.UnixAddr:
		if a.Net == "unixgram" {
			return socket(unix.AF_UNIX, unix.SOCK_DGRAM)
		}
		return socket(unix.AF_UNIX, unix.SOCK_STREAM)
	}
	return -1, failed("socket", unix.EAFNOSUPPORT)
}

func ipSocket(ip net.IP, kind int) (int, error) {
	if ip.To4() != nil {
		return socket(unix.AF_INET, kind)
	}
	fd, err := socket(unix.AF_INET6, kind)
	if ip == nil && errors.Is(err, unix.EAFNOSUPPORT) {
		return socket(unix.AF_INET, kind)
	}
	if err != nil {
		return -1, err
	}
	if err := SetIPv6Only(fd, false); err != nil {
		Close(fd)
		return -1, err
	}
	return fd, nil
}

func socket(family, kind int) (int, error) {
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, failed("socket", err)
	}
	return fd, nil
}

// Bind gives the socket its local address. It makes the file of a Unix socket and
// may sleep.
func Bind(fd int, addr net.Addr) error {
	sa, err := sockaddr(fd, addr)
	if err != nil {
		return failed("bind", err)
	}
	return failed("bind", retry(func() error { return unix.Bind(fd, sa) }))
}

// Listen makes the socket take connections, of which backlog may wait.
func Listen(fd, backlog int) error {
	return failed("listen", unix.Listen(fd, backlog))
}

// Connect connects the socket. [ErrInProgress] is the ordinary answer of TCP; a
// Unix socket connects at once, or answers [ErrAgain] when the listener's queue is
// full, of which no readiness tells. It may sleep.
func Connect(fd int, addr net.Addr) error {
	sa, err := sockaddr(fd, addr)
	if err != nil {
		return failed("connect", err)
	}
	raceRelease()
	switch err := unix.Connect(fd, sa); err {
	case unix.EINTR, unix.EALREADY:
		return ErrInProgress // it goes on
	default:
		return failed("connect", err)
	}
}

// Accept takes a connection that waits at the listening socket fd: the new socket,
// non-blocking, and its peer.
func Accept(fd int) (int, Peer, error) {
	var rsa unix.RawSockaddrAny
	for {
		size := uint32(unix.SizeofSockaddrAny)
		n, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&rsa)),
			uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		switch e {
		case 0:
			raceAcquire()
			return int(n), peer(&rsa, size), nil
		case unix.EINTR:
		default:
			return -1, Peer{}, fail("accept4", e)
		}
	}
}

// peer returns an address of the kernel's as that of a peer.
func peer(rsa *unix.RawSockaddrAny, size uint32) Peer {
	switch rsa.Addr.Family {
	case unix.AF_INET:
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(rsa))
		return Peer{V4: V4{sa.Addr, swap16(sa.Port), v4Plain}}
	case unix.AF_INET6:
		sa := (*unix.RawSockaddrInet6)(unsafe.Pointer(rsa))
		if ip := netip.AddrFrom16(sa.Addr); ip.Is4In6() {
			return Peer{V4: V4{ip.Unmap().As4(), swap16(sa.Port), v4Mapped}}
		}
	}
	return Peer{Other: address(rsa, size, "")}
}

// LocalAddr returns the address of this end. Network is the one to put into the
// address of a Unix socket; when it is empty, "unix". One that begins with "udp"
// makes the address of an IP socket a *net.UDPAddr.
func LocalAddr(fd int, network string) (net.Addr, error) {
	return nameOf(fd, unix.SYS_GETSOCKNAME, "getsockname", network)
}

// RemoteAddr returns the address of the other end.
func RemoteAddr(fd int, network string) (net.Addr, error) {
	return nameOf(fd, unix.SYS_GETPEERNAME, "getpeername", network)
}

func nameOf(fd int, number uintptr, call, network string) (net.Addr, error) {
	var rsa unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	if _, _, e := unix.RawSyscall(number, uintptr(fd), uintptr(unsafe.Pointer(&rsa)), uintptr(unsafe.Pointer(&size))); e != 0 {
		return nil, fail(call, e)
	}
	a := address(&rsa, size, network)
	if tcp, ok := a.(*net.TCPAddr); ok && strings.HasPrefix(network, "udp") {
		a = (*net.UDPAddr)(tcp)
	}
	return a, nil
}

// sockaddr returns addr as the socket fd takes it.
func sockaddr(fd int, addr net.Addr) (unix.Sockaddr, error) {
	switch a := addr.(type) {
	case *net.UnixAddr:
		for i := 0; i < len(a.Name); i++ {
			if a.Name[i] == 0 && a.Name[0] != '@' && a.Name[0] != 0 {
				return nil, unix.EINVAL // the kernel would cut the path short
			}
		}
		if len(a.Name) >= len(unix.RawSockaddrUnix{}.Path) {
			return nil, unix.ENAMETOOLONG
		}
		return &unix.SockaddrUnix{Name: a.Name}, nil
	case *net.UDPAddr:
		return sockaddr(fd, (*net.TCPAddr)(a))
	case *net.TCPAddr:
		if a.Port < 0 || a.Port > math.MaxUint16 {
			return nil, unix.EINVAL
		}
		family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err != nil {
			return nil, err
		}
		if family == unix.AF_INET {
			sa := &unix.SockaddrInet4{Port: a.Port}
			ip := a.IP.To4()
			if ip == nil && len(a.IP) != 0 {
				return nil, unix.EAFNOSUPPORT
			}
			copy(sa.Addr[:], ip)
			return sa, nil
		}
		sa := &unix.SockaddrInet6{Port: a.Port}
		copy(sa.Addr[:], a.IP.To16())
		if sa.ZoneId, err = zoneID(a.Zone); err != nil {
			return nil, err
		}
		return sa, nil
	}
	return nil, unix.EAFNOSUPPORT
}

// zoneID returns the number of an IPv6 zone, which is a number or the name of a
// network interface.
func zoneID(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	ifc, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, unix.ENODEV
	}
	return uint32(ifc.Index), nil
}

// address returns an address of the kernel's in the words of package net. An IPv6
// zone is given by number: finding its name would cost calls that may sleep. A Unix
// socket that is bound to nothing has an empty name, and one in the abstract name
// space a name that begins with @.
func address(rsa *unix.RawSockaddrAny, size uint32, network string) net.Addr {
	switch rsa.Addr.Family {
	case unix.AF_INET:
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(rsa))
		a := &struct {
			net.TCPAddr
			ip [4]byte
		}{ip: sa.Addr} // one object, not two: this is done for each connection
		a.IP, a.Port = a.ip[:], int(swap16(sa.Port))
		return &a.TCPAddr
	case unix.AF_INET6:
		sa := (*unix.RawSockaddrInet6)(unsafe.Pointer(rsa))
		a := &struct {
			net.TCPAddr
			ip [16]byte
		}{ip: sa.Addr}
		a.IP, a.Port = a.ip[:], int(swap16(sa.Port))
		if sa.Scope_id != 0 {
			a.Zone = strconv.FormatUint(uint64(sa.Scope_id), 10)
		}
		return &a.TCPAddr
	case unix.AF_UNIX:
		if network == "" {
			network = "unix"
		}
		return &net.UnixAddr{Name: string(unixName(rsa, size)), Net: network}
	}
	return nil
}

// unixName returns the name in an address of a Unix socket, where it lies. It turns
// the zero byte of an abstract one into @.
func unixName(rsa *unix.RawSockaddrAny, size uint32) []byte {
	const head = unsafe.Offsetof(unix.RawSockaddrUnix{}.Path)
	sa := (*unix.RawSockaddrUnix)(unsafe.Pointer(rsa))
	path := unsafe.Slice((*byte)(unsafe.Pointer(&sa.Path[0])), len(sa.Path))
	path = path[:min(max(int(size)-int(head), 0), len(path))]
	switch {
	case len(path) == 0:
	case path[0] == 0:
		path[0] = '@'
	default:
		if i := bytes.IndexByte(path, 0); i >= 0 {
			path = path[:i]
		}
	}
	return path
}

// swap16 returns a number in network order in the machine's, or the reverse.
func swap16(n uint16) uint16 {
	p := (*[2]byte)(unsafe.Pointer(&n))
	return uint16(p[0])<<8 | uint16(p[1])
}

// SocketError returns the error that waits at the socket and clears it: nil when
// there is none, as after a connect that went well.
func SocketError(fd int) error {
	e, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if e == 0 {
		return nil
	}
	// Also of EAGAIN and the like there is nothing here to wait for.
	return os.NewSyscallError("connect", unix.Errno(e))
}

func setsockopt(fd, level, option, value int) error {
	v := int32(value)
	_, _, e := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&v)), 4, 0)
	if e != 0 {
		return os.NewSyscallError("setsockopt", e)
	}
	return nil
}

func getsockopt(fd, level, option int) (int, error) {
	var v int32
	size := uint32(4)
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&size)), 0)
	if e != 0 {
		return 0, os.NewSyscallError("getsockopt", e)
	}
	return int(v), nil
}

func flag(on bool) int {
	if on {
		return 1
	}
	return 0
}

// units returns d in whole units, rounded up, and at most max.
func units(d, unit time.Duration, max int) int {
	if d <= 0 {
		return 0
	}
	return int(min(int64((d-1)/unit)+1, int64(max)))
}

// SetNoDelay switches the delaying of small segments off (TCP_NODELAY).
func SetNoDelay(fd int, on bool) error {
	return setsockopt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, flag(on))
}

// SetKeepAlive switches TCP's probes of an idle connection on or off: the first
// after idle, then one each interval, until count of them were not answered. A
// value of 0 leaves the kernel's.
func SetKeepAlive(fd int, on bool, idle, interval time.Duration, count int) error {
	if err := setsockopt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, flag(on)); err != nil || !on {
		return err
	}
	const most = 32767 // seconds, the kernel's limit
	for _, o := range []struct{ option, value int }{
		{unix.TCP_KEEPIDLE, units(idle, time.Second, most)},
		{unix.TCP_KEEPINTVL, units(interval, time.Second, most)},
		{unix.TCP_KEEPCNT, count},
	} {
		if o.value == 0 {
			continue
		}
		if err := setsockopt(fd, unix.IPPROTO_TCP, o.option, o.value); err != nil {
			return err
		}
	}
	return nil
}

// SetReuseAddr lets the socket be bound to an address of which old connections are
// still in their last wait.
func SetReuseAddr(fd int, on bool) error {
	return setsockopt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, flag(on))
}

// SetReusePort lets several sockets listen at one address and share its connections.
func SetReusePort(fd int, on bool) error {
	return setsockopt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, flag(on))
}

// SetIPv6Only keeps IPv4 out of an IPv6 socket.
func SetIPv6Only(fd int, on bool) error {
	return setsockopt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, flag(on))
}

// SetSendBuffer sets the size of the kernel's send buffer. The kernel doubles the
// value for its own book-keeping and limits it.
func SetSendBuffer(fd, n int) error {
	return setsockopt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, n)
}

// SendBuffer returns the size of the kernel's send buffer, doubled as it is.
func SendBuffer(fd int) (int, error) {
	return getsockopt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
}

// SetRecvBuffer sets the size of the kernel's receive buffer, as SetSendBuffer does.
func SetRecvBuffer(fd, n int) error {
	return setsockopt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, n)
}

// RecvBuffer returns the size of the kernel's receive buffer, doubled as it is.
func RecvBuffer(fd int) (int, error) {
	return getsockopt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
}

// SetLinger says what Close does with bytes that were not sent: negative, they are
// sent after it has returned, as is the default; 0, they are dropped and the peer
// sees a reset; otherwise it sleeps for up to as many seconds until they are sent.
func SetLinger(fd, seconds int) error {
	l := unix.Linger{Onoff: 1, Linger: int32(seconds)}
	if seconds < 0 {
		l = unix.Linger{}
	}
	_, _, e := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&l)), unsafe.Sizeof(l), 0)
	if e != 0 {
		return os.NewSyscallError("setsockopt", e)
	}
	return nil
}

// CloseSleeps reports whether Close of a socket may sleep: it does for up to as many
// seconds as [SetLinger], or somebody else, has set.
func CloseSleeps(fd int) bool {
	var l unix.Linger
	size := uint32(unsafe.Sizeof(l))
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&l)), uintptr(unsafe.Pointer(&size)), 0)
	return e == 0 && l.Onoff != 0 && l.Linger > 0
}

// SetUserTimeout bounds how long sent bytes may stay without an acknowledgement
// before the connection is given up (TCP_USER_TIMEOUT); 0 is the kernel's way.
func SetUserTimeout(fd int, d time.Duration) error {
	return setsockopt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, units(d, time.Millisecond, math.MaxInt32))
}

// ShutdownRead ends the receiving direction of the socket: reads return what has
// come, then the end.
func ShutdownRead(fd int) error { return shutdown(fd, unix.SHUT_RD) }

// ShutdownWrite ends the sending direction: the peer reads what was sent, then the
// end.
func ShutdownWrite(fd int) error { return shutdown(fd, unix.SHUT_WR) }

func shutdown(fd, how int) error {
	raceRelease()
	if _, _, e := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), uintptr(how), 0); e != 0 {
		return os.NewSyscallError("shutdown", e)
	}
	return nil
}

// Unread returns how many bytes have come and were not read.
func Unread(fd int) (int, error) { return ioctl(fd, unix.SIOCINQ) }

// Unsent returns how many bytes were written and not yet acknowledged; of a Unix
// socket, how much memory the bytes take that the peer has not read.
func Unsent(fd int) (int, error) { return ioctl(fd, unix.SIOCOUTQ) }

func ioctl(fd int, request uintptr) (int, error) {
	var n int32
	if _, _, e := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&n))); e != 0 {
		return 0, os.NewSyscallError("ioctl", e)
	}
	return int(n), nil
}
