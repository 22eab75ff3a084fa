package transport

import (
	"errors"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

func TestEOFCloses(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	r.do(func() {
		r.k.take = []takeStep{{n: 4}}
		r.Write(pooled("queued before"))
	})
	r.readable(readStep{data: "last"}, readStep{eof: true})
	r.ready(eventloop.EventRead | eventloop.EventReadHangup)
	r.wantLog("read last", "complete", "complete")
	if r.at != streamClosing {
		t.Fatalf("state: got %d, want closing until the queue has left", r.at)
	}
	r.ready(eventloop.EventWrite)
	r.wantOut("queued before")
	r.wantLog("inactive", "unregistered")
	if !errors.Is(r.CloseReason(), io.EOF) || !errors.Is(r.CloseReason(), pipeline.ErrClosed) {
		t.Errorf("close reason: got %v, want ErrClosed with io.EOF", r.CloseReason())
	}
}

func TestHalfClose(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{HalfClose: true}})
	r.log = nil
	r.readable(readStep{data: "a"}, readStep{eof: true})
	r.ready(eventloop.EventRead | eventloop.EventReadHangup)
	r.wantLog("read a", "complete", "complete", "event pipeline.InputShutdown")
	if ev := r.interest(); ev != 0 {
		t.Errorf("interest after the end of input: got %v, want none", ev)
	}
	calls := r.k.calls
	r.ready(eventloop.EventRead | eventloop.EventReadHangup)
	if r.k.calls != calls {
		t.Error("read after the end of input")
	}
	r.do(func() { r.Write(pooled("reply")) })
	r.do(r.CloseWrite)
	r.m.RunUntilIdle()
	r.wantOut("reply")
	r.wantLog("event pipeline.OutputShutdown", "inactive", "unregistered")
}

func TestCloseWrite(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	r.do(func() {
		r.k.take = []takeStep{{n: 1}}
		r.Write(pooled("before"))
		r.CloseWrite()
		r.WriteThen(pooled("after"), func(err error) {
			if !errors.Is(err, pipeline.ErrOutputShutdown) {
				t.Errorf("write after CloseWrite: got %v, want ErrOutputShutdown", err)
			}
		})
		r.Write(pooled("after"))
	})
	if r.k.shut {
		t.Error("sending side closed before the queue has left")
	}
	r.wantLog("error pipeline: sending side closed")
	r.ready(eventloop.EventWrite)
	r.wantOut("before")
	if !r.k.shut {
		t.Error("sending side still open")
	}
	r.wantLog("event pipeline.OutputShutdown")
	r.readable(readStep{data: "still reading"})
	r.wantLog("read still reading", "complete")
}

// Close lets the queue leave, reads nothing meanwhile, and gives up a peer that
// takes nothing, but not one that is slow.
func TestCloseLetsTheQueueLeave(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{CloseTimeout: time.Second}})
	r.log = nil
	var result []error
	r.do(func() {
		r.k.take = []takeStep{{n: 3}, {n: 3}, {n: 3}, {n: 3}}
		r.WriteThen(pooled("0123456789abcdefgh"), func(err error) { result = append(result, err) })
		r.Close()
		r.WriteThen(pooled("late"), func(err error) { result = append(result, err) })
	})
	if len(result) != 1 || !errors.Is(result[0], pipeline.ErrClosed) {
		t.Fatalf("write after Close: got %v, want ErrClosed", result)
	}
	if ev := r.interest(); ev != eventloop.EventWrite {
		t.Errorf("interest while closing: got %v, want write only", ev)
	}
	for range 3 {
		r.m.Advance(900 * time.Millisecond)
		r.ready(eventloop.EventWrite)
	}
	if r.at != streamClosing {
		t.Fatalf("state: got %d, want still closing: the peer is slow but alive", r.at)
	}
	r.m.Advance(2100 * time.Millisecond)
	r.m.RunUntilIdle()
	if !errors.Is(r.CloseReason(), ErrCloseTimeout) {
		t.Errorf("close reason: got %v, want ErrCloseTimeout", r.CloseReason())
	}
	if len(result) != 2 || !errors.Is(result[1], ErrCloseTimeout) {
		t.Errorf("queued write: got %v, want ErrCloseTimeout", result)
	}
	if r.k.resets != 1 {
		t.Errorf("resets: got %d, want 1", r.k.resets)
	}
	r.wantLog("inactive", "unregistered")
}

// A close with bytes in the kernel closes the sending side first and waits for the
// peer's end.
func TestLingeringClose(t *testing.T) {
	for _, end := range []string{"eof", "error", "timeout"} {
		t.Run(end, func(t *testing.T) {
			r := newRig(t, rigConfig{Config: Config{CloseTimeout: time.Second}})
			r.log = nil
			r.k.left = true
			r.do(func() { r.Write(pooled("bye")); r.Close() })
			r.wantOut("bye")
			if !r.k.shut || r.k.closes != 0 {
				t.Fatalf("shut %v, closes %d; want a closed sending side and an open socket", r.k.shut, r.k.closes)
			}
			r.readable(readStep{data: letters(100000)}, readStep{data: "x"})
			r.ready(eventloop.EventRead)
			r.wantLog()
			switch end {
			case "eof":
				r.readable(readStep{eof: true})
			case "error":
				r.readable(readStep{err: os.NewSyscallError("read", syscall.ECONNRESET)})
			case "timeout":
				r.m.Advance(time.Second)
				r.m.RunUntilIdle()
			}
			r.wantLog("inactive", "unregistered")
			if r.k.closes != 1 {
				t.Errorf("closes: got %d, want 1", r.k.closes)
			}
		})
	}
}

// A peer that has nothing to say is not waited for longer than it takes it to
// acknowledge what it was sent.
func TestLingeringEndsWithTheAcknowledgement(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{CloseTimeout: time.Hour}})
	r.k.left = true
	r.do(func() { r.Write(pooled("bye")); r.Close() })
	r.m.Advance(time.Minute)
	if r.k.closes != 0 {
		t.Fatalf("closes: got %d before the acknowledgement, want 0", r.k.closes)
	}
	r.k.left = false
	r.m.Advance(lingerCheck)
	if r.k.closes != 1 {
		t.Errorf("closes: got %d after it, want 1", r.k.closes)
	}
}

// Channels that linger look at the same moments, however far apart they were closed,
// and one whose peer has spoken does not look at all: it waits for the end.
func TestLingeringLooksSeldom(t *testing.T) {
	for _, heard := range []bool{false, true} {
		r := newRig(t, rigConfig{Config: Config{CloseTimeout: time.Minute}})
		r.m.Advance(lingerCheck / 4)
		r.k.left = true
		r.m.Turn() // the loop's clock is that of the turn
		r.do(r.Close)
		if heard {
			r.readable(readStep{data: "x"})
		}
		fired := func(d time.Duration) int {
			before := r.Loop().Metrics().TimersFired
			r.m.Advance(d)
			return int(r.Loop().Metrics().TimersFired - before)
		}
		if n := fired(lingerCheck*3/4 - 10); n != 0 {
			t.Errorf("heard %v: got %d looks before their time, want 0", heard, n)
		}
		if n := fired(10); n != 1 {
			t.Errorf("heard %v: got %d looks at their time, want 1", heard, n)
		}
		want := 100
		if heard {
			want = 0
		}
		if n := fired(100 * lingerCheck); n != want {
			t.Errorf("heard %v: got %d looks, want %d", heard, n, want)
		}
		r.m.Advance(time.Minute)
		if r.k.closes != 1 {
			t.Errorf("heard %v: still open after CloseTimeout", heard)
		}
	}
}

func TestReset(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	var result error
	r.do(func() {
		r.k.take = []takeStep{{n: 1}}
		r.WriteThen(pooled("dropped"), func(err error) { result = err })
		r.Flush()
		r.Reset()
	})
	r.m.RunUntilIdle()
	r.wantOut("d")
	if !errors.Is(result, pipeline.ErrReset) || r.k.resets != 1 {
		t.Errorf("got %v, %d resets; want ErrReset, 1", result, r.k.resets)
	}
	r.wantLog("inactive", "unregistered")
}

// In every paused or half-closed state a hangup that nobody can act on takes the
// descriptor out of the poller: no event comes twice.
func TestNoSpinOnHangup(t *testing.T) {
	const broken = eventloop.EventHangup | eventloop.EventError | eventloop.EventReadHangup
	for _, tt := range []struct {
		name  string
		cfg   Config
		setUp func(r *rig)
	}{
		{"paused", Config{ManualRead: true}, func(*rig) {}},
		{"half-closed by peer", Config{HalfClose: true}, func(r *rig) { r.readable(readStep{eof: true}) }},
		{"auto-read off", Config{}, func(r *rig) { r.do(func() { r.SetAutoRead(false) }) }},
		{"file under way", Config{ManualRead: true}, func(r *rig) {
			r.k.cold = true
			r.m.Enter(func() { r.Write(buffer.NewFileRegion(tempFile(r.t, "x"), 0, 1)); r.Flush() })
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, rigConfig{Config: tt.cfg})
			tt.setUp(r)
			handled := 0
			for range 5 {
				before := r.Loop().Metrics().Events
				r.m.Ready(scriptFD, broken)
				r.m.Turn()
				handled += int(r.Loop().Metrics().Events - before)
				if r.at == streamClosed {
					break
				}
			}
			if handled > 1 {
				t.Errorf("events handled: got %d, want 1 at most", handled)
			}
		})
	}
}

// A channel that left the poller because of a hangup comes back to read it.
func TestHangupWhilePausedIsReadLater(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{ManualRead: true}})
	r.log = nil
	r.k.in = []readStep{{data: "rest"}, {eof: true}}
	r.ready(eventloop.EventHangup)
	r.wantLog()
	r.do(r.Read)
	r.ready(eventloop.EventHangup)
	r.wantLog("read rest", "complete")
	r.do(r.Read)
	r.ready(eventloop.EventHangup)
	r.wantLog("complete", "inactive", "unregistered")
}

// A half-closed channel whose peer goes away altogether, or resets, has nothing left to
// wait for: nobody would read or write and so find out.
func TestGoneWhileHalfClosed(t *testing.T) {
	const gone = eventloop.EventHangup | eventloop.EventReadHangup
	for _, tt := range []struct {
		name   string
		err    error
		ev     eventloop.Event
		want   []string
		reason error
	}{
		{"closed", nil, gone, []string{"inactive", "unregistered"}, io.EOF},
		{"reset", os.NewSyscallError("connect", syscall.EPIPE), gone | eventloop.EventError,
			[]string{"error transport: write: broken pipe", "inactive", "unregistered"}, syscall.EPIPE},
		{"an error that is none", nil, eventloop.EventError, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, rigConfig{Config: Config{HalfClose: true}})
			r.readable(readStep{eof: true})
			r.log = nil
			r.k.pending = tt.err
			r.ready(tt.ev)
			r.wantLog(tt.want...)
			if got := r.CloseReason(); !errors.Is(got, tt.reason) {
				t.Errorf("close reason: got %v, want %v", got, tt.reason)
			}
		})
	}
}

func TestLoopEnds(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	var result error
	r.do(func() {
		r.k.take = []takeStep{{n: 1}}
		r.WriteThen(pooled("abc"), func(err error) { result = err })
	})
	r.m.Close()
	r.wantLog("inactive", "unregistered")
	if !errors.Is(result, ErrLoopEnded) {
		t.Errorf("queued write: got %v, want ErrLoopEnded", result)
	}
	b := pooled("after")
	r.WriteThen(b, func(err error) { result = err })
	if b.Refs() != 0 || !errors.Is(result, pipeline.ErrClosed) {
		t.Errorf("write after the end: %d references, %v; want 0, ErrClosed", b.Refs(), result)
	}
}

// Where the last Op has ended and the close sleeps, on a worker, the socket is that
// worker's. The time for which the Op would have been waited for may end meanwhile: by
// then the descriptor may be closed, and its number somebody else's.
func TestSlowCloseAfterSlowOp(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{CloseTimeout: time.Second}})
	r.k.cold, r.k.sleeps = true, true
	r.k.sendfile = func() {
		// The Op ends, and with it, in the same turn, the time.
		r.m.Advance(2 * time.Second)
	}
	r.log = nil
	var done []error
	r.do(func() {
		r.WriteThen(buffer.NewFileRegion(tempFile(t, letters(100)), 0, 100), func(err error) { done = append(done, err) })
	})
	r.m.Enter(func() { r.Abort(pipeline.CloseNow, errPipe) })
	if r.reg.Ops() != 1 || r.k.closes != 0 {
		t.Fatalf("got %d Ops, closed %d times; want one Op under way and an open socket", r.reg.Ops(), r.k.closes)
	}
	r.m.Turn() // ends the Op, and gives the close to a worker
	if r.k.closes != 0 {
		t.Fatal("closed on the loop, although that sleeps")
	}
	r.wantLog()
	r.m.RunUntilIdle()
	r.m.Advance(time.Minute)
	if r.k.disconnects != 0 || r.k.resets != 0 {
		t.Errorf("a socket that is a worker's: got %d disconnects and %d resets, want none", r.k.disconnects, r.k.resets)
	}
	if r.k.closes != 1 {
		t.Errorf("closed %d times, want once", r.k.closes)
	}
	if n := r.logs.FilterMessageSnippet("does not end").Len(); n != 0 {
		t.Errorf("got %d lines in the log of an Op that does not end, want none", n)
	}
	r.wantLog("inactive", "unregistered")
	if len(done) != 1 || !errors.Is(done[0], errPipe) {
		t.Errorf("completions: got %v, want ErrClosed with %v once", done, errPipe)
	}
}
