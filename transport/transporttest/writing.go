package transporttest

import (
	"context"
	"errors"
	"slices"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// What Netty's suite has as SocketCancelWriteTest, and SEMANTICS 2.
var writingTests = []test{
	{name: "2.1 writes leave at the end of the turn", run: leavesAtTurnEnd},
	{name: "2.1 with ManualFlush only what was flushed leaves", run: manualFlush},
	{name: "2.6 a completion comes when the last byte has left", run: completionPosition},
	{name: "2.8 a flush while the socket is full calls nobody", run: flushWhileFull},
	{name: "2.9 completions may write and flush", run: completionsWrite},
	{name: "2.9 a completion may close, and what was written leaves", run: completionCloses},
	{name: "2.10 writes after the end fail and are released", run: writeAfterEnd},
	{name: "2.11 an error fails all that is queued, once", run: errorFailsQueue},
	{name: "2.12 writes from elsewhere count at once", run: foreignWritesCount},
	{name: "a message of an unknown type fails alone", run: unknownMessage, unknown: true},
	{name: "a queue over MaxPending ends the channel", run: maxPending},
	{name: "a Send that waits for room can be given up", run: sendGivenUp},
}

func leavesAtTurnEnd(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	w := f.expect(3)
	d.do(func() {
		for range 3 {
			d.ch.WriteThen("x", w.then())
		}
		if n := w.count(); n != 0 {
			f.Errorf("%d writes have left inside the turn", n)
		}
	})
	w.wantNone()
	a.wantData([]byte("xxx"))
}

func manualFlush(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{ManualFlush: true})
	w := f.expect(4)
	d.do(func() {
		d.ch.WriteThen("a", w.then())
		d.ch.WriteThen("b", w.then())
		d.ch.Flush()
		d.ch.WriteThen("c", w.then())
	})
	a.wantData([]byte("ab"))
	f.settle()
	a.wantData([]byte("ab"))
	if n := w.count(); n != 2 {
		f.Errorf("completions: got %d, want 2", n)
	}
	d.ch.WriteThen("d", w.then())
	d.ch.Flush()
	w.wantNone()
	a.wantData([]byte("abcd"))
}

// completionPosition looks at each completion whether what came before it is over.
func completionPosition(f *fixture) {
	a, d := f.pair(transport.Config{ManualRead: true}, transport.Config{})
	d.fill()
	early := f.expect(1)
	d.ch.WriteThen("behind a full socket", early.then())
	f.settle()
	if n := early.count(); n != 0 {
		f.Error("a write is complete that cannot have left")
	}
	a.ch.SetAutoRead(true)
	early.wantNone()
}

func flushWhileFull(f *fixture) {
	_, d := f.pair(transport.Config{ManualRead: true}, transport.Config{})
	d.fill()
	d.do(func() {}) // behind the flush at the end of the turn
	d.do(func() {
		before := d.ch.Loop().Metrics().Counters
		for range 100 {
			d.ch.Flush()
		}
		after := d.ch.Loop().Metrics().Counters
		if after.Writevs != before.Writevs || after.Writes != before.Writes {
			f.Errorf("flushes of a full socket made %d calls", after.Writevs-before.Writevs+after.Writes-before.Writes)
		}
	})
}

func completionsWrite(f *fixture) {
	for _, manual := range []bool{false, true} {
		a, d := f.pair(transport.Config{}, transport.Config{ManualFlush: manual})
		const steps = 500
		var all []byte
		done := make(chan struct{})
		var next func(i int)
		next = func(i int) {
			if i == steps {
				close(done)
				return
			}
			p := pattern(1 + i%60)
			all = append(all, p...)
			d.ch.WriteThen(p, func(err error) {
				if err != nil {
					f.Errorf("write %d: %v", i, err)
				}
				next(i + 1)
			})
			d.ch.Flush()
		}
		d.do(func() { next(0) })
		await(f, done, "the last completion")
		a.wantData(all)
	}
}

func completionCloses(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{ManualFlush: true})
	all := pattern(f.bulk)
	const parts = 32
	w := f.expect(parts)
	d.do(func() {
		for i := range parts {
			then := w.then()
			d.ch.WriteThen(pooled(all[i*len(all)/parts:(i+1)*len(all)/parts]), func(err error) {
				if then(err); i == 0 {
					d.ch.Close()
					d.ch.Write("too late")
				}
			})
		}
		d.ch.Flush()
	})
	w.wantNone()
	a.wantEnd(errEnd)
	a.wantData(all)
	if d.wantEnd(pipeline.ErrClosed); d.saw("error") > 0 {
		f.Errorf("errors: %v", d.errs)
	}
}

func writeAfterEnd(f *fixture) {
	reason := errors.New("reason")
	for _, how := range []func(*end){
		func(e *end) { e.ch.Close() },
		func(e *end) { e.ch.Reset() },
		func(e *end) { _ = e.ch.Loop().Execute(func() { panicIn(e, reason) }) },
	} {
		_, d := f.pair(transport.Config{}, transport.Config{})
		how(d)
		d.waitLog("removed")
		errs := d.saw("error")
		b := pooled([]byte("late"))
		kept := b.Retain()
		w := f.expect(2)
		d.do(func() {
			d.ch.WriteThen(b, w.then())
			d.ch.WriteThen("late", w.then())
			d.ch.Write("late")
			d.ch.Flush()
			if n := w.count(); n != 2 || kept.Refs() != 1 {
				f.Errorf("got %d completions and %d references at once, want 2 and 1", n, kept.Refs())
			}
		})
		kept.Release()
		w.wantAll(pipeline.ErrClosed)
		w.wantAll(d.ch.CloseReason())
		if d.saw("error") != errs {
			f.Errorf("a close was reported again: %v", d.errs)
		}
	}
}

// panicIn has a handler of e's channel panic with v. On its loop.
func panicIn(e *end, v any) {
	if err := e.ch.Pipeline().AddFirst(pipeline.On(func(*pipeline.Context, boom) error { panic(v) })); err != nil {
		e.f.Error(err)
	}
	e.ch.Pipeline().FireRead(boom{})
}

type boom struct{}

func errorFailsQueue(f *fixture) {
	a, d := f.pair(transport.Config{ManualRead: true}, transport.Config{})
	d.fill()
	const writes = 10
	w := f.expect(writes)
	var kept []*buffer.Buf
	for i := range writes {
		b := pooled(pattern(100 + i*500))
		kept = append(kept, b.Retain())
		d.ch.WriteThen(b, w.then())
	}
	d.do(func() {})
	a.ch.Reset()
	w.wantAll(pipeline.ErrClosed)
	d.waitLog("removed")
	w.wantAll(d.ch.CloseReason())
	for i, b := range kept {
		if b.Refs() != 1 {
			f.Errorf("references of message %d: got %d, want 1", i, b.Refs())
		}
		b.Release()
	}
	if n := d.saw("error"); n != 1 {
		f.Errorf("errors: got %v, want that of the socket", d.errs)
	}
}

func foreignWritesCount(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{HighWater: 10_000})
	hold, held := make(chan struct{}), make(chan struct{})
	_ = d.ch.Loop().Execute(func() { close(held); <-hold })
	await(f, held, "the task that holds the loop")
	total := 0
	for d.ch.Writable() && total < 1<<20 {
		d.ch.Write(pooled(make([]byte, 1000)))
		total += 1000
	}
	if total > 11_000 {
		f.Errorf("%d bytes were written from elsewhere before the channel was not writable", total)
	}
	close(hold)
	a.wantData(make([]byte, total))
	d.do(func() {})
	if !d.ch.Writable() || d.saw("writable true") == 0 {
		f.Errorf("all has left, and writable is %v after %q", d.ch.Writable(), d.log)
	}
}

func unknownMessage(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	w := f.expect(3)
	b := pooled([]byte("inside"))
	kept := b.Retain()
	d.do(func() {
		d.ch.WriteThen("a", func(err error) {})
		d.ch.Write(42) // goes to HandleError
		d.ch.WriteThen(struct{}{}, func(err error) {
			if !errors.Is(err, transport.ErrUnsupportedMessage) {
				f.Errorf("got %v, want ErrUnsupportedMessage", err)
			}
			w.then()(nil)
		})
		d.ch.WriteThen(b, w.then())
		d.ch.WriteThen("c", w.then())
	})
	w.wantNone()
	a.wantData([]byte("ainsidec"))
	kept.Release()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.errs) != 1 || !errors.Is(d.errs[0], transport.ErrUnsupportedMessage) {
		f.Errorf("errors: got %v, want ErrUnsupportedMessage", d.errs)
	}
}

func maxPending(f *fixture) {
	_, d := f.pair(transport.Config{ManualRead: true}, transport.Config{MaxPending: 300_000})
	d.do(func() {
		for i := 0; i < 100_000 && d.ch.Open(); i++ {
			d.ch.Write(pooled(make([]byte, 10_000)))
			d.ch.Flush()
		}
	})
	d.wantEnd(transport.ErrSlowPeer)
	if n := d.saw("error"); n != 1 {
		f.Errorf("errors: got %v, want ErrSlowPeer", d.errs)
	}
}

func sendGivenUp(f *fixture) {
	a, d := f.pair(transport.Config{ManualRead: true}, transport.Config{})
	all := d.fill()
	b := pooled([]byte("given up"))
	kept := b.Retain()
	ctx, cancel := context.WithCancel(context.Background())
	sent := make(chan error, 1)
	go func() { sent <- d.ch.Send(ctx, b) }()
	cancel()
	if err := await(f, sent, "the end of Send"); !errors.Is(err, context.Canceled) {
		f.Errorf("Send: got %v, want %v", err, context.Canceled)
	}
	if kept.Refs() != 1 {
		f.Errorf("references: got %d, want 1", kept.Refs())
	}
	kept.Release()
	go func() { sent <- d.ch.Send(context.Background(), "sent") }()
	a.ch.SetAutoRead(true)
	if err := await(f, sent, "the end of Send"); err != nil {
		f.Errorf("Send: %v", err)
	}
	a.wantData(append(slices.Clip(all), "sent"...))
}
