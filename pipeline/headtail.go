package pipeline

import (
	"fmt"
	"net"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"go.uber.org/zap"
)

// ends is what stands at both ends of a pipeline. Its context follows the last handler
// and precedes the first: the events of both ways come to it, as the tail or as the head.
type ends struct{ b *Base }

// core returns what the head hands every outbound operation to. From here on no handler
// runs: what fails in the Core is the transport's.
func (h ends) core() Core {
	h.b.pl.cur = nil
	return h.b.core
}

func (h ends) HandleWrite(_ *Context, msg any, p *eventloop.Promise) error {
	h.core().DoWrite(msg, p)
	return nil
}

func (h ends) HandleFlush(*Context) error {
	h.core().DoFlush()
	return nil
}

func (h ends) HandleReadRequest(*Context) error {
	h.b.pl.cur = nil
	h.b.requestRead()
	return nil
}

func (h ends) HandleConnect(_ *Context, remote, local net.Addr, p *eventloop.Promise) error {
	h.core().DoConnect(remote, local, p)
	return nil
}

func (h ends) HandleClose(_ *Context, p *eventloop.Promise) error {
	if p != nil {
		h.b.closing().Then(func(error) { p.Complete(nil) })
	}
	h.core().DoClose(CloseFlushed, nil)
	return nil
}

func (h ends) HandleCloseWrite(_ *Context, p *eventloop.Promise) error {
	h.core().DoCloseWrite(p)
	return nil
}

// HandleRead is of the tail, as the two after it: it ends what nobody took.
func (t ends) HandleRead(_ *Context, msg any) error {
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

func (t ends) HandleEvent(_ *Context, ev any) error {
	if h, ok := t.b.core.(TailCore); ok {
		h.UnhandledEvent(ev)
		return nil
	}
	buffer.Release(ev)
	return nil
}

func (t ends) HandleError(_ *Context, err error) {
	if h, ok := t.b.core.(TailCore); ok {
		h.UnhandledError(err)
		return
	}
	t.b.pl.tailUnhandled(err)
	buffer.Release(err)
}
