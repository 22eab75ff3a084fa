package pipeline

import (
	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
)

// touch has c's handler called through something that tells a buffer where it is, for
// the report of its loss. Where buffers do not want to know, nothing stands in between,
// and the hops have nothing to ask.
func (c *Context) touch() {
	if c.reader != nil {
		if c.mapper != nil {
			c.reader, c.mapper = stepReader{c.mapper}, nil
		}
		c.reader = touchReader{c.reader}
	}
	if c.writer != nil {
		c.writer = touchWriter{c.writer}
	}
}

type touchReader struct{ ReadHandler }

func (t touchReader) HandleRead(c *Context, msg any) error {
	buffer.Touch(msg, c.Name())
	return t.ReadHandler.HandleRead(c, msg)
}

type touchWriter struct{ WriteHandler }

func (t touchWriter) HandleWrite(c *Context, msg any, p *eventloop.Promise) error {
	buffer.Touch(msg, c.Name())
	return t.WriteHandler.HandleWrite(c, msg, p)
}
