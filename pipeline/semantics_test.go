package pipeline_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// The tests of this file are named after the lines of SEMANTICS.md, as those of
// contract_test.go, which has its sections 6 and 15.

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
	early := newChannel(t, embedded.Config{ManualRead: true, Inactive: true})
	early.Do(early.Read)
	if got := early.ReadRequests(); got != 1 {
		t.Errorf("Read before the channel is active: got %d requests, want 1", got)
	}
}
