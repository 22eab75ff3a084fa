package pipeline

import (
	"context"
)

// Offload runs work on a worker of the loop's group, where it may block, and then
// calls then on the loop as this handler. work's context is cancelled when the
// channel closes.
//
// then is called exactly once, also after the channel has closed: v may be
// something that must be released, such as an open file. If the work could not be
// started, v is nil and err says why; if it panicked, err is a *PanicError. When
// the loop has ended meanwhile, then runs on the worker.
func (c *Context) Offload(work func(ctx context.Context) (any, error), then func(v any, err error)) {
	o := &offloaded{c: c, work: work, then: then, ctx: c.p.base.Context()}
	if err := c.p.base.loop.Offload().Submit(o.do); err != nil {
		o.err = err
		o.back()
	}
}

type offloaded struct {
	c    *Context
	ctx  context.Context
	work func(ctx context.Context) (any, error)
	then func(v any, err error)
	v    any
	err  error
}

// do runs on a worker.
func (o *offloaded) do() {
	ended := false
	defer func() {
		if v := recover(); v != nil {
			o.v, o.err = nil, newPanicError(o.c.Name(), v)
		} else if !ended {
			o.v, o.err = nil, ErrGoexit
		}
		o.back()
	}()
	o.v, o.err = o.work(o.ctx)
	ended = true
}

// back returns to the loop.
func (o *offloaded) back() {
	if o.c.p.base.loop.Submit(o) != nil {
		o.then(o.v, o.err)
	}
}

// Run calls then on the loop.
func (o *offloaded) Run() { o.c.p.run(o.c, func() { o.then(o.v, o.err) }) }
