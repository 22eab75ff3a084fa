package transport

import (
	"fmt"
	"math/bits"
	"sync"

	"github.com/runnel-io/runnel/buffer"
)

// Budget bounds the memory that the queues of many channels pin together, so that a
// thousand peers that do not read cost no more than the memory there is for them, and
// only them. Its zero value works. All channels without a [Config.Budget] share one for
// the process.
//
// From half of the limit on, a channel is unwritable that has more than its share
// queued: half of the limit divided by those that have something queued which their
// peers did not take, but not less than 16 KiB. Beyond the limit the longest queue is
// dropped, and its channel closes with ErrSlowPeer; lengths are told apart by powers
// of two, and of those alike the one goes that has been so long for the longest time.
// Channels whose peers take what is written do not come into it.
//
// A buffer that waits in several queues counts in each. A file region counts nothing,
// and neither does what other goroutines have written and the loop has not seen yet, nor
// the queue of a channel of datagrams, which waits for no peer.
//
// The fields are read when the first channel uses the Budget.
//
// Concurrency: all methods are safe from any goroutine.
type Budget struct {
	// Limit is in bytes. 0 means half of what buffer.Default may hold; negative means
	// no limit.
	Limit int64

	once  sync.Once
	limit int64 // negative: none

	mu     sync.Mutex
	total  int64
	n      int // channels in the lists
	used   uint64
	lists  [64]queued // by the length of their queues: bit i of used says that list i has some
	closed uint64
}

// BudgetStats is what a [Budget] is used for.
type BudgetStats struct {
	Limit    int64  // bytes; negative if there is none
	Queued   int64  // bytes, as of the end of each channel's last flush
	Channels int    // that have 4 KiB or more queued
	Closed   uint64 // channels closed for it, since the beginning
}

const (
	// minQueued is from which length on a queue is in the lists.
	minQueued = 4 << 10
	// minShare is what a channel may have queued however many others have.
	minShare = 16 << 10
	// accountStep is how much a queue grows between two flushes before it is counted.
	accountStep = 4 << 10
)

// sharedBudget is that of all channels without one of their own.
var sharedBudget Budget

// errOverBudget is the reason of channels closed for a budget.
var errOverBudget = fmt.Errorf("%w: longest queue beyond the budget", ErrSlowPeer)

// queued is a channel's part in a budget, and the head of a list of such.
type queued struct {
	// Guarded by Budget.mu.
	prev, next *queued
	ch         *stream
	bytes      int64
	list       int  // that it is in; 0 for none
	over       bool // closed for the budget: counts no more

	// Loop-only.
	seen     int64 // bytes, as last told
	squeezed bool  // the water marks are those of its share
}

func (b *Budget) setUp() {
	b.once.Do(func() {
		if b.limit = b.Limit; b.limit == 0 {
			b.limit = buffer.Default().Stats().Limit / 2
		}
		for i := range b.lists {
			l := &b.lists[i]
			l.prev, l.next = l, l
		}
	})
}

// Stats returns how the budget is used.
func (b *Budget) Stats() BudgetStats {
	b.setUp()
	b.mu.Lock()
	defer b.mu.Unlock()
	return BudgetStats{b.limit, b.total, b.n, b.closed}
}

// update takes note that the queue of q.ch pins n bytes. It returns the channel's share,
// or 0 while there is enough for everybody.
func (b *Budget) update(q *queued, n int64) (share int64) {
	b.setUp()
	if b.limit < 0 {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if q.over {
		return 0
	}
	b.total += n - q.bytes
	q.bytes = n
	list := 0
	if n >= minQueued {
		list = bits.Len64(uint64(n))
	}
	if list != q.list {
		b.unlink(q)
		b.link(q, list)
	}
	for b.total > b.limit && b.used != 0 {
		b.relieve()
	}
	if b.total <= b.limit/2 || b.n == 0 {
		return 0
	}
	return max(b.limit/2/int64(b.n), minShare)
}

// relieve closes the channel with the longest queue. There is one; b.mu is held.
func (b *Budget) relieve() {
	q := b.lists[bits.Len64(b.used)-1].next
	b.unlink(q)
	b.total -= q.bytes
	q.bytes, q.over = 0, true
	b.closed++
	_ = q.ch.Loop().Submit((*overTask)(q)) // a loop that has ended has dropped it
}

func (b *Budget) link(q *queued, list int) {
	if list == 0 {
		return
	}
	l := &b.lists[list]
	q.prev, q.next = l.prev, l
	q.prev.next, q.next.prev = q, q
	q.list = list
	b.used |= 1 << list
	b.n++
}

func (b *Budget) unlink(q *queued) {
	if q.list == 0 {
		return
	}
	q.prev.next, q.next.prev = q.next, q.prev
	q.prev, q.next = nil, nil
	if l := &b.lists[q.list]; l.next == l {
		b.used &^= 1 << q.list
	}
	q.list = 0
	b.n--
}

// overTask is a channel's part in a budget as the task that closes the channel.
type overTask queued

func (t *overTask) Run() {
	s := t.ch
	defer s.contain()
	s.entered = true
	s.fail("write", errOverBudget)
	s.entered = false
}

// account tells the budget what the queue pins now, if that is news. It comes before
// the water marks are judged, because it may move them. Loop-only.
func (s *stream) account() { s.accountFrom(1) }

// accountFrom is account if the queue is step bytes longer than the budget knows, or
// any shorter.
func (s *stream) accountFrom(step int64) {
	n := s.out.memory()
	var q *queued
	if s.rare != nil {
		q = s.rare.queued
	}
	switch {
	case q == nil && n < step, q != nil && n >= q.seen && n < q.seen+step:
		return
	case q == nil:
		q = &queued{ch: s}
		s.needRare().queued = q
	}
	q.seen = n
	share := s.cfg.Budget.update(q, n)
	if n == 0 {
		share = 0 // it has no part in what there is too much of
	}
	if share == 0 && !q.squeezed {
		return
	}
	q.squeezed = share > 0
	low, high := s.cfg.waterMarks(s.recv.size())
	if share > 0 {
		high = min(high, share)
		low = min(low, high/2)
	}
	s.SetWaterMarks(low, high)
}
