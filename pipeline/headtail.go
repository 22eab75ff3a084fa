package pipeline

import (
	"fmt"
	"net"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"go.uber.org/zap"
)

// headHandler ends every outbound operation: it hands them to the Core.
type headHandler struct{ b *Base }

func (h headHandler) HandleWrite(_ *Context, msg any, p *eventloop.Promise) error {
	h.b.core.DoWrite(msg, p)
	return nil
}

func (h headHandler) HandleFlush(*Context) error {
	h.b.core.DoFlush()
	return nil
}

func (h headHandler) HandleReadRequest(*Context) error {
	h.b.requestRead()
	return nil
}

func (h headHandler) HandleConnect(_ *Context, remote, local net.Addr, p *eventloop.Promise) error {
	h.b.core.DoConnect(remote, local, p)
	return nil
}

func (h headHandler) HandleClose(_ *Context, p *eventloop.Promise) error {
	if p != nil {
		h.b.closing().Then(func(error) { p.Complete(nil) })
	}
	h.b.core.DoClose(CloseFlushed, nil)
	return nil
}

func (h headHandler) HandleCloseWrite(_ *Context, p *eventloop.Promise) error {
	h.b.core.DoCloseWrite(p)
	return nil
}

// tailHandler ends every inbound event that nobody took.
type tailHandler struct{ b *Base }

func (t tailHandler) HandleRead(_ *Context, msg any) error {
	if h, ok := t.b.core.(TailCore); ok {
		h.UnhandledRead(msg)
		return nil
	}
	if ce := t.b.logger.Check(zap.DebugLevel, "unhandled message"); ce != nil {
		ce.Write(zap.Stringer("channel", t.b), zap.String("type", fmt.Sprintf("%T", msg)))
	}
	buffer.Release(msg)
	return nil
}

func (t tailHandler) HandleEvent(_ *Context, ev any) error {
	if h, ok := t.b.core.(TailCore); ok {
		h.UnhandledEvent(ev)
		return nil
	}
	buffer.Release(ev)
	return nil
}

func (t tailHandler) HandleError(_ *Context, err error) {
	if h, ok := t.b.core.(TailCore); ok {
		h.UnhandledError(err)
		return
	}
	t.b.pl.tailUnhandled(err)
	buffer.Release(err)
}
