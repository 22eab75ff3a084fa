package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// The tests of this file are named after the sections of DESIGN.md.

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

func (h *holder) InterceptRegistered(c *pipeline.Context) error   { return h.hold(c, "registered") }
func (h *holder) InterceptActive(c *pipeline.Context) error       { return h.hold(c, "active") }
func (h *holder) InterceptReadComplete(c *pipeline.Context) error { return h.hold(c, "complete") }
func (h *holder) InterceptWritability(c *pipeline.Context) error  { return h.hold(c, "writability") }
func (h *holder) InterceptInactive(c *pipeline.Context) error     { return h.hold(c, "inactive") }
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

// Operations of one goroutine keep their order; each runs on the loop.
func TestDesign1_FIFO(t *testing.T) {
	l := newLoop(t)
	got := make(chan string, 100)
	log := new(trace)
	h := &tracer{name: "a", log: log}
	note := func(s string) func(call) error {
		return func(k call) error {
			if !l.InLoop() {
				t.Errorf("%s: not on the loop", s)
			}
			k.p.Complete(nil)
			got <- s
			return nil
		}
	}
	for _, m := range []string{"read", "event", "error", "complete", "write", "flush", "request", "closewrite", "close", "active"} {
		h.on(m, note(m))
	}
	m := newMemory(t, l, h)
	for len(got) > 0 {
		<-got
	}
	c, err := m.Pipeline().AddNamed("last", new(sink))
	if err != nil {
		t.Fatal(err)
	}
	first, err := m.Pipeline().AddBefore("tracer#0", "first", new(sink))
	if err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		do   func()
		want string
	}{
		{func() { first.FireRead(1) }, "read"},
		{func() { m.Pipeline().FireEvent(1) }, "event"},
		{func() { first.FireEvent(1) }, "event"},
		{func() { m.Pipeline().FireError(errSome) }, "error"},
		{func() { first.FireError(errSome) }, "error"},
		{first.FireReadComplete, "complete"},
		{func() { m.Write(1) }, "write"},
		{func() { c.Write(1) }, "write"},
		{func() { c.WriteThen(1, func(error) {}) }, "write"},
		{func() { c.ForwardWrite(1, nil) }, "write"},
		{m.Flush, "flush"}, {c.Flush, "flush"}, {m.Read, "request"}, {c.Read, "request"},
		{m.CloseWrite, "closewrite"}, {c.CloseWrite, "closewrite"},
		{m.Close, "close"}, {c.Close, "close"}, {func() { c.CloseThen(nil) }, "close"},
		{func() { c.ForwardClose(nil) }, "close"},
	}
	for i := 0; i < 3; i++ {
		for _, s := range steps {
			s.do()
		}
		for n, s := range steps {
			w := await(t, s.want, got)
			for w == "flush" && s.want != "flush" || w == "request" && s.want != "request" {
				w = await(t, s.want, got) // of a turn's end
			}
			if w != s.want {
				t.Fatalf("step %d: got %s, want %s", n, w, s.want)
			}
		}
		onLoop(t, l, func() {})
		for len(got) > 0 {
			<-got
		}
	}
	m.Reset()
	await(t, "the end", m.ended)
}

var errSome = errors.New("some error")

// Every public method is safe from anywhere while the loop changes the chain. It is
// the race detector that judges this test.
func TestDesign1_SafeFromAnywhere(t *testing.T) {
	l := newLoop(t)
	m := newMemory(t, l, new(forwarder), new(writeForwarder))
	c := m.Pipeline().Get("forwarder#0")
	const rounds = 300
	var wg sync.WaitGroup
	run := func(f func(i int)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range rounds {
				f(i)
			}
		}()
	}
	run(func(int) {
		k, err := m.Pipeline().AddNamed("", new(writeForwarder))
		if err != nil {
			t.Error(err)
			return
		}
		if k, err = m.Pipeline().Replace(k, "", new(forwarder)); err != nil {
			t.Error(err)
			return
		}
		if err := k.Remove(); err != nil {
			t.Error(err)
		}
	})
	run(func(int) {
		m.Write(buffer.FromString("x"))
		c.Write("y")
		m.Flush()
	})
	run(func(int) {
		c.FireRead(buffer.FromString("x"))
		m.Pipeline().FireRead("y")
		c.FireEvent(1)
		m.Pipeline().FireReadComplete()
	})
	run(func(i int) {
		m.SetAutoRead(i%2 == 0)
		m.Read()
		_ = m.AutoRead()
		_ = m.Writable()
		_ = m.BytesBeforeUnwritable() + m.BytesBeforeWritable()
		_ = m.Pipeline().Names()
		_ = m.Pipeline().Get("writeForwarder#0")
		_ = pipeline.Find[*forwarder](m.Pipeline())
		_ = m.String()
		_, _, _ = m.Open(), m.Active(), m.Context()
		b := m.Alloc().Alloc(1)
		b.Release()
	})
	wg.Wait()
	var pending int64
	onLoop(t, l, func() { pending = m.HighWater() + 1 - m.BytesBeforeUnwritable() })
	m.Close()
	await(t, "the end", m.ended)
	if pending < 0 || pending > 300*200 {
		t.Errorf("counted as pending at the end: %d", pending)
	}
}

// However many goroutines write, the account is even in the end, and the handlers
// have been told of a loss and a gain in turn.
func TestDesign1_ForeignBytes(t *testing.T) {
	l := newLoop(t)
	var events []bool
	m := newMemory(t, l, writabilityFunc(func(c *pipeline.Context) error {
		events = append(events, c.Channel().Writable())
		return nil
	}))
	onLoop(t, l, func() { m.SetWaterMarks(50_000, 100_000) })
	msg := make([]byte, 1000)
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 2000 {
				m.Write(msg)
			}
		}()
	}
	wg.Wait()
	onLoop(t, l, func() {})
	onLoop(t, l, func() {
		m.Flush()
		if !m.Writable() || m.BytesBeforeUnwritable() != 100_001 {
			t.Errorf("at the end: writable %v, room %d; want true, 100001", m.Writable(), m.BytesBeforeUnwritable())
		}
		if len(events)%2 != 0 {
			t.Errorf("%d events, want as many losses as gains", len(events))
		}
	})
	m.Close()
	await(t, "the end", m.ended)
}

type writabilityFunc func(c *pipeline.Context) error

func (f writabilityFunc) HandleWritability(c *pipeline.Context) error { return f(c) }

// After the loop has ended operations fail where they are called: completions come
// once, messages are released.
func TestDesign1_LoopEnded(t *testing.T) {
	l, end := startLoop(t)
	m := newMemory(t, l, new(forwarder))
	c := m.Pipeline().Get("forwarder#0")
	m.Close()
	await(t, "the end of the channel", m.ended)
	end()
	var got []error
	then := func(err error) { got = append(got, err) }
	msgs := []*counted{{refs: 1}, {refs: 1}, {refs: 1}, {refs: 1}}
	err := &countedError{counted{refs: 1}}
	m.WriteThen(msgs[0], then)
	m.Write(msgs[1])
	c.FireRead(msgs[2])
	m.Pipeline().FireEvent(msgs[3])
	c.FireError(err)
	p := eventloop.NewPromise(l)
	p.Then(then)
	c.ForwardCloseWrite(p)
	if len(got) != 2 || !errors.Is(got[0], pipeline.ErrClosed) || !errors.Is(got[1], pipeline.ErrClosed) {
		t.Errorf("write and close of the sending side: got %v, want ErrClosed twice", got)
	}
	got = nil
	m.CloseThen(then)
	if len(got) != 1 || got[0] != nil {
		t.Errorf("close: got %v, want nil once", got)
	}
	for i, msg := range append(msgs, &err.counted) {
		if msg.refs != 0 {
			t.Errorf("message %d: got %d references, want 0", i, msg.refs)
		}
	}
	m.Flush()
	m.Read()
	m.Reset()
	m.SetAutoRead(false)
	c.FireActive()
	if err := m.Pipeline().Add(new(sink)); !errors.Is(err, pipeline.ErrClosed) {
		t.Errorf("Add: got %v, want ErrClosed", err)
	}
	if err := c.Execute(func() { t.Error("a task ran") }); !errors.Is(err, eventloop.ErrLoopClosed) {
		t.Errorf("Execute: got %v, want ErrLoopClosed", err)
	}
	if c.Schedule(0, func() { t.Error("a timer fired") }).Stop() {
		t.Error("Schedule: got a timer that was armed")
	}
	if err := m.Closed().Wait(context.Background()); err != nil {
		t.Errorf("Closed: got %v, want nil", err)
	}
}

// A change of the chain off the loop is waited for; where that could be for ever it
// is refused.
func TestDesign1_ChangesOffLoop(t *testing.T) {
	l, other := newLoop(t), newLoop(t)
	m := newMemory(t, l)
	if err := m.Pipeline().AddFirst(new(sink), new(forwarder)); err != nil {
		t.Errorf("AddFirst: %v", err)
	}
	checkCalls(t, "names", m.Pipeline().Names(), "sink#0", "forwarder#0")
	onLoop(t, other, func() {
		if err := m.Pipeline().Add(new(sink)); !errors.Is(err, eventloop.ErrWouldDeadlock) {
			t.Errorf("on another loop: got %v, want ErrWouldDeadlock", err)
		}
		if m.Pipeline().Get("sink#0") == nil || pipeline.Find[*sink](m.Pipeline()) == nil {
			t.Error("Get or Find on another loop: got nil")
		}
	})
	var pe *pipeline.PanicError
	if err := m.Pipeline().Add(badMaker{}); !errors.As(err, &pe) || pe.Value != "bad configuration" {
		t.Errorf("a Maker that panics: got %v, want a PanicError", err)
	} else if want := "pipeline: panic: bad configuration"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	h := (&tracer{name: "a", log: new(trace)}).on("added", func(call) error { runtime.Goexit(); return nil })
	if err := m.Pipeline().Add(h); !errors.Is(err, pipeline.ErrGoexit) {
		t.Errorf("a HandleAdded that ends its goroutine: got %v, want ErrGoexit", err)
	}
	await(t, "the end", m.ended)

	man := eventloop.NewManual()
	defer man.Close()
	n := &memory{ended: make(chan struct{})}
	n.Setup(n, (*memoryCore)(n), pipeline.BaseConfig{Loop: man.Loop(), HighWater: 1})
	if err := n.Pipeline().Add(new(sink)); !errors.Is(err, eventloop.ErrWouldDeadlock) {
		t.Errorf("off the loop of a Manual: got %v, want ErrWouldDeadlock", err)
	}
	// A channel that was never registered still removes its handlers.
	log := new(trace)
	man.Enter(func() { _ = n.Pipeline().Add(&tracer{name: "a", log: log}); n.Close() })
	man.RunUntilIdle()
	checkCalls(t, "never registered", log.take(), "a added", "a close", "a removed")
}

type badMaker struct{}

func (badMaker) NewHandler() any { panic("bad configuration") }

// A completion is delivered once, on the loop; nobody who did not ask is told of a
// failure that the close explains.
func TestDesign1_Completions(t *testing.T) {
	l := newLoop(t)
	m := newMemory(t, l)
	got := make(chan bool, 10)
	m.WriteThen("x", func(err error) { got <- l.InLoop() && err == nil })
	if !await(t, "a completion", got) {
		t.Error("not on the loop, or failed")
	}
	m.CloseThen(func(err error) { got <- l.InLoop() && err == nil })
	if !await(t, "the close", got) {
		t.Error("not on the loop, or failed")
	}
	await(t, "the end", m.ended)
	select {
	case <-got:
		t.Error("a completion came twice")
	default:
	}
}

// maker is a configuration of which each pipeline makes its handler.
type maker struct{ n int }

type made struct{ n int }

func (m maker) NewHandler() any { return &made{m.n} }

func (*made) HandleRead(c *pipeline.Context, msg any) error { c.FireRead(msg); return nil }

func TestDesign4_Maker(t *testing.T) {
	cfg := maker{7}
	a, b := newChannel(t, embedded.Config{}, cfg), newChannel(t, embedded.Config{}, cfg, &made{8})
	ca, cb := pipeline.Find[maker](a.Pipeline()), pipeline.Find[maker](b.Pipeline())
	if ca == nil || cb == nil || ca.Handler() == cb.Handler() {
		t.Fatalf("Find by the Maker's type: got %v and %v, want one for each pipeline", ca, cb)
	}
	if ca.Name() != "maker#0" {
		t.Errorf("name: got %q, want maker#0", ca.Name())
	}
	if c := pipeline.Find[*made](b.Pipeline()); c != cb {
		t.Errorf("Find by the handler's type: got %v, want the first", c)
	}
	if c := pipeline.Find[*sink](b.Pipeline()); c != nil {
		t.Errorf("Find of what there is not: got %v, want nil", c)
	}
	if c := pipeline.Find[pipeline.ReadHandler](a.Pipeline()); c != ca {
		t.Errorf("Find by an interface: got %v, want the first", c)
	}
}

// Nothing is added if one of them is not a handler.
func TestDesign4_NotHandlers(t *testing.T) {
	ch := newChannel(t, embedded.Config{})
	for _, bad := range []any{nil, 1, struct{}{}, new(both), func() {}} {
		for name, add := range map[string]func(...any) error{"Add": ch.Pipeline().Add, "AddFirst": ch.Pipeline().AddFirst} {
			if err := add(new(sink), bad); !errors.Is(err, pipeline.ErrNotHandler) {
				t.Errorf("%s(%T): got %v, want ErrNotHandler", name, bad, err)
			}
		}
	}
	checkCalls(t, "names", ch.Pipeline().Names())
}

// A place is named by a name or a *Context.
func TestDesign4_Places(t *testing.T) {
	ch := newChannel(t, embedded.Config{})
	p := ch.Pipeline()
	b, err := p.AddNamed("b", new(sink))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		add  func() (*pipeline.Context, error)
	}{
		{"a", func() (*pipeline.Context, error) { return p.AddBefore("b", "a", new(sink)) }},
		{"a2", func() (*pipeline.Context, error) { return p.AddBefore(b, "a2", new(sink)) }},
		{"c", func() (*pipeline.Context, error) { return p.AddAfter("b", "c", new(sink)) }},
		{"b2", func() (*pipeline.Context, error) { return p.AddAfter(b, "b2", new(sink)) }},
	} {
		c, err := step.add()
		if err != nil || c.Name() != step.name || p.Get(step.name) != c || c.Pipeline() != p || c.Channel() != pipeline.Channel(ch) {
			t.Errorf("%s: got %v, %v", step.name, c, err)
		}
	}
	checkCalls(t, "names", p.Names(), "a", "a2", "b", "b2", "c")
	if p.Channel() != pipeline.Channel(ch) || b.Loop() != ch.Loop() || b.Alloc() == nil {
		t.Error("a context or a pipeline does not know its channel")
	}
	strange := newChannel(t, embedded.Config{}, new(sink)).Pipeline().Get("sink#0")
	for _, bad := range []any{"x", strange, (*pipeline.Context)(nil), 1, nil} {
		_, err1 := p.AddBefore(bad, "", new(sink))
		_, err2 := p.AddAfter(bad, "", new(sink))
		c, err3 := p.Replace(bad, "", new(sink))
		for _, err := range []error{err1, err2, err3, p.Remove(bad)} {
			if !errors.Is(err, pipeline.ErrNoHandler) || c != nil {
				t.Errorf("%v: got %v, want ErrNoHandler", bad, err)
			}
		}
	}
	if p.Get("x") != nil {
		t.Error("Get of what there is not: got a context")
	}
	for _, n := range []string{"head", "tail"} {
		if p.Get(n) != nil {
			t.Errorf("Get(%q): got a context, want nil: it is no handler", n)
		}
	}
}

// Handlers that remove or replace themselves or their neighbours in mid-event.
func TestDesign4_ChangesInMidEvent(t *testing.T) {
	p := func(k call) *pipeline.Pipeline { return k.c.Pipeline() }
	tests := []struct {
		name   string
		change func(k call, log *trace) error
		want   []string // who gets the read that b passes on afterwards
		again  []string // who gets the next one
	}{
		{"removes itself", func(k call, _ *trace) error { return k.c.Remove() }, []string{"c"}, []string{"a", "c"}},
		{"removes the next", func(k call, _ *trace) error { return p(k).Remove("c") }, nil, []string{"a", "b"}},
		{"removes itself and the next", func(k call, _ *trace) error {
			return errors.Join(k.c.Remove(), p(k).Remove("c"))
		}, nil, []string{"a"}},
		{"removes the next and itself", func(k call, _ *trace) error {
			return errors.Join(p(k).Remove("c"), k.c.Remove())
		}, nil, []string{"a"}},
		{"removes the one before", func(k call, _ *trace) error { return p(k).Remove("a") }, []string{"c"}, []string{"b", "c"}},
		{"replaces itself", func(k call, log *trace) error {
			_, err := p(k).Replace(k.c, "n", &tracer{name: "n", log: log})
			return err
		}, []string{"n", "c"}, []string{"a", "n", "c"}},
		{"replaces the next", func(k call, log *trace) error {
			_, err := p(k).Replace("c", "n", &tracer{name: "n", log: log})
			return err
		}, []string{"n"}, []string{"a", "b", "n"}},
		{"adds behind itself and goes", func(k call, log *trace) error {
			_, err := p(k).AddAfter(k.c, "n", &tracer{name: "n", log: log})
			return errors.Join(err, k.c.Remove())
		}, []string{"n", "c"}, []string{"a", "n", "c"}},
		{"adds at the tail", func(k call, log *trace) error {
			return p(k).Add(&tracer{name: "n", log: log})
		}, []string{"c", "n"}, []string{"a", "b", "c", "n"}},
		{"goes, then adds behind the next", func(k call, log *trace) error {
			err := k.c.Remove()
			_, err2 := p(k).AddAfter("c", "n", &tracer{name: "n", log: log})
			return errors.Join(err, err2)
		}, []string{"c", "n"}, []string{"a", "c", "n"}},
	}
	for _, tt := range tests {
		for _, bystanders := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/bystanders %v", tt.name, bystanders), func(t *testing.T) {
				ch, log, _ := tracers(t, embedded.Config{})
				once := true
				b := (&tracer{name: "b", log: log}).on("read", func(k call) error {
					if once {
						once = false
						log.take()
						if err := tt.change(k, log); err != nil {
							t.Error(err)
						}
					}
					k.c.FireRead(k.msg)
					k.c.Write("x")
					return nil
				})
				for _, h := range []*tracer{{name: "a", log: log}, b, {name: "c", log: log}} {
					if bystanders {
						if err := ch.Pipeline().Add(new(bystander)); err != nil {
							t.Fatal(err)
						}
					}
					if _, err := ch.Pipeline().AddNamed(h.name, h); err != nil {
						t.Fatal(err)
					}
				}
				for _, want := range [][]string{tt.want, tt.again} {
					log.take()
					ch.WriteInbound("x")
					var got []string
					for _, c := range log.of("read") {
						got = append(got, c[:1])
					}
					checkCalls(t, "reads", got, want...)
					if v := ch.ReadInbound(); v != "x" {
						t.Errorf("at the tail: got %v, want x", v)
					}
				}
			})
		}
	}
}

// AddFirst keeps its order also when one of them is gone at once.
func TestDesign4_AddFirstOfLeavers(t *testing.T) {
	ch, log, _ := tracers(t, embedded.Config{}, "z")
	leaver := (&tracer{name: "a", log: log}).on("added", func(k call) error { return k.c.Remove() })
	if err := ch.Pipeline().AddFirst(leaver, &tracer{name: "b", log: log}, &tracer{name: "c", log: log}); err != nil {
		t.Fatal(err)
	}
	log.take()
	ch.WriteInbound("x")
	checkCalls(t, "reads", log.of("read"), "b read", "c read", "z read")
	ch.WriteOutbound("x")
	checkCalls(t, "writes", log.of("write"), "z write", "c write", "b write")
}

// The links of reads and writes are those of the chain, whatever was done to it.
func TestDesign4_ResolvedOnce(t *testing.T) {
	ch, log, _ := tracers(t, embedded.Config{})
	p := ch.Pipeline()
	kinds := []func(name string) any{
		func(n string) any { return &tracer{name: n, log: log} },
		func(string) any { return new(bystander) },
		func(n string) any { return readOnly{n, log} },
		func(n string) any { return writeOnly{n, log} },
	}
	seed := uint32(1)
	random := func(n int) int {
		seed = seed*1664525 + 1013904223
		return int(seed>>8) % n
	}
	type place struct {
		c    *pipeline.Context
		name string
		kind int
	}
	var model []place
	for i := range 2000 {
		kind, name := random(len(kinds)), fmt.Sprint("h", i)
		at := random(len(model) + 1)
		var c *pipeline.Context
		var err error
		switch op := random(4); {
		case op == 0 && len(model) > 0 || len(model) > 12:
			at = random(len(model))
			err = model[at].c.Remove()
			model = slices.Delete(model, at, at+1)
		case op == 1 && len(model) > 0:
			at = random(len(model))
			c, err = p.Replace(model[at].c, name, kinds[kind](name))
			model[at] = place{c, name, kind}
		case at < len(model):
			c, err = p.AddBefore(model[at].c, name, kinds[kind](name))
			model = slices.Insert(model, at, place{c, name, kind})
		case at > 0:
			c, err = p.AddAfter(model[at-1].c, name, kinds[kind](name))
			model = append(model, place{c, name, kind})
		default:
			c, err = p.AddNamed(name, kinds[kind](name))
			model = append(model, place{c, name, kind})
		}
		if err != nil {
			t.Fatal(err)
		}
		log.take()
		ch.Do(func() { p.FireRead("x"); ch.Write("x") })
		var reads, writes []string
		for _, m := range model {
			if m.kind == 0 || m.kind == 2 {
				reads = append(reads, m.name+" read")
			}
			if m.kind == 0 || m.kind == 3 {
				writes = append([]string{m.name + " write"}, writes...)
			}
		}
		if !slices.Equal(log.of("read"), reads) || !slices.Equal(log.of("write"), writes) {
			t.Fatalf("step %d: got %q and %q, want %q and %q", i, log.of("read"), log.of("write"), reads, writes)
		}
		ch.ReleaseAll()
	}
}

type readOnly struct {
	name string
	log  *trace
}

func (h readOnly) HandleRead(c *pipeline.Context, msg any) error {
	h.log.add(h.name + " read")
	c.FireRead(msg)
	return nil
}

type writeOnly struct {
	name string
	log  *trace
}

func (h writeOnly) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	h.log.add(h.name + " write")
	c.ForwardWrite(msg, p)
	return nil
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

// A handler's tasks and timers run on the loop.
func TestDesign1_TasksOfHandlers(t *testing.T) {
	ch := newChannel(t, embedded.Config{}, new(sink))
	c := ch.Pipeline().Get("sink#0")
	log := new(trace)
	if err := c.Execute(func() { log.add("task") }); err != nil {
		t.Fatal(err)
	}
	c.Schedule(time.Second, func() { log.add("timer") })
	stopped := c.Schedule(time.Second, func() { log.add("stopped timer") })
	ch.Run()
	checkCalls(t, "at once", log.take(), "task")
	stopped.Stop()
	ch.Advance(time.Second - 1)
	checkCalls(t, "too early", log.take())
	ch.Advance(1)
	checkCalls(t, "in time", log.take(), "timer")
}

func TestPendingSize(t *testing.T) {
	b := buffer.FromString("0123456789")
	defer b.Release()
	one := b.Slice(0, 1)
	defer one.Release()
	overhead := pipeline.PendingSize(struct{}{}, 0)
	if overhead <= 0 {
		t.Errorf("any message: got %d, want something for its place", overhead)
	}
	if got, want := pipeline.PendingSize(one, 0), int64(one.Pinned())+overhead; got != want || one.Pinned() < 10 {
		t.Errorf("a slice: got %d, want %d, what it pins", got, want)
	}
	if got := pipeline.PendingSize("abc", 0); got != 3+overhead {
		t.Errorf("string: got %d, want %d", got, 3+overhead)
	}
	if got := pipeline.PendingSize([]byte("abc"), 0); got != 3+overhead {
		t.Errorf("[]byte: got %d, want %d", got, 3+overhead)
	}
	if got := pipeline.PendingSize(pinning(1000), 0); got != 1000+overhead {
		t.Errorf("a message that says what it pins: got %d, want %d", got, 1000+overhead)
	}
}

// pinning is a message that keeps so many bytes alive.
type pinning int

func (n pinning) Pinned() int { return int(n) }

// The value of a panic that is an error can be found in the error.
func TestDesign1_PanicUnwraps(t *testing.T) {
	ch := newChannel(t, embedded.Config{}, pipeline.On(func(*pipeline.Context, int) error {
		panic(fmt.Errorf("no more: %w", buffer.ErrOutOfMemory))
	}))
	ch.WriteInbound(1)
	for _, err := range []error{ch.CheckError(), ch.CloseReason()} {
		if !errors.Is(err, buffer.ErrOutOfMemory) {
			t.Errorf("got %v, want one that is ErrOutOfMemory", err)
		}
	}
}

// A write that fails for a reason of its own is told to who asked, or to HandleError.
func TestDesign1_FailWrite(t *testing.T) {
	ch, log, hs := tracers(t, embedded.Config{}, "a", "b")
	var got []error
	hs[1].on("error", func(k call) error { got = append(got, k.msg.(error)); return nil })
	ch.Do(ch.CloseWrite)
	ch.ReadEvent()
	log.take()
	ch.WriteOutbound("nobody asks")
	checkCalls(t, "told", log.of("error"), "a error", "b error")
	ch.Do(func() { ch.WriteThen("somebody asks", func(err error) { got = append(got, err) }) })
	if len(got) != 2 || got[0] != pipeline.ErrOutputShutdown || got[1] != pipeline.ErrOutputShutdown {
		t.Errorf("got %v, want ErrOutputShutdown twice", got)
	}
	checkCalls(t, "told", log.of("error"), "a error", "b error")
}

// Events may enter at any context, outside of any other event.
func TestDesign4_FireAnywhere(t *testing.T) {
	ch, log, _ := tracers(t, embedded.Config{}, "a", "b")
	c := ch.Pipeline().Get("tracer#0")
	ch.Do(func() {
		c.FireRead("x")
		c.FireEvent("x")
		c.FireError(errSome)
		c.FireReadComplete()
		c.Write("x")
		c.Read()
	})
	checkCalls(t, "calls", log.take(), "b read", "b event", "b error", "b complete", "b flush", "a flush")
	if v, ev, err := ch.ReadInbound(), ch.ReadEvent(), ch.CheckError(); v != "x" || ev != "x" || err != errSome {
		t.Errorf("at the tail: got %v, %v, %v", v, ev, err)
	}
	if ch.Parent() != nil || ch.Logger() == nil || ch.RemoteAddr() == nil {
		t.Error("parent, logger or address is not as it was made")
	}
}

// A handler that is added late asks whether the channel is active.
func TestDesign4_AddedLate(t *testing.T) {
	ch, log, _ := tracers(t, embedded.Config{}, "a")
	active := false
	late := (&tracer{name: "late", log: log}).on("added", func(k call) error {
		active = k.c.Channel().Active()
		return nil
	})
	if err := ch.Pipeline().Add(late); err != nil {
		t.Fatal(err)
	}
	checkCalls(t, "calls", log.take(), "late added")
	if !active {
		t.Error("Active in HandleAdded: got false, want true")
	}
}

// A loop that is ending still sees its channels to their end.
func TestDesign1_LoopEndsChannels(t *testing.T) {
	l, end := startLoop(t)
	log := new(trace)
	m := newMemory(t, l, &tracer{name: "a", log: log})
	onLoop(t, l, func() { log.take(); l.AtTurnEnd(closeLater{m, l, 200}) })
	end()
	await(t, "the end", m.ended)
	checkCalls(t, "calls", log.take(), "a close", "a inactive", "a unregistered", "a removed")
}

// closeLater closes its channel when the loop takes no tasks any more, or after so
// many turns.
type closeLater struct {
	m *memory
	l *eventloop.Loop
	n int
}

func (k closeLater) Run() {
	if k.l.Execute(func() {}) != nil || k.n == 0 {
		k.m.Close()
		return
	}
	k.n--
	k.l.AtTurnEnd(k)
}
