// Package queue holds the queue through which goroutines hand work to a loop.
//
// The one rule: any goroutine may push, exactly one takes out.
package queue

import "sync"

// retained is the number of elements for which an idle queue keeps memory, in each
// of its two slices.
const retained = 1024

// MPSC is an unbounded first-in first-out queue with many producers and one
// consumer. The zero value is empty and ready to use.
//
// Two slices change places: producers append to one while the consumer works
// through the other, so that the lock is held for an append or a swap and the
// consumer takes it once a batch. A queue at work allocates nothing, and one that
// has seen a burst gives the memory back when the batches are small again.
//
// Concurrency: Push and Len are safe from any goroutine. PopAll belongs to one.
type MPSC[T any] struct {
	mu sync.Mutex
	in []T // guarded by mu

	closed bool // guarded by mu

	out []T // consumer only: the batch it was given last
}

// Push appends v. It reports whether the queue was empty, which makes the caller
// the one to wake the consumer: of a burst of pushes between two calls of PopAll,
// the first and only the first gets true.
//
// The elements of one goroutine come out in the order in which it pushed them.
func (q *MPSC[T]) Push(v T) (wasEmpty bool) {
	q.mu.Lock()
	wasEmpty = len(q.in) == 0
	q.in = append(q.in, v)
	q.mu.Unlock()
	return wasEmpty
}

// TryPush is Push for a queue that may be closed: it reports whether it took v.
func (q *MPSC[T]) TryPush(v T) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.in = append(q.in, v)
	return true
}

// Close is PopAll for the last time: TryPush takes nothing from here on, so that
// every element it has taken is in some batch.
//
// Consumer only.
func (q *MPSC[T]) Close() []T {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	return q.PopAll()
}

// PopAll removes all elements and returns them, oldest first; nil when there are
// none. The slice is the caller's until the next call of PopAll, which clears it.
//
// Consumer only.
func (q *MPSC[T]) PopAll() []T {
	spare := q.out
	clear(spare)
	q.mu.Lock()
	batch := q.in
	if cap(spare) > retained && len(batch) < cap(spare)/4 {
		spare = nil
	}
	q.in = spare[:0]
	q.mu.Unlock()
	q.out = batch
	if len(batch) == 0 {
		return nil
	}
	return batch
}

// Len returns the number of elements that PopAll has not returned yet.
func (q *MPSC[T]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.in)
}
