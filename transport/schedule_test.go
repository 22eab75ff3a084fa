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

var scheduleSeed = flag.Uint64("schedule.seed", 0, "seed of the one schedule that TestSchedules runs; 0 means many, by the clock")

// A channel and its peer do what comes to their minds, and the kernel is as unhelpful as
// it may be. Whatever the order, events and completions come once and in order, bytes
// are those that were sent, the loop never spins or stalls, and nothing is left.
func TestSchedules(t *testing.T) {
	schedules := 600
	if raceEnabled || testing.Short() {
		schedules = 150
	}
	seed := *scheduleSeed
	if seed != 0 {
		schedules = 1
	} else {
		seed = uint64(time.Now().UnixNano())
	}
	for range schedules {
		ok := t.Run("", func(t *testing.T) { (&schedule{r: rand.New(rand.NewPCG(seed, 0))}).run(t) })
		if !ok {
			t.Fatalf("repeat with -schedule.seed=%d -v", seed)
		}
		seed++
	}
}

// schedule is a run of random steps.
type schedule struct {
	r *rand.Rand
	x *wireRig

	most   int     // bytes of a message
	faults int     // calls that something will be wrong with
	memory *scarce // nil if there is plenty
}

// scarce is memory of which there is none now and then.
type scarce struct {
	buffer.Allocator
	c     *schedule
	empty int // percentage of what is asked for in vain
}

func (a *scarce) TryAlloc(n int) (*buffer.Buf, error) {
	if a.c.chance(a.empty) {
		return nil, buffer.ErrOutOfMemory
	}
	return a.Allocator.TryAlloc(n)
}

func (c *schedule) chance(percent int) bool { return c.r.IntN(100) < percent }

func (c *schedule) run(t *testing.T) {
	cfg := rigConfig{dialed: c.chance(30), Config: Config{
		HalfClose:           c.chance(50),
		ManualRead:          c.chance(30),
		ManualFlush:         c.chance(30),
		ReadWhileUnwritable: c.chance(30),
		CloseTimeout:        time.Second,
	}}
	if c.chance(50) {
		cfg.HighWater = 1 + c.r.IntN(5000)
	}
	if c.chance(20) {
		cfg.MaxPending = 20_000
	}
	c.most = 2500
	if c.chance(40) {
		cfg.ZeroCopy = 1 + c.r.IntN(5000)
		c.most = 15_000
	}
	t.Logf("%+v", cfg.Config)
	if c.chance(30) {
		c.memory = &scarce{Allocator: buffer.Heap, c: c}
		cfg.Allocator = c.memory
	}
	x := newWireRig(t, cfg)
	c.x = x
	x.w.cold = c.chance(30)
	x.w.room = c.r.IntN(3000)
	x.w.fault = c.fault
	if c.chance(50) {
		x.onEvent = c.inHandler
	}
	steps := 1 + c.r.IntN(60)
	for i := 0; i < steps && x.s.at != streamClosed && !t.Failed(); i++ {
		c.step()
	}
	c.end()
}

// fault is what is wrong with a call: little is taken or given, or there is a false
// alarm; rarely an error.
func (c *schedule) fault(_ int, call string) (int, error) {
	if c.faults == 0 {
		return 0, nil
	}
	c.faults--
	switch {
	case c.chance(1):
		errs := []error{syscall.ECONNRESET, syscall.EPIPE, syscall.ENOBUFS, syscall.EMFILE, syscall.ETIMEDOUT}
		return 0, os.NewSyscallError(call, errs[c.r.IntN(len(errs))])
	case c.chance(20) && call != "shutdown" && call != "socketError":
		return 0, sys.ErrAgain
	default:
		return 1 + c.r.IntN(200), nil
	}
}

// note tells what happens, for who repeats a schedule.
func (c *schedule) note(format string, args ...any) { c.x.t.Logf(format, args...) }

// step does one thing.
func (c *schedule) step() {
	x, w, s := c.x, c.x.w, c.x.s
	switch n := c.r.IntN(100); {
	case n < 15:
		size := c.r.IntN(3000)
		if c.chance(10) {
			size = recvSizes[0] + c.r.IntN(3)
		}
		c.note("peer sends %d", size)
		x.peerSends(letters(size))
	case n < 17:
		c.note("peer ends")
		w.fin = true
	case n < 18:
		c.note("peer resets")
		x.peerResets([]error{nil, os.NewSyscallError("read", syscall.ECONNRESET)}[c.r.IntN(2)])
	case n < 28:
		room := 1 + c.r.IntN(2*c.most)
		c.note("room for %d more", room)
		w.room += room
		w.acked = max(w.acked, c.r.IntN(len(w.out)+1))
	case n < 35:
		c.note("turn")
		x.turn()
	case n < 45:
		c.note("settle")
		x.settle()
	case n < 50:
		d := time.Duration(c.r.IntN(int(300 * time.Millisecond)))
		c.note("%v pass", d)
		x.m.Advance(d)
	case n < 52:
		c.note("a false alarm")
		x.m.Ready(scriptFD, eventloop.EventRead|eventloop.EventWrite)
		x.m.Turn()
	case n < 54:
		if c.memory != nil {
			c.memory.empty = []int{0, 30, 100}[c.r.IntN(3)]
			c.note("of the memory %d %% is missing", c.memory.empty)
		}
	case n < 60:
		c.faults = c.r.IntN(20)
		c.note("faults in %d calls", c.faults)
	default:
		x.m.Enter(func() {
			for range 1 + c.r.IntN(4) {
				if s.at != streamClosed {
					c.act()
				}
			}
		})
		if c.chance(50) {
			x.turn()
		}
	}
}

// act does what a handler may do.
func (c *schedule) act() {
	x, s := c.x, c.x.s
	switch n := c.r.IntN(100); {
	case n < 35:
		size := c.r.IntN(c.most)
		if c.chance(20) {
			size = c.r.IntN(3)
		}
		c.note("write %d", size)
		x.write(size, false)
	case n < 45:
		size := c.r.IntN(3000)
		c.note("write a region of %d", size)
		x.write(size, true)
	case n < 60:
		c.note("flush")
		s.Flush()
	case n < 75:
		c.note("read")
		x.read()
	case n < 90:
		on := c.chance(50)
		c.note("auto-read %v", on)
		x.autoRead(on)
	case n < 95:
		c.note("close the sending side")
		x.closeWrite()
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
func (c *schedule) inHandler(event string) {
	if c.x.writes < 200 && c.chance(15) {
		c.note("in %s:", event)
		c.act()
	}
}

// end has the peer take everything and close, and looks at what has become of it all.
func (c *schedule) end() {
	x, w, s := c.x, c.x.w, c.x.s
	t := x.t
	c.note("the end")
	x.onEvent = nil
	c.faults = 0
	if c.memory != nil {
		c.memory.empty = 0
	}
	x.m.Advance(2 * starvedRetry)
	x.settle()
	w.room = 1 << 30
	x.do(s.Flush)
	x.settle()
	if s.cfg.ZeroCopy > 0 {
		w.acked = len(w.out)
		x.settle()
		x.m.Advance(confirmationsCheck) // it may be out of the poller
		x.settle()
		if n := s.zc().unconfirmed(); n > 0 && s.at != streamClosed {
			t.Errorf("all is acknowledged, and %d calls are not confirmed", n)
		}
	}
	if (s.at == streamOpen || s.at == streamClosing) && !s.out.empty() {
		t.Errorf("with room for all, %d entries are left in the queue", s.out.len())
	}
	if s.at == streamOpen {
		if !s.Writable() {
			t.Error("the queue is empty and the channel not writable")
		}
		if !s.outputShut && len(w.out) != len(x.written) {
			t.Errorf("sent: got %d bytes, want %d", len(w.out), len(x.written))
		}
	}
	w.acked = len(w.out)
	w.fin = true
	x.do(func() { s.SetAutoRead(true) })
	x.settle()
	if s.at == streamOpen && s.cfg.HalfClose {
		if len(x.got) != len(x.arrived) || x.count(inputShutdown) != 1 {
			t.Errorf("read %d bytes of %d, %d ends; want all and one end", len(x.got), len(x.arrived), x.count(inputShutdown))
		}
		x.do(s.CloseWrite)
		x.settle()
	}
	x.m.Advance(2 * time.Second)
	x.settle()
	if s.at != streamClosed {
		t.Errorf("both sides are over and the channel is in state %d", s.at)
	}
	own := 0
	for _, err := range x.errs {
		if !errors.Is(err, pipeline.ErrOutputShutdown) && !errors.Is(err, ErrUnsupportedMessage) {
			own++
		}
	}
	if own > 1 {
		t.Errorf("errors: got %v, want one at most", x.errs)
	}
	if reason := s.CloseReason(); !errors.Is(reason, pipeline.ErrClosed) {
		t.Errorf("close reason: got %v, want ErrClosed", reason)
	}
	for i, err := range x.told {
		if err != nil && !errors.Is(err, pipeline.ErrClosed) && !errors.Is(err, pipeline.ErrOutputShutdown) {
			t.Errorf("completion %d: %v", i, err)
		}
	}
	x.finish()
	if t.Failed() {
		t.Logf("%q", x.log)
	}
}
