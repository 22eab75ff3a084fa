package eventloop

import (
	"errors"
	"fmt"
	"time"
)

// nonePoller is a poller without descriptors: its loop runs tasks and timers, and what
// needs nothing of the system. It works everywhere.
type nonePoller struct {
	woken chan struct{} // holds one wake
	timer *time.Timer   // of poll; made when it is first needed
}

func newNonePoller() *nonePoller { return &nonePoller{woken: make(chan struct{}, 1)} }

func (p *nonePoller) arm(*Registration, Event) error {
	return fmt.Errorf("eventloop: poller without descriptors: %w", errors.ErrUnsupported)
}

func (p *nonePoller) disarm(*Registration) error { return nil }
func (p *nonePoller) submit(*Op) bool            { return false }

func (p *nonePoller) poll(_ []outcome, timeout time.Duration) (int, error) {
	if timeout == 0 {
		select {
		case <-p.woken:
		default:
		}
		return 0, nil
	}
	var end <-chan time.Time
	if timeout > 0 {
		if p.timer == nil {
			p.timer = time.NewTimer(timeout)
		} else {
			p.timer.Reset(timeout)
		}
		defer p.timer.Stop()
		end = p.timer.C
	}
	select {
	case <-p.woken:
	case <-end:
	}
	return 0, nil
}

func (p *nonePoller) wake() error {
	select {
	case p.woken <- struct{}{}:
	default: // the next poll finds the one that is there
	}
	return nil
}

func (p *nonePoller) close() error { return nil }
