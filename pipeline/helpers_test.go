package pipeline_test

import (
	"context"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// trace is what has happened, in order: "handler method". Its methods are safe from
// any goroutine, so that a test may wait for what a loop does.
type trace struct {
	mu    sync.Mutex
	calls []string
	told  chan struct{} // closed at the next call; nil if nobody waits
}

func (l *trace) add(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, s)
	if l.told != nil {
		close(l.told)
		l.told = nil
	}
}

// take returns what has happened since the last call.
func (l *trace) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	calls := l.calls
	l.calls = nil
	return calls
}

// until waits for a call that take has not returned yet.
func (l *trace) until(t testing.TB, call string) {
	t.Helper()
	for {
		l.mu.Lock()
		if slices.Contains(l.calls, call) {
			l.mu.Unlock()
			return
		}
		if l.told == nil {
			l.told = make(chan struct{})
		}
		told := l.told
		l.mu.Unlock()
		await(t, call, told)
	}
}

// of returns the calls of the given methods only.
func (l *trace) of(methods ...string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var calls []string
	for _, c := range l.calls {
		if slices.Contains(methods, c[strings.LastIndexByte(c, ' ')+1:]) {
			calls = append(calls, c)
		}
	}
	return calls
}

func (l *trace) count(call string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.calls {
		if c == call {
			n++
		}
	}
	return n
}

// call is what a method of a tracer was called with.
type call struct {
	c   *pipeline.Context
	msg any // message, event or error
	p   *eventloop.Promise
}

// tracer takes every event and operation, notes it and passes it on, unless do says
// something else.
type tracer struct {
	name string
	log  *trace
	do   map[string]func(call) error
}

// Shareable: some tests add a tracer twice.
func (*tracer) Shareable() {}

// on has f called instead of passing the event of method on.
func (h *tracer) on(method string, f func(call) error) *tracer {
	if h.do == nil {
		h.do = make(map[string]func(call) error)
	}
	h.do[method] = f
	return h
}

func (h *tracer) call(method string, a call, otherwise func()) error {
	h.log.add(h.name + " " + method)
	if f := h.do[method]; f != nil {
		return f(a)
	}
	if otherwise != nil {
		otherwise()
	}
	return nil
}

func (h *tracer) HandleRead(c *pipeline.Context, msg any) error {
	return h.call("read", call{c: c, msg: msg}, func() { c.FireRead(msg) })
}
func (h *tracer) HandleReadComplete(c *pipeline.Context) error {
	return h.call("complete", call{c: c}, nil)
}
func (h *tracer) HandleRegistered(c *pipeline.Context) error {
	return h.call("registered", call{c: c}, nil)
}
func (h *tracer) HandleUnregistered(c *pipeline.Context) error {
	return h.call("unregistered", call{c: c}, nil)
}
func (h *tracer) HandleActive(c *pipeline.Context) error {
	return h.call("active", call{c: c}, nil)
}
func (h *tracer) HandleInactive(c *pipeline.Context) error {
	return h.call("inactive", call{c: c}, nil)
}
func (h *tracer) HandleWritability(c *pipeline.Context) error {
	return h.call("writability", call{c: c}, nil)
}
func (h *tracer) HandleEvent(c *pipeline.Context, ev any) error {
	return h.call("event", call{c: c, msg: ev}, func() { c.FireEvent(ev) })
}
func (h *tracer) HandleError(c *pipeline.Context, err error) {
	_ = h.call("error", call{c: c, msg: err}, func() { c.FireError(err) })
}
func (h *tracer) HandleAdded(c *pipeline.Context) error {
	return h.call("added", call{c: c}, nil)
}
func (h *tracer) HandleRemoved(c *pipeline.Context) {
	_ = h.call("removed", call{c: c}, nil)
}
func (h *tracer) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	return h.call("write", call{c, msg, p}, func() { c.ForwardWrite(msg, p) })
}
func (h *tracer) HandleFlush(c *pipeline.Context) error {
	return h.call("flush", call{c: c}, c.Flush)
}
func (h *tracer) HandleReadRequest(c *pipeline.Context) error {
	return h.call("request", call{c: c}, c.Read)
}
func (h *tracer) HandleConnect(c *pipeline.Context, remote, local net.Addr, p *eventloop.Promise) error {
	return h.call("connect", call{c: c, p: p}, func() { c.ForwardConnect(remote, local, p) })
}
func (h *tracer) HandleClose(c *pipeline.Context, p *eventloop.Promise) error {
	return h.call("close", call{c: c, p: p}, func() { c.ForwardClose(p) })
}
func (h *tracer) HandleCloseWrite(c *pipeline.Context, p *eventloop.Promise) error {
	return h.call("closewrite", call{c: c, p: p}, func() { c.ForwardCloseWrite(p) })
}

// tracers makes a channel with tracers of the given names.
func tracers(t testing.TB, cfg embedded.Config, names ...string) (*embedded.Channel, *trace, []*tracer) {
	t.Helper()
	log := new(trace)
	var hs []*tracer
	var all []any
	for _, n := range names {
		h := &tracer{name: n, log: log}
		hs = append(hs, h)
		all = append(all, h)
	}
	ch := embedded.NewConfig(cfg, all...)
	t.Cleanup(func() {
		_ = ch.Finish()
		ch.ReleaseAll()
	})
	log.take()
	return ch, log, hs
}

// newChannel is embedded.NewConfig with the end of the test seen to.
func newChannel(t testing.TB, cfg embedded.Config, handlers ...any) *embedded.Channel {
	t.Helper()
	ch := embedded.NewConfig(cfg, handlers...)
	t.Cleanup(func() {
		_ = ch.Finish()
		ch.ReleaseAll()
	})
	return ch
}

func checkCalls(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

// elsewhere calls f on a goroutine of its own and waits for its end, also if f ends
// by runtime.Goexit.
func elsewhere(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

// patience is how long a test waits for what has to come before it fails.
const patience = 30 * time.Second

// await waits for c to be closed or to deliver.
func await[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("%s: not within %v", what, patience)
	}
	return v
}

// newLoop starts a group of one loop that ends with the test.
func newLoop(t testing.TB) *eventloop.Loop {
	t.Helper()
	l, end := startLoop(t)
	t.Cleanup(end)
	return l
}

func startLoop(t testing.TB) (l *eventloop.Loop, end func()) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("loops with a poller need Linux")
	}
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	return g.Next(), func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := g.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	}
}

// onLoop calls f on l and waits for its end.
func onLoop(t testing.TB, l *eventloop.Loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if err := l.Execute(func() { defer close(done); f() }); err != nil {
		t.Fatal(err)
	}
	await(t, "a task on the loop", done)
}

// memory is a channel on any loop that keeps what is written to it.
type memory struct {
	pipeline.Base
	flushes int
	reads   int
	stops   int
	queue   []any
	sizes   []int64
	closes  int
	ended   chan struct{}
	keep    bool // do not flush
}

func newMemory(t testing.TB, l *eventloop.Loop, handlers ...any) *memory {
	t.Helper()
	m := &memory{ended: make(chan struct{})}
	m.Setup(m, (*memoryCore)(m), pipeline.BaseConfig{Loop: l, HighWater: 1 << 16, LowWater: 1 << 15})
	onLoop(t, l, func() {
		if err := m.Register(func(ch pipeline.Channel) error { return ch.Pipeline().Add(handlers...) }); err != nil {
			t.Error(err)
		}
		m.MarkActive()
	})
	return m
}

type memoryCore memory

func (k *memoryCore) DoConnect(_, _ net.Addr, p *eventloop.Promise) { p.Complete(nil) }
func (k *memoryCore) DoWrite(msg any, p *eventloop.Promise) {
	if k.closes > 0 {
		buffer.Release(msg)
		p.Complete(k.CloseReason())
		return
	}
	k.queue = append(k.queue, msg)
	k.sizes = append(k.sizes, pipeline.PendingSize(msg, k.HighWater()))
	p.Complete(nil)
	k.settle()
}
func (k *memoryCore) settle() {
	var n int64
	for _, s := range k.sizes {
		n += s
	}
	k.SetPending(n)
}
func (k *memoryCore) DoFlush() {
	k.flushes++
	if k.keep {
		return
	}
	for _, m := range k.queue {
		buffer.Release(m)
	}
	k.queue, k.sizes = k.queue[:0], k.sizes[:0]
	k.settle()
}
func (k *memoryCore) DoRead()                           { k.reads++ }
func (k *memoryCore) DoReadStop()                       { k.stops++ }
func (k *memoryCore) DoCloseWrite(p *eventloop.Promise) { p.Complete(nil) }
func (k *memoryCore) DoWritability(bool)                {}
func (k *memoryCore) LocalAddr() net.Addr               { return nil }
func (k *memoryCore) RemoteAddr() net.Addr              { return nil }
func (k *memoryCore) DoEnd()                            { close(k.ended) }
func (k *memoryCore) DoClose(_ pipeline.CloseMode, r error) {
	k.closes++
	if k.closes > 1 {
		return
	}
	k.MarkClosed(r)
	for _, m := range k.queue {
		buffer.Release(m)
	}
	k.queue = nil
}

// writeForwarder passes every write on.
type writeForwarder struct{ n int }

func (f *writeForwarder) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	f.n++
	c.ForwardWrite(msg, p)
	return nil
}

// counter counts read completions.
type counter struct{ n int }

func (h *counter) HandleReadComplete(*pipeline.Context) error {
	h.n++
	return nil
}

func noWork(context.Context) (any, error) { return nil, nil }
