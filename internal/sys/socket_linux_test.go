package sys

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestConnection(t *testing.T) {
	for name, at := range endpoints(t) {
		t.Run(name, func(t *testing.T) {
			l, addr := listen(t, at)
			if _, _, err := Accept(l); err != ErrAgain {
				t.Errorf("accept with nobody there: got %v, want ErrAgain", err)
			}
			client := dial(t, addr)
			await(t, l, EpollIn)
			server, peer, err := Accept(l)
			check(t, err)
			closing(t, server)

			local, err := LocalAddr(client, "")
			check(t, err)
			if got := peer.Addr(); !reflect.DeepEqual(got, local) {
				t.Errorf("accepted peer: got %#v, want %#v", got, local)
			}
			remote, err := RemoteAddr(client, "")
			check(t, err)
			if tcp, ok := addr.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
				if got := remote.(*net.TCPAddr).Port; got != tcp.Port {
					t.Errorf("remote port: got %d, want %d", got, tcp.Port)
				}
			} else if remote.String() != addr.String() {
				t.Errorf("remote address: got %v, want %v", remote, addr)
			}

			for _, fd := range []int{l, client, server} {
				flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
				check(t, err)
				if flags&unix.O_NONBLOCK == 0 {
					t.Errorf("descriptor %d: got a blocking one", fd)
				}
				flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
				check(t, err)
				if flags&unix.FD_CLOEXEC == 0 {
					t.Errorf("descriptor %d: got one that children inherit", fd)
				}
			}

			// Both ways, one waiting and one half-closed.
			buf := make([]byte, 16)
			if n, err := Read(server, buf); n != 0 || err != ErrAgain {
				t.Errorf("read with nothing there: got %d, %v, want 0, ErrAgain", n, err)
			}
			if n, err := Write(client, []byte("ping")); n != 4 || err != nil {
				t.Errorf("write: got %d, %v, want 4, nil", n, err)
			}
			await(t, server, EpollIn)
			if n, err := Unread(server); n != 4 || err != nil {
				t.Errorf("unread: got %d, %v, want 4, nil", n, err)
			}
			if n, err := Read(server, buf); string(buf[:n]) != "ping" || err != nil {
				t.Errorf("read: got %q, %v, want ping, nil", buf[:n], err)
			}
			check(t, ShutdownWrite(client))
			await(t, server, EpollIn)
			if n, err := Read(server, buf); n != 0 || err != nil {
				t.Errorf("read at the end: got %d, %v, want 0, nil", n, err)
			}
			if n, err := Write(server, []byte("pong!")); n != 5 || err != nil {
				t.Errorf("write after the peer's half-close: got %d, %v, want 5, nil", n, err)
			}
			same(t, readAll(t, client, 5), []byte("pong!"))
			_, err = Write(client, []byte("x"))
			wantErrno(t, err, "write", syscall.EPIPE)
		})
	}
}

// A socket without an IP takes IPv4 and IPv6 connections, and only the latter when
// told so.
func TestDualStack(t *testing.T) {
	l, addr := listen(t, &net.TCPAddr{})
	if addr.(*net.TCPAddr).IP.To4() != nil {
		t.Skip("no IPv6 here")
	}
	to := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: addr.(*net.TCPAddr).Port}
	dial(t, to)
	await(t, l, EpollIn)
	fd, peer, err := Accept(l)
	check(t, err)
	closing(t, fd)
	if got := peer.Addr().(*net.TCPAddr).IP; !got.Equal(to.IP) || len(got) != net.IPv6len {
		t.Errorf("got peer %v, want %v", got, to.IP)
	}

	only, err := Socket(&net.TCPAddr{IP: net.IPv6unspecified})
	check(t, err)
	closing(t, only)
	check(t, SetIPv6Only(only, true))
	check(t, Bind(only, &net.TCPAddr{IP: net.IPv6unspecified}))
	check(t, Listen(only, 1))
	addr, err = LocalAddr(only, "")
	check(t, err)
	client, err := Socket(to)
	check(t, err)
	closing(t, client)
	wantRefused(t, client, &net.TCPAddr{IP: to.IP, Port: addr.(*net.TCPAddr).Port})

	// An IPv6 socket reaches an IPv4 address.
	six, err := Socket(&net.TCPAddr{IP: net.IPv6loopback})
	check(t, err)
	closing(t, six)
	if err := Connect(six, to); err != nil && err != ErrInProgress {
		t.Errorf("got %v, want a connection from IPv6 to IPv4", err)
	}
	await(t, six, EpollOut)
	check(t, SocketError(six))
}

func wantRefused(t *testing.T, fd int, addr net.Addr) {
	t.Helper()
	err := Connect(fd, addr)
	if err == ErrInProgress {
		await(t, fd, EpollOut)
		err = SocketError(fd)
		if again := SocketError(fd); again != nil {
			t.Errorf("second SocketError: got %v, want nil", again)
		}
	}
	wantErrno(t, err, "connect", syscall.ECONNREFUSED)
}

func TestConnectErrors(t *testing.T) {
	t.Run("tcp refused", func(t *testing.T) {
		// Bound and not listening: nobody else can come to listen there.
		fd, err := Socket(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		check(t, err)
		closing(t, fd)
		check(t, Bind(fd, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}))
		addr, err := LocalAddr(fd, "")
		check(t, err)
		client, err := Socket(addr)
		check(t, err)
		wantRefused(t, closing(t, client), addr)
	})
	t.Run("unix refused", func(t *testing.T) {
		at := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s")}
		l, err := Socket(at)
		check(t, err)
		check(t, Bind(l, at))
		check(t, Close(l)) // the file stays
		client, err := Socket(at)
		check(t, err)
		wantRefused(t, closing(t, client), at)
	})
	t.Run("unix absent", func(t *testing.T) {
		at := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s")}
		client, err := Socket(at)
		check(t, err)
		closing(t, client)
		wantErrno(t, Connect(client, at), "connect", syscall.ENOENT)
	})
	t.Run("unix queue full", func(t *testing.T) {
		at := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s")}
		l, err := Socket(at)
		check(t, err)
		closing(t, l)
		check(t, Bind(l, at))
		check(t, Listen(l, 1))
		for range 10 {
			client, err := Socket(at)
			check(t, err)
			closing(t, client)
			if err := Connect(client, at); err != nil {
				if err != ErrAgain {
					t.Errorf("got %v, want ErrAgain", err)
				}
				return
			}
		}
		t.Error("got 10 connections in a queue of 1")
	})
	t.Run("connected already", func(t *testing.T) {
		_, addr := listen(t, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		client := dial(t, addr)
		check(t, Connect(client, addr)) // the end of the first, as Linux has it
		wantErrno(t, Connect(client, addr), "connect", syscall.EISCONN)
	})
}

func TestAddressErrors(t *testing.T) {
	tcp4, unixAddr := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, &net.UnixAddr{Name: "x"}
	_, taken := listen(t, tcp4)
	_, takenName := listen(t, endpoints(t)["abstract"])
	tests := []struct {
		name   string
		family net.Addr
		addr   net.Addr
		want   syscall.Errno
	}{
		{"in use", tcp4, taken, syscall.EADDRINUSE},
		{"name in use", unixAddr, takenName, syscall.EADDRINUSE},
		{"port too large", tcp4, &net.TCPAddr{IP: tcp4.IP, Port: 1 << 16}, syscall.EINVAL},
		{"port negative", tcp4, &net.TCPAddr{IP: tcp4.IP, Port: -1}, syscall.EINVAL},
		{"IPv6 on IPv4", tcp4, &net.TCPAddr{IP: net.IPv6loopback}, syscall.EAFNOSUPPORT},
		{"not ours", tcp4, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}, syscall.EADDRNOTAVAIL},
		{"unknown kind", tcp4, &net.IPAddr{}, syscall.EAFNOSUPPORT},
		{"path too long", unixAddr, &net.UnixAddr{Name: "/" + strings.Repeat("x", 200)}, syscall.ENAMETOOLONG},
		{"path with a NUL", unixAddr, &net.UnixAddr{Name: filepath.Join(t.TempDir(), "a\x00b")}, syscall.EINVAL},
		{"no such directory", unixAddr, &net.UnixAddr{Name: "/nonexistent/s"}, syscall.ENOENT},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fd, err := Socket(tt.family)
			check(t, err)
			closing(t, fd)
			wantErrno(t, Bind(fd, tt.addr), "bind", tt.want)
		})
	}
	_, err := Socket(&net.IPAddr{})
	wantErrno(t, err, "socket", syscall.EAFNOSUPPORT)
	fd, err := Socket(&net.TCPAddr{})
	check(t, err)
	closing(t, fd)
	wantErrno(t, Bind(fd, &net.TCPAddr{IP: net.IPv6loopback, Zone: "no such interface"}), "bind", syscall.ENODEV)
}

func TestBadDescriptor(t *testing.T) {
	const bad = -1
	_, _, acceptErr := Accept(bad)
	_, readErr := Read(bad, make([]byte, 1))
	_, readvErr := Readv(bad, []Iovec{MakeIovec(make([]byte, 1))})
	_, writeErr := Write(bad, make([]byte, 1))
	_, slowErr := WriteSlow(bad, make([]byte, 1))
	_, writevErr := Writev(bad, parts(make([]byte, 2), 1))
	_, slowvErr := WritevSlow(bad, []Iovec{MakeIovec(make([]byte, 1))})
	_, sendErr := Sendmsg(bad, []Iovec{MakeIovec(make([]byte, 1))}, 0)
	_, sendmsgErr := Sendmsg(bad, parts(make([]byte, 2), 1), 0)
	_, readFileErr := ReadFile(bad, make([]byte, 1), 0)
	_, sendfileErr := Sendfile(bad, bad, 0, 1)
	_, cachedErr := Cached(bad, 0)
	_, mapErr := MapFile(bad, 0, 1)
	_, waitErr := EpollWait(bad, make([]EpollEvent, 1), 0)
	_, localErr := LocalAddr(bad, "")
	_, remoteErr := RemoteAddr(bad, "")
	_, unreadErr := Unread(bad)
	_, unsentErr := Unsent(bad)
	_, bufferErr := SendBuffer(bad)
	_, recvErr := RecvBuffer(bad)
	for _, tt := range []struct {
		call string
		err  error
	}{
		{"accept4", acceptErr}, {"read", readErr}, {"readv", readvErr}, {"write", writeErr}, {"write", slowErr},
		{"writev", writevErr}, {"writev", slowvErr}, {"sendto", sendErr}, {"sendmsg", sendmsgErr}, {"pread", readFileErr},
		{"sendfile", sendfileErr}, {"preadv2", cachedErr}, {"mmap", mapErr}, {"epoll_pwait", waitErr},
		{"getsockname", localErr}, {"getpeername", remoteErr}, {"ioctl", unreadErr}, {"ioctl", unsentErr},
		{"getsockopt", bufferErr}, {"getsockopt", recvErr}, {"close", Close(bad)}, {"listen", Listen(bad, 1)},
		{"bind", Bind(bad, &net.TCPAddr{})}, {"connect", Connect(bad, &net.TCPAddr{})},
		{"shutdown", ShutdownRead(bad)}, {"shutdown", ShutdownWrite(bad)}, {"getsockopt", SocketError(bad)},
		{"setsockopt", SetNoDelay(bad, true)}, {"setsockopt", SetLinger(bad, 0)},
		{"setsockopt", SetKeepAlive(bad, true, 0, 0, 0)}, {"epoll_ctl", EpollAdd(bad, bad, 0, 0)},
		{"epoll_ctl", EpollMod(bad, bad, 0, 0)}, {"epoll_ctl", EpollDel(bad, bad)},
		{"write", EventfdWrite(bad)}, {"read", EventfdRead(bad)},
	} {
		wantErrno(t, tt.err, tt.call, syscall.EBADF)
	}
}

func TestOptions(t *testing.T) {
	client, _ := tcpPair(t)
	get := func(level, option int) int {
		t.Helper()
		v, err := unix.GetsockoptInt(client, level, option)
		check(t, err)
		return v
	}
	tests := []struct {
		name          string
		set           func() error
		level, option int
		want          int
	}{
		{"no delay", func() error { return SetNoDelay(client, true) }, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{"delay", func() error { return SetNoDelay(client, false) }, unix.IPPROTO_TCP, unix.TCP_NODELAY, 0},
		{"reuse address", func() error { return SetReuseAddr(client, true) }, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{"reuse port", func() error { return SetReusePort(client, true) }, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
		{"send buffer", func() error { return SetSendBuffer(client, 32<<10) }, unix.SOL_SOCKET, unix.SO_SNDBUF, 64 << 10},
		{"receive buffer", func() error { return SetRecvBuffer(client, 16<<10) }, unix.SOL_SOCKET, unix.SO_RCVBUF, 32 << 10},
		{"user timeout", func() error { return SetUserTimeout(client, 1500*time.Microsecond) }, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 2},
		{"keep-alive", func() error { return SetKeepAlive(client, true, 1500*time.Millisecond, time.Second, 5) }, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"its idle time, rounded up", func() error { return nil }, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 2},
		{"its interval", func() error { return nil }, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1},
		{"its count", func() error { return nil }, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 5},
		{"zeros leave it", func() error { return SetKeepAlive(client, true, 0, 0, 0) }, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 2},
		{"at most what fits", func() error { return SetKeepAlive(client, true, 1000*time.Hour, 0, 0) }, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 32767},
		{"keep-alive off", func() error { return SetKeepAlive(client, false, 0, 0, 0) }, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0},
	}
	for _, tt := range tests {
		if err := tt.set(); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if got := get(tt.level, tt.option); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
	if n, err := SendBuffer(client); n != 64<<10 || err != nil {
		t.Errorf("send buffer: got %d, %v, want %d", n, err, 64<<10)
	}
	if n, err := RecvBuffer(client); n != 32<<10 || err != nil {
		t.Errorf("receive buffer: got %d, %v, want %d", n, err, 32<<10)
	}
	for _, tt := range []struct {
		seconds int
		want    unix.Linger
	}{{3, unix.Linger{Onoff: 1, Linger: 3}}, {0, unix.Linger{Onoff: 1}}, {-1, unix.Linger{}}} {
		check(t, SetLinger(client, tt.seconds))
		var got unix.Linger
		size := uint32(unsafe.Sizeof(got))
		if _, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(client), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&got)), uintptr(unsafe.Pointer(&size)), 0); e != 0 {
			t.Fatal(e)
		}
		if got != tt.want {
			t.Errorf("linger %d: got %+v, want %+v", tt.seconds, got, tt.want)
		}
	}
}

func TestReset(t *testing.T) {
	l, addr := listen(t, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	client := dial(t, addr)
	await(t, l, EpollIn)
	server, _, err := Accept(l)
	check(t, err)
	check(t, SetLinger(server, 0))
	check(t, Close(server))
	await(t, client, EpollIn)
	_, err = Read(client, make([]byte, 1))
	wantErrno(t, err, "read", syscall.ECONNRESET)
	_, err = Write(client, make([]byte, 1))
	wantErrno(t, err, "write", syscall.EPIPE)
	_, err = Sendmsg(client, []Iovec{MakeIovec([]byte("x"))}, 0)
	wantErrno(t, err, "sendto", syscall.EPIPE)
	_, err = Sendmsg(client, parts([]byte("xy"), 1), 0)
	wantErrno(t, err, "sendmsg", syscall.EPIPE)
}

func TestShutdownRead(t *testing.T) {
	client, server := tcpPair(t)
	if _, err := Write(client, []byte("left over")); err != nil {
		t.Fatal(err)
	}
	await(t, server, EpollIn)
	check(t, ShutdownRead(server))
	same(t, readAll(t, server, 9), []byte("left over"))
	if n, err := Read(server, make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("got %d, %v, want 0, nil", n, err)
	}
}

func TestUnsent(t *testing.T) {
	for name, at := range endpoints(t) {
		t.Run(name, func(t *testing.T) {
			client, server := pair(t, at)
			if n, err := Unsent(client); n != 0 || err != nil {
				t.Errorf("got %d, %v, want 0, nil", n, err)
			}
			sum := fill(t, client)
			n, err := Unsent(client)
			check(t, err)
			if n == 0 {
				t.Errorf("got nothing unsent at a full socket of %d bytes", sum)
			}
			readAll(t, server, sum)
			if n, err = Unsent(client); n != 0 || err != nil {
				t.Errorf("got %d, %v after all was read, want 0, nil", n, err)
			}
		})
	}
}

func TestAddress(t *testing.T) {
	unixName := func(name string) (rsa unix.RawSockaddrAny, size uint32) {
		sa := (*unix.RawSockaddrUnix)(unsafe.Pointer(&rsa))
		sa.Family = unix.AF_UNIX
		for i := range name {
			sa.Path[i] = int8(name[i])
		}
		return rsa, uint32(2 + len(name))
	}
	inet := func(ip [4]byte, port uint16) (rsa unix.RawSockaddrAny, size uint32) {
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&rsa))
		sa.Family, sa.Addr, sa.Port = unix.AF_INET, ip, swap16(port)
		return rsa, unix.SizeofSockaddrInet4
	}
	inet6 := func(ip string, port uint16, scope uint32) (rsa unix.RawSockaddrAny, size uint32) {
		sa := (*unix.RawSockaddrInet6)(unsafe.Pointer(&rsa))
		sa.Family, sa.Port, sa.Scope_id = unix.AF_INET6, swap16(port), scope
		copy(sa.Addr[:], net.ParseIP(ip))
		return rsa, unix.SizeofSockaddrInet6
	}
	full := strings.Repeat("n", 108)
	tests := []struct {
		name string
		make func() (unix.RawSockaddrAny, uint32)
		want string
	}{
		{"IPv4", func() (unix.RawSockaddrAny, uint32) { return inet([4]byte{10, 1, 2, 3}, 0x1234) }, "tcp 10.1.2.3:4660"},
		{"IPv6", func() (unix.RawSockaddrAny, uint32) { return inet6("2001:db8::1", 443, 0) }, "tcp [2001:db8::1]:443"},
		{"with zone", func() (unix.RawSockaddrAny, uint32) { return inet6("fe80::1", 1, 7) }, "tcp [fe80::1%7]:1"},
		{"IPv4 in IPv6", func() (unix.RawSockaddrAny, uint32) { return inet6("::ffff:10.1.2.3", 1, 0) }, "tcp 10.1.2.3:1"},
		{"path", func() (unix.RawSockaddrAny, uint32) { return unixName("/run/s\x00") }, "unix /run/s"},
		{"path of full length", func() (unix.RawSockaddrAny, uint32) { return unixName(full) }, "unix " + full},
		{"abstract", func() (unix.RawSockaddrAny, uint32) { return unixName("\x00name") }, "unix @name"},
		{"abstract with a NUL", func() (unix.RawSockaddrAny, uint32) { return unixName("\x00a\x00b") }, "unix @a\x00b"},
		{"unnamed", func() (unix.RawSockaddrAny, uint32) { return unixName("") }, "unix "},
		{"no address", func() (unix.RawSockaddrAny, uint32) { return unix.RawSockaddrAny{}, 0 }, "<nil>"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rsa, size := tt.make()
			got := "<nil>"
			if a := address(&rsa, size, ""); a != nil {
				got = a.Network() + " " + a.String()
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	rsa, size := unixName("x")
	if got := address(&rsa, size, "unixpacket").Network(); got != "unixpacket" {
		t.Errorf("got network %q, want unixpacket", got)
	}
}

func TestUnits(t *testing.T) {
	tests := []struct {
		d    time.Duration
		want int
	}{{-1, 0}, {0, 0}, {1, 1}, {time.Second, 1}, {time.Second + 1, 2}, {math.MaxInt64, 100}}
	for _, tt := range tests {
		if got := units(tt.d, time.Second, 100); got != tt.want {
			t.Errorf("units(%v): got %d, want %d", tt.d, got, tt.want)
		}
	}
}

func TestSentinels(t *testing.T) {
	tests := []struct {
		err  error
		want syscall.Errno
	}{{ErrAgain, syscall.EAGAIN}, {ErrInProgress, syscall.EINPROGRESS}}
	for _, tt := range tests {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%v: got no match for %v", tt.err, tt.want)
		}
		if errors.Is(tt.err, syscall.EINVAL) || errors.Is(tt.err, os.ErrClosed) {
			t.Errorf("%v: got a match for another error", tt.err)
		}
		if got := fail("x", tt.want); got != tt.err {
			t.Errorf("fail(%v): got %v, want the sentinel", tt.want, got)
		}
		if got := failed("x", tt.want); got != tt.err {
			t.Errorf("failed(%v): got %v, want the sentinel", tt.want, got)
		}
	}
	if got := failed("x", nil); got != nil {
		t.Errorf("failed(nil): got %v, want nil", got)
	}
	if got := fmt.Sprint(failed("x", errors.New("odd"))); got != "x: odd" {
		t.Errorf("got %q, want %q", got, "x: odd")
	}
}
