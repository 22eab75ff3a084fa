package eventloop

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/internal/sys"
)

// The tests of this file, and those elsewhere with Semantics in their names, are
// named after the lines of SEMANTICS.md: 5 is the poller, 14 the end of a group.

// What a handle leaves unread is reported again.
func TestSemantics5_1_LevelTriggered(t *testing.T) {
	l := newTestLoop(t, nil)
	r, w := newPipe(t)
	const want = 5
	if _, err := sys.Write(w, make([]byte, want)); err != nil {
		t.Fatal(err)
	}
	events := 0 // loop-only
	done := make(chan struct{})
	onLoop(t, l, func() {
		var reg *Registration
		reg, _ = l.Register(r, &testHandle{io: func(Event) {
			events++
			var b [1]byte // one at a time
			if n, err := sys.Read(r, b[:]); n != 1 {
				t.Errorf("got %d, %v in event %d, want a byte", n, err, events)
			}
			if events == want {
				reg.Close(func() { mustClose(t, r) })
				close(done)
			}
		}})
		_ = reg.SetInterest(EventRead)
	})
	await(t, done, "an event for each byte")
	mustClose(t, w)
}

// Everything that is ready comes in one call, so that a handle can deal with the end
// of a connect before it reads, and with what is left to read before the hangup.
func TestSemantics5_2_OneCallForAll(t *testing.T) {
	l := newTestLoop(t, nil)
	r, w := newPipe(t)
	if _, err := sys.Write(w, []byte("last words")); err != nil {
		t.Fatal(err)
	}
	mustClose(t, w)
	got := make(chan Event, 1)
	onLoop(t, l, func() {
		var reg *Registration
		reg, _ = l.Register(r, &testHandle{io: func(ev Event) {
			reg.Close(func() { mustClose(t, r) })
			got <- ev
		}})
		_ = reg.SetInterest(EventRead)
	})
	if ev := await(t, got, "the events"); ev != EventRead|EventHangup {
		t.Errorf("got %v, want read|hangup in one call", ev)
	}
}

// A timer that is due when a turn ends keeps the poll from waiting.
func TestSemantics5_6_PollDoesNotWaitForADueTimer(t *testing.T) {
	l, p := newScripted(t)
	await(t, p.waits, "the first wait")
	fired := 0
	_ = l.Execute(func() {
		l.Schedule(0, func() {
			fired++
			l.Schedule(0, func() { fired++ }) // in the next turn
		})
	})
	p.resume <- nil
	await(t, p.waits, "the next wait")
	if fired != 2 {
		t.Errorf("got %d calls before the next wait, want 2", fired)
	}
}

// A turn is I/O, tasks, timers and its end, in this order.
func TestSemantics5_7_OrderOfATurn(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	var got []string
	note := func(s string) func() { return func() { got = append(got, s) } }
	r := register(t, m, 5, &testHandle{io: func(Event) {
		note("I/O")()
		_ = l.Execute(note("task"))
		l.Schedule(0, note("timer"))
		l.AtTurnEnd(funcTask(note("turn end")))
	}})
	m.Enter(func() { _ = r.SetInterest(EventRead) })
	m.Ready(5, EventRead)
	m.Turn()
	if want := []string{"I/O", "task", "timer", "turn end"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A poller that fails neither ends the loop nor makes it spin: it is logged once, and
// tasks and timers go on.
func TestSemantics5_7_FailingPoll(t *testing.T) {
	if invariant.Enabled {
		t.Skip("checks take it for a bug and end the process")
	}
	logger, logs := newTestLogger()
	l := newLoop("failing", logger, nil, minOutcomes)
	l.base = time.Now()
	l.poller = failingPoller{}
	go l.run()
	for range 3 {
		onLoop(t, l, func() {})
	}
	fired := make(chan struct{})
	l.Schedule(time.Microsecond, func() { close(fired) })
	await(t, fired, "a timer")
	onLoop(t, l, func() {
		if l.pollFails < 2 {
			t.Errorf("got %d failures in a row, want more", l.pollFails)
		}
	})
	if n := logs.FilterMessage("poll failed").Len(); n != 1 {
		t.Errorf("got %d lines in the log, want 1", n)
	}
	_ = l.Submit(&closeAll{l: l})
	_ = l.Submit(endLoop{l})
	await(t, l.done, "the end of the loop")
}

// failingPoller is broken.
type failingPoller struct{}

func (failingPoller) arm(*Registration, Event) error { return io.ErrUnexpectedEOF }
func (failingPoller) disarm(*Registration) error     { return nil }
func (failingPoller) submit(*Op) bool                { return false }
func (failingPoller) wake() error                    { return nil }
func (failingPoller) close() error                   { return nil }
func (failingPoller) poll([]outcome, time.Duration) (int, error) {
	return 0, io.ErrUnexpectedEOF
}

// beginShutdown tells the group to end and does not wait.
func beginShutdown(t *testing.T, g *Group) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g.Shutdown(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown: %v", err)
	}
}

// At the beginning of the end every handle is told to close, once; one that comes
// later is refused.
func TestSemantics14_HandlesAreClosedFirst(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 1})
	l := g.Next()
	closed := 0 // loop-only
	release := make(chan struct{})
	var during error
	onLoop(t, l, func() {
		for range 5 {
			var reg *Registration
			reg, _ = l.Register(-1, &testHandle{close: func() {
				closed++
				_, during = l.Register(-1, &testHandle{})
				reg.Close(nil)
			}})
		}
		_ = l.Offload().Submit(func() { <-release }) // holds up the end
	})
	beginShutdown(t, g)
	for done := false; !done; {
		onLoop(t, l, func() { done = l.closing })
	}
	onLoop(t, l, func() {
		if closed != 5 {
			t.Errorf("got %d handles told to close, want 5", closed)
		}
		if !errors.Is(during, ErrLoopClosed) {
			t.Errorf("got %v from Register inside CloseIO, want ErrLoopClosed", during)
		}
	})
	close(release)
	shutdown(t, g)
	if closed != 5 {
		t.Errorf("got %d calls of CloseIO at the end, want 5", closed)
	}
}

// Tasks that are brought while the group ends are taken and run, those of other
// goroutines and those of tasks.
func TestSemantics14_TasksWhileShuttingDown(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 1})
	l := g.Next()
	release := make(chan struct{})
	if err := g.Offload().Submit(func() { <-release }); err != nil {
		t.Fatal(err)
	}
	beginShutdown(t, g)
	var got []int // loop-only
	for i := range 100 {
		if err := l.Execute(func() {
			got = append(got, i)
			if i == 99 {
				_ = l.Execute(func() { got = append(got, 100) })
			}
		}); err != nil {
			t.Fatalf("task %d while shutting down: %v", i, err)
		}
	}
	close(release)
	shutdown(t, g)
	if len(got) != 101 || !slices.IsSorted(got) {
		t.Errorf("got %v, want 0 to 100", got)
	}
	if err := l.Execute(func() {}); !errors.Is(err, ErrLoopClosed) {
		t.Errorf("got %v after the end, want ErrLoopClosed", err)
	}
}

// Timers go on while the group ends, and those that have not fired by then never do.
func TestSemantics14_TimersAreDropped(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 1})
	l := g.Next()
	release := make(chan struct{})
	if err := g.Offload().Submit(func() { <-release }); err != nil {
		t.Fatal(err)
	}
	later := l.Schedule(time.Hour, func() { t.Error("got a call of a timer that was not due") })
	ticks := make(chan struct{}, 1)
	every := l.ScheduleEvery(time.Microsecond, func() {
		select {
		case ticks <- struct{}{}:
		default:
		}
	})
	beginShutdown(t, g)
	for range 3 {
		await(t, ticks, "a timer while shutting down")
	}
	close(release)
	shutdown(t, g)
	if later.Stop() || every.Stop() {
		t.Error("got Stop true of a timer of a loop that has ended")
	}
	if got := l.Metrics().TimersArmed; got != 0 {
		t.Errorf("got %d armed timers, want 0", got)
	}
	if every.Reset(0); every.Stop() {
		t.Error("got a timer armed on a loop that has ended")
	}
}

// What has been offloaded comes back before the loops end, and so does the end of
// every Op.
func TestSemantics14_OffloadedWorkComesBack(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 2, Offload: OffloadConfig{Workers: 1}})
	release := make(chan struct{})
	var results, ops [2]int // loop-only
	for i, l := range g.Loops() {
		onLoop(t, l, func() {
			for range 10 {
				_ = l.Offload().Submit(func() {
					<-release
					if err := l.Execute(func() { results[i]++ }); err != nil {
						t.Errorf("result of an offloaded function: %v", err)
					}
				})
			}
			reg, _ := l.Register(-1, &testHandle{op: func(*Op) { ops[i]++ }})
			for range 10 {
				_ = reg.Submit(&Op{Run: func() (int64, error) { <-release; return 0, nil }})
			}
		})
	}
	beginShutdown(t, g)
	close(release)
	shutdown(t, g)
	if results != [2]int{10, 10} || ops != [2]int{10, 10} {
		t.Errorf("got %v results and %v Ops back, want 10 on each loop", results, ops)
	}
}

// A task that always makes another one does not keep the group from ending.
func TestSemantics14_TheEndIsBounded(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 1})
	l := g.Next()
	runs := 0
	var task, end funcTask
	task = func() { runs++; _ = l.Submit(task) }
	end = func() { l.AtTurnEnd(end) }
	onLoop(t, l, func() { task(); end() })
	shutdown(t, g)
	if runs == 0 {
		t.Error("got no run of the task")
	}
}

// After Shutdown nothing of the group runs: not a loop, not a worker, not the
// watchdog.
func TestSemantics14_NoGoroutineIsLeft(t *testing.T) {
	logger, _ := newTestLogger()
	before := goleak.IgnoreCurrent()
	for range 20 {
		g := newTestGroup(t, GroupConfig{Loops: 3, Logger: logger, Watchdog: 100 * time.Microsecond})
		for _, l := range g.Loops() {
			onLoop(t, l, func() { _ = l.Offload().Submit(func() {}) })
		}
		shutdown(t, g)
	}
	if err := goleak.Find(before); err != nil {
		t.Errorf("goroutines left: %v", err)
	}
}
