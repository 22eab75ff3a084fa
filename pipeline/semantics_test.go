package pipeline_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// The tests of this file are named after the lines of SEMANTICS.md.

// counted is a message that counts its references.
type counted struct{ refs int }

func (m *counted) Release() bool { m.refs--; return m.refs == 0 }

// countedError is an error that does.
type countedError struct{ counted }

func (*countedError) Error() string { return "counted" }

// The tail releases messages, events and errors.
func TestSemantics1_2_TailReleases(t *testing.T) {
	l := newLoop(t)
	m := newMemory(t, l)
	msg, ev, err := &counted{refs: 1}, &counted{refs: 1}, &countedError{counted{refs: 1}}
	onLoop(t, l, func() {
		m.Pipeline().FireRead(msg)
		m.Pipeline().FireEvent(ev)
		m.Pipeline().FireError(err)
	})
	if msg.refs != 0 || ev.refs != 0 || err.refs != 0 {
		t.Errorf("references: got %d, %d, %d, want none left", msg.refs, ev.refs, err.refs)
	}
	m.Close()
	await(t, "the end", m.ended)
}

// A write takes its message over, whatever becomes of it.
func TestSemantics1_3_WriteConsumes(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(ch *embedded.Channel)
		wantErr error
	}{
		{"written", func(*embedded.Channel) {}, nil},
		{"closed", func(ch *embedded.Channel) { ch.Do(ch.Close) }, pipeline.ErrClosed},
		{"closing", func(ch *embedded.Channel) {
			ch.Hold(true)
			ch.WriteOutbound("held")
			ch.Do(ch.Close)
		}, pipeline.ErrClosed},
		{"sending side closed", func(ch *embedded.Channel) { ch.Do(ch.CloseWrite) }, pipeline.ErrOutputShutdown},
		{"reset later", func(ch *embedded.Channel) { ch.Hold(true) }, pipeline.ErrReset},
		{"loop ended", func(ch *embedded.Channel) { _ = ch.Finish() }, pipeline.ErrClosed},
	}
	for _, tt := range tests {
		for _, off := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/off the loop %v", tt.name, off), func(t *testing.T) {
				ch := newChannel(t, embedded.Config{})
				tt.prepare(ch)
				msg := &counted{refs: 1}
				var got []error
				write := func() { ch.WriteThen(msg, func(err error) { got = append(got, err) }) }
				if off {
					elsewhere(write)
				} else {
					ch.Do(write)
				}
				ch.Run()
				if tt.name == "reset later" {
					ch.Reset()
					ch.Run()
				}
				ch.ReleaseAll()
				if msg.refs != 0 {
					t.Errorf("references: got %d, want 0", msg.refs)
				}
				if len(got) != 1 || !errors.Is(got[0], tt.wantErr) {
					t.Errorf("completed with %v, want once with %v", got, tt.wantErr)
				}
			})
		}
	}
}

// The event comes only when the bits go from none to some and back.
func TestSemantics3_1_OnlyTransitions(t *testing.T) {
	ch, log, _ := tracers(t, embedded.Config{HighWater: 1000, LowWater: 500}, "a")
	steps := []struct {
		pending  int64
		want     int
		writable bool
	}{
		{999, 0, true}, {1001, 1, false}, {2000, 1, false}, {600, 1, false}, {1500, 1, false}, {499, 2, true}, {800, 2, true}, {1001, 3, false}, {0, 4, true},
	}
	for _, s := range steps {
		ch.Do(func() { ch.SetPending(s.pending) })
		if got := log.count("a writability"); got != s.want || ch.Writable() != s.writable {
			t.Errorf("at %d: got %d events, writable %v; want %d, %v", s.pending, got, ch.Writable(), s.want, s.writable)
		}
	}
}

// Strictly above the high mark, strictly below the low one; 0 is always low enough.
func TestSemantics3_2_Marks(t *testing.T) {
	tests := []struct {
		low, high int64
		steps     []int64
		want      []bool
	}{
		{500, 1000, []int64{1000, 1001, 500, 499}, []bool{true, false, false, true}},
		{0, 0, []int64{0, 1, 0}, []bool{true, false, true}},
		{0, 10, []int64{11, 1, 0}, []bool{false, false, true}},
		{10, 10, []int64{11, 10, 9}, []bool{false, false, true}},
	}
	for _, tt := range tests {
		ch := newChannel(t, embedded.Config{})
		ch.Do(func() {
			ch.SetWaterMarks(tt.low, tt.high)
			for i, n := range tt.steps {
				ch.SetPending(n)
				if ch.Writable() != tt.want[i] {
					t.Errorf("marks %d, %d, step %d: at %d writable is %v, want %v", tt.low, tt.high, i, n, ch.Writable(), tt.want[i])
				}
			}
		})
		if ch.HighWater() != tt.high {
			t.Errorf("HighWater: got %d, want %d", ch.HighWater(), tt.high)
		}
	}
	for _, bad := range [][2]int64{{2, 1}, {-1, 1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("marks %d, %d: no panic", bad[0], bad[1])
				}
			}()
			newChannel(t, embedded.Config{}).SetWaterMarks(bad[0], bad[1])
		}()
	}
}

// On the loop the event comes inside the write; bytes written elsewhere count at
// once, and the event is posted.
func TestSemantics3_3_Synchrony(t *testing.T) {
	ch, log, _ := tracers(t, embedded.Config{HighWater: 1000, LowWater: 500}, "a")
	ch.Hold(true)
	big := make([]byte, 2000)
	ch.Do(func() {
		ch.Write(big)
		if got := log.count("a writability"); got != 1 || ch.Writable() {
			t.Errorf("inside the write: got %d events, writable %v; want 1, false", got, ch.Writable())
		}
	})
	ch.Hold(false)
	ch.Hold(true)
	log.take()
	elsewhere(func() { ch.Write(big) })
	if ch.Writable() || len(log.calls) != 0 {
		t.Errorf("written elsewhere: writable %v, calls %q; want false and none yet", ch.Writable(), log.calls)
	}
	ch.Run()
	if got := log.count("a writability"); got != 1 || ch.Writable() {
		t.Errorf("once the loop has seen it: got %d events, writable %v; want 1, false", got, ch.Writable())
	}
	ch.Hold(false)
	if got := log.count("a writability"); got != 2 || !ch.Writable() {
		t.Errorf("once it has left: got %d events, writable %v; want 2, true", got, ch.Writable())
	}

	// What was over before the loop saw it is nobody's business.
	log.take()
	elsewhere(func() { ch.Write(big) })
	ch.Do(func() { ch.Pipeline().FireReadComplete() })
	for i, want := range log.of("writability") {
		if want != "a writability" || i > 1 {
			t.Errorf("got %q, want the two changes at most", log.calls)
		}
	}
	if len(log.of("writability"))%2 != 0 || !ch.Writable() {
		t.Errorf("got %q, writable %v; want as many losses as gains", log.of("writability"), ch.Writable())
	}
}

// What a close drops is not reported as room.
func TestSemantics3_4_SilentOnClose(t *testing.T) {
	ch, log, _ := tracers(t, embedded.Config{HighWater: 1000, LowWater: 500}, "a")
	ch.Hold(true)
	ch.WriteOutbound(make([]byte, 2000))
	log.take()
	ch.Reset()
	ch.Run()
	if got := log.of("writability"); len(got) != 0 {
		t.Errorf("got %q, want none", got)
	}
	ch.Do(func() { ch.SetPending(0) })
	if got := log.of("writability"); len(got) != 0 {
		t.Errorf("after the close: got %q, want none", got)
	}
}

func TestSemantics3_5_Room(t *testing.T) {
	ch := newChannel(t, embedded.Config{HighWater: 1000, LowWater: 500})
	for _, tt := range []struct{ pending, unwritable, writable int64 }{
		{0, 1001, 0}, {400, 601, 0}, {1000, 1, 0}, {1001, 0, 502}, {500, 0, 1}, {499, 502, 0},
	} {
		ch.Do(func() { ch.SetPending(tt.pending) })
		if u, w := ch.BytesBeforeUnwritable(), ch.BytesBeforeWritable(); u != tt.unwritable || w != tt.writable {
			t.Errorf("at %d: got %d before unwritable, %d before writable; want %d, %d", tt.pending, u, w, tt.unwritable, tt.writable)
		}
	}
	ch.Do(func() { ch.SetPending(0) })
	elsewhere(func() { ch.Write(make([]byte, 100)) })
	want := 1001 - pipeline.PendingSize(make([]byte, 100), 1000)
	if got := ch.BytesBeforeUnwritable(); got != want {
		t.Errorf("with bytes on their way: got %d, want %d", got, want)
	}
}

// Reads are asked for after active and after each turn's reads, by the pipeline's
// head: handlers take part.
func TestSemantics4_1_AutoRead(t *testing.T) {
	ch, log, hs := tracers(t, embedded.Config{}, "a", "b")
	if got := ch.ReadRequests(); got != 1 {
		t.Errorf("after active: got %d requests, want 1", got)
	}
	ch.WriteInbound("x")
	checkCalls(t, "a turn of reads", log.take(), "a read", "b read", "a complete", "b complete", "b request", "a request")
	ch.Do(func() { ch.SetAutoRead(false) })
	if ch.AutoRead() {
		t.Error("AutoRead: got true, want false")
	}
	log.take()
	ch.WriteInbound("x")
	checkCalls(t, "with AutoRead off", log.of("request"))
	ch.Do(func() { ch.SetAutoRead(true); ch.SetAutoRead(true) })
	checkCalls(t, "switched on twice", log.of("request"), "b request", "a request")
	ch.ReadRequests()
	hs[1].on("request", func(call) error { return nil })
	ch.WriteInbound("x")
	if got := ch.ReadRequests(); got != 0 {
		t.Errorf("request swallowed by a handler: got %d, want 0", got)
	}
	// Without handlers that take part, the same happens.
	plain := newChannel(t, embedded.Config{})
	plain.ReadRequests()
	plain.WriteInbound("x")
	if got := plain.ReadRequests(); got != 1 {
		t.Errorf("no handlers: got %d requests, want 1", got)
	}
	manual := newChannel(t, embedded.Config{ManualRead: true})
	manual.WriteInbound("x")
	if got := manual.ReadRequests(); got != 0 {
		t.Errorf("ManualRead: got %d requests, want 0", got)
	}
	elsewhere(manual.Read)
	if got := manual.ReadRequests(); got != 1 {
		t.Errorf("Read from another goroutine: got %d requests, want 1", got)
	}
	elsewhere(func() { manual.SetAutoRead(true) })
	if got := manual.ReadRequests(); got != 1 {
		t.Errorf("SetAutoRead from another goroutine: got %d requests, want 1", got)
	}
}

func TestSemantics6_1_OpenOrder(t *testing.T) {
	log := new(trace)
	ch := newChannel(t, embedded.Config{Inactive: true}, &tracer{name: "a", log: log}, &tracer{name: "b", log: log})
	checkCalls(t, "registered", log.take(), "a added", "b added", "a registered", "b registered")
	if ch.Active() || !ch.Open() {
		t.Errorf("active %v, open %v; want false, true", ch.Active(), ch.Open())
	}
	ch.Activate()
	checkCalls(t, "active", log.take(), "a active", "b active", "b request", "a request")
	ch.Activate()
	checkCalls(t, "active once more", log.take())
	if !ch.Active() {
		t.Error("Active: got false, want true")
	}
	ch.Do(func() {
		if err := ch.Register(nil); err == nil {
			t.Error("Register once more: got nil, want an error")
		}
	})
}

func TestSemantics6_2_ConnectOrder(t *testing.T) {
	log := new(trace)
	ch := newChannel(t, embedded.Config{Inactive: true}, &tracer{name: "a", log: log}, &tracer{name: "b", log: log})
	log.take()
	p := eventloop.NewPromise(ch.Loop())
	p.Then(func(err error) { log.add(fmt.Sprint("connected ", err)) })
	ch.Do(func() { ch.Pipeline().Connect(&net.TCPAddr{}, nil, p) })
	checkCalls(t, "connect", log.take(), "b connect", "a connect", "connected <nil>", "a active", "b active", "b request", "a request")
}

func TestSemantics6_3_CloseOrder(t *testing.T) {
	ch, log, _ := tracers(t, embedded.Config{}, "a", "b")
	ch.Hold(true)
	ch.Closed().Then(func(err error) {
		log.add(fmt.Sprint("closed ", err))
		_ = ch.Loop().Execute(func() { log.add("task of closed") })
	})
	ch.Do(func() {
		ch.WriteThen("flushed", func(err error) { log.add(fmt.Sprint("flushed ", errors.Is(err, pipeline.ErrReset))) })
		ch.Flush()
		ch.WriteThen("queued", func(err error) { log.add(fmt.Sprint("queued ", errors.Is(err, pipeline.ErrReset))) })
		ch.CloseThen(func(err error) { log.add(fmt.Sprint("close ", err)) })
		ch.CloseThen(func(err error) { log.add(fmt.Sprint("second close ", err)) })
		log.take()
		ch.Reset()
		log.add("reset returned")
	})
	checkCalls(t, "close", log.take(),
		"closed <nil>", "close <nil>", "second close <nil>", "flushed true", "queued true", "reset returned",
		"task of closed", "a inactive", "b inactive", "a unregistered", "b unregistered", "b removed", "a removed")
	ch.Do(func() {
		ch.CloseThen(func(err error) { log.add(fmt.Sprint("late close ", err)) })
		ch.Reset()
	})
	checkCalls(t, "close of a closed channel", log.take(), "late close <nil>")
}

// Close lets what was written before leave first (where DESIGN.md differs).
func TestSemantics6_3_CloseFlushes(t *testing.T) {
	ch, log, _ := tracers(t, embedded.Config{}, "a")
	ch.Hold(true)
	ch.Do(func() {
		ch.WriteThen("x", func(err error) { log.add(fmt.Sprint("written ", err)) })
		ch.CloseThen(func(err error) { log.add(fmt.Sprint("closed ", err)) })
	})
	if !ch.Open() {
		t.Error("closed before the queue has left")
	}
	ch.WriteInbound("dropped")
	ch.Hold(false)
	ch.Run()
	checkCalls(t, "calls", log.take(), "a write", "a close", "a flush", "written <nil>", "closed <nil>", "a inactive", "a unregistered", "a removed")
	if got := ch.ReadOutbound(); got != "x" {
		t.Errorf("outbound: got %v, want x", got)
	}
}

// A channel that never was active owes no inactive; one that never was registered
// owes neither.
func TestSemantics6_3_CloseBeforeActive(t *testing.T) {
	log := new(trace)
	ch := newChannel(t, embedded.Config{Inactive: true}, &tracer{name: "a", log: log})
	log.take()
	ch.Do(ch.Close)
	checkCalls(t, "registered only", log.take(), "a close", "a unregistered", "a removed")
}

func TestSemantics6_4_RemovedOnce(t *testing.T) {
	some := errors.New("some error")
	t.Run("HandleAdded fails", func(t *testing.T) {
		ch, log, hs := tracers(t, embedded.Config{}, "a")
		hs[0].on("error", func(k call) error {
			if !errors.Is(k.msg.(error), some) {
				t.Errorf("HandleError got %v, want %v", k.msg, some)
			}
			return nil
		})
		bad := (&tracer{name: "bad", log: log}).on("added", func(call) error { return some })
		last := &tracer{name: "last", log: log}
		ch.Do(func() {
			if err := ch.Pipeline().Add(bad, last); !errors.Is(err, some) {
				t.Errorf("Add: got %v, want %v", err, some)
			}
		})
		checkCalls(t, "calls", log.take(), "bad added", "bad removed", "a error")
		checkCalls(t, "names", ch.Pipeline().Names(), "tracer#0")
		if !ch.Open() {
			t.Error("closed by an error of HandleAdded")
		}
	})
	t.Run("removes itself in HandleAdded", func(t *testing.T) {
		ch, log, _ := tracers(t, embedded.Config{})
		h := (&tracer{name: "a", log: log}).on("added", func(k call) error { return errors.Join(k.c.Remove(), some) })
		ch.Do(func() {
			if err := ch.Pipeline().Add(h); !errors.Is(err, some) {
				t.Errorf("Add: got %v, want %v", err, some)
			}
		})
		checkCalls(t, "calls", log.take(), "a added", "a removed")
	})
	t.Run("removed twice", func(t *testing.T) {
		ch, log, _ := tracers(t, embedded.Config{}, "a")
		c := ch.Pipeline().Get("tracer#0")
		if err := c.Remove(); err != nil || !c.Removed() {
			t.Errorf("Remove: got %v, removed %v; want nil, true", err, c.Removed())
		}
		if err := c.Remove(); !errors.Is(err, pipeline.ErrNoHandler) {
			t.Errorf("Remove once more: got %v, want ErrNoHandler", err)
		}
		ch.Do(ch.Close)
		checkCalls(t, "calls", log.take(), "a removed")
	})
	t.Run("added to a closed channel", func(t *testing.T) {
		ch, log, _ := tracers(t, embedded.Config{})
		ch.Do(ch.Close)
		if err := ch.Pipeline().Add(&tracer{name: "a", log: log}); !errors.Is(err, pipeline.ErrClosed) {
			t.Errorf("Add: got %v, want ErrClosed", err)
		}
		checkCalls(t, "calls", log.take())
	})
	t.Run("added while it ends", func(t *testing.T) {
		ch, log, hs := tracers(t, embedded.Config{}, "a")
		hs[0].on("inactive", func(k call) error {
			return k.c.Pipeline().Add(&tracer{name: "b", log: log})
		})
		hs[0].on("removed", func(k call) error {
			if err := k.c.Pipeline().Add(&tracer{name: "c", log: log}); !errors.Is(err, pipeline.ErrClosed) {
				t.Errorf("Add in the last HandleRemoved: got %v, want ErrClosed", err)
			}
			return nil
		})
		ch.Do(ch.Close)
		checkCalls(t, "calls", log.take(), "a close", "a inactive", "b added", "b inactive", "a unregistered", "b unregistered", "b removed", "a removed")
	})
}

// A handler sees no event before its HandleAdded.
func TestSemantics6_4_AddedFirst(t *testing.T) {
	ch, log, hs := tracers(t, embedded.Config{}, "a")
	hs[0].on("read", func(k call) error {
		if _, err := k.c.Pipeline().AddAfter(k.c, "late", &tracer{name: "late", log: log}); err != nil {
			return err
		}
		k.c.FireRead(k.msg)
		return nil
	})
	ch.WriteInbound("x")
	checkCalls(t, "calls", log.of("added", "read", "complete"), "a read", "late added", "late read", "a complete", "late complete")
}

func TestSemantics6_5_ReplaceOrder(t *testing.T) {
	ch, log, hs := tracers(t, embedded.Config{}, "a", "old", "z")
	hs[1].on("removed", func(k call) error { k.c.FireRead("kept by old"); return nil })
	var seen any
	next := (&tracer{name: "new", log: log}).on("read", func(k call) error { seen = k.msg; return nil })
	ch.Do(func() {
		c, err := ch.Pipeline().Replace("tracer#1", "new", next)
		if err != nil || c.Name() != "new" {
			t.Errorf("Replace: got %v, %v", c, err)
		}
	})
	checkCalls(t, "calls", log.take(), "new added", "old removed", "new read")
	if seen != "kept by old" {
		t.Errorf("the new handler got %v, want what the old one kept", seen)
	}
	checkCalls(t, "names", ch.Pipeline().Names(), "tracer#0", "new", "tracer#2")
}

func TestSemantics6_6_Names(t *testing.T) {
	ch := newChannel(t, embedded.Config{}, new(forwarder), new(forwarder), pipeline.On(func(*pipeline.Context, *buffer.Buf) error { return nil }))
	p := ch.Pipeline()
	checkCalls(t, "names", p.Names(), "forwarder#0", "forwarder#1", "On[*buffer.Buf]#0")
	if _, err := p.AddNamed("forwarder#1", new(forwarder)); !errors.Is(err, pipeline.ErrDuplicateName) {
		t.Errorf("AddNamed of a name in use: got %v, want ErrDuplicateName", err)
	}
	if _, err := p.AddNamed("forwarder#2", new(sink)); err != nil {
		t.Errorf("AddNamed: %v", err)
	}
	if err := p.Add(new(forwarder)); err != nil {
		t.Errorf("Add: %v", err)
	}
	checkCalls(t, "names", p.Names(), "forwarder#0", "forwarder#1", "On[*buffer.Buf]#0", "forwarder#2", "forwarder#3")
	if _, err := p.Replace("forwarder#0", "forwarder#1", new(sink)); !errors.Is(err, pipeline.ErrDuplicateName) {
		t.Errorf("Replace by a name in use: got %v, want ErrDuplicateName", err)
	}
	if c, err := p.Replace("forwarder#0", "forwarder#0", new(sink)); err != nil || c.Name() != "forwarder#0" {
		t.Errorf("Replace by its own name: got %v, %v", c, err)
	}
}

// A failing Init closes the channel; see also TestDesign1_BrokenInit.
func TestSemantics6_7_InitFails(t *testing.T) {
	some := errors.New("some error")
	log := new(trace)
	defer func() {
		if err, _ := recover().(error); !errors.Is(err, some) {
			t.Errorf("New panics with %v, want %v", err, some)
		}
		checkCalls(t, "calls", log.take(), "a added", "b added", "b removed", "a error", "a removed")
	}()
	embedded.New((&tracer{name: "a", log: log}).on("error", func(call) error { return nil }),
		(&tracer{name: "b", log: log}).on("added", func(call) error { return some }))
}

// Errors go forward from the thrower, itself first; those of outbound operations
// fail the promise, and are told from the head on if there is none.
func TestSemantics6_10_Errors(t *testing.T) {
	some := errors.New("some error")
	fail := func(call) error { return some }
	for _, m := range []string{"read", "event", "complete", "writability"} {
		ch, log, hs := tracers(t, embedded.Config{}, "a", "b", "c")
		hs[1].on(m, fail)
		for _, tt := range methods {
			if tt.name == m {
				ch.Do(func() { tt.trigger(ch) })
			}
		}
		checkCalls(t, m, log.of("error"), "b error", "c error")
		if err := ch.CheckError(); err != some {
			t.Errorf("%s: at the tail: got %v, want %v", m, err, some)
		}
		if !ch.Open() {
			t.Errorf("%s: an error closed the channel", m)
		}
	}
	for _, m := range []string{"write", "flush", "request", "close", "closewrite"} {
		ch, log, hs := tracers(t, embedded.Config{ManualFlush: true}, "a", "b", "c")
		hs[1].on(m, fail)
		for _, tt := range methods {
			if tt.name == m {
				ch.Do(func() { tt.trigger(ch) })
			}
		}
		checkCalls(t, m, log.of("error"), "a error", "b error", "c error")
		if err := ch.CheckError(); err != some {
			t.Errorf("%s: at the tail: got %v, want %v", m, err, some)
		}
	}
	for _, m := range []string{"write", "close"} {
		ch, log, hs := tracers(t, embedded.Config{}, "a", "b", "c")
		hs[1].on(m, fail)
		var got []error
		then := func(err error) { got = append(got, err) }
		ch.Do(func() {
			if m == "write" {
				ch.WriteThen("x", then)
			} else {
				ch.CloseThen(then)
			}
		})
		if len(got) != 1 || got[0] != some {
			t.Errorf("%s: completed with %v, want once with %v", m, got, some)
		}
		checkCalls(t, m, log.of("error"))
	}
}

// Notifications go on by themselves, also after an error (where DESIGN.md differs).
func TestSemantics6_11_Forwarding(t *testing.T) {
	for _, m := range methods {
		if !m.notification {
			continue
		}
		log := new(trace)
		a := (&tracer{name: "a", log: log}).on(m.name, func(call) error { return errors.New("some error") })
		a.on("error", func(call) error { return nil })
		ch := newChannel(t, embedded.Config{Inactive: m.inactive}, a, new(sink), &tracer{name: "b", log: log})
		log.take()
		ch.Do(func() { m.trigger(ch) })
		checkCalls(t, m.name, log.of(m.name, "error"), "a "+m.name, "a error", "b "+m.name)
	}
}

// The result of a promise is the first; a channel's own cannot be completed by others.
func TestSemantics6_12_Promises(t *testing.T) {
	ch, _, hs := tracers(t, embedded.Config{}, "a")
	some := errors.New("some error")
	hs[0].on("write", func(k call) error {
		k.c.ForwardWrite(k.msg, k.p)
		k.c.Flush()
		return some // too late: it has left
	})
	var got []error
	ch.Do(func() { ch.WriteThen("x", func(err error) { got = append(got, err) }) })
	if len(got) != 1 || got[0] != nil {
		t.Errorf("completed with %v, want once with nil", got)
	}
	var _ eventloop.Future = ch.Closed() // which has no Complete
	ch.Do(func() { ch.WriteThen("y", nil) })
}

func TestSemantics15_WriteAfterClose(t *testing.T) {
	ch, log, _ := tracers(t, embedded.Config{}, "a")
	reason := errors.New("first reason")
	ch.Do(func() { ch.Abort(pipeline.CloseNow, reason) })
	ch.Do(func() { ch.Abort(pipeline.CloseNow, io.EOF) })
	msg := &counted{refs: 1}
	var got error
	ch.Do(func() {
		ch.WriteThen(msg, func(err error) { got = err })
		ch.Write("nobody asks")
	})
	for _, want := range []error{pipeline.ErrClosed, net.ErrClosed, reason} {
		if !errors.Is(got, want) {
			t.Errorf("got %v, want one that is %v", got, want)
		}
	}
	if msg.refs != 0 {
		t.Errorf("references: got %d, want 0", msg.refs)
	}
	checkCalls(t, "errors told", log.of("error"))
	if got != ch.CloseReason() {
		t.Error("the error is not the one that the channel made when it closed")
	}
	if want := "pipeline: channel closed: first reason"; got.Error() != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Deep chains of completions do not use up the stack.
func TestSemantics15_CompletionsDoNotNest(t *testing.T) {
	ch := newChannel(t, embedded.Config{})
	n := 0
	var again func(error)
	again = func(error) {
		if n++; n < 10000 {
			ch.WriteThen("x", again)
			ch.Flush()
		}
	}
	ch.Do(func() { again(nil) })
	ch.Run()
	if n != 10000 {
		t.Errorf("got %d completions, want 10000", n)
	}
}
