//go:build linux

package transport

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
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
			reach(t, ch, "half-closed", func(s *stream) bool { return s.outputDone })
			return ch
		}},
	{name: "half-closed by itself, reading paused", cfg: Config{ManualRead: true},
		enter: func(t *testing.T, ch pipeline.Channel, peer net.Conn) pipeline.Channel {
			ch.CloseWrite()
			reach(t, ch, "half-closed", func(s *stream) bool { return s.outputDone })
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

// A channel that waits makes its loop turn for nothing else than what others do: of
// the messages of a neighbour each is one event, and were a descriptor reported again
// and again there would be one with each of them.
func TestNoSpin(t *testing.T) {
	const messages = 300
	eachNetwork(t, func(t *testing.T, network, _ string) {
		for _, tt := range waitingStates {
			if tt.only != "" && tt.only != network {
				continue
			}
			t.Run(tt.name, func(t *testing.T) {
				g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = g.Shutdown(context.Background()) })
				accepted := make(chan pipeline.Channel, 1)
				tell := pipeline.OnActive(func(c *pipeline.Context) error { accepted <- c.Channel(); return nil })
				l := serve(t, &Server{Group: g, Config: tt.cfg, Init: with(tell)}, network, anyAddr(t, network))
				got := make(chan int, messages)
				other := serve(t, &Server{Group: g, Init: with(pipeline.On(func(_ *pipeline.Context, b *buffer.Buf) error {
					got <- b.Len()
					b.Release()
					return nil
				}))}, network, anyAddr(t, network))
				neighbour := dialNet(t, other)
				say := func() {
					if _, err := neighbour.Write([]byte("x")); err != nil {
						t.Fatal(err)
					}
					await(t, got, "a message")
				}

				peer := dialNet(t, l)
				ch := await(t, accepted, "a channel")
				ch = tt.enter(t, ch, peer)
				t.Cleanup(ch.Reset) // not to be waited for by the drain
				say()
				var before, after eventloop.Metrics
				onChannel(t, ch, func() { before = ch.Loop().Metrics() })
				for range messages {
					say()
				}
				onChannel(t, ch, func() { after = ch.Loop().Metrics() })
				if !ch.Open() {
					t.Fatalf("the channel has closed: %v", ch.CloseReason())
				}
				// A little for what was still under way, and for timers.
				const most = messages + messages/4
				if n := after.Events - before.Events; n < messages || n > most {
					t.Errorf("events: got %d for %d messages", n, messages)
				}
				if n := after.Tasks - before.Tasks; n > messages/4 {
					t.Errorf("tasks: got %d", n)
				}
				if n := after.StaleEvents - before.StaleEvents; n > messages/4 {
					t.Errorf("stale events: got %d", n)
				}
			})
		}
	})
}
