//go:build linux

package transport

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// wrapped returns a message of n bytes and whether its memory has been given back.
func wrapped(n int) (b *buffer.Buf, released *bool) {
	released = new(bool)
	return buffer.Wrap(func() { *released = true }, []byte(letters(n))), released
}

// A write is complete when the kernel has taken it; its memory stays lent, and charged,
// until it is confirmed.
func TestZeroCopySend(t *testing.T) {
	b := &Budget{Limit: -1}
	r := newLendingRig(t, rigConfig{Config: Config{Budget: b, HighWater: 40_000, LowWater: 10_000}})
	msg, released := wrapped(20_000)
	complete := false
	r.do(func() { r.WriteThen(msg, func(err error) { complete = err == nil }) })
	r.wantOut(letters(20_000))
	if !complete || r.z.lent != 20_000 || r.z.plain != 0 {
		t.Fatalf("complete %v, lent %d and copied %d; want true, 20000 and 0", complete, r.z.lent, r.z.plain)
	}
	if *released || r.out.charge < 20_000 || !r.Writable() {
		t.Errorf("released %v, charge %d, writable %v; want false, 20000 at least, true", *released, r.out.charge, r.Writable())
	}
	second, released2 := wrapped(30_000)
	r.do(func() { r.Write(second) })
	r.wantLog("writable false")
	if ev := r.interest(); ev != 0 { // an accepted channel: confirmations come all the same
		t.Errorf("interest while unwritable: got %v, want none", ev)
	}
	r.z.confirm(0, 0)
	r.hear()
	if !*released || *released2 {
		t.Errorf("after the first confirmation: released %v and %v, want true and false", *released, *released2)
	}
	r.wantLog()
	r.z.confirm(0, 0)
	r.hear()
	r.wantLog("writable true")
	if !*released2 || r.out.charge != 0 || r.BytesBeforeUnwritable() < 40_000 {
		t.Errorf("after both: released %v, charge %d, %d before unwritable", *released2, r.out.charge, r.BytesBeforeUnwritable())
	}
	if ev := r.interest(); ev != reads {
		t.Errorf("interest in the end: got %v, want %v", ev, reads)
	}
}

// The budget counts what is lent, and squeezes and closes for it.
func TestLentMemoryIsInTheBudget(t *testing.T) {
	b := &Budget{Limit: 100_000}
	r := newLendingRig(t, rigConfig{Config: Config{Budget: b}})
	r.do(func() { r.Write(pooled(letters(30_000))) })
	if got := b.Stats().Queued; got < 30_000 {
		t.Errorf("queued: got %d, want 30000 at least", got)
	}
	r.z.confirmAll()
	r.hear()
	if got := b.Stats().Queued; got != 0 {
		t.Errorf("queued when confirmed: got %d, want 0", got)
	}
	r.do(func() { r.Write(pooled(letters(90_000))) })
	r.do(func() { r.Write(pooled(letters(90_000))) })
	r.m.RunUntilIdle()
	if !errors.Is(r.CloseReason(), ErrSlowPeer) || b.Stats().Queued != 0 {
		t.Errorf("got close reason %v and %d queued, want ErrSlowPeer and 0", r.CloseReason(), b.Stats().Queued)
	}
}

func TestWhenZeroCopyIsUsed(t *testing.T) {
	page := sys.PageSize()
	for _, tt := range []struct {
		name         string
		threshold    int
		refusal      error
		before       zeroCopyUse
		bytes, parts int
		want         zeroCopyUse
		asked        int
	}{
		{name: "off", threshold: -1, bytes: 1 << 20, parts: 1, want: zeroCopyOff},
		{name: "below", threshold: 10_000, bytes: 9_999, parts: 1, want: zeroCopyShort},
		{name: "at the threshold", threshold: 10_000, bytes: 10_000, parts: 1, want: zeroCopyUsed, asked: 1},
		{name: "header and body", threshold: 5_000, bytes: 2 * page, parts: 2, want: zeroCopyUsed, asked: 1},
		{name: "many small ones", threshold: 10_000, bytes: 8*page - 1, parts: 8, want: zeroCopyScattered},
		{name: "ENOPROTOOPT", threshold: 1, refusal: syscall.ENOPROTOOPT, bytes: page, parts: 1, want: zeroCopyRefused, asked: 1},
		{name: "EPERM", threshold: 1, refusal: syscall.EPERM, bytes: page, parts: 1, want: zeroCopyRefused, asked: 1},
		{name: "somebody else's", threshold: 1, refusal: syscall.EBUSY, bytes: page, parts: 1, want: zeroCopyRefused, asked: 1},
		{name: "refused before", threshold: 1, before: zeroCopyRefused, bytes: page, parts: 1, want: zeroCopyRefused},
		{name: "copied before", threshold: 1, before: zeroCopyCopied, bytes: page, parts: 1, want: zeroCopyCopied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newLendingRig(t, rigConfig{})
			cfg := *r.cfg
			cfg.ZeroCopy = max(tt.threshold, 0)
			r.cfg = &cfg
			r.z.refusal = tt.refusal
			if tt.before != zeroCopyUntried {
				r.needRare().zc = &zeroCopy{able: tt.before}
			}
			for range 2 {
				if got := r.useZeroCopy(tt.bytes, tt.parts); got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			}
			if r.z.enabled != tt.asked {
				t.Errorf("the socket was asked %d times, want %d", r.z.enabled, tt.asked)
			}
		})
	}
	t.Run("pipe", func(t *testing.T) {
		r := newRig(t, rigConfig{Config: Config{ZeroCopy: 1}})
		if got := r.useZeroCopy(1<<20, 1); got != zeroCopyNotTCP {
			t.Errorf("got %q, want %q", got, zeroCopyNotTCP)
		}
	})
	for u := zeroCopyUntried; u <= zeroCopyNoRoom; u++ {
		if u.String() == "unknown" {
			t.Errorf("reason %d has no words", u)
		}
	}
}

// Without room for one more call the write is copied, and the next one is not.
func TestZeroCopyWithoutRoom(t *testing.T) {
	r := newLendingRig(t, rigConfig{})
	r.z.noRoom = 1
	for range 2 {
		r.do(func() { r.Write(pooled(letters(10_000))) })
	}
	r.wantOut(letters(10_000) + letters(10_000))
	if r.z.plain != 10_000 || r.z.lent != 10_000 {
		t.Errorf("copied %d and lent %d, want 10000 each", r.z.plain, r.z.lent)
	}
	r.wantLog()
}

// ENOBUFS comes of calls that are not confirmed: those that are by now are taken back.
func TestWithoutRoomConfirmationsAreRead(t *testing.T) {
	r := newLendingRig(t, rigConfig{})
	msg, released := wrapped(10_000)
	r.do(func() { r.Write(msg) })
	r.z.confirmAll()
	r.z.noRoom = 1
	r.do(func() { r.Write(pooled(letters(10_000))) })
	if !*released || r.out.charge != 0 {
		t.Errorf("released %v, charge %d; want true and 0", *released, r.out.charge)
	}
}

// When the kernel says that it has copied, the channel goes on without.
func TestKernelCopies(t *testing.T) {
	r := newLendingRig(t, rigConfig{})
	for range 3 {
		r.do(func() { r.Write(pooled(letters(10_000))) })
	}
	r.z.confirm(0, 2)
	r.z.queue[0].Copied = true
	r.hear()
	if r.out.charge != 0 {
		t.Errorf("charge: got %d, want 0", r.out.charge)
	}
	r.do(func() { r.Write(pooled(letters(10_000))) })
	if r.z.plain != 10_000 || r.z.lent != 30_000 {
		t.Errorf("copied %d and lent %d, want 10000 and 30000", r.z.plain, r.z.lent)
	}
}

// Confirmations are read before a flush when there are many, so that a channel that
// writes and never comes back to the poller does not run out of room.
func TestManyUnconfirmed(t *testing.T) {
	r := newLendingRig(t, rigConfig{Config: Config{ManualFlush: true}})
	most := 0
	r.do(func() {
		for range 200 {
			r.Write(pooled(letters(10_000)))
			r.Flush()
			most = max(most, r.rare.zc.unconfirmed())
			r.z.confirmAll()
		}
	})
	r.m.RunUntilIdle()
	if most > mostUnconfirmed {
		t.Errorf("unconfirmed: got up to %d, want %d at most", most, mostUnconfirmed)
	}
	if r.z.lent != 2_000_000 {
		t.Errorf("lent: got %d, want 2000000", r.z.lent)
	}
}

// Whatever the kernel takes at a time, and however it confirms, the bytes leave in order,
// once, and stay as they are until they are confirmed.
func TestZeroCopyShortWrites(t *testing.T) {
	content := letters(700)
	for _, step := range []int{1, 7, 100, 1000, 4096, 5000, 12_345, 70_000} {
		for _, order := range []string{"at once", "late", "backwards", "every other"} {
			t.Run(fmt.Sprintf("%d, %s", step, order), func(t *testing.T) {
				r := newLendingRig(t, rigConfig{Config: Config{ZeroCopy: 1}})
				var want string
				r.do(func() {
					for i, n := range []int{9000, 3, 20_000, 40, 1100, 5000, 30, 12_000} {
						s := letters(n + i)[i:]
						want += s
						r.Write(pooled(s))
						if i%3 == 0 {
							r.Write(buffer.NewFileRegion(tempFile(t, content), int64(i), 300))
							want += content[i : i+300]
						}
						r.k.take = append(r.k.take, takeStep{n: step})
					}
					r.Write(buffer.Compose(pooled(letters(6000)), pooled("-"), pooled(letters(7000))))
					want += letters(6000) + "-" + letters(7000)
					for i := 0; i < len(want) && i/step < 4000; i += step {
						r.k.take = append(r.k.take, takeStep{n: step})
					}
				})
				for i := 0; i < 10*len(want) && r.k.out.Len() < len(want); i++ {
					switch n := len(r.z.calls); {
					case order == "at once":
						r.z.confirmAll()
					case order == "backwards" && n > 10:
						for i := n - 1; i >= 0; i-- {
							r.z.confirm(i, i)
						}
					case order == "every other" && n > 10:
						for i := 0; i < len(r.z.calls); i++ {
							r.z.confirm(i, i)
						}
					}
					ev := r.interest() & eventloop.EventWrite
					if len(r.z.queue) > 0 {
						ev |= eventloop.EventError
					}
					r.ready(ev)
				}
				r.m.RunUntilIdle()
				r.wantOut(want)
				if r.z.lent == 0 {
					t.Error("nothing was lent")
				}
				r.z.confirmAll()
				r.hear()
				if r.out.charge != 0 || r.rare.zc.unconfirmed() != 0 {
					t.Errorf("at the end: charge %d, %d calls", r.out.charge, r.rare.zc.unconfirmed())
				}
			})
		}
	}
}

// A mapped file is unmapped when the kernel is done with it.
func TestZeroCopyOfAMappedFile(t *testing.T) {
	f := tempFile(t, letters(50_000))
	defer f.Close()
	b, err := buffer.MapFile(f, 100, 40_000)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	live := buffer.Live()
	r := newLendingRig(t, rigConfig{})
	r.do(func() { r.Write(b) })
	if r.z.lent != 40_000 || buffer.Live() < live {
		t.Errorf("lent %d, %d buffers live; want 40000 and %d", r.z.lent, buffer.Live(), live)
	}
	r.z.look() // faults if it is not there any more
	r.z.confirmAll()
	r.hear()
	if n := buffer.Live(); n >= live {
		t.Errorf("live buffers when confirmed: got %d, want fewer than %d", n, live)
	}
}

// An error that is no more than confirmations is none, whatever the channel is doing; what
// is behind them is judged when it is reported again.
func TestConfirmationsAreNoError(t *testing.T) {
	for _, tt := range []struct {
		name  string
		cfg   Config
		setUp func(r *lendingRig)
	}{
		{"reading", Config{}, func(*lendingRig) {}},
		{"paused", Config{ManualRead: true}, func(*lendingRig) {}},
		{"half-closed by the peer", Config{HalfClose: true}, func(r *lendingRig) { r.readable(readStep{eof: true}) }},
		{"half-closed by itself", Config{HalfClose: true}, func(r *lendingRig) { r.do(r.CloseWrite) }},
		{"with a full socket", Config{}, func(r *lendingRig) {
			r.do(func() {
				r.k.take = []takeStep{{n: 1}, {err: sys.ErrAgain}}
				r.Write(pooled(letters(3000)))
			})
		}},
		{"with a file under way", Config{ManualRead: true}, func(r *lendingRig) {
			r.k.cold = true
			r.m.Enter(func() { r.Write(buffer.NewFileRegion(tempFile(r.t, "x"), 0, 1)); r.Flush() })
		}},
		{"relayed", Config{}, func(r *lendingRig) {
			other, _ := scriptedEnd(r.t, r.m, scriptFD+1, true)
			r.do(func() { must1(r.t, new(Relay).Start(pipeline.Find[*writer](r.Pipeline()), other)) })
		}},
		{"received into a file", Config{}, func(r *lendingRig) {
			r.m.Enter(func() {
				must1(r.t, new(FileReceiver).start(pipeline.Find[*writer](r.Pipeline()), &scriptFile{}, -1, func(int64, error) {}))
			})
			r.m.RunUntilIdle()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newLendingRig(t, rigConfig{Config: tt.cfg}, new(writer))
			msg, released := wrapped(10_000)
			r.do(func() { r.Write(msg) })
			tt.setUp(r)
			r.log = nil
			calls, interest := r.k.calls, r.interest()
			r.z.confirmAll()
			r.m.Ready(scriptFD, eventloop.EventError)
			r.m.Turn()
			if !*released {
				t.Error("not released")
			}
			if r.k.calls != calls && !r.k.cold {
				t.Errorf("read or wrote: got %d calls, want %d", r.k.calls, calls)
			}
			if r.hangup || r.at != streamOpen || r.interest() != interest {
				t.Errorf("judged an error: hangup %v, state %d, interest %v, want %v", r.hangup, r.at, r.interest(), interest)
			}
			r.wantLog()
		})
	}
}

// An event may be on its way while something else reads the confirmations: it is no
// error either, and one that is is judged when it comes again.
func TestErrorEventBehindItsConfirmations(t *testing.T) {
	r := newLendingRig(t, rigConfig{Config: Config{HalfClose: true}})
	r.readable(readStep{eof: true})
	r.log = nil
	r.do(func() { r.Write(pooled(letters(10_000))) })
	r.z.confirmAll()
	r.m.Enter(func() { r.unconfirmed() })
	r.hear()
	if r.hangup {
		t.Error("judged an error: the descriptor has left the poller")
	}
	r.k.pending = os.NewSyscallError("connect", syscall.EPIPE)
	r.ready(eventloop.EventError | eventloop.EventHangup)
	r.wantLog("error transport: write: broken pipe", "inactive", "unregistered")
}

// The descriptor may have left the poller, because of a hangup or of a report that came
// late: confirmations are found all the same.
func TestConfirmationsOutOfThePoller(t *testing.T) {
	r := newLendingRig(t, rigConfig{Config: Config{ManualRead: true}})
	msg, released := wrapped(10_000)
	second, released2 := wrapped(10_000)
	r.do(func() { r.Write(msg); r.Flush(); r.Write(second) })
	r.ready(eventloop.EventError | eventloop.EventHangup)
	if !r.hangup || *released {
		t.Fatalf("hangup %v, released %v; want true and false", r.hangup, *released)
	}
	r.z.confirm(0, 0)
	r.m.Advance(confirmationsCheck)
	if !*released {
		t.Error("not released")
	}
	r.m.Advance(10 * confirmationsCheck)
	r.z.confirm(0, 0)
	r.m.Advance(confirmationsCheck)
	if !*released2 {
		t.Error("the second one is not released")
	}
	timers := r.Loop().Metrics().TimersFired
	r.m.Advance(10 * confirmationsCheck)
	if n := r.Loop().Metrics().TimersFired - timers; n != 0 {
		t.Errorf("timers when all is confirmed: got %d, want 0", n)
	}
}

// Whenever the last confirmation comes in the life of a channel that is closed by its
// user, it is closed once, in order, and its memory is released then and not before.
func TestConfirmedWhileClosing(t *testing.T) {
	const timeout = time.Second
	moments := []struct {
		name string
		do   func(r *lendingRig)
		at   streamState // the state that it leads to while nothing is confirmed
	}{
		{"written", func(*lendingRig) {}, streamOpen},
		{"closing, with a queue", func(r *lendingRig) {
			r.do(func() {
				r.k.take = []takeStep{{n: 1}}
				r.Write(pooled("queued"))
				r.Close()
			})
		}, streamClosing},
		{"lingering", func(r *lendingRig) { r.ready(eventloop.EventWrite) }, streamLingering},
		{"the peer speaks", func(r *lendingRig) { r.readable(readStep{data: "x"}) }, streamLingering},
		{"the peer has ended", func(r *lendingRig) { r.readable(readStep{eof: true}) }, streamLingering},
		{"a hangup", func(r *lendingRig) { r.ready(eventloop.EventHangup | eventloop.EventReadHangup) }, streamLingering},
		{"a while later", func(r *lendingRig) { r.m.Advance(timeout / 2) }, streamLingering},
		{"more acknowledged, but not all", func(r *lendingRig) { r.z.outq--; r.m.Advance(timeout) }, streamLingering},
		{"no progress", func(r *lendingRig) { r.m.Advance(2 * timeout) }, streamClosed},
	}
	for last := range moments {
		for _, device := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, device %v", moments[last].name, device), func(t *testing.T) {
				r := newLendingRig(t, rigConfig{Config: Config{CloseTimeout: timeout}})
				r.z.outq, r.z.device = 1000, device
				r.k.left = true
				msg, released := wrapped(10_000)
				r.do(func() { r.Write(msg) })
				for i := range last + 1 {
					moments[i].do(r)
					if r.at != moments[i].at {
						t.Fatalf("%s: state %d, want %d", moments[i].name, r.at, moments[i].at)
					}
				}
				timedOut := r.at == streamClosed
				if timedOut {
					if !errors.Is(r.CloseReason(), ErrCloseTimeout) || r.k.disconnects != 1 {
						t.Errorf("close reason %v and %d resets, want ErrCloseTimeout and 1", r.CloseReason(), r.k.disconnects)
					}
					r.wantLog("inactive", "unregistered")
					if *released == device || (r.k.closes != 0) == device {
						t.Errorf("device %v: released %v, closed %d times", device, *released, r.k.closes)
					}
					quarantined.sweep(time.Now())
					if *released == device {
						t.Errorf("device %v: released %v after a sweep", device, *released)
					}
				} else if *released {
					t.Error("released before it was confirmed")
				}
				r.z.confirmAll()
				r.z.outq, r.k.left = 0, false
				if timedOut {
					quarantined.sweep(time.Now())
				} else {
					r.hear()
					if r.at == streamOpen {
						r.do(r.Close)
					}
					r.ready(eventloop.EventWrite)
					r.m.Advance(lingerCheck)
					if r.at == streamLingering { // for the rest of what the peer has to say
						r.readable(readStep{eof: true})
					}
					r.wantLog("inactive", "unregistered")
				}
				if !*released || r.k.closes != 1 {
					t.Errorf("released %v, closed %d times; want true and once", *released, r.k.closes)
				}
			})
		}
	}
}

// What ends a channel at once leaves its memory and its descriptor in quarantine. What was
// to reset the connection does so at once; else the kernel sends on, for as long as the
// peer takes something.
func TestQuarantine(t *testing.T) {
	for _, tt := range []struct {
		name  string
		end   func(r *lendingRig)
		reset bool
	}{
		{"reset", func(r *lendingRig) { r.do(r.Reset) }, true},
		{"an error of the socket", func(r *lendingRig) {
			r.readable(readStep{err: os.NewSyscallError("read", syscall.EHOSTUNREACH)})
		}, false},
		{"a handler's panic", func(r *lendingRig) { r.do(func() { r.WriteThen(pooled("x"), func(error) { panic("boom") }) }) }, false},
		{"the end of the loop", func(r *lendingRig) { r.m.Close() }, false},
		{"both directions closed", func(r *lendingRig) {
			r.do(r.CloseWrite)
			r.readable(readStep{eof: true})
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const timeout = time.Minute
			r := newLendingRig(t, rigConfig{Config: Config{CloseTimeout: timeout, HalfClose: true}})
			r.z.outq, r.z.device = 1000, true
			msg, released := wrapped(10_000)
			second, released2 := wrapped(10_000)
			before := Quarantine()
			r.do(func() { r.Write(msg); r.Flush(); r.Write(second) })
			tt.end(r)
			r.m.RunUntilIdle()
			if !isDone(r.Closed().Done()) || r.out.charge != 0 {
				t.Fatalf("closed %v, charge %d; want true and 0", isDone(r.Closed().Done()), r.out.charge)
			}
			if n := r.k.disconnects; (n == 1) != tt.reset {
				t.Errorf("reset %d times, want it to be %v", n, tt.reset)
			}
			if !tt.reset && !r.k.shut {
				t.Error("the peer is not told of the end")
			}
			if err := must(SyscallConn(r.stream)).Control(func(uintptr) {}); !errors.Is(err, pipeline.ErrClosed) {
				t.Errorf("the descriptor of a closed channel: got %v, want ErrClosed", err)
			}
			got := Quarantine()
			if got.Sockets != before.Sockets+1 || got.Total != before.Total+1 || got.Bytes < before.Bytes+20_000 {
				t.Errorf("in quarantine: got %+v, before %+v", got, before)
			}
			now := time.Now()
			r.z.confirm(0, 0)
			quarantined.sweep(now)
			if !*released || *released2 {
				t.Errorf("after the first confirmation: released %v and %v, want true and false", *released, *released2)
			}
			if n := Quarantine().Bytes - before.Bytes; n < 10_000 || n >= 20_000 {
				t.Errorf("bytes in quarantine: got %d, want 10000 at least", n)
			}
			if !tt.reset {
				now = now.Add(timeout - time.Second)
				r.z.outq--
				quarantined.sweep(now)
				quarantined.sweep(now.Add(timeout - time.Second))
				if r.k.disconnects != 0 {
					t.Error("reset although the peer takes something")
				}
				quarantined.sweep(now.Add(timeout))
				if r.k.disconnects != 1 {
					t.Errorf("resets: got %d after a minute without progress, want 1", r.k.disconnects)
				}
			}
			quarantined.sweep(now.Add(1000 * timeout))
			if *released2 || r.k.closes != 0 {
				t.Error("given up before it was confirmed")
			}
			r.z.confirm(0, 0)
			quarantined.sweep(now)
			if !*released2 || r.k.closes != 1 || Quarantine().Sockets != before.Sockets || Quarantine().Bytes != before.Bytes {
				t.Errorf("at the end: released %v, closed %d times, %+v", *released2, r.k.closes, Quarantine())
			}
		})
	}
}

// A dead connection has nothing lent: the kernel has dropped what it held, and said so.
func TestNoQuarantineForTheDead(t *testing.T) {
	r := newLendingRig(t, rigConfig{})
	total := Quarantine().Total
	r.do(func() { r.Write(pooled(letters(10_000))) })
	r.z.confirmAll()
	r.k.in = []readStep{{err: os.NewSyscallError("read", syscall.ECONNRESET)}}
	r.ready(eventloop.EventError | eventloop.EventHangup | eventloop.EventRead)
	r.m.RunUntilIdle()
	if r.k.closes != 1 || Quarantine().Total != total {
		t.Errorf("closed %d times, %d in quarantine; want once and none", r.k.closes, Quarantine().Total-total)
	}
}

// A release that panics in quarantine harms nobody else.
func TestPanicInQuarantine(t *testing.T) {
	r := newLendingRig(t, rigConfig{})
	msg, released := wrapped(10_000)
	r.z.device = true
	r.do(func() {
		r.Write(buffer.Wrap(func() { panic("boom") }, []byte(letters(10_000))))
		r.Flush()
		r.Write(msg)
	})
	r.do(r.Reset)
	r.z.confirmAll()
	quarantined.sweep(time.Now())
	if !*released || r.k.closes != 1 {
		t.Errorf("released %v, closed %d times; want true and once", *released, r.k.closes)
	}
	if n := r.logs.FilterMessageSnippet("cannot be released").Len(); n != 1 {
		t.Errorf("got %d lines in the log, want 1", n)
	}
}

// A release that panics, or ends its goroutine, when the channel gives up its socket keeps
// nobody from being told.
func TestPanicAtTheEnd(t *testing.T) {
	r := newLendingRig(t, rigConfig{})
	msg, released := wrapped(10_000)
	r.do(func() {
		r.Write(buffer.Wrap(func() { panic("boom") }, []byte(letters(10_000))))
		r.Flush()
		r.Write(msg)
	})
	r.do(r.Reset)
	r.m.RunUntilIdle()
	if !*released || r.k.closes != 1 || !isDone(r.Closed().Done()) {
		t.Errorf("released %v, closed %d times, told %v; want true, once and true", *released, r.k.closes, isDone(r.Closed().Done()))
	}
	r.wantLog("inactive", "unregistered")
}

// What is released when it is confirmed may be the user's, whose function writes, or
// closes the channel, wherever it is called.
func TestReleaseRunsUserCode(t *testing.T) {
	for _, what := range []string{"write", "close", "reset"} {
		for _, where := range []string{"event", "flush", "closing"} {
			t.Run(what+" at "+where, func(t *testing.T) {
				r := newLendingRig(t, rigConfig{})
				r.z.device = true
				act := func() {
					switch what {
					case "write":
						r.Write(pooled(letters(500)))
					case "close":
						r.Close()
					case "reset":
						r.Reset()
					}
				}
				r.do(func() {
					for range mostUnconfirmed {
						r.Write(buffer.Wrap(act, []byte(letters(10_000))))
						r.Flush()
					}
				})
				r.z.confirmAll()
				switch where {
				case "event":
					r.hear()
				case "flush":
					r.do(func() { r.Write(pooled("small")); r.Flush() })
				case "closing":
					r.k.left = true
					r.do(r.Close)
				}
				r.m.RunUntilIdle()
				r.do(r.Close)
				r.readable(readStep{eof: true})
				r.m.Advance(lingerCheck)
				if r.k.closes != 1 {
					t.Errorf("closed %d times, want once; state %d", r.k.closes, r.at)
				}
			})
		}
	}
}

// Explain says whether a message would be lent, and if not why; the counters how much was.
func TestExplainZeroCopy(t *testing.T) {
	r := newLendingRig(t, rigConfig{Config: Config{ZeroCopy: 10_000}})
	ask := func(n int) Explanation {
		b := pooled(letters(n))
		defer b.Release()
		return Explain(r.stream, b)
	}
	r.do(func() {
		if got := ask(20_000); got.Path != PathZeroCopy {
			t.Errorf("before it is tried: got %v, want %v", got, PathZeroCopy)
		}
		if r.z.enabled != 0 {
			t.Error("to be explained, it was tried")
		}
		if got := ask(9_999); got.Path != PathWrite || !strings.Contains(got.Reason, zeroCopyShort.String()) {
			t.Errorf("below the threshold: got %v, want %v because of it", got, PathWrite)
		}
		r.Write(pooled(letters(20_000)))
		r.Write(pooled(letters(500)))
	})
	if got, want := r.Loop().Counters().BytesZeroCopy, uint64(20_500); got != want {
		t.Errorf("got %d bytes lent in the counters, want %d", got, want)
	}
	r.zc().able = zeroCopyCopied
	r.do(func() {
		if got := ask(20_000); got.Path != PathWrite || !strings.Contains(got.Reason, zeroCopyCopied.String()) {
			t.Errorf("when the kernel copies: got %v, want %v because of it", got, PathWrite)
		}
	})
	r.z.confirmAll()
	r.hear()
}
