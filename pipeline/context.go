package pipeline

import (
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
)

// Context is a handler's place in a pipeline, and its way to the handlers before
// and after it. In a handler it is called c.
//
// The Fire methods go to the next handler after this one, the operations (Write,
// Flush, Close and so on) to the next one before it. They take messages over,
// whether or not they succeed.
//
// Concurrency: safe from any goroutine, like [Channel]; also after the handler has
// been removed, when events go on to its former neighbours.
type Context struct {
	p    *Pipeline
	mask mask // loop-only once it has been added

	// Names it among the handlers of its type when it was given no name; ^n once it has
	// been removed. Any goroutine; stored on the loop.
	ordinal atomic.Int32

	// Loop-only. Where reads and writes go from here, past the handlers that do not
	// take them. After removal they are next and prev, which may be such handlers.
	nextRead, prevWrite *Context

	// The handler as what is called for a read and for a write, nil if it does not take
	// them, or what stands before it. It is in one of them at least, see own. Fixed when
	// it has been added.
	reader ReadHandler
	writer WriteHandler

	next, prev *Context
	typ        *handlerType // of what was passed to Add: the Maker, or the handler; fixed likewise
}

// Channel returns the channel.
func (c *Context) Channel() Channel { return c.p.base.self }

// Active reports whether the channel is active and HandleActive has come to this
// handler's place, or had passed it before the handler was added. That is what a
// HandleAdded asks that starts something, for HandleActive comes if it says no: while
// handlers are told one after the other, and while one of them holds the news back, the
// channel is active already. To a handler on an executor it says no, too, when
// HandleInactive has come. Elsewhere than in the handler's methods, and in completions and
// the like, it is Channel.Active.
func (c *Context) Active() bool {
	b := c.p.base
	switch h := c.typ.offloaded; {
	case h == nil && b.loop.InLoop():
		return b.Active() && (c.mask|c.p.ends.mask)&maskActivated != 0
	case h != nil && h.takes&maskInbound != 0 && h.s.InStrand():
		return h.active
	}
	return b.Active()
}

// activated takes note that HandleActive had passed when the handler was added. Loop-only.
func (c *Context) activated() {
	c.mask |= maskActivated
	if h := c.typ.offloaded; h != nil {
		h.active = c.p.base.Active() // the strand has not begun with it
	}
}

// Pipeline returns the pipeline.
func (c *Context) Pipeline() *Pipeline { return c.p }

// Loop returns the channel's loop.
func (c *Context) Loop() *eventloop.Loop { return c.p.base.loop }

// Alloc makes buffers for this channel.
func (c *Context) Alloc() buffer.Allocator { return c.p.base.alloc }

// Handler returns the handler.
func (c *Context) Handler() any {
	h := c.own()
	if s := c.typ.offloaded; s != nil {
		h = s.h
	}
	if t, ok := h.(*traced); ok {
		return t.h
	}
	return h
}

// setHandler has c call h, which takes what the mask of c says.
func (c *Context) setHandler(h any) {
	c.reader, c.writer = readerOf(h), writerOf(h)
	if c.reader == nil && c.writer == nil {
		c.reader = keptReader{h}
	}
	if c.p.touches {
		c.touch()
	}
}

// own returns the handler that setHandler was called with.
func (c *Context) own() any {
	switch r := c.reader.(type) {
	case nil:
	case *mapReader:
		return r.m
	case keptReader:
		return r.h
	case touchReader:
		return r.own()
	default:
		return r
	}
	switch w := c.writer.(type) {
	case *mapWriter:
		return w.m
	case touchWriter:
		return w.own()
	default:
		return w
	}
}

// keptReader keeps a handler that takes neither reads nor writes. It is not called.
type keptReader struct{ h any }

func (keptReader) HandleRead(*Context, any) error { return nil }

// Name returns the name that the handler was added with, or Type#N.
func (c *Context) Name() string {
	if c.typ.given != "" {
		return c.typ.given
	}
	return c.typ.name + "#" + strconv.Itoa(int(c.number()))
}

// Remove removes the handler from its pipeline. A second call returns
// ErrNoHandler.
func (c *Context) Remove() error { return c.p.Remove(c) }

// Removed reports whether the handler has been removed.
func (c *Context) Removed() bool { return c.ordinal.Load() < 0 }

// number is the handler's among those of its type.
func (c *Context) number() int32 {
	n := c.ordinal.Load()
	return max(n, ^n)
}

// setRemoved has Removed say so. Loop-only.
func (c *Context) setRemoved() { c.ordinal.Store(^c.number()) }

// FireRead passes a message on to the next ReadHandler.
func (c *Context) FireRead(msg any) {
	p := c.p
	if !p.base.loop.InLoop() || !p.guarded() {
		c.enterRead(msg)
		return
	}
	// As Pipeline.read, without the call: a processor predicts only so many returns.
	next := c.nextRead
	for next.mask&maskRead == 0 {
		next = next.next
	}
	prev := p.cur
	p.cur = next
	if err := next.reader.HandleRead(next, msg); err != nil {
		p.failedAt(next, err)
	}
	p.cur = prev
}

// enterRead is FireRead where the pipeline is entered.
func (c *Context) enterRead(msg any) {
	if c.p.base.loop.InLoop() {
		c.p.guardedRead(c.nextRead, msg)
		return
	}
	c.p.base.post(op{kind: opFireRead, c: c, msg: msg})
}

// FireEvent passes a user event on to the next EventHandler.
func (c *Context) FireEvent(ev any) {
	p := c.p
	if !p.base.loop.InLoop() {
		p.base.post(op{kind: opFireEvent, c: c, msg: ev})
		return
	}
	if !p.guarded() {
		p.guardedEvent(c.next, ev)
		return
	}
	p.event(c.next, ev)
}

func (p *Pipeline) guardedEvent(c *Context, ev any) {
	defer p.leave(p.enter())
	p.event(c, ev)
	p.normal = true
}

// FireError passes an error on to the next ErrorHandler.
func (c *Context) FireError(err error) {
	p := c.p
	if !p.base.loop.InLoop() {
		o := op{kind: opFireError, c: c, err: err}
		if h := c.typ.offloaded; h != nil && h.s.InStrand() {
			o.from = h.errFrom
		}
		p.base.post(o)
		return
	}
	if !p.guarded() {
		p.guardedFireError(c, err)
		return
	}
	p.fireError(c, err)
}

// fireError lets err go on from c. If that is the handler whose HandleError runs,
// err came from where the error came from that it was called with.
func (p *Pipeline) fireError(c *Context, err error) {
	if p.inError > 0 && p.cur == c {
		p.deliverError(c.next, err)
		return
	}
	p.errorAt(c.next, c, err)
}

func (p *Pipeline) guardedFireError(c *Context, err error) {
	defer p.leave(p.enter())
	p.fireError(c, err)
	p.normal = true
}

// FireRegistered lets a held notification go on.
func (c *Context) FireRegistered() { c.fire(maskRegistered) }

// FireUnregistered lets a held notification go on.
func (c *Context) FireUnregistered() { c.fire(maskUnregistered) }

// FireActive lets a held notification go on.
func (c *Context) FireActive() { c.fire(maskActive) }

// FireInactive lets a held notification go on.
func (c *Context) FireInactive() { c.fire(maskInactive) }

// FireReadComplete lets a held notification go on, or tells the handlers after
// this one that messages it has fired outside a read are complete.
func (c *Context) FireReadComplete() { c.fire(maskReadComplete) }

// FireWritability lets a held notification go on.
func (c *Context) FireWritability() { c.fire(maskWritability) }

func (c *Context) fire(ev mask) {
	p := c.p
	if !p.base.loop.InLoop() {
		p.base.post(op{kind: opNotify, c: c, ev: ev})
		return
	}
	p.guardedNotify(c.next, ev)
}

// Write sends msg to the handlers before this one. A failure goes to HandleError,
// unless it is a consequence of the close.
func (c *Context) Write(msg any) { c.ForwardWrite(msg, nil) }

// WriteThen is Write; then is called once, where the handler's methods are, when msg has
// left or has failed.
func (c *Context) WriteThen(msg any, then func(error)) { c.ForwardWrite(msg, c.promise(then)) }

// WriteProgress is WriteThen for a long message, a [buffer.FileRegion]: progress is called
// where the handler's methods are, each time some of it has left, with how many bytes of
// it those are by now. Its last call, with sent equal to total, comes before then's.
// Messages that leave from memory make no progress, they only end. Neither function may
// be nil. Netty:
// ChannelProgressivePromise.
func (c *Context) WriteProgress(msg any, progress func(sent, total int64), then func(error)) {
	p := c.promise(then)
	p.OnProgress(func(sent, total int64) {
		c.callback(func(error) { progress(sent, total) }, nil)
	})
	c.ForwardWrite(msg, p)
}

// ForwardWrite goes on with a write that a [WriteHandler] was called with. p may be
// nil.
func (c *Context) ForwardWrite(msg any, p *eventloop.Promise) {
	pl := c.p
	if !pl.base.loop.InLoop() || !pl.guarded() {
		c.enterWrite(msg, p)
		return
	}
	b := pl.base
	if !b.flushQueued {
		b.touch()
	}
	to := c.prevWrite
	if p != nil {
		pl.write(to, msg, p)
		return
	}
	// As Pipeline.write, without the call: see FireRead.
	for to.mask&maskWrite == 0 {
		to = to.prev
	}
	prev := pl.cur
	pl.cur = to
	if err := to.writer.HandleWrite(to, msg, nil); err != nil {
		pl.outboundFailed(to, nil, err)
	}
	pl.cur = prev
}

// enterWrite is ForwardWrite where the pipeline is entered.
func (c *Context) enterWrite(msg any, p *eventloop.Promise) {
	if c.p.base.loop.InLoop() {
		c.p.base.touch()
		c.p.guardedWrite(c.prevWrite, msg, p)
		return
	}
	c.p.base.postWrite(c, msg, p)
}

func (p *Pipeline) guardedWrite(c *Context, msg any, pr *eventloop.Promise) {
	defer p.leave(p.enter())
	p.write(c, msg, pr)
	p.normal = true
}

// Flush sends what was written, now.
func (c *Context) Flush() {
	p := c.p
	if !p.base.loop.InLoop() {
		p.base.post(op{kind: opFlush, c: c})
		return
	}
	if !p.guarded() {
		p.guardedFlush(c.prev)
		return
	}
	p.flush(c.prev)
}

func (p *Pipeline) guardedFlush(c *Context) {
	defer p.leave(p.enter())
	p.flush(c)
	p.normal = true
}

// Read asks for one turn of reading; needed only while AutoRead is off, or to go
// on with a request that a [ReadRequestHandler] was called with.
func (c *Context) Read() {
	p := c.p
	if !p.base.loop.InLoop() {
		p.base.post(op{kind: opRead, c: c})
		return
	}
	if !p.guarded() {
		p.guardedReadRequest(c.prev)
		return
	}
	p.readRequest(c.prev)
}

// Close lets what was written leave first, then closes.
func (c *Context) Close() { c.do(op{kind: opClose, c: c}) }

// CloseThen is Close; then is called once, where the handler's methods are, when it has
// closed.
func (c *Context) CloseThen(then func(error)) {
	c.do(op{kind: opClose, c: c, p: c.promise(then)})
}

// ForwardClose goes on with a close that a [CloseHandler] was called with.
func (c *Context) ForwardClose(p *eventloop.Promise) { c.do(op{kind: opClose, c: c, p: p}) }

// CloseWrite closes the sending side after what was written has left.
func (c *Context) CloseWrite() { c.do(op{kind: opCloseWrite, c: c}) }

// ForwardCloseWrite goes on with what a [CloseWriteHandler] was called with.
func (c *Context) ForwardCloseWrite(p *eventloop.Promise) {
	c.do(op{kind: opCloseWrite, c: c, p: p})
}

// ForwardConnect goes on with a connect that a [ConnectHandler] was called with.
func (c *Context) ForwardConnect(remote, local net.Addr, p *eventloop.Promise) {
	c.do(op{kind: opConnect, c: c, remote: remote, local: local, p: p})
}

// do runs an operation in place on the loop, and posts it elsewhere.
func (c *Context) do(o op) {
	p := c.p
	if !p.base.loop.InLoop() {
		p.base.post(o)
		return
	}
	if !p.guarded() {
		p.guardedOp(o)
		return
	}
	p.perform(&o)
}

// promise makes the completion of an operation whose then runs as this handler.
func (c *Context) promise(then func(error)) *eventloop.Promise {
	if then == nil {
		return nil
	}
	p := eventloop.NewPromise(c.p.base.loop)
	p.Then(func(err error) { c.callback(then, err) })
	return p
}

// callback calls a completion. On the loop it is guarded like a handler's method;
// when the loop has ended it runs where the end was found.
func (c *Context) callback(then func(error), err error) {
	if h := c.typ.offloaded; h != nil {
		h.s.post(op{kind: opThen, c: c, msg: then, err: err})
		return
	}
	if !c.p.base.loop.InLoop() {
		then(err)
		return
	}
	c.p.run(c, func() { then(err) })
}

// Execute calls f on the loop, or where [Offloaded] has the handler run, as this
// handler: a panic in f is the handler's. On the loop, too, f runs later. After the
// channel's loop has ended f does not run and Execute returns eventloop.ErrLoopClosed.
// For an Offloaded handler it returns eventloop.ErrOffloadClosed when its executor has
// ended.
func (c *Context) Execute(f func()) error {
	if h := c.typ.offloaded; h != nil {
		return h.s.execute(op{kind: opFunc, c: c, msg: f})
	}
	return c.p.base.loop.Execute(func() { c.p.run(c, f) })
}

// Schedule calls f as Execute does, not before d has passed; also after the handler
// has been removed or the channel has closed: stop it in HandleRemoved. An Offloaded
// handler's may be waiting for its turn by then, and come after HandleRemoved.
func (c *Context) Schedule(d time.Duration, f func()) *eventloop.Timer {
	if h := c.typ.offloaded; h != nil {
		return c.p.base.loop.Schedule(d, func() { h.s.post(op{kind: opFunc, c: c, msg: f}) })
	}
	return c.p.base.loop.Schedule(d, func() { c.p.run(c, f) })
}

// callNotification calls the method of h for notification m, in the form that m says.
func callNotification(h any, c *Context, m mask) error {
	switch m {
	case maskReadComplete:
		return h.(ReadCompleteHandler).HandleReadComplete(c)
	case maskActive:
		return h.(ActiveHandler).HandleActive(c)
	case maskInactive:
		return h.(InactiveHandler).HandleInactive(c)
	case maskRegistered:
		return h.(RegisteredHandler).HandleRegistered(c)
	case maskUnregistered:
		return h.(UnregisteredHandler).HandleUnregistered(c)
	case maskWritability:
		return h.(WritabilityHandler).HandleWritability(c)
	case maskReadComplete << holdShift:
		return h.(ReadCompleteInterceptor).InterceptReadComplete(c)
	case maskActive << holdShift:
		return h.(ActiveInterceptor).InterceptActive(c)
	case maskInactive << holdShift:
		return h.(InactiveInterceptor).InterceptInactive(c)
	case maskRegistered << holdShift:
		return h.(RegisteredInterceptor).InterceptRegistered(c)
	case maskUnregistered << holdShift:
		return h.(UnregisteredInterceptor).InterceptUnregistered(c)
	case maskWritability << holdShift:
		return h.(WritabilityInterceptor).InterceptWritability(c)
	}
	return nil
}
