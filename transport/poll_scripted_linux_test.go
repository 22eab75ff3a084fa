package transport

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/fault"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// pollErrors are what epoll_ctl has for lack of memory and of watches.
var pollErrors = []syscall.Errno{syscall.ENOMEM, syscall.ENOSPC}

// pollFaults counts how often the poller is asked for something, and fails.
type pollFaults struct {
	asked int
	nth   int // time that fails, from 0; -1 for none
	lasts bool
	err   error
}

// failPolls has the nth request to a poller fail, until the test ends or end is called. A
// lack of memory passes, that of watches lasts.
func failPolls(t *testing.T, nth int, e syscall.Errno) (p *pollFaults, end func()) {
	p = &pollFaults{nth: nth, lasts: e == syscall.ENOSPC, err: os.NewSyscallError("epoll_ctl", e)}
	end = fault.SetArm(func(int) error {
		p.asked++
		if p.nth >= 0 && (p.asked-1 == p.nth || p.lasts && p.asked > p.nth) {
			return p.err
		}
		return nil
	})
	t.Cleanup(end)
	return p, end
}

// wantPollError looks whether err says that the channel could not be polled any more.
func wantPollError(t *testing.T, what string, err error, e syscall.Errno) {
	t.Helper()
	var op *OpError
	if !errors.As(err, &op) || op.Op != "poll" || !errors.Is(err, e) || !strings.Contains(err.Error(), "epoll_ctl") {
		t.Errorf("%s: got %v, want a poll *OpError of epoll_ctl and %v", what, err, e)
	}
}

// Whenever the poller refuses what a channel asks of it, the channel ends by that, told once,
// with all that waits; it does not go on deaf, and the loop does not spin.
func TestFaultsOfPoll(t *testing.T) {
	for _, c := range conversations {
		t.Run(c.name, func(t *testing.T) {
			count, end := failPolls(t, -1, 0)
			sound := talk(t, c, nil)
			end()
			for i := range count.asked {
				for _, e := range pollErrors {
					t.Run(fmt.Sprintf("%v at request %d", e, i), func(t *testing.T) {
						p, end := failPolls(t, i, e)
						defer end()
						x := talk(t, c, nil)
						if p.asked <= i {
							t.Fatal("the fault has not come")
						}
						wantFault(t, x, sound, "epoll_ctl", e)
						wantPollError(t, "close reason", x.s.CloseReason(), e)
					})
				}
			}
		})
	}
}

// So it is when the channel is paused and resumed, whether its descriptor has left the poller
// meanwhile or not.
func TestFaultsOfPollWhilePausing(t *testing.T) {
	total := 0
	for _, p := range pauses {
		for _, g := range gone {
			run := func(t *testing.T) *wireRig {
				x := newWireRig(t, p.cfg)
				p.pause(x)
				x.settle()
				g.do(x)
				x.settle()
				x.peerSends(letters(300))
				p.resume(x)
				x.settle()
				x.m.Enter(func() { x.s.SetAutoRead(true) })
				x.w.room = 1 << 20
				x.settle()
				x.w.acked, x.w.fin = len(x.w.out), true
				x.settle()
				x.m.Advance(time.Second)
				x.settle()
				return x
			}
			name := p.name + ", " + g.name
			count, end := failPolls(t, -1, 0)
			run(t).finish()
			end()
			for i := range count.asked {
				for _, e := range pollErrors {
					t.Run(fmt.Sprintf("%s, %v at request %d", name, e, i), func(t *testing.T) {
						f, end := failPolls(t, i, e)
						defer end()
						x := run(t)
						if f.asked <= i {
							t.Fatal("the fault has not come")
						}
						if x.s.at != streamClosed {
							t.Errorf("the channel is in state %d", x.s.at)
						}
						if n := x.count("error"); n > 1 {
							t.Errorf("errors: got %v, want one", x.errs)
						}
						wantPollError(t, "close reason", x.s.CloseReason(), e)
						x.finish()
						total++
					})
				}
			}
		}
	}
	if total < 100 {
		t.Errorf("got %d faults, want more", total)
	}
}

// A connect that cannot be waited for is one of the address; when it has come about, an
// error of the channel's, and the outcome of the dial.
func TestFaultsOfPollWhileConnecting(t *testing.T) {
	count, end := failPolls(t, -1, 0)
	x := newConnectRig(t, Config{})
	x.threeAddresses(func() {})
	x.end()
	end()
	if count.asked < 4 { // one for each address, and one to read
		t.Fatalf("got %d requests, want 4 at least", count.asked)
	}
	for i := range count.asked {
		for _, e := range pollErrors {
			t.Run(fmt.Sprintf("%v at request %d", e, i), func(t *testing.T) {
				p, end := failPolls(t, i, e)
				defer end()
				p.lasts = false // it is one address that has it
				x := newConnectRig(t, Config{})
				x.threeAddresses(func() {})
				if p.asked <= i {
					t.Fatal("the fault has not come")
				}
				reason := x.CloseReason()
				x.end()
				switch {
				case i < 2: // an address; there is another one
					if x.result[0] != nil {
						t.Errorf("got %v, want a connection", x.result[0])
					}
				case i == 2: // the last address: the first is to blame
					if !errors.Is(x.result[0], syscall.ECONNREFUSED) {
						t.Errorf("got %v, want the first refusal", x.result[0])
					}
				default: // it was connected, and active
					wantPollError(t, "close reason", reason, e)
					if n := strings.Count(strings.Join(x.rec.log, "\n"), "error"); n != 1 || x.result[0] != nil {
						t.Errorf("got %v and %q, want a connection that ends by an error", x.result[0], x.rec.log)
					}
				}
			})
		}
	}
	for _, e := range pollErrors {
		for _, at := range []error{nil, sys.ErrInProgress} { // what connect says
			_, end := failPolls(t, 0, e)
			x := newConnectRig(t, Config{})
			x.k.answers[taking] = []answer{{at, nil}}
			x.dial(nil, taking)
			reason := x.CloseReason()
			x.end()
			var op *OpError
			if !errors.As(x.result[0], &op) || op.Op != "connect" || !errors.Is(x.result[0], e) {
				t.Errorf("alone, connect says %v: got %v, want a connect *OpError of %v", at, x.result[0], e)
			}
			if at == nil {
				wantPollError(t, "connected at once", reason, e)
			}
			end()
		}
	}
}

// An adopted channel, a pipe for one, ends as any other.
func TestFaultsOfPollOfAdopted(t *testing.T) {
	for _, e := range pollErrors {
		for _, way := range []sys.Description{
			{Kind: sys.KindPipe, Reads: true}, {Kind: sys.KindPipe, Writes: true},
			{Kind: sys.KindDevice, Reads: true, Writes: true},
		} {
			failed := 0
			for i := range 2 {
				p, end := failPolls(t, i, e)
				cfg, err := Config{}.check()
				if err != nil {
					t.Fatal(err)
				}
				m := eventloop.NewManual()
				rec := &rig{t: t}
				a := &adopted{fd: scriptFD, kind: way.Kind, what: way}
				s, err := a.channel(&cfg, m.Loop())
				if err != nil {
					t.Fatal(err)
				}
				k := &script{t: t, take: []takeStep{{err: sys.ErrAgain}}}
				s.sock = scriptSocket{k}
				var told []error
				m.Enter(func() {
					s.start(func(ch pipeline.Channel) error { return ch.Pipeline().Add(&recorder{r: rec}) })
					if way.Writes {
						s.WriteThen(pooled("x"), func(err error) { told = append(told, err) })
					}
				})
				m.RunUntilIdle()
				if p.asked > i {
					failed++
					wantPollError(t, "close reason", s.CloseReason(), e)
					rec.wantLog("active", "error "+s.CloseReason().(interface{ Unwrap() []error }).Unwrap()[1].Error(), "inactive", "unregistered")
				}
				m.Close()
				if k.closes != 1 || way.Writes && len(told) != 1 {
					t.Errorf("%v: closed %d times, completions %v; want one each", way, k.closes, told)
				}
				end()
			}
			if failed == 0 {
				t.Errorf("%+v: no request has failed", way)
			}
		}
	}
}

// A listener that cannot be polled is none: Listen says so, and one that has served ends, by
// an error that its handlers see.
func TestFaultsOfPollOfListener(t *testing.T) {
	for _, e := range pollErrors {
		for i := range 4 {
			t.Run(fmt.Sprintf("%v at request %d", e, i), func(t *testing.T) {
				p, end := failPolls(t, i, e)
				defer end()
				rec := &rig{t: t}
				reads := 0
				srv := &Server{ListenerInit: func(ch pipeline.Channel) error {
					return ch.Pipeline().Add(pipeline.OnError(func(c *pipeline.Context, err error) {
						if reads++; reads < 10 {
							c.Read() // which must not begin it all again
						}
						c.FireError(err)
					}), &recorder{r: rec})
				}}
				srv.setUp()
				m := eventloop.NewManual()
				k := &acceptScript{}
				l := newListener(srv.s, m.Loop(), scriptFD, &net.UnixAddr{Name: "@script", Net: "unix"})
				l.sock = k
				if !srv.s.addListener(l) {
					t.Fatal("the server is closing")
				}
				var err error
				m.Enter(func() { err = l.start(srv.ListenerInit) })
				m.RunUntilIdle()
				if i == 0 && err == nil {
					t.Error("a listener that cannot be polled has started")
				}
				if err == nil {
					m.Enter(func() { l.SetAutoRead(false) })
					m.RunUntilIdle()
					m.Enter(func() { l.SetAutoRead(true) })
					k.steps = repeat(1, errno(syscall.EMFILE)) // it pauses, and goes on
					m.Ready(scriptFD, eventloop.EventRead)
					m.RunUntilIdle()
					m.Advance(time.Minute)
					err = l.CloseReason()
				}
				if p.asked <= i {
					t.Fatal("the fault has not come")
				}
				wantPollError(t, "close reason", err, e)
				if n := strings.Count(strings.Join(rec.log, "\n"), "error"); n != 1 || reads != 1 || rec.log[len(rec.log)-1] != "unregistered" {
					t.Errorf("events: got %q, want one error, and the end", rec.log)
				}
				if k.closes != 1 || l.Open() {
					t.Errorf("closed %d times, open %v; want once, false", k.closes, l.Open())
				}
				if n := m.Loop().Metrics(); n.TimersArmed != 0 || n.Registrations != 0 {
					t.Errorf("got %d timers armed and %d registrations, want none", n.TimersArmed, n.Registrations)
				}
				if len(srv.s.allListeners()) != 0 {
					t.Error("the server still has the listener")
				}
				m.Close()
			})
		}
	}
}

// A channel of datagrams ends as well, whatever it waits for.
func TestFaultsOfPollOfDatagrams(t *testing.T) {
	for _, dialed := range []bool{false, true} {
		run := func(t *testing.T, m *eventloop.Manual) (s *dgram, k *dgramScript, rec *rig, told *[]error) {
			cfg, err := Config{HighWater: 5000, LowWater: 1000}.check()
			if err != nil {
				t.Fatal(err)
			}
			k, rec, told = &dgramScript{t: t}, &rig{t: t}, new([]error)
			s = newDgram(&cfg, m.Loop(), scriptFD, nil)
			s.unix, s.connected, s.sock = true, dialed, k
			if !dialed {
				var srv Server
				srv.setUp()
				s.srv = srv.s
				srv.s.addDgram(s)
			}
			m.Enter(func() {
				s.start(func(ch pipeline.Channel) error {
					return ch.Pipeline().Add(pipeline.On(func(_ *pipeline.Context, d *Datagram) error { d.Release(); return nil }), &recorder{r: rec})
				})
			})
			m.RunUntilIdle()
			k.take = []takeStep{{err: sys.ErrAgain}}
			m.Enter(func() {
				for i := range 10 { // it becomes unwritable, and a bound one pauses
					var msg any = letters(900)
					if !dialed {
						msg = to("a", letters(900))
					}
					s.WriteThen(msg, func(err error) { *told = append(*told, err) })
					if i == 5 {
						s.Flush()
					}
				}
			})
			m.RunUntilIdle()
			m.Ready(scriptFD, eventloop.EventError) // which takes it out of the poller when nothing is waited for
			m.RunUntilIdle()
			m.Ready(scriptFD, eventloop.EventWrite)
			m.RunUntilIdle()
			m.Enter(func() { s.SetAutoRead(false) })
			m.RunUntilIdle()
			m.Ready(scriptFD, eventloop.EventError|eventloop.EventHangup)
			m.RunUntilIdle()
			m.Enter(func() { s.SetAutoRead(true) })
			m.RunUntilIdle()
			return s, k, rec, told
		}
		count, end := failPolls(t, -1, 0)
		m := eventloop.NewManual()
		run(t, m)
		m.Close()
		end()
		if count.asked < 5 {
			t.Fatalf("got %d requests, want 5 at least", count.asked)
		}
		for i := range count.asked {
			for _, e := range pollErrors {
				t.Run(fmt.Sprintf("dialed %v, %v at request %d", dialed, e, i), func(t *testing.T) {
					before := buffer.Live()
					p, end := failPolls(t, i, e)
					defer end()
					m := eventloop.NewManual()
					s, k, rec, told := run(t, m)
					if p.asked <= i {
						t.Fatal("the fault has not come")
					}
					wantPollError(t, "close reason", s.CloseReason(), e)
					if n := strings.Count(strings.Join(rec.log, "\n"), "error"); n != 1 || rec.log[len(rec.log)-1] != "unregistered" {
						t.Errorf("events: got %q, want one error, and the end", rec.log)
					}
					if len(*told) != 10 || k.closes != 1 {
						t.Errorf("got %d completions, closed %d times; want 10, once", len(*told), k.closes)
					}
					if n := m.Loop().Metrics(); n.TimersArmed != 0 || n.Registrations != 0 {
						t.Errorf("got %d timers armed and %d registrations, want none", n.TimersArmed, n.Registrations)
					}
					m.Close()
					if n := buffer.Live() - before; n > 0 {
						t.Errorf("got %d buffers left, want none", n)
					}
				})
			}
		}
	}
}

// lateComer is a handle that starts something when its loop is ending.
type lateComer struct{ start func() }

func (h lateComer) HandleIO(eventloop.Event) {}
func (h lateComer) HandleOp(*eventloop.Op)   {}
func (h lateComer) CloseIO()                 { h.start() }

// A loop that is ending registers nothing: what is to start there has ended, with its
// descriptor.
func TestStartOnEndingLoop(t *testing.T) {
	cfg, err := Config{}.check()
	if err != nil {
		t.Fatal(err)
	}
	late := func(start func(m *eventloop.Manual)) {
		m := eventloop.NewManual()
		m.Turn()
		m.Enter(func() {
			if _, err := m.Loop().Register(scriptFD-1, lateComer{func() { start(m) }}); err != nil {
				t.Fatal(err)
			}
		})
		m.Close()
	}
	var srv Server
	srv.setUp()

	accepted := &script{t: t}
	var s *stream
	late(func(m *eventloop.Manual) {
		s = newStream(&cfg, m.Loop(), nil, scriptFD)
		s.sock, s.srv = scriptSocket{accepted}, srv.s
		srv.s.add(s)
		s.start(srv.s.start)
	})
	if accepted.closes != 1 || !errors.Is(s.CloseReason(), eventloop.ErrLoopClosed) || srv.s.streams != 0 {
		t.Errorf("accepted: closed %d times for %v, %d left; want once for ErrLoopClosed, none", accepted.closes, s.CloseReason(), srv.s.streams)
	}

	listens := &acceptScript{}
	var l *listener
	late(func(m *eventloop.Manual) {
		l = newListener(srv.s, m.Loop(), scriptFD, &net.UnixAddr{Net: "unix"})
		l.sock = listens
		srv.s.addListener(l)
		if err := l.start(nil); !errors.Is(err, eventloop.ErrLoopClosed) {
			t.Errorf("listener: got %v, want ErrLoopClosed", err)
		}
	})
	if listens.closes != 1 || len(srv.s.allListeners()) != 0 {
		t.Errorf("listener: closed %d times, %d left; want once, none", listens.closes, len(srv.s.allListeners()))
	}

	datagrams := &dgramScript{t: t}
	var d *dgram
	late(func(m *eventloop.Manual) {
		d = newDgram(&cfg, m.Loop(), scriptFD, nil)
		d.sock, d.srv = datagrams, srv.s
		srv.s.addDgram(d)
		d.start(srv.s.start)
	})
	if datagrams.closes != 1 || !errors.Is(d.CloseReason(), eventloop.ErrLoopClosed) || len(srv.s.openDgrams()) != 0 {
		t.Errorf("datagrams: closed %d times for %v, want once for ErrLoopClosed", datagrams.closes, d.CloseReason())
	}

	x := newConnectRig(t, Config{})
	x.m.Enter(func() {
		if _, err := x.Loop().Register(scriptFD-1, lateComer{func() { x.dial(nil, taking) }}); err != nil {
			t.Fatal(err)
		}
	})
	x.m.Close()
	if len(x.result) != 1 || !errors.Is(x.result[0], eventloop.ErrLoopClosed) || len(x.k.open) != 0 {
		t.Errorf("dialed: got %v and open sockets %v, want ErrLoopClosed and none", x.result, x.k.open)
	}
}
