package eventloop

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Loops without descriptors run tasks, timers and offloaded functions, everywhere.
func TestNonePoller(t *testing.T) {
	g, err := NewGroup(GroupConfig{Loops: 2, Poller: "none"})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range g.Loops() {
		ran, fired := make(chan struct{}), make(chan struct{})
		if err := l.Execute(func() { close(ran) }); err != nil {
			t.Fatal(err)
		}
		await(t, ran, "a task")
		if err := l.Execute(func() { l.Schedule(2*time.Millisecond, func() { close(fired) }) }); err != nil {
			t.Fatal(err)
		}
		await(t, fired, "a timer")
		// Across the loops, so that each has to be woken.
		done := make(chan struct{})
		other := g.Next()
		var bounce func(n int)
		bounce = func(n int) {
			if n == 0 {
				close(done)
				return
			}
			next := l
			if n%2 == 0 {
				next = other
			}
			_ = next.Execute(func() { bounce(n - 1) })
		}
		bounce(1000)
		await(t, done, "a thousand wakeups")
	}
	result := make(chan error, 1)
	l := g.Next()
	if err := l.Execute(func() {
		reg, err := l.Register(0, &testHandle{})
		if err != nil {
			result <- err
			return
		}
		err = reg.SetInterest(EventRead)
		reg.Close(nil)
		result <- err
	}); err != nil {
		t.Fatal(err)
	}
	if err := await(t, result, "the registration"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a descriptor: got %v, want ErrUnsupported", err)
	}
	if err := g.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
}
