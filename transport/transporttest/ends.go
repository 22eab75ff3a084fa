package transporttest

import (
	"errors"
	"slices"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// The ends of the two directions, each by itself: what Netty's suite has as
// SocketHalfClosedTest, SocketShutdownOutputByPeerTest, SocketShutdownOutputBySelfTest.
var endTests = []test{
	{name: "9.1 the end of the peer's stream closes", run: peerEnds},
	{name: "9.1 the end of the peer's stream lets what was written leave", run: peerEndsWithQueue},
	{name: "9.1 with HalfClose the end of the peer's stream is an event, once", run: halfClosedByPeer},
	{name: "9.1 with HalfClose all that was sent comes before the event", run: dataBeforeShutdown},
	{name: "9.1 with HalfClose and reading by hand the end waits to be asked for", run: halfClosedByHand},
	{name: "9.2 CloseWrite lets what was written leave", run: closeWriteFlushes},
	{name: "9.2 CloseWrite leaves reading alone", run: closeWriteReads},
	{name: "9.2 writes behind CloseWrite fail", run: writeBehindCloseWrite},
	{name: "9.2 CloseWrite changes no writability", run: closeWriteWritability},
	{name: "9.2 CloseWrite before the channel is active, twice, and after the end", run: closeWriteAnyTime},
	{name: "9.2 both ends close their sending sides", run: bothCloseWrite},
	{name: "9 a peer that is gone ends a half-closed channel", run: peerGoneWhileHalfClosed},
	{name: "9 a peer that resets ends a half-closed channel", run: peerResetsWhileHalfClosed},
	{name: "9 a peer that resets ends a channel that has closed its sending side", run: peerResetsBehindCloseWrite},
}

const (
	inputEnd  = "pipeline.InputShutdown"
	outputEnd = "pipeline.OutputShutdown"
)

func peerEnds(f *fixture) {
	for _, end := range []func(*end){
		func(e *end) { e.ch.Close() },
		func(e *end) { e.ch.CloseWrite() },
	} {
		a, d := f.pair(transport.Config{}, transport.Config{})
		d.ch.Write("last")
		end(d)
		a.wantEnd(errEnd)
		a.wantData([]byte("last"))
		d.waitLog("removed")
		if n := a.saw(inputEnd) + a.saw("error"); n != 0 {
			f.Errorf("got %q, want neither events nor errors", a.log)
		}
	}
}

func peerEndsWithQueue(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{ManualRead: true, HalfClose: true})
	all := a.fill()
	w := f.expect(1)
	a.ch.WriteThen("last", w.then())
	a.do(func() {})
	d.ch.CloseWrite()
	d.ch.SetAutoRead(true)
	w.wantNone()
	a.wantEnd(errEnd)
	d.wantEnd(errEnd)
	d.wantData(append(all, "last"...))
}

func halfClosedByPeer(f *fixture) {
	a, d := f.pair(transport.Config{HalfClose: true}, transport.Config{HalfClose: true})
	d.ch.CloseWrite()
	a.waitLog(inputEnd)
	f.settle()
	if !a.ch.Active() || !d.ch.Active() {
		f.Errorf("active: got %v and %v, want both", a.ch.Active(), d.ch.Active())
	}
	// The other direction is as it was.
	all := pattern(f.bulk)
	a.ch.Write(pooled(all))
	d.wantData(all)
	if n := a.saw(inputEnd); n != 1 {
		f.Errorf("got %d events, want 1", n)
	}
	a.ch.CloseWrite()
	a.wantEnd(errEnd)
	d.wantEnd(errEnd)
	if n := a.saw(outputEnd); n != 1 {
		f.Errorf("got %d events of CloseWrite, want 1", n)
	}
}

func dataBeforeShutdown(f *fixture) {
	a, d := f.pair(transport.Config{HalfClose: true}, transport.Config{})
	all := pattern(f.bulk)
	d.ch.Write(pooled(all))
	d.ch.CloseWrite()
	a.waitLog(inputEnd)
	a.wantData(all)
}

func halfClosedByHand(f *fixture) {
	a, d := f.pair(transport.Config{HalfClose: true, ManualRead: true}, transport.Config{HalfClose: true})
	d.ch.Write("last")
	d.ch.CloseWrite()
	a.ch.Read()
	a.wantData([]byte("last"))
	f.settle()
	if n := a.saw(inputEnd); n != 0 {
		f.Error("the end came without being asked for")
	}
	a.ch.Read()
	a.waitLog(inputEnd)
	a.ch.Read()
	a.ch.SetAutoRead(true)
	f.settle()
	if n := a.saw(inputEnd); n != 1 {
		f.Errorf("got %d events, want 1", n)
	}
}

func closeWriteFlushes(f *fixture) {
	a, d := f.pair(transport.Config{ManualRead: true, HalfClose: true}, transport.Config{})
	all := d.fill()
	w := f.expect(1)
	d.ch.WriteThen("last", w.then())
	d.ch.CloseWrite()
	f.settle()
	if d.saw(outputEnd) != 0 {
		f.Error("the sending side was closed before the queue had left")
	}
	a.ch.SetAutoRead(true)
	w.wantNone()
	d.waitLog(outputEnd)
	a.waitLog(inputEnd)
	a.wantData(append(all, "last"...))
}

func closeWriteReads(f *fixture) {
	a, d := f.pair(transport.Config{HalfClose: true}, transport.Config{})
	d.ch.CloseWrite()
	a.waitLog(inputEnd)
	all := pattern(f.bulk)
	a.ch.Write(pooled(all))
	d.wantData(all)
	a.ch.Close()
	d.wantEnd(errEnd)
	a.wantEnd(pipeline.ErrClosed)
}

func writeBehindCloseWrite(f *fixture) {
	a, d := f.pair(transport.Config{HalfClose: true}, transport.Config{})
	w := f.expect(1)
	b := pooled([]byte("late"))
	kept := b.Retain()
	d.do(func() {
		d.ch.Write("before")
		d.ch.CloseWrite()
		d.ch.WriteThen(b, w.then())
		d.ch.Write("late")
	})
	w.wantAll(pipeline.ErrOutputShutdown)
	if kept.Refs() != 1 {
		f.Errorf("references: got %d, want 1", kept.Refs())
	}
	kept.Release()
	d.waitLog("error") // of the write that nobody waits for
	a.waitLog(inputEnd)
	a.wantData([]byte("before"))
	if !d.ch.Active() {
		f.Error("the write closed the channel")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.errs) != 1 || !errors.Is(d.errs[0], pipeline.ErrOutputShutdown) {
		f.Errorf("errors: got %v, want ErrOutputShutdown", d.errs)
	}
}

func closeWriteWritability(f *fixture) {
	a, d := f.pair(transport.Config{HalfClose: true}, transport.Config{HighWater: 100, LowWater: 10})
	d.ch.CloseWrite()
	d.waitLog(outputEnd)
	d.do(func() {
		d.ch.Write(pooled(make([]byte, 10_000)))
		if !d.ch.Writable() {
			f.Error("a write that failed counts")
		}
	})
	d.ch.Write(pooled(make([]byte, 10_000))) // from elsewhere it counts until it has failed
	d.wait("a writable channel", d.ch.Writable)
	a.waitLog(inputEnd)
}

func closeWriteAnyTime(f *fixture) {
	a, d := f.end(transport.Config{HalfClose: true}), f.end(transport.Config{HalfClose: true})
	d.setUp = func(ch pipeline.Channel) error {
		ch.Write("first and last")
		ch.CloseWrite()
		ch.CloseWrite()
		return nil
	}
	f.connect(a, d)
	d.waitLog(outputEnd)
	d.ch.CloseWrite()
	a.waitLog(inputEnd)
	a.wantData([]byte("first and last"))
	a.ch.Close()
	a.wantEnd(pipeline.ErrClosed)
	d.wantEnd(errEnd)
	a.ch.CloseWrite()
	d.ch.CloseWrite()
	for _, e := range []*end{a, d} {
		e.do(func() {})
		if n := e.saw(outputEnd); e == d && n != 1 || e == a && n != 0 {
			f.Errorf("got %d events of CloseWrite: %q", n, e.log)
		}
	}
}

func bothCloseWrite(f *fixture) {
	for _, halfClose := range []bool{true, false} {
		a, d := f.pair(transport.Config{HalfClose: halfClose}, transport.Config{HalfClose: halfClose})
		all := pattern(f.bulk)
		for _, e := range []*end{a, d} {
			if halfClose {
				e.ch.Write(pooled(all))
			}
			e.ch.CloseWrite()
		}
		for _, e := range []*end{a, d} {
			e.wantEnd(errEnd)
			if halfClose {
				e.wantData(all)
			}
		}
	}
}

// peerGoneWhileHalfClosed has a peer that closes altogether: a channel that has read
// the end of its stream learns of it by its next writes at the latest.
func peerGoneWhileHalfClosed(f *fixture) {
	a, d := f.pair(transport.Config{HalfClose: true}, transport.Config{})
	d.ch.Close()
	a.wait("the end of input", func() bool { return slices.Contains(a.log, inputEnd) || a.removed })
	d.wantEnd(pipeline.ErrClosed)
	for i := 0; i < 1000 && a.ch.Open(); i++ {
		a.ch.Write(pattern(100))
		f.settle()
	}
	a.waitLog("removed")
}

func peerResetsWhileHalfClosed(f *fixture) {
	a, d := f.pair(transport.Config{HalfClose: true}, transport.Config{})
	d.ch.CloseWrite()
	a.waitLog(inputEnd)
	d.ch.Reset()
	a.waitLog("removed")
}

func peerResetsBehindCloseWrite(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{HalfClose: true})
	a.ch.CloseWrite()
	d.waitLog(inputEnd)
	d.ch.Reset()
	a.waitLog("removed")
	if !f.tr.NoReset && (a.saw("error") != 1 || errors.Is(a.ch.CloseReason(), errEnd)) {
		f.Errorf("got %q and %v, want the reset", a.log, a.ch.CloseReason())
	}
}

// swallow releases what it reads.
func swallow() any {
	return pipeline.On(func(_ *pipeline.Context, b *buffer.Buf) error { b.Release(); return nil })
}
