package transport

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// A socket that is bound to no address of its own knows of each datagram which one it
// was sent to, in both families, also where one socket speaks both.
func TestDatagramDestinations(t *testing.T) {
	for _, tt := range []struct {
		network, addr string
		to            []string
	}{
		{"udp4", "0.0.0.0:0", []string{"127.0.0.1", "127.0.0.2", "127.1.2.3"}},
		{"udp6", "[::]:0", []string{"::1"}},
		{"udp", ":0", []string{"127.0.0.2", "::1", "127.0.0.1"}},
		{"udp", "127.0.0.1:0", []string{"127.0.0.1"}},
	} {
		for _, on := range []bool{true, false} {
			t.Run(fmt.Sprint(tt.network, " ", tt.addr, " ", on), func(t *testing.T) {
				if !haveIPv6() && tt.network != "udp4" {
					t.Skip("the system has no IPv6")
				}
				got := make(chan netip.AddrPort, 1)
				l := serve(t, &Server{Config: Config{Destination: on}, Init: with(pipeline.On(func(c *pipeline.Context, d *Datagram) error {
					got <- d.To
					c.Write(d) // To says nothing of where it goes
					return nil
				}))}, tt.network, tt.addr)
				for _, ip := range tt.to {
					want := netip.AddrPortFrom(netip.MustParseAddr(ip), l.LocalAddr().(*net.UDPAddr).AddrPort().Port())
					nc, err := net.ListenPacket("udp", net.JoinHostPort(ip, "0"))
					if err != nil {
						t.Fatal(err)
					}
					defer nc.Close()
					nc.SetDeadline(time.Now().Add(patience))
					if _, err := nc.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(want)); err != nil {
						t.Fatal(err)
					}
					if !on {
						want = netip.AddrPort{}
					}
					if got := await(t, got, "a datagram"); got != want {
						t.Errorf("sent to %s: got %v, want %v", ip, got, want)
					}
					if n, _, err := nc.ReadFrom(make([]byte, 10)); n != 5 || err != nil {
						t.Errorf("answer: got %d, %v", n, err)
					}
				}
			})
		}
	}
}

// What the kernel says of datagrams costs no allocation.
func TestDatagramDestinationAllocations(t *testing.T) {
	if invariant.Enabled || raceEnabled {
		t.Skip("assertions allocate")
	}
	defer buffer.SetLeakLevel(buffer.SetLeakLevel(buffer.LeakSampled)) // at level all buffers are not used again
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		if !haveIPv6() && addr == "[::1]:0" {
			continue
		}
		l := serve(t, &Server{Config: Config{Destination: true, GRO: true}, Init: with(echoDatagrams())}, "udp", addr)
		nc := dialNet(t, l)
		nc.SetDeadline(time.Time{})
		p := make([]byte, 100)
		round := func() {
			if _, err := nc.Write(p); err != nil {
				t.Fatal(err)
			}
			if n, err := nc.Read(p); n != len(p) || err != nil {
				t.Fatal(n, err)
			}
		}
		for range 100 {
			round()
		}
		if n := testing.AllocsPerRun(200, round); n != 0 {
			t.Errorf("%s: got %v allocations a datagram, want 0", addr, n)
		}
	}
}

// segmented returns a socket to l whose writes leave as datagrams of n bytes each, which
// stay together on their way if they can; it skips the test if the kernel has no such
// thing.
func segmented(t *testing.T, l pipeline.Channel, n int) *net.UDPConn {
	t.Helper()
	nc := dialNet(t, l).(*net.UDPConn)
	raw, err := nc.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const udpSegment = 103
	if e := raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_UDP, udpSegment, n) }); e != nil {
		t.Fatal(e)
	}
	if err != nil {
		t.Skipf("no UDP_SEGMENT: %v", err)
	}
	return nc
}

// What the kernel hands over as one is what was sent, in order, on channels that are bound
// and connected, with the sender and the receiver of each; with GRO off it comes one by
// one, and nobody can tell.
func TestGRO(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		for _, size := range []int{100, 1000, 1452} {
			for _, cfg := range []Config{
				{},
				{GRO: true},
				{GRO: true, Destination: true, MaxDatagram: 1500},
				{Control: func(_, _ string, c syscall.RawConn) error { // who sets it himself is understood
					var err error
					_ = c.Control(func(fd uintptr) { err = sys.SetOption(int(fd), sys.UDPGRO, 1) })
					return err
				}},
			} {
				t.Run(fmt.Sprint(addr, size, cfg.GRO, cfg.Destination, cfg.Control != nil), func(t *testing.T) {
					if !haveIPv6() && addr == "[::1]:0" {
						t.Skip("the system has no IPv6")
					}
					type seen struct {
						content  string
						from, to netip.AddrPort
					}
					got := make(chan seen, 100)
					together := 0
					var last *buffer.Buf
					l := serve(t, &Server{Config: cfg, Init: with(pipeline.On(func(c *pipeline.Context, d *Datagram) error {
						b := d.Content
						if last != nil {
							if b.SharesMemory(last) {
								together++
							}
							last.Release()
						}
						last = b.Retain()
						got <- seen{b.ReadString(b.Len()), d.Addr, d.To}
						d.Release()
						return nil
					}), pipeline.OnInactive(func(*pipeline.Context) error {
						last.Release()
						return nil
					}))}, "udp", addr)
					nc := segmented(t, l, size)
					content := letters(30*size + 7)
					if _, err := nc.Write([]byte(content)); err != nil {
						t.Fatal(err)
					}
					want := seen{from: nc.LocalAddr().(*net.UDPAddr).AddrPort()}
					if cfg.Destination {
						want.to = l.LocalAddr().(*net.UDPAddr).AddrPort()
					}
					for i := range 31 {
						want.content = content[i*size : min((i+1)*size, len(content))]
						if got := await(t, got, "a datagram"); got != want {
							t.Fatalf("datagram %d: got %d bytes %.20q from %v to %v, want %d %.20q from %v to %v", i,
								len(got.content), got.content, got.from, got.to, len(want.content), want.content, want.from, want.to)
						}
					}
					closeAndWait(t, l)
					want30 := 0
					if cfg.GRO || cfg.Control != nil {
						want30 = 30
					}
					if together != want30 {
						t.Errorf("got %d that came with the one before, want %d", together, want30)
					}
				})
			}
		}
	}
}

// A channel that is connected has them as Bufs; one longer than it takes is reported.
func TestGROConnected(t *testing.T) {
	peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	in := make(inbox, 100)
	d := Dialer{Config: Config{GRO: true, MaxDatagram: 500}, Init: with(in)}
	ch, err := d.Dial(context.Background(), "udp4", peer.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer closeAndWait(t, ch)
	raw, _ := peer.SyscallConn()
	for _, size := range []int{400, 501} {
		_ = raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_UDP, 103, size) })
		if err != nil {
			t.Skipf("no UDP_SEGMENT: %v", err)
		}
		content := letters(10 * size)
		if _, err := peer.WriteTo([]byte(content), ch.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			got := await(t, in, "a datagram")
			if want := content[i*size : (i+1)*size]; size <= 500 && got != want {
				t.Fatalf("datagram %d: got %.20q, want %.20q", i, got, want)
			}
			if size > 500 && !strings.Contains(got, ErrTruncated.Error()) {
				t.Fatalf("datagram %d of %d bytes: got %.20q, want it refused", i, size, got)
			}
		}
	}
}

// linkOf returns what a descriptor of this process refers to.
func linkOf(t *testing.T, fd uintptr) string {
	t.Helper()
	link, err := os.Readlink(fmt.Sprint("/proc/self/fd/", fd))
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// descriptorsOf returns how many descriptors of this process refer to link.
func descriptorsOf(t *testing.T, link string) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if l, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && l == link {
			n++
		}
	}
	return n
}

// Descriptors that a peer sends along, which nobody has asked for, do not come into the
// process, whatever other channels of the loop ask for.
func TestDescriptorsFromPeersAreNotKept(t *testing.T) {
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	// It has its datagrams received into the same slots, with what the kernel says of them.
	noted := make(inbox, 1)
	udp := serve(t, &Server{Group: g, Config: Config{Destination: true}, Init: with(noted)}, "udp", "127.0.0.1:0")
	other := dialNet(t, udp)
	for _, network := range []string{"unixgram", "unix"} {
		in := make(inbox, 1)
		at := unixgramAddr(t)
		l := serve(t, &Server{Group: g, Init: with(in)}, network, at.Name)
		at.Net = network
		nc, err := net.DialUnix(network, nil, at)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write([]byte("before")); err != nil {
			t.Fatal(err)
		}
		if got := await(t, in, "a message"); got != "before" {
			t.Fatalf("got %q", got)
		}
		for range 3 {
			fmt.Fprint(other, "noted")
			await(t, noted, "a datagram")
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			rights := syscall.UnixRights(int(w.Fd()), int(w.Fd()))
			raw, err := nc.SyscallConn() // WriteMsgUnix refuses connected sockets of datagrams
			if err != nil {
				t.Fatal(err)
			}
			if e := raw.Control(func(fd uintptr) { err = syscall.Sendmsg(int(fd), []byte("take these"), rights, nil, 0) }); e != nil || err != nil {
				t.Fatal(e, err)
			}
			w.Close()
			if got := await(t, in, "a message"); got != "take these" {
				t.Fatalf("got %q", got)
			}
			// The pipe has its end when nobody has the descriptors any more.
			end := make(chan error, 1)
			go func() {
				_, err := r.Read(make([]byte, 1))
				end <- err
			}()
			if err := await(t, end, "the end of the pipe"); err == nil {
				t.Error("read something from a pipe that nobody writes to")
			}
			if n := descriptorsOf(t, linkOf(t, r.Fd())); n != 1 {
				t.Errorf("%s: got %d descriptors of the pipe, want its one end", network, n)
			}
			r.Close()
		}
		nc.Close()
		l.Close()
	}
}
