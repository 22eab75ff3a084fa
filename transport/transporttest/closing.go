package transporttest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// What Netty's suite has as SocketRstTest, SocketCloseForciblyTest and parts of
// others, and SEMANTICS 6.3.
var closingTests = []test{
	{name: "6.3 a close lets what was written leave", run: closeFlushes},
	{name: "6.3 a close is told in order", run: closeInOrder},
	{name: "6.3 closes from many goroutines are one", run: closeFromMany},
	{name: "6.3 writes inside the end fail", run: writesInsideTheEnd},
	{name: "a close with input unread loses nothing that was written", run: closeWithInputUnread},
	{name: "a close right after the connection", run: closeAtOnce},
	{name: "a close in Init lets what was written there leave", run: closeInInit},
	{name: "both ends close at once", run: bothClose},
	{name: "Reset drops what was written", run: resetDrops},
	{name: "Reset during a close", run: resetDuringClose},
	{name: "a reset is read where there is something to read", run: resetWhileReading},
	{name: "a reset while reading is paused waits", run: resetWhilePaused},
	{name: "a reset while reading is paused is met by writes", run: resetMetByWrites},
}

// A channel may be closed in each of its callbacks.
func init() {
	for _, how := range []struct {
		name string
		do   func(pipeline.Channel)
	}{
		{"Close", pipeline.Channel.Close},
		{"Reset", pipeline.Channel.Reset},
		{"CloseWrite and Close", func(ch pipeline.Channel) { ch.CloseWrite(); ch.Close() }},
	} {
		for _, when := range moments {
			closingTests = append(closingTests, test{name: how.name + " in " + when, run: func(f *fixture) { closeIn(f, when, how.do) }})
		}
	}
}

func closeFlushes(f *fixture) {
	a, d := f.pair(transport.Config{ManualRead: true}, transport.Config{})
	all := d.fill()
	w := f.expect(1)
	d.ch.WriteThen("last", w.then())
	d.ch.Close()
	f.settle()
	if n := w.count(); n != 0 || !d.ch.Open() {
		f.Errorf("got %d completions, open %v before the peer has read; want 0, true", n, d.ch.Open())
	}
	a.ch.SetAutoRead(true)
	w.wantNone()
	a.wantEnd(errEnd)
	a.wantData(append(all, "last"...))
	d.wantEnd(pipeline.ErrClosed)
}

// Of the accepted end: the dialed one is not connected in Init, and gives up.
func closeInInit(f *fixture) {
	a, d := f.end(transport.Config{}), f.end(transport.Config{})
	w := f.expect(2)
	a.setUp = func(ch pipeline.Channel) error {
		ch.WriteThen("too ", w.then())
		ch.WriteThen("busy", w.then())
		ch.Close()
		return nil
	}
	f.connect(a, d)
	w.wantNone()
	d.wantEnd(errEnd)
	d.wantData([]byte("too busy"))
	a.wantEnd(pipeline.ErrClosed)
}

func closeInOrder(f *fixture) {
	_, d := f.pair(transport.Config{}, transport.Config{})
	ctx := d.ch.Context()
	d.do(func() {
		d.ch.Closed().Then(func(err error) { (*recorder)(d).note("closed %v", err) })
		d.ch.CloseThen(func(err error) { (*recorder)(d).note("told %v", err) })
		d.ch.CloseThen(func(err error) { (*recorder)(d).note("told again %v", err) })
	})
	d.waitLog("removed")
	await(f, ctx.Done(), "the end of the context")
	if !errors.Is(context.Cause(ctx), pipeline.ErrClosed) {
		f.Errorf("cause of the context: got %v, want ErrClosed", context.Cause(ctx))
	}
	d.mu.Lock()
	log := slices.Clone(d.log)
	d.mu.Unlock()
	inactive := slices.Index(log, "inactive")
	for _, s := range []string{"closed <nil>", "told <nil>", "told again <nil>"} {
		if i := slices.Index(log, s); i < 0 || i > inactive {
			f.Errorf("%q is not before inactive: %q", s, log)
		}
	}
	// Afterwards it is told at once.
	late := make(chan error, 2)
	d.ch.CloseThen(func(err error) { late <- err })
	d.ch.Closed().Then(func(err error) { late <- err })
	for range 2 {
		if err := await(f, late, "a close of a closed channel"); err != nil {
			f.Errorf("a close of a closed channel: %v", err)
		}
	}
}

func closeFromMany(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	var told atomic.Int32
	var wg sync.WaitGroup
	const goroutines = 16
	for i := range goroutines {
		wg.Go(func() {
			d.ch.Write("x")
			if i%2 == 0 {
				a.ch.Close()
			}
			d.ch.CloseThen(func(error) { told.Add(1) })
		})
	}
	wg.Wait()
	a.waitLog("removed")
	d.waitLog("removed")
	d.do(func() {})
	if n := told.Load(); n != goroutines {
		f.Errorf("closes told: got %d, want %d", n, goroutines)
	}
}

// insideTheEnd writes at the end of its channel.
type insideTheEnd struct{ w *completions }

func (h insideTheEnd) HandleInactive(c *pipeline.Context) error {
	c.WriteThen(pooled([]byte("late")), h.w.then())
	c.Flush()
	c.Close()
	return nil
}

func (h insideTheEnd) HandleUnregistered(c *pipeline.Context) error {
	c.WriteThen("late", h.w.then())
	c.Channel().Reset()
	return nil
}

func (h insideTheEnd) HandleRemoved(c *pipeline.Context) {
	c.Channel().WriteThen(pooled([]byte("late")), h.w.then())
}

func writesInsideTheEnd(f *fixture) {
	w := f.expect(3)
	a, d := f.end(transport.Config{}), f.end(transport.Config{}, insideTheEnd{w})
	f.connect(a, d)
	d.ch.Close()
	w.wantAll(pipeline.ErrClosed)
	d.wantEnd(pipeline.ErrClosed)
	if n := d.saw("error"); n != 0 {
		f.Errorf("errors: %v", d.errs)
	}
}

// closeWithInputUnread: a socket that is closed with input unread resets the
// connection, and its peer may lose what it had not read. Here the peer is still
// sending when the answer and the close come.
func closeWithInputUnread(f *fixture) {
	answer := pattern(f.bulk)
	a, d := f.pair(transport.Config{ManualRead: true}, transport.Config{ManualRead: true, HalfClose: true})
	d.ch.Write(pooled(pattern(f.bulk / 2)))
	f.settle()
	a.ch.Write(pooled(answer))
	a.ch.Close()
	d.ch.SetAutoRead(true)
	d.wantData(answer)
	d.wait("the end of the answer", func() bool { return slices.Contains(d.log, inputEnd) || d.removed })
	if d.saw("error") > 0 {
		f.Errorf("errors: %v", d.errs)
	}
	d.ch.Close()
	a.wantEnd(pipeline.ErrClosed)
}

func closeAtOnce(f *fixture) {
	closeIt := pipeline.OnActive(func(c *pipeline.Context) error { c.Write("bye"); c.Close(); return nil })
	a, d := f.end(transport.Config{}), f.end(transport.Config{}, closeIt)
	f.join(a, d)
	d.wantEnd(pipeline.ErrClosed)
	a.wantEnd(errEnd)
	a.wantData([]byte("bye"))
}

func bothClose(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	all := pattern(1000) // each takes what the other has written
	for _, e := range []*end{a, d} {
		e.ch.Write(pooled(all))
	}
	a.ch.Close()
	d.ch.Close()
	a.wantEnd(pipeline.ErrClosed)
	d.wantEnd(pipeline.ErrClosed)
}

func resetDrops(f *fixture) {
	a, d := f.pair(transport.Config{ManualRead: true}, transport.Config{})
	d.fill()
	w := f.expect(1)
	d.ch.WriteThen("dropped", w.then())
	d.ch.Reset()
	w.wantAll(pipeline.ErrReset)
	d.wantEnd(pipeline.ErrReset)
	a.ch.SetAutoRead(true)
	a.waitLog("removed")
	if !f.tr.NoReset && (a.saw("error") != 1 || errors.Is(a.ch.CloseReason(), errEnd)) {
		f.Errorf("the peer of a reset: got %q and %v, want an error", a.log, a.ch.CloseReason())
	}
}

func resetDuringClose(f *fixture) {
	_, d := f.pair(transport.Config{ManualRead: true}, transport.Config{})
	d.fill()
	w := f.expect(1)
	d.ch.WriteThen("dropped", w.then())
	told := make(chan error, 1)
	d.ch.CloseThen(func(err error) { told <- err })
	d.do(func() {})
	if !d.ch.Open() {
		f.Error("closed with a queue that cannot leave")
	}
	d.ch.Reset()
	if err := await(f, told, "the close"); err != nil {
		f.Errorf("close: %v", err)
	}
	w.wantAll(pipeline.ErrReset)
	d.wantEnd(pipeline.ErrReset)
}

func resetWhileReading(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	d.ch.Write("x")
	a.wantData([]byte("x"))
	d.ch.Reset()
	a.waitLog("removed")
	if f.tr.NoReset {
		return
	}
	var op *transport.OpError
	if a.saw("error") != 1 || !errors.As(a.ch.CloseReason(), &op) || op.Op != "read" {
		f.Errorf("got %q and %v, want an error of read", a.log, a.ch.CloseReason())
	}
}

func resetWhilePaused(f *fixture) {
	a, d := f.pair(transport.Config{ManualRead: true}, transport.Config{})
	d.ch.Write("x")
	f.settle()
	d.ch.Reset()
	d.waitLog("removed")
	f.settle()
	if !a.ch.Open() && !f.tr.EarlyReset {
		f.Errorf("a channel that does not read was told of the reset: %v", a.ch.CloseReason())
	}
	a.ch.SetAutoRead(true)
	a.waitLog("removed")
}

func resetMetByWrites(f *fixture) {
	a, d := f.pair(transport.Config{ManualRead: true}, transport.Config{})
	d.ch.Reset()
	d.waitLog("removed")
	w := f.expect(1)
	a.ch.WriteThen("x", w.then())
	a.waitLog("removed")
	w.wantAll(a.ch.CloseReason())
	if n := a.saw("error"); n != 1 {
		f.Errorf("errors: got %v, want that of the write", a.errs)
	}
}

// moments are the callbacks in which a handler may close its channel.
var moments = []string{
	"Init", "HandleAdded", "HandleRegistered", "HandleActive", "HandleRead", "HandleReadComplete",
	"HandleWritability", "HandleEvent", "HandleError", "HandleInactive", "HandleUnregistered",
	"HandleRemoved", "HandleReadRequest", "HandleFlush", "a completion", "a task", "a task at the end of the turn",
}

// closer closes its channel at one moment.
type closer struct {
	at   string
	do   func(pipeline.Channel)
	done atomic.Bool
}

func (h *closer) moment(c *pipeline.Context, at string) {
	if at == h.at {
		h.done.Store(true)
		h.do(c.Channel())
	}
}

func (h *closer) HandleAdded(c *pipeline.Context) error { h.moment(c, "HandleAdded"); return nil }
func (h *closer) HandleRegistered(c *pipeline.Context) error {
	h.moment(c, "HandleRegistered")
	return nil
}
func (h *closer) HandleActive(c *pipeline.Context) error { h.moment(c, "HandleActive"); return nil }

func (h *closer) HandleRead(c *pipeline.Context, msg any) error {
	passed := false
	defer func() {
		if !passed { // after a panic it is still the handler's
			buffer.Release(msg)
		}
	}()
	h.moment(c, "HandleRead")
	passed = true
	c.FireRead(msg)
	return nil
}

func (h *closer) HandleReadComplete(c *pipeline.Context) error {
	h.moment(c, "HandleReadComplete")
	return nil
}

func (h *closer) HandleWritability(c *pipeline.Context) error {
	h.moment(c, "HandleWritability")
	return nil
}

func (h *closer) HandleEvent(c *pipeline.Context, ev any) error {
	h.moment(c, "HandleEvent")
	c.FireEvent(ev)
	return nil
}

func (h *closer) HandleError(c *pipeline.Context, err error) {
	h.moment(c, "HandleError")
	c.FireError(err)
}

func (h *closer) HandleInactive(c *pipeline.Context) error { h.moment(c, "HandleInactive"); return nil }

func (h *closer) HandleUnregistered(c *pipeline.Context) error {
	h.moment(c, "HandleUnregistered")
	return nil
}

func (h *closer) HandleRemoved(c *pipeline.Context) { h.moment(c, "HandleRemoved") }

func (h *closer) HandleReadRequest(c *pipeline.Context) error {
	h.moment(c, "HandleReadRequest")
	c.Read()
	return nil
}

func (h *closer) HandleFlush(c *pipeline.Context) error {
	h.moment(c, "HandleFlush")
	c.Flush()
	return nil
}

// atTurnEnd is a task.
type atTurnEnd func()

func (f atTurnEnd) Run() { f() }

// closeIn closes the dialed channel at one moment of a life in which there is some of
// everything. All events come once and in order: finish looks at them.
func closeIn(f *fixture, at string, do func(pipeline.Channel)) {
	h := &closer{at: at, do: do}
	a := f.end(transport.Config{}, swallow())
	d := f.end(transport.Config{HighWater: 10_000, HalfClose: true}, h)
	const writes = 20
	d.setUp = func(ch pipeline.Channel) error {
		if at == "Init" {
			h.done.Store(true)
			do(ch)
		}
		return nil
	}
	if !f.join(a, d) {
		// It was closed before it was active. Only the dialed end has seen it for sure.
		if !h.done.Load() {
			f.Error("not connected, and nobody has closed")
		}
		d.waitLog("removed")
		return
	}
	a.ch.Write("hello")
	w := f.expect(writes)
	w.anyOrder = true // a write that comes too late fails at once
	_ = d.ch.Loop().Execute(func() {
		for i := range writes {
			then := w.then()
			d.ch.WriteThen(pooled(make([]byte, 2000)), func(err error) {
				if then(err); i == 3 && at == "a completion" {
					h.done.Store(true)
					do(d.ch)
				}
			})
			if i == writes/2 {
				d.ch.Pipeline().FireError(errors.New("an error"))
			}
		}
		if at == "a task at the end of the turn" {
			d.ch.Loop().AtTurnEnd(atTurnEnd(func() { h.done.Store(true); do(d.ch) }))
		}
	})
	_ = d.ch.Loop().Execute(func() {
		if at == "a task" {
			h.done.Store(true)
			do(d.ch)
		}
	})
	w.wait()
	switch at {
	case "HandleWritability": // perhaps everything has left at once
	case "HandleInactive", "HandleUnregistered", "HandleRemoved":
		d.ch.Reset()
	case "HandleEvent":
		d.do(func() { d.ch.Pipeline().FireEvent("an event") })
	case "HandleRead", "HandleReadComplete":
		d.wait("a turn of reading", func() bool { return d.completes > 0 })
	}
	if at == "HandleWritability" && !h.done.Load() {
		return
	}
	d.waitLog("removed")
	d.do(func() {}) // the recorder goes first, the others in the same task
	if !h.done.Load() {
		f.Errorf("nothing happened in %s", at)
	}
	if at != "HandleRemoved" && d.ch.CloseReason() == nil {
		f.Error("closed without a reason")
	}
}
