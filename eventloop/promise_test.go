package eventloop

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

func TestPromiseCompletesOnce(t *testing.T) {
	m := newTestManual(t)
	failure := errors.New("first")
	p := NewPromise(m.Loop())
	if p.Err() != nil {
		t.Errorf("got %v before completion, want nil", p.Err())
	}
	if !p.Complete(failure) || p.Complete(nil) {
		t.Error("want the first Complete to report true, the second false")
	}
	if got := p.Future().Err(); got != failure {
		t.Errorf("got %v, want %v", got, failure)
	}
	select {
	case <-p.Future().Done():
	default:
		t.Error("got Done open after completion")
	}
	var nobody *Promise
	if nobody.Complete(nil) {
		t.Error("got true from Complete on nil")
	}
}

func TestThenRunsOnceInOrderOnTheLoop(t *testing.T) {
	l := newTestLoop(t, nil)
	p := NewPromise(l)
	var got []int // loop-only
	last := make(chan struct{})
	then := func(i int) func(error) {
		return func(error) {
			if !l.InLoop() {
				t.Error("got a callback off the loop")
			}
			got = append(got, i)
		}
	}
	for i := range 5 {
		p.Then(then(i))
	}
	p.Complete(nil)
	p.Then(then(5))
	p.Then(func(error) { close(last) })
	await(t, last, "the last callback")
	onLoop(t, l, func() {
		if want := []int{0, 1, 2, 3, 4, 5}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		called := false
		p.Then(func(error) { called = true })
		if !called {
			t.Error("got no call before Then returned, on the loop after completion")
		}
	})
}

// A callback that asks again comes after those that were there.
func TestThenInsideACallback(t *testing.T) {
	m := newTestManual(t)
	p := NewPromise(m.Loop())
	var got []string
	p.Then(func(error) {
		p.Then(func(error) { got = append(got, "inner") })
		got = append(got, "first")
	})
	p.Then(func(error) { got = append(got, "second") })
	m.Enter(func() { p.Complete(nil) })
	if want := []string{"first", "second", "inner"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestPromiseRace(t *testing.T) {
	l := newTestLoop(t, nil)
	const rounds, each = 200, 4
	for range rounds {
		p := NewPromise(l)
		var won, called atomic.Int32
		var wg sync.WaitGroup
		for range each {
			wg.Go(func() {
				if p.Complete(nil) {
					won.Add(1)
				}
			})
			wg.Go(func() { p.Then(func(error) { called.Add(1) }) })
		}
		wg.Wait()
		onLoop(t, l, func() {})
		if won.Load() != 1 || called.Load() != each {
			t.Fatalf("got %d completions and %d callbacks, want 1 and %d", won.Load(), called.Load(), each)
		}
	}
}

// Completions that complete the next promise do not pile up on the stack.
func TestPromiseRecursionIsBounded(t *testing.T) {
	m := newTestManual(t)
	const n = 1000
	promises := make([]*Promise, n)
	depth, deepest, done := 0, 0, 0
	for i := range promises {
		promises[i] = NewPromise(m.Loop())
		promises[i].Then(func(error) {
			depth++
			deepest = max(deepest, depth)
			done++
			if i+1 < n {
				promises[i+1].Complete(nil)
			}
			depth--
		})
	}
	m.Enter(func() { promises[0].Complete(nil) })
	m.RunUntilIdle()
	if done != n || deepest != maxNotifyDepth {
		t.Errorf("got %d callbacks, up to %d deep; want %d, %d", done, deepest, n, maxNotifyDepth)
	}
}

func TestWait(t *testing.T) {
	l := newTestLoop(t, nil)
	failure := errors.New("reset")
	p := NewPromise(l)
	_ = l.Execute(func() { p.Complete(failure) })
	if err := p.Future().Wait(context.Background()); err != failure {
		t.Errorf("got %v, want %v", err, failure)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Wait(ctx); err != failure {
		t.Errorf("got %v, want the result that is there: %v", err, failure)
	}
	if err := NewPromise(l).Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestWaitRefusesWhereItCouldDeadlock(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 2})
	p := NewPromise(g.Loops()[0])
	wait := func() error { return p.Wait(context.Background()) }
	got := make(chan error, 1)
	check := func(where string) {
		t.Helper()
		if err := await(t, got, "the refusal"); !errors.Is(err, ErrWouldDeadlock) {
			t.Errorf("%s: got %v, want ErrWouldDeadlock", where, err)
		}
	}
	_ = g.Loops()[0].Execute(func() { got <- wait() })
	check("on its loop")
	_ = g.Loops()[1].Execute(func() { got <- wait() })
	check("on another loop")
	_ = g.Offload().Submit(func() { got <- wait() })
	check("in an offloaded function")
	m := newTestManual(t)
	m.Enter(func() { got <- wait() })
	check("in a Manual")
	p.Complete(nil)
	_ = g.Loops()[0].Execute(func() { got <- wait() })
	check("on its loop after completion")
	if err := wait(); err != nil {
		t.Errorf("got %v off the loops, want nil", err)
	}
}

// When the loop has ended, whoever finds it so calls.
func TestPromiseOfALoopThatHasEnded(t *testing.T) {
	m := NewManual()
	p := NewPromise(m.Loop())
	called := 0
	p.Then(func(error) { called++ })
	m.Close()
	p.Complete(nil)
	p.Then(func(error) { called++ })
	if called != 2 {
		t.Errorf("got %d callbacks, want 2", called)
	}
}
