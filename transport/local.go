package transport

import (
	"io"
	"net"
	"os"
	"runtime/debug"
	"syscall"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"go.uber.org/zap"
)

// localAddr is an address of the network "local": a name in this process.
type localAddr string

func (localAddr) Network() string  { return "local" }
func (a localAddr) String() string { return string(a) }

// parcel is a message on its way from one local channel to another.
type parcel struct {
	msg    any // nil if there is nothing to deliver
	charge int64
	p      *eventloop.Promise // nil if nobody asked
}

// localChannel is an end of a connection inside the process. Messages are handed to
// the other end as they are; only bytes without an owner become a Buf, as on a
// socket.
type localChannel struct {
	pipeline.Base

	cfg *Config // shared by the channels of a Server or Dialer
	srv *server // that accepted the channel; nil if it was dialed

	placed   bool // guarded by srv.mu: it has a place of MaxConns
	passedOn bool // for the listener's loop only: its handlers have let the channel pass

	local, remote addrBox // any goroutine

	// Loop-only.
	reg     *eventloop.Registration
	in, out *lane // nil until connected, then fixed
	queue   fifo[parcel]
	due     fifo[*eventloop.Promise] // of messages that have left
	charge  int64                    // pinned bytes in queue
	flushed int                      // entries of queue that may leave
	moved   uint64                   // entries that have left

	dial       *eventloop.Promise // of a connect under way
	dialed     func(error)        // to be called when a dialed channel is active
	shutWrite  *eventloop.Promise // of CloseWrite
	reason     error              // of the close that waits for the queue
	closeTimer *eventloop.Timer
	closeMoved uint64           // moved when closeTimer was last armed
	grace      *eventloop.Timer // of a drain that waits for what the peer has to say
	unheard    int              // messages that it had sent when that began and that have not been read

	at         streamState
	started    bool
	closeEarly bool // closed before it was active, with something to send
	entered    bool // the loop is in one of this channel's methods
	inFlush    bool
	againQueue bool // the flush goes on in the next turn
	wantRead   bool // a read was asked for
	paused     bool // not reading because not writable
	held       bool // not reading because whoever dialed is still to be told
	heard      bool // anything has come yet
	inputShut  bool // the peer's end of the stream has been read
	outputShut bool // our sending side is to be closed behind the queue, or has been
	outputDone bool // it has been
	blocked    bool // the way is full: waiting for room
}

func newLocal(cfg *Config, loop *eventloop.Loop, parent pipeline.Channel) *localChannel {
	s := &localChannel{cfg: cfg}
	low, high := cfg.waterMarks(recvSizes[0])
	s.Setup(s, (*localCore)(s), pipeline.BaseConfig{
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

// start registers the channel on its loop and, if it is connected already, makes it
// active. Loop-only.
func (s *localChannel) start(init func(pipeline.Channel) error) {
	if s.at == streamClosed || s.started {
		return
	}
	s.started = true
	// There is no descriptor; the loop tells its registrations when it ends.
	reg, err := s.Loop().Register(-1, s)
	if err != nil {
		s.closeNow(false, err)
		return
	}
	s.reg = reg
	if s.Register(init) == nil && s.at == streamNew && s.in != nil {
		s.opened()
	}
}

// onceActive implements dialed.
func (s *localChannel) onceActive(f func(error)) {
	if s.at == streamOpen {
		f(nil)
		return
	}
	s.dialed = f
}

// setStarved implements dialed.
func (s *localChannel) setStarved(on bool) (news bool) {
	news = s.held != on
	s.held = on
	return news
}

// feed implements dialed.
func (s *localChannel) feed() {
	fed := func() {
		s.held = false
		s.look()
	}
	if s.Loop().InLoop() {
		fed()
	} else {
		_ = s.Loop().Execute(fed) // a loop that has ended reads nothing
	}
}

// over implements dialed.
func (s *localChannel) over() bool { return s.at == streamClosed }

// opened makes a connected channel active.
func (s *localChannel) opened() {
	s.at = streamOpen
	s.MarkActive()
	if s.at != streamOpen {
		return
	}
	if s.closeEarly {
		(*localCore)(s).DoClose(pipeline.CloseFlushed, s.reason)
		return
	}
	s.flush()
	s.look()
}

// reading reports whether the channel is to read.
func (s *localChannel) reading() bool {
	return s.at == streamOpen && s.wantRead && !s.paused && !s.held && !s.inputShut
}

// look has the loop read what has come, in a later task.
func (s *localChannel) look() {
	if s.at == streamOpen && s.in.worth(s.reading()) {
		_ = s.Loop().Submit((*localRead)(s))
	}
}

// localRead is a channel as the task that reads what has come.
type localRead localChannel

func (t *localRead) Run() {
	s := (*localChannel)(t)
	defer s.contain()
	s.entered = true
	if s.in.tellAgain() {
		if s.at == streamOpen || s.at == streamClosing {
			s.fail("read", os.NewSyscallError("read", syscall.ECONNRESET))
		}
	} else if s.reading() {
		s.readTurn()
	}
	s.entered = false
}

// localRoom is a channel as the task that goes on when there is room at the other end,
// or nobody any more.
type localRoom localChannel

func (t *localRoom) Run() {
	s := (*localChannel)(t)
	defer s.contain()
	s.entered = true
	s.blocked = false
	s.flush()
	s.entered = false
}

// contain, deferred where the loop enters, ends a channel whose transport panics, or
// is ended by runtime.Goexit, and no other.
func (s *localChannel) contain() {
	if !s.entered {
		return
	}
	v := recover()
	s.entered = false
	if v == nil {
		s.closeNow(false, pipeline.ErrGoexit)
		return
	}
	err := &pipeline.PanicError{Value: v, Handler: "transport", Stack: debug.Stack()}
	if s.at != streamClosed {
		s.Pipeline().FireError(err)
	}
	s.closeNow(false, err)
}

// readTurn reads until there is no more, or this channel has had its share of the
// turn. User code runs in it: the state may be another one after every FireRead.
func (s *localChannel) readTurn() {
	s.wantRead = false
	most := s.cfg.ReadsPerTurn
	if most == 0 {
		most = maxReadsPerTurn
	}
	var total int64
	eof := false
	for reads := 1; ; reads++ {
		p, ended := s.in.take()
		if p.msg == nil {
			if !ended && reads == 1 {
				s.wantRead = true // the request is not served yet
				return
			}
			eof = ended
			break
		}
		total += p.charge
		s.heard = true
		s.unheard = max(0, s.unheard-1)
		s.Pipeline().FireRead(p.msg)
		if s.at != streamOpen || reads == most || total >= maxBytesPerTurn || !s.AutoRead() || s.paused {
			break
		}
	}
	s.Pipeline().FireReadComplete()
	switch {
	case s.at != streamOpen:
	case eof:
		s.inputEnded()
		if s.at == streamOpen {
			s.graceOver()
		}
	default:
		s.heardInDrain()
	}
}

// localDrain is a channel as the task that begins to drain it.
type localDrain localChannel

func (t *localDrain) Run() {
	s := (*localChannel)(t)
	defer s.contain()
	s.entered = true
	s.Pipeline().FireEvent(Draining{})
	// As drainTask: what has come by now is answered, sooner or later.
	if s.listening() {
		s.unheard = s.in.unread()
	}
	if s.reading() {
		s.readTurn()
	}
	switch {
	case s.reading() && !s.heard:
		s.grace = s.Loop().Schedule(drainGrace, s.graceOver)
	case s.listening() && s.unheard > 0:
		s.waitForUnheard()
	default:
		s.CloseIdle()
	}
	s.entered = false
}

// listening reports whether the channel reads on its own, now or when it can.
func (s *localChannel) listening() bool { return s.at == streamOpen && s.wantRead && !s.inputShut }

// waitForUnheard is that of a stream.
func (s *localChannel) waitForUnheard() {
	s.closeMoved = s.moved
	s.grace = s.Loop().Schedule(s.cfg.CloseTimeout, func() {
		if s.listening() && s.moved != s.closeMoved {
			s.waitForUnheard()
		} else {
			s.graceOver()
		}
	})
}

// heardInDrain goes on with a drain that waits for the peer, if it has heard what it has
// waited for.
func (s *localChannel) heardInDrain() {
	switch {
	case s.grace == nil:
	case s.unheard > 0 && s.listening():
		s.grace.Stop()
		s.waitForUnheard()
	default:
		s.graceOver()
	}
}

// graceOver goes on with a drain that has waited for the peer.
func (s *localChannel) graceOver() {
	if s.grace != nil {
		s.grace.Stop()
		s.grace = nil
		s.CloseIdle()
	}
}

// inputEnded deals with the end of what the peer sends.
func (s *localChannel) inputEnded() {
	s.inputShut = true
	core := (*localCore)(s)
	if !s.cfg.HalfClose {
		core.DoClose(pipeline.CloseFlushed, io.EOF)
		return
	}
	s.Pipeline().FireEvent(pipeline.InputShutdown{})
	if s.outputDone {
		core.DoClose(pipeline.CloseNow, io.EOF)
	}
}

// fail closes the channel because its connection is broken, and tells the handlers.
func (s *localChannel) fail(op string, err error) {
	if s.at >= streamFailing {
		return
	}
	s.at = streamFailing // what the handlers write meanwhile is refused, see stream.failWith
	failure := &OpError{Op: op, Addr: s.remote.load(), Err: err}
	s.Pipeline().FireError(failure)
	s.closeNow(false, failure)
}

// flush hands over what may leave, as far as the other end takes it. It completes
// promises, so user code may write, flush or close before it returns.
func (s *localChannel) flush() {
	if s.inFlush || s.againQueue || s.blocked || s.at != streamOpen && s.at != streamClosing {
		return
	}
	s.inFlush = true
	defer s.flushEnded()
	for calls := 0; s.flushed > 0 && !s.blocked && s.at != streamClosed; calls++ {
		if calls == maxWritesPerFlush {
			s.flushAgain()
			break
		}
		if !s.out.put(s) {
			s.fail("write", os.NewSyscallError("write", syscall.EPIPE))
			return
		}
		s.completeDue()
	}
	s.settle()
}

// completeDue completes the promises of what has left.
func (s *localChannel) completeDue() {
	for s.due.n > 0 {
		p := *s.due.first()
		*s.due.first() = nil
		s.due.pop()
		p.Complete(nil)
	}
}

// flushEnded ends a flush. Callbacks may have asked for another one meanwhile, or have
// closed the channel after its queue had been settled.
func (s *localChannel) flushEnded() {
	s.inFlush = false
	switch {
	case s.at == streamClosing && s.queue.n == 0:
		s.closeNow(false, s.reason)
	case s.flushed > 0 && !s.blocked && (s.at == streamOpen || s.at == streamClosing):
		s.flushAgain()
	}
}

// flushAgain goes on with the flush in the next turn.
func (s *localChannel) flushAgain() {
	if !s.againQueue {
		s.againQueue = true
		s.Loop().AtTurnEnd((*localFlush)(s))
	}
}

// localFlush is the channel as the task that goes on with its flush.
type localFlush localChannel

func (t *localFlush) Run() {
	s := (*localChannel)(t)
	defer s.contain()
	s.entered = true
	s.againQueue = false
	s.flush()
	s.entered = false
}

// settle judges the water marks after a flush, and does what had to wait for the
// queue to leave.
func (s *localChannel) settle() {
	if s.at == streamClosed {
		return
	}
	s.SetPending(s.charge)
	if s.at == streamClosed || s.queue.n > 0 {
		return
	}
	s.queue.shrink()
	s.due.shrink()
	switch {
	case s.at == streamClosing:
		s.closeNow(false, s.reason)
	case s.outputShut && !s.outputDone && s.at == streamOpen:
		s.shutdownOutput()
	}
}

// shutdownOutput closes the sending side: the queue has left.
func (s *localChannel) shutdownOutput() {
	s.outputDone = true
	s.out.finish(false, s.Logger())
	p := s.shutWrite
	s.shutWrite = nil
	p.Complete(nil)
	if s.at != streamOpen {
		return
	}
	s.Pipeline().FireEvent(pipeline.OutputShutdown{})
	if s.inputShut && s.at == streamOpen {
		s.closeNow(false, io.EOF)
	}
}

// armCloseTimer bounds a close that waits.
func (s *localChannel) armCloseTimer() {
	s.closeMoved = s.moved
	s.closeTimer = s.Loop().Schedule(s.cfg.CloseTimeout, func() {
		if s.at != streamClosing {
			return
		}
		if s.moved != s.closeMoved {
			s.armCloseTimer() // slow, but alive
			return
		}
		s.closeNow(true, ErrCloseTimeout)
	})
}

// closeNow gives up the connection, drops the queue and tells all who wait.
func (s *localChannel) closeNow(reset bool, reason error) {
	if s.at == streamClosed {
		return
	}
	s.at = streamClosed
	s.MarkClosing(reason)
	for _, t := range []*eventloop.Timer{s.closeTimer, s.grace} {
		if t != nil {
			t.Stop()
		}
	}
	s.grace = nil
	var waiting []*eventloop.Promise
	for s.due.n > 0 {
		waiting = append(waiting, *s.due.first())
		s.due.pop()
	}
	for i := range int(s.queue.n) {
		if p := s.queue.at(i).p; p != nil {
			waiting = append(waiting, p)
		}
	}
	queue := s.queue
	s.queue, s.due, s.flushed, s.charge = fifo[parcel]{}, fifo[*eventloop.Promise]{}, 0, 0
	drop(queue, s.Logger())
	if s.shutWrite != nil {
		waiting = append(waiting, s.shutWrite)
	}
	dial := s.dial
	s.dial, s.shutWrite = nil, nil
	end := func() {
		s.disconnect(reset)
		// Each is told, even if a callback of one before is ended by runtime.Goexit.
		defer s.failAll(waiting)
		defer s.MarkClosed(reason)
		if dial != nil {
			if reason == nil {
				reason = pipeline.ErrClosed
			}
			dial.Complete(reason)
		}
	}
	if s.reg != nil {
		s.reg.Close(end)
	} else {
		end()
	}
}

// disconnect tells the other end that this one is gone.
func (s *localChannel) disconnect(reset bool) {
	if s.out != nil {
		s.out.finish(reset, s.Logger())
		s.in.abandon(s.Logger())
	}
}

// failAll fails what waited for a channel that has closed.
func (s *localChannel) failAll(waiting []*eventloop.Promise) {
	told := 0
	defer func() {
		if told < len(waiting) {
			s.failAll(waiting[told:])
		}
	}()
	err := s.CloseReason()
	for _, p := range waiting {
		told++
		p.Complete(err)
	}
}

// HandleIO implements eventloop.IOHandle. There is no descriptor to be ready.
func (s *localChannel) HandleIO(eventloop.Event) {}

// HandleOp implements eventloop.IOHandle. A local channel has no Ops.
func (s *localChannel) HandleOp(*eventloop.Op) {}

// CloseIO implements eventloop.IOHandle: the loop is ending.
func (s *localChannel) CloseIO() { s.closeNow(false, ErrLoopEnded) }

// localCore is the channel as the pipeline's head sees it.
type localCore localChannel

func (c *localCore) DoConnect(remote, local net.Addr, p *eventloop.Promise) {
	s := (*localChannel)(c)
	if s.at != streamNew || s.in != nil {
		p.Complete(&OpError{Op: "connect", Addr: remote, Err: errConnected})
		return
	}
	s.at, s.dial = streamConnecting, p
	name := localAddr(remote.String())
	s.remote.store(name)
	if local == nil {
		local = unnamed(s)
	}
	s.local.store(local)
	if err := connectLocal(s, name, local); err != nil {
		s.closeNow(false, &OpError{Op: "connect", Addr: name, Err: err})
		return
	}
	s.dial = nil
	s.at = streamNew
	p.Complete(nil)
	if s.at == streamNew {
		s.opened()
	}
	if done := s.dialed; done != nil {
		s.dialed = nil
		if s.at != streamClosed {
			done(nil)
		}
	}
}

func (c *localCore) DoWrite(msg any, p *eventloop.Promise) {
	s := (*localChannel)(c)
	if s.at >= streamClosing || s.outputShut {
		buffer.Release(msg)
		s.refuse(p)
		return
	}
	msg, err := s.pack(msg)
	if err != nil {
		s.Pipeline().FailWrite(p, &OpError{Op: "write", Addr: s.remote.load(), Err: err})
		return
	}
	e := parcel{msg: msg, p: p, charge: entryCharge}
	if msg != nil {
		e.charge = pipeline.PendingSize(msg, s.HighWater())
	}
	s.queue.push(e)
	s.charge += e.charge
	if s.charge > s.HighWater() && !s.cfg.ManualFlush && !s.inFlush && !s.blocked {
		// Only what the other end does not take is judged.
		s.flushed = int(s.queue.n)
		s.flush()
		if s.at == streamClosed {
			return
		}
	}
	if s.cfg.MaxPending > 0 && s.charge > int64(s.cfg.MaxPending) {
		s.fail("write", ErrSlowPeer)
		return
	}
	s.SetPending(s.charge)
}

// pack makes of msg what is handed over: nil if there is nothing in it.
func (s *localChannel) pack(msg any) (any, error) {
	switch m := msg.(type) {
	case nil:
		return nil, ErrUnsupportedMessage
	case *buffer.Buf:
		if m.Len() == 0 {
			m.Release()
			return nil, nil
		}
		if m.Refs() > 1 {
			// Somebody keeps it, whose indices are not to move on another loop.
			d := m.Duplicate()
			m.Release()
			return d, nil
		}
	case []byte:
		if len(m) == 0 {
			return nil, nil
		}
		b, err := s.Alloc().TryAlloc(len(m))
		if err != nil {
			return nil, err
		}
		b.Write(m)
		return b, nil
	case string:
		if len(m) == 0 {
			return nil, nil
		}
		b, err := s.Alloc().TryAlloc(len(m))
		if err != nil {
			return nil, err
		}
		b.WriteString(m)
		return b, nil
	}
	return msg, nil
}

// refuse fails a write that came too late. A close is reported by itself; only a
// write behind CloseWrite is news to the handlers.
func (s *localChannel) refuse(p *eventloop.Promise) {
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

func (c *localCore) DoFlush() {
	s := (*localChannel)(c)
	s.flushed = int(s.queue.n)
	s.flush()
}

func (c *localCore) DoRead() {
	s := (*localChannel)(c)
	s.wantRead = true
	s.look()
}

func (c *localCore) DoReadStop() { c.wantRead = false }

func (c *localCore) DoWritability(writable bool) {
	s := (*localChannel)(c)
	if s.srv != nil && !s.cfg.ReadWhileUnwritable {
		s.paused = !writable
		s.look()
	}
}

func (c *localCore) DoClose(mode pipeline.CloseMode, reason error) {
	s := (*localChannel)(c)
	if s.at == streamClosed {
		return
	}
	if s.at == streamNew && s.in != nil && mode == pipeline.CloseFlushed && s.queue.n > 0 {
		// As stream.closeLater.
		s.reason, s.closeEarly = reason, true
		if !s.started {
			s.start(func(pipeline.Channel) error { return nil })
		}
		return
	}
	if s.at == streamNew || s.at == streamConnecting {
		// Connected already, it was never served: the peer is to know.
		s.closeNow(mode == pipeline.CloseReset || s.in != nil, reason)
		return
	}
	if mode != pipeline.CloseFlushed {
		s.closeNow(mode == pipeline.CloseReset, reason)
		return
	}
	if s.at == streamClosing || s.at == streamFailing {
		return
	}
	s.at, s.reason = streamClosing, reason
	s.flushed = int(s.queue.n)
	s.armCloseTimer()
	s.flush()
	if !s.inFlush && s.at == streamClosing {
		s.settle()
	}
}

func (c *localCore) DoCloseWrite(p *eventloop.Promise) {
	s := (*localChannel)(c)
	switch {
	case s.at >= streamClosing:
		s.refuse(p)
	case s.outputDone:
		p.Complete(nil)
	case s.outputShut:
		if first := s.shutWrite; first == nil {
			s.shutWrite = p
		} else if p != nil {
			first.Then(func(err error) { p.Complete(err) })
		}
	default:
		s.outputShut, s.shutWrite = true, p
		s.flushed = int(s.queue.n)
		s.flush()
		if !s.inFlush && s.at == streamOpen && !s.outputDone {
			s.settle()
		}
	}
}

func (c *localCore) DoEnd() {
	s := (*localChannel)(c)
	if s.srv != nil {
		s.srv.localEnded(s)
	}
	s.Loop().Group().Release()
}

func (c *localCore) LocalAddr() net.Addr  { return c.local.load() }
func (c *localCore) RemoteAddr() net.Addr { return c.remote.load() }

// drop releases messages that nobody will read. One that cannot be released, because
// its owner had done so already, is none of the others' business.
func drop(msgs fifo[parcel], logger *zap.Logger) {
	for msgs.n > 0 {
		p := *msgs.first()
		*msgs.first() = parcel{}
		msgs.pop()
		func() {
			defer func() {
				if v := recover(); v != nil {
					logger.Error("queued message cannot be released", zap.Any("panic", v))
				}
			}()
			buffer.Release(p.msg)
		}()
	}
}

var (
	errRefused   = os.NewSyscallError("connect", syscall.ECONNREFUSED)
	errNameInUse = os.NewSyscallError("bind", syscall.EADDRINUSE)
)
