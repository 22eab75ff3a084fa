package pipeline

import (
	"context"
	"sync"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
)

// Send implements [Channel].
func (b *Base) Send(ctx context.Context, msg any) error {
	if eventloop.WouldDeadlock() {
		buffer.Release(msg)
		return eventloop.ErrWouldDeadlock
	}
	if err := ctx.Err(); err != nil {
		buffer.Release(msg)
		return err
	}
	q := &b.extra().sends
	s := &sender{msg: msg, p: eventloop.NewPromise(b.loop)}
	q.enter(b, s)
	done := s.p.Done()
	var gone error
	select {
	case <-done:
		return s.p.Err()
	case <-ctx.Done():
		gone = ctx.Err()
	case <-b.loop.Done(): // there will be no room, nor will what has been written leave
		gone = b.closeError()
	}
	if q.leave(s) {
		buffer.Release(msg)
		return gone
	}
	select {
	case <-done:
		return s.p.Err()
	default:
		return gone
	}
}

// sendQueue is the line of those who wait in Send until the channel is writable, in
// the order in which they came. The loop writes for them when there is room, one
// after the other until there is no more, and wakes each when its message has left:
// nobody is woken to find that another was faster, and of all together one message at
// most passes the mark.
type sendQueue struct {
	mu          sync.Mutex
	first, last *sender
	n           int
	posted      bool // a sendTask is on its way to the loop
}

// sender is a Send under way.
type sender struct {
	prev, next *sender // guarded by sendQueue.mu
	waiting    bool    // guarded by sendQueue.mu: in the line
	msg        any
	p          *eventloop.Promise // of the write
}

// enter writes the message of s if there is room and nobody waits for it, or has s
// join the line. Off the loop.
func (q *sendQueue) enter(b *Base, s *sender) {
	q.mu.Lock()
	switch {
	case !b.Open():
		q.mu.Unlock()
		buffer.Release(s.msg)
		s.p.Complete(b.closeError())
	case q.first == nil && b.Writable():
		// Charged before the next one looks whether there is room.
		size := PendingSize(s.msg, b.high.Load())
		b.addForeign(size)
		q.mu.Unlock()
		b.post(op{kind: opWrite, c: &b.pl.ends, msg: s.msg, p: s.p, size: size})
	default:
		// The loop looks at the line after it has made the channel writable, so it
		// either finds s there or s has found the channel writable.
		s.waiting = true
		if s.prev = q.last; s.prev != nil {
			s.prev.next = s
		} else {
			q.first = s
		}
		q.last = s
		q.n++
		q.mu.Unlock()
	}
}

// leave takes s out of the line, and reports whether it was there. Any goroutine.
func (q *sendQueue) leave(s *sender) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !s.waiting {
		return false
	}
	q.remove(s)
	return true
}

// remove takes s, which is in the line, out of it. q.mu is held.
func (q *sendQueue) remove(s *sender) {
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		q.first = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else {
		q.last = s.prev
	}
	s.prev, s.next, s.waiting = nil, nil, false
	q.n--
}

// pop takes the first one out of the line, or returns nil.
func (q *sendQueue) pop() *sender {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.first
	if s != nil {
		q.remove(s)
	}
	return s
}

// fail sends all who wait away with err: the channel has closed, and nobody joins
// them any more.
func (q *sendQueue) fail(err error) {
	for s := q.pop(); s != nil; s = q.pop() {
		buffer.Release(s.msg)
		s.p.Complete(err)
	}
}

// admitSenders has the loop write for those who wait, if there is room. Loop-only.
func (b *Base) admitSenders() {
	x := b.more.Load()
	if x == nil {
		return
	}
	q := &x.sends
	q.mu.Lock()
	post := q.first != nil && !q.posted && b.Writable()
	q.posted = q.posted || post
	q.mu.Unlock()
	// The handlers are told first that there is room, and may be in the middle of it.
	if post && b.loop.Submit((*sendTask)(b)) != nil {
		q.fail(b.closeError())
	}
}

// sendTask is the Base as the task that writes for those who wait in Send.
type sendTask Base

func (t *sendTask) Run() {
	b := (*Base)(t)
	q := &b.more.Load().sends
	q.mu.Lock()
	q.posted = false
	n := q.n // who comes later is for a later turn
	q.mu.Unlock()
	for ; n > 0 && b.Writable(); n-- {
		s := q.pop()
		if s == nil {
			break
		}
		b.touch()
		b.pl.guardedWrite(b.pl.ends.prevWrite, s.msg, s.p)
	}
	b.admitSenders()
}
