package transport

import (
	"errors"
	"syscall"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/sys"
)

// intake is what a reception with mirrors has taken from the socket and not written yet:
// one piece, a pipe or a buffer. The loop takes it and gives it to the mirrors; what all of
// them have is written by the Op, and meanwhile nobody else touches the pipe, because
// whoever did would wait for the disk.
type intake struct {
	pipe     pipe
	buf      *buffer.Buf // nil for a pipe
	held     int         // bytes in either
	want     int         // of which the Op is to write so many
	offering bool        // the mirrors are being given it
}

// begin gives First to the mirrors, and then has it written. Whether they are ready does
// not matter: it is in memory anyway.
func (r *FileReceiver) begin() {
	r.offering = true
	if r.First != nil && r.First.Len() > 0 {
		r.mirrors.copy(r.First)
	}
	r.offering = false
	if r.told { // by a handler that has closed the channel
		r.dropFirst()
		return
	}
	r.submit()
}

// pull takes what the socket has and offers it to the mirrors.
func (r *FileReceiver) pull() {
	n, err := r.take()
	r.held = n
	switch {
	case n > 0:
		r.s.Loop().Counters().Reads++
		r.offer()
	case r.s.starved:
	case err == sys.ErrAgain:
		r.s.Loop().Counters().EmptyReads++
	case err != nil:
		r.s.fail("read", err)
	default:
		r.s.Loop().Counters().Reads++
		r.eof = true
		if r.Sync && !r.synced {
			r.submit()
			return
		}
		r.goOn()
	}
}

// take takes one piece from the socket. 0 bytes without an error is the end of the stream,
// or, if the channel is starved now, no memory.
func (r *FileReceiver) take() (int, error) {
	if r.route().path == PathSplice {
		p, err := r.state.pipes.lend()
		if err != nil {
			r.took(route{PathCopy, whySmallPipes})
		} else {
			size := int64(max(spliceSize(), shortSplice))
			n, err := r.sock.(splicer).spliceIn(p.w, int(min(r.left(), size)))
			switch {
			case n > 0:
				r.pipe = p
				piped.Add(int64(n))
				return n, nil
			case errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS):
				r.copying = true // the socket has nothing to do with pipes
				r.state.pipes.back(p)
			default:
				r.state.pipes.back(p)
				return 0, err
			}
		}
	}
	s := r.s
	if s.state.pressed() {
		s.state.hold(s)
		return 0, nil
	}
	hot, err := s.state.receive(0)
	if err != nil {
		s.starve(err)
		return 0, nil
	}
	n, err := s.sock.read(hot, int(min(r.left(), int64(recvSizes[0]))))
	if n > 0 {
		s.Loop().Counters().BytesRead += uint64(n)
		r.buf = s.state.message(0)
	}
	return n, err
}

// offer gives the mirrors what is held, and has the Op write what all of them have. If
// that is nothing it is offered again when one of them resumes.
//
// User code runs in it, which may close the channel.
func (r *FileReceiver) offer() {
	r.offering = true
	if r.buf != nil {
		r.want = r.held
		r.mirrors.copy(r.buf)
	} else {
		r.want = r.mirrors.tee(r.pipe, r.held)
	}
	r.offering = false
	if r.told {
		r.dropPiece()
	} else if r.want > 0 {
		r.submit()
	}
}

// teeing implements mirrorOwner.
func (r *FileReceiver) teeing() bool { return !r.told }

// mirrorsResume implements mirrorOwner.
func (r *FileReceiver) mirrorsResume() {
	switch {
	case r.busy || r.offering || r.told:
		return
	case r.held > 0:
		r.offer()
	}
	r.s.updateInterest()
}

// storePiece writes what the Op is to write of the piece. On a worker.
func (r *FileReceiver) storePiece() error {
	if r.buf != nil {
		return r.storeBuf(r.buf)
	}
	for r.want > 0 {
		n, err := r.drain(r.pipe, r.want)
		r.want -= n
		r.held -= n
		piped.Add(int64(-n))
		if err != nil {
			return err
		}
	}
	return nil
}

// pieceStored takes note that n bytes of the piece are in the file.
func (r *FileReceiver) pieceStored(n int) {
	switch {
	case r.buf != nil:
		r.dropPiece()
	case r.pipe != (pipe{}):
		r.mirrors.teed(n)
		if r.held == 0 {
			r.state.pipes.back(r.pipe)
			r.pipe = pipe{}
		}
	}
}

// dropPiece drops what is held, unless the mirrors are being given it or the Op writes it.
func (r *FileReceiver) dropPiece() {
	if r.offering || r.busy {
		return
	}
	if r.buf != nil {
		r.buf.Release()
		r.buf = nil
	}
	if r.pipe != (pipe{}) {
		piped.Add(int64(-r.held))
		r.pipe.close()
		r.pipe = pipe{}
	}
	r.held, r.want = 0, 0
}
