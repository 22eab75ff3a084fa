package pipeline_test

import (
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// checkAllocs fails the test if f allocates more than want per call. Builds with
// more checks may, and so may architectures on which asking for a goroutine's
// identity does.
func checkAllocs(t *testing.T, l *eventloop.Loop, what string, want float64, f func()) {
	t.Helper()
	if invariant.Enabled {
		t.Skip("checks allocate")
	}
	if testing.AllocsPerRun(10, func() { l.InLoop() }) > 0 {
		t.Skip("goroutine identities allocate")
	}
	if got := testing.AllocsPerRun(500, f); got > want {
		t.Errorf("%s: got %v allocations, want at most %v", what, got, want)
	}
}

// all takes what the allocation tests send, and passes it on.
type all struct{ forwarder }

func (*all) HandleReadComplete(*pipeline.Context) error    { return nil }
func (*all) HandleWritability(*pipeline.Context) error     { return nil }
func (*all) HandleEvent(c *pipeline.Context, ev any) error { c.FireEvent(ev); return nil }
func (*all) HandleError(*pipeline.Context, error)          {}
func (*all) HandleFlush(c *pipeline.Context) error         { c.Flush(); return nil }
func (*all) HandleReadRequest(c *pipeline.Context) error   { c.Read(); return nil }
func (*all) InterceptActive(c *pipeline.Context) error     { c.FireActive(); return nil }

func TestAllocations(t *testing.T) {
	defer buffer.SetLeakLevel(buffer.SetLeakLevel(buffer.LeakSampled)) // at level all buffers are not used again
	l := newLoop(t)
	m := newMemory(t, l, new(all), new(writeForwarder), new(all), new(writeForwarder), new(all), new(writeForwarder), &mapper{}, &mapper{}, new(sink))
	msg := buffer.FromString("hello")
	defer msg.Release()
	ev := any(new(int))
	first := m.Pipeline().Get("all#0")
	last := m.Pipeline().Get("sink#0")
	onLoop(t, l, func() {
		p := m.Pipeline()
		checkAllocs(t, l, "a read through five handlers", 0, func() { p.FireRead(msg) })
		checkAllocs(t, l, "a write through five handlers and its flush", 0, func() {
			msg.Retain()
			last.Write(msg)
			m.Flush()
		})
		checkAllocs(t, l, "the same through the channel", 0, func() {
			msg.Retain()
			m.Write(msg)
			m.Flush()
		})
		checkAllocs(t, l, "end of reads with a request for more", 0, p.FireReadComplete)
		checkAllocs(t, l, "a held notification", 0, first.FireActive)
		checkAllocs(t, l, "writability twice", 0, func() {
			m.SetPending(1 << 20)
			m.SetPending(0)
		})
		checkAllocs(t, l, "an event", 0, func() { p.FireEvent(ev) })
		checkAllocs(t, l, "an error", 0, func() { p.FireError(errSome) })
		checkAllocs(t, l, "autoread off and on", 0, func() { m.SetAutoRead(false); m.SetAutoRead(true) })
		checkAllocs(t, l, "a look at the room", 0, func() { _ = m.Writable(); _ = m.BytesBeforeUnwritable() })
		checkAllocs(t, l, "a completion", 3, func() { msg.Retain(); m.WriteThen(msg, func(error) {}) })
	})
	done := make(chan struct{}, 1)
	mark := func() { done <- struct{}{} }
	checkAllocs(t, l, "64 writes from another goroutine", 10, func() { // 1 is for the mark
		for range 64 {
			msg.Retain()
			m.Write(msg)
		}
		_ = l.Execute(mark)
		<-done
	})
	m.Close()
	await(t, "the end", m.ended)
}

// A handler costs its channel one context.
func TestAllocations_Add(t *testing.T) {
	ch := newChannel(t, embedded.Config{})
	h := any(new(forwarder))
	ch.Do(func() {
		p := ch.Pipeline()
		// The context, the slices of one, and what the calls to change are made with.
		checkAllocs(t, ch.Loop(), "add and remove", 6, func() {
			_ = p.Add(h)
			_ = p.Remove(pipeline.Find[*forwarder](p))
		})
	})
}

// A message through an offloaded handler costs no allocation, nor does what comes with
// it, nor a write.
func TestAllocations_Offloaded(t *testing.T) {
	defer buffer.SetLeakLevel(buffer.SetLeakLevel(buffer.LeakSampled))
	man := eventloop.NewManual()
	defer man.Close()
	m := &memory{ended: make(chan struct{})}
	m.Setup(m, (*memoryCore)(m), pipeline.BaseConfig{Loop: man.Loop(), HighWater: 1 << 16, LowWater: 1 << 15})
	h := &struct {
		*all
		*writeForwarder
	}{new(all), new(writeForwarder)}
	man.Enter(func() {
		if err := m.Register(func(ch pipeline.Channel) error {
			return ch.Pipeline().Add(pipeline.Offloaded{Handler: h}, new(sink))
		}); err != nil {
			t.Error(err)
		}
		m.MarkActive()
	})
	msg := buffer.FromString("hello")
	defer msg.Release()
	turn := func(f func()) func() {
		return func() {
			man.Enter(f)
			man.Turn()
			man.Turn()
		}
	}
	checkAllocs(t, man.Loop(), "a read through a handler elsewhere", 0, turn(func() {
		m.Pipeline().FireRead(msg)
		m.Pipeline().FireReadComplete()
	}))
	ev := any(new(int))
	checkAllocs(t, man.Loop(), "an event", 0, turn(func() { m.Pipeline().FireEvent(ev) }))
	checkAllocs(t, man.Loop(), "a write", 0, turn(func() {
		msg.Retain()
		m.Write(msg)
	}))
	if h.writeForwarder.n == 0 || h.all.n == 0 {
		t.Error("nothing was measured")
	}
	man.Enter(m.Close)
	man.RunUntilIdle()
	await(t, "the end", m.ended)
}
