package transport

import (
	"io"
	"os"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/sys"
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
	file    *os.File
	reserve func(int64) int64

	pieces fifo[sinkPiece]
	bytes  int  // in them
	busy   bool // the first is being written
	task   sinkTask
	told   func() // to be called when all has been written; nil if more may come
}

// sinkPiece is bytes that are written together: a pipe or a buffer.
type sinkPiece struct {
	pipe pipe
	buf  *buffer.Buf // nil for a pipe
	n    int
}

func newFileSink(m *mirror, c Mirror) *fileSink {
	k := &fileSink{m: m, file: c.File, reserve: c.Reserve}
	if k.reserve == nil {
		var end int64
		k.reserve = func(n int64) int64 {
			end += n
			return end - n
		}
	}
	k.task.k = k
	k.state = acquireState(m.w.src.Loop(), m.w.src.Alloc())
	return k
}

func (k *fileSink) tee(from pipe, n int) int {
	if last := k.pieces.last(); last != nil && last.buf == nil && (k.pieces.n > 1 || !k.busy) {
		if m, err := sys.Tee(last.pipe.w, from.r, n); err == nil && m > 0 {
			last.n += m
			k.took(m)
			return m
		}
	}
	if k.pieces.n >= sinkPipes {
		return 0
	}
	p, err := k.state.pipes.lend()
	if err != nil {
		return 0
	}
	m, err := sys.Tee(p.w, from.r, n)
	if err != nil || m == 0 {
		k.state.pipes.back(p)
		return 0
	}
	k.pieces.push(sinkPiece{pipe: p, n: m})
	k.took(m)
	return m
}

func (k *fileSink) took(n int) {
	piped.Add(int64(n))
	k.bytes += n
	k.next()
}

func (k *fileSink) write(b *buffer.Buf) {
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
	k.task.piece, k.task.off = *first, k.reserve(int64(first.n))
	loop := k.m.w.src.Loop()
	loop.Hold() // until the task is back
	if err := loop.Offload().Submit(k.task.run); err != nil {
		k.task.err = err
		k.written()
	}
}

// written takes the first piece out: it has been written, or has failed. Loop-only.
func (k *fileSink) written() {
	k.m.w.src.Loop().Release()
	k.busy = false
	err := k.task.err
	k.task.err = nil
	lost := k.bytes // if it has failed
	k.drop(err == nil)
	if err != nil {
		k.m.taken -= int64(lost)
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
	k     *fileSink
	piece sinkPiece
	off   int64
	err   error
}

func (t *sinkTask) run() {
	t.err = t.write()
	t.piece = sinkPiece{}
	_ = t.k.m.w.src.Loop().Submit(t) // which does not end before
}

// Run implements eventloop.Task.
func (t *sinkTask) Run() { t.k.written() }

func (t *sinkTask) write() error {
	if b := t.piece.buf; b != nil {
		for seg := range b.Segments {
			n, err := t.k.file.WriteAt(seg, t.off)
			if err != nil {
				return err
			}
			t.off += int64(n)
		}
		return nil
	}
	fd := int(t.k.file.Fd())
	for left := t.piece.n; left > 0; {
		n, err := sys.SpliceToFile(fd, t.piece.pipe.r, t.off, left)
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrShortWrite
		}
		left -= n
		t.off += int64(n)
	}
	return nil
}
