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
	if s.at == streamOpen && s.reading() {
		// What has come by now is answered.
		s.HandleIO(eventloop.EventRead)
	}
	if s.at == streamOpen && !s.recv.heard() && s.reading() {
		s.needRare().grace = s.Loop().Schedule(drainGrace, s.graceOver)
		return
	}
	s.CloseIdle()
}

// graceOver goes on with a drain that has waited for the first words of a peer.
func (s *stream) graceOver() {
	if r := s.rare; r != nil && r.grace != nil {
		r.grace.Stop()
		r.grace = nil
		s.CloseIdle()
	}
}
