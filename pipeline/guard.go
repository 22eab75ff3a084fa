package pipeline

import (
	"errors"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/runnel-io/runnel/eventloop"
	"go.uber.org/zap"
)

// A guard stands where the transport, a task or a timer enters the pipeline, and
// where a handler of one channel calls into another; there is one recover per such
// entry, not one per handler. The pipeline records which handler runs (p.cur), which
// notifications are under way and which promises are in a handler's hands
// (scope.frames), so that after a panic the guard knows whom to tell, what still has to
// go on and what has failed.

// frame is a notification that is being delivered, or the promise of an operation
// that is.
type frame struct {
	c       *Context // the handler that has it
	ev      mask     // the notification; 0 if it is held back
	promise *eventloop.Promise
}

// scope is what the pipelines of one loop share. Loop-only.
type scope struct {
	inner  *Pipeline // whose guard is the innermost one on the stack, nil if there is none
	frames []frame   // notifications under way, promises in a handler's hands; each guard's behind those of the guards outside it
}

// scopes finds the scope of a loop by its ID.
var scopes = struct {
	mu sync.Mutex
	of map[int]*scope
}{of: make(map[int]*scope)}

// scopeOf returns the scope of l. It lives as long as l does.
func scopeOf(l *eventloop.Loop) *scope {
	id := l.ID()
	scopes.mu.Lock()
	defer scopes.mu.Unlock()
	s := scopes.of[id]
	if s == nil {
		s = new(scope)
		scopes.of[id] = s
		l.Describe(s.running)
		runtime.AddCleanup(l, func(id int) {
			scopes.mu.Lock()
			delete(scopes.of, id)
			scopes.mu.Unlock()
		}, id)
	}
	return s
}

// guardState is what leave puts back.
type guardState struct {
	inner  *Pipeline
	cur    *Context
	frames int
	errors int32
}

// guarded reports whether a panic now would come to a guard of p before one of
// another pipeline. Loop-only.
func (p *Pipeline) guarded() bool { return p.scope.inner == p }

// enter begins a guarded stretch. Loop-only. It is used as
//
//	defer p.leave(p.enter())
//	...
//	p.normal = true
func (p *Pipeline) enter() guardState {
	s := p.scope
	g := guardState{inner: s.inner, cur: p.cur, frames: len(p.scope.frames), errors: p.inError}
	s.inner = p
	p.depth++
	return g
}

// leave ends it. It must be deferred directly, for recover to work.
func (p *Pipeline) leave(g guardState) {
	if !p.normal {
		p.failed(g, recover())
		return
	}
	p.normal = false
	p.depth--
	p.cur, p.inError, p.scope.inner = g.cur, g.errors, g.inner
	if len(p.scope.frames) != g.frames {
		p.cut(g.frames)
	}
}

// cut drops all frames but the first n.
func (p *Pipeline) cut(n int) {
	for i := len(p.scope.frames) - 1; i >= n; i-- { // nearly always one, for which clear is dear
		p.scope.frames[i] = frame{}
	}
	p.scope.frames = p.scope.frames[:n]
}

// failed deals with a panic, or with a Goexit when v is nil: HandleError first,
// then the notifications that were under way go on after the handlers that had
// them and the promises that a handler had are failed, then the channel is closed.
// What a further Goexit interrupts is done all the same.
func (p *Pipeline) failed(g guardState, v any) {
	cur, inError := p.cur, p.inError > g.errors
	name, next := headName, p.ends.next
	if cur == nil {
		cur = &p.ends
	} else {
		name, next = cur.Name(), cur
	}
	frames := append([]frame(nil), p.scope.frames[g.frames:]...)
	p.cut(g.frames)
	p.cur, p.inError, p.scope.inner, p.errFrom = g.cur, g.errors, g.inner, nil
	defer func() {
		p.depth--
		if p.depth == 0 {
			p.exiting = false
		}
	}()

	var err error
	switch {
	case v != nil:
		err = newPanicError(name, v)
	case p.exiting:
		// An outer guard on the same goroutine's way out: the inner one has told.
		p.resume(frames, ErrGoexit)
		return
	default:
		p.exiting = true
		err = ErrGoexit
	}
	defer p.base.core.DoClose(CloseNow, err)
	defer p.resume(frames, err)
	if inError {
		p.base.logger.Error("panic in HandleError", append(p.errorFields(name, err),
			zap.Stringer("channel", p.base))...)
		return
	}
	p.guardedErrorFrom(next, cur, err)
}

// resume lets interrupted notifications go on and fails promises, the innermost
// first.
func (p *Pipeline) resume(frames []frame, err error) {
	if len(frames) == 0 {
		return
	}
	last := len(frames) - 1
	defer p.resume(frames[:last], err)
	f := frames[last]
	if f.promise != nil {
		f.promise.Complete(err)
	}
	if f.ev != 0 {
		p.guardedNotify(f.c.next, f.ev)
	}
}

// guardedErrorFrom fires err, which came from the handler of from, from c on, c's own
// HandleError first.
func (p *Pipeline) guardedErrorFrom(c, from *Context, err error) {
	defer p.leave(p.enter())
	p.errorAt(c, from, err)
	p.normal = true
}

// guardedNotify delivers notification ev from c on.
func (p *Pipeline) guardedNotify(c *Context, ev mask) {
	defer p.leave(p.enter())
	p.notify(c, ev)
	p.normal = true
}

// notifyFromHead delivers notification ev to the whole pipeline. Loop-only.
func (p *Pipeline) notifyFromHead(ev mask) {
	if ev == maskActive || p.wanted&(ev|ev.hold()) != 0 {
		p.guardedNotify(p.ends.next, ev)
	}
}

// run calls f as if the handler of c had been called. Loop-only.
func (p *Pipeline) run(c *Context, f func()) {
	defer p.leave(p.enter())
	p.cur = c
	f()
	p.normal = true
}

// runInit calls a channel's Init. Its error, or a panic's, closes the channel.
func (p *Pipeline) runInit(init func(Channel) error) (err error) {
	if init == nil {
		return nil
	}
	err = ErrGoexit // unless init returns
	g := p.enter()
	defer func() {
		if v := recover(); v != nil {
			err = newPanicError("Init", v)
		}
		frames := append([]frame(nil), p.scope.frames[g.frames:]...)
		p.normal = true
		p.leave(g)
		if p.depth == 0 {
			p.exiting = false // of a HandleAdded
		}
		if err != nil {
			defer p.base.core.DoClose(CloseNow, err)
			p.resume(frames, err)
		}
	}()
	err = init(p.base.self)
	return err
}

func newPanicError(handler string, v any) *PanicError {
	return &PanicError{Value: v, Handler: handler, Stack: debug.Stack()}
}

// errorFields is what the log says about an error of a handler.
func (p *Pipeline) errorFields(handler string, err error) []zap.Field {
	fields := []zap.Field{zap.String("handler", handler), zap.Error(err)}
	var pe *PanicError
	if errors.As(err, &pe) {
		fields = append(fields, zap.ByteString("stack", pe.Stack))
	}
	return fields
}
