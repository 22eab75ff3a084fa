//go:build !linux

package eventloop

import (
	"errors"
	"fmt"
	"runtime"
)

// newPoller fails: only Manual loops run here.
func newPoller(name string, _ bool, _ *Counters) (poller, error) {
	switch name {
	case "", "auto", "epoll":
		return nil, fmt.Errorf("eventloop: no poller on %s: %w", runtime.GOOS, errors.ErrUnsupported)
	default:
		return nil, fmt.Errorf("eventloop: unknown poller %q", name)
	}
}
