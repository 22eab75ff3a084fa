package pipeline

import (
	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
)

// touch has c's handler called through something that tells a buffer where it is, for
// the report of its loss. Where buffers do not want to know, nothing stands in between,
// and the hops have nothing to ask.
func (c *Context) touch() {
	switch r := c.reader.(type) {
	case nil, keptReader:
	case *mapReader:
		c.reader = touchReader{stepReader(*r)}
	default:
		c.reader = touchReader{r}
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

// own returns the handler.
func (t touchReader) own() any {
	if s, ok := t.ReadHandler.(stepReader); ok {
		return s.m
	}
	return t.ReadHandler
}

type touchWriter struct{ WriteHandler }

func (t touchWriter) HandleWrite(c *Context, msg any, p *eventloop.Promise) error {
	name := c.Name()
	if c == &c.p.ends {
		name = headName
	}
	buffer.Touch(msg, name)
	return t.WriteHandler.HandleWrite(c, msg, p)
}

// own returns the handler.
func (t touchWriter) own() any {
	if m, ok := t.WriteHandler.(*mapWriter); ok {
		return m.m
	}
	return t.WriteHandler
}
