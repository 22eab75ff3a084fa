package eventloop

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runnel-io/runnel/internal/invariant"
)

func TestTimersFireInOrder(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	var got []int
	for _, i := range rand.Perm(500) {
		l.Schedule(time.Duration(i)*time.Millisecond, func() { got = append(got, i) })
	}
	m.Advance(time.Second)
	if len(got) != 500 || !slices.IsSorted(got) {
		t.Errorf("got %d timers, in order: %v; want 500 in order", len(got), slices.IsSorted(got))
	}
}

func TestTimersOfOneDeadlineFireInTheOrderOfScheduling(t *testing.T) {
	m := newTestManual(t)
	var got []int
	for i := range 100 {
		m.Loop().Schedule(time.Second, func() { got = append(got, i) })
	}
	m.Advance(time.Second)
	if len(got) != 100 || !slices.IsSorted(got) {
		t.Errorf("got %v, want 0 to 99 in order", got)
	}
}

func TestTimerFiresAtItsTime(t *testing.T) {
	m := newTestManual(t)
	start := m.Now()
	var at []time.Duration
	for _, d := range []time.Duration{3 * time.Second, time.Nanosecond, 0, -time.Second} {
		m.Loop().Schedule(d, func() {
			at = append(at, m.Now().Sub(start))
			if !m.Loop().Now().Equal(m.Now()) {
				t.Errorf("got %v as the loop's time, want %v", m.Loop().Now(), m.Now())
			}
		})
	}
	m.Advance(2 * time.Second)
	m.Advance(2 * time.Second)
	if want := []time.Duration{0, 0, 1, 3 * time.Second}; !slices.Equal(at, want) {
		t.Errorf("got calls at %v, want %v", at, want)
	}
}

// Timers that have come due together, because the loop was held up, fire in the order of
// their deadlines and in one turn, also those that were postponed by a store.
func TestPostponedTimersFireInOrder(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	const n = 200
	var got []int
	timers := make([]*Timer, n)
	m.Enter(func() {
		l.Schedule(0, func() {}) // is due, so nobody looks behind it before the turn
		for i := range timers {
			timers[i] = l.Schedule(time.Duration(1+i)*time.Microsecond, func() { got = append(got, i) })
		}
	})
	want := make([]int, n)
	for at, i := range rand.Perm(n) {
		want[at] = i
		timers[i].Reset(time.Duration(1+at) * time.Millisecond)
	}
	m.nanos.Add(int64(time.Second)) // the loop was held up
	if calls := m.Turn(); calls != n+1 || !slices.Equal(got, want) {
		t.Errorf("got %d calls in one turn, in the order %v, want %d, %v", calls, got, n+1, want)
	}
}

func TestTimerStop(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	fired := 0
	stopped := l.Schedule(time.Second, func() { t.Error("got a call of a stopped timer") })
	other := l.Schedule(time.Second, func() { fired++ })
	if !stopped.Stop() {
		t.Error("got Stop false for an armed timer")
	}
	if stopped.Stop() {
		t.Error("got Stop true for a stopped timer")
	}
	m.Advance(2 * time.Second)
	if other.Stop() {
		t.Error("got Stop true for a timer that has fired")
	}
	if fired != 1 {
		t.Errorf("got %d calls, want 1", fired)
	}
	if got := l.Metrics().TimersArmed; got != 0 {
		t.Errorf("got %d armed timers, want 0", got)
	}
}

// A timer may stop another one that is due in the same turn.
func TestTimerStoppedInItsTurn(t *testing.T) {
	m := newTestManual(t)
	var second *Timer
	m.Loop().Schedule(time.Second, func() {
		if !second.Stop() {
			t.Error("got Stop false for a timer that has not fired")
		}
	})
	second = m.Loop().Schedule(time.Second, func() { t.Error("got a call of a stopped timer") })
	m.Advance(time.Second)
}

func TestTimerReset(t *testing.T) {
	tests := []struct {
		name   string
		resets []time.Duration // at 0, one after the other
		want   time.Duration
	}{
		{name: "later", resets: []time.Duration{5 * time.Second}, want: 5 * time.Second},
		{name: "earlier", resets: []time.Duration{100 * time.Millisecond}, want: 100 * time.Millisecond},
		{name: "later, then earlier", resets: []time.Duration{5 * time.Second, 2 * time.Second}, want: 2 * time.Second},
		{name: "earlier, then later", resets: []time.Duration{time.Millisecond, 3 * time.Second}, want: 3 * time.Second},
		{name: "now", resets: []time.Duration{0}, want: 0},
	}
	for _, onLoop := range []bool{true, false} {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				m := newTestManual(t)
				start := m.Now()
				var got []time.Duration
				tm := m.Loop().Schedule(time.Second, func() { got = append(got, m.Now().Sub(start)) })
				m.RunUntilIdle()
				reset := func() {
					for _, d := range tt.resets {
						if !tm.Reset(d) {
							t.Errorf("got Reset(%v) false for an armed timer", d)
						}
					}
				}
				if onLoop {
					m.Enter(reset)
				} else {
					reset()
				}
				m.Advance(10 * time.Second)
				if want := []time.Duration{tt.want}; !slices.Equal(got, want) {
					t.Errorf("got calls at %v, want %v", got, want)
				}
			})
		}
	}
}

func TestTimerResetArmsAnew(t *testing.T) {
	m := newTestManual(t)
	n := 0
	var tm *Timer
	tm = m.Loop().Schedule(time.Second, func() {
		if n++; n < 3 {
			if tm.Reset(time.Second) {
				t.Error("got Reset true for a timer that fires")
			}
		}
	})
	m.Advance(10 * time.Second)
	if n != 3 {
		t.Errorf("got %d calls, want 3", n)
	}
	tm.Reset(time.Second)
	tm.Stop()
	tm.Reset(2 * time.Second)
	m.Advance(time.Second)
	if n != 3 {
		t.Errorf("got %d calls before the deadline, want 3", n)
	}
	m.Advance(time.Second)
	if n != 4 {
		t.Errorf("got %d calls, want 4", n)
	}
}

// A timer that arms itself for now does not keep the turn from ending.
func TestTimerForNowWaitsForTheNextTurn(t *testing.T) {
	m := newTestManual(t)
	n := 0
	var tm *Timer
	tm = m.Loop().Schedule(0, func() { n++; tm.Reset(0) })
	m.Turn() // places the timer, which was scheduled off the loop, and fires it
	before := n
	m.Turn()
	if n != before+1 {
		t.Errorf("got %d calls in a turn, want 1", n-before)
	}
	tm.Stop()
}

func TestTimersNeverFireEarly(t *testing.T) {
	for name, cfg := range map[string]GroupConfig{
		"milliseconds": {},
		"microseconds": {FineTimers: true},
		"spinning":     {Spin: time.Hour},
		"locked":       {LockThread: true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Loops = 1
			testTimersNeverFireEarly(t, newTestGroup(t, cfg).Next())
		})
	}
}

func testTimersNeverFireEarly(t *testing.T, l *Loop) {
	delays := []time.Duration{1, time.Microsecond, 300 * time.Microsecond, time.Millisecond, 1500 * time.Microsecond, 5 * time.Millisecond, 7300 * time.Microsecond}
	type firing struct{ want, got time.Duration }
	fired := make(chan firing, len(delays))
	for _, d := range delays {
		start := time.Now()
		l.Schedule(d, func() { fired <- firing{d, time.Since(start)} })
	}
	for range delays {
		if f := await(t, fired, "a timer"); f.got < f.want {
			t.Errorf("got a timer after %v, want it not before %v", f.got, f.want)
		}
	}
}

// Whoever stops it and wherever: if Stop reports true, there is no call.
func TestTimerStopFromAnyGoroutine(t *testing.T) {
	l := newTestLoop(t, nil)
	const n = 2000
	called := make([]bool, n)
	stopped := make([]bool, n)
	for i := range n {
		tm := l.Schedule(time.Duration(rand.IntN(300))*time.Microsecond, func() { called[i] = true })
		if i%3 == 0 && !tm.Reset(time.Duration(rand.IntN(300))*time.Microsecond) {
			tm.Stop() // armed anew after it had fired
			continue
		}
		stopped[i] = tm.Stop()
	}
	done := make(chan struct{})
	l.Schedule(2*time.Millisecond, func() { close(done) })
	await(t, done, "the last timer")
	onLoop(t, l, func() {
		for i := range n {
			if stopped[i] && called[i] || i%3 != 0 && !stopped[i] && !called[i] {
				t.Errorf("timer %d: got called %v and stopped %v, want one of them", i, called[i], stopped[i])
			}
		}
		if got := l.Metrics().TimersArmed; got != 0 {
			t.Errorf("got %d armed timers, want 0", got)
		}
	})
}

// Timeouts that are always cancelled cost memory in proportion to the armed ones.
func TestStoppedTimersAreDropped(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	m.Enter(func() {
		for range 10_000 {
			l.Schedule(time.Hour, func() {}).Stop()
		}
		if got := len(l.timers.heap); got > 128 {
			t.Errorf("got %d entries for no armed timer, want at most 128", got)
		}
	})
}

// Hostile patterns leave no more behind than what is armed needs.
func TestTimersGiveMemoryBack(t *testing.T) {
	n := 1_000_000
	if invariant.Race {
		n /= 10 // it takes long
	}
	never := func() {}
	tests := []struct {
		name string
		do   func(m *Manual, l *Loop)
		most int // entries in the heap while it goes on
	}{
		{"armed and stopped, one after the other", func(_ *Manual, l *Loop) {
			for range n {
				l.Schedule(time.Hour, never).Stop()
			}
		}, 128},
		{"one timer, armed and stopped", func(_ *Manual, l *Loop) {
			tm := l.Schedule(time.Hour, never)
			for range n {
				tm.Stop()
				tm.Reset(time.Hour)
			}
			tm.Stop()
		}, 1},
		{"one timer, earlier and later", func(_ *Manual, l *Loop) {
			tm := l.Schedule(time.Hour, never)
			for i := range n {
				tm.Reset(time.Hour - time.Duration(i%2)*time.Minute)
			}
			tm.Stop()
		}, 1},
		{"all armed, then all stopped", func(_ *Manual, l *Loop) {
			timers := make([]*Timer, 100_000)
			for i := range timers {
				timers[i] = l.Schedule(time.Hour+time.Duration(i), never)
			}
			for _, tm := range timers {
				tm.Stop()
			}
		}, 200_000},
		{"stopped off the loop", func(m *Manual, l *Loop) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				for range n / 10 {
					l.Schedule(time.Hour, never).Stop()
				}
			}()
			<-done
			m.RunUntilIdle()
		}, 128},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newTestManual(t)
			l := m.Loop()
			m.Enter(func() {
				tt.do(m, l)
				if got := cap(l.timers.heap); got > 2*tt.most {
					t.Errorf("got room for %d entries, want at most %d", got, 2*tt.most)
				}
				l.timers.tidy() // as a loop does that is about to wait
				if got := len(l.timers.heap); got > 64 {
					t.Errorf("got %d entries for no armed timer, want at most 64", got)
				}
				if got := cap(l.timers.heap); got > 1024 {
					t.Errorf("got room for %d entries for no armed timer, want at most 1024", got)
				}
			})
			if got := l.Metrics().TimersArmed; got != 0 {
				t.Errorf("got %d armed timers, want 0", got)
			}
		})
	}
}

// Whoever resets and stops, and however that meets the loop: each arming ends in one
// firing or in one Stop that reports true.
func TestTimersFromEverywhere(t *testing.T) {
	l := newTestLoop(t, nil)
	const timers, goroutines, each = 50, 4, 5000
	var armed, stopped atomic.Int64
	fired := 0 // loop-only
	var all [timers]*Timer
	for i := range all {
		all[i] = l.Schedule(time.Hour, func() { fired++ })
		armed.Add(1)
	}
	work := func(r *rand.Rand) {
		for range each {
			tm := all[r.IntN(timers)]
			if r.IntN(3) == 0 {
				if tm.Stop() {
					stopped.Add(1)
				}
			} else if !tm.Reset(time.Duration(r.IntN(100)) * time.Microsecond) {
				armed.Add(1)
			}
		}
	}
	seed := rand.Uint64()
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() { work(rand.New(rand.NewPCG(seed, uint64(g)))) })
	}
	onLoop(t, l, func() { work(rand.New(rand.NewPCG(seed, goroutines))) })
	wg.Wait()
	for _, tm := range all {
		if tm.Stop() {
			stopped.Add(1)
		}
	}
	onLoop(t, l, func() {
		if got, want := int64(fired)+stopped.Load(), armed.Load(); got != want {
			t.Errorf("seed %d: got %d firings and %d stops, want %d together", seed, fired, stopped.Load(), want)
		}
		if got := l.Metrics().TimersArmed; got != 0 {
			t.Errorf("seed %d: got %d armed timers, want 0", seed, got)
		}
	})
}

// A model of random operations: each timer fires once, at its latest deadline.
func TestTimersAgainstAModel(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	m := newTestManual(t)
	l := m.Loop()
	type model struct {
		tm    *Timer
		due   time.Duration // 0: not armed
		fired int
	}
	start := m.Now()
	now := func() time.Duration { return m.Now().Sub(start) }
	timers := make([]*model, 200)
	for i := range timers {
		mt := &model{}
		timers[i] = mt
		mt.due = now() + 1 + time.Duration(r.IntN(1000))
		mt.tm = l.Schedule(mt.due-now(), func() {
			if now() != mt.due {
				t.Errorf("seed %d: timer %d: got it at %v, want %v", seed, i, now(), mt.due)
			}
			mt.due = 0
			mt.fired++
		})
	}
	for step := range 20_000 {
		mt := timers[r.IntN(len(timers))]
		op := func() {
			switch r.IntN(4) {
			case 0:
				if got, want := mt.tm.Stop(), mt.due != 0; got != want {
					t.Fatalf("seed %d, step %d: got Stop %v, want %v", seed, step, got, want)
				}
				mt.due = 0
			default:
				d := 1 + time.Duration(r.IntN(1000))
				if got, want := mt.tm.Reset(d), mt.due != 0; got != want {
					t.Fatalf("seed %d, step %d: got Reset %v, want %v", seed, step, got, want)
				}
				mt.due = now() + d
			}
		}
		if r.IntN(2) == 0 {
			m.Enter(op)
		} else {
			op()
		}
		if r.IntN(3) == 0 {
			m.Advance(time.Duration(r.IntN(50)))
		}
		for i, mt := range timers {
			if mt.due != 0 && mt.due < now() {
				t.Fatalf("seed %d, step %d: timer %d was due at %v, it is %v", seed, step, i, mt.due, now())
			}
		}
	}
}
