package eventloop

import (
	"sync/atomic"
	"time"
)

// Timer calls a function on its loop, once, at its deadline or a little later,
// never before. [Loop.Schedule] makes it.
//
// Stopping a timer and moving its deadline later are stores, whoever does it: the
// loop finds out when the old deadline comes up. Only an earlier deadline costs a
// change of the loop's heap.
//
// Concurrency: all methods are safe from any goroutine.
type Timer struct {
	loop *Loop
	f    func()

	deadline atomic.Int64 // on the loop's clock; 0 when stopped or fired

	// Loop only.
	at int // place in the heap plus one; 0 when it is not there
}

// Schedule calls f on the loop once d has passed, at the next opportunity if d is
// not positive. On a loop that has ended it returns a timer that never fires.
func (l *Loop) Schedule(d time.Duration, f func()) *Timer {
	t := &Timer{loop: l, f: f}
	t.Reset(d)
	return t
}

// Stop keeps the timer from firing. It reports whether it did: not if the timer
// has fired or was stopped before. Off the loop, true means that the function has
// not been called and will not be, false that it may be running.
func (t *Timer) Stop() bool {
	if t.deadline.Swap(0) == 0 {
		return false
	}
	t.loop.timers.armed.Add(-1)
	return true
}

// Reset lets the timer fire once d from now has passed, whether it was armed, has
// fired or was stopped. It reports whether the timer was armed.
func (t *Timer) Reset(d time.Duration) bool {
	l := t.loop
	at := l.clock()
	if d > 0 {
		if at += int64(d); at < 0 {
			at = 1<<63 - 1
		}
	}
	old := t.deadline.Swap(at)
	if old != 0 && at >= old {
		return true
	}
	if old == 0 {
		l.timers.armed.Add(1)
	}
	if l.InLoop() {
		l.timers.place(t)
	} else if l.Submit((*timerPlace)(t)) != nil {
		t.Stop()
	}
	return old != 0
}

// timerPlace is a Timer as a task that puts it where it belongs in the heap.
type timerPlace Timer

func (t *timerPlace) Run() { t.loop.timers.place((*Timer)(t)) }

// timers is a heap of deadlines with four children to a node. The key of an entry
// is the deadline its timer had when it was put there; the true one may be later,
// or the timer may be stopped, which shows when the entry reaches the top. It is
// never earlier, except until the task of a Reset from another goroutine has run.
type timers struct {
	heap []timerEntry
	seq  uint64

	armed atomic.Int64 // timers with a deadline; any goroutine
}

// timerEntry is one timer in the heap. Equal keys go by seq: first come, first
// served.
type timerEntry struct {
	key int64
	seq uint64
	t   *Timer
}

func (e *timerEntry) before(o *timerEntry) bool {
	return e.key < o.key || e.key == o.key && e.seq < o.seq
}

// place puts t into the heap, or moves it forward there. It may be called at any
// time, also when the timer was stopped or has been put right meanwhile.
func (ts *timers) place(t *Timer) {
	at := t.deadline.Load()
	switch {
	case at == 0:
	case t.at == 0:
		ts.compact()
		ts.seq++
		ts.heap = append(ts.heap, timerEntry{key: at, seq: ts.seq, t: t})
		ts.up(len(ts.heap) - 1)
	case at < ts.heap[t.at-1].key:
		ts.rekey(t.at-1, at)
	}
}

// rekey gives the entry at i a new key.
func (ts *timers) rekey(i int, key int64) {
	ts.seq++
	earlier := key < ts.heap[i].key
	ts.heap[i].key, ts.heap[i].seq = key, ts.seq
	if earlier {
		ts.up(i)
	} else {
		ts.down(i)
	}
}

// next puts the top right and returns its deadline, 0 if no timer is armed.
func (ts *timers) next() int64 {
	for len(ts.heap) > 0 {
		e := &ts.heap[0]
		switch at := e.t.deadline.Load(); {
		case at == 0:
			ts.pop()
		case at > e.key:
			ts.rekey(0, at)
		default:
			return e.key
		}
	}
	return 0
}

// due takes the next timer with a deadline up to now out of the heap and disarms
// it; nil if there is none. Timers placed after seq was the latest are left alone,
// so that one that arms itself anew cannot hold up the turn.
func (ts *timers) due(now int64, seq uint64) *Timer {
	for len(ts.heap) > 0 {
		e := &ts.heap[0]
		if e.key > now || e.seq > seq {
			return nil
		}
		t := e.t
		switch at := t.deadline.Load(); {
		case at == 0:
			ts.pop()
		case at > now:
			ts.rekey(0, at)
		case t.deadline.CompareAndSwap(at, 0):
			ts.armed.Add(-1)
			ts.pop()
			return t
		}
	}
	return nil
}

// compact drops stopped timers once they are more than half of the heap, so that
// timeouts which are always cancelled cost memory in proportion to the armed ones.
func (ts *timers) compact() {
	if len(ts.heap) < 64 || int64(len(ts.heap)) <= 2*ts.armed.Load() {
		return
	}
	live := ts.heap[:0]
	for _, e := range ts.heap {
		if e.t.deadline.Load() == 0 {
			e.t.at = 0
			continue
		}
		live = append(live, e)
		e.t.at = len(live)
	}
	clear(ts.heap[len(live):])
	ts.heap = live
	for i := (len(live) - 2) / 4; i >= 0 && len(live) > 1; i-- {
		ts.down(i)
	}
}

// clear forgets all timers.
func (ts *timers) clear() {
	for _, e := range ts.heap {
		e.t.at = 0
		e.t.Stop()
	}
	ts.heap = nil
}

func (ts *timers) pop() {
	n := len(ts.heap) - 1
	ts.heap[0].t.at = 0
	last := ts.heap[n]
	ts.heap[n] = timerEntry{}
	ts.heap = ts.heap[:n]
	if n > 0 {
		ts.set(0, last)
		ts.down(0)
	}
}

func (ts *timers) set(i int, e timerEntry) {
	ts.heap[i] = e
	e.t.at = i + 1
}

func (ts *timers) up(i int) {
	e := ts.heap[i]
	for i > 0 {
		parent := (i - 1) / 4
		if !e.before(&ts.heap[parent]) {
			break
		}
		ts.set(i, ts.heap[parent])
		i = parent
	}
	ts.set(i, e)
}

func (ts *timers) down(i int) {
	e := ts.heap[i]
	for {
		first := 4*i + 1
		if first >= len(ts.heap) {
			break
		}
		least := first
		for c := first + 1; c < first+4 && c < len(ts.heap); c++ {
			if ts.heap[c].before(&ts.heap[least]) {
				least = c
			}
		}
		if !ts.heap[least].before(&e) {
			break
		}
		ts.set(i, ts.heap[least])
		i = least
	}
	ts.set(i, e)
}
