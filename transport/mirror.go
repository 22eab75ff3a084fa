package transport

import (
	"errors"
	"fmt"
	"os"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
)

// Mirror is a sink that gets a copy of what a [Relay] sends up, or of what a
// [FileReceiver] writes, from the start on. What goes through a pipe is duplicated in the
// kernel (tee(2)), what is copied is copied once more.
type Mirror struct {
	// Channel gets the bytes past its pipeline, and is not closed afterwards. It may be the
	// one that a FileReceiver receives, whose peer then gets back what it sends, but neither
	// in a relay nor another mirror's. A channel that is no stream on the loop of the relay,
	// or of what is received, has everything copied.
	Channel pipeline.Channel
	// File gets them if Channel is nil. It is open for writing, without O_APPEND, and
	// stays open until Ended has been called; the writes are made by the group's Offload.
	File *os.File
	// Reserve returns the offset for the next n bytes, which are written as one piece; so
	// several mirrors can share a file. nil means one after the other from 0.
	// It is called on the loop of the relay; a panic ends the mirror.
	Reserve func(n int64) (off int64)
	// Block holds the relay up while the sink takes nothing. By default a sink that cannot
	// keep up is given up at the first byte it cannot take: a stream with a hole is of no
	// use to anybody. A sink that fails is given up in either case, and so is one for which
	// the system has no pipe.
	Block bool
	// Ended is called once, in a task of the relay's loop, when the sink gets nothing any
	// more and what it got is written, or in the queue of its channel: with how many bytes
	// that was, from the beginning on, less the piece of a file that could not be written
	// and those behind it, and with why it was given up, [ErrMirrorBehind] or what it failed
	// with; nil if there was no more. It may be nil.
	Ended func(bytes int64, err error)

	storage storage // for tests: instead of File
}

// ErrMirrorBehind is why a mirror was given up that did not keep up.
var ErrMirrorBehind = errors.New("transport: mirror does not keep up")

// mirrorOwner is what has mirrors: a way of a relay, or a FileReceiver.
type mirrorOwner interface {
	// teeing reports whether the pipe that is being duplicated is still its: a sink may
	// run handlers, which may close anything.
	teeing() bool
	// mirrorsResume is called when a sink may take more, or has been given up.
	mirrorsResume()
}

// mirrors is the sinks of one stream of bytes. nil is none. Loop-only but for the counters.
type mirrors struct {
	of     mirrorOwner
	by     any     // who has the claims
	src    *stream // whose bytes they are
	count  *wayCounters
	all    []*mirror
	copies bool // one of them has nothing to do with pipes
}

// mirror is a Mirror at work. Loop-only.
type mirror struct {
	of    *mirrors
	ended func(int64, error)
	ch    pipeline.Channel // nil for a file
	block bool
	sink  sink
	taken int64 // bytes the sink was given
	ahead int   // of those in the pipe that is sent on, the sink has been given so many
	over  bool  // it gets nothing any more
	err   error // why, if it was given up or has failed to write what it got
}

// newMirrors begins what configs say, whose channels have been claimed.
func newMirrors(configs []Mirror, of mirrorOwner, by any, src *stream, count *wayCounters) *mirrors {
	if len(configs) == 0 {
		return nil
	}
	ms := &mirrors{of: of, by: by, src: src, count: count}
	for _, c := range configs {
		m := &mirror{of: ms, ended: c.Ended, ch: c.Channel, block: c.Block}
		s, ok := c.Channel.(*stream)
		switch {
		case ok && s.Loop() == src.Loop() && s.at == streamOpen:
			m.sink = &streamSink{m: m, s: s}
			s.needRare().feeds = m
		case c.Channel != nil:
			m.sink = newChannelSink(m, c.Channel)
			ms.copies = true
		default:
			m.sink = newFileSink(m, c)
		}
		ms.all = append(ms.all, m)
	}
	return ms
}

// tee gives the sinks what they do not have of the n bytes in the pipe, and returns how
// many may be sent on: those that all of them have.
func (ms *mirrors) tee(p pipe, n int) int {
	for _, m := range ms.all {
		if m.over {
			continue
		}
		if m.ahead == 0 {
			k, err := m.sink.tee(p, n)
			m.got(k)
			if err != nil {
				m.giveUp(err)
			}
		}
		if !ms.of.teeing() {
			return 0
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
	m.of.count.mirrored.Add(int64(n))
	m.of.src.Loop().Counters().BytesTeed += uint64(n)
}

// teed takes note that n bytes of the pipe have been sent on.
func (ms *mirrors) teed(n int) {
	if ms == nil {
		return
	}
	for _, m := range ms.all {
		k := min(n, m.ahead)
		m.ahead -= k
		if m.over {
			ms.count.dropped.Add(int64(n - k))
		}
	}
}

// copy gives the sinks what is in b, and leaves it as it is.
func (ms *mirrors) copy(b *buffer.Buf) {
	n := b.Len()
	for _, m := range ms.all {
		if !m.over && !m.block && !m.sink.ready() {
			m.giveUp(ErrMirrorBehind)
		}
		if m.over {
			ms.count.dropped.Add(int64(n))
			continue
		}
		dup, err := ms.duplicate(b)
		if err != nil {
			m.giveUp(err)
			ms.count.dropped.Add(int64(n))
			continue
		}
		m.taken += int64(n)
		if err := m.sink.write(dup); err != nil {
			m.taken -= int64(n)
			m.giveUp(err)
			ms.count.dropped.Add(int64(n))
			continue
		}
		ms.count.mirrored.Add(int64(n))
	}
}

// duplicate returns a copy of what is in b. That may be a mapped file, whose end is another
// one by now.
func (ms *mirrors) duplicate(b *buffer.Buf) (dup *buffer.Buf, err error) {
	if dup, err = ms.src.Alloc().TryAlloc(b.Len()); err != nil {
		return nil, err
	}
	if !b.Mapped() {
		for p := range b.Segments {
			dup.Write(p)
		}
		return dup, nil
	}
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		dup.Release()
		cut, ok := v.(*buffer.Error)
		if !ok || !errors.Is(cut, buffer.ErrTruncated) {
			panic(v)
		}
		dup, err = nil, fmt.Errorf("%w: %w", ErrFileShrunk, cut)
	}()
	b.BytesAt(b.ReaderIndex(), dup.Writable()[:b.Len()])
	dup.Commit(b.Len())
	return dup, nil
}

// take reports whether no mirror that blocks is full.
func (ms *mirrors) take() bool {
	if ms == nil {
		return true
	}
	for _, m := range ms.all {
		if m.block && !m.over && !m.sink.ready() {
			return false
		}
	}
	return true
}

// idle reports whether all sinks have sent what they were given.
func (ms *mirrors) idle() bool {
	if ms == nil {
		return true
	}
	for _, m := range ms.all {
		if !m.over && !m.sink.idle() {
			return false
		}
	}
	return true
}

// end ends the mirrors: nothing more comes.
func (ms *mirrors) end() {
	if ms == nil {
		return
	}
	for _, m := range ms.all {
		if !m.over {
			m.finish(nil)
		}
	}
}

// giveUp ends a mirror that has failed or is behind, and lets the others go on.
func (m *mirror) giveUp(err error) {
	if m.over {
		return
	}
	m.finish(err)
	m.resume()
}

func (m *mirror) finish(err error) {
	m.over, m.err = true, err
	if m.ch != nil {
		disclaimOutput(m.ch, m.of.by)
	}
	m.sink.end(func() {
		if m.ended == nil {
			return
		}
		// As a task, so that what it does comes after what is under way.
		deliverTo(m.of.src.Loop(), func() { m.ended(m.taken, m.err) })
	})
}

// resume goes on with what may have waited for the sink.
func (m *mirror) resume() { m.of.of.mirrorsResume() }
