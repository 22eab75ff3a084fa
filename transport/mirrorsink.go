package transport

import (
	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// sink is where a mirror's bytes go. What it could not take is told by less than was
// offered; it calls mirror.resume when it may take more, and mirror.giveUp when it has
// failed.
type sink interface {
	// tee takes up to n bytes of a pipe that holds as many, without removing them. It
	// fails if it can take none and nothing is under way after which it could.
	tee(from pipe, n int) (int, error)
	// write takes b over, also if it fails.
	write(b *buffer.Buf) error
	// ready reports whether write is welcome.
	ready() bool
	// idle reports whether all that was taken has left.
	idle() bool
	// end has told called when what was taken has left. Nothing comes any more.
	end(told func())
}

// streamSink is a stream on the loop of the relay.
type streamSink struct {
	m *mirror
	s *stream
}

func (k *streamSink) tee(from pipe, n int) (int, error) {
	s := k.s
	switch {
	case s.at != streamOpen: // its end gives the mirror up
		return 0, nil
	case s.outputShut:
		return 0, pipeline.ErrOutputShutdown
	case s.out.len() > 0:
		return 0, nil
	}
	if s.out.piped == 0 {
		p, err := s.state.pipes.lend()
		if err != nil {
			return 0, err
		}
		s.rare.pipe, s.rare.pipeOf = p, nil
	}
	n, err := sys.Tee(s.rare.pipe.w, from.r, n)
	if err != nil || n == 0 {
		if s.out.piped == 0 {
			s.state.pipes.back(s.rare.pipe)
			s.rare.pipe = pipe{}
			return 0, err
		}
		return 0, nil // it is full
	}
	piped.Add(int64(n))
	s.out.pipe(n)
	s.flushTo = s.out.queued
	s.flush()
	return n, nil
}

func (k *streamSink) write(b *buffer.Buf) error {
	if k.s.outputShut {
		b.Release()
		return pipeline.ErrOutputShutdown
	}
	(*streamCore)(k.s).DoWrite(b, nil)
	(*streamCore)(k.s).DoFlush()
	return nil
}

func (k *streamSink) ready() bool { return k.s.at == streamOpen && k.s.Writable() }

func (k *streamSink) idle() bool { return k.s.at != streamOpen || k.s.out.empty() }

func (k *streamSink) end(told func()) {
	if k.s.rare.feeds == k.m {
		k.s.rare.feeds = nil
	}
	told()
}

// channelSink is any channel, perhaps of another loop, and a handler at the head of its
// pipeline.
type channelSink struct {
	m    *mirror
	ch   pipeline.Channel
	head headWriter
}

func newChannelSink(m *mirror, ch pipeline.Channel) *channelSink {
	k := &channelSink{m: m, ch: ch}
	// By the loop of ch, which the one of the relay does not wait for.
	if ch.Loop().Execute(func() {
		if ch.Pipeline().AddFirst(k) != nil {
			k.ended()
		}
	}) != nil {
		k.ended()
	}
	return k
}

// HandleAdded implements pipeline.AddedHandler. The channel may have become writable before
// it was there to hear of it.
func (k *channelSink) HandleAdded(c *pipeline.Context) error {
	k.head.added(c)
	return k.HandleWritability(c)
}

// HandleWritability implements pipeline.WritabilityHandler.
func (k *channelSink) HandleWritability(*pipeline.Context) error {
	if k.ch.Writable() {
		_ = k.m.of.src.Loop().Execute(k.m.resume) // a loop that has ended relays nothing
	}
	return nil
}

// HandleRemoved implements pipeline.RemovedHandler: the channel has ended.
func (k *channelSink) HandleRemoved(*pipeline.Context) { k.ended() }

// ended gives the mirror up, if it is not over: the channel has ended.
func (k *channelSink) ended() {
	k.head.refused() // unless it has been added
	_ = k.m.of.src.Loop().Execute(func() { k.m.giveUp(pipeline.ErrClosed) })
}

func (k *channelSink) tee(pipe, int) (int, error) { return 0, nil }

func (k *channelSink) write(b *buffer.Buf) error {
	k.head.write(b)
	return nil
}

func (k *channelSink) ready() bool {
	return k.ch.Open() && k.ch.Writable() && k.head.waiting() < sinkBytes
}

func (k *channelSink) idle() bool { return true }

func (k *channelSink) end(told func()) {
	told()
	_ = k.ch.Loop().Execute(func() { // a loop that has ended has removed it
		if c := pipeline.Find[*channelSink](k.ch.Pipeline()); c != nil && c.Handler() == any(k) {
			_ = c.Remove()
		}
	})
}
