package eventloop

import (
	"context"
	"sync"
)

// Promise is a result that comes later: it is completed once, with nil or an error,
// and tells those who asked. It exists for implementers of transports; who is only
// to be told gets its [Future].
//
// A nil *Promise means that nobody asked: Complete on it does nothing, so that a
// completion which nobody asked for costs nothing.
//
// Concurrency: all methods are safe from any goroutine.
type Promise struct {
	loop     *Loop
	progress func(done, total int64) // set before anybody else has the promise

	mu        sync.Mutex
	completed bool
	notifying bool // callbacks are being called, or a task that calls them is posted
	err       error
	first     func(error) // callbacks not called yet: nearly always one
	more      []func(error)
	done      chan struct{} // made when asked for
}

// maxNotifyDepth is how deep callbacks that complete the next promise may nest
// before the next one is posted instead of called.
const maxNotifyDepth = 8

// NewPromise returns a promise whose callbacks run on l.
func NewPromise(l *Loop) *Promise { return &Promise{loop: l} }

// Complete sets the result, nil for success, and reports whether it did: the first
// Complete decides. On the loop, callbacks are called before it returns, except in
// deep recursion; elsewhere they are posted to the loop, or, when the loop has
// ended, called here, if not by another goroutine that is at such calls: they are made
// one at a time, see [Loop.Deliver].
func (p *Promise) Complete(err error) bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	if p.completed {
		p.mu.Unlock()
		return false
	}
	p.completed, p.err = true, err
	if p.done != nil {
		close(p.done)
	}
	notify := p.first != nil
	p.notifying = notify
	p.mu.Unlock()
	if notify {
		p.notify()
	}
	return true
}

// Then has f called with the result: once, on the loop, after those that asked
// before. If the promise is completed already and this is its loop, that is before
// Then returns. When the loop has ended, f is called on the goroutine that finds it
// so.
func (p *Promise) Then(f func(err error)) {
	p.mu.Lock()
	if p.first == nil {
		p.first = f
	} else {
		p.more = append(p.more, f)
	}
	notify := p.completed && !p.notifying
	if notify {
		p.notifying = true
	}
	p.mu.Unlock()
	if notify {
		p.notify()
	}
}

// Wait waits for the result and returns it, or for the end of ctx and returns its
// error. On the goroutine of any loop or offloaded function it refuses with
// [ErrWouldDeadlock], also when the result is there: whether it works must not
// depend on luck.
func (p *Promise) Wait(ctx context.Context) error {
	if WouldDeadlock() {
		return ErrWouldDeadlock
	}
	done := p.Done()
	select {
	case <-done:
		return p.Err()
	default:
	}
	select {
	case <-done:
		return p.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// OnProgress has f called with how much of a long operation is done, as often as its
// implementer says so, on the loop and before the callbacks of Then. It is called before
// the promise is handed to anybody. A second one takes the place of the first, nil of none.
func (p *Promise) OnProgress(f func(done, total int64)) { p.progress = f }

// Progress says that done of total, in the operation's unit, have been done. It is
// called on the promise's loop only, and before Complete. Netty:
// ProgressivePromise.setProgress.
func (p *Promise) Progress(done, total int64) {
	if p != nil && p.progress != nil {
		p.progress(done, total)
	}
}

// Done returns a channel that is closed once the promise is completed.
func (p *Promise) Done() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done == nil {
		p.done = make(chan struct{})
		if p.completed {
			close(p.done)
		}
	}
	return p.done
}

// Err returns the error of a promise that has failed, nil if it has not, or not
// yet.
func (p *Promise) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Future returns the view of the promise that cannot complete it.
func (p *Promise) Future() Future { return Future{p} }

// Future is the receiving side of a [Promise].
//
// Concurrency: all methods are safe from any goroutine.
type Future struct{ p *Promise }

// Then is [Promise.Then].
func (f Future) Then(g func(err error)) { f.p.Then(g) }

// Wait is [Promise.Wait].
func (f Future) Wait(ctx context.Context) error { return f.p.Wait(ctx) }

// Done is [Promise.Done].
func (f Future) Done() <-chan struct{} { return f.p.Done() }

// Err is [Promise.Err].
func (f Future) Err() error { return f.p.Err() }

// promiseNotice is a Promise as a task that calls the callbacks.
type promiseNotice Promise

func (n *promiseNotice) Run() { (*Promise)(n).deliver() }

// notify has the callbacks called, in place or by a task. p.notifying is set.
func (p *Promise) notify() {
	l := p.loop
	if l.InLoop() && l.notifyDepth < maxNotifyDepth {
		p.deliver()
	} else {
		l.Deliver((*promiseNotice)(p))
	}
}

// deliver calls the callbacks, those that come while it does so too. It runs on the
// loop, or, when the loop has ended, where Deliver has it run.
func (p *Promise) deliver() {
	l := p.loop
	onLoop := l.InLoop()
	if onLoop {
		l.notifyDepth++
	}
	finished := false
	defer func() {
		if onLoop {
			l.notifyDepth--
		}
		// A callback has left by runtime.Goexit, or by a panic that is not contained
		// here: the others are still owed their call.
		if !finished {
			l.Deliver((*promiseNotice)(p))
		}
	}()
	for {
		p.mu.Lock()
		f := p.first
		if f == nil {
			p.notifying = false
			p.mu.Unlock()
			break
		}
		p.first = nil
		if len(p.more) > 0 {
			p.first = p.more[0]
			p.more = p.more[1:]
		}
		p.mu.Unlock()
		l.callback(f, p.err)
	}
	finished = true
}
