package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// What SEMANTICS.md says of handlers on executors, over all kinds of channels. The files
// offloaded_*_test.go have the rest, on embedded channels, whose workers take turns with
// the loop in a fixed order. Here they do not, so order is that of each handler.

// of1 returns the calls of one handler.
func of1(calls []string, handler string) (own []string) {
	for _, c := range calls {
		if strings.HasPrefix(c, handler+" ") {
			own = append(own, c)
		}
	}
	return own
}

// lastEvent is a user event that is told of as one, so that a test knows when all before
// it has passed.
type lastEvent struct{}

// sayLast has the tracer note the end of what it is told.
func (h *tracer) sayLast() *tracer {
	return h.on("event", func(k call) error {
		if k.msg == (lastEvent{}) {
			h.log.add(h.name + " last")
		} else {
			k.c.FireEvent(k.msg)
		}
		return nil
	})
}

// Events that the handler does not take do not overtake those that it takes.
func TestSemantics6_9_OrderAcrossEvents(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		log := new(trace)
		b := pipeline.OnEvent(func(c *pipeline.Context, s string) error {
			log.add("b event")
			c.FireEvent(s)
			return nil
		})
		r := open(new(bystander), &tracer{name: "a", log: log}, pipeline.Offloaded{Handler: b}, (&tracer{name: "c", log: log}).sayLast())
		p := r.ch.Pipeline()
		first := p.Get("bystander#0")
		r.say("x")
		log.until(t, "c complete")
		log.take()
		r.do(func() {
			p.FireRead(1)
			p.FireEvent("x")
			p.FireReadComplete()
			p.FireError(errSome)
			first.FireWritability()
			p.FireRead(2)
			p.FireEvent("y")
			first.FireWritability()
			p.FireEvent(lastEvent{})
		})
		log.until(t, "c last")
		calls := without(log.take(), "a request", "c request")
		checkCalls(t, "calls of a", of1(calls, "a"),
			"a read", "a event", "a complete", "a error", "a writability", "a read", "a event", "a writability", "a event")
		checkCalls(t, "calls of b", of1(calls, "b"), "b event", "b event")
		checkCalls(t, "calls of c", of1(calls, "c"),
			"c read", "c event", "c complete", "c error", "c writability", "c read", "c event", "c writability", "c event", "c last")
		r.do(func() {
			p.FireRead(3)
			r.ch.Reset()
		})
		log.until(t, "a removed")
		calls = log.of("read", "inactive", "unregistered", "removed")
		checkCalls(t, "end of a", of1(calls, "a"), "a read", "a inactive", "a unregistered", "a removed")
		checkCalls(t, "end of c", of1(calls, "c"), "c read", "c inactive", "c unregistered", "c removed")
		checkCalls(t, "removals", log.of("removed"), "c removed", "a removed")
	})
}

// The same outbound. Requests for reading and flushes are no messages: they go past,
// unless the channel is flushed by hand.
func TestSemantics6_9_OrderAcrossOperations(t *testing.T) {
	for _, k := range kinds {
		for _, manual := range []bool{false, true} {
			k.manualFlush = manual
			t.Run(fmt.Sprintf("%s/ManualFlush=%v", k.name, manual), func(t *testing.T) {
				log := new(trace)
				w := new(writeForwarder)
				r := k.with(t, &tracer{name: "a", log: log}, pipeline.Offloaded{Handler: w}, &tracer{name: "c", log: log})
				log.take()
				r.do(func() {
					r.ch.WriteThen("one", func(error) { log.add("told one") })
					r.ch.Flush()
					r.ch.Read()
					r.ch.Write("two")
					r.ch.CloseWrite()
					r.ch.CloseThen(func(error) { log.add("told closed") })
				})
				if got := r.hear(len("onetwo")); got != "onetwo" {
					t.Errorf("heard %q, want both in their order", got)
				}
				r.hangUp()
				log.until(t, "a removed")
				calls := log.of("write", "flush", "closewrite", "close", "request")
				a := of1(calls, "a")
				if len(a) < 2 {
					t.Fatalf("calls: got %q", a)
				}
				// The peer's end, if it is read before the close has come back, is followed by
				// another request.
				if manual {
					checkCalls(t, "calls", append(a[:1:1], without(a[1:], "a request")...),
						"a request", "a write", "a flush", "a write", "a closewrite", "a close")
				} else {
					// What comes back is flushed at the end of each turn that brings some.
					checkCalls(t, "calls that go past", a[:2], "a flush", "a request")
					checkCalls(t, "the others", without(a[2:], "a flush", "a request"), "a write", "a write", "a closewrite", "a close")
				}
				checkCalls(t, "completions", of1(log.take(), "told"), "told one", "told closed")
				if w.n != 2 {
					t.Errorf("the handler got %d writes, want 2", w.n)
				}
			})
		}
	}
}

// Handlers of a channel with one executor are one at a time, and so is everything that
// calls them; none of it is on the loop.
func TestSemantics6_9_OneExecutorOneAtATime(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		const n = 200
		log := new(trace)
		running, told := atomic.Int32{}, 0 // told has no lock
		enter := func(c *pipeline.Context) func() {
			if k := running.Add(1); k != 1 || c.Loop().InLoop() {
				t.Errorf("%d calls at once, on the loop %v", k, c.Loop().InLoop())
			}
			runtime.Gosched()
			return func() { running.Add(-1) }
		}
		first := pipeline.On(func(c *pipeline.Context, i int) error {
			defer enter(c)()
			c.FireRead(i)
			return nil
		})
		second := pipeline.On(func(c *pipeline.Context, i int) error {
			defer enter(c)()
			return c.Execute(func() {
				defer enter(c)()
				if told++; told == n {
					log.add("all told")
				}
			})
		})
		r := open(pipeline.Offloaded{Handler: first}, new(forwarder), pipeline.Offloaded{Handler: second})
		r.do(func() {
			for i := range n {
				r.ch.Pipeline().FireRead(i)
			}
		})
		log.until(t, "all told")
	})
}

// A handler on an executor sees no event before its HandleAdded either, though Add
// returns earlier: what comes meanwhile waits, and goes past it if HandleAdded fails.
func TestSemantics6_4_AddedFirstOnExecutor(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		for _, fails := range []bool{false, true} {
			t.Run(fmt.Sprintf("HandleAdded fails %v", fails), func(t *testing.T) {
				log := new(trace)
				a := (&tracer{name: "a", log: log}).on("error", func(call) error { return nil })
				c := (&tracer{name: "c", log: log}).sayLast()
				r := open(a, c)
				log.take()
				b := &tracer{name: "b", log: log}
				if fails {
					b.on("added", func(call) error { return errSome })
				}
				p := r.ch.Pipeline()
				r.do(func() {
					if _, err := p.AddAfter("tracer#0", "b", pipeline.Offloaded{Handler: b}); err != nil {
						t.Errorf("AddAfter: %v", err)
					}
					p.FireRead("x")
					p.FireEvent("y")
					p.FireEvent(lastEvent{})
				})
				log.until(t, "c last")
				want := []string{"b added", "b read", "b event", "b event"}
				if fails {
					want = []string{"b added", "b removed", "a error"}
					log.until(t, "a error")
				}
				calls := log.take()
				checkCalls(t, "calls of b", without(calls, "a read", "a event", "c read", "c event", "c last"), want...)
				checkCalls(t, "calls of c", of1(calls, "c"), "c read", "c event", "c event", "c last")
			})
		}
	})
}

// Completions that a handler on an executor asks for come there, with its methods, and
// waiting for one there is refused as it is on the loop.
func TestSemantics15_ListenersOnExecutors(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		log := new(trace)
		calls := 0 // has no lock
		h := pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
			b.Release()
			calls++
			note := func(what string) func(error) {
				return func(err error) {
					calls++
					log.add(fmt.Sprint(what, " ", c.Loop().InLoop(), " ", err))
				}
			}
			ch := c.Channel()
			if err := ch.Closed().Wait(context.Background()); !errors.Is(err, eventloop.ErrWouldDeadlock) {
				t.Errorf("Wait on an executor: got %v, want %v", err, eventloop.ErrWouldDeadlock)
			}
			if err := ch.Send(context.Background(), "x"); !errors.Is(err, eventloop.ErrWouldDeadlock) {
				t.Errorf("Send on an executor: got %v, want %v", err, eventloop.ErrWouldDeadlock)
			}
			c.WriteThen("answer", note("written"))
			c.CloseThen(note("closed"))
			return nil
		})
		r := open(pipeline.Offloaded{Handler: h}, &tracer{name: "c", log: log})
		r.say("x")
		r.do(func() {})
		if got := r.hear(len("answer")); got != "answer" {
			t.Errorf("heard %q, want the answer", got)
		}
		r.hangUp()
		log.until(t, "c removed")
		log.until(t, "closed false <nil>")
		got := slices.DeleteFunc(log.take(), func(s string) bool { return !strings.Contains(s, " false ") && !strings.Contains(s, " true ") })
		checkCalls(t, "completions", got, "written false <nil>", "closed false <nil>")
		if calls != 3 {
			t.Errorf("got %d calls, want 3", calls)
		}
	})
}
