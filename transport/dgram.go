package transport

import (
	"errors"
	"net"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// dgramState is where the socket of a datagram channel stands.
type dgramState uint8

const (
	dgramNew     dgramState = iota // no socket, or one that is not registered yet
	dgramOpen                      // reads and writes
	dgramClosing                   // closed by its user; the queue is leaving
	dgramFailing                   // the handlers are being told of the error that ends it
	dgramClosed
)

// dgram is a channel over a UDP or Unix datagram socket.
//
// What later parts will add has its place: what is to be sent along with a datagram
// (GSO, the local address, descriptors) beside the address in an outDatagram, descriptors
// that come with one among a slot's notes, groups of multicast as calls on the socket.
type dgram struct {
	pipeline.Base

	cfg *Config // shared by the channels of a Server or Dialer
	srv *server // that made the channel; nil if it was dialed

	local, remote addrBox // any goroutine

	nth        uint64      // guarded by srv.mu: in the order in which the server's sockets were bound
	handedOver atomic.Bool // the socket, and its file, are also somebody else's

	// Loop-only.
	state *loopState
	in    *dgramSlots // of state
	reg   *eventloop.Registration
	sock  dgramSocket
	fd    fdDgramSocket
	out   dgramQueue

	segments  *buffer.Buf // of datagrams that came as one, those that are still to be delivered
	room      int         // the longest that a call receives, which may be many
	connected bool
	unix      bool
	file      *socketFile // bound to: what is to be removed at the end; nil if there is none
	peer      dgramPeer   // if connected
	change    *peerChange // the last in the queue; nil if there is none
	dialed    func(error) // to be called when a dialed channel is active

	flushTo    uint64 // number of datagrams that may leave
	closeGone  uint64 // out.gone when closeTimer was last armed
	closeTimer *eventloop.Timer
	reason     error         // of the close that waits for the queue
	rest       time.Duration // until the next try, when readiness does not tell
	resting    *eventloop.Timer
	asideRest  time.Duration // until what is aside is tried again
	asideTimer *eventloop.Timer

	at         dgramState
	entered    bool // the loop is in one of this channel's methods
	inIO       bool // HandleIO is under way: it settles the interest at its end
	inFlush    bool
	againQueue bool // the flush goes on in the next turn
	wantRead   bool // a read was asked for
	paused     bool // not reading because not writable
	starved    bool // not reading because there is no memory, or not enough
	blocked    bool // the socket is full: waiting for EventWrite
	woken      bool // EventWrite has come, and nothing has left since
	again      bool // the first datagram met an error of an earlier one and is tried again
	hangup     bool // a hangup or error was reported that nobody waits for
}

// errShut is the error of a socket that has been shut down for reading.
var errShut = errors.New("the socket has been shut down")

// newDgram makes a channel on loop. fd is -1 for one that is to connect, local the
// address of one that is bound.
func newDgram(cfg *Config, loop *eventloop.Loop, fd int, local net.Addr) *dgram {
	s := &dgram{cfg: cfg}
	s.fd.fd = int32(fd)
	s.sock = &s.fd
	if fd >= 0 {
		s.fd.publish()
		s.boundTo(local)
	}
	low, high := cfg.waterMarks(recvSizes[0])
	s.Setup(s, (*dgramCore)(s), pipeline.BaseConfig{
		Loop:        loop,
		Allocator:   cfg.Allocator,
		Logger:      cfg.Logger,
		ManualRead:  cfg.ManualRead,
		ManualFlush: cfg.ManualFlush,
		HighWater:   high,
		LowWater:    low,
	})
	return s
}

// boundTo takes note of the local address.
func (s *dgram) boundTo(local net.Addr) {
	s.local.store(local)
	switch a := local.(type) {
	case *net.UDPAddr:
		s.fd.v6 = len(a.IP) == net.IPv6len
	case *net.UnixAddr:
		s.unix = true
	}
}

// start registers a channel on its loop and, if it has a socket already, makes it
// active. Loop-only.
func (s *dgram) start(init func(pipeline.Channel) error) {
	if s.at == dgramClosed {
		return
	}
	if s.fd.fd >= 0 {
		reg, err := s.Loop().Register(int(s.fd.fd), s)
		if err != nil {
			s.closeNow(err)
			return
		}
		s.reg = reg
	}
	if s.Register(init) != nil || s.at == dgramClosed {
		return
	}
	s.state = acquireState(s.Loop(), s.Alloc())
	if s.fd.fd >= 0 && s.at == dgramNew {
		s.opened()
	}
}

// opened makes a channel with a socket active.
func (s *dgram) opened() {
	s.at = dgramOpen
	s.look()
	s.in = s.state.slots(dgramSlotSize(s.room))
	s.MarkActive()
	if s.at != dgramOpen {
		return
	}
	s.flush()
	s.updateInterest()
}

// look finds out what comes with the datagrams of the socket.
func (s *dgram) look() {
	s.room = s.cfg.MaxDatagram
	if s.unix || s.fd.fd < 0 {
		return
	}
	s.fd.gro = s.cfg.GRO
	if on, err := sys.GetOption(int(s.fd.fd), sys.UDPGRO); err == nil && on != 0 {
		s.fd.gro = true // by Config.Control, or whose socket it was
	}
	s.fd.notes = s.fd.gro || s.cfg.Destination
	if s.fd.gro {
		s.room = max(s.room, maxCoalesced)
	}
}

// maxCoalesced is how much the kernel hands over as one datagram at most.
const maxCoalesced = 64 << 10

// connectTo makes, by the means of by, a socket that is connected to addr. User code runs in
// it, Config.Control.
func (s *dgram) connectTo(by connector, addr, local net.Addr) error {
	fd, err := by.socket(addr)
	if err != nil {
		return err
	}
	var file *socketFile
	if err = by.prepare(s.cfg, fd, addr, local); err == nil && s.at != dgramNew {
		err = pipeline.ErrClosed
	}
	if err == nil && local != nil {
		err = by.bind(fd, local)
		if err == nil {
			file = socketFileOf(local)
		}
	}
	if err == nil {
		err = by.connect(fd, addr)
	}
	if err == nil {
		s.reg, err = s.Loop().Register(fd, s)
	}
	if err != nil {
		file.remove()
		by.close(fd)
		return err
	}
	s.fd.fd, s.file, s.connected = int32(fd), file, true
	s.fd.publish()
	if a, err := by.localAddr(fd, addr.Network()); err == nil {
		s.boundTo(a)
	}
	s.remote.store(addr)
	if a, err := by.remoteAddr(fd, addr.Network()); err == nil {
		s.connectedTo(a)
	}
	return nil
}

// connectedTo takes note of the peer of a socket that is connected.
func (s *dgram) connectedTo(remote net.Addr) {
	s.remote.store(remote)
	s.peer = peerOf(remote)
}

// HandleIO implements eventloop.IOHandle.
func (s *dgram) HandleIO(ev eventloop.Event) {
	defer s.contain()
	s.entered, s.inIO = true, true
	s.ready(ev)
	s.inIO = false
	s.updateInterest()
	s.entered = false
}

// HandleOp implements eventloop.IOHandle. A datagram channel has no Ops.
func (s *dgram) HandleOp(*eventloop.Op) {}

// contain, deferred where the loop enters, ends a channel whose transport panics,
// and no other: see stream.contain.
func (s *dgram) contain() {
	if !s.entered {
		return
	}
	v := recover()
	s.entered, s.inIO = false, false
	if v == nil {
		s.closeNow(pipeline.ErrGoexit)
		return
	}
	err := &pipeline.PanicError{Value: v, Handler: "transport", Stack: debug.Stack()}
	if s.at != dgramClosed {
		s.Pipeline().FireError(err)
	}
	s.closeNow(err)
}

func (s *dgram) ready(ev eventloop.Event) {
	const broken = eventloop.EventError | eventloop.EventHangup
	told := false
	if ev&eventloop.EventError != 0 {
		// It stays until it is taken, and takes the place of a datagram otherwise.
		if err := s.sock.socketError(); err != nil {
			told = true
			s.Pipeline().FireError(&OpError{Op: "write", Addr: s.remote.load(), Err: err})
		}
	}
	if s.blocked && ev&(eventloop.EventWrite|broken) != 0 {
		s.blocked, s.woken = false, true
		s.flush()
	}
	const over = eventloop.EventReadHangup | eventloop.EventHangup
	if s.reading() && ev&(eventloop.EventRead|over|broken) != 0 && s.readTurn() && ev&over != 0 && s.reading() {
		// Somebody who shares the socket has shut it down, and says so for as long as it is
		// open: nothing will ever come.
		s.fail("read", errShut)
	}
	if ev&broken != 0 && !told && !s.reading() && !s.blocked {
		s.hangup = true // see stream.ready
	}
}

// reading reports whether the channel is to read.
func (s *dgram) reading() bool {
	return s.at == dgramOpen && s.wantRead && !s.paused && !s.starved
}

// updateInterest has the poller report what the channel waits for.
func (s *dgram) updateInterest() {
	if s.inIO || s.reg == nil || s.at == dgramNew || s.at == dgramClosed {
		return
	}
	var ev eventloop.Event
	if s.reading() {
		ev = eventloop.EventRead | eventloop.EventReadHangup
	}
	if s.blocked {
		ev |= eventloop.EventWrite
	}
	var err error
	if ev == 0 && s.hangup {
		err = s.reg.Suspend()
	} else {
		s.hangup = false
		err = s.reg.SetInterest(ev)
	}
	if err != nil {
		s.fail("poll", err)
	}
}

// readTurn reads until the socket has no more, or this channel has had its share of
// the turn: 16 calls, each for a batch, or 1 MiB. A channel that reads when asked
// gets one datagram each time.
//
// It reports whether the socket had nothing at all.
//
// User code runs in it: the state may be another one after every message.
func (s *dgram) readTurn() (nothing bool) {
	counters := s.Loop().Counters()
	if s.state.pressed() {
		s.state.hold(s)
		return false
	}
	s.wantRead = false
	got, bytes := 0, 0
	var failure error
	for reads := 1; ; reads++ {
		want := dgramBatch
		if !s.AutoRead() {
			want = 1
		}
		want, err := s.in.ready(want, s.state.alloc)
		if err != nil {
			s.starve(err)
			break
		}
		n, err := s.sock.receive(s.in, want, s.room)
		if err != nil {
			counters.EmptyReads++
			if err != sys.ErrAgain {
				failure = err
			}
			nothing = err == sys.ErrAgain && reads == 1
			break
		}
		counters.Reads++
		delivered, b := s.deliver(n)
		got += delivered
		bytes += b
		counters.BytesRead += uint64(b)
		if s.at != dgramOpen || n < want || reads == maxReadsPerTurn || bytes >= maxBytesPerTurn ||
			!s.AutoRead() || s.paused {
			break
		}
	}
	if got == 0 {
		s.wantRead = true // the request is not served yet
	}
	s.Pipeline().FireReadComplete()
	if failure != nil && s.at != dgramClosed {
		s.readFailed(failure)
	}
	return nothing
}

// deliver passes on the first n slots. It returns how many messages it has made of
// them, and how many bytes they had.
func (s *dgram) deliver(n int) (messages, bytes int) {
	for i := range n {
		d := &s.in.slots[i]
		bytes += d.buf.Len()
		switch {
		case d.truncated:
			// What is left of it is of no use, and a handler should not have to look.
			s.Pipeline().FireError(&OpError{Op: "read", Addr: d.from(), Err: ErrTruncated})
		case s.fd.notes:
			messages += s.deliverNoted(i)
		case s.foreign(d):
		case !s.connected:
			messages++
			s.Pipeline().FireRead(newDatagram(s.in.message(i, s.state.alloc), d.addr, d.name, netip.AddrPort{}))
		default:
			messages++
			s.Pipeline().FireRead(s.in.message(i, s.state.alloc))
		}
		if s.at != dgramOpen {
			break
		}
	}
	return messages, bytes
}

// deliverNoted passes on slot i of a socket that has notes, which may be many datagrams.
// It returns how many messages it has made of it.
func (s *dgram) deliverNoted(i int) (messages int) {
	d := &s.in.slots[i]
	s.segments = s.in.message(i, s.state.alloc)
	for s.segments != nil {
		b := s.segments
		if d.segment > 0 && d.segment < b.Len() {
			b = b.ReadSlice(d.segment)
		} else {
			s.segments = nil
		}
		switch {
		case s.foreign(d):
			b.Release()
		case b.Len() > s.cfg.MaxDatagram:
			b.Release()
			s.Pipeline().FireError(&OpError{Op: "read", Addr: d.from(), Err: ErrTruncated})
		case s.connected:
			messages++
			s.Pipeline().FireRead(b)
		default:
			messages++
			s.Pipeline().FireRead(newDatagram(b, d.addr, d.name, d.to))
		}
		if s.at != dgramOpen {
			s.dropSegments()
		}
	}
	return messages
}

// dropSegments drops the datagrams that came as one with what has been delivered last.
func (s *dgram) dropSegments() {
	if b := s.segments; b != nil {
		s.segments = nil
		b.Release()
	}
}

// from returns the sender's address, nil if it has none.
func (d *dgramSlot) from() net.Addr {
	switch {
	case d.name != "":
		return &net.UnixAddr{Name: d.name, Net: "unixgram"}
	case d.addr.IsValid():
		return net.UDPAddrFromAddrPort(d.addr)
	}
	return nil
}

// readFailed deals with an error of reading. What an earlier datagram has met on its
// way does not end the channel.
func (s *dgram) readFailed(err error) {
	if errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM) {
		s.starve(err)
		return
	}
	for _, e := range datagramErrors {
		if errors.Is(err, e) {
			s.Pipeline().FireError(&OpError{Op: "read", Addr: s.remote.load(), Err: err})
			return
		}
	}
	s.fail("read", err)
}

// starve pauses reading for a moment: there is no memory to read into.
func (s *dgram) starve(err error) {
	s.wantRead = true
	s.state.starve(s, err)
}

// setStarved keeps the channel from reading, or no longer, and reports whether that
// is news. Loop-only.
func (s *dgram) setStarved(on bool) bool {
	news := s.starved != on
	s.starved = on
	return news
}

// feed is fed, from any goroutine.
func (s *dgram) feed() {
	if s.Loop().InLoop() {
		s.fed()
	} else {
		_ = s.Loop().Execute(s.fed) // a loop that has ended reads nothing
	}
}

// fed lets a starved channel read again. Loop-only.
func (s *dgram) fed() {
	s.starved = false
	s.updateInterest()
}

// fail closes the channel because of a failed system call, and tells the handlers.
// What they write meanwhile is refused: it could fail for the same reason.
func (s *dgram) fail(op string, err error) {
	if s.at >= dgramFailing {
		return
	}
	s.at = dgramFailing
	failure := &OpError{Op: op, Addr: s.remote.load(), Err: err}
	s.Pipeline().FireError(failure)
	s.closeNow(failure)
}

// onceActive has f called when the channel, whose connect has succeeded, is active.
func (s *dgram) onceActive(f func(error)) {
	if s.at == dgramOpen {
		f(nil) // a handler has held the promise back
		return
	}
	s.dialed = f
}

// over reports whether the channel has closed.
func (s *dgram) over() bool { return s.at == dgramClosed }

// dgramCore is the datagram channel as the pipeline's head sees it.
type dgramCore dgram

func (c *dgramCore) DoConnect(remote, local net.Addr, p *eventloop.Promise) {
	s := (*dgram)(c)
	if s.at != dgramNew || s.fd.fd >= 0 {
		s.changePeer(remote, p)
		return
	}
	if remote == nil {
		s.changeFailed(p, nil, syscall.ENOTCONN) // it is still to be dialed
		return
	}
	var failure error
	all := candidatesOf(remote)
	for _, addr := range all.addrs {
		err := s.connectTo(all.by, addr, local)
		if err == nil {
			s.connectedNow(p)
			return
		}
		if failure == nil {
			failure = &OpError{Op: "connect", Addr: addr, Err: err}
		}
		if s.at != dgramNew {
			break // closed by Config.Control
		}
	}
	s.closeNow(failure)
	p.Complete(failure)
}

// connectedNow makes the channel active: the promise first, then the handlers.
func (s *dgram) connectedNow(p *eventloop.Promise) {
	p.Complete(nil)
	if s.at == dgramNew {
		s.opened()
	}
	if done := s.dialed; done != nil {
		s.dialed = nil
		if s.at != dgramClosed {
			done(nil)
		}
	}
}

func (c *dgramCore) DoRead() {
	s := (*dgram)(c)
	s.wantRead = true
	s.updateInterest()
}

func (c *dgramCore) DoReadStop() {
	s := (*dgram)(c)
	s.wantRead = false
	s.updateInterest()
}

func (c *dgramCore) DoWritability(writable bool) {
	s := (*dgram)(c)
	if s.srv != nil && !s.cfg.ReadWhileUnwritable {
		s.paused = !writable
		s.updateInterest()
	}
}

func (c *dgramCore) DoEnd() {
	s := (*dgram)(c)
	if s.state != nil {
		s.state.release()
		s.state, s.in = nil, nil
	}
	if s.srv != nil {
		s.srv.dgramEnded(s)
	}
	s.Loop().Group().Release()
}

func (c *dgramCore) LocalAddr() net.Addr  { return c.local.load() }
func (c *dgramCore) RemoteAddr() net.Addr { return c.remote.load() }
