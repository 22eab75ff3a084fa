package transport

import (
	"errors"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
	"go.uber.org/zap"
)

// acceptSocket is what a listener asks of the kernel: the seam for tests.
type acceptSocket interface {
	accept() (fd int, remote sys.Peer, err error)
	close()
}

type fdAcceptSocket struct{ *descriptor }

func (s fdAcceptSocket) accept() (int, sys.Peer, error) { return sys.Accept(int(s.fd)) }

// listener is the channel of a listening socket. The channels that it accepts are
// the messages of its pipeline.
type listener struct {
	pipeline.Base

	srv   *server
	local addrBox // shared with accepted channels that have the same
	fd    descriptor
	many  bool        // local stands for many addresses
	file  *socketFile // to be removed at the end; nil if there is none

	perLoop bool // what it accepts stays on its loop

	full bool   // guarded by srv.mu: to be told of the next free place
	nth  uint64 // likewise: in the order in which the server's sockets were bound

	handedOver atomic.Bool // the socket, and its file, are also somebody else's

	// Loop-only.
	sock     acceptSocket
	reg      *eventloop.Registration
	wantRead bool
	backoff  time.Duration // until the next accept, after an error; 0 if all is well
	waiting  *eventloop.Timer
	atLimit  bool // no free place, as last seen
	failing  bool // the socket has reported an error, and has nobody to accept
	errs     rarely
	shed     int // connections closed unserved since errs was last logged
	limits   rarely
	ending   bool // its handlers are being told of the error that ends it
	done     bool
}

const (
	minAcceptBackoff = 10 * time.Millisecond
	maxAcceptBackoff = time.Second
	// What goes wrong is logged at most once in this time.
	acceptLogEvery = 5 * time.Second
)

// errNotReady is the error of a listening socket that reports one and accepts nobody.
var errNotReady = errors.New("the socket reports an error")

// rarely limits how often something is logged.
type rarely struct {
	last    time.Time
	skipped int
}

// now reports whether to log, and how often it has not been done since the last time.
func (r *rarely) now(t time.Time) (skipped int, ok bool) {
	if !r.last.IsZero() && t.Sub(r.last) < acceptLogEvery {
		r.skipped++
		return 0, false
	}
	skipped = r.skipped
	r.last, r.skipped = t, 0
	return skipped, true
}

func newListener(srv *server, loop *eventloop.Loop, fd int, local net.Addr) *listener {
	l := &listener{srv: srv}
	l.fd.fd = int32(fd)
	l.fd.publish()
	l.sock = fdAcceptSocket{&l.fd}
	l.local.store(local)
	if tcp, ok := local.(*net.TCPAddr); ok {
		l.many = tcp.IP.IsUnspecified()
	}
	l.Setup(l, (*listenerCore)(l), pipeline.BaseConfig{
		Loop:      loop,
		Allocator: srv.cfg.Allocator,
		Logger:    srv.cfg.Logger,
		HighWater: minHighWater,
		LowWater:  minHighWater / 2,
	})
	return l
}

// start registers the listener. The handlers of the user come before the one that
// starts the accepted channels. Loop-only.
func (l *listener) start(init func(pipeline.Channel) error) error {
	if l.done {
		return l.CloseReason()
	}
	reg, err := l.Loop().Register(int(l.fd.fd), l)
	if err != nil {
		(*listenerCore)(l).DoClose(pipeline.CloseNow, err)
		return err
	}
	l.reg = reg
	err = l.Register(func(ch pipeline.Channel) error {
		if init != nil {
			if err := init(ch); err != nil {
				return err
			}
		}
		_, err := ch.Pipeline().AddNamed("acceptor", pipeline.On(l.srv.adopt))
		return err
	})
	if err != nil {
		return err
	}
	l.MarkActive()
	l.updateInterest() // also if it is not to read yet
	return l.CloseReason()
}

// localOf gives ch, accepted as fd, its local address.
func (l *listener) localOf(ch *stream, fd int) {
	if l.many {
		if a, err := sys.LocalAddr(fd, "tcp"); err == nil {
			ch.local.store(a)
			return
		}
	}
	ch.local.share(&l.local)
}

// HandleIO implements eventloop.IOHandle.
func (l *listener) HandleIO(ev eventloop.Event) {
	const broken = eventloop.EventError | eventloop.EventHangup
	accepted := 0
	if l.accepting() {
		accepted = l.acceptTurn()
	}
	if accepted == 0 && !l.done {
		switch {
		case ev&eventloop.EventHangup != 0:
			// Somebody who shares the socket has shut it down. It says so until it is
			// closed, and it will never accept again: to wait for a place, or for a better
			// moment, is of no use.
			l.broken("accept", os.NewSyscallError("accept4", syscall.EINVAL))
		case ev&broken != 0 && l.accepting():
			l.pause(errNotReady)
			fallthrough
		case ev&broken != 0:
			l.failing = true // it cannot be masked: see updateInterest
		}
	}
	l.updateInterest()
}

// accepting reports whether the listener is to accept.
func (l *listener) accepting() bool {
	return !l.done && l.wantRead && l.waiting == nil && !l.atLimit
}

// acceptTurn accepts who waits, as far as this listener's share of the turn goes, and
// returns how many. A request that is served by nobody stays one.
func (l *listener) acceptTurn() (accepted int) {
	l.wantRead = false
	counters := l.Loop().Counters()
	var lost error // of the last of those that were gone already
	for n := 0; n < maxReadsPerTurn; n++ {
		if !l.srv.reserve(l) {
			l.limitReached()
			break
		}
		fd, remote, err := l.sock.accept()
		counters.Accepts++
		if err != nil {
			l.srv.unreserve()
			if isAny(err, connectionErrors) {
				lost = err
				continue
			}
			l.acceptFailed(err)
			lost = nil
			break
		}
		lost = nil
		accepted++
		l.lackOver()
		if ch := l.srv.accepted(l, fd, remote); ch != nil {
			l.Pipeline().FireRead(ch)
		}
		if l.done || !l.AutoRead() {
			break
		}
	}
	if lost != nil {
		l.pause(lost) // and nothing else: perhaps it is no connection that fails
	}
	switch {
	case l.done:
	case accepted > 0:
		l.Pipeline().FireReadComplete()
	default:
		l.wantRead = true
	}
	return accepted
}

// lackOver takes note that there are descriptors and memory: accept has come as far as
// to look who waits.
func (l *listener) lackOver() {
	if l.backoff != 0 {
		l.backoff = 0
		l.srv.keepSpare()
	}
}

// acceptFailed decides what to do about an error of accept that is not the end of a
// single connection. A lack of descriptors or memory passes; what is wrong with the
// descriptor itself does not.
func (l *listener) acceptFailed(err error) {
	switch {
	case err == sys.ErrAgain:
		l.lackOver()
		return
	case isAny(err, brokenErrors):
		l.broken("accept", err)
		return
	}
	// A short lack costs nobody anything. When it lasts, who waits is told.
	if l.backoff > 0 && isAny(err, descriptorErrors) {
		n := l.srv.shed(l)
		l.shed += n
		if n == maxShed {
			l.backoff = 0
		}
	}
	l.pause(err)
}

// broken ends the listener: it will never accept again.
func (l *listener) broken(op string, err error) {
	if l.ending {
		return
	}
	l.ending = true
	failure := &OpError{Op: op, Addr: l.local.load(), Err: err}
	l.Pipeline().FireError(failure)
	(*listenerCore)(l).DoClose(pipeline.CloseNow, failure)
}

// pause stops accepting for a moment, longer each time.
func (l *listener) pause(err error) {
	if skipped, ok := l.errs.now(l.Loop().Now()); ok {
		l.Logger().Error("accept failed, pausing",
			zap.Error(&OpError{Op: "accept", Addr: l.local.load(), Err: err}),
			zap.Int("not_logged", skipped), zap.Int("closed_unserved", l.shed))
		l.shed = 0
	}
	l.backoff = min(max(2*l.backoff, minAcceptBackoff), maxAcceptBackoff)
	l.waiting = l.Loop().Schedule(l.backoff, func() {
		l.waiting = nil
		l.updateInterest()
	})
}

// limitReached stops accepting until a place is free.
func (l *listener) limitReached() {
	l.atLimit = true
	if skipped, ok := l.limits.now(l.Loop().Now()); ok {
		l.Logger().Warn("as many connections as allowed, pausing",
			zap.Int("limit", l.srv.maxConns), zap.Int("not_logged", skipped))
	}
}

// roomTask is a listener as the task that lets it go on: there may be a place.
type roomTask listener

func (t *roomTask) Run() {
	l := (*listener)(t)
	l.atLimit = false
	l.updateInterest()
}

// isAny reports whether err is one of list.
func isAny(err error, list []error) bool {
	return slices.ContainsFunc(list, func(e error) bool { return errors.Is(err, e) })
}

func (l *listener) updateInterest() {
	if l.done || l.reg == nil {
		return
	}
	// Without interest it stays in the poller, to hear that its socket has been shut
	// down, unless it has an error that would be reported again and again.
	var err error
	switch {
	case l.accepting():
		l.failing = false
		err = l.reg.SetInterest(eventloop.EventRead)
	case l.failing:
		err = l.reg.Suspend()
	default:
		err = l.reg.SetInterest(0)
	}
	if err != nil {
		l.broken("poll", err)
	}
}

// HandleOp implements eventloop.IOHandle. A listener has no Ops.
func (l *listener) HandleOp(*eventloop.Op) {}

// CloseIO implements eventloop.IOHandle: the loop is ending.
func (l *listener) CloseIO() { (*listenerCore)(l).DoClose(pipeline.CloseNow, ErrLoopEnded) }

// listenerCore is the listener as the pipeline's head sees it.
type listenerCore listener

func (c *listenerCore) DoConnect(_, _ net.Addr, p *eventloop.Promise) {
	p.Complete(ErrUnsupportedMessage)
}

func (c *listenerCore) DoWrite(msg any, p *eventloop.Promise) {
	buffer.Release(msg)
	c.Pipeline().FailWrite(p, ErrUnsupportedMessage)
}

func (c *listenerCore) DoFlush() {}

func (c *listenerCore) DoRead() {
	l := (*listener)(c)
	l.wantRead = true
	l.updateInterest()
}

func (c *listenerCore) DoReadStop() {
	l := (*listener)(c)
	l.wantRead = false
	l.updateInterest()
}

func (c *listenerCore) DoCloseWrite(p *eventloop.Promise) { p.Complete(ErrUnsupportedMessage) }

func (c *listenerCore) DoWritability(bool) {}

func (c *listenerCore) DoClose(_ pipeline.CloseMode, reason error) {
	l := (*listener)(c)
	if l.done {
		return
	}
	l.done = true
	l.MarkClosing(reason)
	if handlerBroke(reason) {
		l.srv.resetHeldBack(l, reason)
	}
	if l.waiting != nil {
		l.waiting.Stop()
		l.waiting = nil
	}
	end := func() {
		l.removeFile()
		l.sock.close()
		l.MarkClosed(reason)
	}
	if l.reg != nil {
		l.reg.Close(end)
	} else {
		end()
	}
}

func (c *listenerCore) DoEnd() {
	l := (*listener)(c)
	l.srv.listenerEnded(l)
	l.Loop().Group().Release()
}

func (c *listenerCore) LocalAddr() net.Addr  { return c.local.load() }
func (c *listenerCore) RemoteAddr() net.Addr { return nil }
