package eventloop

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/goid"
)

func TestExecuteKeepsTheOrderOfEachGoroutine(t *testing.T) {
	l := newTestLoop(t, nil)
	const goroutines, each = 8, 2000
	got := make([][]int, goroutines) // loop-only
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				if err := l.Execute(func() { got[g] = append(got[g], i) }); err != nil {
					t.Errorf("Execute: %v", err)
				}
			}
		})
	}
	wg.Wait()
	onLoop(t, l, func() {})
	for g := range got {
		if len(got[g]) != each || !slices.IsSorted(got[g]) {
			t.Errorf("goroutine %d: got %d calls, in order: %v; want %d in order", g, len(got[g]), slices.IsSorted(got[g]), each)
		}
	}
}

func TestInLoop(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 2})
	a, b := g.Loops()[0], g.Loops()[1]
	if a.InLoop() {
		t.Error("got InLoop on the test's goroutine")
	}
	onLoop(t, a, func() {
		if !a.InLoop() {
			t.Error("got InLoop false on the loop")
		}
		if b.InLoop() {
			t.Error("got InLoop true on another loop")
		}
	})
	off := make(chan bool)
	onLoop(t, a, func() {
		if err := a.Offload().Submit(func() { off <- a.InLoop() }); err != nil {
			t.Errorf("Submit: %v", err)
		}
	})
	if await(t, off, "the offloaded function") {
		t.Error("got InLoop true in an offloaded function")
	}
}

func TestLoopNames(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 2, Name: "front"})
	a, b := g.Next(), g.Next()
	if a.Name() != "front-0" || b.Name() != "front-1" {
		t.Errorf("got names %q, %q, want front-0, front-1", a.Name(), b.Name())
	}
	if a.ID() == b.ID() {
		t.Errorf("got the id %d twice", a.ID())
	}
	if g.Next() != a {
		t.Error("got another loop, want Next to begin again")
	}
	if a.Logger() == nil {
		t.Error("got no logger, want one that discards")
	}
}

// scriptedPoller is the poller of a loop whose kernel is the test: a poll that waits
// sends its timeout and goes on when the test says so.
type scriptedPoller struct {
	waits  chan time.Duration
	resume chan []outcome

	takesOps chan *Op      // gets the Ops that the poller takes; nil: none
	waking   func()        // called by wake; nil: nothing
	closed   chan struct{} // closed by close; nil: not

	mu     sync.Mutex
	wakes  int
	ending bool
}

func (p *scriptedPoller) arm(*Registration, Event) error { return nil }
func (p *scriptedPoller) disarm(*Registration) error     { return nil }

func (p *scriptedPoller) submit(op *Op) bool {
	if p.takesOps == nil {
		return false
	}
	p.takesOps <- op
	return true
}

func (p *scriptedPoller) poll(out []outcome, timeout time.Duration) (int, error) {
	if timeout == 0 {
		return 0, nil
	}
	p.mu.Lock()
	closed := p.ending
	p.mu.Unlock()
	if closed {
		runtime.Gosched()
		return 0, nil
	}
	p.waits <- timeout
	return copy(out, <-p.resume), nil
}

func (p *scriptedPoller) wake() error {
	p.mu.Lock()
	p.wakes++
	waking := p.waking
	p.mu.Unlock()
	if waking != nil {
		waking()
	}
	return nil
}

func (p *scriptedPoller) close() error {
	if p.closed != nil {
		close(p.closed)
	}
	return nil
}

func (p *scriptedPoller) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wakes
}

// newScripted starts a loop on a scripted poller.
func newScripted(t *testing.T) (*Loop, *scriptedPoller) {
	o, err := NewOffload(OffloadConfig{})
	if err != nil {
		t.Fatal(err)
	}
	l := newLoop("scripted", nil, o, minOutcomes)
	l.base = time.Now()
	p := &scriptedPoller{waits: make(chan time.Duration), resume: make(chan []outcome), closed: make(chan struct{})}
	l.poller = p
	go l.run()
	t.Cleanup(func() {
		p.mu.Lock()
		p.ending = true
		p.mu.Unlock()
		_ = l.Submit(&closeAll{l: l})
		_ = l.Submit(endLoop{l})
		for {
			select {
			case <-l.done:
				return
			case <-p.waits:
			case p.resume <- nil:
			}
		}
	})
	return l, p
}

func TestSemantics5_5_OneWakeupPerBurst(t *testing.T) {
	l, p := newScripted(t)
	await(t, p.waits, "the first wait") // the loop waits in the poller now
	var task countTask
	for burst := 1; burst <= 3; burst++ {
		for range 1000 {
			if err := l.Submit(&task); err != nil {
				t.Fatalf("Submit: %v", err)
			}
		}
		if got := p.count(); got != burst {
			t.Fatalf("got %d wakeups after burst %d, want one each", got, burst)
		}
		p.resume <- nil
		await(t, p.waits, "the next wait")
		if task.n != 1000*burst {
			t.Fatalf("got %d runs before the loop waits again, want %d", task.n, 1000*burst)
		}
	}
	if got := l.Metrics().Wakeups; got != 3 {
		t.Errorf("got %d wakeups in Metrics, want 3", got)
	}
	p.resume <- nil
	await(t, p.waits, "the wait before the end")
}

// A loop that is awake is not woken: what it is given runs before it waits again.
func TestSemantics5_5_NoWakeupOfALoopAtWork(t *testing.T) {
	l, p := newScripted(t)
	await(t, p.waits, "the first wait")
	running, finish := make(chan struct{}), make(chan struct{})
	if err := l.Execute(func() { close(running); <-finish }); err != nil {
		t.Fatal(err)
	}
	p.resume <- nil
	await(t, running, "the task")
	var task countTask
	for range 100 {
		if err := l.Submit(&task); err != nil {
			t.Fatal(err)
		}
	}
	close(finish)
	await(t, p.waits, "the next wait")
	if task.n != 100 || p.count() != 1 {
		t.Errorf("got %d runs and %d wakeups, want 100 and 1 (that of the first task)", task.n, p.count())
	}
}

// Each event is one turn: a loop that waits does nothing else.
func TestIdleLoopDoesNotSpin(t *testing.T) {
	l, p := newScripted(t)
	await(t, p.waits, "the first wait")
	before := l.Metrics()
	const rounds = 10
	for range rounds {
		p.resume <- nil
		if timeout := await(t, p.waits, "the next wait"); timeout >= 0 {
			t.Fatalf("got a wait of %v, want one without end", timeout)
		}
	}
	after := l.Metrics()
	if got := after.Turns - before.Turns; got != rounds {
		t.Errorf("got %d turns for %d returns of the poll, want as many", got, rounds)
	}
	if got := after.Blocks - before.Blocks; got != rounds {
		t.Errorf("got %d waits, want %d", got, rounds)
	}
}

// The same with the real poller: between two tasks the loop waits, and it takes a
// turn for each.
func TestIdleLoopWaitsInThePoller(t *testing.T) {
	l := newTestLoop(t, nil)
	settle := func() Metrics {
		for {
			before := l.Metrics()
			for range 100 {
				runtime.Gosched()
			}
			if m := l.Metrics(); m.Blocks > 0 && m.Blocks == before.Blocks && m.Tasks == before.Tasks && l.sleep.Load() == asleep {
				return m
			}
		}
	}
	onLoop(t, l, func() {})
	before := settle()
	onLoop(t, l, func() {})
	after := settle()
	if got := after.Turns - before.Turns; got > 2 {
		t.Errorf("got %d turns for one task, want at most 2", got)
	}
	if got := after.Wakeups - before.Wakeups; got > 1 {
		t.Errorf("got %d wakeups for one task, want at most 1", got)
	}
}

func TestTasksOfATaskRunInTheNextTurn(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	var got []string
	note := func(s string) func() { return func() { got = append(got, s) } }
	_ = l.Execute(func() {
		got = append(got, "a")
		_ = l.Execute(note("c"))
		l.AtTurnEnd(funcTask(note("end of a")))
	})
	_ = l.Execute(note("b"))
	m.Turn()
	want := []string{"a", "b", "end of a"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v after a turn, want %v", got, want)
	}
	m.Turn()
	if want = append(want, "c"); !slices.Equal(got, want) {
		t.Errorf("got %v after two turns, want %v", got, want)
	}
}

func TestTaskBudgetLetsIOIn(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	var task countTask
	for range taskBudget + 10 {
		_ = l.Submit(&task)
	}
	m.Turn()
	if task.n != taskBudget {
		t.Errorf("got %d tasks in a turn, want the budget of %d", task.n, taskBudget)
	}
	_ = l.Submit(&task)
	m.Turn()
	if want := taskBudget + 10; task.n != want {
		t.Errorf("got %d tasks after two turns, want %d: the rest of the batch first", task.n, want)
	}
	m.Turn()
	if want := taskBudget + 11; task.n != want {
		t.Errorf("got %d tasks after three turns, want %d", task.n, want)
	}
}

func TestAtTurnEnd(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	var got []string
	m.Enter(func() {
		l.AtTurnEnd(funcTask(func() {
			got = append(got, "first")
			l.AtTurnEnd(funcTask(func() { got = append(got, "from the turn end") }))
		}))
		l.AtTurnEnd(funcTask(func() { got = append(got, "second") }))
	})
	l.Schedule(0, func() { got = append(got, "timer") })
	_ = l.Execute(func() { got = append(got, "task") })
	m.Turn()
	want := []string{"task", "timer", "first", "second"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	m.Turn()
	if want = append(want, "from the turn end"); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// What the end of a turn asks for is not left until something happens.
func TestSemantics5_6_PollDoesNotWaitForTurnEndWork(t *testing.T) {
	l, p := newScripted(t)
	await(t, p.waits, "the first wait")
	var got []string
	_ = l.Execute(func() {
		l.AtTurnEnd(funcTask(func() {
			got = append(got, "end")
			l.AtTurnEnd(funcTask(func() { got = append(got, "next end") }))
		}))
	})
	p.resume <- nil
	await(t, p.waits, "the next wait")
	if want := []string{"end", "next end"}; !slices.Equal(got, want) {
		t.Errorf("got %v before the next wait, want %v", got, want)
	}
}

func TestPanicsAreContained(t *testing.T) {
	logger, logs := newTestLogger()
	l := newTestLoop(t, logger)
	ran := make(chan string, 10)
	onLoop(t, l, func() {
		_ = l.Execute(func() { panic("task blew up") })
		_ = l.Execute(func() { ran <- "next task" })
		l.Schedule(0, func() { panic("timer blew up") })
		l.Schedule(0, func() { ran <- "next timer" })
		l.AtTurnEnd(funcTask(func() { panic("turn end blew up") }))
		l.AtTurnEnd(funcTask(func() { ran <- "next turn end" }))
		p := NewPromise(l)
		p.Then(func(error) { panic("callback blew up") })
		p.Then(func(error) { ran <- "next callback" })
		p.Complete(nil)
		ran <- "behind the callbacks"
	})
	var got []string
	for range 5 {
		got = append(got, await(t, ran, "what follows a panic"))
	}
	slices.Sort(got)
	want := []string{"behind the callbacks", "next callback", "next task", "next timer", "next turn end"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	onLoop(t, l, func() {
		if m := l.Metrics(); m.Panics != 4 || m.Restarts != 0 {
			t.Errorf("got %d panics and %d restarts, want 4 and 0", m.Panics, m.Restarts)
		}
	})
	entries := logs.FilterMessage("panic on a loop").All()
	if len(entries) != 4 {
		t.Fatalf("got %d panics in the log, want 4", len(entries))
	}
	for _, e := range entries {
		fields := e.ContextMap()
		if stack := fmt.Sprintf("%s", fields["stack"]); !strings.Contains(stack, "TestPanicsAreContained") {
			t.Errorf("got a stack without the function that panicked:\n%s", stack)
		}
		if fields["loop"] != l.Name() {
			t.Errorf("got loop %v in the log, want %s", fields["loop"], l.Name())
		}
	}
}

func TestGoexitRestartsTheLoop(t *testing.T) {
	logger, logs := newTestLogger()
	pool := newTestPool(t)
	l := newTestLoop(t, logger)
	var before uintptr
	var cache buffer.Allocator
	var order []string
	onLoop(t, l, func() {
		before = goid.Current()
		cache = l.Allocator(pool)
		cache.Alloc(64).Release()
		p := NewPromise(l)
		p.Then(func(error) { order = append(order, "goexit"); runtime.Goexit() })
		p.Then(func(error) { order = append(order, "next callback") })
		_ = l.Execute(func() { p.Complete(nil) })
		_ = l.Execute(func() { order = append(order, "next task") })
	})
	checked := make(chan struct{})
	_ = l.Execute(func() {
		defer close(checked)
		if !l.InLoop() {
			t.Error("got InLoop false on the new goroutine")
		}
		if goid.Current() == before {
			t.Error("got the old goroutine, want a new one")
		}
		if l.Allocator(pool) != cache {
			t.Error("got another cache, want the old one bound anew")
		}
		cache.Alloc(64).Release()
	})
	await(t, checked, "the loop after Goexit")
	onLoop(t, l, func() {
		want := []string{"goexit", "next task", "next callback"}
		if !slices.Equal(order, want) {
			t.Errorf("got %v, want %v", order, want)
		}
		if m := l.Metrics(); m.Restarts != 1 || m.Panics != 0 {
			t.Errorf("got %d restarts and %d panics, want 1 and 0", m.Restarts, m.Panics)
		}
	})
	if n := logs.FilterMessageSnippet("Goexit").Len(); n != 1 {
		t.Errorf("got %d lines about Goexit in the log, want 1", n)
	}
}

func TestAllocator(t *testing.T) {
	pool := newTestPool(t)
	m := newTestManual(t)
	l := m.Loop()
	m.Enter(func() {
		a := l.Allocator(pool)
		if _, ok := a.(*buffer.Cache); !ok {
			t.Errorf("got %T for a pool, want the loop's cache of it", a)
		}
		if l.Allocator(pool) != a {
			t.Error("got a second cache for the same pool")
		}
		if l.Allocator(nil) != l.Allocator(buffer.Default()) {
			t.Error("got for nil another allocator than for the default pool")
		}
		if l.Allocator(buffer.Heap) != buffer.Heap {
			t.Error("got for Heap another allocator than Heap")
		}
		a.Alloc(100).Release()
	})
}

// A loop that waits gives back what its caches hold; with work it does not.
func TestIdleLoopTrims(t *testing.T) {
	pool := newTestPool(t)
	l, p := newScripted(t)
	await(t, p.waits, "the first wait")
	_ = l.Execute(func() { l.Allocator(pool).Alloc(1 << 16).Release() })
	p.resume <- nil
	// Until the time is up the loop waits no longer than that; then it gives the
	// memory back and waits without end.
	waits := 0
	for timeout := await(t, p.waits, "a wait"); timeout >= 0; timeout = await(t, p.waits, "a wait") {
		if timeout > time.Duration(idleTime) {
			t.Fatalf("got a wait of %v with memory to give back, want at most %v", timeout, time.Duration(idleTime))
		}
		waits++
		l.base = l.base.Add(-time.Duration(idleTime)) // the loop is in poll: let the time pass
		p.resume <- nil
	}
	if waits != 1 {
		t.Errorf("got %d bounded waits, want 1", waits)
	}
}

// Every task that is taken is run, also those of the last moment.
func TestSubmitAfterTheEnd(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 1})
	l := g.Next()
	ran, accepted := 0, 0
	busy, finished := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(finished)
		refused := func(err error) bool {
			if err != nil && !errors.Is(err, ErrLoopClosed) {
				t.Errorf("got %v, want ErrLoopClosed", err)
			}
			return err != nil
		}
		for {
			for range 64 {
				if refused(l.Execute(func() { ran++ })) {
					return
				}
				accepted++
			}
			// The loop keeps up: otherwise its queue would grow and grow.
			caughtUp := make(chan struct{})
			if refused(l.Execute(func() { close(caughtUp) })) {
				return
			}
			<-caughtUp
			if accepted == 64 {
				close(busy)
			}
		}
	}()
	await(t, busy, "the first tasks")
	shutdown(t, g)
	await(t, finished, "the first refusal")
	if ran != accepted {
		t.Errorf("got %d tasks run of %d accepted, want all", ran, accepted)
	}
	if tm := l.Schedule(0, func() { t.Error("got a call of a timer on a loop that has ended") }); tm.Stop() {
		t.Error("got an armed timer on a loop that has ended")
	}
}
