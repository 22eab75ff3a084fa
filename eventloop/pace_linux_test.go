package eventloop

import (
	"runtime"
	"sync"
	"syscall"
	"testing"
)

// A loop that is locked to its thread stays there, whoever wants the processor, and
// moves to another one only with its goroutine.
func TestLockThread(t *testing.T) {
	l := newTestGroup(t, GroupConfig{Loops: 1, LockThread: true}).Next()
	stop := make(chan struct{})
	var others sync.WaitGroup
	for range 4 {
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					runtime.Gosched()
				}
			}
		})
	}
	threads := map[int]bool{}
	for range 300 {
		onLoop(t, l, func() { threads[syscall.Gettid()] = true })
	}
	onLoop(t, l, func() {
		if len(threads) != 1 {
			t.Errorf("got %d threads, want 1", len(threads))
		}
		_ = l.Execute(runtime.Goexit)
	})
	clear(threads)
	onLoop(t, l, func() {})
	for range 300 {
		onLoop(t, l, func() { threads[syscall.Gettid()] = true })
	}
	close(stop)
	others.Wait()
	onLoop(t, l, func() {
		if len(threads) != 1 {
			t.Errorf("got %d threads after Goexit, want 1", len(threads))
		}
		if got := l.Metrics().Restarts; got != 1 {
			t.Errorf("got %d restarts, want 1", got)
		}
	})
}
