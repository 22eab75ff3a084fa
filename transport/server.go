package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
	"go.uber.org/zap"
)

// Server accepts connections and runs each on a loop of its group. Its zero value
// works. Netty: ServerBootstrap.
//
// The fields are read by the first Listen or ListenAndServe; later changes have no
// effect.
//
// Concurrency: the methods are safe from any goroutine.
type Server struct {
	// Init adds the handlers of an accepted channel, on its loop, before any event.
	// An error closes the channel and is logged. nil adds none: what is read is
	// dropped.
	Init func(ch pipeline.Channel) error
	// ListenerInit adds handlers to the listener's own pipeline, in which accepted
	// channels are messages: a handler may close one instead of passing it on.
	ListenerInit func(ch pipeline.Channel) error
	// Config is that of accepted channels.
	Config Config
	// Group runs the channels. nil means a default that all servers and dialers
	// share, which starts with its first channel and ends after its last.
	Group *eventloop.Group
	// Backlog bounds the connections that wait to be accepted. 0 means 4,096; the
	// system's limit applies (/proc/sys/net/core/somaxconn).
	Backlog int
	// ReusePort sets SO_REUSEPORT, so that several processes may share an address.
	ReusePort bool
	// DrainTimeout bounds the drain after the end of ListenAndServe's context. 0
	// means 5 s; negative means none: channels are closed at once.
	DrainTimeout time.Duration

	once sync.Once
	s    *server
	err  error // of the configuration
}

const (
	defaultBacklog      = 4096
	defaultDrainTimeout = 5 * time.Second
)

// Draining is the user event of a channel whose server is shutting down; the
// channel is closed right after it, which lets what was written leave.
type Draining struct{}

// ListenAndServe listens on addr and serves until ctx ends; then it drains for at
// most DrainTimeout (see Shutdown) and returns nil; the Server is spent then. It returns an *OpError if it
// cannot listen, and what closed the listener if something else did.
//
// network is "tcp", "tcp4", "tcp6" or "unix"; for TCP addr is host:port, where a
// port of 0 picks one, for Unix a path, or @name for an abstract one.
func (s *Server) ListenAndServe(ctx context.Context, network, addr string) error {
	l, err := s.Listen(ctx, network, addr)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-l.Closed().Done():
		if errors.Is(l.CloseReason(), ErrServerClosed) {
			return ErrServerClosed
		}
		return l.CloseReason()
	}
	timeout := s.DrainTimeout
	if timeout == 0 {
		timeout = defaultDrainTimeout
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(timeout, 0))
	defer cancel()
	if err := s.Shutdown(drain); err != nil {
		s.s.logger().Warn("drain incomplete", zap.Error(err))
	}
	return nil
}

// Listen listens on addr, see ListenAndServe, and returns the listener's channel,
// which is active and accepts; its LocalAddr has the port that was picked. To close
// it stops this listener and nothing else. ctx bounds only the look-up of a host's name. It must
// not be called on a loop.
func (s *Server) Listen(ctx context.Context, network, addr string) (pipeline.Channel, error) {
	if eventloop.WouldDeadlock() {
		return nil, eventloop.ErrWouldDeadlock
	}
	s.setUp()
	if s.err != nil {
		return nil, s.err
	}
	local, err := resolveListen(ctx, network, addr)
	if err != nil {
		return nil, &OpError{Op: "listen", Err: err}
	}
	if s.s.closed() {
		return nil, ErrServerClosed
	}
	fd, bound, err := s.bind(network, local)
	if err != nil {
		return nil, &OpError{Op: "listen", Addr: local, Err: err}
	}
	return s.s.listen(fd, bound)
}

// setUp makes the running server from the fields.
func (s *Server) setUp() {
	s.once.Do(func() {
		cfg, err := s.Config.check()
		if err != nil {
			s.err = err
			return
		}
		s.s = &server{
			cfg:          cfg,
			init:         s.Init,
			listenerInit: s.ListenerInit,
			group:        s.Group,
			empty:        make(chan struct{}),
		}
		s.s.start = s.s.initChannel
	})
}

// bind makes a listening socket.
func (s *Server) bind(network string, local net.Addr) (int, net.Addr, error) {
	fd, err := sys.Socket(local)
	if err != nil {
		return -1, nil, err
	}
	bound, err := s.listenOn(fd, network, local)
	if err != nil {
		_ = sys.Close(fd)
		return -1, nil, err
	}
	return fd, bound, nil
}

// listenOn binds fd and has it listen. It returns the address that it got.
func (s *Server) listenOn(fd int, network string, local net.Addr) (net.Addr, error) {
	if tcp, ok := local.(*net.TCPAddr); ok {
		if err := sys.SetReuseAddr(fd, true); err != nil {
			return nil, err
		}
		if s.ReusePort {
			if err := sys.SetReusePort(fd, true); err != nil {
				return nil, err
			}
		}
		if len(tcp.IP) == net.IPv6len {
			// As the net package does: "tcp" without a host takes both families.
			if err := sys.SetIPv6Only(fd, network == "tcp6" || !tcp.IP.IsUnspecified()); err != nil {
				return nil, err
			}
		}
	}
	if s.Config.RecvBuffer > 0 {
		// Inherited by what is accepted: set there it is too late for the window to be
		// scaled for it, tcp(7).
		if err := sys.SetRecvBuffer(fd, s.Config.RecvBuffer); err != nil {
			return nil, err
		}
	}
	if err := sys.Bind(fd, local); err != nil {
		return nil, err
	}
	backlog := s.Backlog
	if backlog <= 0 {
		backlog = defaultBacklog
	}
	if err := sys.Listen(fd, backlog); err != nil {
		return nil, err
	}
	return sys.LocalAddr(fd, local.Network())
}

// Shutdown drains the server: it stops accepting, tells the channels by the user
// event Draining and closes them, which lets what was written leave. When ctx ends
// it closes those that are still busy and returns an error that wraps
// ErrDrainTimeout and says how many. Later Listens fail with ErrServerClosed. It
// must not be called on a loop.
func (s *Server) Shutdown(ctx context.Context) error {
	if eventloop.WouldDeadlock() {
		return eventloop.ErrWouldDeadlock
	}
	s.setUp()
	if s.err != nil {
		return s.err
	}
	return s.s.shutdown(ctx)
}

// server is a Server at work.
type server struct {
	cfg          Config
	init         func(pipeline.Channel) error
	listenerInit func(pipeline.Channel) error
	start        func(pipeline.Channel) error // initChannel, bound once
	group        *eventloop.Group             // nil: the shared default; each channel holds it

	mu        sync.Mutex
	closing   bool
	listeners []*listener
	first     *stream       // accepted channels, until their end; linked by prev and next
	streams   int           // how many
	empty     chan struct{} // closed when closing and nothing is left
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
	s.listeners = append(s.listeners, l)
	return true
}

// add takes note of an accepted channel. It reports false when the server is
// closing.
func (s *server) add(ch *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	if ch.next = s.first; ch.next != nil {
		ch.next.prev = ch
	}
	s.first = ch
	s.streams++
	return true
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
	s.checkEmpty()
}

// listenerEnded forgets a listener.
func (s *server) listenerEnded(l *listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners = slices.DeleteFunc(s.listeners, func(o *listener) bool { return o == l })
	s.checkEmpty()
}

// checkEmpty tells the drain when nothing is left. s.mu is held.
func (s *server) checkEmpty() {
	if s.closing && s.streams == 0 && len(s.listeners) == 0 {
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

// listen starts a listener on fd, which it takes over.
func (s *server) listen(fd int, local net.Addr) (pipeline.Channel, error) {
	g, err := s.acquire()
	if err != nil {
		unlink(local)
		_ = sys.Close(fd)
		return nil, &OpError{Op: "listen", Addr: local, Err: err}
	}
	l := newListener(s, g.Next(), fd, local)
	if !s.addListener(l) {
		unlink(local)
		_ = sys.Close(fd)
		g.Release()
		return nil, ErrServerClosed
	}
	started := make(chan error, 1)
	if err := l.Loop().Execute(func() {
		err := pipeline.ErrGoexit // unless start returns
		defer func() { started <- err }()
		err = l.start(s.listenerInit)
	}); err != nil {
		if l.Open() { // else a Shutdown was quicker than the end of the loop
			unlink(local)
			_ = sys.Close(fd)
			s.listenerEnded(l)
			g.Release()
		}
		return nil, &OpError{Op: "listen", Addr: local, Err: err}
	}
	if err := <-started; err != nil {
		return nil, &OpError{Op: "listen", Addr: local, Err: err}
	}
	return l, nil
}

// accepted makes a channel of an accepted socket, which it takes over. It runs on
// the listener's loop; the channel belongs to another one, perhaps.
func (s *server) accepted(l *listener, fd int, remote net.Addr) *stream {
	g, err := s.acquire()
	if err != nil {
		_ = sys.Close(fd)
		return nil
	}
	if err := s.cfg.apply(fd, l.local.load()); err != nil {
		// The peer may be gone already.
		l.Logger().Debug("socket options", zap.Error(err))
	}
	ch := newStream(&s.cfg, g.Next(), l, fd)
	ch.remote.store(remote)
	l.localOf(ch, fd)
	ch.srv = s
	if !s.add(ch) {
		_ = sys.Close(fd)
		g.Release()
		return nil
	}
	return ch
}

// adopt is the last handler of a listener: it starts accepted channels.
func (s *server) adopt(_ *pipeline.Context, ch *stream) error {
	// On the same loop, too, it starts later: what its handlers do is none of the
	// listener's business.
	err := ch.Loop().Submit((*startTask)(ch))
	if err != nil && ch.Open() {
		// Its loop has ended: nobody else has the channel.
		_ = sys.Close(ch.fd.fd)
		s.ended(ch)
		ch.Loop().Group().Release()
	}
	return err
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
		s.logger().Error("Init failed", zap.Stringer("channel", ch.(*stream)), zap.Error(err))
	}
	return err
}

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

// list returns the accepted channels. s.mu is held.
func (s *server) list() []*stream {
	all := make([]*stream, 0, s.streams)
	for ch := s.first; ch != nil; ch = ch.next {
		all = append(all, ch)
	}
	return all
}

// resolveListen finds the address to listen on.
func resolveListen(ctx context.Context, network, addr string) (net.Addr, error) {
	switch network {
	case "unix":
		return &net.UnixAddr{Name: addr, Net: "unix"}, nil
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, net.UnknownNetworkError(network)
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if host == "" {
		a, err := net.ResolveTCPAddr(network, addr)
		if err != nil {
			return nil, err
		}
		a.IP = net.IPv6unspecified
		if network == "tcp4" || !haveIPv6() {
			a.IP = net.IPv4zero.To4()
		}
		return a, nil
	}
	addrs, err := resolve(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	// As the net package does: IPv4 first, if the name has it.
	for _, a := range addrs {
		if a.(*net.TCPAddr).IP.To4() != nil {
			return a, nil
		}
	}
	return addrs[0], nil
}

// haveIPv6 reports whether the system makes IPv6 sockets.
func haveIPv6() bool {
	fd, err := sys.Socket(&net.TCPAddr{IP: net.IPv6loopback})
	if err != nil {
		return false
	}
	_ = sys.Close(fd)
	_, err = os.Stat("/proc/net/if_inet6")
	return err == nil
}
