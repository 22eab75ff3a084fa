package eventloop

import (
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/runnel-io/runnel/internal/sys"
)

// Whatever goes on for ever gets its share of each turn and leaves theirs to the
// others.
func TestNothingStarves(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	const turns = 50
	var events, other, tasks, timers, ends int
	const fd, quiet = 1, 2
	stop := false
	always := register(t, m, fd, &testHandle{io: func(Event) {
		events++
		l.poller.(*manualPoller).ready(fd, EventRead) // there is always more
	}})
	once := register(t, m, quiet, &testHandle{io: func(Event) { other++ }})
	var task, end funcTask
	task = func() {
		if tasks++; !stop {
			_ = l.Submit(task)
		}
	}
	end = func() {
		if ends++; !stop {
			l.AtTurnEnd(end)
		}
	}
	var tm *Timer
	m.Enter(func() {
		_ = always.SetInterest(EventRead)
		_ = once.SetInterest(EventRead)
		l.AtTurnEnd(end)
		tm = l.Schedule(0, func() { timers++; tm.Reset(0) })
		_ = l.Submit(task)
	})
	m.Ready(fd, EventRead)
	for range turns {
		m.Ready(quiet, EventRead)
		m.Turn()
	}
	for _, c := range []struct {
		what string
		got  int
	}{
		{"events of a descriptor that is always ready", events},
		{"events of another one", other},
		{"runs of a task that submits itself", tasks},
		{"calls of a timer that resets itself to now", timers},
		{"ends of a turn that ask for the next", ends},
	} {
		if c.got != turns {
			t.Errorf("%s: got %d in %d turns, want one in each", c.what, c.got, turns)
		}
	}
	stop = true
}

// Each call that a turn makes is counted with its kind.
func TestMetricsCountCalls(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	const fd, tasks, timers, ends = 1, 2, 3, 4
	r := register(t, m, fd, &testHandle{io: func(Event) {}})
	m.Enter(func() { _ = r.SetInterest(EventRead) })
	m.RunUntilIdle()
	before := l.Metrics()
	m.Ready(fd, EventRead)
	m.Enter(func() {
		for range tasks {
			_ = l.Execute(func() {})
		}
		for range timers {
			l.Schedule(0, func() {})
		}
		for range ends {
			l.AtTurnEnd(funcTask(func() {}))
		}
	})
	m.RunUntilIdle()
	got := l.Metrics()
	for _, c := range []struct {
		what      string
		got, want uint64
	}{
		{"events", got.Events - before.Events, 1},
		{"tasks", got.Tasks - before.Tasks, tasks},
		{"timers", got.TimersFired - before.TimersFired, timers},
		{"turn ends", got.TurnEnds - before.TurnEnds, ends},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %d, want %d", c.what, c.got, c.want)
		}
	}
}

// The same on a loop with a poller, where nobody counts turns.
func TestATaskForEverStarvesNobody(t *testing.T) {
	l := newTestLoop(t, nil)
	r, w := newPipe(t)
	stop, runs := false, 0 // loop-only
	var again funcTask
	again = func() {
		if runs++; !stop {
			_ = l.Submit(again)
		}
	}
	_ = l.Submit(again)
	got := make(chan string, 2)
	onLoop(t, l, func() {
		var reg *Registration
		reg, _ = l.Register(r, &testHandle{io: func(Event) {
			reg.Close(func() { mustClose(t, r) })
			got <- "event"
		}})
		_ = reg.SetInterest(EventRead)
		l.Schedule(time.Microsecond, func() { got <- "timer" })
	})
	if _, err := sys.Write(w, []byte("x")); err != nil {
		t.Fatal(err)
	}
	both := []string{await(t, got, "an event or a timer"), await(t, got, "the other one")}
	if slices.Sort(both); !slices.Equal(both, []string{"event", "timer"}) {
		t.Errorf("got %v, want one of each", both)
	}
	onLoop(t, l, func() {
		stop = true
		if runs == 0 {
			t.Error("got no run of the task")
		}
	})
	mustClose(t, w)
}

// A descriptor that is always ready does not keep tasks, timers and other
// descriptors waiting.
func TestADescriptorForEverStarvesNobody(t *testing.T) {
	l := newTestLoop(t, nil)
	r, w := newPipe(t)
	r2, w2 := newPipe(t)
	events := 0 // loop-only
	var always *Registration
	got := make(chan string, 3)
	begun := make(chan struct{})
	onLoop(t, l, func() {
		always, _ = l.Register(w, &testHandle{io: func(Event) { // there is always room
			if events++; events == 1 {
				close(begun)
			}
		}})
		_ = always.SetInterest(EventWrite)
	})
	await(t, begun, "the first event")
	_ = l.Execute(func() {
		var reg *Registration
		reg, _ = l.Register(r2, &testHandle{io: func(Event) {
			reg.Close(func() { mustClose(t, r2) })
			got <- "event"
		}})
		_ = reg.SetInterest(EventRead)
		l.Schedule(time.Microsecond, func() { got <- "timer" })
		got <- "task"
	})
	if _, err := sys.Write(w2, []byte("x")); err != nil {
		t.Fatal(err)
	}
	var all []string
	for range 3 {
		all = append(all, await(t, got, "the others"))
	}
	if slices.Sort(all); !slices.Equal(all, []string{"event", "task", "timer"}) {
		t.Errorf("got %v, want one of each", all)
	}
	onLoop(t, l, func() { always.Close(func() { mustClose(t, w) }) })
	mustClose(t, r)
	mustClose(t, w2)
}

// Work that takes long is cut off: what is left comes in the next turns, in order,
// and the other stages come in between.
func TestStagesHaveATimeLimit(t *testing.T) {
	const n, long = 300, 100 * time.Microsecond
	tests := []struct {
		name  string
		start func(t *testing.T, m *Manual, call func(i int) func())
	}{
		{"tasks", func(_ *testing.T, m *Manual, call func(int) func()) {
			for i := range n {
				_ = m.Loop().Execute(call(i))
			}
		}},
		{"timers", func(_ *testing.T, m *Manual, call func(int) func()) {
			m.Enter(func() {
				for i := range n {
					m.Loop().Schedule(0, call(i))
				}
			})
		}},
		{"I/O", func(t *testing.T, m *Manual, call func(int) func()) {
			m.loop.outcomes = make([]outcome, n)
			for i := range n {
				f := call(i)
				r := register(t, m, i, &testHandle{io: func(Event) { f() }})
				m.Enter(func() { _ = r.SetInterest(EventRead) })
				m.Ready(i, EventRead)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newTestManual(t)
			l := m.Loop()
			var got []int
			tt.start(t, m, func(i int) func() {
				return func() {
					got = append(got, i)
					m.nanos.Add(int64(long)) // it takes that long
				}
			})
			turns, most := 0, 0
			for len(got) < n && turns < n {
				before := len(got)
				ended := false
				m.Enter(func() { l.AtTurnEnd(funcTask(func() { ended = true })) })
				m.Turn()
				turns++
				if most = max(most, len(got)-before); len(got) == before {
					t.Fatalf("got no call in turn %d", turns)
				}
				if !ended {
					t.Errorf("got no end of turn %d", turns)
				}
			}
			want := make([]int, n)
			for i := range want {
				want[i] = i
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want 0 to %d in order", got, n-1)
			}
			// Two looks at the clock may be 16 calls apart at the start.
			if limit := int(stageTime/int64(long)) + clockEvery + 1; most > limit {
				t.Errorf("got %d calls of %v in one turn, want at most %d", most, long, limit)
			}
		})
	}
}

// What has run is not kept alive by a loop that waits.
func TestIdleLoopKeepsNothingAlive(t *testing.T) {
	logger, _ := newTestLogger() // with a watchdog, which has pointers of its own
	l := newTestGroup(t, GroupConfig{Loops: 1, Logger: logger}).Next()
	const kinds = 4
	gone := make(chan string, kinds)
	type thing struct{ _ [64]byte }
	made := func(what string) *thing {
		th := new(thing)
		runtime.AddCleanup(th, func(what string) { gone <- what }, what)
		return th
	}
	ran := make(chan struct{}, kinds)
	use := func(th *thing) func() {
		return func() { runtime.KeepAlive(th); ran <- struct{}{} }
	}
	func() {
		task, end, timer, handle := use(made("task")), use(made("turn end")), use(made("timer")), use(made("handle"))
		_ = l.Execute(func() {
			l.AtTurnEnd(funcTask(end))
			fd, err := sys.Eventfd()
			if err != nil {
				t.Errorf("eventfd: %v", err)
				return
			}
			var reg *Registration
			reg, _ = l.Register(fd, &testHandle{io: func(Event) {
				reg.Close(func() { mustClose(t, fd) })
				handle()
			}})
			_ = reg.SetInterest(EventWrite)
		})
		_ = l.Execute(task)
		l.Schedule(0, timer)
	}()
	for range kinds {
		await(t, ran, "the calls")
	}
	deadline := time.After(patience)
	for left := kinds; left > 0; {
		runtime.GC() // the loop waits soon, and cleanups run some time after
		runtime.Gosched()
		select {
		case <-gone:
			left--
		case <-deadline:
			t.Fatalf("got %d things kept alive by a loop that waits", left)
		default:
		}
	}
}
