package codec

import (
	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// Encode makes a handler that turns outbound messages of type M into bytes; others
// pass. f appends the bytes of msg to out, and keeps neither. msg is released after
// f, also if f fails or panics, if it is counted, and out is dropped then; an error of f
// fails the write. What is to leave without being copied, such as a large Buf in
// msg, is a matter for a pipeline.WriteHandler. Netty: MessageToByteEncoder.
func Encode[M any](f func(c *pipeline.Context, msg M, out *buffer.Buf) error) pipeline.WriteHandler {
	return encode[M](f)
}

type encode[M any] func(c *pipeline.Context, msg M, out *buffer.Buf) error

func (f encode[M]) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	m, ok := msg.(M)
	if !ok {
		c.ForwardWrite(msg, p)
		return nil
	}
	defer buffer.Release(msg)
	out, err := c.Alloc().TryAlloc(encodeSize)
	if err != nil {
		return err
	}
	done := false
	defer func() { // f may panic: neither is with anybody else
		if !done {
			out.Release()
		}
	}()
	if err := f(c, m, out); err != nil {
		return err
	}
	done = true
	c.ForwardWrite(out, p)
	return nil
}

// encodeSize is the size of the Buf that an Encode starts with.
const encodeSize = 256
