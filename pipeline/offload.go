package pipeline

import (
	"context"
)

// Offload runs work on a worker of the loop's group, where it may block, and then
// calls then as this handler: on the loop, or where [Offloaded] has the handler run.
// work's context is cancelled when the channel closes.
//
// The works of a channel run one at a time and in order, also those of different
// handlers, and so come their results. Who wants several at once for one channel
// submits them to the loop's [eventloop.Offload] and comes back by Execute. While more
// than 256 wait the channel does not read, until half of them are left; beyond 65536
// the next is refused with eventloop.ErrOffloadFull. A refusal may overtake results.
//
// Until then has returned the channel is busy, see [Channel.Begin].
//
// then is called exactly once, also after the channel has closed: v may be
// something that must be released, such as an open file. If the work could not be
// started, v is nil and err says why; if it panicked, err is a *PanicError. When
// the loop has ended meanwhile, then runs on the goroutine that finds it so.
func (c *Context) Offload(work func(ctx context.Context) (any, error), then func(v any, err error)) {
	b := c.p.base
	b.Begin()
	r := &offloadCall{c: c, work: work, then: then, ctx: b.Context()}
	if err := b.offloading().workStrand().Submit(r); err != nil {
		r.err = err
		r.back()
	}
}

// offloadCall is an Offload under way, as a task of its strand.
type offloadCall struct {
	c    *Context
	ctx  context.Context
	work func(ctx context.Context) (any, error)
	then func(v any, err error)
	v    any
	err  error
}

// Run does the work.
func (r *offloadCall) Run() {
	ended := false
	defer func() {
		if v := recover(); v != nil {
			r.v, r.err = nil, newPanicError(r.c.Name(), v)
		} else if !ended {
			r.v, r.err = nil, ErrGoexit
		}
		r.back()
	}()
	r.v, r.err = r.work(r.ctx)
	ended = true
}

// back brings the result to the handler.
func (r *offloadCall) back() {
	if h := r.c.typ.offloaded; h != nil {
		h.s.post(op{kind: opResult, c: r.c, msg: r})
	} else {
		r.c.p.base.loop.Deliver((*offloadResult)(r))
	}
}

// finish calls then, behind which the Offload is over.
func (r *offloadCall) finish() {
	defer r.c.p.base.End()
	r.then(r.v, r.err)
}

// offloadResult is an Offload that has ended, as a task of the loop.
type offloadResult offloadCall

func (t *offloadResult) Run() {
	r := (*offloadCall)(t)
	if !r.c.p.base.loop.InLoop() { // it has ended
		r.finish()
		return
	}
	r.c.p.run(r.c, r.finish)
}
