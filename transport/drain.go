package transport

import (
	"context"
	"fmt"
	"time"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// drainGrace is how long a channel that has not heard anything from its peer is kept
// in a drain.
const drainGrace = time.Second

// shutdown drains.
func (s *server) shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.closing {
		s.closing = true
		s.checkEmpty()
	}
	s.mu.Unlock()
	for _, l := range s.allListeners() {
		l.Abort(pipeline.CloseNow, ErrServerClosed)
	}
	for _, l := range s.localListeners() {
		l.Abort(pipeline.CloseNow, ErrServerClosed)
	}
	// What they accept until their end is served like the others.
	select {
	case <-s.deaf:
	case <-ctx.Done():
	}
	for _, ch := range s.open() {
		_ = ch.Loop().Submit((*drainTask)(ch)) // a loop that has ended has closed it
	}
	for _, ch := range s.openDgrams() {
		_ = ch.Loop().Submit((*dgramDrain)(ch))
	}
	for _, ch := range s.openLocals() {
		_ = ch.Loop().Submit((*localDrain)(ch))
	}
	select {
	case <-s.empty:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	s.hurry = true
	s.mu.Unlock()
	busy := 0
	for _, ch := range s.open() {
		if ch.Open() { // the others are on their way out
			busy++
		}
		ch.Abort(pipeline.CloseReset, ErrDrainTimeout) // also of those that wait for an Op
	}
	for _, ch := range s.openDgrams() {
		if ch.Open() {
			busy++
			ch.Abort(pipeline.CloseNow, ErrDrainTimeout)
		}
	}
	for _, ch := range s.openLocals() {
		if ch.Open() {
			busy++
			ch.Abort(pipeline.CloseReset, ErrDrainTimeout)
		}
	}
	<-s.empty
	if busy == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d channels", ErrDrainTimeout, busy)
}

// drainTask is a channel as the task that begins to drain it.
type drainTask stream

func (t *drainTask) Run() {
	s := (*stream)(t)
	s.Pipeline().FireEvent(Draining{})
	// What has come by now is answered, also by a channel that is not reading for the
	// moment because it has too much to send, and what is too much for one turn.
	if s.listening() {
		if n := s.sock.unread(); n > 0 {
			s.needRare().unheard = n
		}
	}
	if s.reading() {
		s.HandleIO(eventloop.EventRead)
	}
	switch {
	case !s.listening():
	case !s.recv.heard() && s.reading():
		s.needRare().grace = s.Loop().Schedule(drainGrace, s.graceOver)
		return
	case s.rare != nil && s.rare.unheard > 0:
		s.waitForUnheard()
		return
	}
	s.CloseIdle()
}

// listening reports whether the channel reads on its own, now or when it can.
func (s *stream) listening() bool {
	return s.at == streamOpen && s.wantRead && !s.inputShut && !s.relayed && !s.receiving()
}

// waitForUnheard has a drain wait for what the peer had sent when it began: as long as the
// channel makes progress, in whatever direction, as a close does.
func (s *stream) waitForUnheard() {
	r := s.rare
	r.closeSent = s.out.sent
	r.grace = s.Loop().Schedule(s.cfg.CloseTimeout, func() {
		if s.at == streamOpen && s.listening() && s.out.sent != r.closeSent {
			s.waitForUnheard()
		} else {
			s.graceOver()
		}
	})
}

// heardInDrain takes note that n bytes have been read. A drain that waits for the peer
// goes on when it has heard what it has waited for.
func (s *stream) heardInDrain(n int) {
	r := s.rare
	r.unheard = max(0, r.unheard-n)
	switch {
	case r.grace == nil: // it has not begun, or not to wait
	case r.unheard > 0 && s.listening():
		r.grace.Stop()
		s.waitForUnheard()
	default:
		s.graceOver()
	}
}

// graceOver goes on with a drain that has waited for the peer.
func (s *stream) graceOver() {
	if r := s.rare; r != nil && r.grace != nil {
		r.grace.Stop()
		r.grace = nil
		s.CloseIdle()
	}
}
