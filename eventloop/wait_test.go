package eventloop

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
)

// The poll waits until the next timer is due, and not at all if one is.
func TestSemantics5_6_WaitEndsAtTheNextTimer(t *testing.T) {
	l, p := newScripted(t)
	if got := await(t, p.waits, "the first wait"); got >= 0 {
		t.Errorf("got a wait of %v without timers, want one without end", got)
	}
	fired := 0
	_ = l.Execute(func() {
		l.Schedule(2*time.Hour, func() {})
		l.Schedule(time.Hour, func() {})
		l.Schedule(0, func() { fired++ })
		stopped := l.Schedule(time.Minute, func() {})
		l.Schedule(time.Minute, func() {}).Reset(3 * time.Hour)
		stopped.Stop()
	})
	p.resume <- nil
	if got := await(t, p.waits, "the next wait"); got > time.Hour || got < 59*time.Minute {
		t.Errorf("got a wait of %v, want an hour", got)
	}
	if fired != 1 {
		t.Errorf("got %d calls of the timer that was due before the wait, want 1", fired)
	}
	p.resume <- nil
	await(t, p.waits, "the wait before the end")
}

// Many handles and timers with nothing to do cost nothing: the loop asks for one
// wait that lasts until the first of them is due, after one to give back memory.
func TestIdleCostsNothing(t *testing.T) {
	const handles, timers, idle = 1000, 100_000, 10 * time.Second
	pool := newTestPool(t)
	l, p := newScripted(t)
	await(t, p.waits, "the first wait")
	calls := 0
	_ = l.Execute(func() {
		l.Allocator(pool).Alloc(100).Release()
		for fd := range handles {
			r, err := l.Register(fd, &testHandle{io: func(Event) { calls++ }, close: func() {}})
			if err != nil {
				t.Errorf("Register: %v", err)
				return
			}
			_ = r.SetInterest(EventRead)
		}
		for i := range timers {
			d := 2*idle + rand.N(time.Minute)
			soon := rand.N(idle)
			never := func() { calls++ }
			switch i % 4 {
			case 0: // as an idle handler does on each read
				l.Schedule(soon, never).Reset(d)
			case 1:
				l.Schedule(soon, never).Stop()
				fallthrough
			default:
				l.Schedule(d, never)
			}
		}
	})
	p.resume <- nil
	short := 0
	var before Metrics
	for timeout := await(t, p.waits, "a wait"); timeout >= 0 && timeout < idle; timeout = await(t, p.waits, "a wait") {
		if short++; short > 1 {
			t.Fatalf("got %d waits of less than %v, the latest of %v, want 1", short, idle, timeout)
		}
		before = l.Metrics()
		l.base = l.base.Add(-timeout) // the loop is in poll: let the time pass
		p.resume <- nil
	}
	after := l.Metrics()
	if got := after.Turns - before.Turns; got > 1 {
		t.Errorf("got %d turns in %v, want at most 1", got, idle)
	}
	if calls != 0 || after.Registrations != handles || after.TimersArmed != timers {
		t.Errorf("got %d calls, %d registrations and %d timers, want 0, %d and %d", calls, after.Registrations, after.TimersArmed, handles, timers)
	}
	p.resume <- nil
	await(t, p.waits, "the wait before the end")
}

// busyPoller finds nothing, and counts how often it is asked.
type busyPoller struct {
	scriptedPoller
	polls int // loop-only
	found func(polls int) bool
}

func (p *busyPoller) poll(out []outcome, timeout time.Duration) (int, error) {
	if timeout == 0 {
		if p.polls++; p.found(p.polls) {
			out[0] = outcome{key: 1 << 40} // of nobody
			return 1, nil
		}
		return 0, nil
	}
	return p.scriptedPoller.poll(out, timeout)
}

// A loop that may spin polls for its time before it waits, and goes on at once with
// what it finds.
func TestSpin(t *testing.T) {
	o, err := NewOffload(OffloadConfig{})
	if err != nil {
		t.Fatal(err)
	}
	const enough = 1000
	l := newLoop("spinning", nil, o, minOutcomes)
	l.base = time.Now()
	l.spin = int64(time.Hour)
	p := &busyPoller{scriptedPoller: scriptedPoller{waits: make(chan time.Duration), resume: make(chan []outcome)}}
	p.found = func(polls int) bool {
		if polls == 2*enough { // the time is up
			l.spin = 0
		}
		return polls == enough
	}
	l.poller = p
	go l.run()
	await(t, p.waits, "the wait after spinning")
	m := l.Metrics()
	if p.polls < 2*enough || m.StaleEvents != 1 || m.Turns < 1 || m.Turns > 3 {
		t.Errorf("got %d polls, %d events and %d turns before the wait, want at least %d, 1 and 2", p.polls, m.StaleEvents, m.Turns, 2*enough)
	}
	if m.Busy > time.Hour/2 {
		t.Errorf("got %v busy", m.Busy)
	}
	p.ending = true
	_ = l.Submit(&closeAll{l: l})
	_ = l.Submit(endLoop{l})
	p.resume <- nil
	await(t, l.done, "the end of the loop")
}

// Tasks reach a loop that spins without a system call, and the poller is left alone.
func TestSpinningLoopNeedsNoWakeup(t *testing.T) {
	l := newTestGroup(t, GroupConfig{Loops: 1, Spin: time.Hour}).Next()
	for range 1000 {
		onLoop(t, l, func() {})
	}
	if got := l.Metrics().Wakeups; got != 0 {
		t.Errorf("got %d wakeups, want none", got)
	}
	fired := make(chan struct{})
	l.Schedule(time.Microsecond, func() { close(fired) })
	await(t, fired, "a timer")
}

// One that is locked to its thread spins without yielding at every turn.
func TestSpinLocked(t *testing.T) {
	l := newTestGroup(t, GroupConfig{Loops: 1, Spin: time.Hour, LockThread: true}).Next()
	for range 100 {
		onLoop(t, l, func() {})
	}
}

// Whoever has been asked to wake the loop may still be at it when the loop ends: its
// poller lives that long.
func TestSemantics5_5_EndWaitsForWakes(t *testing.T) {
	l, p := newScripted(t)
	await(t, p.waits, "the first wait")
	waking, finish := make(chan struct{}), make(chan struct{})
	p.mu.Lock()
	p.waking = func() {
		if p.count() == 1 {
			close(waking)
			<-finish
		}
	}
	p.mu.Unlock()
	submitted := make(chan error)
	go func() { submitted <- l.Execute(func() {}) }()
	await(t, waking, "the wake")
	p.mu.Lock()
	p.ending = true
	p.mu.Unlock()
	p.resume <- nil
	_ = l.Submit(&closeAll{l: l})
	_ = l.Submit(endLoop{l})
	for l.Execute(func() {}) == nil { // until the loop takes no more
		runtime.Gosched()
	}
	select {
	case <-p.closed:
		t.Error("got the poller closed in the middle of a wake")
	default:
	}
	close(finish)
	if err := await(t, submitted, "the task"); err != nil {
		t.Errorf("got %v", err)
	}
	await(t, p.closed, "the end of the poller")
}
