package transport

import (
	"errors"
	"os"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// Mirror is a sink that gets a copy of what a [Relay] sends up, from the start of the
// relay on. What goes through a pipe is duplicated in the kernel (tee(2)), what is copied
// is copied once more.
type Mirror struct {
	// Channel gets the bytes past its pipeline, and is not closed afterwards. A channel
	// that is no stream on the loop of the relay has the relay copy everything.
	Channel pipeline.Channel
	// File gets them if Channel is nil. It is open for writing, without O_APPEND, and
	// stays open until Ended has been called; the writes are made by the group's Offload.
	File *os.File
	// Reserve returns the offset for the next n bytes, which are written as one piece; so
	// several mirrors can share a file. nil means one after the other from 0.
	// It is called on the loop of the relay.
	Reserve func(n int64) (off int64)
	// Block holds the relay up while the sink takes nothing. By default a sink that cannot
	// keep up is given up at the first byte it cannot take: a stream with a hole is of no
	// use to anybody. A sink that fails is given up in either case.
	Block bool
	// Ended is called once, in a task of the relay's loop, when the sink gets nothing any
	// more and what it got is written, or in the queue of its channel: with how many bytes
	// that was, from the beginning of the relay, less the piece of a file that could not be
	// written and those behind it, and with why it was given up,
	// [ErrMirrorBehind] or what it failed with; nil if there was no more. It may be nil.
	Ended func(bytes int64, err error)
}

// ErrMirrorBehind is why a mirror was given up that did not keep up.
var ErrMirrorBehind = errors.New("transport: mirror does not keep up")

// mirror is a Mirror at work. Loop-only but for the counters of its way.
type mirror struct {
	w     *way
	ended func(int64, error)
	block bool
	sink  sink
	taken int64 // bytes the sink was given
	ahead int   // of those in the pipe of the way, the sink has been given so many
	over  bool  // it gets nothing any more
	err   error // why, if it was given up or has failed to write what it got
}

// sink is where a mirror's bytes go. What it could not take is told by less than was
// offered; it calls mirror.resume when it may take more, and mirror.giveUp when it has
// failed.
type sink interface {
	// tee takes up to n bytes of a pipe that holds as many, without removing them.
	tee(from pipe, n int) int
	// write takes b.
	write(b *buffer.Buf)
	// ready reports whether write is welcome.
	ready() bool
	// idle reports whether all that was taken has left.
	idle() bool
	// end has told called when what was taken has left. Nothing comes any more.
	end(told func())
}

// feeding reports whether the channel is the sink of a mirror.
func (s *stream) feeding() bool { return s.rare != nil && s.rare.feeds != nil }

// checkMirrors looks whether the channels among the sinks are free: not relayed
// themselves, nor another mirror's.
func checkMirrors(mirrors []Mirror, a, b *stream) error {
	for i, c := range mirrors {
		if c.Channel == nil {
			continue
		}
		if s, ok := c.Channel.(*stream); ok && s.Loop() == a.Loop() && (s == a || s == b || s.relayed || s.feeding()) {
			return ErrRelayed
		}
		for _, o := range mirrors[:i] {
			if o.Channel == c.Channel {
				return ErrRelayed
			}
		}
	}
	return nil
}

// addMirrors begins what r.Mirrors says. The way has been joined.
func (w *way) addMirrors(configs []Mirror) {
	for _, c := range configs {
		m := &mirror{w: w, ended: c.Ended, block: c.Block}
		s, ok := c.Channel.(*stream)
		switch {
		case ok && s.Loop() == w.src.Loop() && s.at == streamOpen:
			m.sink = &streamSink{m: m, s: s}
			s.needRare().feeds = m
		case c.Channel != nil:
			m.sink = newChannelSink(m, c.Channel)
			w.splicing, w.fixed = false, true
		default:
			m.sink = newFileSink(m, c)
		}
		w.mirrors = append(w.mirrors, m)
	}
}

// tee gives the mirrors what they do not have of the n bytes in the pipe, and returns how
// many may be sent on.
func (w *way) tee(p pipe, n int) int {
	for _, m := range w.mirrors {
		if m.over {
			continue
		}
		if m.ahead == 0 {
			m.got(m.sink.tee(p, n))
		}
		if w.dst.out.piped == 0 {
			return 0 // p is closed, by a handler of the sink's channel
		}
		if m.over {
			continue
		}
		if m.ahead == 0 && !m.block {
			m.giveUp(ErrMirrorBehind)
			continue
		}
		n = min(n, m.ahead)
	}
	return n
}

func (m *mirror) got(n int) {
	m.ahead += n
	m.taken += int64(n)
	m.w.mirrored.Add(int64(n))
}

// teed takes note that n bytes of the pipe have been sent on.
func (w *way) teed(n int) {
	for _, m := range w.mirrors {
		k := min(n, m.ahead)
		m.ahead -= k
		if m.over {
			w.dropped.Add(int64(n - k))
		}
	}
}

// copyTo gives the mirrors what has been read.
func (w *way) copyTo(b *buffer.Buf) {
	n := b.Len()
	for _, m := range w.mirrors {
		if !m.over && !m.block && !m.sink.ready() {
			m.giveUp(ErrMirrorBehind)
		}
		if m.over {
			w.dropped.Add(int64(n))
			continue
		}
		dup, err := w.src.Alloc().TryAlloc(n)
		if err != nil {
			m.giveUp(err)
			w.dropped.Add(int64(n))
			continue
		}
		dup.Write(b.Window()) // which leaves b as it is
		m.taken += int64(n)
		w.mirrored.Add(int64(n))
		m.sink.write(dup)
	}
}

// mirrorsTake reports whether no mirror that blocks is full.
func (w *way) mirrorsTake() bool {
	for _, m := range w.mirrors {
		if m.block && !m.over && !m.sink.ready() {
			return false
		}
	}
	return true
}

// mirrorsIdle reports whether all mirrors have sent what they were given.
func (w *way) mirrorsIdle() bool {
	for _, m := range w.mirrors {
		if !m.over && !m.sink.idle() {
			return false
		}
	}
	return true
}

// endMirrors ends the mirrors: nothing more comes.
func (w *way) endMirrors() {
	for _, m := range w.mirrors {
		if !m.over {
			m.finish(nil)
		}
	}
}

// giveUp ends a mirror that has failed or is behind, and lets the relay go on.
func (m *mirror) giveUp(err error) {
	if m.over {
		return
	}
	m.finish(err)
	m.resume()
}

func (m *mirror) finish(err error) {
	m.over, m.err = true, err
	m.sink.end(func() {
		if m.ended == nil {
			return
		}
		// As a task, so that what it does comes after what is under way.
		if told := func() { m.ended(m.taken, m.err) }; m.w.src.Loop().Execute(told) != nil {
			told()
		}
	})
}

// resume goes on with a way that may have waited for the sink.
func (m *mirror) resume() { m.w.mirrorsResume() }

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

// streamSink is a stream on the loop of the relay.
type streamSink struct {
	m *mirror
	s *stream
}

func (k *streamSink) tee(from pipe, n int) int {
	s := k.s
	if s.at != streamOpen || s.outputShut || s.out.entries.n > 0 {
		return 0
	}
	if s.out.piped == 0 {
		p, err := s.state.pipes.lend()
		if err != nil {
			return 0
		}
		s.rare.pipe, s.rare.pipeOf = p, nil
	}
	n, err := sys.Tee(s.rare.pipe.w, from.r, n)
	if err != nil || n == 0 {
		if s.out.piped == 0 {
			s.state.pipes.back(s.rare.pipe)
			s.rare.pipe = pipe{}
		}
		return 0
	}
	piped.Add(int64(n))
	s.out.pipe(n)
	s.flushTo = s.out.queued
	s.flush()
	return n
}

func (k *streamSink) write(b *buffer.Buf) {
	(*streamCore)(k.s).DoWrite(b, nil)
	(*streamCore)(k.s).DoFlush()
}

func (k *streamSink) ready() bool { return k.s.at == streamOpen && k.s.Writable() }

func (k *streamSink) idle() bool { return k.s.at != streamOpen || k.s.out.empty() }

func (k *streamSink) end(told func()) {
	if k.s.rare.feeds == k.m {
		k.s.rare.feeds = nil
	}
	told()
}

// channelSink is any channel, perhaps of another loop.
type channelSink struct {
	m  *mirror
	ch pipeline.Channel
}

func newChannelSink(m *mirror, ch pipeline.Channel) *channelSink {
	k := &channelSink{m, ch}
	// By the loop of ch, which the one of the relay does not wait for.
	if ch.Loop().Execute(func() {
		if ch.Pipeline().AddFirst(k) != nil {
			k.HandleRemoved(nil)
		}
	}) != nil {
		k.HandleRemoved(nil)
	}
	return k
}

// HandleWritability implements pipeline.WritabilityHandler.
func (k *channelSink) HandleWritability(*pipeline.Context) error {
	if k.ch.Writable() {
		_ = k.m.w.src.Loop().Execute(k.m.resume) // a loop that has ended relays nothing
	}
	return nil
}

// HandleRemoved implements pipeline.RemovedHandler: the channel has ended.
func (k *channelSink) HandleRemoved(*pipeline.Context) {
	_ = k.m.w.src.Loop().Execute(func() { k.m.giveUp(pipeline.ErrClosed) })
}

func (k *channelSink) tee(pipe, int) int { return 0 }

func (k *channelSink) write(b *buffer.Buf) {
	k.ch.Write(b)
}

func (k *channelSink) ready() bool { return k.ch.Open() && k.ch.Writable() }

func (k *channelSink) idle() bool { return true }

func (k *channelSink) end(told func()) {
	told()
	_ = k.ch.Loop().Execute(func() { // a loop that has ended has removed it
		if c := pipeline.Find[*channelSink](k.ch.Pipeline()); c != nil && c.Handler() == any(k) {
			_ = c.Remove()
		}
	})
}
