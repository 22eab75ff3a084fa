package transport

import (
	"errors"
	"net"
	"syscall"
	"time"

	"github.com/runnel-io/runnel/internal/sys"
)

const (
	// confirmationsCheck is how often a channel looks for confirmations by itself while
	// its descriptor is out of the poller.
	confirmationsCheck = 100 * time.Millisecond
	// mostUnconfirmed is from how many calls on a channel looks for confirmations before it
	// makes another one: what the kernel keeps for each is limited (net.core.optmem_max).
	mostUnconfirmed = 16
)

// zeroCopier is a socket that can send without copying.
type zeroCopier interface {
	// enableZeroCopy comes once, before the first sendZeroCopy.
	enableZeroCopy() error
	// sendZeroCopy is write; the memory is the kernel's until confirmation says otherwise.
	sendZeroCopy(parts []sys.Iovec, slow, more bool) (int, error)
	// confirmation takes the next entry of the error queue, or fails with sys.ErrAgain.
	confirmation() (sys.Confirmation, error)
	// unacked returns how many bytes the peer has not acknowledged yet.
	unacked() int
}

func (s *fdSocket) enableZeroCopy() error { return sys.EnableZeroCopy(int(s.fd)) }

func (s *fdSocket) sendZeroCopy(parts []sys.Iovec, slow, more bool) (int, error) {
	return sys.SendZeroCopy(int(s.fd), parts, slow, more)
}

func (s *fdSocket) confirmation() (sys.Confirmation, error) { return sys.ReadConfirmation(int(s.fd)) }

func (s *fdSocket) unacked() int {
	n, err := sys.Unsent(int(s.fd))
	if err != nil {
		return 0
	}
	return n
}

// zc returns what has been sent by MSG_ZEROCOPY, nil for a channel that never has.
func (s *stream) zc() *zeroCopy {
	if s.rare == nil {
		return nil
	}
	return s.rare.zc
}

// zeroCopyFor decides whether a write of n bytes in so many parts goes by MSG_ZEROCOPY, as
// far as that is known without asking the socket. This is the only place that does.
func (s *stream) zeroCopyFor(n, parts int) zeroCopyUse {
	switch {
	case s.cfg.ZeroCopy == 0:
		return zeroCopyOff
	case n < s.cfg.ZeroCopy:
		return zeroCopyShort
	case n < parts*sys.PageSize():
		return zeroCopyScattered // a page is pinned for each, which costs more than to copy it
	}
	if z := s.zc(); z != nil {
		return z.able
	}
	return zeroCopyUntried
}

// useZeroCopy is zeroCopyFor for a write that is about to be made: it asks a socket that
// has not been asked. A reason that has to do with the socket stays the channel's.
func (s *stream) useZeroCopy(n, parts int) zeroCopyUse {
	use := s.zeroCopyFor(n, parts)
	if use != zeroCopyUntried {
		return use
	}
	if s.zc() == nil {
		s.needRare().zc = new(zeroCopy)
	}
	s.rare.zc.able = s.tryZeroCopy()
	return s.rare.zc.able
}

// tryZeroCopy has the socket prepare for MSG_ZEROCOPY and reports whether it can be used.
func (s *stream) tryZeroCopy() zeroCopyUse {
	zs, ok := s.sock.(zeroCopier)
	if _, unix := s.remote.load().(*net.UnixAddr); unix || !ok {
		return zeroCopyNotTCP
	}
	if zs.enableZeroCopy() != nil {
		return zeroCopyRefused // an older kernel, a sandbox, or somebody else has begun to use it
	}
	return zeroCopyUsed
}

// writeParts sends the parts, by MSG_ZEROCOPY if that is to be used, and says how they
// went.
func (s *stream) writeParts(parts []sys.Iovec, bytes int, slow, more bool) (n int, use zeroCopyUse, err error) {
	use = s.useZeroCopy(bytes, len(parts))
	if use == zeroCopyUsed {
		n, err = s.sock.(zeroCopier).sendZeroCopy(parts, slow, more)
		if !errors.Is(err, syscall.ENOBUFS) {
			return n, use, err
		}
		use = zeroCopyNoRoom
	}
	n, err = s.sock.write(parts, slow, more)
	return n, use, err
}

// readConfirmations takes back what the kernel has done with. What is released may belong
// to the user, whose function may do anything: look at s.at again afterwards.
func (s *stream) readConfirmations() {
	z := s.rare.zc
	z.collect(s.sock)
	for {
		b, charge, ok := z.take()
		if !ok {
			return
		}
		if !z.free {
			s.out.charge -= charge
		}
		b.Release()
	}
}

// collect empties the error queue of the socket.
func (z *zeroCopy) collect(sock socket) {
	zs := sock.(zeroCopier)
	for {
		c, err := zs.confirmation()
		if err != nil {
			return
		}
		z.read = true
		z.confirm(c)
	}
}

// unconfirmed reads what confirmations there are and returns how many calls still wait
// for theirs.
func (s *stream) unconfirmed() int {
	z := s.zc()
	if z.unconfirmed() > 0 {
		s.readConfirmations()
	}
	return z.unconfirmed()
}

// hearConfirmations is called when the socket reports an error. It reports false if
// there was something in the error queue, now or since the last report: the error may have
// been no more than that, and if it was more it is reported again.
func (s *stream) hearConfirmations() (broken bool) {
	z := s.zc()
	if z == nil {
		return true
	}
	s.unconfirmed()
	if !z.read {
		return true
	}
	z.read = false
	s.confirmed()
	return false
}

// confirmed goes on with what has waited for confirmations. It runs user code.
func (s *stream) confirmed() {
	switch s.at {
	case streamOpen, streamClosing:
		s.account()
		s.SetPending(s.out.charge)
	case streamLingering:
		if s.inputShut && s.zc().unconfirmed() == 0 {
			s.closeNow(false, s.rare.reason)
		}
	case streamNew, streamConnecting, streamFailing, streamClosed:
	}
}

// watchConfirmations has the channel look for confirmations from time to time: its
// descriptor has left the poller, because it reports a hangup that cannot be masked.
func (s *stream) watchConfirmations() {
	if z := s.zc(); z.unconfirmed() > 0 && z.watch == nil {
		z.watch = s.Loop().Schedule(confirmationsCheck, s.confirmationsDue)
	}
}

func (s *stream) confirmationsDue() {
	s.rare.zc.watch = nil
	if s.at == streamClosed {
		return
	}
	defer s.contain()
	s.entered = true
	if s.unconfirmed(); s.at != streamClosed {
		s.confirmed()
	}
	if s.at != streamClosed && s.hangup {
		s.watchConfirmations()
	}
	s.entered = false
}

// uncharge ends the accounting of what is not confirmed: the channel has closed.
func (s *stream) uncharge() {
	z := s.zc()
	if z == nil {
		return
	}
	if z.watch != nil {
		z.watch.Stop()
		z.watch = nil
	}
	if !z.free {
		z.free = true
		s.out.charge -= z.charge
	}
}
