package pipeline

import (
	"fmt"
	"net"

	"github.com/runnel-io/runnel/eventloop"
	"go.uber.org/zap"
)

// Offloaded adds a handler that blocks: its methods run on the workers of an Offload,
// one at a time and in the order of the channel's events, and not on the loop. A
// handler's state needs no lock there either. Give it to Add in the handler's place;
// names, [Find] and [Context.Handler] see the handler.
//
//	ch.Pipeline().Add(codec, pipeline.Offloaded{Handler: &store{db: db}})
//
// What the handler does through its Context goes back to the loop, in its order.
// Everything that asks for a call runs with its methods, one at a time: completions
// (WriteThen, CloseThen), Execute, Schedule and the results of [Context.Offload]. A
// Maker may return an Offloaded, so that a codec that blocks need not be wrapped by
// its users. Netty: a handler added with an EventExecutorGroup.
//
// If the handler takes any inbound event, then all inbound events pass through its
// queue, so that none overtakes another; likewise all writes, connects and closes if
// it takes any of the outbound operations. Requests for reading, and flushes unless
// the channel is flushed by hand, which are no messages, go past a handler that does
// not take them. What Channel says, Active for one, may be ahead of the events;
// Context.Active is not.
//
// Errors and panics are dealt with as on the loop. HandleAdded runs later than Add
// returns: if it fails, no event reaches the handler, those that have come meanwhile
// go on, HandleRemoved is called, the handler is removed, and HandleError is told from
// the head on. When the handler is removed, what is in its queue still reaches it, then
// HandleRemoved; what comes meanwhile waits behind that, so that the order is kept. It
// may remove itself, or change the pipeline otherwise, by calls in its methods. At
// the end of a channel the handlers behind it are removed when it has passed on
// HandleInactive and HandleUnregistered, and the loop's end waits for that.
//
// The queue is bounded. With Mark calls waiting the channel stops reading, manual
// requests included, until half of them are left; what the current turn still brings
// is queued. With Max waiting, the next message, user event, error, write or connect
// is dropped, HandleError is told of an error that matches eventloop.ErrOffloadFull, and
// the channel is closed because of it. Writes in the queue count against the water
// marks.
type Offloaded struct {
	Handler any // or a Maker

	// Executor is where the handler runs; nil means the Offload of the loop's group. The
	// handlers of a channel with the same Executor share one queue, whose bounds are
	// those of the first that is added.
	Executor *eventloop.Offload

	Mark int // calls waiting at which reading stops; 0 means 256
	Max  int // calls that may wait; 0 means 65536, or Mark if that is more
}

// unwrap returns the handler and the Offloaded that it is in, if it is in one.
func unwrap(h any) (handler any, off Offloaded, ok bool) {
	if off, ok = h.(Offloaded); ok {
		h = off.Handler
	}
	return h, off, ok
}

const (
	maskInbound  = maskNotifications | maskNotifications<<holdShift | maskRead | maskEvent | maskError
	maskOutbound = maskWrite | maskFlush | maskReadRequest | maskConnect | maskClose | maskCloseWrite
)

// strandHandler stands in the pipeline for a handler that runs on a strand. On the
// loop it takes every event of the directions in which the handler takes any, and holds
// the notifications; on the strand it calls the handler, and lets go on what that does
// not take.
type strandHandler struct {
	// Fixed.
	c      *Context
	s      *strand
	h      any
	takes  mask
	reader ReadHandler
	writer WriteHandler

	// Loop-only.
	leaving bool // removed; c stays in the chain until the strand is done with it
	refused bool // the strand was full, and the handler has been told
	held    []op // what has come since it is leaving
	heldAt  int
	addErr  error // of its HandleAdded, told when it is gone
	broken  bool  // that was a panic or a Goexit, which closes the channel then

	// Strand-only.
	active  bool     // HandleActive has come, or had passed, and HandleInactive has not
	over    bool     // HandleAdded has failed, or HandleRemoved has been called
	errFrom *Context // where the error came from that HandleError is called with
}

// offload has the handler of c, which has been prepared, run as off says.
func (p *Pipeline) offload(c *Context, off Offloaded) error {
	s, err := p.base.offloading().strandOn(off)
	if err != nil {
		return err
	}
	if t, ok := c.own().(*traced); ok {
		t.tr = new(tracer) // what it calls is called by the loop
	}
	h := &strandHandler{c: c, s: s, h: c.own(), takes: c.mask}
	h.reader, h.writer = stepReaderOf(h.h), stepWriterOf(h.h)
	t := *c.typ
	t.offloaded = h
	// It is never without a bit while it is linked.
	m := maskRemoved | c.mask&maskAdded
	if c.mask&maskInbound != 0 {
		m |= maskNotifications<<holdShift | maskRead | maskEvent | maskError
	}
	if c.mask&maskOutbound != 0 {
		m |= maskWrite | maskConnect | maskClose | maskCloseWrite | c.mask&(maskFlush|maskReadRequest)
		if p.base.manualFlush {
			m |= maskFlush
		}
	}
	c.typ, c.mask = &t, m
	c.setHandler(h)
	return nil
}

// The loop's side: events and operations become jobs of the strand.

func (h *strandHandler) HandleRead(c *Context, msg any) error {
	h.take(op{kind: opFireRead, c: c, msg: msg})
	return nil
}

func (h *strandHandler) HandleEvent(c *Context, ev any) error {
	h.take(op{kind: opFireEvent, c: c, msg: ev})
	return nil
}

func (h *strandHandler) HandleError(c *Context, err error) {
	h.take(op{kind: opFireError, c: c, err: err, from: c.p.errFrom})
}

func (h *strandHandler) notified(ev mask) error {
	h.take(op{kind: opNotify, c: h.c, ev: ev})
	return nil
}

func (h *strandHandler) InterceptRegistered(*Context) error   { return h.notified(maskRegistered) }
func (h *strandHandler) InterceptActive(*Context) error       { return h.notified(maskActive) }
func (h *strandHandler) InterceptReadComplete(*Context) error { return h.notified(maskReadComplete) }
func (h *strandHandler) InterceptWritability(*Context) error  { return h.notified(maskWritability) }
func (h *strandHandler) InterceptInactive(*Context) error     { return h.notified(maskInactive) }
func (h *strandHandler) InterceptUnregistered(*Context) error { return h.notified(maskUnregistered) }

func (h *strandHandler) HandleWrite(c *Context, msg any, p *eventloop.Promise) error {
	b := c.p.base
	o := op{kind: opWrite, c: c, msg: msg, p: p, size: PendingSize(msg, b.high.Load())}
	b.foreign.Add(o.size)
	h.take(o)
	b.judge()
	return nil
}

func (h *strandHandler) HandleFlush(c *Context) error {
	h.take(op{kind: opFlush, c: c})
	return nil
}

func (h *strandHandler) HandleReadRequest(c *Context) error {
	h.take(op{kind: opRead, c: c})
	return nil
}

func (h *strandHandler) HandleConnect(c *Context, remote, local net.Addr, p *eventloop.Promise) error {
	h.take(op{kind: opConnect, c: c, remote: remote, local: local, p: p})
	return nil
}

func (h *strandHandler) HandleClose(c *Context, p *eventloop.Promise) error {
	h.take(op{kind: opClose, c: c, p: p})
	return nil
}

func (h *strandHandler) HandleCloseWrite(c *Context, p *eventloop.Promise) error {
	h.take(op{kind: opCloseWrite, c: c, p: p})
	return nil
}

func (h *strandHandler) HandleAdded(c *Context) error {
	h.take(op{kind: opAdded, c: c})
	return nil
}

// take takes over what has come to the handler's place in the chain. Loop-only.
func (h *strandHandler) take(o op) {
	switch {
	case h.leaving:
		if bounded(o.kind) && len(h.held)-h.heldAt >= h.s.max {
			h.refuse(o)
			return
		}
		h.held = append(h.held, o)
	case bounded(o.kind):
		if h.s.submit(o) == eventloop.ErrOffloadFull {
			h.refuse(o)
		}
	default:
		h.s.post(o)
	}
}

// bounded reports whether an op is one of those of which a peer or a writer may cause
// any number. The others must not be lost.
func bounded(k opKind) bool {
	switch k {
	case opFireRead, opFireEvent, opFireError, opWrite, opFlush, opRead, opConnect:
		return true
	}
	return false
}

// refuse drops an op for which there is no room, and closes the channel. Loop-only.
func (h *strandHandler) refuse(o op) {
	b := h.c.p.base
	err := b.closeError()
	if !h.refused {
		err = fmt.Errorf("pipeline: %d calls wait for handler %q: %w", h.s.max, h.c.Name(), eventloop.ErrOffloadFull)
	}
	b.foreign.Add(-o.size)
	o.drop(err)
	if h.refused {
		return
	}
	h.refused = true
	h.s.post(op{kind: opFireError, c: h.c, from: h.c, err: err})
	b.core.DoClose(CloseNow, err)
}

// The strand's side.

// run calls the handler for o, or lets o go on, and deals with what goes wrong as the
// guards of the loop do: HandleError first, then notifications go on and promises fail,
// then the channel is closed. A further panic or Goexit keeps nothing of that from being
// done.
func (h *strandHandler) run(o *op) {
	if p := h.c.p; p.base.loop.InLoop() {
		// The Offload is closed. A guard further out is not for what the handler does.
		outer := p.scope.inner
		p.scope.inner = nil
		defer func() { p.scope.inner = outer }()
	}
	returned := false
	defer func() {
		if !returned {
			h.broke(o, recover())
		}
	}()
	taken, err := h.call(o)
	returned = true
	if !taken {
		h.pass(o)
		h.settle(o)
		return
	}
	defer h.done(o)
	if err != nil {
		h.failed(o, err)
	}
}

// call calls the method for o. taken is false if the handler has none.
func (h *strandHandler) call(o *op) (taken bool, err error) {
	c, m := h.c, h.takes
	if h.over {
		m &= maskRemoved
	}
	switch o.kind {
	case opFireRead:
		if m&maskRead != 0 {
			return true, h.reader.HandleRead(c, o.msg)
		}
	case opFireEvent:
		if m&maskEvent != 0 {
			return true, h.h.(EventHandler).HandleEvent(c, o.msg)
		}
	case opFireError:
		if m&maskError != 0 {
			h.errFrom = o.from
			h.h.(ErrorHandler).HandleError(c, o.err)
			h.errFrom = nil
			return true, nil
		}
	case opNotify:
		switch o.ev {
		case maskActive:
			h.active = true
		case maskInactive:
			h.active = false
		}
		if m &= o.ev | o.ev.hold(); m != 0 {
			return true, callNotification(h.h, c, m)
		}
	case opWrite:
		if m&maskWrite != 0 {
			return true, h.writer.HandleWrite(c, o.msg, o.p)
		}
	case opFlush:
		if m&maskFlush != 0 {
			return true, h.h.(FlushHandler).HandleFlush(c)
		}
	case opRead:
		if m&maskReadRequest != 0 {
			return true, h.h.(ReadRequestHandler).HandleReadRequest(c)
		}
	case opConnect:
		if m&maskConnect != 0 {
			return true, h.h.(ConnectHandler).HandleConnect(c, o.remote, o.local, o.p)
		}
	case opClose:
		if m&maskClose != 0 {
			return true, h.h.(CloseHandler).HandleClose(c, o.p)
		}
	case opCloseWrite:
		if m&maskCloseWrite != 0 {
			return true, h.h.(CloseWriteHandler).HandleCloseWrite(c, o.p)
		}
	case opAdded:
		return true, h.h.(AddedHandler).HandleAdded(c)
	case opRemoved:
		h.over = true
		if m&maskRemoved != 0 {
			h.h.(RemovedHandler).HandleRemoved(c)
		}
		return true, nil
	case opFunc:
		o.msg.(func())()
		return true, nil
	case opThen:
		o.msg.(func(error))(o.err)
		return true, nil
	case opResult:
		o.msg.(*offloadCall).finish()
		return true, nil
	}
	return false, nil
}

// pass lets o go on as if the handler were not there.
func (h *strandHandler) pass(o *op) {
	if o.kind == opWrite {
		h.c.ForwardWrite(o.msg, o.p)
		return
	}
	h.c.do(*o)
}

// settle no longer counts a write against the water marks.
func (h *strandHandler) settle(o *op) {
	if o.size > 0 {
		h.c.p.base.offloading().settle(o.size)
	}
}

// done does what follows a call of the handler, however that has ended.
func (h *strandHandler) done(o *op) {
	switch o.kind {
	case opNotify:
		if h.takes&o.ev != 0 {
			h.c.fire(o.ev)
		}
	case opRemoved:
		h.c.do(op{kind: opGone, c: h.c})
	}
	h.settle(o)
}

// failed deals with an error that a method has returned.
func (h *strandHandler) failed(o *op, err error) {
	switch o.kind {
	case opAdded:
		h.addFailed(err, false)
	case opWrite, opFlush, opRead, opConnect, opClose, opCloseWrite:
		if o.p == nil {
			h.c.do(op{kind: opFireError, c: &h.c.p.ends, from: h.c, err: err})
			return
		}
		o.p.Complete(err)
	default:
		h.tell(err)
	}
}

// broke deals with a panic, or with a Goexit when v is nil.
func (h *strandHandler) broke(o *op, v any) {
	err := h.brokenBy(v)
	h.errFrom = nil
	if o.kind == opAdded {
		h.addFailed(err, true)
		return
	}
	defer h.c.p.base.Abort(CloseNow, err)
	defer h.done(o)
	defer o.p.Complete(err)
	if o.kind == opFireError {
		h.logError(err)
		return
	}
	h.tell(err)
}

func (h *strandHandler) brokenBy(v any) error {
	if v == nil {
		return ErrGoexit
	}
	return newPanicError(h.c.Name(), v)
}

// addFailed deals with a HandleAdded that has failed: no event reaches the handler.
func (h *strandHandler) addFailed(err error, broken bool) {
	h.over = true
	o := op{kind: opAddFailed, c: h.c, err: fmt.Errorf("pipeline: adding handler %q: %w", h.c.Name(), err)}
	if broken {
		o.mode = CloseNow
	}
	h.c.do(o)
}

// tell hands an error to the handler's own HandleError, or lets it go on.
func (h *strandHandler) tell(err error) {
	if h.over || h.takes&maskError == 0 {
		h.c.FireError(err)
		return
	}
	returned := false
	defer func() {
		if !returned {
			err := h.brokenBy(recover())
			defer h.c.p.base.Abort(CloseNow, err)
			h.logError(err)
		}
	}()
	h.h.(ErrorHandler).HandleError(h.c, err)
	returned = true
}

// logError logs the panic of a HandleError.
func (h *strandHandler) logError(err error) {
	p := h.c.p
	p.base.logger.Error("panic in HandleError",
		append(p.errorFields(h.c.Name(), err), zap.Stringer("channel", p.base))...)
}
