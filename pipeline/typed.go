package pipeline

import (
	"reflect"

	"github.com/runnel-io/runnel/eventloop"
)

// On makes a handler of the messages of type M; others go on. The message is f's
// on every way out, errors included: f releases it or passes it on. Netty:
// SimpleChannelInboundHandler, which releases for its handler.
func On[M any](f func(c *Context, msg M) error) ReadHandler { return onRead[M](f) }

type onRead[M any] func(c *Context, msg M) error

func (f onRead[M]) HandleRead(c *Context, msg any) error {
	if m, ok := msg.(M); ok {
		return f(c, m)
	}
	c.FireRead(msg)
	return nil
}

func (f onRead[M]) handlerType() string { return "On[" + reflect.TypeFor[M]().String() + "]" }

// OnWrite makes a handler of the outbound messages of type M; others go on. The
// message is f's on every way out; f goes on with c.ForwardWrite(msg, p).
func OnWrite[M any](f func(c *Context, msg M, p *eventloop.Promise) error) WriteHandler {
	return onWrite[M](f)
}

type onWrite[M any] func(c *Context, msg M, p *eventloop.Promise) error

func (f onWrite[M]) HandleWrite(c *Context, msg any, p *eventloop.Promise) error {
	if m, ok := msg.(M); ok {
		return f(c, m, p)
	}
	c.ForwardWrite(msg, p)
	return nil
}

func (f onWrite[M]) handlerType() string { return "OnWrite[" + reflect.TypeFor[M]().String() + "]" }

// Convert makes a handler that turns inbound messages of type W, as they come from the
// wire, into messages of type M, and outbound ones back; others go on. Each message is
// the function's on every way out, as with [On], and what it returns is passed on
// unless there is an error or it is a nil interface. A function that makes several of one
// is for On and [OnWrite]. Netty: MessageToMessageCodec.
func Convert[W, M any](
	decode func(c *Context, in W) (M, error), encode func(c *Context, out M) (W, error),
) interface {
	ReadMapper
	WriteMapper
} {
	return convert[W, M]{decode, encode}
}

type convert[W, M any] struct {
	decode func(c *Context, in W) (M, error)
	encode func(c *Context, out M) (W, error)
}

func (h convert[W, M]) MapRead(c *Context, msg any) (any, error) {
	in, ok := msg.(W)
	if !ok {
		return msg, nil
	}
	return h.decode(c, in)
}

func (h convert[W, M]) MapWrite(c *Context, msg any) (any, error) {
	out, ok := msg.(M)
	if !ok {
		return msg, nil
	}
	return h.encode(c, out)
}

func (h convert[W, M]) handlerType() string {
	return "Convert[" + reflect.TypeFor[W]().String() + "," + reflect.TypeFor[M]().String() + "]"
}

// OnError makes a handler of errors. f passes an error on with c.FireError.
func OnError(f func(c *Context, err error)) ErrorHandler { return onError(f) }

type onError func(c *Context, err error)

func (f onError) HandleError(c *Context, err error) { f(c, err) }

func (f onError) handlerType() string { return "OnError" }

// OnEvent makes a handler of the user events of type E; others go on.
func OnEvent[E any](f func(c *Context, ev E) error) EventHandler { return onEvent[E](f) }

type onEvent[E any] func(c *Context, ev E) error

func (f onEvent[E]) HandleEvent(c *Context, ev any) error {
	if e, ok := ev.(E); ok {
		return f(c, e)
	}
	c.FireEvent(ev)
	return nil
}

func (f onEvent[E]) handlerType() string { return "OnEvent[" + reflect.TypeFor[E]().String() + "]" }

// OnActive makes a handler of the notification that the channel is active.
func OnActive(f func(c *Context) error) ActiveHandler { return onActive(f) }

type onActive func(c *Context) error

func (f onActive) HandleActive(c *Context) error { return f(c) }

func (f onActive) handlerType() string { return "OnActive" }

// OnInactive makes a handler of the notification that the channel has closed.
func OnInactive(f func(c *Context) error) InactiveHandler { return onInactive(f) }

type onInactive func(c *Context) error

func (f onInactive) HandleInactive(c *Context) error { return f(c) }

func (f onInactive) handlerType() string { return "OnInactive" }

// OnWritability makes a handler of the notification that Channel.Writable has
// changed.
func OnWritability(f func(c *Context) error) WritabilityHandler { return onWritability(f) }

type onWritability func(c *Context) error

func (f onWritability) HandleWritability(c *Context) error { return f(c) }

func (f onWritability) handlerType() string { return "OnWritability" }
