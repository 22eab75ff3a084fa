package pipeline

import (
	"net"
	"sync/atomic"
	"time"

	"github.com/runnel-io/runnel/eventloop"
)

// HandlerStats is what a traced pipeline has counted for one handler.
type HandlerStats struct {
	Name   string       // as [Context.Name]; "head" is the transport
	Events []EventStats // those that have come, in the order of a channel's life
}

// EventStats is what a traced pipeline has counted for one event of one handler. The
// times are those spent in the handler itself, without what the handlers did that it
// called.
type EventStats struct {
	Event string        // the name of the method without Handle or Intercept
	Count int64         // calls
	Total time.Duration // of all calls
	Max   time.Duration // of the longest
}

// Trace has the pipeline count the events of each handler that is added from now on,
// and of its two ends, and the time they take. See [Pipeline.Stats]; String shows the
// figures too. It is called first in Init, for all channels or for one in a thousand;
// a pipeline that is not traced pays nothing, one that is some 100 ns for each event of
// each handler. The time of an [Offloaded] handler is that on its executor.
// Completions, timers and other functions are not events: what they do is counted for
// the handlers they call.
func (p *Pipeline) Trace() error {
	return p.change(func() error {
		x := p.base.extra()
		if x.tracer != nil {
			return nil
		}
		x.tracer = new(tracer)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ends.setHandler(&traced{h: p.ends.own(), tr: x.tracer})
		return nil
	})
}

// Stats returns what has been counted since [Pipeline.Trace], for each handler from
// head to tail, or nil if the pipeline is not traced.
func (p *Pipeline) Stats() []HandlerStats {
	if !p.base.loop.InLoop() {
		p.mu.Lock()
		defer p.mu.Unlock()
	}
	var all []HandlerStats
	p.each(func(c *Context, name string, own mask) {
		t := c.traced()
		if t == nil {
			return
		}
		s := HandlerStats{Name: name}
		for i := range eventNames {
			if e := t.stat(i); eventNames[i].bit&own != 0 && e.Count > 0 {
				s.Events = append(s.Events, e)
			}
		}
		all = append(all, s)
	})
	return all
}

// trace puts a handler that counts in the place of h if the pipeline is traced.
// Loop-only.
func (p *Pipeline) trace(h any) any {
	if x := p.base.more.Load(); x != nil && x.tracer != nil {
		return &traced{h: h, tr: x.tracer}
	}
	return h
}

// traced returns what counts the events of the handler of c, or nil.
func (c *Context) traced() *traced {
	h := c.own()
	if s := c.typ.offloaded; s != nil {
		h = s.h
	}
	t, _ := h.(*traced)
	return t
}

// tracer is what the handlers of a traced pipeline share. Loop-only. A handler on an
// executor has its own, for its strand.
type tracer struct {
	inner time.Duration // spent by the handlers that the call under way has called
}

// traced is a handler that counts what it passes to another. It takes every event in
// both forms; its context's mask is the other's.
type traced struct {
	h     any
	tr    *tracer
	stats [17]struct { // by the order of eventNames
		count, total, max atomic.Int64 // stored by one at a time: the loop or the strand
	}
}

// stat returns what was counted for eventNames[i]. Any goroutine.
func (t *traced) stat(i int) EventStats {
	s := &t.stats[i]
	return EventStats{eventNames[i].name, s.count.Load(), time.Duration(s.total.Load()), time.Duration(s.max.Load())}
}

// span is a call under way.
type span struct {
	from  time.Time
	outer time.Duration // tracer.inner of the call around it
}

func (t *traced) begin() span {
	s := span{outer: t.tr.inner}
	t.tr.inner = 0
	s.from = time.Now()
	return s
}

// end counts the call; it is deferred, so that a call which panics counts as well.
func (t *traced) end(i int, s span) {
	d := time.Since(s.from)
	own := int64(d - t.tr.inner)
	t.tr.inner = s.outer + d
	st := &t.stats[i]
	st.count.Add(1)
	st.total.Add(own)
	if own > st.max.Load() {
		st.max.Store(own)
	}
}

// What the events are in eventNames.
const (
	iRegistered = iota
	iActive
	iRead
	iReadComplete
	iWritability
	iEvent
	iError
	iInactive
	iUnregistered
	iConnect
	iWrite
	iFlush
	iReadRequest
	iCloseWrite
	iClose
	iAdded
	iRemoved
)

func (t *traced) HandleRegistered(c *Context) error {
	defer t.end(iRegistered, t.begin())
	return t.h.(RegisteredHandler).HandleRegistered(c)
}

func (t *traced) InterceptRegistered(c *Context) error {
	defer t.end(iRegistered, t.begin())
	return t.h.(RegisteredInterceptor).InterceptRegistered(c)
}

func (t *traced) HandleActive(c *Context) error {
	defer t.end(iActive, t.begin())
	return t.h.(ActiveHandler).HandleActive(c)
}

func (t *traced) InterceptActive(c *Context) error {
	defer t.end(iActive, t.begin())
	return t.h.(ActiveInterceptor).InterceptActive(c)
}

func (t *traced) HandleRead(c *Context, msg any) error {
	defer t.end(iRead, t.begin())
	return stepReaderOf(t.h).HandleRead(c, msg)
}

func (t *traced) HandleReadComplete(c *Context) error {
	defer t.end(iReadComplete, t.begin())
	return t.h.(ReadCompleteHandler).HandleReadComplete(c)
}

func (t *traced) InterceptReadComplete(c *Context) error {
	defer t.end(iReadComplete, t.begin())
	return t.h.(ReadCompleteInterceptor).InterceptReadComplete(c)
}

func (t *traced) HandleWritability(c *Context) error {
	defer t.end(iWritability, t.begin())
	return t.h.(WritabilityHandler).HandleWritability(c)
}

func (t *traced) InterceptWritability(c *Context) error {
	defer t.end(iWritability, t.begin())
	return t.h.(WritabilityInterceptor).InterceptWritability(c)
}

func (t *traced) HandleEvent(c *Context, ev any) error {
	defer t.end(iEvent, t.begin())
	return t.h.(EventHandler).HandleEvent(c, ev)
}

func (t *traced) HandleError(c *Context, err error) {
	defer t.end(iError, t.begin())
	t.h.(ErrorHandler).HandleError(c, err)
}

func (t *traced) HandleInactive(c *Context) error {
	defer t.end(iInactive, t.begin())
	return t.h.(InactiveHandler).HandleInactive(c)
}

func (t *traced) InterceptInactive(c *Context) error {
	defer t.end(iInactive, t.begin())
	return t.h.(InactiveInterceptor).InterceptInactive(c)
}

func (t *traced) HandleUnregistered(c *Context) error {
	defer t.end(iUnregistered, t.begin())
	return t.h.(UnregisteredHandler).HandleUnregistered(c)
}

func (t *traced) InterceptUnregistered(c *Context) error {
	defer t.end(iUnregistered, t.begin())
	return t.h.(UnregisteredInterceptor).InterceptUnregistered(c)
}

func (t *traced) HandleConnect(c *Context, remote, local net.Addr, p *eventloop.Promise) error {
	defer t.end(iConnect, t.begin())
	return t.h.(ConnectHandler).HandleConnect(c, remote, local, p)
}

func (t *traced) HandleWrite(c *Context, msg any, p *eventloop.Promise) error {
	defer t.end(iWrite, t.begin())
	return stepWriterOf(t.h).HandleWrite(c, msg, p)
}

func (t *traced) HandleFlush(c *Context) error {
	defer t.end(iFlush, t.begin())
	return t.h.(FlushHandler).HandleFlush(c)
}

func (t *traced) HandleReadRequest(c *Context) error {
	defer t.end(iReadRequest, t.begin())
	return t.h.(ReadRequestHandler).HandleReadRequest(c)
}

func (t *traced) HandleCloseWrite(c *Context, p *eventloop.Promise) error {
	defer t.end(iCloseWrite, t.begin())
	return t.h.(CloseWriteHandler).HandleCloseWrite(c, p)
}

func (t *traced) HandleClose(c *Context, p *eventloop.Promise) error {
	defer t.end(iClose, t.begin())
	return t.h.(CloseHandler).HandleClose(c, p)
}

func (t *traced) HandleAdded(c *Context) error {
	defer t.end(iAdded, t.begin())
	return t.h.(AddedHandler).HandleAdded(c)
}

func (t *traced) HandleRemoved(c *Context) {
	defer t.end(iRemoved, t.begin())
	t.h.(RemovedHandler).HandleRemoved(c)
}
