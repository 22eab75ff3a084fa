package pipeline

import "github.com/runnel-io/runnel/eventloop"

// ReadMapper is the form of ReadHandler for a handler that makes at most one message of
// each. What MapRead returns goes on to the next ReadHandler; if that is nil nothing
// does. A row of such handlers is walked and not nested, which makes it the cheapest way
// through a pipeline: a hop costs what a call through an interface costs, a third of
// [Context.FireRead], and the stack does not grow. [Convert] makes one.
//
// MapRead owns msg as HandleRead does. With an error nothing goes on, and what was
// returned besides it is dropped without being released.
type ReadMapper interface {
	MapRead(c *Context, msg any) (any, error)
}

// WriteMapper is the form of WriteHandler for a handler that makes at most one message
// of each. What MapWrite returns goes on to the WriteHandler before it, together with
// the completion of the write; if that is nil nothing does, and the write is complete.
// With an error the write fails. See [ReadMapper] for the rest.
type WriteMapper interface {
	MapWrite(c *Context, msg any) (any, error)
}

// readerOf returns what a context calls for a read: h itself, or what walks on from it.
func readerOf(h any) ReadHandler {
	if m, ok := h.(ReadMapper); ok {
		return &mapReader{m}
	}
	r, _ := h.(ReadHandler)
	return r
}

// writerOf returns what a context calls for a write.
func writerOf(h any) WriteHandler {
	if m, ok := h.(WriteMapper); ok {
		return &mapWriter{m}
	}
	w, _ := h.(WriteHandler)
	return w
}

// mapReader walks from a ReadMapper on to the first handler that is none.
type mapReader struct{ m ReadMapper }

func (r *mapReader) HandleRead(c *Context, msg any) error {
	p, first, m := c.p, c, r.m
	for {
		out, err := m.MapRead(c, msg)
		if err != nil {
			if c == first {
				return err
			}
			p.failedAt(c, err)
			return nil
		}
		if out == nil {
			return nil
		}
		msg, c = out, c.nextRead
		if next, ok := c.reader.(*mapReader); ok && c.mask != 0 { // not removed
			p.cur, m = c, next.m
			continue
		}
		for c.mask&maskRead == 0 {
			c = c.next
		}
		p.cur = c // who called us puts it back
		if err := c.reader.HandleRead(c, msg); err != nil {
			p.failedAt(c, err)
		}
		return nil
	}
}

// mapWriter walks from a WriteMapper on, towards the head, to the first handler that is
// none. A write with a completion goes by single steps, each of which knows who has the
// completion in its hands.
type mapWriter struct{ m WriteMapper }

func (w *mapWriter) HandleWrite(c *Context, msg any, pr *eventloop.Promise) error {
	p, first, m := c.p, c, w.m
	for {
		out, err := m.MapWrite(c, msg)
		if err != nil {
			if c == first {
				return err
			}
			p.outboundFailed(c, nil, err)
			return nil
		}
		if out == nil {
			if pr != nil {
				pr.Complete(nil)
			}
			return nil
		}
		if pr != nil {
			c.ForwardWrite(out, pr)
			return nil
		}
		if b := p.base; !b.flushQueued { // m may have flushed
			b.touch()
		}
		msg, c = out, c.prevWrite
		for c.mask&maskWrite == 0 {
			c = c.prev
		}
		p.cur = c
		next, ok := c.writer.(*mapWriter)
		if !ok {
			if err := c.writer.HandleWrite(c, msg, nil); err != nil {
				p.outboundFailed(c, nil, err)
			}
			return nil
		}
		m = next.m
	}
}

// stepReader is a ReadMapper where the walk is of no use: it may be on an executor, or
// its time is taken.
type stepReader struct{ m ReadMapper }

func (r stepReader) HandleRead(c *Context, msg any) error {
	out, err := r.m.MapRead(c, msg)
	if err == nil && out != nil {
		c.FireRead(out)
	}
	return err
}

// stepWriter is the same for a WriteMapper.
type stepWriter struct{ m WriteMapper }

func (w stepWriter) HandleWrite(c *Context, msg any, p *eventloop.Promise) error {
	out, err := w.m.MapWrite(c, msg)
	switch {
	case err != nil:
		return err
	case out != nil:
		c.ForwardWrite(out, p)
	case p != nil:
		p.Complete(nil)
	}
	return nil
}

// stepReaderOf returns what is called for a read of a handler that takes single steps.
func stepReaderOf(h any) ReadHandler {
	if m, ok := h.(ReadMapper); ok {
		return stepReader{m}
	}
	r, _ := h.(ReadHandler)
	return r
}

// stepWriterOf returns what is called for a write of a handler that takes single steps.
func stepWriterOf(h any) WriteHandler {
	if m, ok := h.(WriteMapper); ok {
		return stepWriter{m}
	}
	w, _ := h.(WriteHandler)
	return w
}
