package transport

import (
	"errors"
	"syscall"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/sys"
)

// errSmallPipe is why a pipe is not used.
var errSmallPipe = errors.New("transport: the system gives only small pipes")

// splicer is a socket whose bytes can go through a pipe.
type splicer interface {
	// spliceIn moves up to n bytes of the socket into an empty pipe. 0 bytes without an
	// error is the end.
	spliceIn(pipe, n int) (int, error)
	// spliceOut moves up to n bytes of a pipe, which holds as many, into the socket.
	spliceOut(pipe, n int) (int, error)
}

func (s *fdSocket) spliceIn(pipe, n int) (int, error)  { return sys.Splice(pipe, int(s.fd), n) }
func (s *fdSocket) spliceOut(pipe, n int) (int, error) { return sys.Splice(int(s.fd), pipe, n) }

const (
	// fullReads is after how many reads on end that filled their buffer a stream is
	// spliced, and smallSplices after how many that brought little it is copied again.
	// At 64 B a splice costs a quarter more than a copy, at 16 KiB they tie.
	fullReads    = 2
	smallSplices = 8
	smallSplice  = 8 << 10
)

// way is one direction of a relay: it pulls from one channel and pushes to the other.
// What the other does not take becomes the first of its queue, and until that has left
// nothing more is pulled. So the way itself holds nothing. Loop-only but for the counters.
type way struct {
	relay    *Relay
	src, dst *stream
	wayCounters
	mirrors *mirrors // nil for none

	splicing bool // else it copies
	why      why  // it does
	fixed    bool // and will not change that
	score    int8 // reads on end that speak for a change

	ended   bool // the end of src's stream has been read, and dst told
	stalled bool // src is ready and dst is not: src is not to be reported
	pulling bool // pull is under way
}

func (w *way) join(r *Relay, src, dst *stream) {
	w.relay, w.src, w.dst = r, src, dst
	w.splicing, w.why = r.Mode == RelaySplice, whyAsked
	if r.Mode == RelayAuto {
		w.why = whyShortReads
	}
	w.fixed = r.Mode != RelayAuto
	if !w.spliceable() {
		w.onlyCopy(whyNoPipes)
	}
}

// onlyCopy has the way copy from now on.
func (w *way) onlyCopy(why why) { w.splicing, w.fixed, w.why = false, true, why }

// spliceable reports whether both sockets have to do with pipes.
func (w *way) spliceable() bool {
	_, in := w.src.sock.(splicer)
	_, out := w.dst.sock.(splicer)
	return in && out
}

// open reports whether there may be more to send on.
func (w *way) open() bool {
	return w.src.relayed && !w.ended && w.src.at == streamOpen && w.dst.at == streamOpen && !w.dst.outputShut
}

// mayPull reports whether dst would take something.
func (w *way) mayPull() bool {
	d := w.dst
	return w.open() && d.out.empty() && !d.blocked && !d.inOp() && !d.inFlush && !d.againQueue && !w.src.starved &&
		w.mirrors.take()
}

// mirror begins what configs say, for whose channels the relay has claims. The way has
// been joined.
func (w *way) mirror(configs []Mirror) {
	w.mirrors = newMirrors(configs, w, w.relay, w.src, &w.wayCounters)
	if w.mirrors != nil && w.mirrors.copies {
		w.onlyCopy(whyMirror)
	}
}

// teeing implements mirrorOwner.
func (w *way) teeing() bool { return w.dst.out.piped > 0 }

// mirrorsResume implements mirrorOwner: what is in the pipe, if a mirror held it up, or what
// comes next.
func (w *way) mirrorsResume() {
	if d := w.dst; d.rare.waiting {
		d.rare.waiting = false
		if !d.inFlush {
			d.flush()
		}
		return
	}
	w.resume()
}

// ready is called when src has something, or has broken. If there is no memory for that, src
// itself waits; what dst is like is seen when it is ready again.
func (w *way) ready() {
	if w.pull(); w.open() && !w.src.starved && !w.mayPull() {
		w.stalled = true
	}
}

// resume is called when dst has sent all it had.
func (w *way) resume() {
	if !w.pulling {
		w.stalled = false
		w.src.updateInterest()
	}
}

// pull moves what src has to dst, until one of them is not ready or this channel has had
// its share of the turn.
func (w *way) pull() {
	w.pulling = true
	total, most := 0, w.src.readsPerTurn()
	for reads := 1; w.mayPull(); reads++ {
		var n int
		var more bool
		if w.route().path == PathSplice {
			n, more = w.splice()
		} else {
			n, more = w.copy()
		}
		total += n
		if !more || reads == most || total >= maxBytesPerTurn {
			break
		}
	}
	w.pulling = false
}

// failed ends src because of a failed read.
func (w *way) failed(err error) { w.src.fail("read", err) }

// end passes the end of src's stream on.
func (w *way) end() {
	w.ended = true
	w.src.inputShut = true
	w.mirrors.end()
	(*streamCore)(w.dst).DoCloseWrite(nil)
}

// copy moves one read. It reports whether there may be more to read.
func (w *way) copy() (int, bool) {
	s, d := w.src, w.dst
	if s.state.pressed() {
		s.state.hold(s)
		return 0, false
	}
	hot, err := s.state.receive(0)
	if err != nil {
		s.starve(err)
		return 0, false
	}
	size := recvSizes[0]
	counters := s.Loop().Counters()
	n, err := s.sock.read(hot, size)
	switch {
	case err == sys.ErrAgain:
		counters.EmptyReads++
		return 0, false
	case err != nil:
		w.failed(err)
		return 0, false
	case n == 0:
		counters.Reads++
		w.end()
		return 0, false
	}
	counters.Reads++
	counters.BytesRead += uint64(n)
	counters.Writes++
	parts := append(d.state.iov[:0], sys.MakeIovec(hot.Window()))
	sent, err := d.sock.write(parts, false, false)
	clear(parts)
	if err != nil && err != sys.ErrAgain {
		hot.Clear()
		d.fail("write", err)
		return n, false
	}
	counters.BytesWritten += uint64(sent)
	w.copied.Add(int64(n))
	full := n == size
	d.out.passed(sent)
	switch {
	case w.mirrors != nil:
		// What a mirror does may run handlers, which may close any of the channels: by
		// then the bytes have their place in the queue.
		msg := s.state.message(0)
		if sent < n {
			d.enqueueRest(msg.Slice(msg.ReaderIndex()+sent, n-sent))
		}
		w.mirrors.copy(msg)
		msg.Release()
	case sent < n:
		hot.Skip(sent)
		d.enqueueRest(s.state.message(0))
	default:
		hot.Clear()
	}
	w.judge(full)
	return n, full
}

// enqueueRest queues what the socket has just not taken.
func (s *stream) enqueueRest(b *buffer.Buf) {
	s.blocked = true
	s.out.addBuf(b, nil, s.Alloc())
	s.flushTo = s.out.queued
	s.SetPending(s.out.charge)
	s.updateInterest()
}

// splice moves one pipe full. It reports whether there may be more to read.
func (w *way) splice() (int, bool) {
	s, d := w.src, w.dst
	pipes := &s.state.pipes
	p, err := pipes.lend()
	if err != nil {
		w.score, w.splicing, w.why = 0, false, whySmallPipes
		return w.copy()
	}
	counters := s.Loop().Counters()
	n, err := s.sock.(splicer).spliceIn(p.w, max(spliceSize(), shortSplice))
	if err != nil || n == 0 {
		pipes.back(p)
	}
	switch {
	case err == sys.ErrAgain:
		counters.EmptyReads++
		return 0, false
	case errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS):
		// A socket that has nothing to do with pipes, such as one with a cipher in the
		// kernel.
		w.onlyCopy(whyNoPipes)
		return w.copy()
	case err != nil:
		w.failed(err)
		return 0, false
	case n == 0:
		counters.Reads++
		w.end()
		return 0, false
	}
	counters.Reads++
	d.takePipe(p, n, w)
	w.judge(n < smallSplice)
	return n, n >= shortSplice
}

// judge takes note of a read that speaks for a change between splicing and copying, or
// of one that does not.
func (w *way) judge(change bool) {
	if w.fixed {
		return
	}
	if !change {
		w.score = 0
		return
	}
	if w.score++; !w.splicing && w.score >= fullReads && w.mirrors.idle() || w.splicing && w.score >= smallSplices {
		w.score, w.splicing, w.why = 0, !w.splicing, whyFullReads
		if !w.splicing {
			w.why = whyShortReads
		}
	}
}

// takePipe has a pipe with n bytes of w leave: it becomes the head of the queue, which is
// empty.
func (s *stream) takePipe(p pipe, n int, w *way) {
	piped.Add(int64(n))
	s.rare.pipe, s.rare.pipeOf = p, w
	s.out.pipe(n)
	s.flushTo = s.out.queued
	s.flush()
}

// sendPipe sends what is in the pipe at the head of the queue.
func (s *stream) sendPipe() {
	r, held := s.rare, int(s.out.piped)
	w := r.pipeOf // nil for the bytes of a mirror
	want := held
	if w != nil && w.mirrors != nil {
		want = w.mirrors.tee(r.pipe, held)
		if int(s.out.piped) != held {
			return // a handler of a mirror's channel has closed this one, and the pipe with it
		}
		if want == 0 {
			r.waiting = true
			return
		}
	}
	counters := s.Loop().Counters()
	counters.Writes++
	n, err := s.sock.(splicer).spliceOut(r.pipe.r, want)
	switch {
	case err == sys.ErrAgain:
		s.blocked = true
		return
	case err != nil:
		s.fail("write", err)
		return
	case n < want:
		s.blocked = true
	}
	piped.Add(int64(-n))
	s.out.unpipe(n)
	if n == held {
		s.state.pipes.back(r.pipe)
		r.pipe, r.pipeOf = pipe{}, nil
	}
	counters.BytesSpliced += uint64(n)
	if w != nil {
		w.spliced.Add(int64(n))
		w.mirrors.teed(n)
		if n == held && !w.src.relayed {
			w.mirrors.end()
		}
	}
}

// dropPipe drops what is in the pipe at the head of the queue.
func (s *stream) dropPipe() {
	if n := s.out.piped; n > 0 {
		piped.Add(int64(-n))
		s.out.piped = 0
		w := s.rare.pipeOf
		s.rare.pipe.close()
		s.rare.pipe, s.rare.pipeOf, s.rare.waiting = pipe{}, nil, false
		if w != nil {
			w.mirrors.end()
		}
	}
}
