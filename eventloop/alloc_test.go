package eventloop

import (
	"testing"
	"time"

	"github.com/runnel-io/runnel/internal/goid"
	"github.com/runnel-io/runnel/internal/invariant"
)

// checkAllocs fails the test if f allocates more than want per call. Builds with
// more checks may, and so may architectures on which asking for a goroutine's
// identity does.
func checkAllocs(t *testing.T, what string, want float64, f func()) {
	t.Helper()
	if invariant.Enabled {
		t.Skip("checks allocate")
	}
	if testing.AllocsPerRun(10, func() { goid.Current() }) > 0 {
		t.Skip("goroutine identities allocate")
	}
	if got := testing.AllocsPerRun(200, f); got > want {
		t.Errorf("%s: got %v allocations, want at most %v", what, got, want)
	}
}

func TestAllocations(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	var events int
	r := register(t, m, 1, &testHandle{io: func(Event) { events++ }})
	var task countTask
	f := func() { task.n++ }
	op := &Op{Run: func() (int64, error) { return 1, nil }}
	var p *Promise
	m.Enter(func() {
		_ = r.SetInterest(EventRead)
		tm := l.Schedule(time.Hour, f)
		checkAllocs(t, "a turn with an event, tasks, and turn-end work", 0, func() {
			l.poller.(*manualPoller).ready(1, EventRead)
			_ = l.Submit(&task)
			_ = l.Execute(f)
			l.AtTurnEnd(&task)
			m.turn()
		})
		checkAllocs(t, "stopping and moving a timer", 0, func() {
			tm.Reset(2 * time.Hour)
			tm.Stop()
			tm.Reset(time.Hour)
		})
		checkAllocs(t, "an Op", 0, func() {
			_ = r.Submit(op)
			m.turn()
		})
		checkAllocs(t, "a completion that nobody asked for", 0, func() { p.Complete(nil) })
		checkAllocs(t, "a completion with a callback", 1, func() { // the Promise
			p := NewPromise(l)
			p.Then(func(error) {})
			p.Complete(nil)
		})
		checkAllocs(t, "scheduling a timer", 1, func() { l.Schedule(0, f) }) // the Timer
		checkAllocs(t, "interest", 0, func() {
			_ = r.SetInterest(EventWrite)
			_ = r.SetInterest(EventRead)
			_ = r.Suspend()
		})
	})
	if events == 0 || task.n == 0 {
		t.Errorf("got %d events and %d tasks: nothing was measured", events, task.n)
	}
}

// The same on the real poller, without and with a watchdog: between two turns of a
// ping-pong over tasks and events nothing is allocated.
func TestAllocationsOfALoop(t *testing.T) {
	logger, _ := newTestLogger()
	for name, cfg := range map[string]GroupConfig{
		"plain":    {},
		"fine":     {FineTimers: true},
		"watchdog": {Logger: logger},
		"spinning": {Spin: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Loops = 1
			l := newTestGroup(t, cfg).Next()
			reached := make(chan struct{}, 1)
			task := &signalTask{reached}
			checkAllocs(t, "a task from another goroutine", 0, func() {
				_ = l.Submit(task)
				<-reached
			})
		})
	}
}

// Among 500,000 armed timers each change of one is free of allocations, except that a
// new one is an object.
func TestAllocationsOfTimers(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	f := func() {}
	m.Enter(func() {
		timers := make([]*Timer, 500_000)
		for i := range timers {
			timers[i] = l.Schedule(time.Hour+time.Duration(i), f)
		}
		i := 0
		next := func() *Timer { i = (i + 7919) % len(timers); return timers[i] }
		checkAllocs(t, "postponing", 0, func() { next().Reset(3 * time.Hour) })
		checkAllocs(t, "cancelling", 0, func() { next().Stop() })
		checkAllocs(t, "arming again", 0, func() { next().Reset(2 * time.Hour) })
		checkAllocs(t, "an earlier deadline", 0, func() { next().Reset(time.Minute + time.Duration(i)) })
		checkAllocs(t, "arming a new one and cancelling it", 1, func() { l.Schedule(time.Hour, f).Stop() })
	})
}

func TestAllocationsOfRepeatingTimers(t *testing.T) {
	m := newTestManual(t)
	n := 0
	m.Enter(func() {
		m.Loop().ScheduleEvery(time.Second, func() { n++ })
		checkAllocs(t, "a call of a repeating timer", 0, func() {
			m.nanos.Add(int64(time.Second))
			m.turn()
		})
	})
	if n == 0 {
		t.Error("got no call: nothing was measured")
	}
}

// signalTask tells that it has run.
type signalTask struct{ c chan struct{} }

func (s *signalTask) Run() { s.c <- struct{}{} }
