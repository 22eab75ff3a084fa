//go:build !linux

package eventloop

import (
	"errors"
	"fmt"
	"runtime"
)

// newPoller returns the poller with the given name; "" and "auto" mean one without
// descriptors.
func newPoller(name string, _ bool, _ *Counters) (poller, error) {
	switch name {
	case "", "auto", "none":
		return newNonePoller(), nil
	case "epoll":
		return nil, fmt.Errorf("eventloop: no epoll on %s: %w", runtime.GOOS, errors.ErrUnsupported)
	default:
		return nil, fmt.Errorf("eventloop: unknown poller %q", name)
	}
}
