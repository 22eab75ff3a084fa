package sys

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// datagramAddrs are addresses of every kind of datagram socket.
func datagramAddrs(t *testing.T, end string) map[string]net.Addr {
	return map[string]net.Addr{
		"udp4":     &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)},
		"udp6":     &net.UDPAddr{IP: net.IPv6loopback},
		"unixgram": &net.UnixAddr{Net: "unixgram", Name: filepath.Join(t.TempDir(), end)},
		"abstract": &net.UnixAddr{Net: "unixgram", Name: fmt.Sprintf("@runnel-test-%d-%s-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"), end)},
	}
}

// datagramSocket returns a socket that is bound to at, and the address that it got.
func datagramSocket(t *testing.T, at net.Addr) (int, net.Addr) {
	t.Helper()
	fd, err := Socket(at)
	if err == nil {
		closing(t, fd)
		err = Bind(fd, at)
	}
	if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Skip("no IPv6 here")
	}
	check(t, err)
	a, err := LocalAddr(fd, at.Network())
	check(t, err)
	return fd, a
}

// addTo adds a message for an address.
func addTo(t *testing.T, m *Messages, to net.Addr, parts ...string) {
	t.Helper()
	iov := make([]Iovec, len(parts))
	for i, p := range parts {
		iov[i] = MakeIovec([]byte(p))
	}
	var err error
	switch a := to.(type) {
	case *net.UDPAddr:
		err = m.AddTo(iov, a.AddrPort(), len(a.IP) == net.IPv6len)
	case *net.UnixAddr:
		err = m.AddToName(iov, a.Name)
	}
	check(t, err)
}

// Several datagrams are sent and received by a call each, with their addresses, their
// bounds and none of their bytes lost in silence.
func TestDatagrams(t *testing.T) {
	for name := range datagramAddrs(t, "") {
		t.Run(name, func(t *testing.T) {
			from, fromAddr := datagramSocket(t, datagramAddrs(t, "from")[name])
			to, toAddr := datagramSocket(t, datagramAddrs(t, "to")[name])
			out := NewMessages(4)
			for range 2 { // the second time over what the first has left
				out.Reset()
				addTo(t, out, toAddr, "one ", "and ", "two")
				addTo(t, out, toAddr)
				addTo(t, out, toAddr, strings.Repeat("x", 20))
				if n, err := Sendmmsg(from, out, false); n != 3 || err != nil {
					t.Fatalf("got %d, %v, want 3", n, err)
				}
				in := NewMessages(4)
				var rooms [4][]byte
				for i := range rooms {
					rooms[i] = make([]byte, 16)
					in.Lend(i, rooms[i])
				}
				await(t, to, EpollIn)
				n, err := Recvmmsg(to, in, 4)
				if n != 3 || err != nil {
					t.Fatalf("got %d, %v, want 3", n, err)
				}
				for i, want := range []string{"one and two", "", strings.Repeat("x", 16)} {
					wantCut := i == 2
					if got := in.Truncated(i); got != wantCut {
						t.Errorf("datagram %d: truncated: got %v, want %v", i, got, wantCut)
					}
					switch a := fromAddr.(type) {
					case *net.UDPAddr:
						if got := in.From(i); got != a.AddrPort() {
							t.Errorf("datagram %d: from %v, want %v", i, got, a)
						}
					case *net.UnixAddr:
						if got := in.FromName(i, ""); got != a.Name || in.FromName(i, got) != got {
							t.Errorf("datagram %d: from %q, want %q", i, got, a.Name)
						}
					}
					p, got := in.Take(i)
					if p == nil || string(rooms[i][:got]) != want {
						t.Errorf("datagram %d: got %q, want %q", i, rooms[i][:got], want)
					}
					if p, n := in.Take(i); p != nil || n != 0 {
						t.Errorf("datagram %d: taken twice", i)
					}
				}
				if n, err := Recvmmsg(to, in, 0); n != 0 || err != nil && err != ErrAgain {
					t.Errorf("no room: got %d, %v", n, err)
				}
			}
			in := NewMessages(1)
			in.Lend(0, make([]byte, 1))
			if _, err := Recvmmsg(to, in, 1); err != ErrAgain {
				t.Errorf("nothing there: got %v, want ErrAgain", err)
			}
		})
	}
}

// A sender without a name has none, whatever came before.
func TestDatagramWithoutName(t *testing.T) {
	to, toAddr := datagramSocket(t, datagramAddrs(t, "to")["abstract"])
	from, err := Socket(toAddr)
	check(t, err)
	closing(t, from)
	check(t, Connect(from, toAddr))
	out := NewMessages(1)
	out.Add([]Iovec{MakeIovec([]byte("x"))})
	if n, err := Sendmmsg(from, out, true); n != 1 || err != nil {
		t.Fatalf("got %d, %v, want 1", n, err)
	}
	in := NewMessages(1)
	in.Lend(0, make([]byte, 1))
	if n, err := Recvmmsg(to, in, 1); n != 1 || err != nil {
		t.Fatalf("got %d, %v, want 1", n, err)
	}
	if name := in.FromName(0, "@somebody"); name != "" || in.From(0).IsValid() {
		t.Errorf("got %q, %v, want no name", name, in.From(0))
	}
}

func TestDatagramAddressErrors(t *testing.T) {
	m := NewMessages(1)
	long := strings.Repeat("x", 108)
	for _, tt := range []struct {
		name string
		add  func() error
		want error
	}{
		{"IPv6 on IPv4", func() error { return m.AddTo(nil, netip.MustParseAddrPort("[::1]:1"), false) }, syscall.EAFNOSUPPORT},
		{"no address", func() error { return m.AddTo(nil, netip.AddrPort{}, false) }, syscall.EAFNOSUPPORT},
		{"unknown zone", func() error { return m.AddTo(nil, netip.MustParseAddrPort("[fe80::1%no-such-zone]:1"), true) }, syscall.ENODEV},
		{"no name", func() error { return m.AddToName(nil, "") }, syscall.EINVAL},
		{"long name", func() error { return m.AddToName(nil, long) }, syscall.EINVAL},
		{"zero in a path", func() error { return m.AddToName(nil, "a\x00b") }, syscall.EINVAL},
	} {
		if err := tt.add(); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
		if m.n != 0 {
			t.Errorf("%s: a message was added", tt.name)
		}
	}
	for _, name := range []string{long[:107], "@" + long[:107]} {
		m.Reset()
		if err := m.AddToName(nil, name); err != nil {
			t.Errorf("a name of %d bytes: %v", len(name), err)
		}
	}
	for _, to := range []string{"127.0.0.1:9", "[::ffff:127.0.0.1]:9"} {
		m.Reset()
		if err := m.AddTo(nil, netip.MustParseAddrPort(to), false); err != nil {
			t.Errorf("%s: %v", to, err)
		}
	}
}

// A socket that was told to keep errors reports them until they are dropped.
func TestDropErrors(t *testing.T) {
	gone, at := datagramSocket(t, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	fd, _ := datagramSocket(t, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	check(t, Connect(fd, at))
	check(t, unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
	check(t, unix.Dup3(fd, gone, unix.O_CLOEXEC)) // which closes it: nobody is there any more
	m := NewMessages(1)
	m.Add([]Iovec{MakeIovec([]byte("x"))})
	if _, err := Sendmmsg(fd, m, false); err != nil {
		t.Fatal(err)
	}
	await(t, fd, 0) // for the error, which needs not be asked for
	if err := SocketError(fd); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want ECONNREFUSED", err)
	}
	if got := await(t, fd, EpollOut); got&EpollErr == 0 {
		t.Errorf("ready for %#x, want the error that is kept", got)
	}
	DropErrors(fd)
	if got := await(t, fd, EpollOut); got != EpollOut {
		t.Errorf("ready for %#x, want only for writing", got)
	}
}

// The kernel says of a datagram what was asked for, also behind other things that a
// socket was told to send along; where nobody asks it says nothing.
func TestNotes(t *testing.T) {
	for _, name := range []string{"udp4", "udp6"} {
		t.Run(name, func(t *testing.T) {
			from, _ := datagramSocket(t, datagramAddrs(t, "from")[name])
			to, toAddr := datagramSocket(t, datagramAddrs(t, "to")[name])
			want := toAddr.(*net.UDPAddr).AddrPort()
			for _, o := range []Option{{unix.SOL_SOCKET, unix.SO_TIMESTAMP}, {unix.SOL_SOCKET, unix.SO_RXQ_OVFL}, IPOrigDst} {
				check(t, SetOption(to, o, 1))
			}
			if name == "udp6" {
				check(t, SetOption(to, Option{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO}, 1))
				check(t, SetOption(to, IPv6OrigDst, 1))
			}
			check(t, SetOption(to, UDPGRO, 1))
			in, out := NewMessages(2), NewMessages(3)
			for _, tt := range []struct {
				on      bool
				segment int
			}{{true, 0}, {false, 0}, {true, 4}, {false, 4}, {true, 0}} {
				check(t, SetOption(from, Option{unix.IPPROTO_UDP, unix.UDP_SEGMENT}, tt.segment))
				out.Reset()
				addTo(t, out, toAddr, "0123456789")
				addTo(t, out, toAddr, "01")
				if n, err := Sendmmsg(from, out, false); n != 2 || err != nil {
					t.Fatalf("got %d, %v, want 2", n, err)
				}
				in.WantNotes(tt.on)
				for i := range 2 {
					in.Lend(i, make([]byte, 16))
				}
				if n, err := Recvmmsg(to, in, 2); n != 2 || err != nil {
					t.Fatalf("got %d, %v, want 2", n, err)
				}
				for i, length := range []int{10, 2} {
					if _, n := in.Take(i); n != length {
						t.Errorf("message %d: got %d bytes, want %d", i, n, length)
					}
					if !tt.on {
						if in.hdrs[i].Hdr.Controllen != 0 {
							t.Errorf("got %d bytes of what nobody has asked for", in.hdrs[i].Hdr.Controllen)
						}
						continue
					}
					segment := tt.segment
					if i == 1 {
						segment = 0 // shorter than one
					}
					if at, n, cut := in.Notes(i); at != want || n != segment || cut {
						t.Errorf("message %d: got %v, %d, %v; want %v, %d and nothing cut", i, at, n, cut, want, segment)
					}
				}
			}
		})
	}
}
