package codec

import (
	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// StringDecoder is a handler that turns each inbound *buffer.Buf into a string. It
// belongs behind a framing.
type StringDecoder struct{}

// HandleRead implements [pipeline.ReadHandler].
func (StringDecoder) HandleRead(c *pipeline.Context, msg any) error {
	if b, ok := msg.(*buffer.Buf); ok {
		s := b.ReadString(b.Len())
		b.Release()
		msg = s
	}
	c.FireRead(msg)
	return nil
}

// StringEncoder is a handler that turns each outbound string into a *buffer.Buf.
type StringEncoder struct{}

// HandleWrite implements [pipeline.WriteHandler].
func (StringEncoder) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	if s, ok := msg.(string); ok {
		b, err := c.Alloc().TryAlloc(len(s))
		if err != nil {
			return err
		}
		b.WriteString(s)
		msg = b
	}
	c.ForwardWrite(msg, p)
	return nil
}
