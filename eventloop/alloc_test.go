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

// The same on the real poller: between two turns of a ping-pong over tasks and
// events nothing is allocated.
func TestAllocationsOfALoop(t *testing.T) {
	l := newTestLoop(t, nil)
	reached := make(chan struct{}, 1)
	task := &signalTask{reached}
	checkAllocs(t, "a task from another goroutine", 0, func() {
		_ = l.Submit(task)
		<-reached
	})
}

// signalTask tells that it has run.
type signalTask struct{ c chan struct{} }

func (s *signalTask) Run() { s.c <- struct{}{} }
