package transport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// Adopt makes an active channel, with the Dialer's Init and Config, of something that
// is connected already: a *net.TCPConn, a *net.UnixConn, a *net.UDPConn, or an *os.File
// that is an end of a pipe, a FIFO, a terminal, or a socket of streams or datagrams;
// os.NewFile makes one of a raw descriptor. It must not be called on a loop.
//
// The messages of a datagram socket that is connected are those of a channel that was
// dialed; one that is not has *Datagram, as the channels of [Server.Listen].
//
// Of an end that is for reading only the sending side is closed from the beginning:
// a write fails with pipeline.ErrOutputShutdown. An end for writing only reads
// nothing, and its channel closes when nobody can read what it writes. Pipes and
// terminals have no addresses, CloseWrite and Reset tell their other end nothing
// before the channel closes, and a terminal that hangs up is at its end.
//
// Ownership: Adopt takes c over, whether or not it succeeds. The channel has a
// descriptor of its own, and c is closed, unless it is one of the three standard
// streams. What c has buffered, or has been asked to read, is lost to the channel. A
// blocking descriptor does not block any more, for every process that shares it; if it is not
// a socket it is put back when the channel closes.
//
// The error is an *OpError; it matches errors.ErrUnsupported if c is nothing of the
// above.
func (d *Dialer) Adopt(c io.Closer) (pipeline.Channel, error) {
	if eventloop.WouldDeadlock() {
		letGo(c)
		return nil, eventloop.ErrWouldDeadlock
	}
	cfg, err := d.Config.check()
	if err != nil {
		letGo(c)
		return nil, err
	}
	a, err := takeOver(c)
	if err != nil {
		return nil, &OpError{Op: "adopt", Err: err}
	}
	if a.kind == sys.KindListener {
		_ = sys.Close(a.fd)
		return nil, &OpError{Op: "adopt", Addr: a.local, Err: errListens}
	}
	g := d.Group
	if g == nil {
		if g, err = eventloop.Acquire(); err != nil {
			a.close()
			return nil, &OpError{Op: "adopt", Addr: a.remote, Err: err}
		}
	}
	var s dialed
	if a.kind == sys.KindDatagram {
		s, err = a.datagrams(&cfg, g.Next())
	} else {
		s, err = a.channel(&cfg, g.Next())
	}
	if err != nil {
		a.close()
		g.Release()
		return nil, &OpError{Op: "adopt", Addr: a.remote, Err: err}
	}
	if err, ran := startAndWait(s, d.Init); err != nil {
		if !ran {
			a.close()
			g.Release()
		}
		return nil, &OpError{Op: "adopt", Addr: a.remote, Err: err}
	}
	return s, nil
}

// Adopt has the server serve something that exists already, and returns its channel:
// a listening socket (a *net.TCPListener, a *net.UnixListener, or an *os.File of one)
// becomes one of its listeners, as by Listen; a datagram socket one of its channels of
// datagrams, likewise; a connection becomes one of the channels
// that it has accepted, with no listener as its Parent, as by [Dialer.Adopt], which
// says what c may be, what becomes of it and what the errors are. It counts for
// MaxConns, but is taken also at the limit. Options that Config
// has for listeners are not set; the file of a Unix socket is not removed at the end.
// It must not be called on a loop.
func (s *Server) Adopt(c io.Closer) (pipeline.Channel, error) {
	if eventloop.WouldDeadlock() {
		letGo(c)
		return nil, eventloop.ErrWouldDeadlock
	}
	s.setUp()
	if s.err != nil {
		letGo(c)
		return nil, s.err
	}
	if s.s.closed() {
		letGo(c)
		return nil, ErrServerClosed
	}
	a, err := takeOver(c)
	if err != nil {
		return nil, &OpError{Op: "adopt", Err: err}
	}
	if a.kind == sys.KindListener {
		g, err := s.s.acquire()
		if err != nil {
			a.close()
			return nil, &OpError{Op: "adopt", Addr: a.local, Err: err}
		}
		return s.s.listen(newListener(s.s, g.Next(), a.fd, a.local))
	}
	if a.kind == sys.KindDatagram {
		return s.s.adoptDatagrams(a)
	}
	return s.s.adoptConn(a)
}

// adoptDatagrams makes a channel of datagrams of a.
func (s *server) adoptDatagrams(a *adopted) (pipeline.Channel, error) {
	g, err := s.acquire()
	if err != nil {
		a.close()
		return nil, &OpError{Op: "adopt", Addr: a.local, Err: err}
	}
	ch, err := a.datagrams(&s.cfg, g.Next())
	if err != nil {
		a.close()
		g.Release()
		return nil, &OpError{Op: "adopt", Addr: a.local, Err: err}
	}
	ch.srv = s
	if err := s.startDgram(ch); err != nil {
		return nil, err
	}
	return ch, nil
}

// adoptConn makes an accepted channel of a.
func (s *server) adoptConn(a *adopted) (pipeline.Channel, error) {
	g, err := s.acquire()
	if err != nil {
		a.close()
		return nil, &OpError{Op: "adopt", Addr: a.remote, Err: err}
	}
	ch, err := a.channel(&s.cfg, g.Next())
	if err != nil {
		a.close()
		g.Release()
		return nil, &OpError{Op: "adopt", Addr: a.remote, Err: err}
	}
	ch.srv = s
	if !s.addAdopted(ch) {
		ch.sock.close()
		g.Release()
		return nil, ErrServerClosed
	}
	if err, ran := startAndWait(ch, s.start); err != nil {
		if !ran && ch.Open() {
			ch.sock.close()
			s.ended(ch)
			g.Release()
		}
		return nil, &OpError{Op: "adopt", Addr: a.remote, Err: err}
	}
	return ch, nil
}

// addAdopted takes note of a channel that nobody has accepted, and of its place. It
// reports false when the server is closing.
func (s *server) addAdopted(ch *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	if s.maxConns > 0 {
		s.places++
	}
	s.link(ch)
	return true
}

// startAndWait starts s on its loop. It reports whether the loop has seen s: if not
// it is the caller's to end.
func startAndWait(s dialed, init func(pipeline.Channel) error) (err error, ran bool) {
	started := make(chan error, 1)
	err = s.Loop().Execute(func() {
		err := pipeline.ErrGoexit // unless start returns
		defer func() { started <- err }()
		s.start(init)
		err = s.CloseReason()
	})
	if err != nil {
		return err, false
	}
	return <-started, true
}

var (
	errListens   = errors.New("it listens: only a Server can adopt it")
	errNotStream = fmt.Errorf("neither a stream nor a socket of datagrams: %w", errors.ErrUnsupported)
)

// adopted is a descriptor that was taken over.
type adopted struct {
	fd            int
	kind          sys.Kind
	what          sys.Description
	local, remote net.Addr
}

// takeOver makes a non-blocking descriptor of c, which is closed.
func takeOver(c io.Closer) (*adopted, error) {
	defer letGo(c)
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%T has no descriptor: %w", c, errors.ErrUnsupported)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if e := raw.Control(func(n uintptr) { fd, err = sys.Dup(int(n)) }); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, err
	}
	a := &adopted{fd: fd}
	if err := a.look(); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

// look finds out what has been taken over, and makes it non-blocking.
func (a *adopted) look() error {
	what, err := sys.Describe(a.fd)
	if err != nil {
		return err
	}
	a.kind = what.Kind
	switch a.kind {
	case sys.KindStream:
		if a.remote, err = sys.RemoteAddr(a.fd, ""); err != nil {
			return err
		}
		fallthrough
	case sys.KindListener:
		if a.local, err = sys.LocalAddr(a.fd, ""); err != nil {
			return err
		}
	case sys.KindDatagram:
		if err := a.lookAtDatagrams(); err != nil {
			return err
		}
	case sys.KindPipe, sys.KindDevice:
		if !what.Reads && !what.Writes {
			return errNotStream
		}
		if err := sys.Pollable(a.fd); err != nil {
			return fmt.Errorf("%w: %w", errNotStream, err)
		}
	default:
		return errNotStream
	}
	if what.Blocking {
		if err := sys.SetBlocking(a.fd, false); err != nil {
			return err
		}
	}
	a.what = what
	return nil
}

// lookAtDatagrams finds out the addresses of a datagram socket.
func (a *adopted) lookAtDatagrams() (err error) {
	if a.local, err = sys.LocalAddr(a.fd, "udp"); err != nil {
		return err
	}
	network := "udp"
	switch local := a.local.(type) {
	case *net.UDPAddr:
	case *net.UnixAddr:
		network = "unixgram"
		local.Net = network
	default:
		return errNotStream // netlink, for one
	}
	a.remote, err = sys.RemoteAddr(a.fd, network)
	if errors.Is(err, syscall.ENOTCONN) {
		a.remote, err = nil, nil
	}
	return err
}

// close gives up what was taken over.
func (a *adopted) close() {
	if a.what.Blocking && (a.kind == sys.KindPipe || a.kind == sys.KindDevice) {
		_ = sys.SetBlocking(a.fd, true)
	}
	_ = sys.Close(a.fd)
}

// channel makes a channel of a connection. It is not started yet.
func (a *adopted) channel(cfg *Config, loop *eventloop.Loop) (*stream, error) {
	if a.kind == sys.KindStream {
		if err := cfg.apply(a.fd, a.local); err != nil {
			return nil, err
		}
	}
	s := newStream(cfg, loop, nil, a.fd)
	s.local.store(a.local)
	s.remote.store(a.remote)
	if a.kind != sys.KindStream {
		s.sock = &fileSocket{fd: &s.fd, what: a.what}
		s.inputShut = !a.what.Reads
		s.outputShut, s.out.done = !a.what.Writes, !a.what.Writes
	}
	return s, nil
}

// datagrams makes a channel of a datagram socket. It is not started yet.
func (a *adopted) datagrams(cfg *Config, loop *eventloop.Loop) (*dgram, error) {
	if err := cfg.apply(a.fd, a.local); err != nil {
		return nil, err
	}
	s := newDgram(cfg, loop, a.fd, a.local)
	if a.remote != nil {
		s.connected = true
		s.connectedTo(a.remote)
	}
	return s, nil
}

// letGo closes what was passed to Adopt, but none of the standard streams: whoever
// prints to one would print into the next socket of its number.
func letGo(c io.Closer) {
	if f, ok := c.(interface{ SetUnlinkOnClose(bool) }); ok {
		f.SetUnlinkOnClose(false)
	}
	if sc, ok := c.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			standard := false
			_ = raw.Control(func(fd uintptr) { standard = fd <= 2 })
			if standard {
				return
			}
		}
	}
	_ = c.Close()
}

// fileSocket is a pipe, a FIFO or a terminal in the place of a socket.
type fileSocket struct {
	fd   *fdSocket // not embedded: its bytes do not go through pipes
	what sys.Description
}

func (f *fileSocket) read(b *buffer.Buf, max int) (int, error) {
	n, err := f.fd.read(b, max)
	if f.what.Kind == sys.KindDevice && errors.Is(err, syscall.EIO) {
		return 0, nil // the other end of a terminal is gone
	}
	return n, err
}

func (f *fileSocket) write(parts []sys.Iovec, slow, _ bool) (int, error) {
	return f.fd.write(parts, slow, false)
}

func (f *fileSocket) sendfile(file int, off int64, n int) (int, error) {
	return f.fd.sendfile(file, off, n)
}

func (f *fileSocket) cached(file int, off int64) (bool, error) { return f.fd.cached(file, off) }

// socketError is asked for when an error was reported and nothing is left to be read:
// of an end for writing that says that nobody reads any more.
func (f *fileSocket) socketError() error {
	if f.what.Reads {
		return nil
	}
	return os.NewSyscallError("write", syscall.EPIPE)
}

// unfinished is false: what was written stays in a pipe when this end closes.
func (f *fileSocket) unfinished() bool { return false }

func (f *fileSocket) unread() int { return f.fd.unread() }

// shutdownWrite has nothing to tell: the other end sees the close.
func (f *fileSocket) shutdownWrite() error { return nil }

// disconnect does nothing: pipes and terminals have no connection.
func (f *fileSocket) disconnect() {}

// closeSleeps: a pipe's close does not, and a terminal's drains for as long as its driver
// has been told to.
func (f *fileSocket) closeSleeps() bool { return false }

func (f *fileSocket) reset() {}

func (f *fileSocket) close() {
	if f.what.Blocking {
		_ = sys.SetBlocking(int(f.fd.fd), true)
	}
	f.fd.close()
}
