package transport

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
	"go.uber.org/zap"
)

// When readiness does not tell whether a datagram can be sent, it is tried again
// after a while, longer each time.
const (
	minDgramRest = time.Millisecond
	maxDgramRest = 100 * time.Millisecond
)

var (
	errNoAddress  = fmt.Errorf("%w: the channel is not connected, only a Datagram with an address can be sent", ErrUnsupportedMessage)
	errAddressed  = fmt.Errorf("%w: the channel is connected, a Datagram cannot have another address than its peer's", ErrUnsupportedMessage)
	errNoHalfOpen = fmt.Errorf("a datagram channel has no sending side to close: %w", errors.ErrUnsupported)
)

// flush sends the queue up to s.flushTo, as far as the socket takes it and this
// channel's share of the turn goes: see stream.flush. It completes promises, so user
// code may write, flush or close before it returns.
func (s *dgram) flush() {
	if s.inFlush || s.againQueue || s.blocked || s.resting != nil || s.at != dgramOpen && s.at != dgramClosing {
		return
	}
	s.inFlush = true
	defer s.flushed()
	calls, budget := 0, maxBytesPerTurn
	for s.out.gone < s.flushTo {
		if calls == maxWritesPerFlush || budget <= 0 {
			s.flushAgain()
			break
		}
		calls++
		budget -= s.sendBatch()
		s.completeDue()
		if s.waiting() || s.out.held() || s.at == dgramClosed {
			break
		}
	}
	if s.out.gone >= s.flushTo {
		s.out.aside.tried()
	}
	if len(s.out.aside.receivers) == 0 {
		s.asideRest = 0
	}
	if s.at != dgramClosed {
		s.settle()
	}
}

// waiting reports whether the queue waits for the socket.
func (s *dgram) waiting() bool { return s.blocked || s.resting != nil }

// flushed ends a flush. Callbacks may have asked for another one meanwhile, or have
// closed the channel after its queue had been settled.
func (s *dgram) flushed() {
	s.inFlush = false
	if s.at == dgramClosing && s.out.empty() {
		s.closeNow(s.reason)
		return
	}
	if s.out.gone < s.flushTo && !s.waiting() && !s.out.held() && (s.at == dgramOpen || s.at == dgramClosing) {
		s.flushAgain()
	}
}

// flushAgain goes on with the flush in the next turn.
func (s *dgram) flushAgain() {
	if !s.againQueue {
		s.againQueue = true
		s.Loop().AtTurnEnd((*dgramFlush)(s))
	}
}

// dgramFlush is the channel as the task that goes on with its flush.
type dgramFlush dgram

func (t *dgramFlush) Run() {
	s := (*dgram)(t)
	defer s.contain()
	s.entered = true
	s.againQueue = false
	s.flush()
	s.entered = false
}

// sendBatch sends what is first in the queue, and returns how many bytes have left.
func (s *dgram) sendBatch() int {
	if s.out.entries.first().change != nil {
		if !s.out.held() {
			s.changeNow()
		}
		return 0
	}
	if s.out.aside.holds(s.out.entries.first().name) {
		s.receiverFull()
		return 0
	}
	n := s.out.batch(s.flushTo)
	n, err := s.sock.send(&s.out, n, s.state.outgoing())
	s.Loop().Counters().Writevs++
	if err != nil {
		s.sendFailed(err)
		return 0
	}
	s.woken, s.again, s.rest = false, false, 0
	full := len(s.out.aside.receivers)
	sent, mapped := s.out.left(n)
	if len(s.out.aside.receivers) < full {
		s.asideRest = 0 // one reads again, and soon perhaps more
	}
	s.Loop().Counters().BytesWritten += uint64(sent)
	s.Loop().Counters().BytesMapped += uint64(mapped)
	return sent
}

// sendFailed deals with an error of the first datagram in the queue, which fails by
// itself: the channel stays open, and what is behind goes on.
func (s *dgram) sendFailed(err error) {
	switch {
	case err == sys.ErrAgain && !s.woken:
		s.blocked = true
		return
	case err == sys.ErrAgain && s.out.entries.first().name != "":
		// The socket is ready and cannot send all the same: the queue of this receiver is
		// full.
		s.receiverFull()
		return
	case err == sys.ErrAgain, errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
		// So is any socket whose device has no room.
		s.takeRest()
		return
	case !s.again && s.peer.addr.IsValid() && errors.Is(err, syscall.ECONNREFUSED):
		// That was the answer to an earlier datagram, and has kept this one back.
		s.again = true
		s.Pipeline().FireError(&OpError{Op: "write", Addr: s.remote.load(), Err: err})
		return
	}
	s.again = false
	if errors.Is(err, syscall.EFAULT) && s.out.entries.first().buf.Mapped() {
		err = fmt.Errorf("%w: %w", ErrFileShrunk, err)
	}
	s.failFirst(err)
}

// failFirst has the first datagram in the queue fail.
func (s *dgram) failFirst(err error) {
	e := s.out.take()
	to := s.remote.load()
	if e.name != "" || e.addr.IsValid() {
		to = (&dgramSlot{addr: e.addr, name: e.name}).from()
	}
	e.buf.Release()
	s.Pipeline().FailWrite(e.p, &OpError{Op: "write", Addr: to, Err: err})
}

// takeRest has the queue wait for a time.
func (s *dgram) takeRest() {
	s.rest = min(max(2*s.rest, minDgramRest), maxDgramRest)
	s.resting = s.Loop().Schedule(s.rest, s.rested)
}

func (s *dgram) rested() {
	defer s.contain()
	s.entered = true
	s.resting = nil
	s.flush()
	s.entered = false
}

// completeDue completes the promises of what has left.
func (s *dgram) completeDue() {
	for p := s.out.due(); p != nil; p = s.out.due() {
		p.Complete(nil)
	}
}

// settle judges the water marks after a flush, and does what had to wait for the
// queue to leave.
func (s *dgram) settle() {
	s.SetPending(s.out.pending())
	if s.at == dgramClosed {
		return
	}
	if s.out.empty() {
		s.out.idle()
		if s.at == dgramClosing {
			s.closeNow(s.reason)
			return
		}
	}
	s.updateInterest()
}

func (c *dgramCore) DoWrite(msg any, p *eventloop.Promise) {
	s := (*dgram)(c)
	if s.at >= dgramClosing {
		buffer.Release(msg)
		err := s.CloseReason()
		if err == nil {
			err = pipeline.ErrClosed
		}
		p.Complete(err)
		return
	}
	e, err := s.outgoing(msg)
	if err != nil {
		s.Pipeline().FailWrite(p, &OpError{Op: "write", Addr: s.remote.load(), Err: err})
		return
	}
	e.p = p
	s.out.add(e)
	if s.out.pending() > s.HighWater() && !s.cfg.ManualFlush && !s.inFlush && !s.waiting() {
		// Only what the socket does not take is judged.
		s.flushTo = s.out.queued
		s.flush()
		if s.at == dgramClosed {
			return
		}
	}
	if s.cfg.MaxPending > 0 && s.out.pending() > int64(s.cfg.MaxPending) {
		s.fail("write", ErrSlowPeer)
		return
	}
	s.SetPending(s.out.pending())
}

// outgoing makes an entry of the queue of msg, which it takes over.
func (s *dgram) outgoing(msg any) (e outDatagram, err error) {
	switch m := msg.(type) {
	case *Datagram:
		e.addr, e.name = m.Addr, m.Name
		if e.buf = m.take(); e.buf == nil {
			e.buf, err = s.Alloc().TryAlloc(0)
		}
	case *buffer.Buf:
		e.buf = m
	case []byte:
		if e.buf, err = s.Alloc().TryAlloc(len(m)); err == nil {
			e.buf.Write(m)
		}
	case string:
		if e.buf, err = s.Alloc().TryAlloc(len(m)); err == nil {
			e.buf.WriteString(m)
		}
	default:
		buffer.Release(msg)
		err = ErrUnsupportedMessage
	}
	if err != nil {
		return outDatagram{}, err
	}
	if err = s.checkAddress(&e); err != nil {
		e.buf.Release()
		return outDatagram{}, err
	}
	if e.buf.Parts() > sys.IOVMax {
		// A datagram leaves by one call, which takes no more parts.
		b := e.buf
		defer b.Release()
		if e.buf, err = s.Alloc().TryAlloc(b.Len()); err != nil {
			return outDatagram{}, err
		}
		e.buf.WriteBuf(b)
	}
	return e, nil
}

// checkAddress says whether e has an address if, and only if, the channel needs one.
func (s *dgram) checkAddress(e *outDatagram) error {
	addressed := e.addr.IsValid() || e.name != ""
	peer, connected := s.peerAtEnd()
	switch {
	case s.at == dgramNew && s.fd.fd < 0: // it is still to be connected
		if addressed {
			return errAddressed
		}
	case connected && addressed:
		if (dgramPeer{unmapped(e.addr), e.name}) != peer {
			return errAddressed
		}
		e.addr, e.name = netip.AddrPort{}, ""
	case !connected && (s.unix && (e.name == "" || e.addr.IsValid()) || !s.unix && (e.name != "" || !e.addr.IsValid())):
		return errNoAddress
	}
	return nil
}

func (c *dgramCore) DoFlush() {
	s := (*dgram)(c)
	s.flushTo = s.out.queued
	s.flush()
}

func (c *dgramCore) DoCloseWrite(p *eventloop.Promise) {
	s := (*dgram)(c)
	if err := s.CloseReason(); err != nil {
		p.Complete(err)
		return
	}
	s.Pipeline().FailWrite(p, &OpError{Op: "close", Addr: s.remote.load(), Err: errNoHalfOpen})
}

func (c *dgramCore) DoClose(mode pipeline.CloseMode, reason error) {
	s := (*dgram)(c)
	switch {
	case s.at == dgramClosed:
	case s.at == dgramNew, mode != pipeline.CloseFlushed:
		s.closeNow(reason)
	case s.at == dgramOpen:
		s.at, s.reason = dgramClosing, reason
		s.flushTo = s.out.queued
		s.armCloseTimer()
		s.flush()
		if !s.inFlush && s.at == dgramClosing {
			s.settle()
		}
	}
}

// armCloseTimer bounds a close that waits.
func (s *dgram) armCloseTimer() {
	s.closeGone = s.out.gone
	s.closeTimer = s.Loop().Schedule(s.cfg.CloseTimeout, s.closeTimedOut)
}

func (s *dgram) closeTimedOut() {
	s.closeTimer = nil
	switch {
	case s.at != dgramClosing:
	case s.out.gone != s.closeGone:
		s.armCloseTimer() // slow, but alive
	default:
		s.closeNow(ErrCloseTimeout)
	}
}

// closeNow gives up the socket and drops the queue.
func (s *dgram) closeNow(reason error) {
	if s.at == dgramClosed {
		return
	}
	s.at = dgramClosed
	s.MarkClosing(reason)
	var waiting []*eventloop.Promise
	for p := s.out.due(); p != nil; p = s.out.due() {
		waiting = append(waiting, p)
	}
	for !s.dropQueue(&waiting) {
	}
	s.dropSegments()
	for _, t := range []*eventloop.Timer{s.closeTimer, s.resting, s.asideTimer} {
		if t != nil {
			t.Stop()
		}
	}
	s.closeTimer, s.resting, s.asideTimer = nil, nil, nil
	end := func() {
		if !s.handedOver.Load() {
			s.file.remove()
		}
		if s.fd.fd >= 0 {
			s.sock.close()
		}
		// Each is told, even if a callback of one before is ended by runtime.Goexit.
		defer failAll(waiting, s.CloseReason())
		s.MarkClosed(reason)
	}
	if s.reg != nil {
		s.reg.Close(end)
	} else {
		end()
	}
}

// dropQueue releases the datagrams of the queue and adds their promises to waiting.
// It reports false when one of them could not be released, because its owner had done
// so already.
func (s *dgram) dropQueue(waiting *[]*eventloop.Promise) (done bool) {
	defer func() {
		if v := recover(); v != nil {
			s.Logger().Error("queued message cannot be released", zap.Stringer("channel", s), zap.Any("panic", v))
		}
	}()
	s.out.putBack()
	for !s.out.empty() {
		e := s.out.take()
		if e.p != nil {
			*waiting = append(*waiting, e.p)
		}
		if e.change == nil {
			e.buf.Release()
		}
	}
	s.out.idle()
	return true
}

// CloseIO implements eventloop.IOHandle: the loop is ending.
func (s *dgram) CloseIO() { s.closeNow(ErrLoopEnded) }
