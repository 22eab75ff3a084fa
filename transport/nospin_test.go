//go:build linux

package transport

import (
	"context"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// waiting is a channel brought into a state in which it has nothing to do, however
// long it lasts.
type waiting struct {
	name string
	only string // the network, if it is not for both
	cfg  Config
	// enter gets an accepted channel and its peer, and returns when the state is
	// reached. It may return another channel that is in it.
	enter func(t *testing.T, ch pipeline.Channel, peer net.Conn) pipeline.Channel
}

// onChannel runs f on the loop of ch and waits for it.
func onChannel(t *testing.T, ch pipeline.Channel, f func()) {
	t.Helper()
	done := make(chan struct{})
	if err := ch.Loop().Execute(func() { defer close(done); f() }); err != nil {
		t.Fatal(err)
	}
	await(t, done, "a task")
}

// reach waits until the stream is in a state. Each look is a task: its loop must have
// had the events that lead there.
func reach(t *testing.T, ch pipeline.Channel, what string, is func(s *stream) bool) {
	t.Helper()
	reachState(t, ch, what, func() bool { return is(ch.(*stream)) })
}

// reachState is reach for a channel of any kind.
func reachState(t *testing.T, ch pipeline.Channel, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		ok := false
		onChannel(t, ch, func() { ok = is() })
		if ok {
			return
		}
	}
	t.Fatalf("the channel is not %s after %v", what, patience)
}

// fill writes until the socket is full.
func fill(t *testing.T, ch pipeline.Channel) {
	t.Helper()
	reach(t, ch, "full", func(s *stream) bool {
		s.Write(pooled(letters(100_000)))
		s.Flush()
		return s.blocked && !s.Writable()
	})
}

func reset(peer net.Conn) {
	if tcp, ok := peer.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = peer.Close()
}

var waitingStates = []waiting{
	{name: "idle", enter: func(t *testing.T, ch pipeline.Channel, peer net.Conn) pipeline.Channel { return ch }},
	{name: "half-closed by the peer", cfg: Config{HalfClose: true},
		enter: func(t *testing.T, ch pipeline.Channel, peer net.Conn) pipeline.Channel {
			_ = peer.(closeWriter).CloseWrite()
			reach(t, ch, "half-closed", func(s *stream) bool { return s.inputShut })
			return ch
		}},
	{name: "half-closed by itself",
		enter: func(t *testing.T, ch pipeline.Channel, peer net.Conn) pipeline.Channel {
			ch.CloseWrite()
			reach(t, ch, "half-closed", func(s *stream) bool { return s.out.done })
			return ch
		}},
	{name: "half-closed by itself, reading paused", cfg: Config{ManualRead: true},
		enter: func(t *testing.T, ch pipeline.Channel, peer net.Conn) pipeline.Channel {
			ch.CloseWrite()
			reach(t, ch, "half-closed", func(s *stream) bool { return s.out.done })
			_ = peer.(closeWriter).CloseWrite() // both directions are shut: a hangup
			return ch
		}},
	{name: "paused with data waiting", cfg: Config{ManualRead: true},
		enter: func(t *testing.T, ch pipeline.Channel, peer net.Conn) pipeline.Channel {
			_, _ = peer.Write([]byte("data"))
			return ch
		}},
	{name: "paused with data and the end waiting", cfg: Config{ManualRead: true},
		enter: func(t *testing.T, ch pipeline.Channel, peer net.Conn) pipeline.Channel {
			_, _ = peer.Write([]byte("data"))
			_ = peer.Close()
			return ch
		}},
	{name: "paused after a read, with data waiting", cfg: Config{ManualRead: true},
		enter: func(t *testing.T, ch pipeline.Channel, peer net.Conn) pipeline.Channel {
			ch.Read()
			_, _ = peer.Write([]byte("data"))
			reach(t, ch, "paused", func(s *stream) bool { return s.interest() == 0 })
			_, _ = peer.Write([]byte("data"))
			return ch
		}},
	{name: "paused after a reset", cfg: Config{ManualRead: true},
		enter: func(t *testing.T, ch pipeline.Channel, peer net.Conn) pipeline.Channel {
			reset(peer)
			reach(t, ch, "out of the poller", func(s *stream) bool { return s.hangup })
			return ch
		}},
	{name: "paused because it is not writable, with data waiting",
		enter: func(t *testing.T, ch pipeline.Channel, peer net.Conn) pipeline.Channel {
			fill(t, ch)
			_, _ = peer.Write([]byte("data"))
			return ch
		}},
	{name: "closing, and the peer takes nothing",
		enter: func(t *testing.T, ch pipeline.Channel, peer net.Conn) pipeline.Channel {
			fill(t, ch)
			ch.Close()
			_, _ = peer.Write([]byte("data"))
			reach(t, ch, "closing", func(s *stream) bool { return s.at == streamClosing })
			return ch
		}},
	{name: "closing with linger", cfg: Config{ManualRead: true},
		enter: func(t *testing.T, ch pipeline.Channel, peer net.Conn) pipeline.Channel {
			_, _ = peer.Write([]byte("unread"))
			ch.Close()
			reach(t, ch, "lingering", func(s *stream) bool { return s.at == streamLingering && s.rare.heard })
			return ch
		}},
	{name: "connecting to a black hole", only: "tcp",
		enter: func(t *testing.T, ch pipeline.Channel, _ net.Conn) pipeline.Channel {
			addr := full(t)
			dialed := make(chan pipeline.Channel, 1)
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan struct{})
			d := &Dialer{Group: ch.Loop().Group(), Init: func(ch pipeline.Channel) error { dialed <- ch; return nil }}
			go func() {
				defer close(ended)
				if ch, err := d.Dial(ctx, "tcp", addr); err == nil {
					ch.Close()
				}
			}()
			t.Cleanup(func() { cancel(); await(t, ended, "the end of Dial") })
			s := await(t, dialed, "a channel that connects")
			reach(t, s, "connecting", func(s *stream) bool { return s.at == streamConnecting })
			return s
		}},
}

func (s *stream) interest() eventloop.Event { return s.reg.Interest() }

// neighbour is another connection on a loop, to which its messages are all that happens.
type neighbour struct {
	conn net.Conn
	got  chan int
}

func newNeighbour(t *testing.T, g *eventloop.Group) *neighbour {
	t.Helper()
	n := &neighbour{got: make(chan int, 1)}
	l := serve(t, &Server{Group: g, Init: with(pipeline.On(func(_ *pipeline.Context, b *buffer.Buf) error {
		n.got <- b.Len()
		b.Release()
		return nil
	}))}, "tcp", "127.0.0.1:0")
	n.conn = dialNet(t, l)
	n.say(t)
	return n
}

// say sends a message and waits until it has been read.
func (n *neighbour) say(t *testing.T) {
	t.Helper()
	if _, err := n.conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	await(t, n.got, "a message")
}

// wantRest checks that ch, which waits, makes its loop turn for nothing else than what its
// neighbour does: each of the messages is one event in one turn. Were a descriptor reported
// again and again there would be an event with each of them, or a stale one; and were there
// always something left for the next turn, which then does not wait, there would be turns
// without number. 20 a second are allowed for timers, however long it takes.
func (n *neighbour) wantRest(t *testing.T, ch pipeline.Channel) {
	t.Helper()
	const messages = 300
	n.say(t)
	var before, after eventloop.Metrics
	onChannel(t, ch, func() { before = ch.Loop().Metrics() })
	start := time.Now()
	for range messages {
		n.say(t)
	}
	onChannel(t, ch, func() { after = ch.Loop().Metrics() })
	if !ch.Open() {
		t.Fatalf("the channel has closed: %v", ch.CloseReason())
	}
	// A little for what was still under way, and for timers.
	const some = messages / 4
	timers := uint64(20 * time.Since(start).Seconds())
	if n := after.Events - before.Events; n < messages || n > messages+some {
		t.Errorf("events: got %d for %d messages", n, messages)
	}
	if n := after.Turns - before.Turns; n > messages+some+timers {
		t.Errorf("turns: got %d for %d messages, of which %d waited, and %d timers", n, messages, after.Blocks-before.Blocks, timers)
	}
	if n := after.Tasks - before.Tasks; n > some {
		t.Errorf("tasks: got %d", n)
	}
	if n := after.StaleEvents - before.StaleEvents; n > some {
		t.Errorf("stale events: got %d", n)
	}
}

// A channel that waits costs its loop nothing.
func TestNoSpin(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network, _ string) {
		for _, tt := range waitingStates {
			if tt.only != "" && tt.only != network {
				continue
			}
			t.Run(tt.name, func(t *testing.T) {
				g := newGroup(t, eventloop.GroupConfig{Loops: 1})
				accepted := make(chan pipeline.Channel, 1)
				tell := pipeline.OnActive(func(c *pipeline.Context) error { accepted <- c.Channel(); return nil })
				l := serve(t, &Server{Group: g, Config: tt.cfg, Init: with(tell)}, network, anyAddr(t, network))
				n := newNeighbour(t, g)
				peer := dialNet(t, l)
				ch := await(t, accepted, "a channel")
				ch = tt.enter(t, ch, peer)
				t.Cleanup(ch.Reset) // not to be waited for by the drain
				n.wantRest(t, ch)
			})
		}
	})
}

// noDescriptors is a listening socket of a process without descriptors.
type noDescriptors struct{ acceptSocket }

func (noDescriptors) accept() (int, sys.Peer, error) {
	return -1, sys.Peer{}, errno(syscall.EMFILE)
}

// Nor does a listener that waits: for connections, for a place, for descriptors, for a
// Read.
func TestNoSpinOfListener(t *testing.T) {
	for _, network := range []string{"tcp", "unix", "local"} {
		for _, state := range []string{"idle", "at its limit", "in back-off", "not to read"} {
			if network == "local" && state == "in back-off" {
				continue // it needs no descriptors
			}
			t.Run(network+" "+state, func(t *testing.T) {
				g := newGroup(t, eventloop.GroupConfig{Loops: 1})
				accepted := make(chan pipeline.Channel, 1)
				srv := &Server{Group: g, Init: func(ch pipeline.Channel) error { accepted <- ch; return nil },
					ListenerInit: func(l pipeline.Channel) error { l.SetAutoRead(state != "not to read"); return nil }}
				if state == "at its limit" {
					srv.MaxConns = 1
				}
				addr := anyAddr(t, network)
				l := serve(t, srv, network, addr)
				n := newNeighbour(t, g)
				dial := func() {
					ch, err := (&Dialer{Group: g}).Dial(t.Context(), network, l.LocalAddr().String())
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(ch.Reset)
				}
				switch state {
				case "at its limit":
					dial()
					t.Cleanup(await(t, accepted, "a channel").Reset)
					dial()
					if network != "local" {
						reachListener(t, l, state, func(l *listener) bool { return l.atLimit })
					}
				case "in back-off":
					onChannel(t, l, func() { s := l.(*listener); s.sock = noDescriptors{s.sock} })
					dial()
					reachListener(t, l, state, func(l *listener) bool { return l.backoff >= 80*time.Millisecond })
				case "not to read":
					dial()
				}
				n.wantRest(t, l)
			})
		}
	}
}

// Nor does a channel of datagrams.
func TestNoSpinOfDatagrams(t *testing.T) {
	reachDgram := func(t *testing.T, ch pipeline.Channel, what string, is func(s *dgram) bool) {
		t.Helper()
		reachState(t, ch, what, func() bool { return is(ch.(*dgram)) })
	}
	for _, tt := range []struct {
		name    string
		network string // if it is not for both
		cfg     Config
		dialed  bool
		// enter gets a channel and the socket of its peer, to whom a dialed one is connected.
		enter func(t *testing.T, ch pipeline.Channel, peer net.PacketConn)
	}{
		{name: "idle", enter: func(*testing.T, pipeline.Channel, net.PacketConn) {}},
		{name: "paused with datagrams waiting", cfg: Config{ManualRead: true},
			enter: func(t *testing.T, ch pipeline.Channel, peer net.PacketConn) {
				for range 3 {
					if _, err := peer.WriteTo([]byte("x"), ch.LocalAddr()); err != nil {
						t.Fatal(err)
					}
				}
			}},
		{name: "paused after a refusal", network: "udp", cfg: Config{ManualRead: true}, dialed: true,
			enter: func(t *testing.T, ch pipeline.Channel, peer net.PacketConn) {
				peer.Close()
				refused := make(chan error, 1)
				onChannel(t, ch, func() {
					_ = ch.Pipeline().Add(pipeline.OnError(func(_ *pipeline.Context, err error) { refused <- err }))
				})
				ch.Write("x")
				await(t, refused, "the refusal")
			}},
		{name: "paused after a shutdown", cfg: Config{ManualRead: true},
			enter: func(t *testing.T, ch pipeline.Channel, peer net.PacketConn) { shutSocket(t, ch, syscall.SHUT_RDWR) }},
		{name: "its peer does not read", network: "unixgram", dialed: true,
			enter: func(t *testing.T, ch pipeline.Channel, peer net.PacketConn) {
				reachDgram(t, ch, "waiting", func(s *dgram) bool { s.Write("x"); s.Flush(); return s.waiting() })
			}},
		{name: "a receiver does not read", network: "unixgram",
			enter: func(t *testing.T, ch pipeline.Channel, peer net.PacketConn) {
				reachDgram(t, ch, "with something aside", func(s *dgram) bool {
					s.Write(to(peer.LocalAddr().String(), "x"))
					s.Flush()
					return s.out.aside.entries.n > 0
				})
			}},
		{name: "closing, and its peer does not read", network: "unixgram", dialed: true,
			enter: func(t *testing.T, ch pipeline.Channel, peer net.PacketConn) {
				reachDgram(t, ch, "waiting", func(s *dgram) bool { s.Write("x"); s.Flush(); return s.waiting() })
				ch.Close()
				reachDgram(t, ch, "closing", func(s *dgram) bool { return s.at == dgramClosing })
			}},
	} {
		for _, network := range []string{"udp", "unixgram"} {
			if tt.network != "" && tt.network != network {
				continue
			}
			t.Run(network+" "+tt.name, func(t *testing.T) {
				g := newGroup(t, eventloop.GroupConfig{Loops: 1})
				address := func() string {
					if network == "udp" {
						return "127.0.0.1:0"
					}
					return unixgramAddr(t).Name
				}
				peer, err := net.ListenPacket(network, address())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { peer.Close() })
				var ch pipeline.Channel
				if tt.dialed {
					ch, err = (&Dialer{Group: g, Config: tt.cfg}).Dial(t.Context(), network, peer.LocalAddr().String())
				} else {
					srv := &Server{Group: g, Config: tt.cfg}
					t.Cleanup(func() { shutDown(t, srv) })
					ch, err = srv.Listen(t.Context(), network, address())
				}
				if err != nil {
					t.Fatal(err)
				}
				n := newNeighbour(t, g)
				tt.enter(t, ch, peer)
				t.Cleanup(func() { ch.Reset(); await(t, ch.Closed().Done(), "the end of the channel") })
				n.wantRest(t, ch)
			})
		}
	}
}

// Nor does one inside the process.
func TestNoSpinOfLocal(t *testing.T) {
	reachLocal := func(t *testing.T, ch pipeline.Channel, what string, is func(s *localChannel) bool) {
		t.Helper()
		reachState(t, ch, what, func() bool { return is(ch.(*localChannel)) })
	}
	block := func(t *testing.T, ch pipeline.Channel) {
		t.Helper()
		reachLocal(t, ch, "blocked", func(s *localChannel) bool {
			s.Write(pooled(letters(10_000)))
			s.Flush()
			return s.blocked && !s.Writable()
		})
	}
	for _, tt := range []struct {
		name  string
		cfg   Config
		enter func(t *testing.T, ch, peer pipeline.Channel)
	}{
		{"idle", Config{}, func(t *testing.T, ch, peer pipeline.Channel) {}},
		{"paused with data waiting", Config{ManualRead: true}, func(t *testing.T, ch, peer pipeline.Channel) { peer.Write("data") }},
		{"half-closed by the peer", Config{HalfClose: true}, func(t *testing.T, ch, peer pipeline.Channel) {
			peer.CloseWrite()
			reachLocal(t, ch, "half-closed", func(s *localChannel) bool { return s.inputShut })
		}},
		{"half-closed by itself", Config{}, func(t *testing.T, ch, peer pipeline.Channel) {
			ch.CloseWrite()
			reachLocal(t, ch, "half-closed", func(s *localChannel) bool { return s.outputDone })
		}},
		{"not writable", Config{}, func(t *testing.T, ch, peer pipeline.Channel) { block(t, ch) }},
		{"closing, and the peer takes nothing", Config{}, func(t *testing.T, ch, peer pipeline.Channel) {
			block(t, ch)
			ch.Close()
			reachLocal(t, ch, "closing", func(s *localChannel) bool { return s.at == streamClosing })
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGroup(t, eventloop.GroupConfig{Loops: 1})
			accepted := make(chan pipeline.Channel, 1)
			tell := pipeline.OnActive(func(c *pipeline.Context) error { accepted <- c.Channel(); return nil })
			l := serve(t, &Server{Group: g, Config: tt.cfg, Init: with(tell)}, "local", "")
			peer, err := (&Dialer{Group: g, Config: Config{ManualRead: true, HalfClose: true}}).Dial(t.Context(), "local", l.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			ch := await(t, accepted, "a channel")
			n := newNeighbour(t, g)
			tt.enter(t, ch, peer)
			t.Cleanup(func() { peer.Reset(); ch.Reset() })
			n.wantRest(t, ch)
		})
	}
}
