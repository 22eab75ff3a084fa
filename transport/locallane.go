package transport

import (
	"sync"

	"go.uber.org/zap"
)

// laneLimit is how many pinned bytes may be on their way to an end that has not read
// them, one message in any case: what the buffers of the kernel are for sockets.
const laneLimit = 64 << 10

// lane is one direction of a connection between two local channels. Each end works
// with it on its own loop; it tells the other by a task, at most one at a time.
type lane struct {
	from, to *localChannel

	mu     sync.Mutex
	msgs   fifo[parcel]
	charge int64
	end    laneEnd
	deaf   bool // to has closed
	told   bool // to has been told that there is something
	waits  bool // from is to be told when there is room, or when to has closed
}

type laneEnd uint8

const (
	laneOpen   laneEnd = iota
	laneEnded          // nothing comes behind what is there
	laneBroken         // reset
)

// joinLocal connects two channels.
func joinLocal(a, b *localChannel) {
	ab, ba := &lane{from: a, to: b}, &lane{from: b, to: a}
	a.out, a.in = ab, ba
	b.out, b.in = ba, ab
}

// put moves what may leave from s, the sender, as far as there is room; s.blocked says
// that there was not enough. It reports false when nobody will read it.
func (l *lane) put(s *localChannel) bool {
	l.mu.Lock()
	if l.deaf {
		l.mu.Unlock()
		return false
	}
	for s.flushed > 0 {
		p := s.queue.first()
		if p.msg != nil {
			if l.charge > 0 && l.charge+p.charge > laneLimit {
				l.waits, s.blocked = true, true
				break
			}
			l.charge += p.charge
			l.msgs.push(parcel{msg: p.msg, charge: p.charge})
		}
		if p.p != nil {
			s.due.push(p.p)
		}
		s.charge -= p.charge
		*p = parcel{}
		s.queue.pop()
		s.flushed--
		s.moved++
	}
	tell := l.msgs.n > 0 && !l.told
	l.told = l.told || tell
	l.mu.Unlock()
	if tell {
		_ = l.to.Loop().Submit((*localRead)(l.to)) // a loop that has ended has closed it
	}
	return true
}

// take returns the next message, or none; then ended says that none will come. It is
// for the receiver.
func (l *lane) take() (p parcel, ended bool) {
	l.mu.Lock()
	if l.msgs.n == 0 {
		ended = l.end != laneOpen
		l.mu.Unlock()
		return p, ended
	}
	first := l.msgs.first()
	p, *first = *first, parcel{}
	l.msgs.pop()
	l.charge -= p.charge
	if l.msgs.n == 0 {
		l.msgs.shrink()
	}
	tell := l.waits && l.charge <= laneLimit/2
	if tell {
		l.waits = false
	}
	l.mu.Unlock()
	if tell {
		_ = l.from.Loop().Submit((*localRoom)(l.from))
	}
	return p, false
}

// unread returns how many messages the receiver has not taken yet.
func (l *lane) unread() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.msgs.n)
}

// worth reports whether the receiver, which reads or does not, is to look at once; it
// counts as told then.
func (l *lane) worth(reading bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.told || l.end != laneBroken && (!reading || l.msgs.n == 0 && l.end == laneOpen) {
		return false
	}
	l.told = true
	return true
}

// tellAgain is called by the receiver when it looks: what comes from now on is told
// again. It reports whether the lane is broken.
func (l *lane) tellAgain() (broken bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = false
	return l.end == laneBroken
}

// finish ends the lane for the sender. After a reset what has not been read is lost.
func (l *lane) finish(reset bool, logger *zap.Logger) {
	var lost fifo[parcel]
	l.mu.Lock()
	switch {
	case reset:
		l.end = laneBroken
		lost, l.msgs, l.charge = l.msgs, fifo[parcel]{}, 0
	case l.end == laneOpen:
		l.end = laneEnded
	}
	tell := !l.told && !l.deaf
	l.told = l.told || tell
	l.mu.Unlock()
	drop(lost, logger)
	if tell {
		_ = l.to.Loop().Submit((*localRead)(l.to))
	}
}

// abandon ends the lane for the receiver.
func (l *lane) abandon(logger *zap.Logger) {
	l.mu.Lock()
	l.deaf = true
	lost := l.msgs
	l.msgs, l.charge = fifo[parcel]{}, 0
	tell := l.waits
	l.waits = false
	l.mu.Unlock()
	drop(lost, logger)
	if tell {
		_ = l.from.Loop().Submit((*localRoom)(l.from))
	}
}
