package transport

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
	"go.uber.org/zap"
)

// server is a Server at work.
type server struct {
	cfg          Config
	init         func(pipeline.Channel) error
	listenerInit func(pipeline.Channel) error
	start        func(pipeline.Channel) error // initChannel, bound once
	group        *eventloop.Group             // nil: the shared default; each channel holds it
	maxConns     int                          // 0: no limit

	mu        sync.Mutex
	closing   bool
	hurry     bool // the drain is over: nothing more is served
	listeners []*listener
	bound     uint64  // sockets that the server has ever listened on or got datagrams by
	first     *stream // accepted channels, until their end; linked by prev and next
	streams   int     // how many
	dgrams    map[*dgram]struct{}
	locals    locals
	places    int           // taken, by channels and by accepts under way; not counted without a limit
	deaf      chan struct{} // closed when closing and no listener is left
	empty     chan struct{} // closed when closing and nothing is left

	spareMu sync.Mutex
	spare   int // a descriptor to give up for a moment, see shed; -1 if there is none
}

func (s *server) logger() *zap.Logger {
	if s.cfg.Logger == nil {
		return zap.NewNop()
	}
	return s.cfg.Logger
}

// closed reports whether the server is closing.
func (s *server) closed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// addListener takes note of a listener. It reports false when the server is closing.
func (s *server) addListener(l *listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	if len(s.listeners) == 0 {
		s.keepSpare()
	}
	s.bound++
	l.nth = s.bound
	s.listeners = append(s.listeners, l)
	return true
}

// allListeners returns the listeners that have not ended.
func (s *server) allListeners() []*listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.listeners)
}

// add takes note of an accepted channel. It reports false when a drain has come to its
// end.
func (s *server) add(ch *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hurry {
		return false
	}
	s.link(ch)
	return true
}

// link adds ch to the list. s.mu is held.
func (s *server) link(ch *stream) {
	if ch.next = s.first; ch.next != nil {
		ch.next.prev = ch
	}
	s.first = ch
	s.streams++
}

// ended forgets an accepted channel.
func (s *server) ended(ch *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ch.prev != nil {
		ch.prev.next = ch.next
	} else {
		s.first = ch.next
	}
	if ch.next != nil {
		ch.next.prev = ch.prev
	}
	ch.prev, ch.next = nil, nil
	s.streams--
	s.freePlace() // an adopted channel has one, too: see addAdopted
	s.checkEmpty()
}

// listenerEnded forgets a listener.
func (s *server) listenerEnded(l *listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners = slices.DeleteFunc(s.listeners, func(o *listener) bool { return o == l })
	if len(s.listeners) == 0 {
		s.dropSpare()
	}
	s.checkEmpty()
}

// checkEmpty tells the drain when nothing is left. s.mu is held.
func (s *server) checkEmpty() {
	if !s.closing || len(s.listeners) > 0 || len(s.locals.listeners) > 0 {
		return
	}
	select {
	case <-s.deaf:
	default:
		close(s.deaf)
	}
	if s.streams == 0 && len(s.dgrams) == 0 && len(s.locals.channels) == 0 {
		close(s.empty)
	}
}

// acquire returns the group for a new channel, held if it is the default.
func (s *server) acquire() (*eventloop.Group, error) {
	if s.group != nil {
		return s.group, nil
	}
	return eventloop.Acquire()
}

// listen starts a listener, whose group is held for it. If that fails it is gone.
func (s *server) listen(l *listener) (pipeline.Channel, error) {
	lost := func() {
		l.removeFile()
		l.sock.close()
		l.Loop().Group().Release()
	}
	if !s.addListener(l) {
		lost()
		return nil, ErrServerClosed
	}
	started := make(chan error, 1)
	if err := l.Loop().Execute(func() {
		err := pipeline.ErrGoexit // unless start returns
		defer func() { started <- err }()
		err = l.start(s.listenerInit)
	}); err != nil {
		if l.Open() { // else a Shutdown was quicker than the end of the loop
			s.listenerEnded(l)
			lost()
		}
		return nil, &OpError{Op: "listen", Addr: l.local.load(), Err: err}
	}
	if err := <-started; err != nil {
		return nil, &OpError{Op: "listen", Addr: l.local.load(), Err: err}
	}
	return l, nil
}

// accepted makes a channel of an accepted socket, which it takes over together with
// the place reserved for it. It runs on the listener's loop; the channel belongs to
// another one, perhaps.
func (s *server) accepted(l *listener, fd int, remote sys.Peer) *stream {
	loop := l.Loop()
	if l.perLoop {
		loop.Group().Hold()
	} else {
		g, err := s.acquire()
		if err != nil {
			_ = sys.Close(fd)
			s.unreserve()
			return nil
		}
		loop = nextLoop(g, remote)
	}
	if err := s.cfg.apply(fd, l.local.load()); err != nil {
		// The peer may be gone already.
		l.Logger().Debug("socket options", zap.Error(err))
	}
	ch := newStream(&s.cfg, loop, l, fd)
	ch.remote.init(remote)
	l.localOf(ch, fd)
	ch.srv = s
	if !s.add(ch) {
		_ = sys.Close(fd)
		s.unreserve()
		loop.Group().Release()
		return nil
	}
	return ch
}

// nextLoop returns a loop of g for a connection from remote: for a group that chooses
// by hash, the same for all connections from one address.
func nextLoop(g *eventloop.Group, remote sys.Peer) *eventloop.Loop {
	hash := uint64(14695981039346656037) // FNV-1a
	add := func(b byte) { hash = (hash ^ uint64(b)) * 1099511628211 }
	if remote.V4.Valid() {
		for _, b := range remote.V4.IP() {
			add(b)
		}
	} else if tcp, ok := remote.Other.(*net.TCPAddr); ok {
		for _, b := range tcp.IP {
			add(b)
		}
	} else {
		return g.Next() // the ends of Unix sockets have no names
	}
	return g.NextFor(hash)
}

// adopt is the last handler of a listener: it starts accepted channels.
func (s *server) adopt(_ *pipeline.Context, ch *stream) error {
	ch.passedOn = true
	// On the same loop, too, it starts later: what its handlers do is none of the
	// listener's business.
	err := ch.Loop().Submit((*startTask)(ch))
	if err != nil && ch.Open() {
		// Its loop has ended: nobody else has the channel.
		ch.fd.close()
		s.ended(ch)
		ch.Loop().Group().Release()
	}
	return err
}

// handlerBroke reports whether a channel closes because one of its handlers has
// panicked, or ended its goroutine.
func handlerBroke(reason error) bool {
	var p *pipeline.PanicError
	return errors.As(reason, &p) || errors.Is(reason, pipeline.ErrGoexit)
}

// resetHeldBack ends the channels that l has accepted and its handlers have not passed
// on. One of them has broken, and nobody knows whether it still has them: their peers
// would wait for somebody who never comes. It runs on the loop of l.
func (s *server) resetHeldBack(l *listener, reason error) {
	for _, ch := range s.open() {
		if ch.Parent() == pipeline.Channel(l) && !ch.passedOn {
			ch.Abort(pipeline.CloseReset, reason)
		}
	}
}

// startTask is an accepted channel as the task that starts it.
type startTask stream

func (t *startTask) Run() { (*stream)(t).start(t.srv.start) }

// initChannel is the server's Init for an accepted channel.
func (s *server) initChannel(ch pipeline.Channel) error {
	if s.init == nil {
		return nil
	}
	err := s.init(ch)
	if err != nil {
		s.logger().Error("Init failed", zap.Stringer("channel", ch.(fmt.Stringer)), zap.Error(err))
	}
	return err
}

// open returns the accepted channels that have not ended.
func (s *server) open() []*stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*stream, 0, s.streams)
	for ch := s.first; ch != nil; ch = ch.next {
		all = append(all, ch)
	}
	return all
}
