package eventloop

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

func newTestStrand(t testing.TB, o *Offload, cfg StrandConfig) *Strand {
	t.Helper()
	s, err := o.NewStrand(cfg)
	if err != nil {
		t.Fatalf("NewStrand: %v", err)
	}
	return s
}

func mustExecute(t testing.TB, s *Strand, f func()) {
	t.Helper()
	if err := s.Execute(f); err != nil {
		t.Errorf("Execute: %v", err)
	}
}

func TestStrandConfig(t *testing.T) {
	o := newTestOffload(t, OffloadConfig{})
	tests := []struct {
		mark, max         int
		wantMark, wantMax int // 0 for an error
	}{
		{0, 0, 256, 65536},
		{10, 0, 10, 65536},
		{100_000, 0, 100_000, 100_000},
		{0, 10, 10, 10},
		{0, 1000, 256, 1000},
		{10, 10, 10, 10},
		{11, 10, 0, 0},
		{-1, 0, 0, 0},
		{0, -1, 0, 0},
		{-2, -1, 0, 0},
	}
	for _, tt := range tests {
		s, err := o.NewStrand(StrandConfig{Mark: tt.mark, Max: tt.max})
		if tt.wantMark == 0 {
			if err == nil {
				t.Errorf("Mark %d, Max %d: got no error", tt.mark, tt.max)
			}
			continue
		}
		if err != nil || s.mark != tt.wantMark || s.max != tt.wantMax {
			t.Errorf("Mark %d, Max %d: got %d, %d, %v; want %d, %d", tt.mark, tt.max, s.mark, s.max, err, tt.wantMark, tt.wantMax)
		}
	}
}

// Tasks of many goroutines run one at a time, those of each in its order, whatever
// worker they run on. What they share has no lock: the race detector looks on.
func TestStrandOrder(t *testing.T) {
	o := newTestOffload(t, OffloadConfig{Workers: 4})
	s := newTestStrand(t, o, StrandConfig{})
	const goroutines, each = 8, 500
	got := make([][]int, goroutines)
	running, total := 0, 0
	done := make(chan struct{})
	for g := range goroutines {
		go func() {
			for i := range each {
				mustExecute(t, s, func() {
					running++
					if running != 1 || !s.InStrand() || !WouldDeadlock() {
						t.Errorf("task %d of %d: %d run, InStrand %v, WouldDeadlock %v", i, g, running, s.InStrand(), WouldDeadlock())
					}
					got[g] = append(got[g], i)
					if i%100 == 0 {
						runtime.Gosched()
					}
					running--
					if total++; total == goroutines*each {
						close(done)
					}
				})
			}
		}()
	}
	await(t, done, "all tasks")
	for g, ran := range got {
		if !slices.IsSorted(ran) || len(ran) != each {
			t.Errorf("goroutine %d: its %d tasks are not in order", g, len(ran))
		}
	}
	if s.InStrand() {
		t.Error("got InStrand on the test's goroutine")
	}
}

// A panic and a Goexit end their own task only, wherever the strand runs.
func TestStrandContainsPanicsAndGoexit(t *testing.T) {
	steps := func(s *Strand, ran *[]string, done chan struct{}) []Task {
		note := func(name string) func() { return func() { *ran = append(*ran, name) } }
		first, last := note("first"), note("last")
		return []Task{
			funcTask(first),
			funcTask(func() { panic("boom") }),
			funcTask(note("after a panic")),
			funcTask(runtime.Goexit),
			funcTask(func() { last(); close(done) }),
		}
	}
	want := []string{"first", "after a panic", "last"}
	t.Run("worker", func(t *testing.T) {
		logger, logs := newTestLogger()
		o := newTestOffload(t, OffloadConfig{Workers: 1, Logger: logger})
		s := newTestStrand(t, o, StrandConfig{})
		var ran []string
		done := make(chan struct{})
		for _, task := range steps(s, &ran, done) {
			if err := s.Submit(task); err != nil {
				t.Errorf("Submit: %v", err)
			}
		}
		await(t, done, "the last task")
		if !slices.Equal(ran, want) {
			t.Errorf("got %q, want %q", ran, want)
		}
		if n := logs.FilterMessage("panic in an offloaded function").Len(); n != 1 {
			t.Errorf("got %d panics in the log, want 1", n)
		}
		if m := o.Metrics(); m.Panics != 1 {
			t.Errorf("got %d panics counted, want 1", m.Panics)
		}
	})
	t.Run("loop", func(t *testing.T) {
		o, err := NewOffload(OffloadConfig{})
		if err != nil {
			t.Fatal(err)
		}
		l := newTestLoop(t, nil)
		s := newTestStrand(t, o, StrandConfig{Loop: l})
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		var ran []string
		done := make(chan struct{})
		for _, task := range steps(s, &ran, done) {
			s.Post(task)
		}
		s.Post(funcTask(func() {
			if !l.InLoop() {
				t.Error("the Offload is closed, and the task is not on the loop")
			}
		}))
		await(t, done, "the last task")
		onLoop(t, l, func() {})
		if !slices.Equal(ran, want) {
			t.Errorf("got %q, want %q", ran, want)
		}
	})
	t.Run("caller", func(t *testing.T) {
		logger, logs := newTestLogger()
		o, err := NewOffload(OffloadConfig{Logger: logger})
		if err != nil {
			t.Fatal(err)
		}
		s := newTestStrand(t, o, StrandConfig{})
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		var ran []string
		done := make(chan struct{})
		returned := make(chan struct{})
		go func() {
			defer close(returned)
			s.Post(funcTask(func() {
				// These come while one runs, so that they are not run inside Post.
				for _, task := range steps(s, &ran, done) {
					s.Post(task)
				}
				if len(ran) > 0 || !WouldDeadlock() || !s.InStrand() {
					t.Errorf("in a task: ran %q, WouldDeadlock %v, InStrand %v", ran, WouldDeadlock(), s.InStrand())
				}
			}))
		}()
		await(t, done, "the last task")
		await(t, returned, "the goroutine that has posted")
		if !slices.Equal(ran, want) {
			t.Errorf("got %q, want %q", ran, want)
		}
		if n := logs.FilterMessage("panic in an offloaded function").Len(); n != 1 {
			t.Errorf("got %d panics in the log, want 1", n)
		}
	})
	t.Run("manual", func(t *testing.T) {
		m := newTestManual(t)
		s := newTestStrand(t, m.Loop().Offload(), StrandConfig{})
		var ran []string
		done := make(chan struct{})
		for _, task := range steps(s, &ran, done) {
			if err := s.Submit(task); err != nil {
				t.Errorf("Submit: %v", err)
			}
		}
		func() {
			defer func() {
				if v := recover(); v != "boom" {
					t.Errorf("got panic %v from the turn, want boom", v)
				}
			}()
			m.Turn()
		}()
		goexit := make(chan struct{})
		go func() { defer close(goexit); m.Turn() }()
		await(t, goexit, "the Goexit")
		m.RunUntilIdle()
		if !slices.Equal(ran, want) {
			t.Errorf("got %q, want %q", ran, want)
		}
	})
}

// Full is told at the mark, and again at half of it; Submit refuses at Max, Post never.
func TestStrandMarks(t *testing.T) {
	m := newTestManual(t)
	var s *Strand
	var told []string
	s = newTestStrand(t, m.Loop().Offload(), StrandConfig{Mark: 4, Max: 6, Changed: func() {
		told = append(told, fmt.Sprintf("%v at %d", s.Full(), s.Waiting()))
	}})
	ran := 0
	task := funcTask(func() { ran++ })
	for i := range 6 {
		if err := s.Submit(task); err != nil {
			t.Fatalf("Submit %d: %v", i, err)
		}
		if want := i >= 3; s.Full() != want {
			t.Errorf("with %d waiting: got Full %v, want %v", i+1, s.Full(), want)
		}
	}
	if err := s.Submit(task); !errors.Is(err, ErrOffloadFull) {
		t.Errorf("Submit at Max: got %v, want ErrOffloadFull", err)
	}
	s.Post(task)
	if n := s.Waiting(); n != 7 {
		t.Errorf("got %d waiting after Post, want 7", n)
	}
	m.RunUntilIdle()
	if ran != 7 || s.Waiting() != 0 {
		t.Errorf("got %d run and %d waiting, want 7 and 0", ran, s.Waiting())
	}
	for range 3 {
		_ = s.Submit(task)
	}
	m.RunUntilIdle()
	if want := []string{"true at 4", "false at 2"}; !slices.Equal(told, want) {
		t.Errorf("got told %q, want %q", told, want)
	}
	met := s.Offload().Metrics()
	met.Longest = 0
	if want := (OffloadMetrics{Submitted: 10, Refused: 1, Ended: 10}); met != want {
		t.Errorf("metrics: got %+v, want %+v", met, want)
	}
}

// A strand lets others go first after a batch.
func TestStrandIsFair(t *testing.T) {
	m := newTestManual(t)
	var ran [2]int
	strands := [2]*Strand{}
	for i := range strands {
		strands[i] = newTestStrand(t, m.Loop().Offload(), StrandConfig{})
		for range 2 * strandBatch {
			mustExecute(t, strands[i], func() { ran[i]++ })
		}
	}
	for _, want := range [][2]int{{strandBatch, strandBatch}, {2 * strandBatch, 2 * strandBatch}} {
		m.Turn()
		if ran != want {
			t.Errorf("after a turn: got %v run, want %v", ran, want)
		}
	}
}

// One that takes long does so too: on one worker, what waits gets its turn between two
// tasks of a strand.
func TestStrandIsFairByTime(t *testing.T) {
	o := newTestOffload(t, OffloadConfig{Workers: 1})
	s := newTestStrand(t, o, StrandConfig{})
	begun, release := make(chan struct{}), make(chan struct{})
	var ran []string
	done := make(chan struct{})
	mustExecute(t, s, func() {
		close(begun)
		<-release
		for from := time.Now(); time.Since(from) < strandTime; {
			runtime.Gosched()
		}
	})
	mustExecute(t, s, func() { ran = append(ran, "second task"); close(done) })
	await(t, begun, "the first task")
	if err := o.Submit(func() { ran = append(ran, "function") }); err != nil {
		t.Fatal(err)
	}
	close(release)
	await(t, done, "the second task")
	if want := []string{"function", "second task"}; !slices.Equal(ran, want) {
		t.Errorf("got %q, want %q", ran, want)
	}
}

// A hundred strands, one worker, and an Offload that takes no more functions: strands
// are not refused, and tasks that submit others, to their own strand and to the next,
// do not wait for each other.
func TestStrandsShareOneWorker(t *testing.T) {
	o := newTestOffload(t, OffloadConfig{Workers: 1, Waiting: 1})
	const n, rounds = 100, 20
	strands := make([]*Strand, n)
	for i := range strands {
		strands[i] = newTestStrand(t, o, StrandConfig{})
	}
	begun, release := make(chan struct{}), make(chan struct{})
	if err := o.Submit(func() { close(begun); <-release }); err != nil {
		t.Fatal(err)
	}
	await(t, begun, "the worker")
	if err := o.Submit(func() {}); err != nil {
		t.Fatal(err)
	}
	if err := o.Submit(func() {}); !errors.Is(err, ErrOffloadFull) {
		t.Fatalf("got %v, want ErrOffloadFull", err)
	}
	var left sync.WaitGroup
	left.Add(n * rounds * 2)
	var step func(i, round int) func()
	step = func(i, round int) func() {
		return func() {
			left.Done()
			mustExecute(t, strands[i], left.Done)
			if round++; round < rounds {
				mustExecute(t, strands[(i+1)%n], step((i+1)%n, round))
			}
		}
	}
	for i := range n {
		mustExecute(t, strands[i], step(i, 0))
	}
	if m := o.Metrics(); m.Workers != 1 || m.Waiting != n+1 || m.Refused != 1 {
		t.Errorf("got %+v, want 1 worker, %d waiting, 1 refused", m, n+1)
	}
	close(release)
	done := make(chan struct{})
	go func() { left.Wait(); close(done) }()
	await(t, done, "all tasks")
	// The figures are complete when the worker has gone.
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	m := o.Metrics()
	if want := uint64(n*rounds*2 + 2); m.Submitted != want || m.Ended != want {
		t.Errorf("got %d submitted, %d ended; want %d", m.Submitted, m.Ended, want)
	}
	if m.Longest <= 0 || m.Workers != 0 || m.Waiting != 0 {
		t.Errorf("at the end: got %+v", m)
	}
}

// Close waits for what the strands were given, refuses new tasks, and ends strands
// that would go on for ever by themselves. What is posted later runs on the loop, and
// at last on the goroutine that finds nobody else.
func TestStrandAndClose(t *testing.T) {
	for _, manual := range []bool{false, true} {
		t.Run(fmt.Sprintf("manual=%v", manual), func(t *testing.T) {
			var l *Loop
			var o *Offload
			var m *Manual
			var end func()
			if manual {
				m = NewManual()
				l, o, end = m.Loop(), m.Loop().Offload(), m.Close
			} else {
				if runtime.GOOS != "linux" {
					t.Skip("loops with a poller need Linux")
				}
				g, err := NewGroup(GroupConfig{Loops: 1})
				if err != nil {
					t.Fatal(err)
				}
				l, o, end = g.Next(), g.Offload(), func() { shutdown(t, g) }
			}
			endless := newTestStrand(t, o, StrandConfig{Loop: l})
			var last error
			turns := 0
			var again func()
			again = func() {
				turns++
				last = endless.Execute(again)
			}
			mustExecute(t, endless, again)
			s := newTestStrand(t, o, StrandConfig{Loop: l})
			ran := 0
			for range 500 {
				mustExecute(t, s, func() { ran++ })
			}
			// Behind the Offload's end and before the loop's.
			atEnd := make(chan bool, 1)
			bridge := newTestStrand(t, o, StrandConfig{Loop: l})
			var wait func()
			wait = func() {
				if !o.isClosed() {
					_ = l.Execute(wait)
					return
				}
				bridge.Post(funcTask(func() { atEnd <- l.InLoop() }))
			}
			if !manual { // a Manual has no such moment
				_ = l.Execute(wait)
			}
			end()
			if !manual && !await(t, atEnd, "the task posted behind the Offload's end") {
				t.Error("a task posted behind the Offload's end: not on the loop")
			}
			if ran != 500 {
				t.Errorf("got %d tasks run by the end of Close, want 500", ran)
			}
			if turns == 0 || !errors.Is(last, ErrOffloadClosed) {
				t.Errorf("endless strand: got %d tasks and then %v, want ErrOffloadClosed", turns, last)
			}
			if err := s.Execute(func() {}); !errors.Is(err, ErrOffloadClosed) {
				t.Errorf("Execute: got %v, want ErrOffloadClosed", err)
			}
			here := false
			s.Post(funcTask(func() { here = WouldDeadlock() && !l.InLoop() }))
			if !here {
				t.Error("posted after all: not run inside Post")
			}
			if WouldDeadlock() {
				t.Error("the identity is left on the goroutine that ran it")
			}
		})
	}
}

// A loop that is held does not end, whatever else is over.
func TestLoopHold(t *testing.T) {
	l := newTestLoop(t, nil)
	g := l.Group()
	onLoop(t, l, l.Hold)
	over := make(chan struct{})
	go func() { defer close(over); shutdown(t, g) }()
	// The loop closes its handles before it would end.
	var probe func()
	closing := make(chan struct{})
	probe = func() {
		if l.closing {
			close(closing)
		} else {
			_ = l.Execute(probe)
		}
	}
	_ = l.Execute(probe)
	await(t, closing, "the end to begin")
	// Strands still run on workers.
	s := newTestStrand(t, g.Offload(), StrandConfig{Loop: l})
	onWorker := make(chan bool, 1)
	mustExecute(t, s, func() { onWorker <- !l.InLoop() })
	if !await(t, onWorker, "the task") {
		t.Error("a task while the loop is held: on the loop, want a worker")
	}
	select {
	case <-over:
		t.Error("the group has ended while its loop is held")
	default:
	}
	onLoop(t, l, l.Release)
	await(t, over, "the end")
}

// Submitting and running a task allocates nothing.
func TestStrandAllocations(t *testing.T) {
	m := newTestManual(t)
	s := newTestStrand(t, m.Loop().Offload(), StrandConfig{})
	task := new(countTask)
	m.Enter(func() {
		checkAllocs(t, "100 tasks of a strand", 0, func() {
			for range 100 {
				_ = s.Submit(task)
			}
			m.turn()
			m.turn()
		})
	})
	if task.n == 0 {
		t.Error("nothing was measured")
	}
}

// First in, first out, over the borders of blocks; nothing is kept when it is empty.
func TestTaskQueue(t *testing.T) {
	var q taskQueue
	if q.pop() != nil || q.len() != 0 {
		t.Error("the zero value is not empty")
	}
	in, out := 0, 0
	tasks := make([]*countTask, 1000)
	for i := range tasks {
		tasks[i] = new(countTask)
	}
	for _, step := range []struct{ push, pop int }{{1, 1}, {31, 30}, {1, 2}, {62, 62}, {31, 31}, {200, 100}, {100, 150}, {7, 57}, {32, 32}} {
		for range step.push {
			q.push(tasks[in])
			in++
		}
		for range step.pop {
			if got := q.pop(); got != tasks[out] {
				t.Fatalf("got another task than number %d", out)
			}
			out++
		}
		if q.len() != in-out {
			t.Errorf("got length %d, want %d", q.len(), in-out)
		}
	}
	if q != (taskQueue{}) || q.pop() != nil {
		t.Errorf("an empty queue keeps %+v", q)
	}
}
