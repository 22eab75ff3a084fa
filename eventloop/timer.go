package eventloop

import (
	"math"
	"sync/atomic"
	"time"
)

// Timer calls a function on its loop at its deadline or a little later, never
// before: once if [Loop.Schedule] made it, again and again if [Loop.ScheduleEvery]
// did.
//
// Stopping a timer and moving its deadline later are stores, whoever does it: the
// loop finds out when the old deadline comes up. Only an earlier deadline costs a
// change of the loop's heap.
//
// Concurrency: all methods are safe from any goroutine.
type Timer struct {
	loop *Loop
	f    func()

	// On the loop's clock; 0 when stopped or fired. That of a repeating timer has its
	// sign changed while f runs.
	deadline atomic.Int64

	repeats bool // fixed

	// Loop only.
	at int32 // place in the heap plus one; 0 when it is not there
}

// Schedule calls f on the loop once d has passed, at the next opportunity if d is
// not positive. On a loop that has ended it returns a timer that never fires.
func (l *Loop) Schedule(d time.Duration, f func()) *Timer {
	t := &Timer{loop: l, f: f}
	t.Reset(d)
	return t
}

// ScheduleEvery calls f on the loop when d has passed and every d from then on, until
// the timer is stopped; f may do that. As with a time.Ticker, the calls have fixed
// times: one that comes late does not shift those after it, and those whose time
// passes meanwhile are left out, so that a stall is followed by one call and not by
// many. A panic in f does not end them. For the same pause between two calls, however
// long f takes, have f reset a timer of Schedule.
//
// It panics if d is not positive. On a loop that has ended it returns a timer that
// never fires.
func (l *Loop) ScheduleEvery(d time.Duration, f func()) *Timer {
	if d <= 0 {
		panic("eventloop: ScheduleEvery without a positive interval")
	}
	r := &repeat{t: Timer{loop: l, repeats: true}, every: int64(d), f: f}
	r.t.f = r.run
	r.t.Reset(d)
	return &r.t
}

// Stop keeps the timer from firing. It reports whether it did: not if the timer
// has fired or was stopped before. Off the loop, true means that the function has
// not been called and will not be, false that it may be running. Of a repeating timer
// that holds for the next call; after Stop no other one begins.
func (t *Timer) Stop() bool {
	old := t.deadline.Swap(0)
	if old != 0 {
		t.loop.timers.armed.Add(-1)
	}
	return old > 0
}

// Reset lets the timer fire once d from now has passed, whether it was armed, has
// fired or was stopped. It reports whether the timer was armed. A repeating timer
// goes on from there with the interval it has.
func (t *Timer) Reset(d time.Duration) bool {
	l := t.loop
	at := l.clock()
	if d > 0 {
		if at += int64(d); at < 0 {
			at = math.MaxInt64
		}
	}
	old := t.deadline.Swap(at)
	if old > 0 && at >= old {
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
	return old > 0
}

// repeat is a timer that arms itself anew.
type repeat struct {
	t     Timer
	every int64
	f     func()
}

// run is the function of the timer.
func (r *repeat) run() {
	defer r.again() // also if f panics
	r.f()
}

// again arms the timer for the first of its times that is still to come, unless it
// was stopped or reset while f ran.
func (r *repeat) again() {
	t := &r.t
	was := t.deadline.Load()
	if was >= 0 {
		return
	}
	next, now := -was+r.every, t.loop.now
	if next > 0 && next <= now {
		next += ((now-next)/r.every + 1) * r.every
	}
	if next < 0 {
		next = math.MaxInt64
	}
	if t.deadline.CompareAndSwap(was, next) {
		t.loop.timers.place(t)
	}
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
	case at <= 0:
	case t.at == 0:
		if ts.sparse() {
			ts.compact()
		}
		ts.seq++
		ts.heap = append(ts.heap, timerEntry{key: at, seq: ts.seq, t: t})
		ts.up(len(ts.heap) - 1)
	case at < ts.heap[t.at-1].key:
		ts.rekey(int(t.at)-1, at)
	}
}

// postpone gives the entry at the top its true, later key. Its seq stays: the timer was
// placed when it was.
func (ts *timers) postpone(key int64) {
	ts.heap[0].key = key
	ts.down(0)
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
		case at > e.key:
			// Perhaps due as well, but behind those with an earlier deadline. It keeps its
			// place in time: only who arms a timer anew has to wait for the next turn.
			ts.postpone(at)
		case t.fire(at):
			ts.pop()
			return t
		}
	}
	return nil
}

// fire reports whether the timer, which is due at the time of its deadline, may call
// its function now.
func (t *Timer) fire(deadline int64) bool {
	if t.repeats {
		return t.deadline.CompareAndSwap(deadline, -deadline)
	}
	if !t.deadline.CompareAndSwap(deadline, 0) {
		return false
	}
	t.loop.timers.armed.Add(-1)
	return true
}

// sparse reports whether more than half of the heap are stopped timers. Dropping
// them then costs no more than putting them there did, and timeouts that are always
// cancelled need memory in proportion to the armed ones.
func (ts *timers) sparse() bool {
	return len(ts.heap) >= 64 && int64(len(ts.heap)) > 2*ts.armed.Load()
}

// tidy gives back what a burst of timers has left behind. It is called by a loop that
// is about to wait.
func (ts *timers) tidy() {
	if ts.sparse() {
		ts.compact()
	}
	if cap(ts.heap) > 1024 && len(ts.heap) < cap(ts.heap)/4 {
		ts.heap = append(make([]timerEntry, 0, 2*len(ts.heap)), ts.heap...)
	}
}

// compact drops stopped timers.
func (ts *timers) compact() {
	live := ts.heap[:0]
	for _, e := range ts.heap {
		if e.t.deadline.Load() == 0 {
			e.t.at = 0
			continue
		}
		live = append(live, e)
		e.t.at = int32(len(live))
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
	e.t.at = int32(i + 1)
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
