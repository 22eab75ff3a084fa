package eventloop

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/runnel-io/runnel/internal/sys"
)

// newPoller returns the poller with the given name; "" and "auto" mean the best
// there is. A fine one waits to the microsecond, if it can.
func newPoller(name string, fine bool, c *Counters) (poller, error) {
	switch name {
	case "", "auto", "epoll":
		p, err := newEpoll(c)
		if err != nil {
			return nil, err
		}
		p.fine = fine && sys.Features().EpollPwait2
		return p, nil
	case "none":
		return newNonePoller(), nil
	default:
		return nil, fmt.Errorf("eventloop: unknown poller %q", name)
	}
}

// The values of Event are those of epoll; an overflow here means that they are not.
const (
	_ = -(uint(EventRead) ^ sys.EpollIn)
	_ = -(uint(EventWrite) ^ sys.EpollOut)
	_ = -(uint(EventError) ^ sys.EpollErr)
	_ = -(uint(EventHangup) ^ sys.EpollHup)
	_ = -(uint(EventReadHangup) ^ sys.EpollRdHup)
)

// epoll is the poller on level-triggered epoll, which knows readiness only.
type epoll struct {
	counters *Counters
	epfd     int
	eventfd  int
	fine     bool // wait to the microsecond
	events   []sys.EpollEvent
}

func newEpoll(c *Counters) (*epoll, error) {
	epfd, err := sys.EpollCreate()
	if err != nil {
		return nil, err
	}
	eventfd, err := sys.Eventfd()
	if err != nil {
		return nil, errors.Join(err, sys.Close(epfd))
	}
	// Edge-triggered, each write is reported once and never needs to be read. The
	// counter of the eventfd would overflow after 2^64 wakeups.
	if err := sys.EpollAdd(epfd, eventfd, sys.EpollIn|sys.EpollET, keyWake); err != nil {
		return nil, errors.Join(err, sys.Close(epfd), sys.Close(eventfd))
	}
	return &epoll{counters: c, epfd: epfd, eventfd: eventfd}, nil
}

func (p *epoll) arm(r *Registration, ev Event) error {
	p.counters.EpollCtls++
	if r.armed {
		return sys.EpollMod(p.epfd, int(r.fd), uint32(ev), r.key())
	}
	return sys.EpollAdd(p.epfd, int(r.fd), uint32(ev), r.key())
}

func (p *epoll) disarm(r *Registration) error {
	p.counters.EpollCtls++
	return sys.EpollDel(p.epfd, int(r.fd))
}

func (p *epoll) submit(*Op) bool { return false }

func (p *epoll) poll(out []outcome, timeout time.Duration) (int, error) {
	if len(p.events) != len(out) {
		p.events = make([]sys.EpollEvent, len(out))
	}
	p.counters.EpollWaits++
	var n int
	var err error
	if p.fine {
		n, err = sys.EpollWaitFor(p.epfd, p.events, timeout)
	} else {
		n, err = sys.EpollWait(p.epfd, p.events, milliseconds(timeout))
	}
	if err != nil {
		return 0, err
	}
	filled := 0
	for i := range p.events[:n] {
		e := &p.events[i]
		if key := e.Data(); key != keyWake {
			out[filled] = outcome{key: key, ev: Event(e.Events)}
			filled++
		}
	}
	return filled, nil
}

// milliseconds rounds a timeout up to what epoll_wait takes: a timer that came up
// early would find nothing to do.
func milliseconds(d time.Duration) int {
	if d < 0 {
		return -1
	}
	const ms = int64(time.Millisecond)
	n := int64(d) / ms
	if int64(d)%ms != 0 {
		n++
	}
	return int(min(n, math.MaxInt32))
}

func (p *epoll) wake() error { return sys.EventfdWrite(p.eventfd) }

func (p *epoll) close() error {
	return errors.Join(sys.Close(p.epfd), sys.Close(p.eventfd))
}
