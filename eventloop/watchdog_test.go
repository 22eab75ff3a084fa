package eventloop

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/runnel-io/runnel/internal/sys"
)

// newWatched starts a loop with a watchdog that looks only when the test says so.
func newWatched(t *testing.T) (*Loop, *watchdog, *observer.ObservedLogs) {
	t.Helper()
	logger, logs := newTestLogger()
	g := newTestGroup(t, GroupConfig{Loops: 1, Logger: logger, Watchdog: time.Hour})
	return g.Next(), g.watchdog, logs
}

func (w *watchdog) lookNow() (working bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.look()
}

func TestWatchdogConfig(t *testing.T) {
	logger, _ := newTestLogger()
	tests := []struct {
		name string
		cfg  GroupConfig
		want time.Duration // 0: none
	}{
		{"default", GroupConfig{Logger: logger}, time.Second},
		{"set", GroupConfig{Logger: logger, Watchdog: time.Minute}, time.Minute},
		{"off", GroupConfig{Logger: logger, Watchdog: -1}, 0},
		{"without a logger", GroupConfig{Watchdog: time.Minute}, 0},
		{"without warnings", GroupConfig{Logger: logger.WithOptions(zap.IncreaseLevel(zap.ErrorLevel))}, 0},
	}
	for _, tt := range tests {
		tt.cfg.Loops = 1
		g := newTestGroup(t, tt.cfg)
		var got time.Duration
		if g.watchdog != nil {
			got = time.Duration(g.watchdog.limit)
		}
		if got != tt.want || (g.Next().sight != nil) != (tt.want != 0) {
			t.Errorf("%s: got a limit of %v, want %v", tt.name, got, tt.want)
		}
	}
}

// stuckCase is a way to hold a loop.
type stuckCase struct {
	name string
	want string // in the report
	hold func(t *testing.T, l *Loop, stuck func())
}

type stuckTask struct{ stuck func() }

func (s *stuckTask) Run() { s.stuck() }

var stuckCases = []stuckCase{
	{"task", "task *eventloop.stuckTask", func(_ *testing.T, l *Loop, stuck func()) {
		_ = l.Submit(&stuckTask{stuck})
	}},
	{"function", "task github.com/runnel-io/runnel/eventloop.TestWatchdogReports", func(_ *testing.T, l *Loop, stuck func()) {
		_ = l.Execute(stuck)
	}},
	{"timer", "timer github.com/runnel-io/runnel/eventloop.TestWatchdogReports", func(_ *testing.T, l *Loop, stuck func()) {
		l.Schedule(0, stuck)
	}},
	{"repeating timer", "repeating timer", func(_ *testing.T, l *Loop, stuck func()) {
		var tm *Timer
		tm = l.ScheduleEvery(1, func() { stuck(); tm.Stop() })
	}},
	{"turn end", "turn end *eventloop.stuckTask", func(t *testing.T, l *Loop, stuck func()) {
		onLoop(t, l, func() { l.AtTurnEnd(&stuckTask{stuck}) })
	}},
	{"handle", "I/O of *eventloop.testHandle", func(t *testing.T, l *Loop, stuck func()) {
		onLoop(t, l, func() {
			fd, err := sys.Eventfd()
			if err != nil {
				t.Fatalf("eventfd: %v", err)
			}
			var r *Registration
			r, _ = l.Register(fd, &testHandle{io: func(Event) {
				stuck()
				r.Close(func() { mustClose(t, fd) })
			}})
			_ = r.SetInterest(EventWrite)
		})
	}},
}

// A call that is seen twice is reported once, with what it is.
func TestWatchdogReports(t *testing.T) {
	for _, tt := range stuckCases {
		t.Run(tt.name, func(t *testing.T) {
			l, w, logs := newWatched(t)
			in, out := make(chan struct{}), make(chan struct{})
			tt.hold(t, l, func() { close(in); <-out })
			await(t, in, "the call")
			for looks := 1; looks <= 4; looks++ {
				if !w.lookNow() {
					t.Errorf("got no loop at work in look %d", looks)
				}
				want := min(looks-1, 1)
				if got := logs.FilterMessage("a call holds its loop").Len(); got != want {
					t.Errorf("got %d reports after %d looks, want %d", got, looks, want)
				}
			}
			close(out)
			onLoop(t, l, func() {})
			fields := logs.FilterMessage("a call holds its loop").All()[0].ContextMap()
			if got := fields["in"].(string); !strings.HasPrefix(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if fields["loop"] != l.Name() {
				t.Errorf("got loop %v, want %s", fields["loop"], l.Name())
			}
			if got := fields["for"].(time.Duration); got <= 0 {
				t.Errorf("got %v as its time", got)
			}
		})
	}
}

// The loop's own stack comes with the report, once in a while.
func TestWatchdogStacks(t *testing.T) {
	lastDump.Store(0)
	l, w, logs := newWatched(t)
	l.Describe(func() string { return "channel 7, handler echo" })
	for range 2 {
		in, out := make(chan struct{}), make(chan struct{})
		_ = l.Execute(func() { holdTheLoop(in, out) })
		await(t, in, "the call")
		w.lookNow()
		w.lookNow()
		close(out)
		onLoop(t, l, func() {})
	}
	reports := logs.FilterMessage("a call holds its loop").All()
	if len(reports) != 2 {
		t.Fatalf("got %d reports, want 2", len(reports))
	}
	fields := reports[0].ContextMap()
	stack, all := fmt.Sprintf("%s", fields["stack"]), fmt.Sprintf("%s", fields["goroutines"])
	if !strings.Contains(stack, "holdTheLoop") || !strings.Contains(stack, "runTasks") || strings.Count(stack, "goroutine ") > 2 {
		t.Errorf("got as the loop's stack:\n%s", stack)
	}
	if !strings.Contains(all, "TestWatchdogStacks") || len(all) > dumpSize {
		t.Errorf("got %d bytes of stacks, want those of all goroutines", len(all))
	}
	for _, r := range reports {
		if got := r.ContextMap()["inside"]; got != "channel 7, handler echo" {
			t.Errorf("got %v as what it is doing inside", got)
		}
	}
	if _, again := reports[1].ContextMap()["goroutines"]; again {
		t.Error("got stacks twice within a minute")
	}
}

//go:noinline
func holdTheLoop(in, out chan struct{}) { close(in); <-out }

// A loop that goes on making calls is not reported, however long it is at work, and
// one that waits is not at work.
func TestWatchdogSaysNothing(t *testing.T) {
	l, w, logs := newWatched(t)
	for range 5 {
		in, out := make(chan struct{}), make(chan struct{})
		_ = l.Execute(func() { close(in); <-out })
		await(t, in, "the call")
		if !w.lookNow() {
			t.Error("got no loop at work")
		}
		close(out)
		onLoop(t, l, func() {})
	}
	for w.working() { // looks are a limit apart: two in a row might see the same call
		runtime.Gosched()
	}
	if w.lookNow() {
		t.Error("got a loop at work that waits")
	}
	if n := logs.FilterMessage("a call holds its loop").Len(); n != 0 {
		t.Errorf("got %d reports, want none: %v", n, logs.All())
	}
}

// A description that breaks does not take the report with it.
func TestWatchdogAndABadDescription(t *testing.T) {
	l, w, logs := newWatched(t)
	l.Describe(func() string { panic("no idea") })
	in, out := make(chan struct{}), make(chan struct{})
	_ = l.Execute(func() { close(in); <-out })
	await(t, in, "the call")
	w.lookNow()
	w.lookNow()
	close(out)
	onLoop(t, l, func() {})
	reports := logs.FilterMessage("a call holds its loop").All()
	if len(reports) != 1 {
		t.Fatalf("got %d reports, want 1", len(reports))
	}
	if got := fmt.Sprint(reports[0].ContextMap()["inside"]); !strings.Contains(got, "no idea") {
		t.Errorf("got %q", got)
	}
}

// The loop itself reports, and counts, what has returned late.
func TestHeldIsCounted(t *testing.T) {
	logger, logs := newTestLogger()
	l := newTestGroup(t, GroupConfig{Loops: 1, Logger: logger, Watchdog: 1}).Next() // 1 ns: every call
	onLoop(t, l, func() {})
	onLoop(t, l, func() {
		if got := l.Metrics().Held; got == 0 {
			t.Error("got no call that held the loop")
		}
	})
	found := logs.FilterMessage("a call held its loop").All()
	if len(found) == 0 {
		t.Fatal("got no report")
	}
	fields := found[0].ContextMap()
	if got := fields["for"].(time.Duration); got < 1 {
		t.Errorf("got %v as its time", got)
	}
}

// While all loops wait no look is due; the first that goes to work asks for one.
func TestWatchdogSleepsWithItsLoops(t *testing.T) {
	logger, _ := newTestLogger()
	g := newTestGroup(t, GroupConfig{Loops: 2, Logger: logger, Watchdog: time.Hour})
	w := g.watchdog
	a, b := g.Loops()[0], g.Loops()[1]
	// fire is the end of the hour.
	fire := func() {
		t.Helper()
		if !w.timer.Stop() {
			t.Fatal("got no look that is due")
		}
		w.tick()
	}
	quiet := func() {
		for a.sleep.Load() != asleep || b.sleep.Load() != asleep {
			runtime.Gosched()
		}
	}
	onLoop(t, a, func() {})
	if !w.armed.Load() {
		t.Error("got no watchdog with a loop at work")
	}
	in, out := make(chan struct{}), make(chan struct{})
	_ = a.Execute(func() { close(in); <-out })
	await(t, in, "the call")
	fire()
	if !w.armed.Load() {
		t.Error("got no further look with a loop at work")
	}
	close(out)
	quiet()
	fire()
	if w.armed.Load() || w.timer.Stop() {
		t.Error("got a look that is due while all loops wait")
	}
	onLoop(t, b, func() {
		if !w.armed.Load() {
			t.Error("got no watchdog with the other loop at work")
		}
	})
	quiet()
	fire()
	if w.armed.Load() {
		t.Error("got a look that is due while all loops wait again")
	}
}

// Loops that go to work all the time and looks at every moment: the watchdog is
// never off while a loop is in a call.
func TestWatchdogRace(t *testing.T) {
	logger, _ := newTestLogger()
	before := goleak.IgnoreCurrent()
	g := newTestGroup(t, GroupConfig{Loops: 2, Logger: logger, Watchdog: 10 * time.Microsecond})
	for range 2000 {
		for _, l := range g.Loops() {
			onLoop(t, l, func() {
				for !g.watchdog.armed.Load() { // a look that is ending asks again
					runtime.Gosched()
				}
			})
		}
	}
	shutdown(t, g)
	if err := goleak.Find(before); err != nil {
		t.Errorf("goroutines left: %v", err)
	}
}

func TestStackOf(t *testing.T) {
	const dump = "goroutine 1 [running]:\nmain.a()\n\ngoroutine 12 [select]:\nmain.b()\n\ngoroutine 2 [runnable]:\nmain.c()\n"
	for n, want := range map[uint64]string{1: "main.a", 2: "main.c", 12: "main.b", 3: ""} {
		got := string(stackOf([]byte(dump), n))
		if want == "" && got != "" || !strings.Contains(got, want) || strings.Count(got, "goroutine") > 1 {
			t.Errorf("goroutine %d: got %q, want %q", n, got, want)
		}
	}
}
