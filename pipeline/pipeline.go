package pipeline

import (
	"net"
	"sync"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"go.uber.org/zap"
)

// Pipeline is the chain of a channel's handlers. Inbound events travel from the
// head, at the transport, to the tail; outbound operations from the tail to the
// head.
//
// What reaches the tail is released: a message that nobody took is reported at
// debug level, an error that nobody handled at warn level, with the channel and
// the handler it came from.
//
// A handler that is added to an active channel is not told of what has been before:
// its HandleAdded asks Context.Active, and HandleActive comes if that says no. Events that a handler is in the middle of go
// on to its neighbours of the time when it was removed; so whoever replaces itself
// adds the successor first.
//
// Concurrency: safe from any goroutine. Off the loop a change of the chain is made
// by the loop while the caller waits, also in the methods of the channel's own
// [Offloaded] handlers; where waiting could deadlock, on another loop or worker or when
// the loop is a Manual, it is refused with [eventloop.ErrWouldDeadlock].
type Pipeline struct {
	base  *Base
	scope *scope
	ends  Context // the head and the tail: the chain is a ring

	mu sync.Mutex // held for links to be changed, and off the loop for them to be followed

	// Loop-only.
	cur     *Context // the handler that runs; nil for the head, ends for the tail
	depth   int32    // guards under way
	inError int32    // HandleError calls under way
	normal  bool     // the innermost guarded stretch has come to its end
	exiting bool     // a Goexit is unwinding this goroutine
	removed bool     // all handlers have been removed: the channel is over
	touches bool     // buffers are told of the handlers they pass; fixed
	wanted  mask     // what any handler that was ever added takes
	errFrom *Context // where the error now under way came from; ends for the transport
}

func (p *Pipeline) init(b *Base) {
	p.base, p.scope = b, scopeOf(b.loop)
	p.touches = buffer.Touching()
	c := &p.ends
	c.p, c.typ, c.mask = p, endsType, maskOutbound|maskRead|maskEvent|maskError
	c.setHandler(ends{b})
	c.next, c.prev, c.nextRead, c.prevWrite = c, c, c, c
}

// each calls f for the head, for each handler that has not been removed and for the
// tail, with its name and those of the events that are its own. It follows the links.
func (p *Pipeline) each(f func(c *Context, name string, own mask)) {
	f(&p.ends, headName, maskOutbound)
	for c := p.ends.next; c != &p.ends; c = c.next {
		if !c.Removed() {
			f(c, c.Name(), ^mask(0))
		}
	}
	f(&p.ends, p.ends.Name(), ^maskOutbound)
}

// Channel returns the channel that this pipeline belongs to.
func (p *Pipeline) Channel() Channel { return p.base.self }

// The Fire methods let an event enter at the head. They are what a transport
// calls, and what a test or an application may call to play one.

// FireRead delivers msg to the first ReadHandler. It takes msg over.
func (p *Pipeline) FireRead(msg any) {
	if !p.base.loop.InLoop() {
		p.base.post(op{kind: opFireRead, c: &p.ends, msg: msg})
		return
	}
	p.guardedRead(p.ends.nextRead, msg)
}

func (p *Pipeline) guardedRead(c *Context, msg any) {
	defer p.leave(p.enter())
	p.read(c, msg)
	p.normal = true
}

// FireReadComplete delivers the end of a turn's reads; with AutoRead it asks for
// more afterwards.
func (p *Pipeline) FireReadComplete() {
	if !p.base.loop.InLoop() {
		p.base.post(op{kind: opNotify, c: &p.ends, ev: maskReadComplete})
		return
	}
	p.readComplete()
}

// FireEvent delivers a user event to the first EventHandler. It takes ev over.
func (p *Pipeline) FireEvent(ev any) { p.ends.FireEvent(ev) }

// FireError delivers err to the first ErrorHandler.
func (p *Pipeline) FireError(err error) {
	if !p.base.loop.InLoop() {
		p.base.post(op{kind: opFireError, c: &p.ends, err: err})
		return
	}
	p.guardedErrorFrom(p.ends.next, &p.ends, err)
}

// Connect connects the channel, through the handlers from the tail on; local may be
// nil. It is for transports; users dial with transport.Dialer.
func (p *Pipeline) Connect(remote, local net.Addr, pr *eventloop.Promise) {
	p.ends.ForwardConnect(remote, local, pr)
}

// FailWrite reports the failure of a write: to p, or, when nobody asked for a
// completion, to HandleError from the head on. It is what a [Core] calls for
// failures that are not a consequence of a close. Loop-only.
func (p *Pipeline) FailWrite(pr *eventloop.Promise, err error) {
	if pr != nil {
		pr.Complete(err)
		return
	}
	p.FireError(err)
}

// tailUnhandled logs an error that no handler took.
func (p *Pipeline) tailUnhandled(err error) {
	from := "transport"
	if p.errFrom != nil && p.errFrom != &p.ends {
		from = p.errFrom.Name()
	}
	p.base.logger.Warn("unhandled error",
		append(p.errorFields(from, err), zap.Stringer("channel", p.base))...)
}
