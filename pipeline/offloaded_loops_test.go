package pipeline_test

import (
	"context"
	"errors"
	"runtime"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// On real loops and workers: nothing of the handler runs on the loop, one call at a
// time; its state has no lock, and the race detector looks on.
func TestOffloadedOneAtATime(t *testing.T) {
	l := newLoop(t)
	running, total := 0, 0
	const n = 200
	done := make(chan struct{})
	call := func() {
		if running++; running != 1 || l.InLoop() || !eventloop.WouldDeadlock() {
			t.Errorf("%d calls at once, on the loop %v", running, l.InLoop())
		}
		runtime.Gosched()
		running--
		if total++; total == 5*n {
			close(done)
		}
	}
	p := eventloop.NewPromise(l)
	h := readFunc(func(c *pipeline.Context, msg any) error {
		call()
		c.WriteThen("x", func(error) { call() })
		c.Schedule(0, call)
		if err := c.Execute(call); err != nil {
			t.Errorf("Execute: %v", err)
		}
		c.Offload(noWork, func(any, error) { call() })
		if err := p.Wait(context.Background()); !errors.Is(err, eventloop.ErrWouldDeadlock) {
			t.Errorf("Wait: got %v, want ErrWouldDeadlock", err)
		}
		return nil
	})
	// Two handlers with one executor are one at a time, too.
	m := newMemory(t, l, pipeline.Offloaded{Handler: pipeline.On(func(c *pipeline.Context, i int) error {
		running++
		if running != 1 {
			t.Errorf("%d calls at once in two handlers", running)
		}
		c.FireRead(int64(i))
		running--
		return nil
	})}, new(forwarder), pipeline.Offloaded{Handler: h})
	for i := range n {
		m.Pipeline().FireRead(i)
	}
	await(t, "all calls", done)
	m.Close()
	await(t, "the end", m.ended)
}

// A handler that blocks holds up its own channel and nobody else.
func TestOffloadedBlocks(t *testing.T) {
	l := newLoop(t)
	begun, release := make(chan struct{}), make(chan struct{})
	m := newMemory(t, l, pipeline.Offloaded{Handler: readFunc(func(*pipeline.Context, any) error {
		close(begun)
		<-release
		return nil
	})})
	m.Pipeline().FireRead(1)
	await(t, "the handler", begun)
	got := make(chan any, 1)
	other := newMemory(t, l, pipeline.Offloaded{Handler: readFunc(func(_ *pipeline.Context, msg any) error {
		got <- msg
		return nil
	})})
	other.Pipeline().FireRead(2)
	if v := await(t, "the other channel's handler", got); v != 2 {
		t.Errorf("got %v, want 2", v)
	}
	ctx := m.Context()
	m.Close()
	other.Close()
	await(t, "the other's end", other.ended)
	await(t, "the context", ctx.Done()) // the close itself does not wait
	select {
	case <-m.ended:
		t.Error("the channel's last call has come while its handler runs")
	default:
	}
	close(release)
	await(t, "the end", m.ended)
}

// The end of a group waits for the handlers of channels that have closed, and they run
// on workers to the last.
func TestOffloadedShutdown(t *testing.T) {
	l, end := startLoop(t)
	begun, release := make(chan struct{}), make(chan struct{})
	log := new(trace)
	b := &tracer{name: "b", log: log}
	for _, m := range []string{"inactive", "unregistered", "removed"} {
		b.on(m, func(call) error {
			if l.InLoop() {
				t.Errorf("%s: on the loop", m)
			}
			return nil
		})
	}
	b.on("read", func(call) error { close(begun); <-release; return nil })
	c := &tracer{name: "c", log: new(trace)}
	m := newMemory(t, l, pipeline.Offloaded{Handler: b}, c)
	m.Pipeline().FireRead(1)
	await(t, "the handler", begun)
	onLoop(t, l, m.Reset) // a close would wait for the handler
	over := make(chan struct{})
	go func() { end(); close(over) }()
	onLoop(t, l, func() {})
	close(release)
	await(t, "the end of the group", over)
	select {
	case <-m.ended:
	default:
		t.Error("the group has ended before its channel")
	}
	checkCalls(t, "calls of b", log.of("read", "inactive", "unregistered", "removed"), "b read", "b inactive", "b unregistered", "b removed")
	checkCalls(t, "calls of c", c.log.of("inactive", "unregistered", "removed"), "c inactive", "c unregistered", "c removed")
}

// An executor that its owner closes too early: the handler goes on, on the loop.
func TestOffloadedExecutorCloses(t *testing.T) {
	l := newLoop(t)
	o, err := eventloop.NewOffload(eventloop.OffloadConfig{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	type got struct {
		msg    any
		onLoop bool
	}
	reads := make(chan got, 10)
	m := newMemory(t, l, pipeline.Offloaded{Executor: o, Handler: readFunc(func(c *pipeline.Context, msg any) error {
		reads <- got{msg, l.InLoop()}
		if msg == 3 {
			panic("boom")
		}
		c.FireRead(msg)
		return nil
	})}, new(sink))
	m.Pipeline().FireRead(1)
	if g := await(t, "a read", reads); g != (got{1, false}) {
		t.Errorf("got %v, want it on a worker", g)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	for i := 2; i <= 3; i++ {
		m.Pipeline().FireRead(i)
		if g := await(t, "a read", reads); g != (got{i, true}) {
			t.Errorf("got %v, want %d on the loop", g, i)
		}
	}
	await(t, "the end after a panic", m.ended)
	var pe *pipeline.PanicError
	if !errors.As(m.CloseReason(), &pe) {
		t.Errorf("closed because of %v, want the panic", m.CloseReason())
	}
}

// A handler changes its pipeline, from its own method and from its Offload.
func TestOffloadedChangesItsPipeline(t *testing.T) {
	l := newLoop(t)
	got := make(chan any, 10)
	last := readFunc(func(_ *pipeline.Context, msg any) error { got <- msg; return nil })
	h := readFunc(func(c *pipeline.Context, msg any) error {
		p := c.Pipeline()
		if err := p.Add(last); err != nil {
			t.Errorf("Add: %v", err)
		}
		if err := c.Remove(); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if err := c.Remove(); !errors.Is(err, pipeline.ErrNoHandler) {
			t.Errorf("Remove once more: got %v, want ErrNoHandler", err)
		}
		if n := p.Names(); len(n) != 1 {
			t.Errorf("names: got %q, want the new one", n)
		}
		c.FireRead(msg)
		return nil
	})
	m := newMemory(t, l, pipeline.Offloaded{Handler: h})
	onLoop(t, l, func() { m.Pipeline().FireRead(1) })
	if v := await(t, "the message", got); v != 1 {
		t.Errorf("got %v, want 1", v)
	}
	m.Pipeline().FireRead(2)
	if v := await(t, "the next message", got); v != 2 {
		t.Errorf("got %v, want 2", v)
	}
	added := make(chan error, 1)
	c := m.Pipeline().Get(m.Pipeline().Names()[0])
	c.Offload(func(context.Context) (any, error) {
		return nil, m.Pipeline().Add(new(sink))
	}, func(_ any, err error) { added <- err })
	if err := await(t, "a handler added by offloaded work", added); err != nil {
		t.Errorf("Add: %v", err)
	}
	// Somebody else's pipeline is not one's own.
	other := newMemory(t, l)
	c.Offload(func(context.Context) (any, error) {
		return nil, other.Pipeline().Add(new(sink))
	}, func(_ any, err error) { added <- err })
	if err := await(t, "the refusal", added); !errors.Is(err, eventloop.ErrWouldDeadlock) {
		t.Errorf("Add to another channel: got %v, want ErrWouldDeadlock", err)
	}
	other.Close()
	m.Close()
	await(t, "the end", m.ended)
	await(t, "the other's end", other.ended)
}

// A hundred channels with handlers on one worker, each message through two of them.
func TestOffloadedShareOneWorker(t *testing.T) {
	l := newLoop(t)
	o, err := eventloop.NewOffload(eventloop.OffloadConfig{Workers: 1, Waiting: 1})
	if err != nil {
		t.Fatal(err)
	}
	const channels, each = 100, 50
	left := make(chan struct{}, channels)
	var all []*memory
	for range channels {
		n := 0
		all = append(all, newMemory(t, l,
			pipeline.Offloaded{Executor: o, Handler: new(forwarder)},
			new(forwarder),
			pipeline.Offloaded{Executor: o, Handler: readFunc(func(c *pipeline.Context, msg any) error {
				if msg != n {
					t.Errorf("got message %v, want %d", msg, n)
				}
				if n++; n == each {
					left <- struct{}{}
				}
				c.Write(buffer.FromString("answer"))
				return nil
			})}))
	}
	for i := range each {
		for _, m := range all {
			m.Pipeline().FireRead(i)
		}
	}
	for range channels {
		await(t, "a channel's last message", left)
	}
	for _, m := range all {
		m.Close()
	}
	for _, m := range all {
		await(t, "the end", m.ended)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
}
