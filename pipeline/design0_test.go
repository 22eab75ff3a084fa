package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strconv"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// The tests of this file are named after section 0 of DESIGN.md, what the API looks like.

// What was written leaves at the end of the turn, in one flush; what the flush's own
// callbacks write leaves in the next turn.
func TestDesign0_TurnEndFlush(t *testing.T) {
	ch, log, _ := tracers(t, embedded.Config{}, "a")
	ch.Manual().Enter(func() {
		ch.WriteThen("1", func(error) { ch.Write("from the callback") })
		ch.Write("2")
	})
	if got := len(log.of("flush")); got != 0 {
		t.Errorf("before the end of the turn: got %d flushes, want 0", got)
	}
	ch.Manual().Turn()
	checkCalls(t, "first turn", log.take(), "a write", "a write", "a flush", "a write")
	ch.Manual().Turn()
	checkCalls(t, "second turn", log.take(), "a flush")
	for _, want := range []any{"1", "2", "from the callback", nil} {
		if got := ch.ReadOutbound(); got != want {
			t.Errorf("outbound: got %v, want %v", got, want)
		}
	}
	ch.Do(func() { ch.Write("3"); ch.Flush() })
	checkCalls(t, "Flush is for sooner", log.take(), "a write", "a flush", "a flush")

	manual, log, _ := tracers(t, embedded.Config{ManualFlush: true}, "a")
	manual.Do(func() { manual.Write("x") })
	manual.Run()
	checkCalls(t, "ManualFlush", log.of("flush"))
	if got := manual.ReadOutbound(); got != nil {
		t.Errorf("ManualFlush: got %v, want nothing to leave", got)
	}
	elsewhere(manual.Flush)
	if got := manual.ReadOutbound(); got != "x" {
		t.Errorf("after Flush: got %v, want x", got)
	}
}

// all the interceptors; each holds its notification until it is let go.
type holder struct {
	held []string
	c    *pipeline.Context
}

func (h *holder) hold(c *pipeline.Context, s string) error {
	h.c, h.held = c, append(h.held, s)
	return nil
}

func (h *holder) InterceptRegistered(c *pipeline.Context) error { return h.hold(c, "registered") }

func (h *holder) InterceptActive(c *pipeline.Context) error { return h.hold(c, "active") }

func (h *holder) InterceptReadComplete(c *pipeline.Context) error { return h.hold(c, "complete") }

func (h *holder) InterceptWritability(c *pipeline.Context) error { return h.hold(c, "writability") }

func (h *holder) InterceptInactive(c *pipeline.Context) error { return h.hold(c, "inactive") }

func (h *holder) InterceptUnregistered(c *pipeline.Context) error { return h.hold(c, "unregistered") }

func TestDesign0_Interceptors(t *testing.T) {
	log := new(trace)
	h := new(holder)
	ch := newChannel(t, embedded.Config{}, h, &tracer{name: "a", log: log})
	ch.Do(ch.Pipeline().FireReadComplete)
	ch.Do(func() { ch.SetPending(1 << 30) })
	ch.Manual().Enter(ch.Close)
	ch.Run()
	want := []string{"registered", "active", "complete", "writability", "inactive", "unregistered"}
	if !slices.Equal(h.held, want) {
		t.Errorf("held: got %q, want %q", h.held, want)
	}
	checkCalls(t, "held", log.of(want...))
	if got := ch.ReadRequests(); got != 2 {
		t.Errorf("got %d requests for reading, want 2: they are not held", got)
	}

	ch2 := newChannel(t, embedded.Config{}, h, &tracer{name: "b", log: log})
	log.take()
	fire := []func(){h.c.FireRegistered, h.c.FireActive, h.c.FireReadComplete, h.c.FireWritability, h.c.FireInactive, h.c.FireUnregistered}
	for i, f := range fire {
		ch2.Do(f)
		checkCalls(t, "let go", log.take(), "b "+want[i])
		elsewhere(f)
		checkCalls(t, "let go elsewhere, not seen by the loop yet", log.take())
		ch2.Run()
		checkCalls(t, "let go elsewhere", log.take(), "b "+want[i])
	}
}

type both struct{ holder }

func (*both) HandleActive(*pipeline.Context) error { return nil }

// On handles one type and never releases; others go on.
func TestDesign0_On(t *testing.T) {
	some := errors.New("some error")
	var got []string
	ch := newChannel(t, embedded.Config{}, pipeline.On(func(_ *pipeline.Context, b *buffer.Buf) error {
		got = append(got, b.ReadString(b.Len()))
		return some
	}))
	b := buffer.FromString("hello")
	ch.WriteInbound(b, 42)
	if !slices.Equal(got, []string{"hello"}) || b.Refs() != 1 {
		t.Errorf("got %q and %d references, want hello and 1", got, b.Refs())
	}
	b.Release()
	if n := embedded.Inbound[int](t, ch); n != 42 {
		t.Errorf("passed on: got %d, want 42", n)
	}
	if err := ch.CheckError(); err != some {
		t.Errorf("error: got %v, want %v", err, some)
	}
}

func TestDesign0_TypedHandlers(t *testing.T) {
	log := new(trace)
	note := func(s string) func(*pipeline.Context) error {
		return func(*pipeline.Context) error { log.add(s); return nil }
	}
	ch := newChannel(t, embedded.Config{},
		pipeline.OnActive(note("active")), pipeline.OnInactive(note("inactive")),
		pipeline.OnWrite(func(c *pipeline.Context, n int, p *eventloop.Promise) error {
			c.ForwardWrite(fmt.Sprint(n), p)
			return nil
		}),
		pipeline.OnEvent(func(_ *pipeline.Context, ev pipeline.InputShutdown) error {
			log.add("shutdown")
			return errors.New("some error")
		}),
		pipeline.OnError(func(_ *pipeline.Context, err error) { log.add(err.Error()) }))
	checkCalls(t, "names", ch.Pipeline().Names(), "OnActive#0", "OnInactive#0", "OnWrite[int]#0", "OnEvent[pipeline.InputShutdown]#0", "OnError#0")
	ch.WriteOutbound(7, "as it is")
	if a, b := ch.ReadOutbound(), ch.ReadOutbound(); a != "7" || b != "as it is" {
		t.Errorf("outbound: got %v, %v; want 7, as it is", a, b)
	}
	ch.Do(func() {
		ch.Pipeline().FireEvent(pipeline.InputShutdown{})
		ch.Pipeline().FireEvent("other")
	})
	if ev := embedded.Event[string](t, ch); ev != "other" {
		t.Errorf("event passed on: got %q, want other", ev)
	}
	ch.Do(ch.Close)
	checkCalls(t, "calls", log.take(), "active", "shutdown", "some error", "inactive")
}

// Convert handles one type each way; what it cannot convert is an error, and others
// go on.
func TestDesign0_Convert(t *testing.T) {
	some := errors.New("some error")
	var writability int
	ch := newChannel(t, embedded.Config{}, pipeline.Convert(
		func(_ *pipeline.Context, s string) (int, error) {
			n, err := strconv.Atoi(s)
			return n, err
		},
		func(_ *pipeline.Context, n int) (string, error) {
			if n < 0 {
				return "", some
			}
			return strconv.Itoa(n), nil
		}), pipeline.OnWritability(func(*pipeline.Context) error { writability++; return nil }))
	checkCalls(t, "names", ch.Pipeline().Names(), "Convert[string,int]#0", "OnWritability#0")
	ch.WriteInbound("12", 3.5, "x", "13")
	if a, b, c := ch.ReadInbound(), ch.ReadInbound(), ch.ReadInbound(); a != 12 || b != 3.5 || c != 13 {
		t.Errorf("inbound: got %v, %v, %v; want 12, 3.5, 13", a, b, c)
	}
	if err := ch.CheckError(); !errors.Is(err, strconv.ErrSyntax) {
		t.Errorf("inbound: got %v, want %v", err, strconv.ErrSyntax)
	}
	var got error
	ch.Do(func() { ch.Write(14); ch.Write("as it is"); ch.WriteThen(-1, func(err error) { got = err }) })
	if a, b, c := ch.ReadOutbound(), ch.ReadOutbound(), ch.ReadOutbound(); a != "14" || b != "as it is" || c != nil {
		t.Errorf("outbound: got %v, %v, %v; want 14, as it is, nothing", a, b, c)
	}
	if got != some {
		t.Errorf("outbound: got %v, want %v", got, some)
	}
	ch.Do(func() { ch.SetPending(1 << 30); ch.SetPending(0) })
	if writability != 2 {
		t.Errorf("writability: got %d calls, want 2", writability)
	}
}

// Channel.Context is cancelled when the channel closes, also if it is asked for later.
func TestDesign0_Context(t *testing.T) {
	reason := errors.New("some reason")
	for _, early := range []bool{true, false} {
		ch := newChannel(t, embedded.Config{})
		var ctx context.Context
		if early {
			ctx = ch.Context()
			if ctx.Err() != nil {
				t.Errorf("of an open channel: %v", ctx.Err())
			}
		}
		ch.Do(func() { ch.Abort(pipeline.CloseNow, reason) })
		if !early {
			ctx = ch.Context()
		}
		if cause := context.Cause(ctx); !errors.Is(cause, reason) || !errors.Is(cause, net.ErrClosed) || ctx.Err() == nil {
			t.Errorf("early %v: got %v because of %v, want a cancelled one because of the close", early, ctx.Err(), cause)
		}
		if ctx != ch.Context() {
			t.Error("another Context at the second call")
		}
	}
}

// The second function of Offload is called exactly once, on the loop, or when it has
// ended wherever that is found.
func TestDesign0_Offload(t *testing.T) {
	l, end := startLoop(t)
	ended := false
	defer func() {
		if !ended {
			end()
		}
	}()
	m := newMemory(t, l, new(sink))
	c := m.Pipeline().Get("sink#0")
	type result struct {
		v      any
		err    error
		onLoop bool
	}
	results := make(chan result, 10)
	then := func(v any, err error) { results <- result{v, err, l.InLoop()} }
	some := errors.New("some error")
	tests := []struct {
		name string
		work func(context.Context) (any, error)
		v    any
		is   func(error) bool
	}{
		{"result", func(context.Context) (any, error) { return 1, nil }, 1, func(err error) bool { return err == nil }},
		{"result and error", func(context.Context) (any, error) { return 1, some }, 1, func(err error) bool { return err == some }},
		{"panic", func(context.Context) (any, error) { panic("boom") }, nil, func(err error) bool {
			var pe *pipeline.PanicError
			return errors.As(err, &pe) && pe.Value == "boom" && pe.Handler == "sink#0"
		}},
		{"goexit", func(context.Context) (any, error) { runtime.Goexit(); return 1, nil }, nil, func(err error) bool { return err == pipeline.ErrGoexit }},
	}
	for _, tt := range tests {
		for _, from := range []string{"loop", "elsewhere"} {
			if from == "loop" {
				onLoop(t, l, func() { c.Offload(tt.work, then) })
			} else {
				c.Offload(tt.work, then)
			}
			r := await(t, tt.name, results)
			if r.v != tt.v || !tt.is(r.err) || !r.onLoop {
				t.Errorf("%s from %s: got %v, %v, on the loop %v; want %v", tt.name, from, r.v, r.err, r.onLoop, tt.v)
			}
		}
	}

	// The work outlives its channel, whose end cancels its context.
	c.Offload(func(ctx context.Context) (any, error) { <-ctx.Done(); return "kept", context.Cause(ctx) }, then)
	m.Close()
	await(t, "the end of the channel", m.ended)
	if r := await(t, "a result after the close", results); r.v != "kept" || !errors.Is(r.err, pipeline.ErrClosed) || !r.onLoop {
		t.Errorf("after the close: got %v, %v, on the loop %v; want it on the loop", r.v, r.err, r.onLoop)
	}

	end()
	ended = true
	c.Offload(func(context.Context) (any, error) { return 1, nil }, then)
	if r := await(t, "a result after the loop", results); r.v != nil || !errors.Is(r.err, eventloop.ErrOffloadClosed) || r.onLoop {
		t.Errorf("after the loop: got %v, %v; want none and ErrOffloadClosed", r.v, r.err)
	}
	select {
	case r := <-results:
		t.Errorf("called once more: %v", r)
	default:
	}
}

// Handlers that close in any of their methods.
func TestDesign0_CloseFromHandlers(t *testing.T) {
	for _, m := range methods {
		if m.name == "added" {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			ch, log, hs := tracers(t, embedded.Config{Inactive: m.inactive}, "a", "b", "c")
			completions := 0
			hs[1].on(m.name, func(k call) error {
				k.c.CloseThen(func(err error) {
					if completions++; err != nil {
						t.Errorf("close: got %v, want nil", err)
					}
				})
				k.p.Complete(nil)
				return nil
			})
			ch.Do(func() {
				if m.name == "removed" {
					_ = ch.Pipeline().Remove("tracer#1")
					return
				}
				m.trigger(ch)
			})
			ch.Run()
			if ch.Open() || completions != 1 && m.name != "close" {
				t.Errorf("open %v, completed %d times; want false, once", ch.Open(), completions)
			}
			for _, n := range []string{"a", "c"} {
				for _, ev := range []string{"inactive", "unregistered", "removed"} {
					want := 1
					if m.name == "active" && ev == "inactive" {
						want = 1 // it was active when it closed
					}
					if got := log.count(n + " " + ev); got != want {
						t.Errorf("%s %s: got %d, want %d in %q", n, ev, got, want, log.calls)
					}
				}
			}
		})
	}
}
