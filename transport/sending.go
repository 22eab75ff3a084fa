package transport

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

const (
	maxWritesPerFlush = 16
	// A file region leaves in calls of this size. A longer one has Go's monitor look twice
	// while it lasts and take its processor away, where there is no idle one; a shorter one
	// wakes the peer more often. See docs/zero-copy.md for the figures.
	regionPiece = 352 << 10
	// So much of a region leaves in a turn, and at most so much of a cold one by an Op.
	regionBudget = 3 * regionPiece
)

// flush sends the queue up to s.flushTo, as far as the socket takes it and this
// channel's share of the turn goes.
//
// When it has used up its share it goes on by itself in the next turn, and until
// then further calls do nothing. It completes promises, so user code may write, flush or close before it returns.
func (s *stream) flush() {
	if s.inFlush || s.againQueue || s.blocked || s.inOp() || s.at != streamOpen && s.at != streamClosing {
		return
	}
	s.inFlush = true
	defer s.flushed()
	calls, budget := 0, regionBudget
	for s.out.sent < s.flushTo {
		if calls == maxWritesPerFlush || budget <= 0 {
			s.flushAgain()
			break
		}
		calls++
		if s.out.piped > 0 {
			s.sendPipe()
		} else if s.out.region() != nil {
			budget -= s.sendRegion(budget)
		} else {
			s.sendParts()
		}
		if s.at == streamClosed {
			return
		}
		s.completeDue()
		if s.blocked || s.inOp() || s.at == streamClosed {
			break
		}
	}
	s.completeDue()
	s.settle()
}

// flushed ends a flush. Callbacks may have asked for another one meanwhile, or have
// closed the channel after its queue had been settled.
func (s *stream) flushed() {
	s.inFlush = false
	if s.at == streamClosing && s.out.empty() && !s.inOp() {
		s.closeEmpty()
		return
	}
	if s.out.sent < s.flushTo && !s.blocked && !s.inOp() && (s.at == streamOpen || s.at == streamClosing) {
		s.flushAgain()
	}
}

// flushAgain goes on with the flush in the next turn.
func (s *stream) flushAgain() {
	if !s.againQueue {
		s.againQueue = true
		s.Loop().AtTurnEnd((*flushTask)(s))
	}
}

// flushTask is the channel as the task that goes on with its flush.
type flushTask stream

func (t *flushTask) Run() {
	s := (*stream)(t)
	defer s.contain()
	s.entered = true
	s.againQueue = false
	s.flush()
	s.entered = false
}

// sendParts sends the run of buffers at the head of the queue.
func (s *stream) sendParts() {
	if s.zc().unconfirmed() >= mostUnconfirmed {
		// Before the parts are collected: what is released may be the user's, who may write.
		if s.readConfirmations(); s.at != streamOpen && s.at != streamClosing {
			return
		}
	}
	parts, bytes, mapped, then := s.out.parts(s.state.iov, s.flushTo-s.out.sent)
	n, use, err := s.writeParts(parts, bytes, mapped, then != nil)
	clear(parts)
	counters := s.Loop().Counters()
	counters.Writevs++
	counters.BytesWritten += uint64(n)
	if mapped {
		counters.BytesMapped += s.out.mappedIn(n)
	}
	switch {
	case err == sys.ErrAgain:
		s.blocked = true
	case err != nil:
		if mapped && errors.Is(err, syscall.EFAULT) {
			err = fmt.Errorf("%w: %w", ErrFileShrunk, err)
		}
		s.fail("write", err)
		return
	case n < bytes:
		s.blocked = true
	}
	s.out.tried(bytes, n)
	if use == zeroCopyUsed && n > 0 {
		counters.BytesZeroCopy += uint64(n)
		s.out.lend(int64(n), s.rare.zc)
		return
	}
	s.wrote(int64(n))
	if use == zeroCopyNoRoom {
		s.readConfirmations()
	}
}

// wrote takes note that n bytes have left.
func (s *stream) wrote(n int64) {
	s.out.advance(n)
}

// sendRegion sends at most budget bytes of the region at the head of the queue and
// returns how many. A file that is not in memory is sent by an Op, so that the loop
// does not wait for the disk.
func (s *stream) sendRegion(budget int) int {
	r := s.out.region()
	want := int(min(r.Remaining(), int64(budget)))
	file, off := r.Fd(), r.Offset()+r.Sent()
	if s.routeRegion(r).why == whyCold && s.submitRegion(r, file, off, want) {
		return 0
	}
	want = min(want, regionPiece)
	n, err := s.sock.sendfile(file, off, want)
	return s.regionSent(n, want, err)
}

// submitRegion has the region sent by an Op; inOp until it has ended.
func (s *stream) submitRegion(r *buffer.FileRegion, file int, off int64, want int) bool {
	op := &s.needRare().op
	op.Run = func() (int64, error) {
		sys.Learn(file) // perhaps the next one need not be an Op
		n, err := s.sock.sendfile(file, off, want)
		return int64(n), err
	}
	if s.reg.Submit(op) != nil {
		return false
	}
	r.Retain()
	s.rare.opRegion = r
	return true
}

// regionSent deals with the outcome of a sendfile.
func (s *stream) regionSent(n, want int, err error) int {
	counters := s.Loop().Counters()
	counters.Sendfiles++
	counters.BytesSendfile += uint64(n)
	switch {
	case err == sys.ErrAgain:
		s.blocked = true
		return 0
	case err != nil:
		s.fail("write", err)
		return 0
	case n == 0:
		s.fail("write", &fs.PathError{Op: "send", Path: s.out.region().File().Name(), Err: ErrFileShrunk})
		return 0
	case n < want:
		s.blocked = true
	}
	r, p := s.out.region(), s.out.regionPromise()
	sent, total := r.Sent()+int64(n), r.Len()
	s.wrote(int64(n))
	p.Progress(sent, total)
	return n
}

// HandleOp implements eventloop.IOHandle: a sendfile of a cold file has ended, or a
// piece of what is received into one.
func (s *stream) HandleOp(op *eventloop.Op) {
	defer s.contain()
	s.entered = true
	if r := s.rare.receiver; r != nil && op == &r.op {
		r.opEnded()
		s.entered = false
		return
	}
	r := s.rare.opRegion
	s.rare.opRegion = nil
	op.Run = nil
	defer r.Release()
	if s.at != streamClosed {
		// What was asked for is not known any more, and does not matter: if the socket
		// is full the next call says so.
		s.regionSent(int(op.N), 0, op.Err)
	}
	if s.at != streamClosed {
		s.completeDue()
		s.flush()
		s.settle()
		s.updateInterest()
	}
	s.entered = false
}

// completeDue completes the promises of what has left.
func (s *stream) completeDue() {
	for p := s.out.due(); p != nil; p = s.out.due() {
		p.Complete(nil)
	}
}

// settle judges the water marks after a flush, and does what had to wait for the
// queue to leave.
func (s *stream) settle() {
	if s.at == streamClosed {
		return
	}
	s.account()
	s.SetPending(s.out.charge)
	if s.at == streamClosed || s.inOp() {
		return
	}
	if !s.out.empty() {
		s.updateInterest()
		return
	}
	switch {
	case s.at == streamClosing:
		s.closeEmpty()
	case s.outputShut && !s.out.done && s.at == streamOpen:
		s.shutdownOutput()
	default:
		s.updateInterest()
		if s.relayed {
			s.rare.into.resume()
		}
		if s.rare != nil && s.rare.feeds != nil {
			s.rare.feeds.resume()
		}
	}
}

func (c *streamCore) DoWrite(msg any, p *eventloop.Promise) {
	s := (*stream)(c)
	if s.at >= streamClosing || s.outputShut {
		buffer.Release(msg)
		s.refuse(p)
		return
	}
	var err error
	switch m := msg.(type) {
	case *buffer.Buf:
		s.enqueue(m, p)
	case *buffer.FileRegion:
		if !s.out.addRegion(m, p, s.HighWater()) {
			m.Release()
			err = ErrTooManyRegions
		}
	case []byte:
		var b *buffer.Buf
		if b, err = s.Alloc().TryAlloc(len(m)); err == nil {
			b.Write(m)
			s.enqueue(b, p)
		}
	case string:
		var b *buffer.Buf
		if b, err = s.Alloc().TryAlloc(len(m)); err == nil {
			b.WriteString(m)
			s.enqueue(b, p)
		}
	default:
		buffer.Release(msg)
		err = ErrUnsupportedMessage
	}
	if err != nil {
		s.Pipeline().FailWrite(p, &OpError{Op: "write", Addr: s.remote.load(), Err: err})
		return
	}
	over := s.out.charge > s.HighWater()
	if over && !s.cfg.ManualFlush && !s.inFlush && !s.blocked {
		// Only what the socket does not take is judged.
		s.flushTo = s.out.queued
		s.flush()
		if s.at == streamClosed {
			return
		}
	}
	if s.cfg.MaxPending > 0 && s.out.charge > int64(s.cfg.MaxPending) {
		s.fail("write", ErrSlowPeer)
		return
	}
	if s.blocked || over {
		s.accountFrom(accountStep) // it is not about to leave
	}
	s.SetPending(s.out.charge)
}

// enqueue adds b, which it takes over, to the queue.
func (s *stream) enqueue(b *buffer.Buf, p *eventloop.Promise) {
	s.Loop().Counters().BytesCopied += uint64(s.out.addBuf(b, p, s.Alloc()))
}

// refuse fails a write that came too late. A close is reported by itself; only a
// write behind CloseWrite is news to the handlers.
func (s *stream) refuse(p *eventloop.Promise) {
	err := s.CloseReason()
	if err == nil {
		err = pipeline.ErrClosed
		if s.at < streamClosing {
			s.Pipeline().FailWrite(p, pipeline.ErrOutputShutdown)
			return
		}
	}
	p.Complete(err)
}

func (c *streamCore) DoFlush() {
	s := (*stream)(c)
	s.flushTo = s.out.queued
	s.flush()
}
