package transport

// An Op may never end: a sendfile on a file system that hangs, a write to a disk that
// does not answer. A channel that has closed waits for its Ops, because the descriptor and
// the buffers are theirs until they return; but not for longer than CloseTimeout. Then it
// ends for its user, who has been promised that, and what the Op uses stays as it is.

// impatient reports whether a close for that reason has waited long enough already.
func impatient(reason error) bool { return reason == ErrCloseTimeout || reason == ErrDrainTimeout }

// awaitOps bounds the wait of a channel that has closed for its Ops; tell ends it for its
// user. The peer of one that resets is told at once: the close that would do it may be far
// away.
func (s *stream) awaitOps(reset bool, reason error, tell func()) {
	if reset {
		s.sock.disconnect()
	}
	r := s.needRare()
	r.abandon = tell
	if impatient(reason) {
		s.abandonOps()
		return
	}
	r.closeTimer = s.Loop().Schedule(s.cfg.CloseTimeout, s.abandonOps)
}

// abandonOps ends a channel that has closed for its user, although Ops of it are under way.
// It does nothing for any other channel.
func (s *stream) abandonOps() {
	r := s.rare
	if r == nil || r.abandon == nil {
		return
	}
	tell := r.abandon
	s.opsEnded()
	s.sock.disconnect()
	s.Logger().Warn("closed with an operation under way that does not end")
	defer tell()
	if s.receiving() {
		r.receiver.abandoned()
	}
}

// opsEnded takes note that nothing is waited for any more.
func (s *stream) opsEnded() {
	r := s.rare
	if r == nil {
		return
	}
	r.abandon = nil
	if r.closeTimer != nil {
		r.closeTimer.Stop()
		r.closeTimer = nil
	}
	if r.stateOwed && s.reg.Ops() == 0 {
		r.stateOwed = false
		s.releaseState()
	}
}
