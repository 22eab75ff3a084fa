package transport

import (
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

var dgramSeed = flag.Uint64("dgramschedule.seed", 0, "seed of the one schedule that TestDatagramSchedules runs; 0 means many, by the clock")

// A channel of datagrams and its peers do what comes to their minds, and the kernel is as
// unhelpful as it may be. Whatever the order, what arrives is read and what is written leaves
// or fails, once and in order, the loop never spins or stalls, and nothing is left.
func TestDatagramSchedules(t *testing.T) {
	schedules := 800
	if raceEnabled || testing.Short() {
		schedules = 200
	}
	seed := *dgramSeed
	if seed != 0 {
		schedules = 1
	} else {
		seed = uint64(time.Now().UnixNano())
	}
	for range schedules {
		ok := t.Run("", func(t *testing.T) { (&dgramSchedule{r: rand.New(rand.NewPCG(seed, 0))}).run(t) })
		if !ok {
			t.Fatalf("repeat with -dgramschedule.seed=%d -v", seed)
		}
		seed++
	}
}

// dgramSchedule is a run of random steps.
type dgramSchedule struct {
	r *rand.Rand
	x *dgramWireRig

	faults int // calls that something will be wrong with
	empty  int // percentage of the memory that is asked for in vain
}

func (c *dgramSchedule) chance(percent int) bool { return c.r.IntN(100) < percent }

// dgramScarce is memory of which there is none now and then.
type dgramScarce struct {
	buffer.Allocator
	c *dgramSchedule
}

func (a dgramScarce) TryAlloc(n int) (*buffer.Buf, error) {
	if a.c.chance(a.c.empty) {
		return nil, buffer.ErrOutOfMemory
	}
	return a.Allocator.TryAlloc(n)
}

func (c *dgramSchedule) run(t *testing.T) {
	cfg := Config{
		ManualRead:          c.chance(30),
		ManualFlush:         c.chance(30),
		ReadWhileUnwritable: c.chance(30),
	}
	if c.chance(50) {
		cfg.HighWater = 1 + c.r.IntN(5000)
	}
	if c.chance(20) {
		cfg.MaxPending = 5000 + c.r.IntN(20_000)
	}
	if c.chance(20) {
		cfg.MaxDatagram = 50 + c.r.IntN(250)
	}
	if c.chance(30) {
		cfg.Allocator = dgramScarce{buffer.Heap, c}
	}
	kind := dgramKinds[c.r.IntN(len(dgramKinds))]
	t.Logf("%s %+v", kind, cfg)
	x := newDgramWireRig(t, kind, cfg)
	c.x = x
	x.w.room = c.r.IntN(30)
	x.w.fault = c.fault
	if c.chance(50) {
		x.onEvent = c.inHandler
	}
	steps := 1 + c.r.IntN(60)
	for i := 0; i < steps && x.s.at != dgramClosed && !t.Failed(); i++ {
		c.step()
	}
	c.note("the end")
	c.faults, c.empty = 0, 0
	shut := x.w.shut || x.w.shutRead
	x.end()
	if reason := x.s.CloseReason(); !errors.Is(reason, pipeline.ErrClosed) {
		t.Errorf("close reason: got %v, want ErrClosed", reason)
	} else if errors.Is(reason, errShut) && !shut {
		t.Errorf("close reason: got %v, and the socket was not shut down", reason)
	}
	if t.Failed() {
		t.Logf("%q", x.log)
	}
}

// fault is what is wrong with a call: little is taken or given, or there is a false alarm;
// now and then an error.
func (c *dgramSchedule) fault(_ int, call string) (int, error) {
	if c.faults == 0 {
		return 0, nil
	}
	c.faults--
	switch {
	case c.chance(3) || call == "sendmmsg" && c.chance(10):
		e := dgramCallErrors[c.r.IntN(len(dgramCallErrors))]
		if e == syscall.EAGAIN {
			return 0, sys.ErrAgain
		}
		c.note("%v in %s", e, call)
		return 0, os.NewSyscallError(call, e)
	case c.chance(20) && call != "socketError":
		return 0, sys.ErrAgain
	default:
		return 1 + c.r.IntN(dgramBatch), nil
	}
}

func (c *dgramSchedule) note(format string, args ...any) { c.x.t.Logf(format, args...) }

// step does one thing.
func (c *dgramSchedule) step() {
	x, w := c.x, c.x.w
	switch n := c.r.IntN(100); {
	case n < 18:
		n := 1 + c.r.IntN(5)
		if c.chance(10) {
			n = 1 + c.r.IntN(3*dgramBatch)
		}
		c.note("peers send %d", n)
		x.peerSends(n)
	case n < 19:
		c.note("the socket is shut down for reading")
		w.shutRead = true
	case n < 20:
		c.note("the socket is shut down")
		w.shut = true
	case n < 24:
		c.note("an error is pending")
		w.pending = os.NewSyscallError("getsockopt", dgramCallErrors[4+c.r.IntN(6)])
	case n < 26:
		c.note("the queue of errors has something")
		w.reports = true
	case n < 34:
		room := 1 + c.r.IntN(20)
		c.note("room for %d more", room)
		w.room += room
	case n < 38:
		name := c.name()
		w.queues[name] += c.r.IntN(3)
		c.note("%s has room for %d", name, w.queues[name])
	case n < 45:
		c.note("turn")
		x.turn()
	case n < 55:
		c.note("settle")
		x.settle()
	case n < 60:
		d := time.Duration(c.r.IntN(int(300 * time.Millisecond)))
		if c.chance(20) {
			d += slowReceiver
		}
		c.note("%v pass", d)
		x.pass(d)
	case n < 62:
		c.note("a false alarm")
		x.m.Ready(scriptFD, eventloop.EventRead|eventloop.EventWrite|eventloop.EventError)
		x.m.Turn()
	case n < 64:
		c.empty = []int{0, 30, 100}[c.r.IntN(3)]
		c.note("of the memory %d %% is missing", c.empty)
	case n < 70:
		c.faults = c.r.IntN(20)
		c.note("faults in %d calls", c.faults)
	default:
		x.m.Enter(func() {
			for range 1 + c.r.IntN(4) {
				if x.s.at != dgramClosed {
					c.act()
				}
			}
		})
		if c.chance(50) {
			x.turn()
		}
	}
}

// name is that of a receiver, of which some have little room.
func (c *dgramSchedule) name() string { return []string{"a", "b", "c"}[c.r.IntN(3)] }

// act does what a handler may do.
func (c *dgramSchedule) act() {
	x, s := c.x, c.x.s
	switch n := c.r.IntN(100); {
	case n < 50:
		n := 1
		if c.chance(20) {
			n = 1 + c.r.IntN(2*dgramBatch)
		}
		name := c.name()
		c.note("write %d to %s", n, name)
		for range n {
			x.write(name)
		}
	case n < 65:
		c.note("flush")
		s.Flush()
	case n < 80:
		c.note("read")
		x.read()
	case n < 95:
		on := c.chance(50)
		c.note("auto-read %v", on)
		x.autoRead(on)
	case n < 98:
		c.note("close")
		s.Close()
	case n < 99:
		c.note("reset")
		s.Reset()
	default:
		c.note("write what cannot be sent")
		s.Write(42)
	}
}

// inHandler sometimes acts inside an event.
func (c *dgramSchedule) inHandler(event string) {
	if len(c.x.told) < 300 && c.chance(15) {
		c.note("in %s:", event)
		c.act()
	}
}
