package pipeline

import (
	"net"
	"sync"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
)

type opKind uint8

const (
	opWrite opKind = iota
	opFlush
	opRead
	opClose
	opCloseWrite
	opConnect
	opAbort
	opAutoRead
	opFireRead
	opFireEvent
	opFireError
	opNotify

	// Jobs of a strand besides the above; see strandHandler.
	opAdded
	opRemoved
	opFunc   // msg is a func()
	opThen   // msg is a func(error), to be called with err
	opResult // msg is an *offloadCall

	// What comes back from a strand. It is performed also when the loop has ended.
	opAddFailed
	opGone
	opEnd // on its way from strand to strand behind a channel's last notifications
)

// op is an operation or an event on its way to the loop.
type op struct {
	b             *Base
	kind          opKind
	mode          CloseMode
	ev            mask
	c             *Context // whose handler makes it
	from          *Context // of opFireError, whose handler's error it is; nil means c
	msg           any
	p             *eventloop.Promise
	err           error
	size          int64 // what Base.foreign counts for it
	remote, local net.Addr
}

var ops = sync.Pool{New: func() any { return new(op) }}

// postWrite posts a write, which counts against the water marks from now on.
func (b *Base) postWrite(c *Context, msg any, pr *eventloop.Promise) {
	size := PendingSize(msg, b.high.Load())
	b.addForeign(size)
	b.post(op{kind: opWrite, c: c, msg: msg, p: pr, size: size})
}

// post sends o to the loop. When the loop takes nothing more, o fails here.
func (b *Base) post(o op) {
	t := ops.Get().(*op)
	*t = o
	t.b = b
	if b.loop.Submit(t) == nil {
		return
	}
	if o.kind >= opAddFailed {
		b.loop.Deliver((*lateOp)(t))
		return
	}
	*t = op{}
	ops.Put(t)
	b.foreign.Add(-o.size)
	switch {
	case o.kind == opClose && !b.Open():
		o.p.Complete(nil) // it is what was asked for
	default:
		o.drop(b.closeError())
	}
}

// drop fails an op that nobody performs.
func (o *op) drop(err error) {
	buffer.Release(o.msg)
	if o.kind == opFireError {
		buffer.Release(o.err)
	}
	o.p.Complete(err)
}

// Run performs a posted op on the loop.
func (t *op) Run() {
	o := *t
	*t = op{}
	ops.Put(t)
	o.b.arrive(o)
}

// lateOp is an op as a task of a loop that has perhaps ended.
type lateOp op

func (t *lateOp) Run() {
	t.b.pl.outlive()
	(*op)(t).Run()
}

// outlive is called before the pipeline is entered by what a loop that takes no more tasks
// was to run. When it has ended, whoever does it instead may not share its scope.
func (p *Pipeline) outlive() {
	if !p.base.loop.InLoop() {
		p.scope = new(scope)
	}
}

// arrive performs an op that was on its way to the loop.
func (b *Base) arrive(o op) {
	if o.kind == opWrite {
		b.foreign.Add(-o.size)
		b.touch()
		defer b.judge()
	}
	b.pl.guardedOp(o)
}

func (p *Pipeline) guardedOp(o op) {
	defer p.leave(p.enter())
	p.perform(&o)
	p.normal = true
}

// perform does o. Loop-only, under a guard.
func (p *Pipeline) perform(o *op) {
	b := p.base
	switch o.kind {
	case opWrite:
		p.write(o.c.prevWrite, o.msg, o.p)
	case opFlush:
		p.flush(o.c.prev)
	case opRead:
		p.readRequest(o.c.prev)
	case opClose:
		p.close(o.c.prev, o.p)
	case opCloseWrite:
		p.closeWrite(o.c.prev, o.p)
	case opConnect:
		p.connect(o.c.prev, o.remote, o.local, o.p)
	case opAbort:
		b.core.DoClose(o.mode, o.err)
	case opAutoRead:
		b.applyAutoRead()
	case opFireRead:
		p.read(o.c.nextRead, o.msg)
	case opFireEvent:
		p.event(o.c.next, o.msg)
	case opFireError:
		from := o.from
		if from == nil {
			from = o.c
		}
		p.errorAt(o.c.next, from, o.err)
	case opNotify:
		if o.c == &p.ends && o.ev == maskReadComplete {
			p.readComplete()
			return
		}
		p.notify(o.c.next, o.ev)
	case opAddFailed:
		p.addFailed(o)
	case opGone:
		p.gone(o.c)
	case opEnd:
		p.passEnd(o.c.next)
	}
}

func (p *Pipeline) close(c *Context, pr *eventloop.Promise) {
	for c.mask&maskClose == 0 {
		c = c.prev
	}
	h := p.hand(c, pr)
	if err := c.own().(CloseHandler).HandleClose(c, pr); err != nil {
		p.outboundFailed(c, pr, err)
	}
	p.handed(h)
}

func (p *Pipeline) closeWrite(c *Context, pr *eventloop.Promise) {
	for c.mask&maskCloseWrite == 0 {
		c = c.prev
	}
	h := p.hand(c, pr)
	if err := c.own().(CloseWriteHandler).HandleCloseWrite(c, pr); err != nil {
		p.outboundFailed(c, pr, err)
	}
	p.handed(h)
}

func (p *Pipeline) connect(c *Context, remote, local net.Addr, pr *eventloop.Promise) {
	for c.mask&maskConnect == 0 {
		c = c.prev
	}
	h := p.hand(c, pr)
	if err := c.own().(ConnectHandler).HandleConnect(c, remote, local, pr); err != nil {
		p.outboundFailed(c, pr, err)
	}
	p.handed(h)
}

// inHand is what handed puts back.
type inHand struct {
	cur    *Context
	frames int
}

// hand records that the handler of c is called, with the promise pr, which may be
// nil. A panic fails the promise.
func (p *Pipeline) hand(c *Context, pr *eventloop.Promise) inHand {
	h := inHand{p.cur, len(p.scope.frames)}
	p.cur = c
	if pr != nil {
		p.scope.frames = append(p.scope.frames, frame{c: c, promise: pr})
	}
	return h
}

// handed ends it.
func (p *Pipeline) handed(h inHand) {
	p.cur = h.cur
	if len(p.scope.frames) != h.frames {
		p.cut(h.frames)
	}
}
