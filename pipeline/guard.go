package pipeline

import (
	"runtime/debug"

	"go.uber.org/zap"
)

// A guard stands where the transport, a task or a timer enters the pipeline; there
// is one recover per such entry, not one per handler. The pipeline records which
// handler runs (p.cur) and which notifications are under way (p.frames), so that
// after a panic the guard knows whom to tell and what still has to go on.

// frame is a notification that is being delivered.
type frame struct {
	c  *Context // the handler that has it
	ev mask
}

// guardState is what leave puts back.
type guardState struct {
	cur     *Context
	frames  int
	errors  int
	closing bool
}

// enter begins a guarded stretch. Loop-only. It is used as
//
//	g := p.enter()
//	defer p.leave(g)
//	...
//	p.normal = true
func (p *Pipeline) enter() guardState {
	p.depth++
	return guardState{cur: p.cur, frames: len(p.frames), errors: p.inError}
}

// leave ends it. It must be deferred directly, for recover to work.
func (p *Pipeline) leave(g guardState) {
	if p.normal {
		p.normal = false
		p.depth--
		p.cur = g.cur
		return
	}
	v := recover()
	p.failed(g, v)
}

// failed deals with a panic, or with a Goexit when v is nil: HandleError first,
// then the notifications that were under way go on after the handlers that had
// them, then the channel is closed.
func (p *Pipeline) failed(g guardState, v any) {
	cur, inError := p.cur, p.inError > g.errors
	frames := append([]frame(nil), p.frames[g.frames:]...)
	p.frames = p.frames[:g.frames]
	p.cur, p.inError = g.cur, g.errors

	var err error
	switch {
	case v != nil:
		err = &PanicError{Value: v, Handler: cur.Name(), Stack: debug.Stack()}
	case p.exiting:
		// An outer guard on the same goroutine's way out: the inner one has told.
		p.depth--
		p.resume(frames)
		return
	default:
		p.exiting = true
		err = ErrGoexit
	}
	if inError {
		p.base.logger.Error("panic in HandleError", zap.Stringer("channel", p.base), zap.Error(err))
	} else {
		p.guardedError(cur, err)
	}
	p.resume(frames)
	p.base.core.DoClose(CloseNow, err)
	p.depth--
	if p.depth == 0 {
		p.exiting = false
	}
}

// resume lets interrupted notifications go on, the innermost first.
func (p *Pipeline) resume(frames []frame) {
	for i := len(frames) - 1; i >= 0; i-- {
		if f := frames[i]; f.ev != 0 {
			p.notifyGuarded(f.c.next, f.ev)
		}
	}
}

// guardedError fires err from c on, c's own HandleError first.
func (p *Pipeline) guardedError(c *Context, err error) {
	defer p.leave(p.enter())
	p.errorAt(c, err)
	p.normal = true
}

// notifyGuarded delivers notification ev from c on.
func (p *Pipeline) notifyGuarded(c *Context, ev mask) {
	defer p.leave(p.enter())
	p.notify(c, ev)
	p.normal = true
}

// notifyFromHead delivers notification ev to the whole pipeline. Loop-only.
func (p *Pipeline) notifyFromHead(ev mask) {
	if p.wanted&(ev|ev.hold()) != 0 {
		p.notifyGuarded(p.head.next, ev)
	}
}

// run calls f as if the handler of c had been called. Loop-only.
func (p *Pipeline) run(c *Context, f func()) {
	defer p.leave(p.enter())
	p.cur = c
	f()
	p.normal = true
}

// runInit calls a channel's Init.
func (p *Pipeline) runInit(init func(Channel) error) (err error) {
	if init == nil {
		return nil
	}
	returned := false
	p.depth++
	defer func() {
		p.depth--
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Handler: "Init", Stack: debug.Stack()}
		} else if !returned { // a Goexit: nobody will see the result
			p.base.core.DoClose(CloseNow, ErrGoexit)
		}
	}()
	err = init(p.base.self)
	returned = true
	return err
}
