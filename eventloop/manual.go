package eventloop

import (
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/runnel-io/runnel/internal/fault"
	"github.com/runnel-io/runnel/internal/goid"
)

// manualBase is what the clock of a Manual counts from. It shows 1 at the start, a
// nanosecond later: 0 is not a deadline.
var manualBase = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(-1)

// maxIdleTurns is the number of turns after which RunUntilIdle gives up.
const maxIdleTurns = 100_000

// Manual is a [Loop] without a goroutine: it does a turn when its caller says so, and
// its time passes when its caller says so. Handlers cannot tell, which makes it the
// loop for tests. The same calls give the same result every time.
//
// Registrations work without a poller: Ready says what is ready. Functions given to
// the loop's [Offload] run inside the next turn, before I/O, and find themselves off
// the loop, as they would elsewhere. A panic in anything the loop calls reaches the
// caller of the turn, and the next turn goes on behind it.
//
// Ownership: Close frees what the loop holds.
//
// Concurrency: one goroutine at a time may be inside; a second one panics. What is
// safe from any goroutine on a Loop is so here.
type Manual struct {
	loop  *Loop
	nanos atomic.Int64   // virtual time
	owner atomic.Uintptr // the goroutine inside
	depth int            // calls of Enter it is in
	turns bool           // a turn is under way
}

// NewManual returns a loop on virtual time.
func NewManual() *Manual {
	m := &Manual{}
	o := &Offload{manual: m, limit: 1 << 16, idle: make(chan struct{}), base: time.Now()}
	l := newLoop("manual", nil, o, 8)
	o.logger = l.logger
	l.base = manualBase
	m.nanos.Store(1)
	l.manual = m
	l.poller = &manualPoller{loop: l}
	m.loop = l
	return m
}

// Loop returns the loop.
func (m *Manual) Loop() *Loop { return m.loop }

// Now returns the virtual time.
func (m *Manual) Now() time.Time { return manualBase.Add(time.Duration(m.nanos.Load())) }

// Enter calls f as the loop: InLoop is true meanwhile, and what is for the loop only
// may be used. It may be called inside itself. It panics when another goroutine is
// inside.
func (m *Manual) Enter(f func()) {
	id := goid.Current()
	l := m.loop
	if m.owner.Load() != id {
		if !m.owner.CompareAndSwap(0, id) {
			panic("eventloop: Manual entered by two goroutines at once")
		}
		l.bind()
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	}
	m.depth++
	before := l.self.Swap(id) // 0 inside an offloaded function
	defer func() {
		m.depth--
		l.self.Store(before)
		if m.depth == 0 {
			l.self.Store(id)
			l.unbind()
			m.owner.Store(0)
		}
	}()
	f()
}

// Turn does one whole turn: offloaded functions, I/O, tasks, timers that are due,
// and what was asked for by AtTurnEnd. It returns the number of calls it made. Inside
// a turn it does nothing: the turn that is under way is the one. After Close there
// is nothing to do.
func (m *Manual) Turn() (calls int) {
	m.Enter(func() {
		if m.turns || isClosed(m.loop.done) {
			return
		}
		m.turns = true
		defer func() { m.turns = false }()
		calls = m.turn()
	})
	return calls
}

func (m *Manual) turn() int {
	l := m.loop
	before := l.calls()
	offloaded := m.runOffloaded()
	l.turn()
	l.publish(l.clock())
	return offloaded + int(l.calls()-before)
}

// runOffloaded runs the functions that wait now, off the loop.
func (m *Manual) runOffloaded() int {
	l, o := m.loop, m.loop.offload
	n := m.offloaded()
	if n == 0 {
		return 0
	}
	id := l.self.Swap(0)
	defer l.self.Store(id)
	for range n {
		o.mu.Lock()
		t := o.waiting.pop()
		o.mu.Unlock()
		if t == nil {
			break
		}
		o.run(t)
	}
	return n
}

// offloaded returns the number of offloaded functions that wait.
func (m *Manual) offloaded() int {
	o := m.loop.offload
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.waiting.len()
}

// calls returns how many calls the loop has made.
func (l *Loop) calls() uint64 {
	return l.m.Events + l.m.Tasks + l.m.TimersFired + l.m.TurnEnds
}

// RunUntilIdle does turns until there is nothing to do but wait for time to pass. It
// panics if that does not come about within 100,000 turns.
func (m *Manual) RunUntilIdle() {
	m.Enter(func() {
		for range maxIdleTurns {
			if m.turns || !m.pending() {
				return
			}
			m.Turn()
		}
		panic(fmt.Sprintf("eventloop: Manual is not idle after %d turns", maxIdleTurns))
	})
}

// pending reports whether a turn would find something to do.
func (m *Manual) pending() bool {
	l := m.loop
	if isClosed(l.done) {
		return false
	}
	if m.offloaded() > 0 || l.stage != stagePoll || l.pending() || l.poller.(*manualPoller).pending() {
		return true
	}
	at := l.timers.next()
	return at != 0 && at <= m.nanos.Load()
}

// Advance lets d pass: each timer that comes due meanwhile fires at its own time,
// and the loop becomes idle before time goes on. It does so at the end too.
func (m *Manual) Advance(d time.Duration) {
	m.Enter(func() {
		end := m.nanos.Load() + int64(max(d, 0))
		m.RunUntilIdle()
		for !m.turns {
			at := m.loop.timers.next()
			if at == 0 || at > end {
				break
			}
			m.nanos.Store(max(at, m.nanos.Load()))
			m.RunUntilIdle()
		}
		m.nanos.Store(max(end, m.nanos.Load()))
		m.RunUntilIdle()
	})
}

// Ready makes ev ready on the descriptor. The handle registered for fd now is told
// in the next turn in which it is interested in some of ev, once; EventHangup and
// EventError need no interest. Without a registration nothing happens.
func (m *Manual) Ready(fd int, ev Event) {
	m.Enter(func() { m.loop.poller.(*manualPoller).ready(fd, ev) })
}

// Close ends the loop: handles are told to close, offloaded functions and Ops end,
// tasks run, timers are dropped. Execute fails from here on. A second Close does
// nothing. It panics inside a turn.
func (m *Manual) Close() {
	m.Enter(func() {
		l := m.loop
		if m.turns {
			panic("eventloop: Manual closed inside a turn")
		}
		if isClosed(l.done) {
			return
		}
		if !l.closing {
			_ = l.Submit(&closeAll{l: l})
		}
		for i := 0; l.closed != nil || m.offloaded() > 0 && i < endTurns; i++ {
			m.Turn()
			l.mayEnd()
		}
		l.offload.mu.Lock()
		l.offload.closed = true
		l.offload.mu.Unlock()
		l.ending = max(l.ending, 1)
		for i := 0; !l.mayEnd() || m.offloaded() > 0 && i < endTurns; i++ {
			m.Turn()
		}
		l.end()
		close(l.done)
	})
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// manualPoller is the poller of a Manual. What is ready stays so until its handle
// has been told.
type manualPoller struct {
	loop *Loop
	set  []outcome // in the order of the first Ready for the key
}

func (p *manualPoller) arm(r *Registration, _ Event) error { return fault.Arm(int(r.fd)) }
func (p *manualPoller) disarm(*Registration) error         { return nil }
func (p *manualPoller) submit(*Op) bool                    { return false }
func (p *manualPoller) wake() error                        { return nil }
func (p *manualPoller) close() error                       { return nil }

func (p *manualPoller) ready(fd int, ev Event) {
	for i := range p.loop.table.used {
		r := p.loop.table.at(i)
		if r == nil || int(r.fd) != fd {
			continue
		}
		key := r.key()
		for i := range p.set {
			if p.set[i].key == key {
				p.set[i].ev |= ev
				return
			}
		}
		p.set = append(p.set, outcome{key: key, ev: ev})
		return
	}
}

// deliverable returns what of o its registration would be told now.
func (p *manualPoller) deliverable(o outcome) Event {
	if r := p.loop.table.find(o.key); r != nil && r.armed {
		return o.ev & (Event(r.interest) | unmaskable)
	}
	return 0
}

func (p *manualPoller) pending() bool {
	for _, o := range p.set {
		if p.deliverable(o) != 0 {
			return true
		}
	}
	return false
}

func (p *manualPoller) poll(out []outcome, _ time.Duration) (int, error) {
	n := 0
	rest := p.set[:0]
	for _, o := range p.set {
		if ev := p.deliverable(o); ev != 0 && n < len(out) {
			out[n] = outcome{key: o.key, ev: ev}
			n++
			o.ev &^= ev
		}
		if o.ev != 0 && p.loop.table.find(o.key) != nil {
			rest = append(rest, o)
		}
	}
	p.set = rest
	return n, nil
}
