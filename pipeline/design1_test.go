package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// The tests of this file are named after section 1 of DESIGN.md, threads and ownership.

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
