package transport

import (
	"net"
	"os"
	"syscall"
	"time"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

const (
	// minAddressTime is what an address gets at least, if there is as much left.
	minAddressTime = 2 * time.Second
	// connectRetry is when a Unix socket is tried again that has no room.
	connectRetry = 10 * time.Millisecond
	// maxSelfConnects is how often an address is tried again that was our own.
	maxSelfConnects = 3
)

// candidates are the addresses of one name, to be tried in turn. As a net.Addr, for
// the handlers that see the connect, it is the first of them.
type candidates struct {
	addrs    []net.Addr
	deadline time.Time // of all together; zero if there is none
	by       connector // who makes the connection; nil for the kernel
}

// candidatesOf returns what remote, which a handler may have changed, stands for.
func candidatesOf(remote net.Addr) candidates {
	c, ok := remote.(*candidates)
	if !ok {
		return candidates{addrs: []net.Addr{remote}, by: sysConnector{}}
	}
	all := *c
	if all.by == nil {
		all.by = sysConnector{}
	}
	return all
}

func (c *candidates) Network() string { return c.addrs[0].Network() }
func (c *candidates) String() string  { return c.addrs[0].String() }

// connecting is a connect under way.
type connecting struct {
	candidates // those not tried yet

	local net.Addr
	p     *eventloop.Promise
	err   error            // of the first address that failed
	timer *eventloop.Timer // of the address being tried, if others are left, or until it is tried again
	selfs int              // times the address was our own
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
	s.needRare().dial = &connecting{candidates: candidatesOf(remote), local: local, p: p}
	s.at = streamConnecting
	s.connectNext()
}

// connectNext tries the addresses that are left until one answers or has to be
// waited for.
func (s *stream) connectNext() {
	d := s.rare.dial
	for len(d.addrs) > 0 {
		addr := d.addrs[0]
		d.addrs = d.addrs[1:]
		err := s.openFor(d, addr)
		if s.at != streamConnecting {
			return // the channel has been closed by Config.Control
		}
		if err == nil {
			err = d.by.connect(int(s.fd.fd), addr)
			_, unix := addr.(*net.UnixAddr)
			switch {
			case err == nil:
				if s.connected() {
					return
				}
				continue
			case err == sys.ErrInProgress:
				// At once, and not by updateInterest: what cannot be waited for is an address
				// that has failed.
				if err = s.reg.SetInterest(eventloop.EventWrite); err == nil {
					s.limitAddress(addr)
					return
				}
			case err == sys.ErrAgain && unix:
				s.connectAgain(addr)
				return
			case err == sys.ErrAgain:
				err = os.NewSyscallError("connect", syscall.EAGAIN) // nothing tells when it would be better
			}
		}
		s.connectFailed(addr, err)
	}
	s.closeNow(false, d.err)
}

// connectAgain tries a Unix socket again later whose listener has as many waiting as it
// may. Of TCP the kernel does that by itself; here nothing tells when there is room.
func (s *stream) connectAgain(addr net.Addr) {
	d := s.rare.dial
	s.dropSocket()
	d.addrs = append([]net.Addr{addr}, d.addrs...)
	d.timer = s.Loop().Schedule(connectRetry, func() {
		if s.at == streamConnecting && s.rare.dial == d {
			s.connectNext()
		}
	})
}

// limitAddress bounds the time for addr, if there are others to try after it.
func (s *stream) limitAddress(addr net.Addr) {
	d := s.rare.dial
	if d.deadline.IsZero() || len(d.addrs) == 0 {
		return
	}
	left := d.deadline.Sub(s.Loop().Now())
	d.timer = s.Loop().Schedule(addressTime(left, len(d.addrs)+1), func() {
		if s.at == streamConnecting && s.rare.dial == d {
			s.connectFailed(addr, ErrConnectTimeout)
			s.connectNext()
		}
	})
}

// addressTime is what the next of n addresses gets of the time that is left.
func addressTime(left time.Duration, n int) time.Duration {
	return max(left/time.Duration(n), min(left, minAddressTime))
}

// stopTimer ends the bound on the address being tried.
func (d *connecting) stopTimer() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
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

// openFor makes a socket that is to connect to addr. User code runs in it, Config.Control:
// d may have ended.
func (s *stream) openFor(d *connecting, addr net.Addr) error {
	fd, err := d.by.socket(addr)
	if err != nil {
		return err
	}
	s.remote.store(addr)
	if err = d.by.prepare(s.cfg, fd, addr, d.local); err == nil && s.at != streamConnecting {
		err = pipeline.ErrClosed
	}
	if err == nil && d.local != nil {
		if err = d.by.bind(fd, d.local); err == nil {
			s.rare.file = socketFileOf(d.local)
		}
	}
	if err == nil {
		s.reg, err = s.Loop().Register(fd, s)
	}
	if err != nil {
		s.removeFile()
		d.by.close(fd)
		return err
	}
	s.fd.fd = int32(fd)
	return nil
}

// connectFailed gives up one address. The first failure is the one reported.
func (s *stream) connectFailed(addr net.Addr, err error) {
	s.rare.dial.stopTimer()
	if s.rare.dial.err == nil {
		s.rare.dial.err = &OpError{Op: "connect", Addr: addr, Err: err}
	}
	s.dropSocket()
}

// dropSocket closes the socket of a connect that has not come about.
func (s *stream) dropSocket() {
	s.removeFile()
	if s.reg != nil {
		by, fd := s.rare.dial.by, int(s.fd.fd)
		s.reg.Close(func() { by.close(fd) })
		s.reg, s.fd.fd = nil, -1
	}
}

// removeFile removes the file of the Unix socket that the connection comes from: the
// next one from there could not be bound.
func (s *stream) removeFile() {
	s.rare.file.remove()
	s.rare.file = nil
}

// connectEnded is told that a connect that was waited for has ended.
func (s *stream) connectEnded() {
	if err := s.sock.socketError(); err != nil {
		s.connectFailed(s.remote.load(), err)
		s.connectNext()
		return
	}
	if !s.connected() {
		s.connectNext()
	}
}

// connected makes the channel active: the promise first, then the handlers. It returns
// false if it is no connection to anybody, and has given up the address then.
func (s *stream) connected() bool {
	r := s.rare
	remote := s.remote.load()
	local, err := r.dial.by.localAddr(int(s.fd.fd), remote.Network())
	if err == nil {
		if r.dial.self(local, remote) {
			s.connectFailed(remote, syscall.ECONNREFUSED)
			return false
		}
		s.local.store(local)
	}
	r.dial.stopTimer()
	p := r.dial.p
	r.dial = nil
	s.fd.publish()
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
	return true
}

// self reports whether a TCP socket has connected to itself: if nobody listens on a
// port of this machine, the system may choose that very port for this end, and the
// two directions of one socket meet. The address is tried again then, with another
// port, a few times. Who asked for the port by himself meant it.
func (d *connecting) self(local, remote net.Addr) bool {
	l, ok := local.(*net.TCPAddr)
	r, ok2 := remote.(*net.TCPAddr)
	if !ok || !ok2 || l.Port != r.Port || !l.IP.Equal(r.IP) {
		return false
	}
	if asked, ok := d.local.(*net.TCPAddr); ok && asked.Port != 0 {
		return false
	}
	if d.selfs++; d.selfs <= maxSelfConnects {
		d.addrs = append([]net.Addr{remote}, d.addrs...)
	}
	return true
}
