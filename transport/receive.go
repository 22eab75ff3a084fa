package transport

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync/atomic"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/pipeline"
)

// FileReceiver writes what a channel receives into a file, past the pipeline, and where
// it can through a pipe in the kernel, without its entering the process (splice(2)). Its
// zero value works.
//
// All of that is done by an Op on the group's Offload: the loop only waits for the socket,
// and no other channel feels a slow disk. Nothing is taken from the socket that is not
// written by the same Op, 512 KiB at a time, so that a disk which does not keep up holds
// up the peer. Mirrors change some of that, see there. A disk that takes nothing at all
// keeps a worker for each channel that writes to it; when it has them all (64 by default,
// eventloop.OffloadConfig), what else is offloaded waits with them.
//
// The fields must not change after Start. A FileReceiver is started once.
type FileReceiver struct {
	// Offset is where in the file the first byte goes. Negative is an error.
	Offset int64
	// First is what handlers have read already and belongs to the file: it is written
	// before anything is received, and counts. Start takes it over, whether or not it
	// succeeds. It may be nil.
	First *buffer.Buf
	// Preallocate is for how many bytes, from Offset on, the file system is to keep room
	// before anything is received, if it can (fallocate(2)): a disk that is too small is
	// known at once. What is not used stays the file's until it is truncated. 0 is none;
	// negative is an error.
	Preallocate int64
	// Sync has what was received be on the disk (fdatasync(2)) when a reception ends
	// without an error.
	Sync bool
	// Mirrors get a copy each of what goes into the file, First included. With mirrors the
	// loop takes the bytes from the socket, one pipe at a time, which a worker writes when
	// all mirrors have them. One that blocks holds up the reception, and a Close too, until
	// Config.CloseTimeout; what it holds up when the channel is reset is not written. A
	// mirror may have got what the file could not take.
	Mirrors []Mirror
	// Progress is called as the handler, as often as some has been written, with how many
	// bytes are in the file by now. It may be nil.
	Progress func(written int64)

	wayCounters
	s       *stream
	c       *pipeline.Context
	then    func(int64, error)
	op      eventloop.Op
	mirrors *mirrors // nil for none

	copies bool // for tests: read and write from the start

	// Loop-only.
	busy     bool // the Op is under way
	told     bool // then is about to be called, or has been
	stopping bool
	filed    tally
	owesEnd  bool // the handlers are to be told of the end of the stream afterwards

	// Any goroutine.
	halt   atomic.Bool   // the Op is to end as soon as it can
	latest atomic.Uint32 // route of the latest piece

	filing // of the Op while it is under way, else of the loop
}

// Errors of FileReceiver.Start.
var (
	// ErrReceiving reports a channel whose bytes go to a file already.
	ErrReceiving = errors.New("transport: channel is received into a file already")
	// ErrCannotReceive reports a channel that is no stream of this package, a file that
	// was not opened for writing or was opened with O_APPEND, which splice refuses, or
	// sizes that make no sense.
	ErrCannotReceive = errors.New("transport: cannot receive into the file")
)

// Start has the next length bytes that the channel of c receives go to file; a negative
// length means all until the peer ends its stream. What comes behind them is for the
// handlers, as is everything when it is over. It does not depend on AutoRead. Handlers
// that may hold bytes, such as decoders, are removed before; what they give up then
// belongs into First.
//
// then is called once, as c's handler, with how many bytes are in the file from Offset on:
// without a hole, and whatever else may have been received. The error is nil after length
// bytes, at the end of the stream if length is negative, and after Stop;
// io.ErrUnexpectedEOF if the stream has ended too early; an *os.PathError if the file
// failed: the channel stays open then, and a piece of the stream is lost; and the
// channel's CloseReason when it has closed. In that case, if the disk has not answered for
// Config.CloseTimeout, more may be written after the call, up to 4 MiB. Until then the
// channel is busy, see [pipeline.Channel]'s Begin; its descriptor stays open while the disk
// is waited for. A stream that has ended ends for the handlers when then has returned.
//
// file stays the caller's, who closes it when then has been called.
//
// Start fails with [ErrReceiving], [ErrRelayed], which a mirror's channel may be the cause
// of, [ErrCannotReceive], or the reason of a channel that has closed; nothing has changed
// then, and then is not called.
//
// Loop only.
func (r *FileReceiver) Start(c *pipeline.Context, file *os.File, length int64, then func(written int64, err error)) error {
	to, err := newDiskFile(file)
	if err != nil {
		r.dropFirst()
		return fmt.Errorf("%w: %w", ErrCannotReceive, err)
	}
	return r.start(c, to, length, then)
}

func (r *FileReceiver) start(c *pipeline.Context, to storage, length int64, then func(int64, error)) error {
	s, err := r.check(c, length)
	if err != nil {
		r.dropFirst()
		return err
	}
	r.s, r.c, r.then = s, c, then
	r.filing = filing{
		diskWriter: diskWriter{to: to, pool: s.state.pool, count: &r.wayCounters, at: r.Offset, copying: r.copies},
		state:      s.state,
		sock:       s.sock,
		end:        math.MaxInt64,
		eof:        s.inputShut,
	}
	if length >= 0 {
		r.end, r.bounded = r.Offset+length, true
	}
	r.op.Run = r.run
	s.needRare().receiver = r
	s.rare.receiving = true
	s.Begin()
	r.mirrors = newMirrors(r.Mirrors, r, r, s, &r.wayCounters)
	if r.mirrors == nil {
		r.submit()
	} else {
		r.begin()
	}
	s.updateInterest()
	return nil
}

// check says why the receiver cannot be started, or claims what it needs.
func (r *FileReceiver) check(c *pipeline.Context, length int64) (*stream, error) {
	s, ok := c.Channel().(*stream)
	if !ok {
		return nil, fmt.Errorf("%w: %v is no stream", ErrCannotReceive, c.Channel())
	}
	invariant.OnLoop(s.Loop())
	switch {
	case r.s != nil:
		return nil, ErrReceiving
	case s.at != streamOpen:
		return nil, s.closed()
	case r.Offset < 0 || r.Preallocate < 0:
		return nil, fmt.Errorf("%w: negative Offset %d or Preallocate %d", ErrCannotReceive, r.Offset, r.Preallocate)
	case r.Offset > math.MaxInt64-max(length, r.Preallocate):
		return nil, fmt.Errorf("%w: it would end beyond the largest offset", ErrCannotReceive)
	case r.First != nil && length >= 0 && int64(r.First.Len()) > length:
		return nil, fmt.Errorf("%w: First has %d bytes, of %d", ErrCannotReceive, r.First.Len(), length)
	}
	if err := claimInput(s, r, ErrReceiving); err != nil {
		return nil, err
	}
	if err := claimMirrors(r.Mirrors, r); err != nil {
		disclaimInput(s, r)
		return nil, err
	}
	return s, nil
}

// Stop ends the reception: what has been taken from the socket is written, then then is
// called, without an error if there is none. It does nothing when it is over.
//
// Loop only: that of the channel.
func (r *FileReceiver) Stop() {
	if r.s == nil {
		return
	}
	invariant.OnLoop(r.s.Loop())
	if r.told || r.stopping || r.s.at == streamClosed {
		return
	}
	r.stopping = true
	r.halt.Store(true)
	if !r.unfinished() {
		r.stop()
		r.s.updateInterest()
	}
}

// ReceiveStats is how many bytes a FileReceiver has written.
type ReceiveStats struct {
	WayStats       // into the file
	Mirrored int64 // bytes given to the mirrors, all together, less what could not be written
	Dropped  int64 // bytes that mirrors missed which had been given up
}

// Stats returns how many bytes have gone into the file so far. It may be called on any
// goroutine.
func (r *FileReceiver) Stats() ReceiveStats {
	return ReceiveStats{WayStats: r.stats(), Mirrored: r.mirrored.Load(), Dropped: r.dropped.Load()}
}

// waiting reports whether the socket is to be waited for.
func (r *FileReceiver) waiting() bool {
	return !r.busy && !r.told && !r.stopping && r.held == 0 && r.s.at == streamOpen && !r.s.starved && r.mirrors.take()
}

// unfinished reports whether something that was taken from the socket is not in the file
// yet, or its Op under way.
func (r *FileReceiver) unfinished() bool { return r.busy || r.offering || r.held > 0 }

// ready is called when the socket has something, or has broken.
func (r *FileReceiver) ready() {
	switch {
	case !r.waiting():
	case r.mirrors != nil:
		r.pull()
	default:
		r.submit()
	}
}

// submit has the Op go on.
func (r *FileReceiver) submit() {
	s := r.s
	if r.copying && r.mirrors == nil && s.state.pressed() {
		s.state.hold(s)
		return
	}
	r.busy = true
	if err := s.reg.Submit(&r.op); err != nil {
		r.busy = false
		r.finish(err)
	}
}

// opEnded deals with what the Op has done. The channel may have closed meanwhile.
func (r *FileReceiver) opEnded() {
	s, op := r.s, &r.op
	r.busy = false
	counters := s.Loop().Counters()
	counters.BytesRead += uint64(r.read)
	r.filed.add(&r.wayCounters, counters)
	if r.prepared || r.told {
		r.dropFirst()
	}
	if r.told { // it has been given up
		r.dropPiece()
		return
	}
	if op.Err != nil {
		r.failure = op.Err // a panic
	}
	if op.N > 0 && r.Progress != nil {
		deliver(r.c, func() { r.Progress(r.written()) })
	}
	r.pieceStored(int(op.N))
	r.goOn()
	if s.at == streamClosing {
		s.settle() // which has waited for the Op
	}
	s.updateInterest()
}

// goOn does what comes next: something has gone into the file, or the end of the stream
// been read.
func (r *FileReceiver) goOn() {
	s := r.s
	if r.eof && !s.inputShut {
		s.inputShut, r.owesEnd = true, true
	}
	switch {
	case r.failure != nil:
		r.finish(r.failure)
	case s.at == streamClosed && r.held > 0:
		r.finish(s.CloseReason())
	case r.held > 0:
		r.offer()
	case r.left() == 0 || r.eof && !r.bounded:
		r.finish(nil)
	case r.eof:
		r.finish(io.ErrUnexpectedEOF)
	case s.at == streamClosed:
		r.finish(s.CloseReason())
	case s.at != streamOpen: // it is told when the channel has closed
	case r.broken != nil:
		s.fail("read", r.broken)
	case r.stopping:
		r.stop()
	case r.short != nil:
		s.starve(r.short)
	case r.mirrors != nil:
		if r.waiting() {
			r.pull()
		}
	case !r.empty:
		r.submit()
	}
}

// stop ends the reception without an error.
func (r *FileReceiver) stop() {
	if r.Sync && !r.synced {
		r.last = true
		r.submit()
		return
	}
	r.finish(nil)
}

// closed is called when the channel closes.
func (r *FileReceiver) closed() {
	r.halt.Store(true)
	if !r.busy {
		r.finish(r.s.CloseReason())
	}
}

// abandoned is called when the channel has closed and waits for the Op no longer, which
// may still write.
func (r *FileReceiver) abandoned() {
	if r.busy {
		r.finish(r.s.CloseReason())
	}
}

// finish has then called.
func (r *FileReceiver) finish(err error) {
	if r.told {
		return
	}
	r.told = true
	if !r.offering && !r.busy {
		r.dropFirst()
	}
	r.dropPiece()
	r.mirrors.end()
	deliver(r.c, func() { r.tell(err) })
}

func (r *FileReceiver) tell(err error) {
	s, returned := r.s, false
	onLoop := s.Loop().InLoop() // a handler may run elsewhere, and the loop may have ended
	if onLoop {
		r.free() // then may start another one
	}
	defer func() {
		defer s.End()
		switch {
		case !onLoop:
			_ = s.Loop().Execute(func() { r.free(); r.over() })
		case returned: // else the channel is about to be closed
			r.over()
		}
	}()
	r.then(r.written(), err)
	returned = true
}

// free has the input of the channel be free again.
func (r *FileReceiver) free() {
	r.s.rare.receiving = false
	disclaimInput(r.s, r)
}

// over lets the handlers have what comes now.
func (r *FileReceiver) over() {
	s := r.s
	switch {
	case s.at != streamOpen:
		return
	case s.receiving():
		s.rare.receiver.owesEnd = r.owesEnd
	case r.owesEnd:
		s.inputEnded()
	}
	s.updateInterest()
}

func (r *FileReceiver) dropFirst() {
	if b := r.First; b != nil {
		r.First = nil
		b.Release()
	}
}

// written returns how many bytes are in the file.
func (r *FileReceiver) written() int64 { return r.copied.Load() + r.spliced.Load() }
