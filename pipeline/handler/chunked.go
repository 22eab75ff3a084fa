package handler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// ChunkedWrite turns each *buffer.FileRegion that is written into buffers, for handlers
// that need the bytes: what encrypts, compresses or counts them gets a file as it gets
// everything else. It is added behind those handlers, nearer to the tail. Without such a
// handler do without: a transport sends a region without reading it. Netty:
// ChunkedWriteHandler with ChunkedNioFile.
//
// A file is read by the channel's Offload, so no disk holds up the loop, one chunk ahead of
// what leaves: two chunks are in memory at most, whatever the size of the file. What is
// written behind a region waits for it, and so do Close and CloseWrite. While more than 64
// KiB wait here, what is left of files included, the channel is not writable, by a reason
// of its own. With Config.ManualFlush a chunk does not wait for a Flush, what is written
// behind the region does. Who has asked for the completion of a region, or its progress, is told as if
// the transport had sent it.
//
// A file that is shorter than its region fails the write with a *fs.PathError that matches
// io.ErrUnexpectedEOF, any other error of reading with that, and the channel closes when
// what was read has left: the peer has been promised more. What waits behind it, or is written
// later, fails with the same error. When the channel closes otherwise it fails with the reason. A handler
// that is removed hands on what it has as it is.
//
// A transport that closes by itself (at the end of the stream without Config.HalfClose, at
// the end of a drain's time) does not wait for what waits here. A drain does, in its time.
type ChunkedWrite struct {
	// Size is how many bytes are read at a time, at most 1 GiB; 0 means 256 KiB. Others panic
	// when the handler is added.
	Size int
	// Timeout bounds a Close that waits for a file: for how long nothing of it may leave
	// before the channel is reset. 0 means 10 s; below 0 it waits for ever.
	Timeout time.Duration
	// Reason is the number of the reason by which the channel is not writable, see
	// pipeline.Channel.SetUserWritable; 0 means 31. Others than those panic as well.
	Reason int
}

const (
	maxChunk     = 1 << 30
	chunksAhead  = 2 // that are in memory
	waitingAbove = 64 << 10
	waitingBelow = 32 << 10
)

// NewHandler implements pipeline.Maker.
func (w ChunkedWrite) NewHandler() any {
	if w.Size < 0 || w.Size > maxChunk {
		panic(fmt.Sprintf("handler: ChunkedWrite.Size of %d", w.Size))
	}
	if w.Size == 0 {
		w.Size = 256 << 10
	}
	if w.Timeout == 0 {
		w.Timeout = 10 * time.Second
	}
	if w.Reason < 0 || w.Reason > 31 {
		panic(fmt.Sprintf("handler: ChunkedWrite.Reason of %d", w.Reason))
	}
	if w.Reason == 0 {
		w.Reason = 31
	}
	return &chunkedWrite{cfg: w}
}

// chunkedWrite is the ChunkedWrite of one channel. Its methods and callbacks run where the
// handler does, one at a time.
type chunkedWrite struct {
	cfg ChunkedWrite

	queue   []held // what waits; a region at its head is being read
	waiting int64  // bytes in queue
	full    bool   // the channel is not writable for it
	busy    bool   // the channel is held, because queue is not empty
	reading bool   // a chunk
	out     int    // chunks that have been written and have not left
	moved   uint64 // how many have left
	timer   *eventloop.Timer
	gone    bool  // the handler passes everything on: the channel has ended, or it was removed
	err     error // why a region was broken off: behind that nothing may leave
}

// held is an operation that waits behind a region.
type held struct {
	op  heldOp
	msg any // of a write
	p   *eventloop.Promise
}

type heldOp uint8

const (
	heldWrite heldOp = iota
	heldFlush
	heldClose
	heldCloseWrite
)

// bytes is how much of it is still to go on.
func (h *held) bytes() int64 {
	switch m := h.msg.(type) {
	case *buffer.FileRegion:
		return m.Remaining()
	case *buffer.Buf:
		return int64(m.Len())
	case []byte:
		return int64(len(m))
	case string:
		return int64(len(m))
	}
	return 0
}

// HandleWrite implements pipeline.WriteHandler.
func (w *chunkedWrite) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	if w.err != nil {
		buffer.Release(msg)
		p.Complete(w.err)
		return nil
	}
	_, region := msg.(*buffer.FileRegion)
	if w.gone || !region && len(w.queue) == 0 {
		c.ForwardWrite(msg, p)
		return nil
	}
	if b, ok := msg.([]byte); ok {
		msg = string(b) // it is the caller's again
	}
	w.hold(c, held{op: heldWrite, msg: msg, p: p})
	return nil
}

// HandleFlush implements pipeline.FlushHandler: what has been passed on leaves now, and the
// rest of what was written before it when it is passed on.
func (w *chunkedWrite) HandleFlush(c *pipeline.Context) error {
	c.Flush()
	if n := len(w.queue); !w.gone && n > 0 && w.queue[n-1].op != heldFlush {
		w.hold(c, held{op: heldFlush})
	}
	return nil
}

// HandleClose implements pipeline.CloseHandler.
func (w *chunkedWrite) HandleClose(c *pipeline.Context, p *eventloop.Promise) error {
	if w.gone || len(w.queue) == 0 {
		c.ForwardClose(p)
		return nil
	}
	w.hold(c, held{op: heldClose, p: p})
	if w.timer == nil && w.cfg.Timeout > 0 {
		w.watch(c)
	}
	return nil
}

// watch resets the channel when nothing leaves for too long.
func (w *chunkedWrite) watch(c *pipeline.Context) {
	moved := w.moved
	w.timer = c.Schedule(w.cfg.Timeout, func() {
		switch {
		case w.gone || len(w.queue) == 0:
		case w.moved == moved:
			c.Channel().Reset()
		default:
			w.watch(c)
		}
	})
}

// HandleCloseWrite implements pipeline.CloseWriteHandler.
func (w *chunkedWrite) HandleCloseWrite(c *pipeline.Context, p *eventloop.Promise) error {
	if w.gone || len(w.queue) == 0 {
		c.ForwardCloseWrite(p)
		return nil
	}
	w.hold(c, held{op: heldCloseWrite, p: p})
	return nil
}

func (w *chunkedWrite) hold(c *pipeline.Context, h held) {
	w.queue = append(w.queue, h)
	w.waiting += h.bytes()
	if !w.busy {
		w.busy = true
		c.Channel().Begin()
	}
	w.pump(c)
}

// take removes the first from the queue.
func (w *chunkedWrite) take() held {
	h := w.queue[0]
	w.queue[0] = held{}
	if w.queue = w.queue[1:]; len(w.queue) == 0 {
		w.queue = nil
	}
	w.waiting -= h.bytes()
	return h
}

// pump passes on what need not wait any more, and has the next chunk read. What it calls
// may call it again.
func (w *chunkedWrite) pump(c *pipeline.Context) {
	for !w.gone && len(w.queue) > 0 {
		r, ok := w.queue[0].msg.(*buffer.FileRegion)
		if !ok {
			w.pass(c, w.take())
			continue
		}
		if r.Remaining() == 0 {
			h := w.take()
			r.Release()
			c.ForwardWrite(buffer.FromString(""), h.p)
			continue
		}
		if w.reading || w.out >= chunksAhead {
			break
		}
		w.read(c, r)
	}
	w.settle(c)
}

// pass goes on with an operation.
func (w *chunkedWrite) pass(c *pipeline.Context, h held) {
	switch h.op {
	case heldWrite:
		c.ForwardWrite(h.msg, h.p)
	case heldFlush:
		c.Flush()
	case heldClose:
		c.ForwardClose(h.p)
	case heldCloseWrite:
		c.ForwardCloseWrite(h.p)
	}
}

// settle says whether the channel is writable, and whether it is held.
func (w *chunkedWrite) settle(c *pipeline.Context) {
	if full := w.waiting > waitingAbove || w.full && w.waiting >= waitingBelow; full != w.full {
		w.full = full
		c.Channel().SetUserWritable(w.cfg.Reason, !full)
	}
	if w.busy && len(w.queue) == 0 {
		w.busy = false
		c.Channel().End()
	}
}

// read has the next chunk of r read.
func (w *chunkedWrite) read(c *pipeline.Context, r *buffer.FileRegion) {
	n, off := int(min(r.Remaining(), int64(w.cfg.Size))), r.Offset()+r.Sent()
	alloc := c.Alloc()
	r.Retain()
	w.reading = true
	c.Offload(func(context.Context) (any, error) {
		b, err := alloc.TryAlloc(n)
		if err != nil {
			return nil, err
		}
		k, err := r.File().ReadAt(b.Writable()[:n], off)
		if k < n {
			b.Release()
			if err == nil || errors.Is(err, io.EOF) {
				err = &fs.PathError{Op: "read", Path: r.File().Name(), Err: io.ErrUnexpectedEOF}
			}
			return nil, err
		}
		b.Commit(n)
		return b, nil
	}, func(v any, err error) {
		r.Release()
		w.reading = false
		b, _ := v.(*buffer.Buf)
		switch {
		case w.gone:
			if b != nil {
				b.Release()
			}
		case err != nil:
			fail(c, w.queue[0].p, err)
			w.end(c, err)
		default:
			w.write(c, r, b)
		}
	})
}

// write passes a chunk of r on, which is first in the queue.
func (w *chunkedWrite) write(c *pipeline.Context, r *buffer.FileRegion, b *buffer.Buf) {
	n := int64(b.Len())
	r.Advance(n)
	w.waiting -= n
	p, sent, total, last := w.queue[0].p, r.Sent(), r.Len(), r.Remaining() == 0
	w.out++
	if last {
		w.take()
		r.Release()
	}
	c.WriteThen(b, func(err error) {
		w.out--
		w.moved++
		switch {
		case err != nil:
			fail(c, p, err)
			if !w.gone {
				w.end(c, err)
			}
			return
		case p != nil:
			told := func() {
				p.Progress(sent, total)
				if last {
					p.Complete(nil)
				}
			}
			if c.Loop().InLoop() {
				told()
			} else if c.Loop().Execute(told) != nil {
				p.Complete(pipeline.ErrClosed)
			}
		}
		w.pump(c)
	})
	c.Flush() // the next one waits until it has left
	w.pump(c)
}

// end closes a channel whose peer does not get all of a region.
func (w *chunkedWrite) end(c *pipeline.Context, err error) {
	w.gone, w.err = true, err
	w.drop(c, err)
	w.settle(c)
	c.ForwardClose(nil)
}

// fail tells of a write that has failed: whoever asked, or HandleError, unless the channel
// has closed.
func fail(c *pipeline.Context, p *eventloop.Promise, err error) {
	if p != nil {
		p.Complete(err)
	} else if !errors.Is(err, pipeline.ErrClosed) {
		c.Pipeline().FireError(err)
	}
}

// drop fails what is in the queue, but a close is on its way in any case.
func (w *chunkedWrite) drop(c *pipeline.Context, err error) {
	for len(w.queue) > 0 {
		h := w.take()
		if h.op == heldClose {
			c.ForwardClose(h.p)
			continue
		}
		buffer.Release(h.msg)
		h.p.Complete(err)
	}
}

// HandleInactive implements pipeline.InactiveHandler: what has not been read is not needed.
func (w *chunkedWrite) HandleInactive(c *pipeline.Context) error {
	w.gone = true
	w.drop(c, c.Channel().CloseReason())
	w.settle(c)
	return nil
}

// HandleRemoved implements pipeline.RemovedHandler.
func (w *chunkedWrite) HandleRemoved(c *pipeline.Context) {
	w.gone = true
	if w.timer != nil {
		w.timer.Stop()
	}
	if !c.Channel().Open() {
		w.drop(c, c.Channel().CloseReason())
	}
	for len(w.queue) > 0 {
		w.pass(c, w.take()) // of a region what has not been sent of it
	}
	w.settle(c)
}
