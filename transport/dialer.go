package transport

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/runnel-io/runnel/eventloop"
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
	// LocalAddr is where the connection comes from. nil leaves it to the system. The file
	// of a Unix socket is removed when its channel ends.
	LocalAddr net.Addr
	// Timeout bounds the look-up and the connect, all addresses of a name together:
	// while there are others left, one gets an equal part of the time, but 2 s at least
	// if there is as much. 0 means 30 s; negative means no limit besides the context's.
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
// network is "tcp", "tcp4", "tcp6", "unix" or "local", or for datagrams "udp", "udp4",
// "udp6" or "unixgram". The error is an *OpError; its cause is ErrConnectTimeout or the context's
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
	if c := context.Cause(ctx); c != nil {
		err = c
	}
	if err != nil {
		return nil, &OpError{Op: "connect", Err: err}
	}
	deadline, _ := ctx.Deadline()
	g := d.Group
	if g == nil {
		if g, err = eventloop.Acquire(); err != nil {
			return nil, &OpError{Op: "connect", Addr: addrs[0], Err: err}
		}
	}
	s := newDialed(&cfg, network, g.Next())
	result := make(chan error, 1)
	if err := s.Loop().Execute(func() { d.connect(s, addrs, deadline, func(err error) { result <- err }) }); err != nil {
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
// the attempt ends, whatever it waits for, when Timeout is over and when c's channel
// closes, then with an error that matches pipeline.ErrClosed. The new channel reads
// nothing before then has returned.
func (d *Dialer) DialThen(c *pipeline.Context, network, addr string, then func(ch pipeline.Channel, err error)) {
	x := &dialing{d: d, c: c, network: network, addr: addr, then: then, timeout: d.timeout()}
	var err error
	if x.cfg, err = d.Config.check(); err != nil {
		x.tell(nil, err)
		return
	}
	x.addrs = literal(network, addr)
	// In a task: c's handler may run on an executor.
	if err := c.Loop().Execute(x.begin); err != nil {
		x.tell(nil, x.failure(err))
	}
}

// dialing is a DialThen under way. Besides the look-up, which uses nothing of it that
// changes, it is the loop's.
type dialing struct {
	d             *Dialer
	c             *pipeline.Context
	cfg           Config
	network, addr string
	then          func(pipeline.Channel, error)
	timeout       time.Duration // none if not positive

	told atomic.Bool // then has been called, or is about to be; any goroutine

	// Loop-only.
	addrs    []net.Addr // nil until they have been looked up
	deadline time.Time  // zero if there is none
	timer    *eventloop.Timer
	forget   func() bool             // what the end of c's channel would do
	cancel   context.CancelCauseFunc // ends the look-up; nil without
	s        dialed                  // while it connects
}

// begin starts the attempt. Loop-only.
func (x *dialing) begin() {
	l := x.c.Loop()
	if x.timeout > 0 {
		x.deadline = l.Now().Add(x.timeout)
		x.timer = l.Schedule(x.timeout, func() { x.end(ErrConnectTimeout) })
	}
	// Not by Closed, which could not be told to forget it.
	ctx := x.c.Channel().Context()
	x.forget = context.AfterFunc(ctx, func() {
		_ = l.Execute(func() { x.end(x.c.Channel().CloseReason()) })
	})
	if x.addrs != nil {
		x.connect()
		return
	}
	ctx, x.cancel = context.WithCancelCause(ctx)
	// Not by Context.Offload: a look-up is nothing that other work has to wait for.
	err := l.Offload().Submit(func() {
		addrs, err := resolve(ctx, x.network, x.addr)
		if c := context.Cause(ctx); c != nil {
			err = c
		}
		if l.Execute(func() { x.found(addrs, err) }) != nil {
			x.tell(nil, x.failure(eventloop.ErrLoopClosed)) // the loop has ended, and uses nothing of x any more
		}
	})
	if err != nil {
		x.end(err)
	}
}

// found goes on with what the look-up has found. Loop-only.
func (x *dialing) found(addrs []net.Addr, err error) {
	if x.told.Load() {
		return // it took too long, or nobody wants it any more
	}
	if err != nil {
		x.end(err)
		return
	}
	x.addrs = addrs
	x.connect()
}

// connect connects. Loop-only.
func (x *dialing) connect() {
	c := x.c
	if err := c.Channel().CloseReason(); err != nil {
		x.end(err)
		return
	}
	c.Loop().Group().Hold()
	s := newDialed(&x.cfg, x.network, c.Loop())
	s.setStarved(true) // until then has been called: what it does with the channel comes first
	x.s = s
	x.d.connect(s, x.addrs, x.deadline, func(err error) {
		x.s = nil
		if err != nil {
			s = nil
		}
		x.finish(s, err)
	})
}

// end ends the attempt, whatever is under way. Loop-only.
func (x *dialing) end(err error) {
	err = x.failure(err)
	if x.s != nil {
		x.s.Abort(pipeline.CloseNow, err) // whose outcome is told
	}
	x.finish(nil, err)
}

// failure is what is told of err. The loop's, or without a loop anybody's.
func (x *dialing) failure(err error) error {
	if x.addrs == nil {
		return &OpError{Op: "connect", Err: err}
	}
	return &OpError{Op: "connect", Addr: x.addrs[0], Err: err}
}

// finish gives up what would end the attempt, and tells of its outcome. Loop-only.
func (x *dialing) finish(s dialed, err error) {
	if x.timer != nil {
		x.timer.Stop()
	}
	x.forget()
	if x.cancel != nil {
		x.cancel(err)
	}
	x.tell(s, err)
}

// tell calls then as the handler, in a task, so that it never runs before DialThen has
// returned. Only the first outcome counts. Any goroutine.
func (x *dialing) tell(s dialed, err error) {
	if !x.told.CompareAndSwap(false, true) {
		return
	}
	deliver(x.c, func() {
		if err != nil {
			x.then(nil, err)
			return
		}
		defer s.feed()
		x.then(s, nil)
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
	if network == "local" {
		return newLocal(cfg, loop, nil)
	}
	return newStream(cfg, loop, nil, -1)
}

// connect registers s and connects it, by the deadline if there is one, at which
// somebody closes s. done is called once, on the loop: with nil after HandleActive.
// Loop-only.
func (d *Dialer) connect(s dialed, addrs []net.Addr, deadline time.Time, done func(error)) {
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
	s.Pipeline().Connect(&candidates{addrs: addrs, deadline: deadline}, d.LocalAddr, p)
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
	if network == "local" {
		return []net.Addr{localAddr(addr)}
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
