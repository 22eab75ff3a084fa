package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
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
	// Config is that of accepted channels, and of those of datagrams.
	Config Config
	// Group runs the channels. nil means a default that all servers and dialers
	// share, which starts with its first channel and ends after its last. One that
	// chooses by hash has all TCP connections from one address on one loop.
	Group *eventloop.Group
	// Backlog bounds the connections that wait to be accepted. 0 means 4,096; the
	// system's limit applies (/proc/sys/net/core/somaxconn).
	Backlog int
	// ReusePort sets SO_REUSEPORT, so that several processes may share an address. A
	// process that ends resets the connections that wait for it: for a restart, hand
	// the listener over, see ListenerFiles.
	ReusePort bool
	// PerLoop gives each loop of the group an acceptor of its own on each TCP address,
	// with SO_REUSEPORT, and keeps what it accepts on that loop. The kernel chooses by
	// a hash of the addresses, so that a few connections may meet on one loop; it is
	// for many short ones. By default one loop accepts for all. Unix sockets have one
	// acceptor in any case. A UDP address gets a channel on each loop, to which the
	// datagrams of one peer always go; by default it is one channel on one loop.
	PerLoop bool
	// MaxConns is how many accepted channels there may be at a time, over all
	// listeners. At the limit nothing is accepted: who comes then waits in the kernel's
	// queue, up to Backlog, until a channel has ended. 0 means no limit; negative is an
	// error.
	MaxConns int
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

// Draining is the user event of a channel whose server is shutting down. The channel
// is closed behind it, as soon as it is idle, see [Server.Shutdown]: a handler need not
// do anything. It may write a last word, or send answers from now on that tell the
// peer to come back elsewhere.
type Draining struct{}

// ListenAndServe listens on addr and serves until ctx ends; then it drains for at
// most DrainTimeout (see Shutdown) and returns nil; the Server is spent then. It
// returns an *OpError if it cannot listen, ErrServerClosed at the beginning of a
// Shutdown, and what closed the listener if something else did.
//
// For several addresses it may be called several times, as may Listen; a drain is
// that of all of them.
//
// network is "tcp", "tcp4", "tcp6", "unix" or "local", or for datagrams "udp", "udp4",
// "udp6" or "unixgram", see Listen; for IP addr is host:port, where a port of 0 picks one, for
// Unix a path of up to 107 bytes, @name for an abstract one, or nothing, for an
// abstract name that the kernel picks. The file of a Unix socket to which nobody
// listens any more is replaced, nothing else is; it is removed with the listener. For
// local addr is any name in the process; without one it gets one.
func (s *Server) ListenAndServe(ctx context.Context, network, addr string) error {
	l, err := s.Listen(ctx, network, addr)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-l.Closed().Done():
		switch {
		case ctx.Err() != nil: // another address has begun the drain
		case errors.Is(l.CloseReason(), ErrServerClosed):
			return ErrServerClosed
		default:
			return l.CloseReason()
		}
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
// it stops this listener and nothing else. With PerLoop it is the first of several,
// and to close it stops them all. ctx bounds only the look-up of a host's name. It
// must not be called on a loop.
//
// Datagrams have no connections to accept. On their networks Listen binds a socket and
// returns its channel, whose handlers Init adds and whose messages are *Datagram, in
// both directions: each has the address of its peer. Such a channel sends to whom it
// wants and needs nobody to have sent to it before; ListenerInit and Backlog are not
// used, MaxConns does not count it. [Connect] gives it one peer, for a time. Netty: a
// DatagramChannel and Bootstrap.bind.
func (s *Server) Listen(ctx context.Context, network, addr string) (pipeline.Channel, error) {
	if eventloop.WouldDeadlock() {
		return nil, eventloop.ErrWouldDeadlock
	}
	s.setUp()
	if s.err != nil {
		return nil, s.err
	}
	if network == "local" {
		return s.s.listenLocal(addr, s.Backlog)
	}
	local, err := resolveListen(ctx, network, addr)
	if err != nil {
		return nil, &OpError{Op: "listen", Err: err}
	}
	if s.s.closed() {
		return nil, ErrServerClosed
	}
	if isDatagram(network) {
		return s.listenDatagram(network, local)
	}
	if _, tcp := local.(*net.TCPAddr); tcp && s.PerLoop {
		return s.listenPerLoop(network, local)
	}
	fd, bound, file, err := s.bind(network, local)
	if err != nil {
		return nil, &OpError{Op: "listen", Addr: local, Err: err}
	}
	g, err := s.s.acquire()
	if err != nil {
		file.remove()
		_ = sys.Close(fd)
		return nil, &OpError{Op: "listen", Addr: bound, Err: err}
	}
	l := newListener(s.s, g.Next(), fd, bound)
	l.file = file
	return s.s.listen(l)
}

// listenPerLoop has every loop listen on one address. The first listener is returned;
// when it closes the others do.
func (s *Server) listenPerLoop(network string, local net.Addr) (pipeline.Channel, error) {
	g, err := s.s.acquire()
	if err != nil {
		return nil, &OpError{Op: "listen", Addr: local, Err: err}
	}
	defer g.Release() // each listener holds it by itself
	var first *listener
	for _, loop := range g.Loops() {
		fd, bound, _, err := s.bind(network, local)
		if err == nil {
			local = bound // the port that was picked is for all
			g.Hold()
			l := newListener(s.s, loop, fd, bound)
			l.perLoop = true
			_, err = s.s.listen(l)
			switch {
			case err != nil:
			case first == nil:
				first = l
			default:
				first.Closed().Then(func(error) { l.Abort(pipeline.CloseNow, first.CloseReason()) })
			}
		} else {
			err = &OpError{Op: "listen", Addr: local, Err: err}
		}
		if err != nil {
			if first != nil {
				first.Close()
			}
			return nil, err
		}
	}
	return first, nil
}

// setUp makes the running server from the fields.
func (s *Server) setUp() {
	s.once.Do(func() {
		cfg, err := s.Config.check()
		if err != nil {
			s.err = err
			return
		}
		if s.MaxConns < 0 {
			s.err = fmt.Errorf("transport: MaxConns %d is negative", s.MaxConns)
			return
		}
		s.s = &server{
			maxConns:     s.MaxConns,
			spare:        -1,
			cfg:          cfg,
			init:         s.Init,
			listenerInit: s.ListenerInit,
			group:        s.Group,
			deaf:         make(chan struct{}),
			empty:        make(chan struct{}),
		}
		s.s.start = s.s.initChannel
	})
}

// bind makes a listening socket.
func (s *Server) bind(network string, local net.Addr) (int, net.Addr, *socketFile, error) {
	fd, err := sys.Socket(local)
	if err != nil {
		return -1, nil, nil, err
	}
	bound, file, err := s.listenOn(fd, network, local)
	if err != nil {
		file.remove()
		_ = sys.Close(fd)
		return -1, nil, nil, err
	}
	return fd, bound, file, nil
}

// listenOn binds fd and has it listen. It returns the address that it got.
func (s *Server) listenOn(fd int, network string, local net.Addr) (net.Addr, *socketFile, error) {
	if tcp, ok := local.(*net.TCPAddr); ok {
		if err := sys.SetReuseAddr(fd, true); err != nil {
			return nil, nil, err
		}
		if s.ReusePort || s.PerLoop {
			if err := sys.SetReusePort(fd, true); err != nil {
				return nil, nil, err
			}
		}
		if len(tcp.IP) == net.IPv6len {
			// As the net package does: "tcp" without a host takes both families.
			if err := sys.SetIPv6Only(fd, network == "tcp6" || !tcp.IP.IsUnspecified()); err != nil {
				return nil, nil, err
			}
		}
	}
	if err := s.Config.prepareListener(fd, local); err != nil {
		return nil, nil, err
	}
	backlog := s.Backlog
	if backlog <= 0 {
		backlog = defaultBacklog
	}
	file, err := bindSocket(fd, local, func() error { return sys.Listen(fd, backlog) })
	if err != nil {
		return nil, nil, err
	}
	bound, err := sys.LocalAddr(fd, local.Network())
	return bound, file, err
}

// Shutdown drains the server: it stops accepting, tells the channels by the user
// event Draining and closes each as soon as it is idle, which lets what was written
// leave. When ctx ends it resets those that are still there and returns an error that
// wraps ErrDrainTimeout and says how many. Later Listens fail with ErrServerClosed. It
// must not be called on a loop.
//
// A channel is idle when what its peer had sent before has been read and handled, and
// nothing is under way that a handler has announced by Begin. One on which nothing has
// been read yet gets a second for it: its peer has just come, with a request on the
// way. What a peer sends later is not read; it sees the end of the connection, not a
// reset, and has to ask again elsewhere.
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

// resolveListen finds the address to listen on.
func resolveListen(ctx context.Context, network, addr string) (net.Addr, error) {
	switch network {
	case "unix", "unixgram":
		return &net.UnixAddr{Name: addr, Net: network}, nil
	case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6":
	default:
		return nil, net.UnknownNetworkError(network)
	}
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if host == "" {
		port, err := net.DefaultResolver.LookupPort(ctx, network, service)
		if err != nil {
			return nil, err
		}
		all := netip.IPv6Unspecified()
		if strings.HasSuffix(network, "4") || !haveIPv6() {
			all = netip.IPv4Unspecified()
		}
		return ipAddr(network, all, port), nil
	}
	addrs, err := resolve(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	// As the net package does: IPv4 first, if the name has it.
	for _, a := range addrs {
		if ipOf(a).To4() != nil {
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
