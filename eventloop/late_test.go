package eventloop

import (
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
)

// inLastBatch ends a loop's group and calls f in one of the loop's last tasks, when it
// takes no more.
func inLastBatch(t *testing.T, g *Group, f func()) {
	t.Helper()
	l := g.Next()
	var task funcTask
	task = func() {
		if errors.Is(l.Submit(task), ErrLoopClosed) {
			f()
		}
	}
	if err := l.Submit(task); err != nil {
		t.Fatal(err)
	}
	shutdown(t, g)
}

// While a loop runs its last tasks it has not ended: what is completed elsewhere is not
// told beside it, but behind them.
func TestCompletionInTheLastBatch(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 1})
	l := g.Next()
	inCall := false // loop-only
	told := 0
	inLastBatch(t, g, func() {
		inCall = true
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 2 {
				p := NewPromise(l)
				p.Then(func(error) {
					if told++; inCall || !l.InLoop() {
						t.Errorf("told inside another call: %v, on the loop: %v", inCall, l.InLoop())
					}
				})
				p.Complete(nil)
			}
		}()
		<-done
		inCall = false
	})
	if told != 2 {
		t.Errorf("got %d of 2 completions", told)
	}
}

// The tasks of a strand whose Offload is closed are run by the loop until it has ended.
func TestStrandInTheLastBatch(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 1})
	l := g.Next()
	s, err := g.Offload().NewStrand(StrandConfig{Loop: l})
	if err != nil {
		t.Fatal(err)
	}
	inCall, ran := false, false
	inLastBatch(t, g, func() {
		inCall = true
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Post(funcTask(func() {
				if ran = true; inCall || !l.InLoop() {
					t.Errorf("run inside another call: %v, on the loop: %v", inCall, l.InLoop())
				}
			}))
		}()
		<-done
		inCall = false
	})
	if !ran {
		t.Error("the task was lost")
	}
}

// chain completes n promises of l, each in the callback of the one before, and then says
// how deep these were nested.
func chain(l *Loop, n int, end func(deepest int)) {
	depth, deepest := 0, 0
	var next func()
	next = func() {
		if n--; n < 0 {
			return
		}
		p := NewPromise(l)
		p.Then(func(error) {
			depth++
			deepest = max(deepest, depth)
			if n == 0 {
				end(deepest)
			}
			next()
			depth--
		})
		p.Complete(nil)
	}
	next()
}

// Callbacks that complete the next promise do not nest without bound, however far the
// loop has got.
func TestRecursionAtTheEnd(t *testing.T) {
	const n = 5000
	g := newTestGroup(t, GroupConfig{Loops: 1})
	l := g.Next()
	got := make(map[string]int)
	note := func(when string) func(int) { return func(deepest int) { got[when] = deepest } }
	inLastBatch(t, g, func() { chain(l, n, note("in the last batch")) })
	chain(l, n, note("after the end"))
	for _, when := range []string{"in the last batch", "after the end"} {
		if d, ended := got[when]; !ended || d > maxNotifyDepth {
			t.Errorf("%s: got callbacks nested %d deep, all called: %v, want at most %d", when, d, ended, maxNotifyDepth)
		}
	}
}

// A call after the end that leaves by runtime.Goexit does not take the next one with it.
func TestGoexitAfterTheEnd(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 1})
	l := g.Next()
	shutdown(t, g)
	next := make(chan struct{})
	go l.Deliver(funcTask(func() {
		l.Deliver(funcTask(func() { close(next) }))
		runtime.Goexit()
	}))
	await(t, next, "the next call")
}

// After the end, too, calls of a loop are made one at a time, whoever finds out, and one
// that panics takes none of the others with it.
func TestCallsAfterTheEnd(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 1})
	l := g.Next()
	shutdown(t, g)
	select {
	case <-l.Done():
	default:
		t.Fatal("Done is open after the group's shutdown")
	}
	const goroutines, each = 4, 100
	var inside, calls atomic.Int32
	ended := make(chan struct{}, goroutines*each)
	for range goroutines {
		go func() {
			for i := range each {
				p := NewPromise(l)
				p.Then(func(error) {
					if inside.Add(1) != 1 {
						t.Error("two calls at once")
					}
					defer func() {
						inside.Add(-1)
						calls.Add(1)
						ended <- struct{}{}
					}()
					runtime.Gosched()
					if i%10 == 9 {
						panic("bug")
					}
				})
				p.Complete(nil)
			}
		}()
	}
	for range goroutines * each {
		await(t, ended, "a call")
	}
	if got := calls.Load(); got != goroutines*each {
		t.Errorf("got %d calls, want %d", got, goroutines*each)
	}
}
