package transport

import (
	"errors"
	"io"
	"net"
	"runtime/debug"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// streamState is where the socket of a stream channel stands.
type streamState uint8

const (
	streamNew        streamState = iota // no socket, or one that is not registered yet
	streamConnecting                    // waiting for the connect to end
	streamOpen                          // reads and writes
	streamClosing                       // closed by its user; the queue is leaving
	streamLingering                     // the queue has left; what the peer still sends is dropped
	streamFailing                       // the handlers are being told of the error that ends it
	streamClosed
)

// stream is a channel over a TCP or Unix stream socket.
type stream struct {
	pipeline.Base

	cfg *Config // shared by the channels of a Server or Dialer
	srv *server // that accepted the channel; nil if it was dialed

	// Guarded by srv.mu: the list of the server's channels.
	prev, next *stream

	local  addrBox // any goroutine
	remote peerBox // likewise

	// Loop-only.
	state *loopState
	reg   *eventloop.Registration
	sock  socket
	fd    fdSocket
	out   outbound
	rare  *rareState // what few channels need; see needRare

	flushTo uint64 // position up to which the queue may leave

	at   streamState
	recv recvSize

	entered    bool // the loop is in one of this channel's methods
	inIO       bool // HandleIO is under way: it settles the interest at its end
	inFlush    bool
	againQueue bool // the flush goes on in the next turn
	wantRead   bool // a read was asked for
	paused     bool // not reading because not writable
	starved    bool // not reading because there is no memory, or not enough
	inputShut  bool // the peer's end of the stream has been read
	outputShut bool // our sending side is to be closed behind the queue, or has been
	relayed    bool // what is read goes to another channel
	blocked    bool // the socket is full: waiting for EventWrite
	hangup     bool // a hangup or error was reported that nobody waits for

	passedOn bool // for the listener's loop only: its handlers have let the channel pass
}

// rareState is what a channel needs while it connects, closes or sends a cold file.
// It is apart because there may be a million channels that do nothing of that.
type rareState struct {
	dial       *connecting
	file       *socketFile        // that the socket of a dialed channel is bound to; nil if there is none
	dialed     func(error)        // to be called when a dialed channel is active
	shutWrite  *eventloop.Promise // of CloseWrite
	reason     error              // of the close that waits for the queue, or of the failure
	closeEarly bool               // closed before it was active, with something to send
	closeTimer *eventloop.Timer
	closeSent  uint64    // out.sent when closeTimer was last armed
	lingerEnd  time.Time // when lingering is over at the latest
	heard      bool      // the peer has sent something since lingering began
	op         eventloop.Op
	opRegion   *buffer.FileRegion // that op sends
	abandon    func()             // ends a closed channel for its user before its Ops have ended; nil without
	stateOwed  bool               // the loop's state is to be released when they have
	zc         *zeroCopy          // nil until something has been sent by MSG_ZEROCOPY
	grace      *eventloop.Timer   // of a drain that waits for what the peer has to say
	unheard    int                // what it had sent when that began and has not been read

	from, into *way    // of the relay that the channel is in, or was
	pipe       pipe    // with out.piped bytes
	pipeOf     *way    // whose they are; nil for a mirror's
	waiting    bool    // a mirror takes nothing of them, and holds them up
	feeds      *mirror // whose sink the channel is
	queued     *queued // part in the budget

	receiver  *FileReceiver // that the channel has, or had
	receiving bool          // what is read goes to its file
}

func (s *stream) needRare() *rareState {
	if s.rare == nil {
		s.rare = new(rareState)
	}
	return s.rare
}

// inOp reports whether what is first in the queue waits for something else than the
// socket: a region for the Op that sends it, a pipe for a mirror.
func (s *stream) inOp() bool {
	r := s.rare
	return r != nil && (r.opRegion != nil || r.waiting)
}

// receiving reports whether what is read goes to a file.
func (s *stream) receiving() bool { return s.rare != nil && s.rare.receiving }

// starvedRetry is when channels that found no memory for reading, or not enough, try
// again.
const starvedRetry = 20 * time.Millisecond

// newStream makes a channel on loop. fd is -1 for one that is to connect.
func newStream(cfg *Config, loop *eventloop.Loop, parent pipeline.Channel, fd int) *stream {
	s := &stream{cfg: cfg}
	s.fd.fd = int32(fd)
	if fd >= 0 {
		s.fd.publish()
	}
	s.sock = &s.fd
	s.recv = newRecvSize(cfg.MinRead)
	low, high := cfg.waterMarks(s.recv.size())
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
	if s.at == streamClosed || s.reg != nil {
		return
	}
	if s.fd.fd >= 0 {
		reg, err := s.Loop().Register(int(s.fd.fd), s)
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
	s.out.spare = &s.state.queues
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
	if r := s.rare; r != nil && r.closeEarly {
		(*streamCore)(s).DoClose(pipeline.CloseFlushed, r.reason)
		return
	}
	s.flush()
	s.updateInterest()
}

// HandleIO implements eventloop.IOHandle.
func (s *stream) HandleIO(ev eventloop.Event) {
	defer s.contain()
	s.entered, s.inIO = true, true
	s.ready(ev)
	s.inIO = false
	s.updateInterest()
	s.entered = false
}

// contain, deferred where the loop enters, ends a channel whose transport panics,
// over a message that was released too early for example, and no other. Handlers
// and most completions have guards of their own; a bare one may be ended by
// runtime.Goexit.
func (s *stream) contain() {
	if !s.entered {
		return
	}
	v := recover()
	s.entered, s.inIO = false, false
	if v != nil {
		s.broken(v)
	} else {
		s.closeNow(false, pipeline.ErrGoexit)
	}
}

func (s *stream) broken(v any) {
	err := &pipeline.PanicError{Value: v, Handler: "transport", Stack: debug.Stack()}
	s.failWith(err)
}

func (s *stream) ready(ev eventloop.Event) {
	const broken = eventloop.EventError | eventloop.EventHangup
	if s.at == streamConnecting {
		if ev&(eventloop.EventWrite|broken) != 0 {
			s.connectEnded()
		}
		return
	}
	if ev&eventloop.EventError != 0 && !s.hearConfirmations() {
		if ev &^= eventloop.EventError; ev == 0 || s.at == streamClosed {
			return
		}
	}
	if s.blocked && ev&(eventloop.EventWrite|broken) != 0 {
		s.blocked = false
		s.flush()
	}
	switch {
	case s.at == streamLingering:
		if !s.inputShut { // else it waits for confirmations
			s.discard()
		}
	case s.relayed:
		if ev&(eventloop.EventRead|eventloop.EventReadHangup|broken) != 0 {
			s.rare.from.ready()
		}
	case s.receiving():
		if ev&(eventloop.EventRead|eventloop.EventReadHangup|broken) != 0 {
			s.rare.receiver.ready()
		}
	case s.reading():
		if ev&(eventloop.EventRead|eventloop.EventReadHangup|broken) != 0 {
			s.readTurn(ev&(eventloop.EventReadHangup|broken) != 0)
		}
	}
	if ev&broken != 0 && !s.wantsInput() && !s.blocked && !s.gone(ev) {
		// It cannot be masked and nobody can do anything about it now: the descriptor
		// leaves the poller until there is something to read or to write again.
		s.hangup = true
	}
}

// gone closes a channel that has read all that there was and whose peer takes nothing
// any more, and reports whether it is so. Nothing else would tell: it does not read,
// and it may never write.
func (s *stream) gone(ev eventloop.Event) bool {
	if s.at != streamOpen || !s.inputShut || s.inOp() {
		return false
	}
	if err := s.sock.socketError(); err != nil {
		if e := errors.Unwrap(err); e != nil {
			err = e // the errno alone: it is of no call
		}
		s.fail("write", err)
	} else if ev&eventloop.EventHangup != 0 {
		s.closeNow(false, io.EOF)
	}
	return s.at == streamClosed
}

// reading reports whether the channel is to read for its handlers.
func (s *stream) reading() bool {
	return s.at == streamOpen && s.wantRead && !s.paused && !s.starved && !s.inputShut && !s.relayed && !s.receiving()
}

// wantsInput reports whether the channel is to be told of what comes in.
func (s *stream) wantsInput() bool {
	if s.relayed {
		w := s.rare.from
		return w.open() && !w.stalled && !s.starved
	}
	if s.receiving() {
		return s.rare.receiver.waiting()
	}
	return s.reading()
}

// updateInterest has the poller report what the channel waits for.
func (s *stream) updateInterest() {
	if s.inIO || s.reg == nil {
		return
	}
	var ev eventloop.Event
	switch s.at {
	case streamNew, streamFailing, streamClosed:
		return
	case streamConnecting:
		ev = eventloop.EventWrite
	case streamLingering:
		if !s.inputShut {
			ev = eventloop.EventRead
		}
	case streamOpen, streamClosing:
		if s.wantsInput() {
			ev = eventloop.EventRead | eventloop.EventReadHangup
		}
		if s.blocked {
			ev |= eventloop.EventWrite
		}
	}
	var err error
	if ev == 0 && s.hangup {
		err = s.reg.Suspend()
		s.watchConfirmations()
	} else {
		s.hangup = false
		err = s.reg.SetInterest(ev)
	}
	if err != nil {
		s.fail("poll", err)
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
	if s.state.pressed() {
		s.state.hold(s)
		return
	}
	s.wantRead = false
	most := s.readsPerTurn()
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
			} else if total == 0 {
				s.wantRead = true // the request is not served yet
			}
			break
		}
		counters.Reads++
		if n == 0 {
			eof = true
			break
		}
		total += n
		counters.BytesRead += uint64(n)
		if s.recv.read(n, s.cfg.MaxRead) {
			s.fitWaterMarks()
		}
		p.FireRead(s.state.message(i))
		if s.at != streamOpen {
			break
		}
		if n < size && !ending || reads == most || total >= maxBytesPerTurn ||
			!s.AutoRead() || s.paused || s.relayed || s.receiving() {
			break
		}
	}
	if s.recv.turn(total, s.cfg.MinRead) {
		s.fitWaterMarks()
	}
	p.FireReadComplete()
	switch {
	case s.at == streamClosed:
	case failure != nil:
		s.fail("read", failure)
	case eof:
		s.inputEnded()
		if s.at == streamOpen {
			s.graceOver()
		}
	case total > 0 && s.rare != nil:
		s.heardInDrain(total)
	}
}

// readsPerTurn is how many reads are the channel's share of a turn.
func (s *stream) readsPerTurn() int {
	if n := s.cfg.ReadsPerTurn; n > 0 {
		return n
	}
	return maxReadsPerTurn
}

// fitWaterMarks lets the default marks follow the receive buffer in use.
func (s *stream) fitWaterMarks() {
	if r := s.rare; r == nil || r.queued == nil || !r.queued.squeezed {
		s.SetWaterMarks(s.cfg.waterMarks(s.recv.size()))
	}
}

// starve pauses reading for a moment: there is no memory to read into.
func (s *stream) starve(err error) {
	s.wantRead = true
	s.state.starve(s, err)
}

// feed is fed, from any goroutine.
func (s *stream) feed() {
	if s.Loop().InLoop() {
		s.fed()
	} else {
		_ = s.Loop().Execute(s.fed) // a loop that has ended reads nothing
	}
}

// setStarved keeps the channel from reading, or no longer, and reports whether that
// is news. Loop-only.
func (s *stream) setStarved(on bool) bool {
	news := s.starved != on
	s.starved = on
	return news
}

// fed lets a starved channel read again. Loop-only.
func (s *stream) fed() {
	s.starved = false
	s.updateInterest()
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
		if s.out.done {
			core.DoClose(pipeline.CloseNow, io.EOF)
		}
	}
}

// fail closes the channel because of a failed system call, and tells the handlers.
func (s *stream) fail(op string, err error) {
	if s.at < streamFailing {
		s.failWith(&OpError{Op: op, Addr: s.remote.load(), Err: err})
	}
}

// failWith tells the handlers of err and closes the channel. What they write meanwhile
// is refused: to send it, or only to queue it, could fail for the same reason, over and
// over.
func (s *stream) failWith(err error) {
	if s.at < streamFailing {
		s.at, s.needRare().reason = streamFailing, err
		s.Pipeline().FireError(err)
	}
	s.closeNow(false, err)
}

// streamCore is the stream as the pipeline's head sees it.
type streamCore stream

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
	if s.srv != nil && !s.cfg.ReadWhileUnwritable {
		s.paused = !writable
		s.updateInterest()
	}
}

func (c *streamCore) DoEnd() {
	s := (*stream)(c)
	if s.reg != nil && s.reg.Ops() > 0 {
		s.needRare().stateOwed = true // an Op that has been given up may still use it
	} else {
		s.releaseState()
	}
	if s.srv != nil {
		s.srv.ended(s)
	}
	s.Loop().Group().Release()
}

// releaseState gives up the loop's state.
func (s *stream) releaseState() {
	if s.state != nil {
		s.out.spare = nil
		s.state.release()
		s.state = nil
	}
}

func (c *streamCore) LocalAddr() net.Addr  { return c.local.load() }
func (c *streamCore) RemoteAddr() net.Addr { return c.remote.load() }
