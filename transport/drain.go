package transport

import (
	"context"
	"fmt"
	"slices"

	"github.com/runnel-io/runnel/pipeline"
)

// shutdown drains.
func (s *server) shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.closing {
		s.closing = true
		s.checkEmpty()
	}
	listeners, open := slices.Clone(s.listeners), s.list()
	s.mu.Unlock()

	for _, l := range listeners {
		l.Abort(pipeline.CloseNow, ErrServerClosed)
	}
	for _, ch := range open {
		ch.Pipeline().FireEvent(Draining{})
		ch.Close()
	}
	select {
	case <-s.empty:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	left := s.list()
	s.mu.Unlock()
	busy := 0
	for _, ch := range left {
		if ch.Open() { // the others are on their way out
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
