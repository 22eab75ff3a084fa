package pipeline

import "github.com/runnel-io/runnel/eventloop"

// The walks: each goes to the next context that takes the event, calls it, and
// records who runs. They end at the head or the tail, which take everything. Where no
// handler takes what comes in each turn, a flush for one, they begin there.

func (p *Pipeline) read(c *Context, msg any) {
	for c.mask&maskRead == 0 {
		c = c.next
	}
	prev := p.cur
	p.cur = c
	if err := c.reader.HandleRead(c, msg); err != nil {
		p.failedAt(c, err)
	}
	p.cur = prev
}

func (p *Pipeline) event(c *Context, ev any) {
	if p.wanted&maskEvent == 0 {
		c = &p.ends
	}
	for c.mask&maskEvent == 0 {
		c = c.next
	}
	prev := p.cur
	p.cur = c
	if err := c.own().(EventHandler).HandleEvent(c, ev); err != nil {
		p.failedAt(c, err)
	}
	p.cur = prev
}

// failedAt delivers an error of the handler of c, to its own HandleError first.
//
//go:noinline
func (p *Pipeline) failedAt(c *Context, err error) { p.errorAt(c, c, err) }

// errorAt delivers err, which came from the handler of from, to the first
// HandleError from c on, c's own included.
func (p *Pipeline) errorAt(c, from *Context, err error) {
	outer := p.errFrom
	p.errFrom = from
	p.deliverError(c, err)
	p.errFrom = outer
}

func (p *Pipeline) deliverError(c *Context, err error) {
	if p.wanted&maskError == 0 {
		c = &p.ends
	}
	for c.mask&maskError == 0 {
		c = c.next
	}
	prev, depth := p.cur, p.inError
	p.cur, p.inError = c, depth+1
	c.own().(ErrorHandler).HandleError(c, err)
	p.cur, p.inError = prev, depth
}

// notify delivers a notification to all handlers from c on, until one holds it.
func (p *Pipeline) notify(c *Context, ev mask) {
	if ev == maskActive {
		p.activate(c)
		return
	}
	for both := ev | ev.hold(); c != &p.ends; c = c.next {
		if m := c.mask & both; m != 0 && p.tell(c, m, ev) {
			return
		}
	}
}

// activate is notify for HandleActive. It leaves a mark where it has come by.
func (p *Pipeline) activate(c *Context) {
	for ; c != &p.ends; c = c.next {
		if c.mask != 0 { // else it has been removed
			c.mask |= maskActivated
		}
		if m := c.mask & (maskActive | maskActive<<holdShift); m != 0 && p.tell(c, m, maskActive) {
			return
		}
	}
	c.mask |= maskActivated
}

// tell calls the handler of c for notification ev, in the form that m says, and reports
// whether it holds it.
func (p *Pipeline) tell(c *Context, m, ev mask) (held bool) {
	own := ev
	if m != ev {
		own = 0 // held: a panic does not make it go on
	}
	prev, n := p.cur, len(p.scope.frames)
	p.cur = c
	p.scope.frames = append(p.scope.frames, frame{c: c, ev: own})
	if err := callNotification(c.own(), c, m); err != nil {
		p.failedAt(c, err)
	}
	p.cur = prev
	p.cut(n)
	return m != ev
}

// readComplete ends a turn's reads at the head, and asks for more if the channel
// reads on its own; a handler that holds the notification does not hold that.
func (p *Pipeline) readComplete() {
	p.notifyFromHead(maskReadComplete)
	b := p.base
	if !b.flags.has(flagAutoRead) || b.life != active {
		return
	}
	if p.wanted&maskReadRequest == 0 {
		b.requestRead()
		return
	}
	p.guardedReadRequest(p.ends.prev)
}

func (p *Pipeline) guardedReadRequest(c *Context) {
	defer p.leave(p.enter())
	p.readRequest(c)
	p.normal = true
}

func (p *Pipeline) write(c *Context, msg any, pr *eventloop.Promise) {
	for c.mask&maskWrite == 0 {
		c = c.prev
	}
	if pr != nil {
		h := p.hand(c, pr)
		if err := c.writer.HandleWrite(c, msg, pr); err != nil {
			p.outboundFailed(c, pr, err)
		}
		p.handed(h)
		return
	}
	prev := p.cur
	p.cur = c
	if err := c.writer.HandleWrite(c, msg, nil); err != nil {
		p.outboundFailed(c, nil, err)
	}
	p.cur = prev
}

func (p *Pipeline) flush(c *Context) {
	if p.wanted&maskFlush == 0 {
		c = &p.ends
	}
	for c.mask&maskFlush == 0 {
		c = c.prev
	}
	prev := p.cur
	p.cur = c
	if err := c.own().(FlushHandler).HandleFlush(c); err != nil {
		p.outboundFailed(c, nil, err)
	}
	p.cur = prev
}

func (p *Pipeline) readRequest(c *Context) {
	if p.wanted&maskReadRequest == 0 {
		c = &p.ends
	}
	for c.mask&maskReadRequest == 0 {
		c = c.prev
	}
	prev := p.cur
	p.cur = c
	if err := c.own().(ReadRequestHandler).HandleReadRequest(c); err != nil {
		p.outboundFailed(c, nil, err)
	}
	p.cur = prev
}

// outboundFailed reports the error of the outbound handler of from: to the promise,
// or to HandleError from the head on if nobody asked for a completion.
func (p *Pipeline) outboundFailed(from *Context, pr *eventloop.Promise, err error) {
	if pr != nil {
		pr.Complete(err)
		return
	}
	p.errorAt(p.ends.next, from, err)
}
