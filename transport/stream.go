package transport

import (
	"io"
	"net"
	"runtime/debug"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
	"go.uber.org/zap"
)

// streamState is where the socket of a stream channel stands.
type streamState uint8

const (
	streamNew        streamState = iota // no socket, or one that is not registered yet
	streamConnecting                    // waiting for the connect to end
	streamOpen                          // reads and writes
	streamClosing                       // closed by its user; the queue is leaving
	streamLingering                     // the queue has left; what the peer still sends is dropped
	streamClosed
)

// stream is a channel over a TCP or Unix stream socket.
type stream struct {
	pipeline.Base

	cfg      *Config // shared by the channels of a Server or Dialer
	accepted bool
	onEnd    func(*stream) // told last of all; may be nil

	local, remote addrBox // any goroutine

	// Loop-only.
	state *loopState
	reg   *eventloop.Registration
	sock  socket
	fd    fdSocket
	at    streamState
	recv  recvSize
	out   outbound

	inIO       bool // HandleIO is under way: it settles the interest at its end
	inFlush    bool
	againQueue bool // the flush goes on in the next turn
	wantRead   bool // a read was asked for
	paused     bool // not reading because not writable
	starved    bool // not reading because there is no memory
	inputShut  bool // the peer's end of the stream has been read
	outputShut bool // our sending side is to be closed behind the queue, or has been
	outputDone bool // it has been
	blocked    bool // the socket is full: waiting for EventWrite
	hangup     bool // a hangup or error was reported that nobody waits for

	flushTo  uint64 // position up to which the queue may leave
	reason   error  // of the close that waits for the queue
	opRegion *buffer.FileRegion
	op       eventloop.Op

	dial       *connecting
	dialed     func(error)        // to be called when a dialed channel is active
	shutWrite  *eventloop.Promise // of CloseWrite
	closeTimer *eventloop.Timer
	closeSent  uint64 // out.sent when closeTimer was last armed

	lingerEnd time.Time // when lingering is over at the latest
	heard     bool      // the peer has sent something since lingering began
}

const (
	maxWritesPerFlush = 16
	// A file region leaves in calls of this size, one a turn.
	regionBudget = 1 << 20
	// moreLimit is up to how many bytes of a file the header before it waits for.
	moreLimit = 64 << 10
	// starvedRetry is when a channel that found no memory for reading tries again.
	starvedRetry = 20 * time.Millisecond
	// lingerCheck is how often a lingering channel looks whether it still has to.
	lingerCheck = 100 * time.Millisecond
)

// newStream makes a channel on loop. fd is -1 for one that is to connect.
func newStream(cfg *Config, loop *eventloop.Loop, parent pipeline.Channel, fd int) *stream {
	s := &stream{cfg: cfg, accepted: parent != nil}
	s.fd.fd = fd
	s.sock = &s.fd
	low, high := cfg.waterMarks(recvSizes[0])
	s.Setup(s, (*streamCore)(s), pipeline.BaseConfig{
		Loop:        loop,
		Parent:      parent,
		Allocator:   cfg.Allocator,
		Logger:      cfg.Logger,
		ManualRead:  cfg.ManualRead,
		ManualFlush: cfg.ManualFlush,
		HighWater:   high,
		LowWater:    low,
	})
	return s
}

// start registers a channel on its loop and, if it has a socket already, makes it
// active. Loop-only.
func (s *stream) start(init func(pipeline.Channel) error) {
	if s.at == streamClosed {
		return
	}
	if s.fd.fd >= 0 {
		reg, err := s.Loop().Register(s.fd.fd, s)
		if err != nil {
			s.closeNow(false, err)
			return
		}
		s.reg = reg
	}
	if s.Register(init) != nil || s.at == streamClosed {
		return
	}
	s.state = acquireState(s.Loop(), s.Alloc())
	if s.fd.fd >= 0 && s.at == streamNew {
		s.opened()
	}
}

// opened makes a connected channel active.
func (s *stream) opened() {
	s.at = streamOpen
	s.MarkActive()
	if s.at != streamOpen {
		return
	}
	s.flush()
	s.updateInterest()
}

// HandleIO implements eventloop.IOHandle.
func (s *stream) HandleIO(ev eventloop.Event) {
	defer s.contain()
	s.inIO = true
	s.ready(ev)
	s.inIO = false
	s.updateInterest()
}

// contain, deferred where the loop enters, ends a channel whose transport panics,
// over a message that was released too early for example, and no other. Handlers
// and completions have guards of their own.
func (s *stream) contain() {
	if v := recover(); v != nil {
		s.inIO = false
		s.broken(v)
	}
}

func (s *stream) broken(v any) {
	err := &pipeline.PanicError{Value: v, Handler: "transport", Stack: debug.Stack()}
	if s.at != streamClosed {
		s.Pipeline().FireError(err)
	}
	s.closeNow(false, err)
}

func (s *stream) ready(ev eventloop.Event) {
	const broken = eventloop.EventError | eventloop.EventHangup
	if s.at == streamConnecting {
		if ev&(eventloop.EventWrite|broken) != 0 {
			s.connectEnded()
		}
		return
	}
	if s.blocked && ev&(eventloop.EventWrite|broken) != 0 {
		s.blocked = false
		s.flush()
	}
	switch {
	case s.at == streamLingering:
		s.discard()
	case s.reading():
		if ev&(eventloop.EventRead|eventloop.EventReadHangup|broken) != 0 {
			s.readTurn(ev&(eventloop.EventReadHangup|broken) != 0)
		}
	}
	if ev&broken != 0 && !s.reading() && !s.blocked {
		// It cannot be masked and nobody can do anything about it now: the descriptor
		// leaves the poller until there is something to read or to write again.
		s.hangup = true
	}
}

// reading reports whether the channel is to read.
func (s *stream) reading() bool {
	return s.at == streamOpen && s.wantRead && !s.paused && !s.starved && !s.inputShut
}

// updateInterest has the poller report what the channel waits for.
func (s *stream) updateInterest() {
	if s.inIO || s.reg == nil {
		return
	}
	var ev eventloop.Event
	switch s.at {
	case streamNew, streamClosed:
		return
	case streamConnecting:
		ev = eventloop.EventWrite
	case streamLingering:
		ev = eventloop.EventRead
	case streamOpen, streamClosing:
		if s.reading() {
			ev = eventloop.EventRead | eventloop.EventReadHangup
		}
		if s.blocked {
			ev |= eventloop.EventWrite
		}
	}
	var err error
	if ev == 0 && s.hangup {
		err = s.reg.Suspend()
	} else {
		s.hangup = false
		err = s.reg.SetInterest(ev)
	}
	if err != nil {
		s.fail("read", err)
	}
}

// readTurn reads until the socket has no more, or this channel has had its share
// of the turn. If ending, the end of the stream is near and worth another read.
//
// User code runs in it: the state may be another one after every FireRead.
func (s *stream) readTurn(ending bool) {
	var (
		counters = s.Loop().Counters()
		p        = s.Pipeline()
		total    int
		failure  error
		eof      bool
	)
	s.wantRead = false
	for reads := 1; ; reads++ {
		i := s.recv.index
		hot, err := s.state.receive(i)
		if err != nil {
			s.starve(err)
			break
		}
		size := recvSizes[i]
		n, err := s.sock.read(hot, size)
		if err != nil {
			counters.EmptyReads++
			if err != sys.ErrAgain {
				failure = err
			}
			break
		}
		counters.Reads++
		if n == 0 {
			eof = true
			break
		}
		total += n
		if s.recv.read(n) {
			s.fitWaterMarks()
		}
		p.FireRead(s.state.message(i))
		if s.at != streamOpen {
			break
		}
		if n < size && !ending || reads == maxReadsPerTurn || total >= maxBytesPerTurn ||
			!s.AutoRead() || s.paused {
			break
		}
	}
	if s.recv.turn(total) {
		s.fitWaterMarks()
	}
	p.FireReadComplete()
	switch {
	case s.at == streamClosed:
	case failure != nil:
		s.fail("read", failure)
	case eof:
		s.inputEnded()
	}
}

// fitWaterMarks lets the default marks follow the receive buffer in use.
func (s *stream) fitWaterMarks() { s.SetWaterMarks(s.cfg.waterMarks(s.recv.size())) }

// starve pauses reading for a moment: there is no memory to read into.
func (s *stream) starve(err error) {
	if s.starved {
		return
	}
	s.starved, s.wantRead = true, true
	s.Logger().Warn("reading paused: " + err.Error())
	s.Loop().Schedule(starvedRetry, func() {
		s.starved = false
		s.updateInterest()
	})
}

// inputEnded deals with the end of the peer's stream.
func (s *stream) inputEnded() {
	s.inputShut = true
	core := (*streamCore)(s)
	switch {
	case s.at != streamOpen:
	case !s.cfg.HalfClose:
		core.DoClose(pipeline.CloseFlushed, io.EOF)
	default:
		s.Pipeline().FireEvent(pipeline.InputShutdown{})
		if s.outputDone {
			core.DoClose(pipeline.CloseNow, io.EOF)
		}
	}
}

// fail closes the channel because of a failed system call, and tells the handlers.
func (s *stream) fail(op string, err error) {
	if s.at == streamClosed {
		return
	}
	failure := &OpError{Op: op, Addr: s.remote.load(), Err: err}
	s.Pipeline().FireError(failure)
	s.closeNow(false, failure)
}

// flush sends the queue up to s.flushTo, as far as the socket takes it and this
// channel's share of the turn goes.
//
// When it has used up its share it goes on by itself in the next turn, and until
// then further calls do nothing. It completes promises, so user code may write, flush or close before it returns.
func (s *stream) flush() {
	if s.inFlush || s.againQueue || s.blocked || s.opRegion != nil || s.at != streamOpen && s.at != streamClosing {
		return
	}
	s.inFlush = true
	defer s.flushed()
	calls, budget := 0, regionBudget
	for s.out.sent < s.flushTo {
		if calls == maxWritesPerFlush || budget <= 0 {
			s.flushAgain()
			break
		}
		calls++
		if s.out.region() != nil {
			budget -= s.sendRegion(budget)
		} else {
			s.sendParts()
		}
		if s.at == streamClosed {
			return
		}
		s.completeDue()
		if s.blocked || s.opRegion != nil || s.at == streamClosed {
			break
		}
	}
	s.completeDue()
	s.settle()
}

// flushed ends a flush. Callbacks may have asked for another one meanwhile.
func (s *stream) flushed() {
	s.inFlush = false
	if s.out.sent < s.flushTo && !s.blocked && s.opRegion == nil && (s.at == streamOpen || s.at == streamClosing) {
		s.flushAgain()
	}
}

// flushAgain goes on with the flush in the next turn.
func (s *stream) flushAgain() {
	if !s.againQueue {
		s.againQueue = true
		s.Loop().AtTurnEnd((*flushTask)(s))
	}
}

// flushTask is the channel as the task that goes on with its flush.
type flushTask stream

func (t *flushTask) Run() {
	s := (*stream)(t)
	defer s.contain()
	s.againQueue = false
	s.flush()
}

// sendParts sends the run of buffers at the head of the queue.
func (s *stream) sendParts() {
	parts, bytes, mapped, then := s.out.parts(s.state.iov, s.flushTo-s.out.sent)
	n, err := s.sock.write(parts, mapped, then != nil && then.Remaining() <= moreLimit)
	clear(parts)
	s.Loop().Counters().Writevs++
	switch {
	case err == sys.ErrAgain:
		s.blocked = true
	case err != nil:
		s.fail("write", err)
		return
	case n < bytes:
		s.blocked = true
	}
	s.out.tried(bytes, n)
	s.wrote(int64(n))
}

// wrote takes note that n bytes have left.
func (s *stream) wrote(n int64) {
	s.out.advance(n)
}

// sendRegion sends at most budget bytes of the region at the head of the queue and
// returns how many. A file that is not in memory is sent by an Op, so that the loop
// does not wait for the disk.
func (s *stream) sendRegion(budget int) int {
	r := s.out.region()
	want := int(min(r.Remaining(), int64(budget)))
	file, off := r.Fd(), r.Offset()+r.Sent()
	if cached, err := s.sock.cached(file, off); err == nil && !cached {
		if s.submitRegion(r, file, off, want) {
			return 0
		}
	}
	n, err := s.sock.sendfile(file, off, want)
	return s.regionSent(n, want, err)
}

// submitRegion has the region sent by an Op; s.opRegion is set until it has ended.
func (s *stream) submitRegion(r *buffer.FileRegion, file int, off int64, want int) bool {
	s.op.Run = func() (int64, error) {
		n, err := s.sock.sendfile(file, off, want)
		return int64(n), err
	}
	if s.reg.Submit(&s.op) != nil {
		return false
	}
	r.Retain()
	s.opRegion = r
	return true
}

// regionSent deals with the outcome of a sendfile.
func (s *stream) regionSent(n, want int, err error) int {
	s.Loop().Counters().Sendfiles++
	switch {
	case err == sys.ErrAgain:
		s.blocked = true
		return 0
	case err != nil:
		s.fail("write", err)
		return 0
	case n == 0:
		s.fail("write", ErrFileShrunk)
		return 0
	case n < want:
		s.blocked = true
	}
	s.wrote(int64(n))
	return n
}

// HandleOp implements eventloop.IOHandle: a sendfile of a cold file has ended.
func (s *stream) HandleOp(op *eventloop.Op) {
	defer s.contain()
	r := s.opRegion
	s.opRegion = nil
	op.Run = nil
	defer r.Release()
	if s.at != streamClosed {
		// What was asked for is not known any more, and does not matter: if the socket
		// is full the next call says so.
		s.regionSent(int(op.N), 0, op.Err)
	}
	if s.at != streamClosed {
		s.completeDue()
		s.flush()
		s.settle()
		s.updateInterest()
	}
}

// completeDue completes the promises of what has left.
func (s *stream) completeDue() {
	for p := s.out.due(); p != nil; p = s.out.due() {
		p.Complete(nil)
	}
}

// settle judges the water marks after a flush, and does what had to wait for the
// queue to leave.
func (s *stream) settle() {
	if s.at == streamClosed {
		return
	}
	s.SetPending(s.out.charge)
	if s.at == streamClosed || s.opRegion != nil {
		return
	}
	if !s.out.empty() {
		s.updateInterest()
		return
	}
	s.out.idle()
	switch {
	case s.at == streamClosing:
		s.closeEmpty()
	case s.outputShut && !s.outputDone && s.at == streamOpen:
		s.shutdownOutput()
	default:
		s.updateInterest()
	}
}

// shutdownOutput closes the sending side: the queue has left.
func (s *stream) shutdownOutput() {
	s.outputDone = true
	p := s.shutWrite
	s.shutWrite = nil
	if err := s.sock.shutdownWrite(); err != nil {
		p.Complete(err)
		s.fail("write", err)
		return
	}
	p.Complete(nil)
	if s.at != streamOpen {
		return
	}
	s.Pipeline().FireEvent(pipeline.OutputShutdown{})
	if s.inputShut && s.at == streamOpen {
		s.closeNow(false, io.EOF)
	}
}

// closeEmpty closes a channel whose queue has left. A TCP socket that is closed
// with bytes unread resets the connection, and what the peer has not read yet is
// lost; so if there is something in the kernel in either direction, the sending
// side is closed first and the peer's last words are waited for, and dropped. A peer
// that says nothing is waited for only until it has acknowledged what was sent.
func (s *stream) closeEmpty() {
	if s.inputShut || !s.sock.unfinished() || s.sock.shutdownWrite() != nil {
		s.closeNow(false, s.reason)
		return
	}
	s.at = streamLingering
	s.lingerEnd = s.Loop().Now().Add(s.cfg.CloseTimeout)
	s.armCloseTimer()
	s.updateInterest()
}

// discard drops what a lingering channel's peer still sends.
func (s *stream) discard() {
	for range maxReadsPerTurn {
		hot, err := s.state.receive(0)
		if err != nil {
			s.closeNow(false, s.reason)
			return
		}
		n, err := s.sock.read(hot, recvSizes[0])
		hot.Clear()
		if err == sys.ErrAgain {
			return
		}
		if err != nil || n == 0 {
			s.closeNow(false, s.reason)
			return
		}
		s.heard = true
		if n < recvSizes[0] {
			return
		}
	}
}

// armCloseTimer bounds a close that waits.
func (s *stream) armCloseTimer() {
	if s.closeTimer != nil {
		s.closeTimer.Stop()
	}
	s.closeSent = s.out.sent
	d := s.cfg.CloseTimeout
	if s.at == streamLingering {
		d = min(d, lingerCheck)
	}
	s.closeTimer = s.Loop().Schedule(d, s.closeTimedOut)
}

func (s *stream) closeTimedOut() {
	s.closeTimer = nil
	switch s.at {
	case streamClosing:
		if s.out.sent != s.closeSent {
			s.armCloseTimer() // slow, but alive
			return
		}
		s.closeNow(true, ErrCloseTimeout)
	case streamLingering:
		if s.Loop().Now().Before(s.lingerEnd) && (s.heard || s.sock.unfinished()) {
			s.armCloseTimer()
			return
		}
		s.closeNow(false, s.reason)
	case streamNew, streamConnecting, streamOpen, streamClosed:
	}
}

// closeNow gives up the socket, drops the queue and tells all who wait. The
// descriptor is closed when the last Op on it has ended.
func (s *stream) closeNow(reset bool, reason error) {
	if s.at == streamClosed {
		return
	}
	s.at = streamClosed
	if s.closeTimer != nil {
		s.closeTimer.Stop()
		s.closeTimer = nil
	}
	for !s.dropQueue() {
	}
	waiting := s.out.takeWaiting()
	if s.shutWrite != nil {
		waiting = append(waiting, s.shutWrite)
		s.shutWrite = nil
	}
	dial := s.dial
	s.dial = nil
	end := func() {
		if s.fd.fd >= 0 {
			if reset {
				s.sock.reset()
			}
			s.sock.close()
		}
		if dial != nil {
			dial.failed(reason)
		}
		s.MarkClosed(reason)
		err := s.CloseReason()
		for _, p := range waiting {
			p.Complete(err)
		}
	}
	if s.reg != nil {
		s.reg.Close(end)
	} else {
		end()
	}
}

// dropQueue releases the messages of the queue. It reports false when one of them
// could not be released, because its owner had done so already.
func (s *stream) dropQueue() (done bool) {
	defer func() {
		if v := recover(); v != nil {
			s.Logger().Error("queued message cannot be released", zap.Stringer("channel", s), zap.Any("panic", v))
		}
	}()
	for s.out.dropFirst() {
	}
	return true
}

// CloseIO implements eventloop.IOHandle: the loop is ending.
func (s *stream) CloseIO() { s.closeNow(false, ErrLoopEnded) }

// streamCore is the stream as the pipeline's head sees it.
type streamCore stream

func (c *streamCore) DoWrite(msg any, p *eventloop.Promise) {
	s := (*stream)(c)
	if s.at >= streamClosing || s.outputShut {
		buffer.Release(msg)
		s.refuse(p)
		return
	}
	var err error
	switch m := msg.(type) {
	case *buffer.Buf:
		s.out.addBuf(m, p, s.Alloc())
	case *buffer.FileRegion:
		if !s.out.addRegion(m, p, s.HighWater()) {
			m.Release()
			err = ErrTooManyRegions
		}
	case []byte:
		err = addBytes(s, m, p)
	case string:
		err = addBytes(s, m, p)
	default:
		buffer.Release(msg)
		err = ErrUnsupportedMessage
	}
	if err != nil {
		s.Pipeline().FailWrite(p, &OpError{Op: "write", Addr: s.remote.load(), Err: err})
		return
	}
	if s.out.charge > s.HighWater() && !s.cfg.ManualFlush && !s.inFlush && !s.blocked {
		// Only what the socket does not take is judged.
		s.flushTo = s.out.queued
		s.flush()
		if s.at == streamClosed {
			return
		}
	}
	if s.cfg.MaxPending > 0 && s.out.charge > int64(s.cfg.MaxPending) {
		s.fail("write", ErrSlowPeer)
		return
	}
	s.SetPending(s.out.charge)
}

// addBytes queues a copy of v.
func addBytes[T []byte | string](s *stream, v T, p *eventloop.Promise) error {
	b, err := s.Alloc().TryAlloc(len(v))
	if err != nil {
		return err
	}
	b.WriteString(string(v))
	s.out.addBuf(b, p, s.Alloc())
	return nil
}

// refuse fails a write that came too late. A close is reported by itself; only a
// write behind CloseWrite is news to the handlers.
func (s *stream) refuse(p *eventloop.Promise) {
	err := s.CloseReason()
	if err == nil {
		err = pipeline.ErrClosed
		if s.at < streamClosing {
			s.Pipeline().FailWrite(p, pipeline.ErrOutputShutdown)
			return
		}
	}
	p.Complete(err)
}

func (c *streamCore) DoFlush() {
	s := (*stream)(c)
	s.flushTo = s.out.queued
	s.flush()
}

func (c *streamCore) DoRead() {
	s := (*stream)(c)
	s.wantRead = true
	s.updateInterest()
}

func (c *streamCore) DoReadStop() {
	s := (*stream)(c)
	s.wantRead = false
	s.updateInterest()
}

func (c *streamCore) DoWritability(writable bool) {
	s := (*stream)(c)
	if s.accepted && !s.cfg.ReadWhileUnwritable {
		s.paused = !writable
		s.updateInterest()
	}
}

func (c *streamCore) DoClose(mode pipeline.CloseMode, reason error) {
	s := (*stream)(c)
	switch s.at {
	case streamClosed:
	case streamNew, streamConnecting:
		s.closeNow(mode == pipeline.CloseReset, reason)
	case streamOpen:
		if mode != pipeline.CloseFlushed {
			s.closeNow(mode == pipeline.CloseReset, reason)
			return
		}
		s.at, s.reason = streamClosing, reason
		s.flushTo = s.out.queued
		s.armCloseTimer()
		s.flush()
		if !s.inFlush && s.at == streamClosing {
			s.settle()
		}
	case streamClosing, streamLingering:
		if mode != pipeline.CloseFlushed {
			s.closeNow(mode == pipeline.CloseReset, reason)
		}
	}
}

func (c *streamCore) DoCloseWrite(p *eventloop.Promise) {
	s := (*stream)(c)
	switch {
	case s.at >= streamClosing:
		s.refuse(p)
	case s.outputDone:
		p.Complete(nil)
	case s.outputShut:
		if p != nil {
			if s.shutWrite == nil {
				s.shutWrite = p
			} else {
				s.shutWrite.Then(func(err error) { p.Complete(err) })
			}
		}
	default:
		s.outputShut, s.shutWrite = true, p
		s.flushTo = s.out.queued
		s.flush()
		if !s.inFlush && s.at == streamOpen && !s.outputDone {
			s.settle()
		}
	}
}

func (c *streamCore) DoEnd() {
	s := (*stream)(c)
	if s.state != nil {
		s.state.release()
		s.state = nil
	}
	if s.onEnd != nil {
		s.onEnd(s)
	}
}

func (c *streamCore) LocalAddr() net.Addr  { return c.local.load() }
func (c *streamCore) RemoteAddr() net.Addr { return c.remote.load() }
