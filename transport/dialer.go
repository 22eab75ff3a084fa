package transport

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// Dialer makes connections. Its zero value works. Netty: Bootstrap.
//
// The fields must not change while a method runs.
//
// Concurrency: the methods are safe from any goroutine, see there.
type Dialer struct {
	// Init adds the channel's handlers, on its loop, before any event. An error
	// closes the channel and is returned by Dial.
	Init func(ch pipeline.Channel) error
	// Config is that of the channels.
	Config Config
	// Group runs the channels made by Dial. nil means the default that all servers
	// and dialers share.
	Group *eventloop.Group
	// LocalAddr is where the connection comes from. nil leaves it to the system.
	LocalAddr net.Addr
	// Timeout bounds the look-up and the connect, all addresses of a name together.
	// 0 means 30 s; negative means no limit besides the context's.
	Timeout time.Duration
}

const defaultConnectTimeout = 30 * time.Second

func (d *Dialer) timeout() time.Duration {
	if d.Timeout == 0 {
		return defaultConnectTimeout
	}
	return d.Timeout
}

// Dial connects to addr and returns the channel when it is active. If a name has
// several addresses they are tried in turn, on the same channel. It must not be
// called on a loop: see DialThen.
//
// network is "tcp", "tcp4", "tcp6" or "unix", or for datagrams "udp", "udp4", "udp6" or
// "unixgram". The error is an *OpError; its cause is ErrConnectTimeout or the context's
// if that ended first.
//
// A datagram channel that is dialed exchanges datagrams with addr and nobody else; each
// is a *buffer.Buf. That it is connected does not say that anybody is there: the
// answer to what was sent to a closed port is an error for HandleError, which the
// channel survives. When a Unix socket that was dialed is gone all writes fail from
// then on, also if another one takes its name.
func (d *Dialer) Dial(ctx context.Context, network, addr string) (pipeline.Channel, error) {
	if eventloop.WouldDeadlock() {
		return nil, eventloop.ErrWouldDeadlock
	}
	cfg, err := d.Config.check()
	if err != nil {
		return nil, err
	}
	if t := d.timeout(); t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, t, ErrConnectTimeout)
		defer cancel()
	}
	addrs, err := resolve(ctx, network, addr)
	if err != nil {
		if c := context.Cause(ctx); c != nil {
			err = c
		}
		return nil, &OpError{Op: "connect", Err: err}
	}
	g := d.Group
	if g == nil {
		if g, err = eventloop.Acquire(); err != nil {
			return nil, &OpError{Op: "connect", Addr: addrs[0], Err: err}
		}
	}
	s := newDialed(&cfg, network, g.Next())
	result := make(chan error, 1)
	if err := s.Loop().Execute(func() { d.connect(s, addrs, func(err error) { result <- err }) }); err != nil {
		g.Release()
		return nil, &OpError{Op: "connect", Addr: addrs[0], Err: err}
	}
	select {
	case err = <-result:
	case <-ctx.Done():
		cause := context.Cause(ctx)
		s.Abort(pipeline.CloseNow, &OpError{Op: "connect", Addr: addrs[0], Err: cause})
		err = <-result
		if err == nil {
			// It was connected by then, and has just been closed.
			err = &OpError{Op: "connect", Addr: addrs[0], Err: cause}
		}
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// DialThen connects to addr on the loop of c, and calls then as c's handler, exactly
// once, with the active channel or with an error. It never waits, and is what a
// handler, a proxy's for example, calls. Names are looked up by the group's Offload;
// the attempt ends when c's channel closes, with an error that matches
// pipeline.ErrClosed. The new channel reads nothing before then has returned.
func (d *Dialer) DialThen(c *pipeline.Context, network, addr string, then func(ch pipeline.Channel, err error)) {
	cfg, err := d.Config.check()
	if err != nil {
		d.later(c, then, err)
		return
	}
	if addrs := literal(network, addr); addrs != nil {
		d.dialLater(c, &cfg, network, addrs, then)
		return
	}
	c.Offload(func(ctx context.Context) (any, error) {
		if t := d.timeout(); t > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, t, ErrConnectTimeout)
			defer cancel()
		}
		return resolve(ctx, network, addr)
	}, func(v any, err error) {
		if err != nil {
			then(nil, &OpError{Op: "connect", Err: err})
			return
		}
		d.dialLater(c, &cfg, network, v.([]net.Addr), then)
	})
}

// dialLater has the loop connect in a task: c's handler may run on an executor.
func (d *Dialer) dialLater(c *pipeline.Context, cfg *Config, network string, addrs []net.Addr, then func(pipeline.Channel, error)) {
	if err := c.Loop().Execute(func() { d.dialOn(c, cfg, network, addrs, then) }); err != nil {
		then(nil, err)
	}
}

// later calls then with an error in a task, so that it never runs before DialThen
// has returned.
func (d *Dialer) later(c *pipeline.Context, then func(pipeline.Channel, error), err error) {
	if c.Execute(func() { then(nil, err) }) != nil {
		then(nil, err)
	}
}

// dialOn connects on c's loop. Loop-only.
func (d *Dialer) dialOn(c *pipeline.Context, cfg *Config, network string, addrs []net.Addr, then func(pipeline.Channel, error)) {
	if err := c.Channel().CloseReason(); err != nil {
		d.later(c, then, &OpError{Op: "connect", Addr: addrs[0], Err: err})
		return
	}
	c.Loop().Group().Hold()
	s := newDialed(cfg, network, c.Loop())
	s.setStarved(true) // until then has been called: what it does with the channel comes first
	var timer *eventloop.Timer
	if t := d.timeout(); t > 0 {
		timer = c.Loop().Schedule(t, func() {
			s.Abort(pipeline.CloseNow, &OpError{Op: "connect", Addr: addrs[0], Err: ErrConnectTimeout})
		})
	}
	settled := false
	// Not by Closed, which could not be told to forget it.
	forget := context.AfterFunc(c.Channel().Context(), func() {
		_ = c.Loop().Execute(func() {
			if !settled {
				s.Abort(pipeline.CloseNow, &OpError{Op: "connect", Addr: addrs[0], Err: c.Channel().CloseReason()})
			}
		})
	})
	d.connect(s, addrs, func(err error) {
		settled = true
		forget()
		if timer != nil {
			timer.Stop()
		}
		tell := func() {
			if err != nil {
				then(nil, err)
				return
			}
			defer s.feed()
			then(s, nil)
		}
		if c.Execute(tell) != nil {
			tell()
		}
	})
}

// dialed is a channel that a Dialer makes.
type dialed interface {
	pipeline.Channel
	Abort(mode pipeline.CloseMode, reason error)
	// start registers the channel. Loop-only, as the rest.
	start(init func(pipeline.Channel) error)
	// over reports whether it has closed.
	over() bool
	// onceActive has f called when the channel, whose connect has succeeded, is active.
	onceActive(f func(error))
	// setStarved keeps the channel from reading; feed, from any goroutine, ends that.
	setStarved(on bool) (news bool)
	feed()
}

// newDialed makes a channel that is to connect.
func newDialed(cfg *Config, network string, loop *eventloop.Loop) dialed {
	if isDatagram(network) {
		return newDgram(cfg, loop, -1, nil)
	}
	return newStream(cfg, loop, nil, -1)
}

// connect registers s and connects it. done is called once, on the loop: with nil
// after HandleActive. Loop-only.
func (d *Dialer) connect(s dialed, addrs []net.Addr, done func(error)) {
	told := false
	tell := func(err error) {
		if !told {
			told = true
			done(err)
		}
	}
	// Whatever its handlers do, a channel that closes cannot become active any more.
	s.Closed().Then(func(error) { tell(connectClosed(s, addrs[0])) })
	s.start(d.Init)
	if s.over() {
		return
	}
	p := eventloop.NewPromise(s.Loop())
	p.Then(func(err error) {
		if err != nil {
			tell(err)
			// A handler may have refused to connect.
			s.Abort(pipeline.CloseNow, err)
			return
		}
		// The promise is completed before the channel is active; whoever dials wants
		// it active.
		s.onceActive(tell)
	})
	s.Pipeline().Connect(candidates(addrs), d.LocalAddr, p)
}

// connectClosed is the error of a connect whose channel has closed.
func connectClosed(s dialed, addr net.Addr) error {
	reason := s.CloseReason()
	var op *OpError
	if errors.As(reason, &op) && op.Op == "connect" {
		return op
	}
	return &OpError{Op: "connect", Addr: addr, Err: reason}
}

// candidates are the addresses of one name, to be tried in turn. As a net.Addr, for
// the handlers that see the connect, it is the first of them.
type candidates []net.Addr

func (c candidates) Network() string { return c[0].Network() }
func (c candidates) String() string  { return c[0].String() }

// connecting is a connect under way.
type connecting struct {
	left  []net.Addr // not tried yet
	local net.Addr
	p     *eventloop.Promise
	err   error // of the first address that failed
}

// failed completes the promise when the channel closes while it connects.
func (d *connecting) failed(reason error) {
	if reason == nil {
		reason = pipeline.ErrClosed
	}
	d.p.Complete(reason)
}

func (c *streamCore) DoConnect(remote, local net.Addr, p *eventloop.Promise) {
	s := (*stream)(c)
	if s.at != streamNew || s.fd.fd >= 0 {
		p.Complete(&OpError{Op: "connect", Addr: remote, Err: errConnected})
		return
	}
	left, ok := remote.(candidates)
	if !ok {
		left = candidates{remote}
	}
	s.needRare().dial = &connecting{left: left, local: local, p: p}
	s.at = streamConnecting
	s.connectNext()
}

// connectNext tries the addresses that are left until one answers or has to be
// waited for.
func (s *stream) connectNext() {
	d := s.rare.dial
	for len(d.left) > 0 {
		addr := d.left[0]
		d.left = d.left[1:]
		err := s.connectTo(addr)
		switch {
		case err == nil:
			s.connected()
			return
		case err == sys.ErrInProgress:
			s.updateInterest()
			return
		}
		s.connectFailed(addr, err)
	}
	s.closeNow(false, d.err)
}

// onceActive implements dialed.
func (s *stream) onceActive(f func(error)) {
	if s.at == streamOpen {
		f(nil) // a handler has held the promise back
		return
	}
	s.needRare().dialed = f
}

// over implements dialed.
func (s *stream) over() bool { return s.at == streamClosed }

// connectTo starts to connect to one address.
func (s *stream) connectTo(addr net.Addr) error {
	fd, err := sys.Socket(addr)
	if err != nil {
		return err
	}
	s.remote.store(addr)
	if err = s.cfg.apply(fd, addr); err == nil && s.rare.dial.local != nil {
		err = sys.Bind(fd, s.rare.dial.local)
	}
	if err == nil {
		s.reg, err = s.Loop().Register(fd, s)
	}
	if err != nil {
		_ = sys.Close(fd)
		return err
	}
	s.fd.fd = fd
	return sys.Connect(fd, addr)
}

// connectFailed gives up one address. The first failure is the one reported.
func (s *stream) connectFailed(addr net.Addr, err error) {
	if s.rare.dial.err == nil {
		s.rare.dial.err = &OpError{Op: "connect", Addr: addr, Err: err}
	}
	if s.reg != nil {
		fd := s.fd.fd
		s.reg.Close(func() { _ = sys.Close(fd) })
		s.reg, s.fd.fd = nil, -1
	}
}

// connectEnded is told that a connect that was waited for has ended.
func (s *stream) connectEnded() {
	if err := s.sock.socketError(); err != nil {
		s.connectFailed(s.remote.load(), err)
		s.connectNext()
		return
	}
	s.connected()
}

// connected makes the channel active: the promise first, then the handlers.
func (s *stream) connected() {
	r := s.rare
	p := r.dial.p
	r.dial = nil
	if a, err := sys.LocalAddr(s.fd.fd, s.remote.load().Network()); err == nil {
		s.local.store(a)
	}
	s.at = streamNew
	p.Complete(nil)
	if s.at == streamNew {
		s.opened()
	}
	if done := r.dialed; done != nil {
		r.dialed = nil
		if s.at != streamClosed {
			done(nil)
		}
	}
}

// resolve finds the addresses of addr.
func resolve(ctx context.Context, network, addr string) ([]net.Addr, error) {
	if a := literal(network, addr); a != nil {
		return a, nil
	}
	var want string
	switch network {
	case "tcp", "udp":
		want = "ip"
	case "tcp4", "udp4":
		want = "ip4"
	case "tcp6", "udp6":
		want = "ip6"
	default:
		return nil, net.UnknownNetworkError(network)
	}
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, network, service)
	if err != nil {
		return nil, err
	}
	if host == "" {
		host = "localhost" // as the net package: an empty host is this one
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, want, host)
	if err != nil {
		return nil, err
	}
	addrs := make([]net.Addr, len(ips))
	for i, ip := range ips {
		addrs[i] = ipAddr(network, ip.Unmap(), port)
	}
	return addrs, nil
}

// literal returns the address if addr needs no look-up, else nil.
func literal(network, addr string) []net.Addr {
	if network == "unix" || network == "unixgram" {
		return []net.Addr{&net.UnixAddr{Name: addr, Net: network}}
	}
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil
	}
	ip := ap.Addr().Unmap()
	switch {
	case network == "tcp", network == "udp",
		(network == "tcp4" || network == "udp4") && ip.Is4(),
		(network == "tcp6" || network == "udp6") && ip.Is6():
		return []net.Addr{ipAddr(network, ip, int(ap.Port()))}
	}
	return nil
}
