package transport

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// However many datagrams a call takes, they leave as they were written, in order, and
// each completion comes when its datagram has left.
func TestDatagramsLeaveInOrder(t *testing.T) {
	for step := 1; step <= 20; step++ {
		r := newDgramRig(t, rigConfig{})
		var want []string
		var done []int
		r.do(func() {
			for i := range 50 {
				content := strings.Repeat("x", i%3*i)
				r.WriteThen(to("a", content), func(err error) {
					if err != nil {
						t.Errorf("datagram %d: %v", i, err)
					}
					done = append(done, i)
				})
				if len(content) > 40 {
					content = fmt.Sprint(len(content), " bytes")
				}
				want = append(want, "a: "+content)
			}
			for range 60 {
				r.k.take = append(r.k.take, takeStep{n: step})
			}
		})
		r.m.RunUntilIdle()
		r.wantOut(want...)
		if len(done) != 50 || !slices.IsSorted(done) {
			t.Errorf("%d at a time: completions: got %v, want 0 to 49 in order", step, done)
		}
		if got := r.k.calls[0]; got != dgramBatch {
			t.Errorf("got %d datagrams in the first call, want %d", got, dgramBatch)
		}
		if pending := r.BytesBeforeUnwritable(); pending != r.HighWater()+1 {
			t.Errorf("at the end %d bytes before unwritable, want all of the mark", pending)
		}
	}
}

// Every kind of message that a connected channel sends keeps its bounds, and so does
// one of many parts or of none.
func TestDatagramMessages(t *testing.T) {
	r := newDgramRig(t, rigConfig{dialed: true})
	many := buffer.Compose()
	for range 1500 {
		many.Append(pooled("x"))
	}
	r.do(func() {
		r.Write("text")
		r.Write([]byte("bytes"))
		r.Write(pooled("buf"))
		r.Write(buffer.Compose(pooled("of two "), pooled("parts")))
		r.Write(many)
		r.Write("")
		r.Write(&Datagram{Content: pooled("datagram")})
		r.Write(&Datagram{})
	})
	r.wantOut(": text", ": bytes", ": buf", ": of two parts", ": 1500 bytes", ": ", ": datagram", ": ")
	r.wantLog()
}

// A datagram that fails does so alone: those behind it leave, and the channel stays
// open.
func TestDatagramFailsAlone(t *testing.T) {
	for _, e := range []error{syscall.EMSGSIZE, syscall.EPERM, syscall.EHOSTUNREACH, syscall.ENETUNREACH,
		syscall.ECONNREFUSED, syscall.ENOENT, syscall.EACCES, syscall.EINVAL, syscall.EPIPE} {
		err := os.NewSyscallError("sendmmsg", e)
		r := newDgramRig(t, rigConfig{})
		var got error
		r.k.take = []takeStep{{n: 1}, {err: err}, {err: err}}
		r.do(func() {
			r.Write(to("a", "1"))
			r.WriteThen(to("b", "2"), func(err error) { got = err })
			r.Write(to("c", "3"))
			r.Write(to("d", "4"))
		})
		r.m.RunUntilIdle()
		r.wantOut("a: 1", "d: 4")
		r.wantLog("error transport: write c: sendmmsg: " + e.Error())
		var op *OpError
		if !errors.As(got, &op) || op.Addr == nil || op.Addr.String() != "b" || !errors.Is(got, e) {
			t.Errorf("got %v, want a write *OpError for b of %v", got, e)
		}
		if !r.Open() {
			t.Errorf("%v: channel closed", e)
		}
	}
}

// A refusal belongs to an earlier datagram: the handlers are told, and the one that met
// it leaves all the same. Twice in a row it is taken to be its own.
func TestRefusalOfEarlierDatagram(t *testing.T) {
	refused := takeStep{err: os.NewSyscallError("sendmmsg", syscall.ECONNREFUSED)}
	r := newDgramRig(t, rigConfig{dialed: true})
	r.peer.addr = netip.MustParseAddrPort("192.0.2.1:9")
	r.k.take = []takeStep{refused, {n: 1}, refused, refused}
	var results []error
	r.do(func() {
		for _, s := range []string{"1", "2", "3"} {
			r.WriteThen(s, func(err error) { results = append(results, err) })
		}
	})
	r.m.RunUntilIdle()
	r.wantOut(": 1", ": 3")
	r.wantLog("error transport: write: sendmmsg: connection refused", "error transport: write: sendmmsg: connection refused")
	if len(results) != 3 || results[0] != nil || !errors.Is(results[1], syscall.ECONNREFUSED) || results[2] != nil {
		t.Errorf("got %v, want only the second refused", results)
	}
}

// A full socket is waited for; if it says that it is ready and is not, or if the
// device has no room, time is waited for, longer each time.
func TestDatagramsWaitWithoutSpinning(t *testing.T) {
	for _, tt := range []struct {
		name   string
		err    error
		ready  bool // the poller says so at once
		dialed bool
	}{
		{"full socket", sys.ErrAgain, false, false},
		{"full queue of the only receiver", sys.ErrAgain, true, true},
		{"no buffers", os.NewSyscallError("sendmmsg", syscall.ENOBUFS), true, false},
		{"no memory", os.NewSyscallError("sendmmsg", syscall.ENOMEM), true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newDgramRig(t, rigConfig{dialed: tt.dialed})
			for range 10_000 {
				r.k.take = append(r.k.take, takeStep{err: tt.err})
			}
			done := false
			r.do(func() {
				var msg any = "1"
				if !tt.dialed {
					msg = to("a", "1")
				}
				r.WriteThen(msg, func(err error) { done = err == nil })
			})
			for range 1000 { // ten seconds
				if tt.ready && r.interest()&eventloop.EventWrite != 0 {
					r.ready(eventloop.EventWrite)
				}
				r.do(r.Flush)
				r.m.Advance(10 * time.Millisecond)
			}
			want := 1
			if tt.ready {
				want = 120
			}
			if n := len(r.k.calls); n > want || done {
				t.Errorf("got %d calls in ten seconds, done %v; want at most %d and false", n, done, want)
			}
			r.k.take = nil
			r.m.Advance(maxDgramRest)
			r.ready(eventloop.EventWrite)
			name := "a"
			if tt.dialed {
				name = ""
			}
			if r.wantOut(name + ": 1"); !done {
				t.Error("not complete")
			}
			if ev := r.interest(); ev != reads {
				t.Errorf("interest at the end: got %v, want read", ev)
			}
			r.wantLog()
		})
	}
}

// Each turn sends its share and no more; the rest goes on in the next one.
func TestDatagramSendShare(t *testing.T) {
	r := newDgramRig(t, rigConfig{Config: Config{HighWater: 1 << 30}})
	const n = 3*maxWritesPerFlush*dgramBatch + 1
	r.m.Enter(func() {
		for range n {
			r.Write(to("a", "x"))
		}
	})
	for i, want := range []int{maxWritesPerFlush, 2 * maxWritesPerFlush, 3 * maxWritesPerFlush, 3*maxWritesPerFlush + 1} {
		r.m.Turn()
		if got := len(r.k.calls); got != want {
			t.Errorf("turn %d: got %d calls so far, want %d", i+1, got, want)
		}
	}
	r.m.RunUntilIdle()
	if len(r.k.out) != n {
		t.Errorf("got %d datagrams, want %d", len(r.k.out), n)
	}

	r = newDgramRig(t, rigConfig{dialed: true, Config: Config{HighWater: 1 << 30}})
	r.m.Enter(func() {
		for range 40 {
			r.Write(make([]byte, 60_000))
		}
	})
	r.m.Turn()
	if got := len(r.k.out); got < 16 || got > 34 {
		t.Errorf("got %d datagrams of 60,000 bytes in a turn, want about a MiB", got)
	}
	for _, n := range r.k.calls {
		if n*60_000 > sys.MaxRaw {
			t.Errorf("got %d bytes in a call, want at most %d", n*60_000, sys.MaxRaw)
		}
	}
	r.m.RunUntilIdle()
}

// A queue that is not taken makes the channel unwritable, pauses its reading, and is
// bounded.
func TestDatagramBackpressure(t *testing.T) {
	r := newDgramRig(t, rigConfig{Config: Config{HighWater: 10_000, LowWater: 5_000}})
	r.k.take = []takeStep{{err: sys.ErrAgain}}
	n := 0
	r.do(func() {
		for ; r.Writable(); n++ {
			r.Write(to("a", letters(100)))
		}
		r.SetAutoRead(true)
	})
	r.wantLog("writable false")
	if n < 20 || n > 100 {
		t.Errorf("unwritable after %d datagrams of 100 bytes, want 20 to 100", n)
	}
	if ev := r.interest(); ev != eventloop.EventWrite {
		t.Errorf("interest: got %v, want write only", ev)
	}
	r.ready(eventloop.EventWrite)
	r.wantLog("writable true")
	if len(r.k.out) != n {
		t.Errorf("got %d datagrams, want %d", len(r.k.out), n)
	}
	if ev := r.interest(); ev != reads {
		t.Errorf("interest: got %v, want read", ev)
	}

	r = newDgramRig(t, rigConfig{Config: Config{MaxPending: 50_000}})
	r.k.take = []takeStep{{err: sys.ErrAgain}}
	r.do(func() {
		for i := 0; r.Open() && i < 10_000; i++ {
			r.Write(to("a", letters(100)))
		}
	})
	r.m.RunUntilIdle()
	if !errors.Is(r.CloseReason(), ErrSlowPeer) {
		t.Errorf("close reason: got %v, want ErrSlowPeer", r.CloseReason())
	}
}

// What a handler writes when it is told that the queue is too long is refused.
func TestDatagramWriteInHandleError(t *testing.T) {
	var r *dgramRig
	told := 0
	r = newDgramRig(t, rigConfig{Config: Config{MaxPending: 50_000}}, pipeline.OnError(func(c *pipeline.Context, err error) {
		if told++; told < 10 {
			c.Write(to("a", "sorry"))
			c.Flush()
		}
		c.FireError(err)
	}))
	r.k.take = []takeStep{{err: sys.ErrAgain}}
	r.do(func() {
		for i := 0; r.Open() && i < 10_000; i++ {
			r.Write(to("a", letters(100)))
		}
	})
	if told != 1 {
		t.Errorf("HandleError: got %d calls, want 1", told)
	}
}

// Slices of one block that are queued one behind the other are charged for it once,
// and many parts of others' memory for all of it.
func TestDatagramCharge(t *testing.T) {
	r := newDgramRig(t, rigConfig{dialed: true, Config: Config{HighWater: 1 << 20}})
	r.k.take = []takeStep{{err: sys.ErrAgain}}
	block := pooled(letters(60_000))
	r.do(func() {
		for block.Len() > 0 {
			r.Write(block.ReadSlice(1200))
		}
		block.Release()
	})
	if got := r.out.charge; got < 60_000 || got > 80_000 {
		t.Errorf("50 slices of one block: charged %d, want about its size", got)
	}
}

func TestDatagramReads(t *testing.T) {
	cut := inDatagram{from: "c", data: "too long", cut: true}
	for _, tt := range []struct {
		name   string
		dialed bool
		in     []inDatagram
		want   []string
	}{
		{"one", false, from("a", "x"), []string{"read a: x", "complete"}},
		{"two peers and an empty one", false, append(from("a", "x", ""), from("b", "y")...),
			[]string{"read a: x", "read a: ", "read b: y", "complete"}},
		{"nobody's", false, from("", "x"), []string{"read : x", "complete"}},
		{"connected", true, from("a", "x", "", "y"), []string{"read x", "read ", "read y", "complete"}},
		{"truncated", false, append(append(from("a", "x"), cut), from("a", "y")...),
			[]string{"read a: x", "error transport: read c: transport: datagram is too long", "read a: y", "complete"}},
		{"truncated, connected", true, []inDatagram{cut}, []string{"error transport: read c: transport: datagram is too long", "complete"}},
		{"refused", true, []inDatagram{{err: os.NewSyscallError("recvmmsg", syscall.ECONNREFUSED)}},
			[]string{"complete", "error transport: read: recvmmsg: connection refused"}},
		{"refused behind one", true, append(from("a", "x"), inDatagram{err: os.NewSyscallError("recvmmsg", syscall.EHOSTUNREACH)}),
			[]string{"read x", "complete", "complete", "error transport: read: recvmmsg: no route to host"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newDgramRig(t, rigConfig{dialed: tt.dialed})
			r.readable(tt.in...)
			for len(r.k.in) > 0 {
				r.ready(eventloop.EventRead)
			}
			r.wantLog(tt.want...)
			r.readable(from("z", "more")...)
			if len(r.rec.log) != 2 || !strings.HasSuffix(r.rec.log[0], "more") {
				t.Errorf("afterwards: got %q, want it to go on", r.rec.log)
			}
		})
	}
}

// An error that is pending is told once, also while nothing is read or written.
func TestPendingDatagramError(t *testing.T) {
	r := newDgramRig(t, rigConfig{dialed: true, Config: Config{ManualRead: true}})
	r.k.pending = os.NewSyscallError("getsockopt", syscall.ECONNREFUSED)
	r.ready(eventloop.EventError)
	r.wantLog("error transport: write: getsockopt: connection refused")
	if !r.Open() || r.k.receives != 0 {
		t.Errorf("open %v, %d receives; want true and 0", r.Open(), r.k.receives)
	}
	r.ready(eventloop.EventHangup) // which nobody can do anything about
	r.wantLog()
	if !r.hangup {
		t.Error("a hangup that nobody waits for stays in the poller")
	}
	r.do(r.Read)
	r.readable(from("a", "x")...)
	r.wantLog("read x", "complete")
}

// An error that says nothing about a datagram ends the channel.
func TestBrokenDatagramSocket(t *testing.T) {
	r := newDgramRig(t, rigConfig{})
	r.readable(inDatagram{err: os.NewSyscallError("recvmmsg", syscall.ENOTCONN)})
	r.wantLog("complete", "error transport: read: recvmmsg: transport endpoint is not connected", "inactive", "unregistered")
	if r.Open() {
		t.Error("channel still open")
	}
}

// A turn reads its share; a channel that reads when asked gets one datagram each time.
func TestDatagramReadShare(t *testing.T) {
	r := newDgramRig(t, rigConfig{})
	const share = maxReadsPerTurn * dgramBatch
	for range share + 1 {
		r.k.in = append(r.k.in, inDatagram{data: "x"})
	}
	r.m.Ready(scriptFD, eventloop.EventRead)
	r.m.Turn()
	if got := len(r.rec.log); got != share+1 {
		t.Errorf("got %d events in a turn, want %d datagrams and the end", got, share)
	}
	r.rec.log = nil
	r.ready(eventloop.EventRead)
	r.wantLog("read : x", "complete")

	for range 40 {
		r.k.in = append(r.k.in, inDatagram{data: letters(60_000)})
	}
	r.m.Ready(scriptFD, eventloop.EventRead)
	r.m.Turn()
	if got := len(r.rec.log) - 1; got < 16 || got > 34 {
		t.Errorf("got %d datagrams of 60,000 bytes in a turn, want about a MiB", got)
	}
	r.ready(eventloop.EventRead)

	r = newDgramRig(t, rigConfig{Config: Config{ManualRead: true}})
	r.readable(from("a", "1", "2")...)
	r.wantLog()
	for _, want := range []string{"1", "2"} {
		r.do(r.Read)
		r.ready(eventloop.EventRead)
		r.wantLog("read a: "+want, "complete")
	}
	// A request that was not served yet stays.
	r.do(r.Read)
	r.ready(eventloop.EventRead)
	r.rec.log = nil
	r.readable(from("a", "3", "4")...)
	r.wantLog("read a: 3", "complete")
}

// Whatever a handler does amid a batch, what is left of it does not leak.
func TestHandlersAmidBatch(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(c *pipeline.Context)
		want []string
		open bool
	}{
		{"close", func(c *pipeline.Context) { c.Channel().Close() }, []string{"read a: 1", "complete", "inactive", "unregistered"}, false},
		{"reset", func(c *pipeline.Context) { c.Channel().Reset() }, []string{"read a: 1", "complete", "inactive", "unregistered"}, false},
		{"panic", func(*pipeline.Context) { panic("boom") }, []string{"error pipeline: panic in x: boom", "complete", "inactive", "unregistered"}, false},
		{"goexit", func(*pipeline.Context) { runtime.Goexit() }, nil, false},
		{"pause", func(c *pipeline.Context) { c.Channel().SetAutoRead(false) },
			[]string{"read a: 1", "read a: 2", "read a: 3", "complete"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := buffer.Live()
			h := pipeline.On(func(c *pipeline.Context, d *Datagram) error {
				if d.Content.EqualBytes([]byte("1")) {
					if tt.name == "panic" || tt.name == "goexit" {
						d.Release()
					}
					tt.do(c)
				}
				c.FireRead(d)
				return nil
			})
			r := newDgramRig(t, rigConfig{}, h)
			done := make(chan struct{})
			go func() { // which Goexit ends
				defer close(done)
				r.readable(from("a", "1", "2", "3")...)
			}()
			<-done
			r.m.RunUntilIdle()
			if tt.want != nil {
				for i, s := range r.rec.log {
					if strings.HasPrefix(s, "error pipeline: panic") {
						r.rec.log[i] = "error pipeline: panic in x: boom"
					}
				}
				r.wantLog(tt.want...)
			}
			if r.Open() != tt.open {
				t.Errorf("open: got %v, want %v", r.Open(), tt.open)
			}
			r.m.Close()
			if n := buffer.Live() - before; n != 0 {
				t.Errorf("got %d buffers left, want 0", n)
			}
		})
	}
}

// A close lets what was written leave first, and reads nothing meanwhile; it ends
// when it makes no progress.
func TestDatagramClose(t *testing.T) {
	var results []string
	write := func(r *dgramRig, name string) {
		r.WriteThen(to(name, "x"), func(err error) {
			switch {
			case err == nil:
				results = append(results, name+" left")
			case errors.Is(err, ErrCloseTimeout):
				results = append(results, name+" too late")
			case errors.Is(err, pipeline.ErrClosed):
				results = append(results, name+" dropped")
			default:
				results = append(results, err.Error())
			}
		})
	}
	for _, tt := range []struct {
		name string
		do   func(r *dgramRig)
		out  []string
		want []string
		err  error
	}{
		{"at once", func(r *dgramRig) {
			r.do(func() { write(r, "a"); r.Close(); write(r, "b") })
		}, []string{"a: x"}, []string{"a left", "b dropped"}, nil},
		{"behind a full socket", func(r *dgramRig) {
			r.k.take = []takeStep{{err: sys.ErrAgain}, {n: 1}, {err: sys.ErrAgain}}
			r.do(func() { write(r, "a"); write(r, "b"); r.Close() })
			r.readable(from("z", "unread")...)
			r.m.Advance(defaultCloseTimeout - 1)
			r.ready(eventloop.EventWrite)
			r.m.Advance(defaultCloseTimeout - 1) // it counts from the last progress
			r.ready(eventloop.EventWrite)
		}, []string{"a: x", "b: x"}, []string{"a left", "b left"}, nil},
		{"without progress", func(r *dgramRig) {
			r.k.take = []takeStep{{n: 1}, {err: sys.ErrAgain}}
			r.do(func() { write(r, "a"); write(r, "b"); r.Close() })
			r.m.Advance(2 * defaultCloseTimeout) // in the first some has left
		}, []string{"a: x"}, []string{"a left", "b too late"}, ErrCloseTimeout},
		{"in a pause", func(r *dgramRig) {
			r.k.take = []takeStep{{err: os.NewSyscallError("sendmmsg", syscall.ENOBUFS)}}
			r.do(func() { write(r, "a"); r.Close() })
			r.m.Advance(minDgramRest)
		}, []string{"a: x"}, []string{"a left"}, nil},
		{"reset", func(r *dgramRig) {
			r.k.take = []takeStep{{err: sys.ErrAgain}}
			r.do(func() { write(r, "a") })
			r.do(r.Close)
			r.do(r.Reset)
		}, nil, []string{"a dropped"}, pipeline.ErrReset},
		{"from a completion", func(r *dgramRig) {
			r.do(func() {
				r.WriteThen(to("a", "x"), func(error) { r.Reset() })
				write(r, "b")
				r.k.take = []takeStep{{n: 1}}
			})
		}, []string{"a: x"}, []string{"b dropped"}, pipeline.ErrReset},
		{"of the loop", func(r *dgramRig) {
			r.k.take = []takeStep{{err: sys.ErrAgain}}
			r.do(func() { write(r, "a") })
			r.m.Close()
		}, nil, []string{"a dropped"}, ErrLoopEnded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			results = nil
			r := newDgramRig(t, rigConfig{})
			tt.do(r)
			r.m.RunUntilIdle()
			r.wantOut(tt.out...)
			if !slices.Equal(results, tt.want) {
				t.Errorf("got %q, want %q", results, tt.want)
			}
			if reason := r.CloseReason(); !errors.Is(reason, pipeline.ErrClosed) || tt.err != nil && !errors.Is(reason, tt.err) {
				t.Errorf("close reason: got %v, want %v", reason, tt.err)
			}
			if r.k.closes != 1 {
				t.Errorf("socket closed %d times, want once", r.k.closes)
			}
			r.wantLog("inactive", "unregistered")
		})
	}
}

// What a channel cannot send it releases, says so, and goes on.
func TestDatagramMisuse(t *testing.T) {
	udp := netip.MustParseAddrPort("192.0.2.1:9")
	for _, tt := range []struct {
		name   string
		dialed bool
		msg    func() any
		want   error
	}{
		{"no address", false, func() any { return pooled("x") }, ErrUnsupportedMessage},
		{"a string", false, func() any { return "x" }, ErrUnsupportedMessage},
		{"an empty name", false, func() any { return to("", "x") }, ErrUnsupportedMessage},
		{"an address of another kind", false, func() any { return &Datagram{Content: pooled("x"), Addr: udp} }, ErrUnsupportedMessage},
		{"two addresses", false, func() any { return &Datagram{Content: pooled("x"), Addr: udp, Name: "a"} }, ErrUnsupportedMessage},
		{"an address on a connected one", true, func() any { return to("a", "x") }, ErrUnsupportedMessage},
		{"a region", true, func() any { return buffer.NewFileRegion(tempFile(t, "content"), 0, 7) }, ErrUnsupportedMessage},
		{"a number", true, func() any { return 42 }, ErrUnsupportedMessage},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := buffer.Live()
			r := newDgramRig(t, rigConfig{dialed: tt.dialed})
			var got error
			r.do(func() { r.WriteThen(tt.msg(), func(err error) { got = err }) })
			var op *OpError
			if !errors.As(got, &op) || op.Op != "write" || !errors.Is(got, tt.want) {
				t.Errorf("got %v, want a write *OpError of %v", got, tt.want)
			}
			r.wantOut()
			if !r.Open() {
				t.Error("channel closed")
			}
			r.m.Close()
			if n := buffer.Live() - before; n != 0 {
				t.Errorf("got %d buffers left, want 0", n)
			}
		})
	}

	r := newDgramRig(t, rigConfig{dialed: true})
	r.do(r.CloseWrite)
	if len(r.rec.log) != 1 || !strings.Contains(r.rec.log[0], "no sending side") || !r.Open() {
		t.Errorf("CloseWrite: got %q, open %v; want an error and an open channel", r.rec.log, r.Open())
	}
}

// A datagram of more parts than a call takes is copied. Without memory for that its write
// fails, once; all its parts are released, and the channel goes on.
func TestDatagramOfManyPartsWithoutMemory(t *testing.T) {
	const size = 64 // of a part
	pool, err := buffer.NewPool(buffer.PoolConfig{Limit: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	})
	r := newDgramRig(t, rigConfig{dialed: true, Config: Config{Allocator: pool, HighWater: 1 << 20}})
	block, err := pool.TryAlloc((sys.IOVMax + 1) * size)
	if err != nil {
		t.Fatal(err)
	}
	block.WriteString(letters((sys.IOVMax + 1) * size))
	var hold []*buffer.Buf
	for n := 1 << 20; n >= 1<<10; {
		b, err := pool.TryAlloc(n)
		if err != nil {
			n /= 2
			continue
		}
		hold = append(hold, b)
	}
	var results []error
	write := func(parts int) {
		r.do(func() {
			var slices []*buffer.Buf
			for i := range parts {
				slices = append(slices, block.Slice((parts-1-i)*size, size)) // in order they would be one part
			}
			r.WriteThen(buffer.Compose(slices...), func(err error) { results = append(results, err) })
		})
	}
	write(sys.IOVMax + 1)
	var op *OpError
	if len(results) != 1 || !errors.Is(results[0], buffer.ErrOutOfMemory) || !errors.As(results[0], &op) || op.Op != "write" {
		t.Errorf("without memory: got %v, want a write *OpError of ErrOutOfMemory, once", results)
	}
	if n := block.Refs(); n != 1 {
		t.Errorf("without memory: got %d references to the block of the parts, want ours only", n)
	}
	r.wantOut()
	if !r.Open() || r.out.charge != 0 || r.BytesBeforeUnwritable() != r.HighWater()+1 {
		t.Errorf("afterwards: got open %v, charge %d, and %d bytes before unwritable", r.Open(), r.out.charge, r.BytesBeforeUnwritable())
	}
	write(sys.IOVMax) // which needs no copy
	r.wantOut(fmt.Sprintf(": %d bytes", sys.IOVMax*size))
	for _, b := range hold {
		b.Release()
	}
	write(sys.IOVMax + 1)
	r.wantOut(fmt.Sprintf(": %d bytes", (sys.IOVMax+1)*size))
	if len(results) != 3 || results[1] != nil || results[2] != nil {
		t.Errorf("got %v, want the others to leave", results)
	}
	if n := block.Refs(); n != 1 {
		t.Errorf("at the end: got %d references to the block of the parts, want ours only", n)
	}
	block.Release()
	r.wantLog()
}

// While a pool is close to its limit, or has nothing at all, datagrams stay in the
// kernel.
func TestDatagramsWithoutMemory(t *testing.T) {
	a := &stingy{buffer.Heap, true}
	r := newDgramRig(t, rigConfig{Config: Config{Allocator: a}})
	r.readable(from("a", "late")...)
	r.wantLog("complete")
	if ev := r.interest(); ev != 0 {
		t.Errorf("interest while starved: got %v, want none", ev)
	}
	a.empty = false
	r.m.Advance(starvedRetry)
	r.ready(eventloop.EventRead)
	r.wantLog("read a: late", "complete")

	pool, err := buffer.NewPool(buffer.PoolConfig{Limit: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	})
	r = newDgramRig(t, rigConfig{Config: Config{Allocator: pool}})
	var hold []*buffer.Buf
	for {
		b, err := pool.TryAlloc(64 << 10)
		if err != nil {
			break
		}
		hold = append(hold, b)
	}
	r.readable(from("a", "late")...)
	r.wantLog()
	if ev := r.interest(); ev != 0 || r.k.receives != 0 {
		t.Errorf("under pressure: got interest %v and %d receives, want none", ev, r.k.receives)
	}
	for _, b := range hold {
		b.Release()
	}
	r.m.Advance(starvedRetry)
	r.ready(eventloop.EventRead)
	r.wantLog("read a: late", "complete")
}

// A short datagram does not pin the room it was received into; a long one is not
// copied.
func TestDatagramMemory(t *testing.T) {
	r := newDgramRig(t, rigConfig{dialed: true}, pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
		if n := b.Len(); b.Pinned() > 5*n+1000 {
			t.Errorf("a datagram of %d bytes pins %d", n, b.Pinned())
		}
		b.Release()
		return nil
	}))
	for _, n := range []int{0, 1, 10, 100, 1000, 10_000, 16 << 10, 16<<10 + 1, 60_000, 64 << 10} {
		r.readable(inDatagram{data: letters(n)})
	}
	for _, tt := range []struct{ max, size, slots int }{
		{1, 2 << 10, 16}, {1500, 2 << 10, 16}, {2049, 4 << 10, 16}, {64 << 10, 64 << 10, 16},
		{64<<10 + 1, 128 << 10, 8}, {1 << 20, 1 << 20, 1},
	} {
		size := dgramSlotSize(tt.max)
		if in := newDgramSlots(size); in.size != tt.size || len(in.slots) != tt.slots {
			t.Errorf("MaxDatagram %d: got %d slots of %d, want %d of %d", tt.max, len(in.slots), in.size, tt.slots, tt.size)
		}
	}
}

// The way of a datagram through a channel and back allocates nothing.
func TestDatagramAllocations(t *testing.T) {
	if invariant.Enabled {
		t.Skip("assertions allocate")
	}
	defer buffer.SetLeakLevel(buffer.SetLeakLevel(buffer.LeakSampled)) // at level all buffers are not used again
	r := newDgramRig(t, rigConfig{}, pipeline.On(func(c *pipeline.Context, d *Datagram) error {
		c.Write(d)
		return nil
	}))
	sent := 0
	r.sock = &reflector{dgramScript: r.k, sent: &sent}
	round := func() {
		r.m.Ready(scriptFD, eventloop.EventRead)
		r.m.Turn()
	}
	for range 100 {
		round()
	}
	const rounds = 200
	before := sent
	if n := testing.AllocsPerRun(rounds, round); n > 1 { // a pool may lose what it keeps
		t.Errorf("got %v allocations for a batch of %d datagrams, want 0", n, dgramBatch)
	}
	if n := sent - before; n != (rounds+1)*dgramBatch {
		t.Errorf("got %d datagrams sent, want %d", n, (rounds+1)*dgramBatch)
	}
}

// reflector is a socket that has a batch of datagrams to be read once in a while, and
// counts those that are sent.
type reflector struct {
	*dgramScript
	empty   bool
	sent    *int
	segment int
}

func (m *reflector) receive(in *dgramSlots, n, _ int) (int, error) {
	if m.empty = !m.empty; !m.empty {
		return 0, sys.ErrAgain
	}
	for i := range n {
		s := &in.slots[i]
		s.buf.WriteString("some content")
		s.addr, s.name, s.truncated = netip.AddrPort{}, "somebody", false
		s.to, s.segment = netip.AddrPort{}, m.segment
	}
	return n, nil
}

func (m *reflector) send(_ *dgramQueue, n int, _ *dgramParts) (int, error) {
	*m.sent += n
	return n, nil
}

func TestDatagramReferences(t *testing.T) {
	panics := func(f func()) (v any) {
		defer func() { v = recover() }()
		f()
		return nil
	}
	b := pooled("x")
	d := &Datagram{Content: b}
	d.Retain()
	if d.Pinned() != b.Pinned() || d.Release() || b.Refs() != 1 {
		t.Error("the first of two releases was the last")
	}
	if !d.Release() || b.Refs() != 0 {
		t.Errorf("the last release: got %d references to the content, want 0", b.Refs())
	}
	if panics(func() { d.Release() }) == nil || panics(d.Retain) == nil {
		t.Error("use after the last release: got no panic")
	}
	if (&Datagram{}).Pinned() != 0 {
		t.Error("a datagram without content pins memory")
	}

	// A channel takes its own reference only.
	r := newDgramRig(t, rigConfig{})
	kept := to("a", "kept")
	kept.Retain()
	r.do(func() { r.Write(kept) })
	r.wantOut("a: kept")
	if got := kept.Content.Refs(); got != 1 {
		t.Errorf("a datagram that was retained: got %d references to its content, want 1", got)
	}
	r.do(func() { r.Write(kept) })
	r.wantOut("a: kept")
	if v := panics(func() { kept.Release() }); v == nil {
		t.Error("a datagram that was written: got no panic, want it gone")
	}
	d = to("a", letters(5000))
	if got := pipeline.PendingSize(d, 0); got < 5000 {
		t.Errorf("pending size: got %d, want what it pins", got)
	}
	d.Release()
}
