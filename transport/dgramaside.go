package transport

import "time"

// A Unix datagram channel that is not connected has many receivers and one queue. The
// kernel refuses a datagram whose receiver's own queue is full, and tells nobody when
// there is room again. So what is for such a receiver is set aside, in order, and what is
// for others goes on; after a while it is tried again. A receiver that takes nothing for
// slowReceiver loses what waits for it. What is aside is not pending: it does not make the
// channel unwritable, for which everybody would suffer, and so it has a bound of its own.

const (
	// slowReceiver is how long a receiver that takes nothing is waited for.
	slowReceiver = time.Second
	// maxAside is how much may be aside at a time, in high water marks.
	maxAside = 4
)

// asideQueue is what has been set aside. Its zero value is empty.
type asideQueue struct {
	entries   fifo[outDatagram]
	charge    int64                    // of the entries, also while they are tried again
	receivers map[string]*fullReceiver // those of the entries, and those being tried again
}

// fullReceiver is a receiver whose queue was full when it was tried last.
type fullReceiver struct {
	since time.Time // when it has been found so, having taken something before
	holds bool      // what is for it is set aside; else it is being tried
}

// holds reports whether what is for name has to wait behind what is aside.
func (a *asideQueue) holds(name string) bool {
	if len(a.receivers) == 0 {
		return false
	}
	r := a.receivers[name]
	return r != nil && r.holds
}

// took takes note that name has taken a datagram.
func (a *asideQueue) took(name string) {
	if len(a.receivers) > 0 {
		delete(a.receivers, name)
	}
}

// tried forgets the receivers of which nothing is aside any more.
func (a *asideQueue) tried() {
	for name, r := range a.receivers {
		if !r.holds {
			delete(a.receivers, name)
		}
	}
}

// setAside has the first datagram wait for its receiver, which has no room, unless it is
// not to wait any more, after slowReceiver, or cannot, with limit bytes aside.
func (q *dgramQueue) setAside(now time.Time, limit int64) bool {
	a, e := &q.aside, q.entries.first()
	r := a.receivers[e.name]
	if r != nil && !r.holds && now.Sub(r.since) >= slowReceiver || !e.aside && a.charge+e.charge > limit {
		return false
	}
	if r == nil {
		if a.receivers == nil {
			a.receivers = make(map[string]*fullReceiver)
		}
		r = &fullReceiver{since: now}
		a.receivers[e.name] = r
	}
	r.holds = true
	if !e.aside {
		e.aside = true
		a.charge += e.charge
	}
	a.entries.push(*e)
	*e = outDatagram{}
	q.entries.pop()
	q.gone++ // for now
	return true
}

// putBack puts what is aside before the rest of the queue, to be tried again.
func (q *dgramQueue) putBack() {
	a := &q.aside
	if a.entries.n == 0 {
		return
	}
	for _, r := range a.receivers {
		r.holds = false
	}
	q.gone -= uint64(a.entries.n)
	for q.entries.n > 0 {
		first := q.entries.first()
		a.entries.push(*first)
		*first = outDatagram{}
		q.entries.pop()
	}
	q.entries, a.entries = a.entries, q.entries
}

// receiverFull deals with the first datagram in the queue, whose receiver has no room.
func (s *dgram) receiverFull() {
	if !s.out.setAside(s.Loop().Now(), maxAside*s.HighWater()) {
		s.failFirst(ErrSlowPeer)
		return
	}
	if s.asideTimer == nil {
		s.asideRest = min(max(2*s.asideRest, minDgramRest), maxDgramRest)
		s.asideTimer = s.Loop().Schedule(s.asideRest, s.tryAside)
	}
}

// tryAside tries again what is aside. What has waited for too long fails in the flush.
func (s *dgram) tryAside() {
	defer s.contain()
	s.entered = true
	s.asideTimer = nil
	if s.waiting() || s.againQueue {
		s.asideTimer = s.Loop().Schedule(maxDgramRest, s.tryAside) // the socket's turn comes first
	} else {
		s.out.putBack()
		s.flush()
	}
	s.entered = false
}
