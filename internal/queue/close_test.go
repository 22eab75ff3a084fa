package queue_test

import (
	"slices"
	"sync"
	"testing"

	"github.com/runnel-io/runnel/internal/queue"
)

func TestClosedQueueTakesNothing(t *testing.T) {
	var q queue.MPSC[int]
	if !q.TryPush(1) || !q.TryPush(2) {
		t.Fatal("got TryPush false, want true before Close")
	}
	if got, want := q.Close(), []int{1, 2}; !slices.Equal(got, want) {
		t.Fatalf("got %v from Close, want %v", got, want)
	}
	if q.TryPush(3) {
		t.Error("got TryPush true, want false after Close")
	}
	if got := q.Len(); got != 0 {
		t.Errorf("got length %d, want 0", got)
	}
}

// Whenever the queue is closed: what TryPush took comes out, what it refused does
// not.
func TestCloseLosesNothing(t *testing.T) {
	const producers, each = 4, 1000
	var q queue.MPSC[int]
	var wg sync.WaitGroup
	taken := make([]int, producers)
	for p := range producers {
		wg.Go(func() {
			for i := range each {
				if !q.TryPush(i) {
					return
				}
				taken[p]++
			}
		})
	}
	got := 0
	for range 10 {
		got += len(q.PopAll())
	}
	got += len(q.Close())
	wg.Wait()
	want := 0
	for _, n := range taken {
		want += n
	}
	if got != want {
		t.Errorf("got %d elements, want %d", got, want)
	}
}
