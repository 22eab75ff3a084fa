package transport

import (
	"errors"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
)

// slow is a rig whose socket takes nothing.
func slow(t *testing.T, b *Budget, dialed bool) *rig {
	r := newRig(t, rigConfig{Config: Config{Budget: b}, dialed: dialed})
	r.k.take = []takeStep{{err: sys.ErrAgain}}
	return r
}

// say writes n bytes and flushes.
func (r *rig) say(n int) {
	r.do(func() { r.Write(pooled(letters(n))) })
	r.m.RunUntilIdle()
}

func wantQueued(t *testing.T, b *Budget, channels int, from, to int64) {
	t.Helper()
	if s := b.Stats(); s.Channels != channels || s.Queued < from || s.Queued > to {
		t.Errorf("budget: got %d bytes of %d channels, want %d to %d of %d", s.Queued, s.Channels, from, to, channels)
	}
}

// Beyond the limit the longest queue goes, and only that.
func TestBudgetDropsTheLongestQueue(t *testing.T) {
	b := &Budget{Limit: 300 << 10}
	long, middle, short := slow(t, b, true), slow(t, b, true), slow(t, b, true)
	fast := newRig(t, rigConfig{Config: Config{Budget: b}})
	middle.say(60 << 10)
	long.say(130 << 10)
	short.say(20 << 10)
	wantQueued(t, b, 3, 210<<10, 300<<10)
	for range 10 {
		fast.say(40 << 10)
	}
	fast.wantOut(letters(40<<10) + letters(40<<10) + letters(40<<10) + letters(40<<10) + letters(40<<10) +
		letters(40<<10) + letters(40<<10) + letters(40<<10) + letters(40<<10) + letters(40<<10))
	wantQueued(t, b, 3, 210<<10, 300<<10)

	another := slow(t, b, true)
	another.say(100 << 10)
	long.m.RunUntilIdle()
	if !errors.Is(long.CloseReason(), ErrSlowPeer) {
		t.Errorf("the longest: got %v, want ErrSlowPeer", long.CloseReason())
	}
	for name, r := range map[string]*rig{"middle": middle, "short": short, "another": another, "fast": fast} {
		if !r.Open() {
			t.Errorf("%s: closed by %v", name, r.CloseReason())
		}
	}
	wantQueued(t, b, 3, 180<<10, 300<<10)

	// What leaves is not counted any more.
	middle.ready(eventloop.EventWrite)
	wantQueued(t, b, 2, 120<<10, 200<<10)
	another.do(another.Reset)
	short.do(short.Reset)
	wantQueued(t, b, 0, 0, 0)
	if n := b.Stats().Closed; n != 1 {
		t.Errorf("closed: got %d, want 1", n)
	}
}

// One channel that writes more than there is for all is closed itself.
func TestBudgetSmallerThanOneQueue(t *testing.T) {
	b := &Budget{Limit: 50 << 10}
	r := slow(t, b, true)
	r.log = nil
	r.say(60 << 10)
	r.wantLog("error transport: write: transport: peer reads too slowly: longest queue beyond the budget", "inactive", "unregistered")
	wantQueued(t, b, 0, 0, 0)
}

// From half of the limit on, who has more than his share is not writable, and an
// accepted channel reads nothing then; when there is enough again the marks are back.
func TestBudgetSqueezesMarks(t *testing.T) {
	b := &Budget{Limit: 256 << 10}
	r, other := slow(t, b, false), slow(t, b, true)
	high := r.HighWater()
	r.say(90 << 10)
	if !r.Writable() || r.HighWater() != high {
		t.Fatalf("alone: got writable %v, high mark %d; want true, %d", r.Writable(), r.HighWater(), high)
	}
	other.say(50 << 10)
	r.do(func() { r.Write(pooled(letters(5 << 10))) })
	if r.Writable() || r.HighWater() != 64<<10 {
		t.Errorf("with another: got writable %v, high mark %d; want false, %d", r.Writable(), r.HighWater(), 64<<10)
	}
	if ev := r.interest(); ev&eventloop.EventRead != 0 {
		t.Errorf("interest: got %v, want no reading", ev)
	}
	r.ready(eventloop.EventWrite)
	if !r.Writable() || r.HighWater() != high {
		t.Errorf("when all has left: got writable %v, high mark %d; want true, %d", r.Writable(), r.HighWater(), high)
	}
}

// File regions pin no memory.
func TestBudgetDoesNotCountFiles(t *testing.T) {
	b := &Budget{Limit: 100 << 10}
	r := slow(t, b, true)
	f := tempFile(t, letters(1<<20))
	r.do(func() {
		r.Write(buffer.NewFileRegion(f, 0, 1<<20))
		r.Write(pooled("x"))
	})
	if s := b.Stats(); s.Queued > 3<<10 || r.out.charge < 64<<10 {
		t.Errorf("got %d bytes in the budget, %d against the marks; want next to nothing, 64 KiB or more", s.Queued, r.out.charge)
	}
	for i := 0; i < 20 && r.out.charge > 0; i++ {
		r.ready(eventloop.EventWrite)
	}
	if m := r.out.memory(); m != 0 {
		t.Errorf("left in the queue: got %d bytes, want 0", m)
	}
}

// A queue that grows without a flush counts as well.
func TestBudgetWithManualFlush(t *testing.T) {
	b := &Budget{Limit: 1 << 20}
	r := newRig(t, rigConfig{Config: Config{Budget: b, ManualFlush: true}})
	r.do(func() {
		for r.Open() {
			r.Write(pooled(letters(32 << 10)))
			if r.out.charge > 2<<20 {
				t.Errorf("queue of %d bytes with a budget of 1 MiB", r.out.charge)
				r.Reset()
			}
			if b.Stats().Closed > 0 {
				break
			}
		}
	})
	r.m.RunUntilIdle()
	if !errors.Is(r.CloseReason(), ErrSlowPeer) {
		t.Errorf("got %v, want ErrSlowPeer", r.CloseReason())
	}
}

func TestBudgetDefaults(t *testing.T) {
	cfg, err := Config{}.check()
	if err != nil || cfg.Budget != &sharedBudget {
		t.Errorf("no Budget: got %p, %v; want the shared one", cfg.Budget, err)
	}
	if got, want := new(Budget).Stats().Limit, buffer.Default().Stats().Limit/2; got != want || got <= 0 {
		t.Errorf("limit of the zero value: got %d, want half of the pool's, %d", got, want)
	}
	none := &Budget{Limit: -1}
	r := slow(t, none, true)
	r.say(5 << 20)
	if s := none.Stats(); !r.Open() || s.Queued != 0 {
		t.Errorf("without a limit: got open %v, %d bytes counted; want true, 0", r.Open(), s.Queued)
	}
}
