package transport

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

var errPipe error = syscall.EPIPE

// conversation is a short life of a channel that makes every kind of call. Whatever
// goes wrong with one of them, run must not mind.
type conversation struct {
	name string
	cfg  rigConfig
	cold bool
	run  func(x *wireRig)
}

var conversations = []conversation{
	{name: "echo", run: func(x *wireRig) {
		x.onEvent = func(ev string) {
			if ev == "read" && x.writes < 20 {
				x.write(100, false)
			}
		}
		for range 3 {
			x.peerSends(letters(500))
			x.settle()
		}
		x.w.fin = true
		x.settle()
	}},
	{name: "buffers and files, in a socket that fills up", run: func(x *wireRig) {
		x.w.room = 1500
		x.do(func() {
			for i := range 4 {
				x.write(10+i, false)
				x.write(900, true)
				x.write(2000, false)
			}
		})
		for range 12 {
			x.w.room += 1100
			x.settle()
		}
		x.do(x.s.Close)
		x.settle()
	}},
	{name: "cold files", cold: true, run: func(x *wireRig) {
		x.w.room = 700
		x.do(func() { x.write(10, false); x.write(900, true); x.write(20, false); x.write(800, true) })
		for range 3 {
			x.w.room += 700
			x.settle()
		}
		x.do(x.s.Close)
		x.settle()
	}},
	{name: "reading by hand", cfg: rigConfig{Config: Config{ManualRead: true}}, run: func(x *wireRig) {
		for range 3 {
			x.peerSends(letters(3000))
			x.do(x.s.Read)
			x.settle()
		}
		x.w.fin = true
		for range 6 {
			x.do(x.s.Read)
			x.settle()
		}
	}},
	{name: "half-closed by the peer, then by itself", cfg: rigConfig{Config: Config{HalfClose: true}}, run: func(x *wireRig) {
		x.peerSends(letters(100))
		x.w.fin = true
		x.settle()
		x.w.room = 50
		x.do(func() { x.write(100, false); x.s.CloseWrite(); x.write(100, false) })
		x.w.room = 1000
		x.settle()
	}},
	{name: "half-closed by itself, then by the peer", run: func(x *wireRig) {
		x.do(func() { x.write(100, true); x.s.CloseWrite() })
		x.peerSends(letters(100))
		x.settle()
		x.w.fin = true
		x.settle()
	}},
	{name: "a close that lingers", run: func(x *wireRig) {
		x.do(func() { x.write(100, false); x.s.Close() })
		x.peerSends(letters(5000))
		x.settle()
		x.w.fin = true
		x.settle()
	}},
	{name: "flushes and a close inside a flush", cfg: rigConfig{Config: Config{ManualFlush: true, HighWater: 2000, LowWater: 500}}, run: func(x *wireRig) {
		full := func() {
			x.w.room = 100
			x.do(func() { x.write(3000, false); x.s.Flush() })
			x.w.room = 1 << 20
			x.settle()
		}
		x.onEvent = func(ev string) {
			if ev == "writable true" {
				x.write(300, false)
				x.s.Flush()
			}
		}
		full()
		x.onEvent = func(ev string) {
			if ev == "writable true" {
				x.s.Close()
			}
		}
		full()
	}},
	{name: "without copying", cfg: rigConfig{Config: Config{ZeroCopy: 4200}}, run: func(x *wireRig) {
		x.w.room = 6000
		x.do(func() {
			x.write(4500, false)
			x.write(40, false)
			x.write(300, true)
			x.write(4300, false)
		})
		for range 3 {
			x.w.room += 3000
			x.w.acked = len(x.w.out) / 2
			x.settle()
			x.do(func() { x.write(4200, false); x.write(4199, false) })
			x.settle()
		}
		x.w.room += 8000
		x.settle()
		x.w.room += 8000
		x.settle()
		x.peerSends(letters(500))
		x.settle()
		x.w.acked = len(x.w.out)
		x.w.room = 1 << 20
		x.settle()
		x.do(func() { x.write(6000, false); x.s.Close() })
		x.settle()
	}},
	{name: "without copying, half-closed", cfg: rigConfig{Config: Config{ZeroCopy: 4200, HalfClose: true, ManualRead: true}}, run: func(x *wireRig) {
		x.do(func() { x.write(5000, false) })
		x.w.fin = true
		x.do(x.s.Read)
		x.settle()
		x.do(func() { x.write(4300, false) })
		x.w.acked = 5000
		x.settle()
		x.do(func() { x.write(4400, false); x.s.CloseWrite() })
		x.settle()
	}},
	{name: "not writable, and the peer goes on", cfg: rigConfig{Config: Config{HighWater: 2000, LowWater: 500}}, run: func(x *wireRig) {
		x.w.room = 100
		x.do(func() { x.write(3000, false) })
		x.peerSends(letters(300))
		x.settle()
		x.w.room = 10_000
		x.settle()
		x.w.fin = true
		x.settle()
	}},
}

// faults are what can be wrong with a call. A fatal one ends the channel.
var faults = []struct {
	name  string
	limit int
	err   error
	fatal bool
}{
	{name: "takes 1 byte", limit: 1},
	{name: "takes 13 bytes", limit: 13},
	{name: "EAGAIN", err: sys.ErrAgain},
	{name: "ENOBUFS", err: syscall.ENOBUFS, fatal: true},
	{name: "ECONNRESET", err: syscall.ECONNRESET, fatal: true},
	{name: "EPIPE", err: syscall.EPIPE, fatal: true},
	{name: "EMFILE", err: syscall.EMFILE, fatal: true},
	{name: "ETIMEDOUT", err: syscall.ETIMEDOUT, fatal: true},
	// internal/sys starts an interrupted call again. If one came through it must do no
	// more harm than another error.
	{name: "EINTR", err: syscall.EINTR, fatal: true},
}

// Whichever call of a conversation goes wrong, and however: a short count or a false
// alarm changes nothing in the end, an error is told once and ends the channel with
// that reason; every completion and event comes once, in order, and nothing is left.
func TestFaultInEveryCall(t *testing.T) {
	for _, c := range conversations {
		t.Run(c.name, func(t *testing.T) {
			sound := talk(t, c, nil)
			if len(sound.errs) > 0 && !slices.ContainsFunc(sound.errs, func(err error) bool { return errors.Is(err, pipeline.ErrOutputShutdown) }) {
				t.Fatalf("errors without a fault: %v", sound.errs)
			}
			for i, call := range sound.w.calls {
				for _, f := range faults {
					if f.limit > 0 && (call == "shutdown" || call == "socketError") || f.err == sys.ErrAgain && call == "shutdown" {
						continue
					}
					t.Run(fmt.Sprintf("%s in call %d, %s", f.name, i, call), func(t *testing.T) {
						var hit *wireRig
						x := talk(t, c, func(x *wireRig) {
							hit = x
							x.w.fault = func(n int, _ string) (int, error) {
								if n != i {
									return 0, nil
								}
								if f.fatal {
									return 0, os.NewSyscallError(call, f.err)
								}
								return f.limit, f.err
							}
						})
						if hit == nil {
							t.Fatal("the fault has not come")
						}
						if f.fatal {
							wantFault(t, x, sound, call, f.err)
						} else {
							wantSame(t, x, sound)
						}
					})
				}
			}
		})
	}
}

// talk runs a conversation to its end.
func talk(t *testing.T, c conversation, prepare func(x *wireRig)) *wireRig {
	t.Helper()
	x := newWireRig(t, c.cfg)
	x.w.cold = c.cold
	if prepare != nil {
		prepare(x)
	}
	c.run(x)
	// The peer has read and acknowledged all, and closes.
	x.w.acked = len(x.w.out)
	x.w.fin = true
	x.m.Enter(func() { x.s.SetAutoRead(true) })
	x.settle()
	x.w.acked = len(x.w.out)
	x.m.Advance(time.Second)
	x.settle()
	x.finish()
	return x
}

// wantSame looks whether a conversation has had the same outcome as another.
func wantSame(t *testing.T, x, sound *wireRig) {
	t.Helper()
	if len(x.got) != len(sound.got) {
		t.Errorf("read: got %d bytes, want %d", len(x.got), len(sound.got))
	}
	// The echo answers each read, however many there are.
	if len(x.w.out) != len(x.written) || len(x.w.out) < len(sound.w.out) {
		t.Errorf("sent: got %d bytes of %d, want %d", len(x.w.out), len(x.written), len(sound.w.out))
	}
	if len(x.errs) != len(sound.errs) {
		t.Errorf("errors: got %v, want %v", x.errs, sound.errs)
	}
	if got, want := fmt.Sprint(x.s.CloseReason()), fmt.Sprint(sound.s.CloseReason()); got != want {
		t.Errorf("close reason: got %s, want %s", got, want)
	}
}

// wantFault looks whether a conversation has ended by an error of a call: told once,
// unless the channel was closing, when nobody waits for more than the close.
func wantFault(t *testing.T, x, sound *wireRig, call string, err error) {
	t.Helper()
	var own []error
	for _, e := range x.errs {
		if !errors.Is(e, pipeline.ErrOutputShutdown) {
			own = append(own, e)
		}
	}
	if len(own) == 0 {
		if got, want := fmt.Sprint(x.s.CloseReason()), fmt.Sprint(sound.s.CloseReason()); got != want {
			t.Errorf("an error of %s was not told, and the close reason is %s, want %s", call, got, want)
		}
		return
	}
	if len(own) != 1 || !errors.Is(own[0], err) {
		t.Errorf("errors: got %v, want %v once", own, err)
	}
	if got := x.s.CloseReason(); !errors.Is(got, err) || !errors.Is(got, pipeline.ErrClosed) {
		t.Errorf("close reason: got %v, want ErrClosed of %v", got, err)
	}
	for _, e := range x.told {
		if e != nil && !errors.Is(e, pipeline.ErrClosed) && !errors.Is(e, pipeline.ErrOutputShutdown) {
			t.Errorf("completion: got %v, want ErrClosed", e)
		}
	}
}

// gone are the ways in which a connection shows that it is over.
var gone = []struct {
	name string
	do   func(x *wireRig)
}{
	{"the peer ends", func(x *wireRig) { x.w.fin = true }},
	{"the peer resets", func(x *wireRig) { x.peerResets(os.NewSyscallError("read", syscall.ECONNRESET)) }},
	{"the peer hangs up without an error", func(x *wireRig) { x.peerResets(nil) }},
	{"an error is pending and the connection lives", func(x *wireRig) { x.w.rst = os.NewSyscallError("read", syscall.EHOSTUNREACH) }},
}

// pauses are the ways in which a channel stops reading and goes on.
var pauses = []struct {
	name          string
	cfg           rigConfig
	pause, resume func(x *wireRig)
}{
	{name: "AutoRead", pause: func(x *wireRig) { x.do(func() { x.s.SetAutoRead(false) }) },
		resume: func(x *wireRig) { x.do(func() { x.s.SetAutoRead(true) }) }},
	{name: "reading by hand", cfg: rigConfig{Config: Config{ManualRead: true}}, pause: func(*wireRig) {},
		resume: func(x *wireRig) { x.do(x.s.Read); x.settle(); x.do(x.s.Read) }},
	{name: "not writable", cfg: rigConfig{Config: Config{HighWater: 2000, LowWater: 500}},
		pause: func(x *wireRig) {
			x.w.room = 100
			x.do(func() { x.write(5000, false) })
		},
		resume: func(x *wireRig) { x.w.room = 1 << 20 }},
	{name: "half-closed by itself", cfg: rigConfig{Config: Config{HalfClose: true}},
		pause:  func(x *wireRig) { x.do(func() { x.s.SetAutoRead(false); x.s.CloseWrite() }) },
		resume: func(x *wireRig) { x.do(func() { x.s.SetAutoRead(true) }) }},
	{name: "half-closed by the peer", cfg: rigConfig{Config: Config{HalfClose: true}},
		pause: func(x *wireRig) { x.peerSends(letters(10)); x.w.fin = true; x.settle() }, resume: func(*wireRig) {}},
	{name: "with lent memory", cfg: rigConfig{Config: Config{ZeroCopy: 6000, ManualRead: true}},
		pause: func(x *wireRig) { x.do(func() { x.write(9000, false) }) },
		resume: func(x *wireRig) {
			x.w.acked = len(x.w.out)
			x.settle()
			x.do(x.s.Read)
			x.do(x.s.Read)
		}},
	{name: "a close that waits for lent memory", cfg: rigConfig{Config: Config{ZeroCopy: 6000}},
		pause:  func(x *wireRig) { x.do(func() { x.write(9000, false); x.s.Close() }) },
		resume: func(x *wireRig) { x.w.acked = len(x.w.out) }},
	{name: "a close that waits for its queue",
		pause: func(x *wireRig) {
			x.w.room = 100
			x.do(func() { x.write(5000, false); x.s.Close() })
		},
		resume: func(x *wireRig) { x.w.room = 1 << 20 }},
}

// The end of the connection, in every form, comes before, while and after reading is
// paused: with data waiting or without, the loop never spins, what can be read is read
// when it goes on, and the end is told once.
func TestGoneAtEveryMomentOfPausing(t *testing.T) {
	for _, p := range pauses {
		for _, g := range gone {
			for moment := range 6 {
				for _, data := range []int{0, 300, 200_000} {
					t.Run(fmt.Sprintf("%s, %s at moment %d, %d bytes", p.name, g.name, moment, data), func(t *testing.T) {
						x := newWireRig(t, p.cfg)
						step := 0
						now := func() { // the moments are between all steps
							if step == moment {
								g.do(x)
							}
							step++
						}
						now()
						p.pause(x)
						now()
						x.peerSends(letters(data))
						now()
						x.settle()
						now()
						x.turn()
						p.resume(x)
						now()
						x.settle()
						now()
						x.settle()
						x.m.Enter(func() { x.s.SetAutoRead(true) })
						x.w.room = 1 << 20
						x.settle()
						x.w.acked = len(x.w.out)
						if x.w.dead && x.s.at != streamClosed {
							t.Errorf("the connection is over and the channel is in state %d", x.s.at)
						}
						x.w.fin = true
						x.settle()
						x.m.Advance(time.Second)
						x.settle()
						if x.s.at != streamClosed && !x.s.cfg.HalfClose {
							t.Errorf("the peer has ended and the channel is in state %d", x.s.at)
						}
						if n := x.count("error"); n > 1 {
							t.Errorf("errors: got %v, want one at most", x.errs)
						}
						x.finish()
					})
				}
			}
		}
	}
}

// Of a kernel that takes as many bytes at a time as it likes, from 1 on, at every
// offset, the messages leave whole and in order: the same for what it gives to read.
func TestShortCallsEverywhere(t *testing.T) {
	for _, c := range conversations {
		t.Run(c.name, func(t *testing.T) {
			sound := talk(t, c, nil)
			step := 8
			if testing.Short() {
				step = 1
			}
			for limit := 1; limit < 60; limit += 1 + limit/step {
				x := talk(t, c, func(x *wireRig) {
					x.w.fault = func(i int, _ string) (int, error) { return limit + i%3, nil }
				})
				wantSame(t, x, sound)
				if t.Failed() {
					t.Fatalf("with up to %d bytes a call", limit+2)
				}
			}
		})
	}
}
