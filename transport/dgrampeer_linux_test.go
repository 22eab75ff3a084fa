package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
)

// changed performs a change from outside the loop and waits for its outcome.
func changed(t *testing.T, f func(then func(error))) error {
	t.Helper()
	done := make(chan error, 1)
	f(func(err error) { done <- err })
	return await(t, done, "the outcome")
}

// peerSocket is somebody with an address who exchanges datagrams.
type peerSocket struct {
	net.PacketConn
	t *testing.T
}

func newPeerSocket(t *testing.T, network string) peerSocket {
	t.Helper()
	addr := map[string]string{"udp": "127.0.0.1:0", "udp4": "127.0.0.1:0", "udp6": "[::1]:0"}[network]
	if network == "unixgram" {
		addr = unixgramAddr(t).Name
	}
	c, err := net.ListenPacket(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return peerSocket{c, t}
}

func (p peerSocket) send(to net.Addr, text string) {
	p.t.Helper()
	if _, err := p.WriteTo([]byte(text), to); err != nil {
		p.t.Fatal(err)
	}
}

func (p peerSocket) want(text string) {
	p.t.Helper()
	b := make([]byte, 100)
	if n, _, err := p.ReadFrom(b); err != nil || string(b[:n]) != text {
		p.t.Fatalf("got %q, %v; want %q", b[:n], err, text)
	}
}

// message is a Datagram to p.
func (p peerSocket) message(text string) *Datagram {
	d := &Datagram{Content: pooled(text)}
	switch a := p.LocalAddr().(type) {
	case *net.UDPAddr:
		d.Addr = a.AddrPort()
	case *net.UnixAddr:
		d.Name = a.Name
	}
	return d
}

// typed is a handler that says of each message of which kind it is, and what it has.
type typed chan string

func (in typed) HandleRead(_ *pipeline.Context, msg any) error {
	switch m := msg.(type) {
	case *buffer.Buf:
		in <- "plain " + m.ReadString(m.Len())
		m.Release()
	case *Datagram:
		in <- "addressed " + m.Content.ReadString(m.Content.Len())
		m.Release()
	}
	return nil
}

func (in typed) HandleError(_ *pipeline.Context, err error) { in <- "error " + err.Error() }

// A channel that is bound is connected to one peer, then to another, and is as it was when
// that is taken back, with the port that it had, whoever had chosen it; time and again.
func TestConnectAndDisconnect(t *testing.T) {
	eachDatagramNetwork(t, func(t *testing.T, network, addr string) {
		in := make(typed, 10)
		ch := serve(t, &Server{Init: with(in)}, network, addr)
		at := ch.LocalAddr()
		a, b := newPeerSocket(t, network), newPeerSocket(t, network)
		want := func(text string) {
			t.Helper()
			if got := await(t, in, "a message"); got != text {
				t.Fatalf("got %q, want %q", got, text)
			}
		}
		for range 3 {
			a.send(at, "from a")
			want("addressed from a")
			for _, peer := range []peerSocket{a, b} {
				other := b
				if peer == b {
					other = a
				}
				if err := changed(t, func(then func(error)) { Connect(ch, peer.LocalAddr(), then) }); err != nil {
					t.Fatal(err)
				}
				if got, want := ch.RemoteAddr().String(), peer.LocalAddr().String(); got != want {
					t.Errorf("remote address: got %s, want %s", got, want)
				}
				if _, err := other.WriteTo([]byte("let me in"), at); network == "unixgram" && !errors.Is(err, syscall.EPERM) {
					t.Errorf("a stranger's datagram: got %v, want it refused", err)
				}
				peer.send(at, "from the peer")
				want("plain from the peer")
				ch.Write("to the peer")
				ch.Write(peer.message("to it by name"))
				peer.want("to the peer")
				peer.want("to it by name")
				if err := ch.Send(context.Background(), other.message("never")); !errors.Is(err, ErrUnsupportedMessage) {
					t.Errorf("to another than the peer: got %v, want it refused", err)
				}
			}
			for range 2 { // the second has nothing to do
				if err := changed(t, func(then func(error)) { Disconnect(ch, then) }); err != nil {
					t.Fatal(err)
				}
			}
			if got := ch.LocalAddr().String(); got != at.String() || ch.RemoteAddr() != nil {
				t.Fatalf("addresses: got %s and %v, want %s and none", got, ch.RemoteAddr(), at)
			}
			b.send(at, "from b")
			want("addressed from b")
			ch.Write(a.message("to a"))
			a.want("to a")
			if err := ch.Send(context.Background(), "to whom?"); !errors.Is(err, ErrUnsupportedMessage) {
				t.Errorf("without an address: got %v, want it refused", err)
			}
		}
	})
}

// A channel that was dialed can be disconnected, keeps its port and hears everybody.
func TestDisconnectDialed(t *testing.T) {
	eachDatagramNetwork(t, func(t *testing.T, network, _ string) {
		a, b := newPeerSocket(t, network), newPeerSocket(t, network)
		in := make(typed, 10)
		d := Dialer{Init: with(in)}
		if network == "unixgram" {
			d.LocalAddr = unixgramAddr(t)
		}
		ch, err := d.Dial(context.Background(), network, a.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer closeAndWait(t, ch)
		at := ch.LocalAddr()
		ch.Write("to a") // leaves first
		if err := changed(t, func(then func(error)) { Disconnect(ch, then) }); err != nil {
			t.Fatal(err)
		}
		a.want("to a")
		if udp, ok := at.(*net.UDPAddr); ok {
			if got := ch.LocalAddr().(*net.UDPAddr); got.Port != udp.Port {
				t.Errorf("port: got %d, want %d", got.Port, udp.Port)
			}
		}
		for _, p := range []peerSocket{b, a} {
			p.send(at, "hello")
			if got := await(t, in, "a message"); got != "addressed hello" {
				t.Errorf("got %q", got)
			}
			ch.Write(p.message("hello you"))
			p.want("hello you")
		}
	})
}

// From many goroutines at once each write goes to the peer of its time: what is written
// between a connect and the next is for that peer and no other.
func TestConnectFromManyGoroutines(t *testing.T) {
	eachDatagramNetwork(t, func(t *testing.T, network, addr string) {
		ch := serve(t, &Server{}, network, addr)
		const peers, rounds, each = 3, 15, 3
		var all []peerSocket
		for range peers {
			all = append(all, newPeerSocket(t, network))
		}
		var turn sync.Mutex // one connects and writes at a time, without waiting for the loop
		var wg sync.WaitGroup
		for i := range peers {
			wg.Go(func() {
				for round := range rounds {
					turn.Lock()
					Connect(ch, all[i].LocalAddr(), func(err error) {
						if err != nil {
							t.Error(err)
						}
					})
					for n := range each {
						ch.Write(fmt.Sprint(round, " ", n))
					}
					turn.Unlock()
					for n := range each {
						all[i].want(fmt.Sprint(round, " ", n))
					}
				}
			})
		}
		wg.Wait()
	})
}

// When the port that the system had chosen is another's once it has been given up, the
// channel says so and closes.
func TestPortLostByDisconnect(t *testing.T) {
	peer := newPeerSocket(t, "udp4")
	ch, err := (&Server{ReusePort: true}).Listen(context.Background(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := changed(t, func(then func(error)) { Connect(ch, peer.LocalAddr(), then) }); err != nil {
		t.Fatal(err)
	}
	share := func(c syscall.RawConn, on int) (err error) {
		const reusePort = 15
		if e := c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, reusePort, on) }); e != nil {
			return e
		}
		return err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return share(c, 1) }}
	other, err := lc.ListenPacket(context.Background(), "udp4", ch.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	raw, err := SyscallConn(ch)
	if err == nil {
		err = share(raw, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	err = changed(t, func(then func(error)) { Disconnect(ch, then) })
	var op *OpError
	if !errors.Is(err, syscall.EADDRINUSE) || !errors.As(err, &op) || op.Op != "disconnect" {
		t.Errorf("got %v, want a disconnect *OpError of EADDRINUSE", err)
	}
	await(t, ch.Closed().Done(), "the end of the channel")
}
