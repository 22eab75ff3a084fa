package transport

import (
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

const (
	// A file's mirror is ahead of the disk by so many pipes, or so many copied bytes, at
	// most: while one piece is being written the next are collected.
	sinkPipes = 4
	sinkBytes = 1 << 20
)

// fileSink is a file as a mirror's sink. One piece at a time is written, off the loop.
// While that lasts its pipe is left alone: whoever touches it would wait for the disk.
type fileSink struct {
	m       *mirror
	state   *loopState
	bad     error // why the file cannot be written
	reserve func(int64) int64

	pieces fifo[sinkPiece]
	bytes  int  // in them
	busy   bool // the first is being written
	task   sinkTask
	filed  tally
	told   func() // to be called when all has been written; nil if more may come
}

// sinkPiece is bytes that are written together: a pipe or a buffer.
type sinkPiece struct {
	pipe pipe
	buf  *buffer.Buf // nil for a pipe
	n    int
}

func newFileSink(m *mirror, c Mirror) *fileSink {
	k := &fileSink{m: m, reserve: c.Reserve}
	if k.reserve == nil {
		var end int64
		k.reserve = func(n int64) int64 {
			end += n
			return end - n
		}
	}
	k.state = acquireState(m.of.src.Loop(), m.of.src.Alloc())
	k.task.k = k
	k.task.pool, k.task.count = k.state.pool, new(wayCounters)
	if k.task.to = c.storage; k.task.to == nil {
		var err error
		if k.task.to, err = newDiskFile(c.File); err != nil {
			k.bad = fmt.Errorf("transport: cannot mirror into the file: %w", err)
		}
	}
	return k
}

func (k *fileSink) tee(from pipe, n int) (int, error) {
	if last := k.pieces.last(); last != nil && last.buf == nil && (k.pieces.n > 1 || !k.busy) {
		if m, err := sys.Tee(last.pipe.w, from.r, n); err == nil && m > 0 {
			last.n += m
			k.took(m)
			return m, nil
		}
	}
	if k.pieces.n >= sinkPipes {
		return 0, nil
	}
	p, err := k.state.pipes.lend()
	if err != nil {
		return 0, k.stuck(err)
	}
	m, err := sys.Tee(p.w, from.r, n)
	if err != nil || m == 0 {
		k.state.pipes.back(p)
		return 0, k.stuck(err)
	}
	k.pieces.push(sinkPiece{pipe: p, n: m})
	k.took(m)
	return m, nil
}

// stuck is err if there is nothing under way after which it may be tried again.
func (k *fileSink) stuck(err error) error {
	if k.pieces.n > 0 {
		return nil
	}
	return err
}

func (k *fileSink) took(n int) {
	piped.Add(int64(n))
	k.bytes += n
	k.next()
}

func (k *fileSink) write(b *buffer.Buf) error {
	k.bytes += b.Len()
	if last := k.pieces.last(); last != nil && last.buf != nil && (k.pieces.n > 1 || !k.busy) &&
		last.buf.Cap()-last.buf.WriterIndex() >= b.Len() {
		last.n += b.Len()
		last.buf.WriteBuf(b)
		b.Release()
	} else {
		k.pieces.push(sinkPiece{buf: b, n: b.Len()})
	}
	k.next()
	return nil
}

func (k *fileSink) ready() bool { return k.bytes < sinkBytes }

func (k *fileSink) idle() bool { return k.pieces.n == 0 }

func (k *fileSink) end(told func()) {
	k.told = told
	k.next()
}

// next has the next piece written.
func (k *fileSink) next() {
	if k.busy {
		return
	}
	first := k.pieces.first()
	if first == nil {
		if k.told != nil {
			told := k.told
			k.told = nil
			k.state.release()
			told()
		}
		return
	}
	k.busy = true
	loop := k.m.of.src.Loop()
	loop.Hold() // until the task is back
	err := k.place(first)
	if err == nil {
		err = loop.Offload().Submit(k.task.run)
	}
	if err != nil {
		k.task.err = err
		k.written()
	}
}

// place prepares the task for a piece. Reserve is the user's, and may panic.
func (k *fileSink) place(p *sinkPiece) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &pipeline.PanicError{Value: v, Handler: "Mirror.Reserve", Stack: debug.Stack()}
		}
	}()
	k.task.at = k.reserve(int64(p.n))
	k.task.piece = *p
	return nil
}

// written takes the first piece out: it has been written, or has failed. Loop-only.
func (k *fileSink) written() {
	loop := k.m.of.src.Loop()
	loop.Release()
	k.filed.add(k.task.count, loop.Counters())
	k.busy = false
	err := k.task.err
	k.task.err = nil
	lost := k.bytes // if it has failed
	k.drop(err == nil)
	if err != nil {
		k.m.taken -= int64(lost)
		k.m.of.count.mirrored.Add(int64(-lost))
		k.m.of.count.dropped.Add(int64(lost))
		for k.pieces.n > 0 {
			k.drop(false)
		}
		if k.m.over && k.m.err == nil {
			k.m.err = err // the relay has ended before the last of it was written
		}
		k.m.giveUp(err)
	}
	k.next()
	k.m.resume()
}

// drop takes the first piece out. If it has been written its pipe is empty.
func (k *fileSink) drop(written bool) {
	p := k.pieces.first()
	k.bytes -= p.n
	switch {
	case p.buf != nil:
		p.buf.Release()
	case written:
		piped.Add(int64(-p.n))
		k.state.pipes.back(p.pipe)
	default:
		piped.Add(int64(-p.n))
		p.pipe.close()
	}
	*p = sinkPiece{}
	k.pieces.pop()
}

// sinkTask writes a piece. It is one of the Offload, and then one of the loop.
type sinkTask struct {
	diskWriter
	k     *fileSink
	piece sinkPiece
	err   error
}

// errSinkPanic is why a mirror is given up whose file has panicked.
var errSinkPanic = errors.New("transport: panic while a mirror's file was written")

func (t *sinkTask) run() {
	if t.err = t.k.bad; t.err == nil {
		t.err = errSinkPanic // unless use returns; the Offload logs it
		defer t.back()
		err := t.to.use(func() { t.err = t.write() })
		if err != nil {
			t.err = t.failed("write", err)
		}
		return
	}
	t.back()
}

// back brings the task to the loop, which does not end before.
func (t *sinkTask) back() {
	t.piece = sinkPiece{}
	_ = t.k.m.of.src.Loop().Submit(t)
}

// Run implements eventloop.Task.
func (t *sinkTask) Run() { t.k.written() }

func (t *sinkTask) write() error {
	if b := t.piece.buf; b != nil {
		return t.storeBuf(b)
	}
	for left := t.piece.n; left > 0; {
		n, err := t.drain(t.piece.pipe, left)
		if err != nil {
			return err
		}
		left -= n
	}
	return nil
}
