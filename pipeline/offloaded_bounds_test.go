package pipeline_test

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// Reading stops at the mark and goes on at half of it.
func TestOffloadedPausesReading(t *testing.T) {
	tests := []struct {
		name   string
		manual bool
		during func(ch *embedded.Channel) // while reading is stopped
		want   int                        // reads asked for when it goes on
	}{
		{"automatic", false, func(*embedded.Channel) {}, 1},
		{"asked for by hand", true, func(ch *embedded.Channel) { ch.Read(); ch.Read() }, 1},
		{"by hand, not asked for", true, func(*embedded.Channel) {}, 0},
		{"switched off", false, func(ch *embedded.Channel) { ch.SetAutoRead(false) }, 0},
		{"switched on", true, func(ch *embedded.Channel) { ch.SetAutoRead(true) }, 1},
		{"off and on", false, func(ch *embedded.Channel) { ch.SetAutoRead(false); ch.SetAutoRead(true) }, 1},
		{"closed", false, func(ch *embedded.Channel) { ch.Reset() }, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []any
			ch := newChannel(t, embedded.Config{ManualRead: tt.manual}, pipeline.Offloaded{Mark: 4, Handler: readFunc(
				func(_ *pipeline.Context, msg any) error { got = append(got, msg); return nil })})
			ch.Run()
			ch.ReadRequests()
			// Enter does no turn, and only a turn runs the handler.
			ch.Manual().Enter(func() {
				for i := range 3 {
					ch.Pipeline().FireRead(i)
				}
				ch.Read()
				ch.Pipeline().FireRead(3) // the fourth: at the mark
			})
			before := readsOf(ch)
			ch.Manual().Enter(func() {
				ch.Pipeline().FireRead(4) // what the turn still brings
				ch.Pipeline().FireReadComplete()
				tt.during(ch)
			})
			if n := readsOf(ch) - before; n != 0 {
				t.Errorf("%d reads asked for while the queue is full, want none", n)
			}
			ch.Run()
			if n := readsOf(ch) - before; n != tt.want {
				t.Errorf("%d reads asked for when the queue is empty, want %d", n, tt.want)
			}
			if !slices.Equal(got, []any{0, 1, 2, 3, 4}) {
				t.Errorf("got %v, want all that was read", got)
			}
		})
	}
}

// readsOf returns how often a channel has been asked for a read, without a turn.
func readsOf(ch *embedded.Channel) int {
	return int(reflect.ValueOf(ch).Elem().FieldByName("reads").Int())
}

// Beyond the maximum the channel closes, and nothing is leaked or left untold.
func TestOffloadedFull(t *testing.T) {
	var errs []error
	b := &struct {
		readFunc
		writeFunc
		errorFunc
	}{
		func(c *pipeline.Context, msg any) error { c.FireRead(msg); return nil },
		func(c *pipeline.Context, msg any, p *eventloop.Promise) error { c.ForwardWrite(msg, p); return nil },
		func(_ *pipeline.Context, err error) { errs = append(errs, err) },
	}
	ch := newChannel(t, embedded.Config{}, pipeline.Offloaded{Handler: b, Max: 3})
	ch.Run()
	c := pipeline.Find[pipeline.WriteHandler](ch.Pipeline())
	var msgs []*counted
	message := func() *counted {
		m := &counted{refs: 1}
		msgs = append(msgs, m)
		return m
	}
	var told []error
	executed := false
	ch.Manual().Enter(func() {
		p := ch.Pipeline()
		p.FireRead(message())
		ch.WriteThen(message(), func(err error) { told = append(told, err) })
		p.FireEvent(message())
		if err := c.Execute(func() { executed = true }); err != nil || !ch.Open() {
			t.Errorf("Execute: got %v, open %v; want it taken, as a loop does", err, ch.Open())
		}
		p.FireRead(message())
		if ch.Open() {
			t.Error("the channel is open")
		}
		ch.WriteThen(message(), func(err error) { told = append(told, err) })
		p.FireEvent(message())
		p.FireError(&countedError{counted{refs: 1}})
	})
	ch.Run()
	for i, err := range told {
		if !errors.Is(err, pipeline.ErrClosed) {
			t.Errorf("write %d completed with %v, want ErrClosed", i, err)
		}
	}
	if len(told) != 2 || !executed {
		t.Errorf("%d completions, executed %v; want 2, true", len(told), executed)
	}
	if len(errs) != 1 || !errors.Is(errs[0], eventloop.ErrOffloadFull) || !errors.Is(ch.CloseReason(), eventloop.ErrOffloadFull) {
		t.Errorf("HandleError got %v, closed because of %v; want ErrOffloadFull once", errs, ch.CloseReason())
	}
	ch.ReleaseAll()
	for i, m := range msgs {
		if m.refs != 0 {
			t.Errorf("message %d: %d references, want none", i, m.refs)
		}
	}
}

// Writes in the queue count against the water marks; one that the handler keeps does
// so no longer.
func TestOffloadedWritesCount(t *testing.T) {
	for _, keeps := range []bool{true, false} {
		log := new(trace)
		var kept []any
		b := writeFunc(func(c *pipeline.Context, msg any, p *eventloop.Promise) error {
			if keeps {
				kept = append(kept, msg)
			} else {
				c.ForwardWrite(msg, p)
			}
			return nil
		})
		ch, _, _ := between(t, embedded.Config{HighWater: 1000, LowWater: 500}, log, b)
		ch.Manual().Enter(func() {
			ch.Write(make([]byte, 800))
			if !ch.Writable() || ch.BytesBeforeUnwritable() > 200 {
				t.Errorf("keeps %v: below the mark: writable %v, %d left", keeps, ch.Writable(), ch.BytesBeforeUnwritable())
			}
			ch.Write(make([]byte, 800))
			if ch.Writable() {
				t.Errorf("keeps %v: writable with 1600 bytes in the handler's queue", keeps)
			}
		})
		ch.Run()
		if !ch.Writable() || ch.BytesBeforeUnwritable() != 1001 {
			t.Errorf("keeps %v: at the end: writable %v, %d left; want all of it", keeps, ch.Writable(), ch.BytesBeforeUnwritable())
		}
		checkCalls(t, "writability", log.of("writability"), "a writability", "c writability", "a writability", "c writability")
		ch.ReleaseAll()
	}
}
