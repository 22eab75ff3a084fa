package eventloop

import (
	"strings"
	"testing"
	"time"
)

// What the other goroutines take, the loop takes too; and while it meets some it
// looks for them more often.
func TestYieldTime(t *testing.T) {
	l := newLoop("test", nil, nil, minOutcomes)
	l.base = time.Now()
	l.pace.setProcs(1) // always yields
	if l.pace.quantum != yieldTime {
		t.Errorf("got %v before the first yield, want %v", l.pace.quantum, yieldTime)
	}
	for _, past := range []int64{yieldTime, 2 * maxYieldTime} {
		l.pace.lastYield = l.clock() - past
		before := l.pace.lastYield
		now := l.look()
		if l.pace.lastYield == before || now != l.pace.lastYield {
			t.Errorf("got no yield %v after the last one", time.Duration(past))
		}
		if q := l.pace.quantum; q < nearTime/2 || q > maxYieldTime {
			t.Errorf("got a quantum of %v, want %v to %v", time.Duration(q), time.Duration(nearTime/2), time.Duration(maxYieldTime))
		}
	}
	l.pace.lastYield = l.clock() + int64(time.Hour)
	before := l.pace.lastYield
	if l.look(); l.pace.lastYield != before {
		t.Error("got a yield before it was time")
	}
}

// metAt is company that was met metTimes at once.
func metAt(now int64) (met [metTimes]int64) {
	for i := range met {
		met[i] = now
	}
	return met
}

// Somebody who is seen to wait is company; that a yield took long is so if it happens
// again and again.
func TestNear(t *testing.T) {
	p := newPace()
	for i := range int64(metTimes) {
		if p.near(i) {
			t.Errorf("got company after %d long yields, want it after %d", i, metTimes)
		}
		p.meet(i, 1)
	}
	if !p.near(metTimes) || !p.near(metTime-1) || p.near(metTime) {
		t.Error("want company from the last long yield on, until the first is too long ago")
	}
	p.meet(metTime, metTimes)
	if !p.near(2*metTime-1) || p.near(2*metTime) {
		t.Error("want company for a while after somebody was seen")
	}
}

// A stage of many calls begins with a look at the clock while there is company: its
// calls may take longer than those before.
func TestStagesBeginWithALook(t *testing.T) {
	const n, quick, slow = 64, 100, int64(4 * time.Microsecond)
	m := newTestManual(t)
	l := m.Loop()
	longest := func(company bool) (between int64) {
		l.pace = newPace()
		if company {
			l.pace.meet(m.nanos.Load(), metTimes)
			l.pace.quantum = nearTime / 2
		}
		for range n {
			_ = l.Execute(func() { m.nanos.Add(quick) })
		}
		last := m.nanos.Load()
		m.Enter(func() {
			for range n {
				l.AtTurnEnd(funcTask(func() {
					if l.pace.looked > last {
						last = l.pace.looked
					}
					m.nanos.Add(slow)
					between = max(between, m.nanos.Load()-last)
				}))
			}
			m.Turn()
		})
		return between
	}
	if got, want := longest(true), 3*slow; got > want {
		t.Errorf("got %v between two looks with company, want at most %v", time.Duration(got), time.Duration(want))
	}
	if got, want := longest(false), (clockEvery+1)*slow+n*quick; got > want {
		t.Errorf("got %v between two looks alone, want at most %v", time.Duration(got), time.Duration(want))
	}
}

// How often an idle processor is woken depends on what that costs.
func TestPoke(t *testing.T) {
	l := newLoop("test", nil, nil, minOutcomes)
	// The clock runs from now back to base: a yield that began so much earlier took
	// as long.
	poke := func(took time.Duration) time.Duration {
		for range 100 {
			l.base = time.Now()
			l.yield(l.clock()-int64(took), idleProcessor)
		}
		return time.Duration(l.pace.poke)
	}
	if got, want := poke(10*time.Microsecond), pokeShare*10*time.Microsecond; got < want {
		t.Errorf("got %v between pokes that take 10 us, want at least %v", got, want)
	}
	if got, want := poke(time.Second), time.Duration(yieldTime); got > want || got < want-time.Microsecond {
		t.Errorf("got %v between pokes that take a second, want %v", got, want)
	}
	if l.pace.near(l.clock()) {
		t.Error("got company by waking a processor")
	}
}

// Who is asked for the processor, and when.
func TestCompany(t *testing.T) {
	const now = int64(time.Hour)
	scheduler.mu.Lock() // nobody is seen to wait or to run
	defer scheduler.mu.Unlock()
	tests := []struct {
		name   string
		procs  int
		locked bool
		pace   pace
		want   company
	}{
		{"one processor", 1, false, pace{}, anybody},
		{"one processor, just now", 1, false, pace{met: metAt(now), scheduled: now}, anybody},
		{"another processor is idle", 2, false, pace{}, nobody},
		{"idle, and there is company", 2, false, pace{met: metAt(now - metTime + 1), scheduled: now - pokeTime, poke: pokeTime}, idleProcessor},
		{"idle, and woken just now", 2, false, pace{met: metAt(now), scheduled: now - pokeTime + 1, poke: pokeTime}, nobody},
		{"idle, and company long ago", 2, false, pace{met: metAt(now - metTime), poke: pokeTime}, nobody},
		{"locked", 1, true, pace{scheduled: now - lockedTime + 1}, nobody},
		{"locked, after a while", 1, true, pace{scheduled: now - lockedTime}, anybody},
	}
	for _, tt := range tests {
		l := newLoop("test", nil, nil, minOutcomes)
		l.locked = tt.locked
		l.pace = tt.pace
		l.pace.setProcs(tt.procs)
		if got := l.company(now); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

// The longest call is the one that it was, by name when it was timed by itself.
func TestLongestCall(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	takes := func(d time.Duration) func() { return func() { m.nanos.Add(int64(d)) } }
	r := register(t, m, 1, &testHandle{io: func(Event) { takes(7 * time.Millisecond)() }})
	gone := register(t, m, 2, &testHandle{})
	gone.h = &testHandle{io: func(Event) { takes(8 * time.Millisecond)(); gone.Close(nil) }}
	m.Enter(func() {
		_ = r.SetInterest(EventRead)
		_ = gone.SetInterest(EventRead)
	})
	steps := []struct {
		name string
		do   func()
		took time.Duration
		what string // begins with
	}{
		{"a task by itself", func() { _ = l.Execute(takes(time.Millisecond)) },
			time.Millisecond, "task github.com/runnel-io/runnel/eventloop.TestLongestCall"},
		{"a shorter one", func() { _ = l.Submit(&stuckTask{takes(time.Microsecond)}) },
			time.Millisecond, "task github.com/runnel-io/runnel/eventloop.TestLongestCall"},
		{"a longer one of another type", func() { _ = l.Submit(&stuckTask{takes(2 * time.Millisecond)}) },
			2 * time.Millisecond, "task *eventloop.stuckTask"},
		{"a timer", func() { m.Enter(func() { l.Schedule(0, takes(3*time.Millisecond)) }) },
			3 * time.Millisecond, "timer github.com/runnel-io/runnel/eventloop.TestLongestCall"},
		{"the end of a turn", func() { m.Enter(func() { l.AtTurnEnd(&stuckTask{takes(4 * time.Millisecond)}) }) },
			4 * time.Millisecond, "turn end *eventloop.stuckTask"},
		{"a handle", func() { m.Ready(1, EventRead) },
			7 * time.Millisecond, "I/O of *eventloop.testHandle"},
		{"a handle that closes", func() { m.Ready(2, EventRead) },
			8 * time.Millisecond, "I/O of a registration that is closed now"},
		{"one of several, timed one by one after that", func() {
			for range 10 {
				_ = l.Execute(takes(0))
			}
			_ = l.Submit(&stuckTask{takes(9 * time.Millisecond)})
			for range 10 {
				_ = l.Execute(takes(0))
			}
		}, 9 * time.Millisecond, "task *eventloop.stuckTask"},
	}
	for _, s := range steps {
		s.do()
		m.RunUntilIdle()
		m.Turn() // the clock is read at its beginning
		got := l.Metrics()
		if got.LongestCall != s.took || !strings.HasPrefix(got.LongestCallWhat, s.what) {
			t.Errorf("%s: got %v in %q, want %v in %q", s.name, got.LongestCall, got.LongestCallWhat, s.took, s.what)
		}
	}
}

// Of calls that were timed together nobody says which it was, until one by itself
// tells.
func TestLongestCallOfSeveral(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	slow := funcTask(func() { m.nanos.Add(int64(time.Second)) })
	burst := func() {
		var quick countTask
		for range 4 {
			_ = l.Submit(&quick)
		}
		_ = l.Submit(slow)
		_ = l.Submit(&quick)
		m.RunUntilIdle()
		m.Turn()
	}
	burst()
	got := l.Metrics()
	if want := "one of 6 calls, the last of them task *eventloop.countTask"; got.LongestCall != time.Second || got.LongestCallWhat != want {
		t.Errorf("got %v in %q, want 1s in %q", got.LongestCall, got.LongestCallWhat, want)
	}
	burst() // now the loop looks closely
	got = l.Metrics()
	if want := "task " + funcName(slow); got.LongestCall != time.Second || got.LongestCallWhat != want {
		t.Errorf("got %v in %q, want 1s in %q", got.LongestCall, got.LongestCallWhat, want)
	}
}

// The clock is read after each slow call and after sixteen quick ones.
func TestLooksAtTheClock(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	looks := func(each time.Duration, n int) (looks int) {
		var at int64
		for range n {
			_ = l.Execute(func() {
				if l.pace.looked != at {
					at = l.pace.looked
					looks++
				}
				m.nanos.Add(int64(each))
			})
		}
		m.RunUntilIdle()
		return looks
	}
	m.Advance(time.Second) // far from the start, where it looks more often
	if got, want := looks(100*time.Nanosecond, 160), 160/clockEvery; got > want+1 {
		t.Errorf("got %d looks in 160 quick calls, want %d", got, want)
	}
	looks(time.Duration(slowCall), 160)
	if got := looks(time.Duration(slowCall), 160); got < 160-clockEvery {
		t.Errorf("got %d looks in 160 slow calls, want nearly as many", got)
	}
	looks(time.Nanosecond, 10)
	if got, want := looks(100*time.Nanosecond, 160), 160/clockEvery; got > want+clockEvery {
		t.Errorf("got %d looks in 160 quick calls after that, want %d", got, want)
	}
}

func TestSchedulerState(t *testing.T) {
	if waiting, running := scheduler.look(); waiting < 0 || running < 1 || running > 1<<20 {
		t.Errorf("got %d waiting and %d running, want this one at least", waiting, running)
	}
	scheduler.mu.Lock() // somebody else asks
	if waiting, running := scheduler.look(); waiting != 0 || running != 0 {
		t.Errorf("got %d waiting and %d running while somebody else asks, want 0", waiting, running)
	}
	scheduler.mu.Unlock()
	if got := testing.AllocsPerRun(100, func() { scheduler.look() }); got != 0 {
		t.Errorf("got %v allocations, want 0", got)
	}
}
