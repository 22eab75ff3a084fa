package transport

import (
	"errors"
	"net"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
	"go.uber.org/zap"
)

// acceptSocket is what a listener asks of the kernel: the seam for tests.
type acceptSocket interface {
	accept() (fd int, remote net.Addr, err error)
	close()
}

type fdAcceptSocket struct{ fd int }

func (s fdAcceptSocket) accept() (int, net.Addr, error) { return sys.Accept(s.fd) }
func (s fdAcceptSocket) close()                         { _ = sys.Close(s.fd) }

// listener is the channel of a listening socket. The channels that it accepts are
// the messages of its pipeline.
type listener struct {
	pipeline.Base

	srv   *server
	local addrBox // shared with accepted channels that have the same
	fd    int
	many  bool // local stands for many addresses

	// Loop-only.
	sock     acceptSocket
	reg      *eventloop.Registration
	wantRead bool
	backoff  time.Duration // until the next accept, after an error; 0 if all is well
	waiting  *eventloop.Timer
	lastLog  time.Time
	silent   int // errors not logged since lastLog
	done     bool
}

const (
	minAcceptBackoff = 10 * time.Millisecond
	maxAcceptBackoff = time.Second
	// Errors of accept are logged at most once in this time.
	acceptLogEvery = 5 * time.Second
)

func newListener(srv *server, loop *eventloop.Loop, fd int, local net.Addr) *listener {
	l := &listener{srv: srv, fd: fd, sock: fdAcceptSocket{fd}}
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
	reg, err := l.Loop().Register(l.fd, l)
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
	return nil
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
func (l *listener) HandleIO(eventloop.Event) {
	l.wantRead = false
	counters := l.Loop().Counters()
	for range maxReadsPerTurn {
		fd, remote, err := l.sock.accept()
		counters.Accepts++
		if err != nil {
			if !l.acceptFailed(err) {
				break
			}
			continue
		}
		l.backoff = 0
		if ch := l.srv.accepted(l, fd, remote); ch != nil {
			l.Pipeline().FireRead(ch)
		}
		if l.done || l.waiting != nil || !l.AutoRead() {
			break
		}
	}
	if l.done {
		return
	}
	l.Pipeline().FireReadComplete()
	l.updateInterest()
}

// acceptFailed decides what to do about an error of accept, and reports whether to
// try again at once. Connections that ended while they waited are none of our
// business (accept(2) lists the errors); a lack of descriptors or memory passes, so
// accepting pauses, longer each time.
func (l *listener) acceptFailed(err error) bool {
	if err == sys.ErrAgain {
		return false
	}
	for _, e := range connectionErrors {
		if errors.Is(err, e) {
			return true
		}
	}
	l.log(err)
	l.backoff = min(max(2*l.backoff, minAcceptBackoff), maxAcceptBackoff)
	l.waiting = l.Loop().Schedule(l.backoff, func() {
		l.waiting = nil
		l.updateInterest()
	})
	return false
}

// log reports an error of accept, at a limited rate.
func (l *listener) log(err error) {
	now := l.Loop().Now()
	if !l.lastLog.IsZero() && now.Sub(l.lastLog) < acceptLogEvery {
		l.silent++
		return
	}
	l.Logger().Error("accept failed, pausing",
		zap.Error(&OpError{Op: "accept", Addr: l.local.load(), Err: err}), zap.Int("not_logged", l.silent))
	l.lastLog, l.silent = now, 0
}

func (l *listener) updateInterest() {
	if l.done || l.reg == nil {
		return
	}
	var ev eventloop.Event
	if l.wantRead && l.waiting == nil {
		ev = eventloop.EventRead
	}
	if err := l.reg.SetInterest(ev); err != nil {
		(*listenerCore)(l).DoClose(pipeline.CloseNow, err)
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
	if l.waiting != nil {
		l.waiting.Stop()
		l.waiting = nil
	}
	end := func() {
		unlink(l.local.load())
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
