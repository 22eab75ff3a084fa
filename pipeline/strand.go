package pipeline

import (
	"sync"
	"sync/atomic"

	"github.com/runnel-io/runnel/eventloop"
)

// offloading is what a channel keeps that has handlers on an executor or has used
// Context.Offload.
type offloading struct {
	b *Base

	mu      sync.Mutex
	strands []*strand // guarded by mu: of handlers, by executor
	work    *strand   // guarded by mu: of Context.Offload

	done atomic.Int64 // bytes of writes that strands are done with; see settle

	// Loop-only.
	holds    int  // reasons not to read
	wanted   bool // a read has been asked for meanwhile
	removing bool // removeAll waits for a handler
}

// offloading returns the channel's, which it makes if there is none. Any goroutine.
func (b *Base) offloading() *offloading {
	x := b.extra()
	if r := x.off.Load(); r != nil {
		return r
	}
	x.off.CompareAndSwap(nil, &offloading{b: b})
	return x.off.Load()
}

// offloads returns it if there is one. Any goroutine.
func (b *Base) offloads() *offloading {
	if x := b.more.Load(); x != nil {
		return x.off.Load()
	}
	return nil
}

// strand is one of the channel's strands. It holds up reading while it is full.
type strand struct {
	*eventloop.Strand
	b       *Base
	max     int
	holding bool // loop-only
}

func (b *Base) newStrand(on *eventloop.Offload, mark, most int) (*strand, error) {
	s := &strand{b: b}
	es, err := on.NewStrand(eventloop.StrandConfig{Mark: mark, Max: most, Changed: s.changed, Loop: b.loop})
	if err != nil {
		return nil, err
	}
	s.Strand, s.max = es, es.Max()
	return s, nil
}

// strandOn returns the strand of the handlers that run as off says.
func (r *offloading) strandOn(off Offloaded) (*strand, error) {
	on := off.Executor
	if on == nil {
		on = r.b.loop.Offload()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.strands {
		if s.Offload() == on {
			return s, nil
		}
	}
	s, err := r.b.newStrand(on, off.Mark, off.Max)
	if err == nil {
		r.strands = append(r.strands, s)
	}
	return s, err
}

// workStrand returns the strand of Context.Offload.
func (r *offloading) workStrand() *strand {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.work == nil {
		r.work, _ = r.b.newStrand(r.b.loop.Offload(), 0, 0) // the defaults are good
	}
	return r.work
}

// onStrand reports whether the running goroutine is in a function of one of the
// channel's strands.
func (b *Base) onStrand() bool {
	r := b.offloads()
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.work != nil && r.work.InStrand() {
		return true
	}
	for _, s := range r.strands {
		if s.InStrand() {
			return true
		}
	}
	return false
}

// changed is called when the strand has become full, or is no longer. Any goroutine.
func (s *strand) changed() {
	if s.b.loop.InLoop() {
		s.look()
		return
	}
	_ = s.b.loop.Submit((*strandChange)(s)) // a loop that has ended reads nothing
}

// strandChange is a strand as the task that looks whether it is full.
type strandChange strand

func (t *strandChange) Run() { (*strand)(t).look() }

// look holds up reading if the strand is full, and lets it go on if not. Loop-only.
func (s *strand) look() {
	if full := s.Full(); full != s.holding {
		s.holding = full
		s.b.holdReading(full)
	}
}

// strandJob is an op as a task of a strand: a call of the handler of o.c.
type strandJob op

func (t *strandJob) Run() {
	o := op(*t)
	*t = strandJob{}
	ops.Put((*op)(t))
	o.c.typ.offloaded.run(&o)
}

func newJob(o op) *strandJob {
	t := ops.Get().(*op)
	*t = o
	return (*strandJob)(t)
}

// submit has the handler of o.c called for o. It fails with eventloop.ErrOffloadFull
// and nothing else. Any goroutine.
func (s *strand) submit(o op) error {
	t := newJob(o)
	err := s.Submit(t)
	switch err {
	case nil:
	case eventloop.ErrOffloadFull:
		*t = strandJob{}
		ops.Put((*op)(t))
		return err
	default:
		s.Post(t)
	}
	return nil
}

// execute is submit without a bound. It fails with eventloop.ErrOffloadClosed when the
// executor has ended.
func (s *strand) execute(o op) error {
	t := newJob(o)
	err := s.Submit(t)
	if err == eventloop.ErrOffloadFull {
		s.Post(t)
		return nil
	}
	return err
}

// post is submit for what must not be lost.
func (s *strand) post(o op) { s.Post(newJob(o)) }

// settle takes note that a strand is done with a write of n bytes. The loop counts
// them off, for all writes at once that are done by then. Any goroutine.
func (r *offloading) settle(n int64) {
	if r.done.Add(n) == n {
		_ = r.b.loop.Submit((*settleTask)(r))
	}
}

type settleTask offloading

func (t *settleTask) Run() {
	b := t.b
	b.foreign.Add(-t.done.Swap(0))
	b.judge()
}

// holdReading stops the channel's reading, or lets it go on when nobody stops it any
// more. A request that the Core has been given by hand is not taken back: it brings the
// reads of one turn. Loop-only.
func (b *Base) holdReading(on bool) {
	r := b.offloading()
	if on {
		r.holds++
		if r.holds == 1 && b.life == active && b.flags.has(flagAutoRead) {
			r.wanted = true
			b.core.DoReadStop()
		}
		return
	}
	r.holds--
	if r.holds == 0 && r.wanted {
		r.wanted = false
		b.requestRead()
	}
}

// requestRead asks the Core for a turn of reading, or takes note of it while reading is
// held up. Before the channel is active the Core takes note of it. Loop-only.
func (b *Base) requestRead() {
	if b.life.is(fresh) || b.life.is(closed) {
		return
	}
	if r := b.offloads(); r != nil && r.holds > 0 {
		r.wanted = true
		return
	}
	b.core.DoRead()
}

// stopReading takes back what has been asked for: AutoRead went off. Loop-only.
func (b *Base) stopReading() {
	if r := b.offloads(); r != nil {
		r.wanted = false
	}
	b.core.DoReadStop()
}

// The removal of a handler on a strand. It stays in the chain, hidden from lookups,
// until the strand is done with it; what comes meanwhile is held.

// leave begins the removal. Loop-only, once.
func (h *strandHandler) leave() {
	h.leaving = true
	h.c.setRemoved()
	h.c.p.base.holdReading(true)
	h.s.post(op{kind: opRemoved, c: h.c})
}

// gone ends the removal: what was held goes on, in order, and with it what comes
// meanwhile. Loop-only.
func (p *Pipeline) gone(c *Context) {
	h, b := c.typ.offloaded, p.base
	finished := false
	defer func() {
		if !finished { // Goexit
			b.post(op{kind: opGone, c: c})
		}
	}()
	for h.heldAt < len(h.held) {
		o := h.held[h.heldAt]
		h.held[h.heldAt] = op{}
		h.heldAt++
		b.arrive(o)
	}
	finished = true
	h.held = nil
	p.takeOut(c)
	b.holdReading(false)
	defer func() {
		if r := b.offloading(); r.removing {
			r.removing = false
			p.removeAll()
		}
	}()
	if h.addErr == nil {
		return
	}
	if h.broken {
		defer b.core.DoClose(CloseNow, h.addErr)
	}
	p.reportAdded(c, h.addErr)
}

// addFailed removes the handler of o.c, whose HandleAdded has failed on its strand. That
// is told when the handler is gone, as on the loop.
func (p *Pipeline) addFailed(o *op) {
	h := o.c.typ.offloaded
	h.addErr, h.broken = o.err, o.mode == CloseNow
	p.unlink(o.c)
}

// passEnd follows the last notifications of a channel from c on: when each strand is
// done with them, all handlers are removed. Loop-only.
func (p *Pipeline) passEnd(c *Context) {
	for ; c != &p.ends; c = c.next {
		if h := c.typ.offloaded; h != nil && c.mask != 0 {
			h.take(op{kind: opEnd, c: c})
			return
		}
	}
	p.removeAll()
}

// holdLoop keeps the loop, and with it the workers, from ending before the handlers have
// been told of the end and are removed: what they begin then is still done. Loop-only.
func (b *Base) holdLoop() {
	if !b.heldLoop {
		b.heldLoop = true
		b.loop.Hold()
	}
}

func (b *Base) releaseLoop() {
	if b.heldLoop {
		b.heldLoop = false
		b.loop.Release()
	}
}
