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
)

// op is an operation or an event on its way to the loop.
type op struct {
	b             *Base
	kind          opKind
	mode          CloseMode
	ev            mask
	c             *Context // where it starts; for events, the one before
	msg           any
	p             *eventloop.Promise
	err           error
	size          int64 // what Base.foreign counts for it
	remote, local net.Addr
}

var ops = sync.Pool{New: func() any { return new(op) }}

// post sends o to the loop. When the loop has ended, o fails here.
func (b *Base) post(o op) {
	t := ops.Get().(*op)
	*t = o
	t.b = b
	if b.loop.Submit(t) == nil {
		return
	}
	b.foreign.Add(-o.size)
	buffer.Release(o.msg)
	if o.p != nil {
		o.p.Complete(b.closeError())
	}
	*t = op{}
	ops.Put(t)
}

// Run performs a posted op on the loop.
func (t *op) Run() {
	o := *t
	*t = op{}
	ops.Put(t)
	b := o.b
	if o.kind == opWrite {
		b.foreign.Add(-o.size)
		b.touch()
	}
	b.pl.guardedOp(&o)
	if o.kind == opWrite {
		b.judge()
	}
}

func (p *Pipeline) guardedOp(o *op) {
	defer p.leave(p.enter())
	o.perform()
	p.normal = true
}

// perform does o. Loop-only, under a guard.
func (o *op) perform() {
	b := o.b
	p := &b.pl
	switch o.kind {
	case opWrite:
		p.write(o.c, o.msg, o.p)
	case opFlush:
		p.flush(o.c)
	case opRead:
		p.readRequest(o.c)
	case opClose:
		p.close(o.c, o.p)
	case opCloseWrite:
		p.closeWrite(o.c, o.p)
	case opConnect:
		p.connect(o.c, o.remote, o.local, o.p)
	case opAbort:
		b.core.DoClose(o.mode, o.err)
	case opAutoRead:
		b.applyAutoRead()
	case opFireRead:
		p.read(o.c.next, o.msg)
	case opFireEvent:
		p.event(o.c.next, o.msg)
	case opFireError:
		p.errorAt(o.c.next, o.err)
	case opNotify:
		if o.c == &p.head && o.ev == maskReadComplete {
			p.readComplete()
			return
		}
		p.notify(o.c.next, o.ev)
	}
}

func (p *Pipeline) close(c *Context, pr *eventloop.Promise) {
	for c.mask&maskClose == 0 {
		c = c.prev
	}
	prev := p.cur
	p.cur = c
	if err := c.handler.(CloseHandler).HandleClose(c, pr); err != nil {
		p.outboundFailed(pr, err)
	}
	p.cur = prev
}

func (p *Pipeline) closeWrite(c *Context, pr *eventloop.Promise) {
	for c.mask&maskCloseWrite == 0 {
		c = c.prev
	}
	prev := p.cur
	p.cur = c
	if err := c.handler.(CloseWriteHandler).HandleCloseWrite(c, pr); err != nil {
		p.outboundFailed(pr, err)
	}
	p.cur = prev
}

func (p *Pipeline) connect(c *Context, remote, local net.Addr, pr *eventloop.Promise) {
	for c.mask&maskConnect == 0 {
		c = c.prev
	}
	prev := p.cur
	p.cur = c
	if err := c.handler.(ConnectHandler).HandleConnect(c, remote, local, pr); err != nil {
		p.outboundFailed(pr, err)
	}
	p.cur = prev
}
