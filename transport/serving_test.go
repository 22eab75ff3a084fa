//go:build linux

package transport

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// newGroup returns a group that ends with the test.
func newGroup(t testing.TB, cfg eventloop.GroupConfig) *eventloop.Group {
	t.Helper()
	g, err := eventloop.NewGroup(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := g.Shutdown(ctx); err != nil {
			t.Errorf("group: %v", err)
		}
	})
	return g
}

// roundTrip sends a byte and wants it back.
func roundTrip(t testing.TB, nc net.Conn) {
	t.Helper()
	p := []byte{'x'}
	if _, err := nc.Write(p); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(nc, p); err != nil {
		t.Error(err)
	}
}

// With PerLoop every loop accepts, and keeps what it accepts.
func TestPerLoop(t *testing.T) {
	g := newGroup(t, eventloop.GroupConfig{Loops: 3})
	var listeners []pipeline.Channel
	var mu sync.Mutex
	used := make(map[*eventloop.Loop]int)
	srv := &Server{
		Group:   g,
		PerLoop: true,
		ListenerInit: func(l pipeline.Channel) error {
			mu.Lock()
			defer mu.Unlock()
			listeners = append(listeners, l)
			return nil
		},
		Init: func(ch pipeline.Channel) error {
			if ch.Loop() != ch.Parent().Loop() {
				t.Error("a channel is not on the loop that accepted it")
			}
			mu.Lock()
			used[ch.Loop()]++
			mu.Unlock()
			return ch.Pipeline().Add(echo())
		},
	}
	l := serve(t, srv, "tcp", "127.0.0.1:0")
	if len(listeners) != 3 || l != listeners[0] {
		t.Fatalf("listeners: got %d, want 3, the first of which is returned", len(listeners))
	}
	for _, o := range listeners {
		if o.LocalAddr().String() != l.LocalAddr().String() {
			t.Errorf("got address %v, want that of the first, %v", o.LocalAddr(), l.LocalAddr())
		}
	}
	// The kernel spreads by a hash: after enough connections no loop is left out.
	for n := 0; ; n++ {
		mu.Lock()
		all := len(used) == 3
		mu.Unlock()
		if all {
			break
		}
		if n == 1000 {
			t.Fatalf("1000 connections came to %d of 3 loops", len(used))
		}
		nc := dialNet(t, l)
		roundTrip(t, nc)
		nc.Close()
	}
	l.Close()
	for _, o := range listeners {
		await(t, o.Closed().Done(), "the close of each listener after that of the first")
	}
	if _, err := net.Dial("tcp", l.LocalAddr().String()); err == nil {
		t.Error("connected after the close")
	}
}

func TestPerLoopFails(t *testing.T) {
	g := newGroup(t, eventloop.GroupConfig{Loops: 3})
	boom := errors.New("boom")
	var n atomic.Int32
	srv := &Server{Group: g, PerLoop: true, ListenerInit: func(l pipeline.Channel) error {
		if n.Add(1) == 3 {
			return boom
		}
		return nil
	}}
	if _, err := srv.Listen(context.Background(), "tcp", "127.0.0.1:0"); !errors.Is(err, boom) {
		t.Errorf("got %v, want %v", err, boom)
	}
	// The others are gone as well, or Shutdown would not return.
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := srv.Listen(context.Background(), "tcp", "127.0.0.1:0"); err != ErrServerClosed {
		t.Errorf("after Shutdown: got %v, want ErrServerClosed", err)
	}
}

// A group that chooses by hash has the connections of one client on one loop.
func TestLoopByAddress(t *testing.T) {
	g := newGroup(t, eventloop.GroupConfig{Loops: 4, Choose: eventloop.ByHash})
	used := make(chan *eventloop.Loop, 1)
	l := serve(t, &Server{Group: g, Init: func(ch pipeline.Channel) error { used <- ch.Loop(); return nil }}, "tcp", "127.0.0.1:0")
	all := make(map[*eventloop.Loop]bool)
	for client := range 32 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(client+1))}}
		var first *eventloop.Loop
		for range 3 {
			nc, err := d.Dial("tcp", l.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			loop := await(t, used, "a channel")
			nc.Close()
			if first == nil {
				first = loop
			}
			if loop != first {
				t.Errorf("client %d: its connections are on several loops", client)
			}
		}
		all[first] = true
	}
	if len(all) != 4 {
		t.Errorf("32 clients came to %d of 4 loops", len(all))
	}
}

// One server may listen in several places; a Shutdown is that of all, and none of
// their ListenAndServe takes it for an error.
func TestSeveralAddressesServed(t *testing.T) {
	addrs := make(chan net.Addr, 3)
	srv := &Server{Init: with(echo()), ListenerInit: with(pipeline.OnActive(func(c *pipeline.Context) error {
		addrs <- c.Channel().LocalAddr()
		return nil
	}))}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 3)
	for _, network := range []string{"tcp", "tcp", "unix"} {
		addr := anyAddr(t, network)
		go func() { ended <- srv.ListenAndServe(ctx, network, addr) }()
	}
	var conns []net.Conn
	for range 3 {
		a := await(t, addrs, "a listener")
		nc, err := net.Dial(a.Network(), a.String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(patience))
		roundTrip(t, nc)
		conns = append(conns, nc)
	}
	cancel()
	for range 3 {
		if err := await(t, ended, "the end of a ListenAndServe"); err != nil {
			t.Errorf("got %v, want nil", err)
		}
	}
	for _, nc := range conns {
		if _, err := nc.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read: got %v, want EOF", err)
		}
	}
}

// A Shutdown by somebody else is ErrServerClosed to ListenAndServe.
func TestListenAndServeIsShutDown(t *testing.T) {
	listening := make(chan struct{})
	srv := &Server{ListenerInit: with(pipeline.OnActive(func(*pipeline.Context) error { close(listening); return nil }))}
	ended := make(chan error, 1)
	go func() { ended <- srv.ListenAndServe(context.Background(), "tcp", "127.0.0.1:0") }()
	await(t, listening, "the listener")
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := await(t, ended, "the end"); err != ErrServerClosed {
		t.Errorf("got %v, want ErrServerClosed", err)
	}
}

// counting keeps the number of channels that there are, and the largest it has been.
type counting struct{ now, most atomic.Int64 }

func (n *counting) HandleActive(*pipeline.Context) error {
	now := n.now.Add(1)
	for most := n.most.Load(); now > most && !n.most.CompareAndSwap(most, now); most = n.most.Load() {
	}
	return nil
}

func (n *counting) HandleInactive(*pipeline.Context) error { n.now.Add(-1); return nil }
func (n *counting) Shareable()                             {}

// However many come at once, to several listeners on several loops, there are never
// more than MaxConns, and everybody gets his turn.
func TestMaxConns(t *testing.T) {
	const limit, clients, rounds = 5, 40, 25
	for _, tt := range []struct {
		name string
		srv  *Server
	}{
		{"one acceptor an address", &Server{}},
		{"per loop", &Server{PerLoop: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var count counting
			srv := tt.srv
			srv.Group = newGroup(t, eventloop.GroupConfig{Loops: 4})
			srv.MaxConns = limit
			srv.Init = with(&count, echo())
			var addrs []net.Addr
			for _, network := range []string{"tcp", "tcp", "unix"} {
				addrs = append(addrs, serve(t, srv, network, anyAddr(t, network)).LocalAddr())
			}
			var wg sync.WaitGroup
			for id := range clients {
				rnd := rand.New(rand.NewPCG(uint64(id), 1))
				wg.Go(func() {
					for range rounds {
						a := addrs[rnd.IntN(len(addrs))]
						nc, err := net.DialTimeout(a.Network(), a.String(), patience)
						if err != nil {
							t.Error(err)
							return
						}
						nc.SetDeadline(time.Now().Add(patience))
						roundTrip(t, nc)
						nc.Close()
					}
				})
			}
			wg.Wait()
			if most := count.most.Load(); most > limit || most < 2 {
				t.Errorf("channels at a time: got %d, want at most %d and more than 1", most, limit)
			}
		})
	}
}
