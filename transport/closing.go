package transport

import (
	"io"
	"time"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
	"go.uber.org/zap"
)

// lingerCheck is how often channels that linger look whether they still have to. All
// those of a loop look in the same turn.
const lingerCheck = 100 * time.Millisecond

// shutdownOutput closes the sending side: the queue has left.
func (s *stream) shutdownOutput() {
	s.out.done = true
	p := s.rare.shutWrite
	s.rare.shutWrite = nil
	if err := s.sock.shutdownWrite(); err != nil {
		p.Complete(err)
		s.fail("write", err)
		return
	}
	p.Complete(nil)
	if s.at != streamOpen {
		return
	}
	s.Pipeline().FireEvent(pipeline.OutputShutdown{})
	if s.inputShut && s.at == streamOpen {
		s.closeNow(false, io.EOF)
	}
}

// closeEmpty closes a channel whose queue has left. A TCP socket that is closed
// with bytes unread resets the connection, and what the peer has not read yet is
// lost; so if there is something in the kernel in either direction, the sending
// side is closed first and the peer's last words are waited for, and dropped. A peer
// that says nothing is waited for only until it has acknowledged what was sent.
func (s *stream) closeEmpty() {
	if s.receiving() && s.rare.receiver.unfinished() {
		return // its Op may be reading, and ends soon; or a mirror holds it up
	}
	lent := s.unconfirmed()
	if s.at != streamClosing {
		return // by the owner of what has just been confirmed
	}
	if lent == 0 && (s.inputShut || !s.sock.unfinished()) || s.sock.shutdownWrite() != nil {
		s.closeNow(false, s.rare.reason)
		return
	}
	s.at = streamLingering
	s.linger()
	s.updateInterest()
}

// linger has the channel linger for CloseTimeout, from now on.
func (s *stream) linger() {
	s.rare.lingerEnd = s.Loop().Now().Add(s.cfg.CloseTimeout)
	if z := s.zc(); z.unconfirmed() > 0 {
		z.unacked = s.sock.(zeroCopier).unacked()
	}
	s.armCloseTimer()
}

// discard drops what a lingering channel's peer still sends.
func (s *stream) discard() {
	for range maxReadsPerTurn {
		hot, err := s.state.receive(0)
		if err != nil {
			s.closeNow(false, s.rare.reason)
			return
		}
		n, err := s.sock.read(hot, recvSizes[0])
		hot.Clear()
		if err == sys.ErrAgain {
			return
		}
		if err == nil && n == 0 && s.unconfirmed() > 0 && s.at == streamLingering {
			s.inputShut = true
			s.armCloseTimer()
			return
		}
		if err != nil || n == 0 {
			s.closeNow(false, s.rare.reason)
			return
		}
		s.rare.heard = true
		if n < recvSizes[0] {
			return
		}
	}
}

// armCloseTimer bounds a close that waits.
func (s *stream) armCloseTimer() {
	r := s.needRare()
	if r.closeTimer != nil {
		r.closeTimer.Stop()
	}
	r.closeSent = s.out.sent
	d := s.cfg.CloseTimeout
	if s.at == streamLingering {
		now := s.Loop().Now()
		d = r.lingerEnd.Sub(now)
		if !r.heard || s.inputShut { // else only the peer's end counts, which is an event
			d = min(d, now.Truncate(lingerCheck).Add(lingerCheck).Sub(now))
		}
	}
	r.closeTimer = s.Loop().Schedule(d, s.closeTimedOut)
}

func (s *stream) closeTimedOut() {
	s.rare.closeTimer = nil
	switch s.at {
	case streamClosing:
		if s.out.sent != s.rare.closeSent {
			s.armCloseTimer() // slow, but alive
			return
		}
		s.closeNow(true, ErrCloseTimeout)
	case streamLingering:
		s.stillLingering()
	case streamNew, streamConnecting, streamOpen, streamFailing, streamClosed:
	}
}

// stillLingering looks whether a channel has to linger on.
func (s *stream) stillLingering() {
	lent := s.unconfirmed()
	if s.at != streamLingering {
		return
	}
	waits := lent > 0 || !s.inputShut && (s.rare.heard || s.sock.unfinished())
	switch {
	case waits && s.Loop().Now().Before(s.rare.lingerEnd):
		s.armCloseTimer()
	case lent == 0:
		s.closeNow(false, s.rare.reason)
	case s.sock.(zeroCopier).unacked() < s.rare.zc.unacked:
		s.linger() // slow, but alive: a socket without lent memory would go on in the kernel
	default:
		s.closeNow(true, ErrCloseTimeout)
	}
}

// closeNow gives up the socket, drops the queue and tells all who wait. The
// descriptor is closed when the last Op on it has ended; all who wait are told then, or
// after CloseTimeout if that is sooner.
func (s *stream) closeNow(reset bool, reason error) {
	if s.at == streamClosed {
		return
	}
	s.at = streamClosed
	s.MarkClosing(reason)
	for !s.dropQueue() {
	}
	s.dropPipe()
	s.uncharge()
	s.account()
	waiting := s.out.takeWaiting()
	var dial *connecting
	if r := s.rare; r != nil {
		if r.closeTimer != nil {
			r.closeTimer.Stop()
			r.closeTimer = nil
		}
		if r.shutWrite != nil {
			waiting = append(waiting, r.shutWrite)
			r.shutWrite = nil
		}
		if dial, r.dial = r.dial, nil; dial != nil {
			dial.stopTimer()
		}
		if r.grace != nil {
			r.grace.Stop()
			r.grace = nil
		}
	}
	told := false
	tell := func() {
		if told {
			return
		}
		told = true
		// Each is told, even if a callback of one before is ended by runtime.Goexit.
		defer failAll(waiting, s.CloseReason())
		defer s.MarkClosed(reason)
		if dial != nil {
			dial.failed(reason)
		}
	}
	end := func() {
		s.opsEnded() // first: who has waited for them too long would give up the socket as well
		if s.rare != nil {
			s.removeFile()
		}
		if reset || !s.closeOffLoop(tell) {
			defer tell()
			s.giveUpSocket(reset)
		}
	}
	if s.relayed {
		defer s.relayEnded(reason)
	}
	if s.rare != nil && s.rare.feeds != nil {
		defer s.rare.feeds.giveUp(reason)
	}
	if s.receiving() {
		s.rare.receiver.closed()
	}
	if s.reg == nil {
		end()
		return
	}
	busy := s.reg.Ops() > 0
	s.reg.Close(end)
	if busy {
		s.awaitOps(reset, reason, tell)
	}
}

// closeOffLoop closes a socket with SO_LINGER on a worker, because that sleeps, and calls
// ended, on the loop, when it has been closed. It reports false if the socket has no such
// option; then it does nothing.
func (s *stream) closeOffLoop(ended func()) bool {
	if s.fd.fd < 0 || s.zc().unconfirmed() > 0 || !s.sock.closeSleeps() {
		return false
	}
	loop := s.Loop()
	loop.Hold() // so it does not end before
	if loop.Offload().Submit(func() {
		s.sock.close()
		_ = loop.Execute(func() {
			loop.Release()
			ended()
		})
	}) != nil {
		loop.Release()
		return false // and the close holds up the end of a group that has no workers any more
	}
	return true
}

// failAll fails what waited for a channel that has closed.
func failAll(waiting []*eventloop.Promise, err error) {
	if len(waiting) == 0 {
		return
	}
	told := 0
	defer func() {
		if told < len(waiting) {
			failAll(waiting[told:], err)
		}
	}()
	for _, p := range waiting {
		told++
		p.Complete(err)
	}
}

// dropQueue releases the messages of the queue. It reports false when one of them
// could not be released, because its owner had done so already.
func (s *stream) dropQueue() (done bool) {
	defer func() {
		if v := recover(); v != nil {
			s.Logger().Error("queued message cannot be released", zap.Stringer("channel", s), zap.Any("panic", v))
		}
	}()
	for s.out.dropFirst() {
	}
	return true
}

// CloseIO implements eventloop.IOHandle: the loop is ending.
func (s *stream) CloseIO() { s.closeNow(false, ErrLoopEnded) }

func (c *streamCore) DoClose(mode pipeline.CloseMode, reason error) {
	s := (*stream)(c)
	switch s.at {
	case streamClosed:
		if impatient(reason) {
			s.abandonOps()
		}
	case streamNew:
		if mode == pipeline.CloseFlushed && s.fd.fd >= 0 && !s.out.empty() {
			s.closeLater(reason)
			return
		}
		s.closeNow(mode == pipeline.CloseReset, reason)
	case streamConnecting:
		s.closeNow(mode == pipeline.CloseReset, reason)
	case streamOpen:
		if mode != pipeline.CloseFlushed {
			s.closeNow(mode == pipeline.CloseReset, reason)
			return
		}
		s.at, s.needRare().reason = streamClosing, reason
		if s.receiving() {
			s.rare.receiver.halt.Store(true)
		}
		s.flushTo = s.out.queued
		s.armCloseTimer()
		s.flush()
		if !s.inFlush && s.at == streamClosing {
			s.settle()
		}
	case streamClosing, streamLingering:
		if mode != pipeline.CloseFlushed {
			s.closeNow(mode == pipeline.CloseReset, reason)
		}
	case streamFailing:
		if mode != pipeline.CloseFlushed {
			s.closeNow(mode == pipeline.CloseReset, s.rare.reason)
		}
	}
}

// closeLater has a connected channel that is not active yet close as soon as it is: what
// was written to it before leaves first.
func (s *stream) closeLater(reason error) {
	r := s.needRare()
	r.reason, r.closeEarly = reason, true
	if s.reg == nil {
		// It was refused by a handler of its listener: nobody else will start it.
		s.start(func(pipeline.Channel) error { return nil })
	}
}

func (c *streamCore) DoCloseWrite(p *eventloop.Promise) {
	s := (*stream)(c)
	switch {
	case s.at >= streamClosing:
		s.refuse(p)
	case s.out.done:
		p.Complete(nil)
	case s.outputShut:
		if p != nil {
			if first := s.rare.shutWrite; first == nil {
				s.rare.shutWrite = p
			} else {
				first.Then(func(err error) { p.Complete(err) })
			}
		}
	default:
		s.outputShut, s.needRare().shutWrite = true, p
		s.flushTo = s.out.queued
		s.flush()
		if !s.inFlush && s.at == streamOpen && !s.out.done {
			s.settle()
		}
	}
}
