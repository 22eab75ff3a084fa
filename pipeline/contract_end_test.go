package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// The tests of this file are named after SEMANTICS.md 14, the end of a group, here of one
// whose channels live. Loops by themselves are in eventloop/semantics_test.go. The loop of
// an embedded channel has no group: it ends by Finish, which closes the channel as its
// peer would, and then the loop.

// At the beginning of the end all channels are closed, and what is under way is not
// waited for; then the handlers are told as at any close, once and in order.
func TestSemantics14_ChannelsAreClosed(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		r, log, _ := traced(open, "a", "b")
		ch := r.ch
		reason, written := transport.ErrLoopEnded, false
		if r.group == nil { // what is held leaves, as if the peer had taken it
			reason, written = io.EOF, true
		}
		note := func(what string) func(error) {
			return func(err error) {
				log.add(fmt.Sprint(what, " ", err == nil, " ", ch.Loop().InLoop()))
				if err != nil && !errors.Is(err, reason) {
					t.Errorf("%s: got %v, want one that is %v", what, err, reason)
				}
			}
		}
		ch.Closed().Then(note("closed"))
		msg := r.full()
		r.do(func() {
			ch.WriteThen(msg, note("flushed"))
			ch.Flush()
			ch.WriteThen("queued", note("queued"))
		})
		log.take()
		if err := r.end(); err != nil {
			t.Errorf("the end: %v", err)
		}
		want := []string{"closed true true", "flushed false true", "queued false true"}
		if written {
			want = []string{"flushed true true", "queued true true", "closed true true"}
		}
		want = append(want, "a inactive", "b inactive", "a unregistered", "b unregistered", "b removed", "a removed")
		checkCalls(t, "calls", without(log.take(), "a flush", "b flush", "a writability", "b writability"), want...)
		if ch.Open() || ch.Active() || ch.Context().Err() == nil || !errors.Is(ch.CloseReason(), reason) {
			t.Errorf("open %v, active %v, context %v, reason %v; want the end of all, for %v",
				ch.Open(), ch.Active(), ch.Context().Err(), ch.CloseReason(), reason)
		}
		if err := r.end(); err != nil {
			t.Errorf("the end once more: %v", err)
		}
		checkCalls(t, "the end once more", log.take())
	})
}

// A listener is told in the same way. There are no embedded ones.
func TestSemantics14_ListenersAreClosed(t *testing.T) {
	overSockets(t, accepted, func(t *testing.T, k kind) {
		g := newGroup(t)
		log := new(trace)
		srv := &transport.Server{Group: g, ListenerInit: func(ch pipeline.Channel) error {
			return ch.Pipeline().Add(&tracer{name: "a", log: log})
		}}
		l, err := srv.Listen(context.Background(), k.network, k.addr(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := shutdown(g); err != nil {
			t.Errorf("the end: %v", err)
		}
		checkCalls(t, "calls", without(log.take(), "a added", "a registered", "a active", "a request"), "a inactive", "a unregistered", "a removed")
		if conn, err := net.Dial(k.network, l.LocalAddr().String()); err == nil {
			conn.Close()
			t.Error("a connection to a listener whose loop has ended")
		}
	})
}

// Tasks are taken while a loop ends, and so are functions for its workers: what handlers
// begin when they are told of the end is done, before the end is over.
func TestSemantics14_TasksWhileEnding(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		r, log, hs := traced(open, "a")
		for _, m := range []string{"inactive", "unregistered", "removed"} {
			hs[0].on(m, func(k call) error {
				note := func(what string) { log.add(fmt.Sprint(what, " in ", m, " ", k.c.Loop().InLoop())) }
				if err := k.c.Execute(func() {
					note("task")
					if err := k.c.Execute(func() { note("task of a task") }); err != nil {
						t.Errorf("a task's task in %s: %v", m, err)
					}
				}); err != nil {
					t.Errorf("a task in %s: %v", m, err)
				}
				k.c.Offload(func(ctx context.Context) (any, error) { return ctx.Err() != nil, nil }, func(v any, err error) {
					note(fmt.Sprint("offloaded ", v, " ", err))
				})
				k.c.WriteThen("too late", func(err error) { note(fmt.Sprint("write ", errors.Is(err, pipeline.ErrClosed))) })
				return nil
			})
		}
		if err := r.end(); err != nil {
			t.Errorf("the end: %v", err)
		}
		calls := log.take()
		for _, m := range []string{"inactive", "unregistered", "removed"} {
			for _, what := range []string{"task", "task of a task", "offloaded true <nil>", "write true"} {
				want := fmt.Sprint(what, " in ", m, " true")
				if n := len(calls) - len(without(calls, want)); n != 1 {
					t.Errorf("%s: got %d times, want once, in %q", want, n, calls)
				}
			}
		}
		// Behind the end nothing is taken, and what is owed comes at once.
		ran := func() { t.Error("a task has run after the end") }
		if err := r.ch.Loop().Execute(ran); !errors.Is(err, eventloop.ErrLoopClosed) {
			t.Errorf("a task after the end: got %v, want ErrLoopClosed", err)
		}
		told := 0
		r.ch.WriteThen("after the end", func(err error) {
			if told++; !errors.Is(err, pipeline.ErrClosed) {
				t.Errorf("a write after the end: got %v, want ErrClosed", err)
			}
		})
		if told != 1 {
			t.Errorf("a write after the end: told %d times, want once", told)
		}
	})
}

// Timers of handlers that have not fired by then never do.
func TestSemantics14_TimersAreDropped(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		var timers []*eventloop.Timer
		fired := func() { t.Error("a timer that was not due has fired") }
		h := pipeline.OnActive(func(c *pipeline.Context) error {
			timers = append(timers, c.Schedule(time.Hour, fired), c.Loop().ScheduleEvery(time.Hour, fired))
			return nil
		})
		r := open(h, pipeline.OnInactive(func(c *pipeline.Context) error {
			timers = append(timers, c.Schedule(time.Hour, fired))
			return nil
		}))
		if err := r.end(); err != nil {
			t.Errorf("the end: %v", err)
		}
		for i, tm := range timers {
			if tm.Stop() {
				t.Errorf("timer %d is armed after the end", i)
			}
		}
		if n := r.ch.Loop().Metrics().TimersArmed; n != 0 || len(timers) != 3 {
			t.Errorf("%d timers made, %d armed after the end; want 3, 0", len(timers), n)
		}
	})
}

// There is no quiet period: the end comes when nothing is left to do, and a handler that
// always makes another task does not put it off for ever. An embedded channel's Finish
// runs its loop until it is idle, and panics where that does not come about.
func TestSemantics14_TheEndIsBounded(t *testing.T) {
	overSockets(t, nil, func(t *testing.T, k kind) {
		tasks, ends := 0, 0 // loop-only
		over := false
		h := pipeline.OnActive(func(c *pipeline.Context) error {
			var again func()
			again = func() { tasks++; _ = c.Execute(again) }
			again()
			c.Loop().AtTurnEnd(endless{c.Loop(), &ends})
			return nil
		})
		r := k.with(t, h, pipeline.OnInactive(func(*pipeline.Context) error { over = true; return nil }))
		if err := r.end(); err != nil {
			t.Errorf("the end: %v", err)
		}
		if tasks == 0 || ends == 0 || !over {
			t.Errorf("%d tasks, %d ends of turns, the channel told of its end %v; want some, some, true", tasks, ends, over)
		}
	})
}

// endless asks to be called at the end of every turn.
type endless struct {
	l *eventloop.Loop
	n *int
}

func (e endless) Run() { *e.n++; e.l.AtTurnEnd(e) }

// Who shuts a group down waits as long as his context says, and the group ends all the
// same. An embedded channel's Finish has nothing to wait for.
func TestSemantics14_Timeout(t *testing.T) {
	overSockets(t, nil, func(t *testing.T, k kind) {
		log := new(trace)
		release := make(chan struct{})
		h := pipeline.OnActive(func(c *pipeline.Context) error {
			c.Offload(func(context.Context) (any, error) { <-release; return nil, nil },
				func(any, error) { log.add("offloaded") })
			return nil
		})
		r := k.with(t, h, &tracer{name: "a", log: log})
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := r.group.Shutdown(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("while a worker is at work: got %v, want context.Canceled", err)
		}
		log.until(t, "a removed") // without the worker
		if slices.Contains(log.take(), "offloaded") {
			t.Error("the worker was not waited for")
		}
		close(release)
		if err := r.end(); err != nil {
			t.Errorf("the end: %v", err)
		}
		checkCalls(t, "after the worker", log.take(), "offloaded")
	})
}

// A channel or a listener that is asked for while a group ends, or has ended, is refused.
// Embedded channels are not asked of a group.
func TestSemantics14_NoNewChannels(t *testing.T) {
	overSockets(t, nil, func(t *testing.T, k kind) {
		other, err := net.Listen(k.network, k.addr(t))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		log := new(trace)
		release := make(chan struct{})
		r := k.with(t, &tracer{name: "a", log: log})
		// What holds the end up, and not the channel.
		if err := r.group.Offload().Submit(func() { <-release }); err != nil {
			t.Fatal(err)
		}
		refused := func(when string) {
			d := &transport.Dialer{Group: r.group, Init: func(ch pipeline.Channel) error {
				return ch.Pipeline().Add(pipeline.OnActive(func(*pipeline.Context) error { t.Errorf("%s: a new channel is active", when); return nil }))
			}}
			if ch, err := d.Dial(context.Background(), k.network, other.Addr().String()); !errors.Is(err, eventloop.ErrLoopClosed) {
				t.Errorf("%s: Dial: got %v, %v, want ErrLoopClosed", when, ch, err)
			}
			srv := &transport.Server{Group: r.group}
			if l, err := srv.Listen(context.Background(), k.network, k.addr(t)); !errors.Is(err, eventloop.ErrLoopClosed) {
				t.Errorf("%s: Listen: got %v, %v, want ErrLoopClosed", when, l, err)
			}
		}
		ended := make(chan error, 1)
		go func() { ended <- r.end() }()
		log.until(t, "a removed")
		refused("while it ends")
		close(release)
		if err := await(t, "the end", ended); err != nil {
			t.Errorf("the end: %v", err)
		}
		refused("after the end")
	})
}

// Where DESIGN.md does better: a server drains before its channels are closed. It accepts
// no more, tells the handlers, and lets what was written leave; at the deadline it drops
// that. Who dials drains by himself, and there are no embedded servers.
func TestSemantics14_Drain(t *testing.T) {
	overSockets(t, accepted, func(t *testing.T, k kind) {
		for _, inTime := range []bool{true, false} {
			t.Run(fmt.Sprintf("in time %v", inTime), func(t *testing.T) {
				log := new(trace)
				a := &tracer{name: "a", log: log}
				a.on("event", func(k call) error {
					if k.msg == (transport.Draining{}) {
						log.add("a is told")
					}
					return nil
				})
				r := k.with(t, a)
				msg := r.full().(string)
				r.do(func() { r.ch.WriteThen(msg, func(err error) { log.add(fmt.Sprint("written ", err == nil)) }) })
				at := r.ch.Parent().LocalAddr().String()
				log.take()
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				drained := make(chan error, 1)
				go func() { drained <- r.server.Shutdown(ctx) }()
				log.until(t, "a is told")
				if conn, err := net.Dial(k.network, at); err == nil {
					conn.Close()
					t.Error("accepted while it drains")
				}
				if !r.ch.Open() || log.count("written true")+log.count("written false") != 0 {
					t.Errorf("open %v, calls %q; want the queue to be waited for", r.ch.Open(), log.of())
				}
				want := []string{"written true", "a inactive", "a unregistered", "a removed"}
				var failure error
				if inTime {
					if got := r.hear(len(msg)); got != msg {
						t.Errorf("heard %d bytes, want the %d that were written before", len(got), len(msg))
					}
					if got := r.hear(1); got != "" {
						t.Errorf("heard %q besides", got)
					}
					r.hangUp()
				} else {
					cancel()
					failure, want[0] = transport.ErrDrainTimeout, "written false"
				}
				if err := await(t, "the end of the drain", drained); !errors.Is(err, failure) {
					t.Errorf("Shutdown: got %v, want %v", err, failure)
				}
				if !errors.Is(r.ch.CloseReason(), failure) && failure != nil {
					t.Errorf("reason: got %v, want %v", r.ch.CloseReason(), failure)
				}
				calls := log.take()
				i := slices.Index(calls, "a is told")
				checkCalls(t, "calls", without(calls[i+1:], "a flush", "a writability", "a complete", "a request", "a close"), want...)
			})
		}
	})
}
