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

// dgramTalk is a short life of a channel of datagrams. Whatever goes wrong with a call, run
// must not mind.
type dgramTalk struct {
	name string
	cfg  Config
	run  func(x *dgramWireRig)
}

var dgramTalks = []dgramTalk{
	{name: "echo", run: func(x *dgramWireRig) {
		x.onEvent = func(ev string) {
			if ev == "read" && len(x.told) < 40 {
				x.write("peer")
			}
		}
		for _, n := range []int{1, 3, 20, 2} {
			x.peerSends(n)
			x.settle()
		}
	}},
	{name: "a socket that fills up", run: func(x *dgramWireRig) {
		x.w.room = 3
		x.do(func() {
			for i := range 25 {
				x.write([]string{"a", "b", "c"}[i%3])
			}
		})
		for range 5 {
			x.settle()
			x.w.room += 6
		}
		x.settle()
	}},
	{name: "not writable", cfg: Config{HighWater: 1500, LowWater: 500}, run: func(x *dgramWireRig) {
		x.w.room = 2
		x.peerSends(2)
		x.do(func() {
			for range 12 {
				x.write("a")
			}
		})
		x.peerSends(3)
		x.settle()
		x.w.room = 5
		x.settle()
		x.w.room = 100
		x.settle()
	}},
	{name: "reading by hand", cfg: Config{ManualRead: true}, run: func(x *dgramWireRig) {
		x.peerSends(4)
		for range 6 {
			x.do(x.read)
			x.pass(2 * starvedRetry) // a request is served once, however often it is made
		}
	}},
	{name: "an error that is pending, and one that is none", run: func(x *dgramWireRig) {
		x.w.pending = os.NewSyscallError("getsockopt", syscall.EHOSTUNREACH)
		x.settle()
		x.w.reports = true
		x.settle()
		x.do(func() { x.write("a"); x.write("b") })
		x.settle()
	}},
	{name: "writes and flushes inside a flush", cfg: Config{ManualFlush: true}, run: func(x *dgramWireRig) {
		x.onEvent = func(ev string) {
			if ev == "a completion" && len(x.told) < 30 {
				x.write("a")
				x.s.Flush()
			}
		}
		x.do(func() { x.write("a"); x.write("b"); x.write("a"); x.s.Flush() })
		x.settle()
	}},
	{name: "flushes when it is writable again", cfg: Config{ManualFlush: true, HighWater: 3000, LowWater: 500}, run: func(x *dgramWireRig) {
		x.onEvent = func(ev string) {
			if ev == "writable true" && len(x.told) < 30 {
				x.write("b")
				x.s.Flush()
			}
		}
		for range 2 {
			x.w.room = 1
			x.do(func() {
				for range 10 {
					x.write("a")
				}
				x.s.Flush()
			})
			x.w.room = 100
			x.settle()
		}
	}},
	{name: "a close with a queue", run: func(x *dgramWireRig) {
		x.w.room = 2
		x.do(func() {
			for range 20 {
				x.write("a")
			}
			x.s.Close()
		})
		x.settle()
		x.w.room = 4
		x.settle()
		x.w.room = 100
		x.settle()
	}},
}

// goOn lets a talk come to its end.
func goOn(t *testing.T, kind dgramKind, c dgramTalk, fault func(i int, call string) (int, error)) *dgramWireRig {
	t.Helper()
	x := newDgramWireRig(t, kind, c.cfg)
	x.w.fault = fault
	c.run(x)
	x.w.room = 1 << 30
	x.pass(time.Second) // what rests or starves goes on
	return x
}

// dgramCallErrors are what may be wrong with a call.
var dgramCallErrors = []syscall.Errno{
	syscall.EAGAIN, syscall.EINTR, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNRESET, syscall.EPIPE,
	syscall.EMFILE, syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.EPERM, syscall.EMSGSIZE, syscall.EINVAL,
}

// Every error in every call of a channel of datagrams has the effect that it has for
// datagrams: a lack is waited for, what an earlier one has met is told, one that cannot leave
// fails alone, and only an error of reading that says nothing about any ends the channel.
func TestFaultsOfDatagramCalls(t *testing.T) {
	for _, kind := range dgramKinds {
		for _, c := range dgramTalks {
			t.Run(fmt.Sprintf("%s, %s", kind, c.name), func(t *testing.T) {
				sound := goOn(t, kind, c, nil)
				calls := slices.Clone(sound.w.calls)
				sound.end()
				if len(calls) < 3 || t.Failed() {
					t.Fatalf("without faults: got calls %q", calls)
				}
				for i, call := range calls {
					for _, e := range dgramCallErrors {
						t.Run(fmt.Sprintf("%v in call %d, %s", e, i, call), func(t *testing.T) {
							err := error(os.NewSyscallError(call, e))
							if e == syscall.EAGAIN {
								err = sys.ErrAgain
							}
							hit := false
							x := goOn(t, kind, c, func(n int, name string) (int, error) {
								if n != i {
									return 0, nil
								}
								if hit = true; name != call {
									t.Errorf("call %d is %s", n, name)
								}
								return 0, err
							})
							if !hit {
								t.Fatal("the fault has not come")
							}
							wantDgramFault(t, x, sound, call, e)
							x.end()
						})
					}
				}
			})
		}
	}
}

// wantDgramFault looks whether an error of a call has had its effect, and no other.
func wantDgramFault(t *testing.T, x, sound *dgramWireRig, call string, e syscall.Errno) {
	t.Helper()
	lack := e == syscall.EAGAIN || e == syscall.ENOBUFS || e == syscall.ENOMEM
	tells, fails, closes := 0, 0, false // how often it is told, and by how many writes
	switch {
	case call == "socketError":
		tells = 1
	case lack:
	case call == "recvmmsg":
		tells, closes = 1, !slices.Contains(datagramErrors, error(e))
	case e == syscall.ECONNREFUSED && x.kind == udpDgram:
		tells = 1
	default:
		fails = 1
	}
	var told []error
	for _, err := range x.errs {
		if errors.Is(err, e) && e != syscall.EHOSTUNREACH || errors.Is(err, e) && err.(*OpError).Err.(*os.SyscallError).Syscall == call {
			told = append(told, err)
		}
	}
	if x.s.at == dgramClosed && errors.Is(sound.s.CloseReason(), pipeline.ErrClosed) && !closes {
		if got, want := fmt.Sprint(x.s.CloseReason()), fmt.Sprint(sound.s.CloseReason()); got != want {
			t.Errorf("close reason: got %s, want %s", got, want)
		}
	}
	if len(told) != tells {
		t.Errorf("errors: got %v, want the one of %s %d times", x.errs, call, tells)
	}
	if n := x.failed(); n != fails {
		t.Errorf("writes: got %d failed, want %d", n, fails)
	}
	if closes {
		if !errors.Is(x.s.CloseReason(), e) || !errors.Is(x.s.CloseReason(), pipeline.ErrClosed) {
			t.Errorf("close reason: got %v, want ErrClosed of %v", x.s.CloseReason(), e)
		}
		return
	}
	if len(x.got) != len(sound.got) {
		t.Errorf("read: got %d datagrams, want %d", len(x.got), len(sound.got))
	}
	// Who writes in a completion writes less often if one of them does not come.
	if got, want := len(x.w.out)+fails, len(x.told); got != want {
		t.Errorf("sent: got %d datagrams of %d", len(x.w.out), len(x.told))
	}
}

// An error that lasts, of all calls to send or to read, is met with patience: the loop comes to
// rest, and when it is over what was kept goes on.
func TestLastingFaultsOfDatagramCalls(t *testing.T) {
	for _, kind := range dgramKinds {
		for _, c := range dgramTalks {
			for _, call := range []string{"sendmmsg", "recvmmsg"} {
				for _, e := range dgramCallErrors {
					if call == "recvmmsg" && e != syscall.ENOBUFS && e != syscall.ENOMEM && e != syscall.EMFILE {
						continue // one error is of one datagram: it does not last
					}
					t.Run(fmt.Sprintf("%s, %s, %v of %s", kind, c.name, e, call), func(t *testing.T) {
						err := error(os.NewSyscallError(call, e))
						if e == syscall.EAGAIN {
							err = sys.ErrAgain
						}
						x := newDgramWireRig(t, kind, c.cfg)
						x.w.fault = func(_ int, name string) (int, error) {
							if name == call {
								return 0, err
							}
							return 0, nil
						}
						c.run(x)
						x.pass(300 * time.Millisecond)
						if n := len(x.w.calls); n > 200 {
							t.Errorf("got %d calls, want some", n)
						}
						x.end()
					})
				}
			}
		}
	}
}

// Of a kernel that gives and takes as few datagrams at a time as it likes, from 1 on, in one
// call or in all of them, they leave and come whole, once and in order.
func TestShortDatagramBatches(t *testing.T) {
	for _, kind := range dgramKinds {
		for _, c := range dgramTalks {
			t.Run(fmt.Sprintf("%s, %s", kind, c.name), func(t *testing.T) {
				sound := goOn(t, kind, c, nil)
				sound.end()
				check := func(what string, fault func(i int, call string) (int, error)) {
					t.Helper()
					x := goOn(t, kind, c, fault)
					if len(x.got) != len(sound.got) || len(x.w.out) != len(x.told) || x.failed() != 0 || len(x.errs) != len(sound.errs) {
						t.Errorf("read %d datagrams of %d, sent %d of %d, %d failed, errors %v", len(x.got), len(sound.got), len(x.w.out), len(x.told), x.failed(), x.errs)
					}
					x.end()
					if t.Failed() {
						t.Fatal(what)
					}
				}
				step := 1
				if raceEnabled || testing.Short() {
					step = 5
				}
				for limit := 1; limit <= dgramBatch; limit += step {
					check(fmt.Sprintf("%d in every call", limit), func(int, string) (int, error) { return limit, nil })
					check(fmt.Sprintf("from %d on in every call", limit), func(i int, _ string) (int, error) { return limit + i%3, nil })
					for i := range sound.w.calls {
						check(fmt.Sprintf("%d in call %d", limit, i), func(n int, _ string) (int, error) {
							if n == i {
								return limit, nil
							}
							return 0, nil
						})
					}
				}
			})
		}
	}
}

// dgramBreaks are what a datagram socket may report at any time.
var dgramBreaks = []struct {
	name string
	do   func(x *dgramWireRig)
	over bool // the channel ends, when it reads
}{
	{"an error is pending", func(x *dgramWireRig) { x.w.pending = os.NewSyscallError("getsockopt", syscall.ECONNREFUSED) }, false},
	{"the queue of errors has something", func(x *dgramWireRig) { x.w.reports = true }, false},
	{"shut down for reading", func(x *dgramWireRig) { x.w.shutRead = true }, true},
	{"shut down", func(x *dgramWireRig) { x.w.shut = true }, true},
	{"shut down, with an error", func(x *dgramWireRig) {
		x.w.shut, x.w.pending = true, os.NewSyscallError("getsockopt", syscall.ENETDOWN)
	}, true},
}

// dgramWaits are what a channel of datagrams may be at when that comes.
var dgramWaits = []struct {
	name         string
	cfg          Config
	only         dgramKind // if it is not for all
	closing      bool
	enter, leave func(x *dgramWireRig)
}{
	{name: "idle", enter: func(*dgramWireRig) {}, leave: func(*dgramWireRig) {}},
	{name: "paused by its user", enter: func(x *dgramWireRig) { x.do(func() { x.s.SetAutoRead(false) }) },
		leave: func(x *dgramWireRig) { x.do(func() { x.s.SetAutoRead(true) }) }},
	{name: "reading by hand", cfg: Config{ManualRead: true}, enter: func(*dgramWireRig) {},
		leave: func(x *dgramWireRig) { x.do(x.read); x.settle(); x.do(x.read) }},
	{name: "not writable", cfg: Config{HighWater: 1500, LowWater: 500},
		enter: func(x *dgramWireRig) {
			x.w.room = 1
			x.do(func() {
				for range 12 {
					x.write("a")
				}
			})
		},
		leave: func(x *dgramWireRig) { x.w.room = 1 << 30 }},
	{name: "closing with a queue", closing: true,
		enter: func(x *dgramWireRig) {
			x.w.room = 1
			x.do(func() {
				for range 12 {
					x.write("a")
				}
				x.s.Close()
			})
		},
		leave: func(x *dgramWireRig) { x.w.room = 1 << 30 }},
	{name: "with a device that has no room",
		enter: func(x *dgramWireRig) {
			x.w.fault = func(_ int, call string) (int, error) {
				if call == "sendmmsg" {
					return 0, os.NewSyscallError(call, syscall.ENOBUFS)
				}
				return 0, nil
			}
			x.do(func() { x.write("a"); x.write("a") })
		},
		leave: func(x *dgramWireRig) { x.w.fault = nil; x.pass(200 * time.Millisecond) }},
	{name: "with a receiver that has no room", only: boundDgram,
		enter: func(x *dgramWireRig) {
			x.w.queues["full"] = 0
			x.do(func() { x.write("full"); x.write("a"); x.write("full") })
		},
		leave: func(x *dgramWireRig) { delete(x.w.queues, "full"); x.pass(200 * time.Millisecond) }},
	{name: "closing with a receiver that has no room", only: boundDgram, closing: true,
		enter: func(x *dgramWireRig) {
			x.w.queues["full"] = 0
			x.do(func() { x.write("full"); x.write("a"); x.write("full"); x.s.Close() })
		},
		leave: func(x *dgramWireRig) { delete(x.w.queues, "full"); x.pass(200 * time.Millisecond) }},
}

// An error and a shutdown, in every form, come at every moment of every wait: the loop never
// spins, what can be read and sent is, a channel whose socket is shut down ends when it
// reads, and any other goes on.
func TestDatagramSocketBreaksAtEveryMoment(t *testing.T) {
	for _, kind := range dgramKinds {
		for _, p := range dgramWaits {
			if p.only != "" && p.only != kind {
				continue
			}
			for _, b := range dgramBreaks {
				for moment := range 6 {
					for _, data := range []int{0, 1, 40} {
						t.Run(fmt.Sprintf("%s, %s, %s at moment %d, %d datagrams", kind, p.name, b.name, moment, data), func(t *testing.T) {
							x := newDgramWireRig(t, kind, p.cfg)
							step := 0
							now := func() { // the moments are between all steps
								if step == moment {
									b.do(x)
								}
								step++
							}
							now()
							p.enter(x)
							now()
							x.peerSends(data)
							now()
							x.settle()
							now()
							x.turn()
							p.leave(x)
							now()
							x.settle()
							now()
							x.settle()
							x.do(func() { x.s.SetAutoRead(true) })
							x.settle()
							reason := x.s.CloseReason()
							switch {
							case p.closing: // by its user; what breaks it is seen by what it has to send
								if errors.Is(reason, errShut) && moment > 1 {
									t.Errorf("close reason: got %v of a channel that reads nothing any more", reason)
								}
							case b.over && !errors.Is(reason, errShut):
								t.Errorf("the socket is shut down: got state %d, %v", x.s.at, reason)
							case !b.over && reason != nil:
								t.Errorf("closed by what ends no channel: %v", reason)
							}
							shuts := 0
							for _, err := range x.errs {
								if errors.Is(err, errShut) {
									shuts++
								}
							}
							if shuts > 1 || !b.over && shuts > 0 {
								t.Errorf("errors: got %v", x.errs)
							}
							x.end()
						})
					}
				}
			}
		}
	}
}

// Whatever comes while a completion of a flush is called, and whatever that does, the rest of
// the batch has its completions, once, and nothing is stuck.
func TestDatagramSocketBreaksInFlush(t *testing.T) {
	acts := map[string]func(x *dgramWireRig){
		"nothing":          func(*dgramWireRig) {},
		"write":            func(x *dgramWireRig) { x.write("a") },
		"write and flush":  func(x *dgramWireRig) { x.write("a"); x.s.Flush() },
		"close":            func(x *dgramWireRig) { x.s.Close() },
		"write and close":  func(x *dgramWireRig) { x.write("a"); x.s.Close() },
		"reset":            func(x *dgramWireRig) { x.s.Reset() },
		"pause":            func(x *dgramWireRig) { x.s.SetAutoRead(false) },
		"a full socket":    func(x *dgramWireRig) { x.w.room = 0 },
		"the loop is over": func(x *dgramWireRig) { x.s.CloseIO() },
	}
	const n = 20 // more than a batch
	for _, kind := range dgramKinds {
		for _, b := range dgramBreaks {
			for name, act := range acts {
				for nth := 1; nth <= n; nth += 3 {
					t.Run(fmt.Sprintf("%s, %s, %s at completion %d", kind, b.name, name, nth), func(t *testing.T) {
						x := newDgramWireRig(t, kind, Config{})
						at := 0
						x.onEvent = func(ev string) {
							if ev != "a completion" {
								return
							}
							if at++; at == nth {
								b.do(x)
								act(x)
							}
						}
						x.do(func() {
							for range n {
								x.write("a")
							}
						})
						x.settle()
						x.peerSends(3)
						x.lost = b.over
						x.settle()
						if at < nth {
							t.Errorf("got %d completions, want %d at least", at, nth)
						}
						x.end()
					})
				}
			}
		}
	}
}

// A channel that is ended while it waits leaves nothing that waits on: no timer, no entry, no
// completion.
func TestDatagramEndsWhileItWaits(t *testing.T) {
	ends := map[string]func(x *dgramWireRig){
		"Reset":            func(x *dgramWireRig) { x.s.Reset() },
		"an error":         func(x *dgramWireRig) { x.s.Abort(pipeline.CloseNow, errPipe) },
		"the loop is over": func(x *dgramWireRig) { x.s.CloseIO() },
	}
	for _, kind := range dgramKinds {
		for _, p := range dgramWaits {
			if p.only != "" && p.only != kind {
				continue
			}
			for name, end := range ends {
				t.Run(fmt.Sprintf("%s, %s, %s", kind, p.name, name), func(t *testing.T) {
					x := newDgramWireRig(t, kind, p.cfg)
					p.enter(x)
					x.settle()
					x.m.Enter(func() { end(x) })
					x.m.Turn()
					if n := x.m.Loop().Metrics().TimersArmed; n != 0 || x.tolds != len(x.told) {
						t.Errorf("got %d timers armed and %d of %d completions, want none and all", n, x.tolds, len(x.told))
					}
					x.finish()
				})
			}
		}
	}
}
