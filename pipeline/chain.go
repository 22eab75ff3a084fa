package pipeline

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/invariant"
)

// Add appends handlers at the tail, named by their types. A [Maker] is asked for a
// handler of this pipeline. Nothing is added if one of them is not a handler. If a
// HandleAdded fails, that handler is removed again, the error goes to HandleError, from
// the head on, and is returned, and the handlers after it are not added.
func (p *Pipeline) Add(handlers ...any) error {
	return p.addAll(handlers, false)
}

// AddFirst is Add at the head: the first of handlers becomes the first of all.
func (p *Pipeline) AddFirst(handlers ...any) error { return p.addAll(handlers, true) }

// addAll adds handlers, on the loop in place: every connection comes here, and
// nothing is left over for the collector.
func (p *Pipeline) addAll(handlers []any, first bool) error {
	if p.base.loop.InLoop() {
		return p.addNow(handlers, first)
	}
	own := slices.Clone(handlers) // and the caller's stay on the caller's stack
	return p.change(func() error { return p.addNow(own, first) })
}

// addNow adds handlers at the head or at the tail. Loop-only.
func (p *Pipeline) addNow(handlers []any, first bool) error {
	cs := make([]Context, len(handlers))
	for i, h := range handlers {
		if err := p.prepare(&cs[i], "", h); err != nil {
			return err
		}
	}
	at := &p.ends
	for i := range cs {
		c := &cs[i]
		if !first {
			at = p.ends.prev
		}
		for at.mask == 0 { // removed by its own HandleAdded
			at = at.prev
		}
		p.nameByType(c)
		if err := p.insert(c, at); err != nil {
			return err
		}
		at = c
	}
	return nil
}

// AddNamed appends one handler at the tail. An empty name means by type.
func (p *Pipeline) AddNamed(name string, handler any) (*Context, error) {
	return p.place(name, handler, func() (*Context, error) { return p.ends.prev, nil })
}

// AddBefore adds a handler before ref, which is a name or a *Context.
func (p *Pipeline) AddBefore(ref any, name string, handler any) (*Context, error) {
	return p.place(name, handler, func() (*Context, error) {
		c, err := p.lookup(ref)
		if err != nil {
			return nil, err
		}
		return c.prev, nil
	})
}

// AddAfter adds a handler after ref, which is a name or a *Context.
func (p *Pipeline) AddAfter(ref any, name string, handler any) (*Context, error) {
	return p.place(name, handler, func() (*Context, error) { return p.lookup(ref) })
}

// Replace puts a handler in the place of ref, which is a name or a *Context. The
// new handler's HandleAdded runs before the old one's HandleRemoved, because
// removal may pass on what was buffered.
func (p *Pipeline) Replace(ref any, name string, handler any) (*Context, error) {
	var added *Context
	err := p.change(func() error {
		c, err := p.newContext(name, handler)
		if err != nil {
			return err
		}
		old, err := p.lookup(ref)
		if err != nil {
			return err
		}
		if name == "" {
			p.nameByType(c)
		} else if other := p.byName(name); other != nil && other != old {
			return fmt.Errorf("%w: %q", ErrDuplicateName, name)
		}
		if err := p.insert(c, old); err != nil {
			return err
		}
		added = c
		// What the new handler's HandleAdded did may have removed the old one.
		p.unlink(old)
		return nil
	})
	return added, err
}

// Remove removes ref, which is a name or a *Context. Events that the handler is
// in the middle of still go on to its former neighbours.
func (p *Pipeline) Remove(ref any) error {
	return p.change(func() error {
		c, err := p.lookup(ref)
		if err != nil {
			return err
		}
		p.unlink(c)
		return nil
	})
}

// Get returns the context of a handler by its name, or nil.
func (p *Pipeline) Get(name string) *Context {
	if !p.base.loop.InLoop() {
		p.mu.Lock()
		defer p.mu.Unlock()
	}
	return p.byName(name)
}

// Find returns the context of the first handler that was added as a T, or nil. For a
// handler made by a [Maker] T is the Maker's type or the handler's.
func Find[T any](p *Pipeline) *Context {
	if !p.base.loop.InLoop() {
		p.mu.Lock()
		defer p.mu.Unlock()
	}
	for c := p.ends.next; c != &p.ends; c = c.next {
		if c.Removed() {
			continue
		}
		if _, ok := c.Handler().(T); ok || c.typ.is(reflect.TypeFor[T]()) {
			return c
		}
	}
	return nil
}

// Names returns the handlers' names from head to tail.
func (p *Pipeline) Names() []string {
	if !p.base.loop.InLoop() {
		p.mu.Lock()
		defer p.mu.Unlock()
	}
	var names []string
	for c := p.ends.next; c != &p.ends; c = c.next {
		if !c.Removed() {
			names = append(names, c.Name())
		}
	}
	return names
}

// enterer is a Core whose loop is driven by its callers: Enter makes the calling
// goroutine the loop for the time of f.
type enterer interface{ Enter(f func()) }

// change makes a structural change on the loop.
func (p *Pipeline) change(f func() error) error {
	if p.base.loop.InLoop() {
		return f()
	}
	if e, ok := p.base.core.(enterer); ok {
		var err error
		e.Enter(func() { err = f() })
		return err
	}
	// A loop waits for no strand.
	if eventloop.WouldDeadlock() && !p.base.onStrand() || p.base.loop.Group() == nil {
		return eventloop.ErrWouldDeadlock
	}
	done := make(chan error, 1)
	if err := p.base.loop.Execute(func() {
		err := ErrGoexit // unless f returns
		defer func() {
			if v := recover(); v != nil {
				err = newPanicError("", v)
			}
			done <- err
		}()
		err = f()
	}); err != nil {
		return p.base.closeError()
	}
	return <-done
}

// place adds one handler behind the context that after returns.
func (p *Pipeline) place(name string, handler any, after func() (*Context, error)) (*Context, error) {
	var added *Context
	err := p.change(func() error {
		c, err := p.newContext(name, handler)
		if err != nil {
			return err
		}
		if name == "" {
			p.nameByType(c)
		} else if p.byName(name) != nil {
			return fmt.Errorf("%w: %q", ErrDuplicateName, name)
		}
		at, err := after()
		if err != nil {
			return err
		}
		added = c
		return p.insert(c, at)
	})
	if err != nil {
		return nil, err
	}
	return added, nil
}

// newContext makes a context for handler.
func (p *Pipeline) newContext(name string, handler any) (*Context, error) {
	c := new(Context)
	return c, p.prepare(c, name, handler)
}

// prepare makes c the context of handler, which it makes if it is a Maker.
func (p *Pipeline) prepare(c *Context, name string, handler any) error {
	if p.removed {
		return p.base.closeError()
	}
	handler, off, offloaded := unwrap(handler)
	given := handler
	if m, ok := handler.(Maker); ok {
		handler = m.NewHandler()
		if !offloaded {
			handler, off, offloaded = unwrap(handler)
		}
	}
	t := typeOf(handler)
	if t.mask == 0 {
		return fmt.Errorf("%w: %T implements none of the handler interfaces", ErrNotHandler, handler)
	}
	if t.mask.twice() {
		return fmt.Errorf("%w: %T takes an event in both of its forms", ErrNotHandler, handler)
	}
	c.p, c.typ, c.mask = p, typeOf(given).called(name), t.mask
	c.setHandler(p.trace(handler))
	if offloaded {
		return p.offload(c, off)
	}
	return nil
}

// nameByType gives c the next free number among the handlers of its type.
func (p *Pipeline) nameByType(c *Context) {
	n := int32(0)
	named := false
	for o := p.ends.next; o != &p.ends; o = o.next {
		if o.typ.given != "" {
			named = true
		} else if o.typ.name == c.typ.name && o.number() >= n {
			n = o.number() + 1
		}
	}
	c.ordinal.Store(n)
	for named && p.byName(c.Name()) != nil { // somebody was given such a name
		c.ordinal.Add(1)
	}
}

// insert links c behind at and calls its HandleAdded. A panic there closes the
// channel besides.
func (p *Pipeline) insert(c, at *Context) error {
	if p.removed {
		return p.base.closeError()
	}
	if invariant.Enabled {
		handlersInUse.claim(c)
	}
	p.link(c, at)
	p.wanted |= c.mask
	if c.next.mask&maskActivated != 0 {
		c.activated()
	}
	if c.mask&maskAdded == 0 {
		return nil
	}
	return p.callAdded(c)
}

// callAdded calls HandleAdded. If it fails, in whatever way, c is removed.
func (p *Pipeline) callAdded(c *Context) (err error) {
	err = ErrGoexit // unless HandleAdded returns
	g := p.enter()
	defer func() {
		v := recover()
		if v != nil {
			err = newPanicError(c.Name(), v)
		}
		frames := append([]frame(nil), p.scope.frames[g.frames:]...)
		broken := !p.normal
		p.normal = true
		p.leave(g)
		if err == nil {
			return
		}
		err = fmt.Errorf("pipeline: adding handler %q: %w", c.Name(), err)
		if broken {
			p.exiting = v == nil && p.depth > 0
			defer p.base.core.DoClose(CloseNow, err)
		}
		defer p.reportAdded(c, err)
		defer p.unlink(c)
		p.resume(frames, err)
	}()
	p.cur = c
	err = c.own().(AddedHandler).HandleAdded(c)
	p.normal = true
	return err
}

// reportAdded reports that c could not be added, to all: it has no place any more.
func (p *Pipeline) reportAdded(c *Context, err error) { p.guardedErrorFrom(p.ends.next, c, err) }

// link puts c behind at.
func (p *Pipeline) link(c, at *Context) {
	p.mu.Lock()
	c.prev, c.next = at, at.next
	at.next.prev = c
	at.next = c
	p.mu.Unlock()
	if c.nextRead = c.next; c.next.mask&maskRead == 0 {
		c.nextRead = c.next.nextRead
	}
	if c.prevWrite = c.prev; c.prev.mask&maskWrite == 0 {
		c.prevWrite = c.prev.prevWrite
	}
	p.relink(c, c.mask, c, c)
}

// relink has those who send their reads or writes past c, or would if c took them,
// send them to reader and writer. m says which of the two c takes.
func (p *Pipeline) relink(c *Context, m mask, reader, writer *Context) {
	for o := c.prev; m&maskRead != 0; o = o.prev {
		o.nextRead = reader
		if o == &p.ends || o.mask&maskRead != 0 {
			break
		}
	}
	for o := c.next; m&maskWrite != 0; o = o.next {
		o.prevWrite = writer
		if o == &p.ends || o.mask&maskWrite != 0 {
			break
		}
	}
}

// unlink takes c out of the chain and calls its HandleRemoved, once. c keeps its
// neighbours, so that what its handler passes on while or after being removed
// still arrives.
func (p *Pipeline) unlink(c *Context) {
	if c.Removed() {
		return
	}
	if h := c.typ.offloaded; h != nil {
		h.leave()
		return
	}
	m := c.mask
	p.takeOut(c)
	if m&maskRemoved != 0 {
		p.run(c, func() { c.own().(RemovedHandler).HandleRemoved(c) })
	}
}

// takeOut takes c out of the chain.
func (p *Pipeline) takeOut(c *Context) {
	m := c.mask
	p.mu.Lock()
	c.prev.next, c.next.prev = c.next, c.prev
	p.mu.Unlock()
	p.relink(c, m, c.nextRead, c.prevWrite)
	c.nextRead, c.prevWrite = c.next, c.prev
	c.setRemoved()
	c.mask = 0
	if invariant.Enabled {
		handlersInUse.release(c)
	}
}

// removeAll removes every handler from the tail to the head: the channel is over. It is
// called again when a handler is gone that runs on a strand. The Core is told at last.
func (p *Pipeline) removeAll() {
	p.removed = true
	for p.ends.prev != &p.ends {
		// A Goexit ends this loop; the rest is removed all the same.
		func() {
			returned := false
			defer func() {
				if !returned {
					p.removeAll()
				}
			}()
			p.unlink(p.ends.prev)
			returned = true
		}()
		if c := p.ends.prev; c.Removed() {
			p.base.offloading().removing = true
			return
		}
	}
	defer p.base.releaseLoop()
	p.base.core.DoEnd()
}

// lookup finds a handler by name or *Context.
func (p *Pipeline) lookup(ref any) (*Context, error) {
	switch r := ref.(type) {
	case string:
		if c := p.byName(r); c != nil {
			return c, nil
		}
		return nil, fmt.Errorf("%w: %q", ErrNoHandler, r)
	case *Context:
		if r != nil && r.p == p && !r.Removed() && r != &p.ends {
			return r, nil
		}
		return nil, ErrNoHandler
	}
	return nil, fmt.Errorf("%w: a handler is named by a string or a *Context, not by a %T", ErrNoHandler, ref)
}

func (p *Pipeline) byName(name string) *Context {
	for c := p.ends.next; c != &p.ends; c = c.next {
		if c.Name() == name && !c.Removed() {
			return c
		}
	}
	return nil
}
