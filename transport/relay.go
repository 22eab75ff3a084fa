package transport

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// RelayMode says how a [Relay] moves bytes.
type RelayMode uint8

const (
	// RelayAuto copies small messages, and splices a stream once reads come back full.
	RelayAuto RelayMode = iota
	// RelaySplice splices from the first byte.
	RelaySplice
	// RelayCopy only reads and writes.
	RelayCopy
)

// Relay joins two channels: what either receives is sent on by the other, past both
// pipelines, and where it can through a pipe in the kernel, without entering the process
// (splice(2)). Its zero value works.
//
// A side that takes nothing holds up the other: what is under way is bounded, 512 KiB
// each way at most and 32 MiB for all relays of a process, besides what is in the
// kernel's socket buffers: 128 KiB to be sent, unless Config.UnsentLimit says otherwise, and
// whatever the system lets a receive buffer grow to (tcp_rmem in tcp(7)), or
// Config.RecvBuffer. A half-close is passed on. When one channel closes, for
// whatever reason, the other gets what was still under way to it and is closed. The
// handlers of both stay where they are and are told of errors and closes, but of no
// message; a half-close is an [pipeline.OutputShutdown] of the other side.
//
// The fields must not change after Start. A Relay is started once.
type Relay struct {
	// Mode says how bytes are moved.
	Mode RelayMode
	// Mirrors get a copy each of what is sent up.
	Mirrors []Mirror

	ways     [2]way    // up and down
	crossing *crossing // instead, for channels that are not two streams on one loop
}

// RelayStats is how many bytes a Relay has sent on.
type RelayStats struct {
	Up, Down WayStats // from the channel it was started on to the target, and back
	Mirrored int64    // bytes given to the mirrors, all together, less what could not be written
	Dropped  int64    // bytes that mirrors missed which had been given up
}

// WayStats is how many bytes have been sent on in one direction.
type WayStats struct {
	Copied  int64 // through buffers of the process
	Spliced int64 // through the kernel alone
}

// Errors of Relay.Start.
var (
	// ErrRelayed reports a channel that is relayed already, or gets what a mirror sends.
	ErrRelayed = errors.New("transport: channel is relayed already")
	// ErrCannotRelay reports channels that cannot be joined in the mode that is asked for,
	// or with mirrors: they are not on one loop, or one is no socket.
	ErrCannotRelay = errors.New("transport: channels cannot be joined by a relay")
)

// Start joins the channel of c and target, from now on and until one of them closes or
// Stop is called. What has been written to either before leaves first; so a handler
// that has read something that belongs to the target writes it there and then starts the
// relay, and a decoder before it is removed first, because it may hold bytes. What is
// written to a channel while it is relayed leaves between two pieces of the stream.
//
// Channels on two loops, or of which one is no stream socket, are joined by handlers at
// the heads of their pipelines, which copy: each reads while the other is writable, and a
// half-close is passed on only by a channel with Config.HalfClose. [Dialer.DialThen] makes
// a target on the loop of c.
//
// It fails with [ErrRelayed], [ErrReceiving] or [ErrCannotRelay], or with the reason of a
// channel that has closed; nothing has changed then.
//
// Loop only: that of c.
func (r *Relay) Start(c *pipeline.Context, target pipeline.Channel) error {
	invariant.OnLoop(c.Loop())
	switch {
	case c.Channel() == target:
		return fmt.Errorf("%w: it is one channel", ErrCannotRelay)
	case r.ways[0].src != nil || r.crossing != nil:
		return ErrRelayed
	}
	a, ok := c.Channel().(*stream)
	b, ok2 := target.(*stream)
	if !ok || !ok2 || a.Loop() != b.Loop() {
		return r.startCrossing(c.Channel(), target)
	}
	for _, s := range []*stream{a, b} {
		if s.at != streamOpen {
			return s.closed()
		}
	}
	if err := claimRelay(a, b, r); err != nil {
		return err
	}
	if err := claimMirrors(r.Mirrors, r); err != nil {
		disclaim(a, r)
		disclaim(b, r)
		return err
	}
	up, down := &r.ways[0], &r.ways[1]
	up.join(r, a, b)
	up.mirror(r.Mirrors)
	down.join(r, b, a)
	a.needRare().from, a.rare.into = up, down
	b.needRare().from, b.rare.into = down, up
	a.relayed, b.relayed = true, true
	a.limitUnsent(relayUnsent)
	b.limitUnsent(relayUnsent)
	for _, w := range []*way{up, down} {
		w.src.updateInterest()
		if w.src.inputShut {
			w.end()
		}
	}
	return nil
}

// closed returns why the channel cannot be used, which is not open.
func (s *stream) closed() error {
	if err := s.CloseReason(); err != nil {
		return err
	}
	return pipeline.ErrClosed
}

// startCrossing is Start for channels that are not two streams on one loop.
func (r *Relay) startCrossing(a, b pipeline.Channel) error {
	if r.Mode == RelaySplice || len(r.Mirrors) > 0 {
		return fmt.Errorf("%w: neither splice nor mirrors work across loops, or with channels that are no sockets", ErrCannotRelay)
	}
	for _, ch := range []pipeline.Channel{a, b} {
		if err := ch.CloseReason(); err != nil {
			return err
		}
	}
	x := &crossing{}
	if err := claimRelay(a, b, x); err != nil {
		return err
	}
	if err := x.join(a, b, &r.ways[0].wayCounters, &r.ways[1].wayCounters); err != nil {
		return err
	}
	r.crossing = x
	return nil
}

// Stop parts the channels. What has been taken from one is still sent by the other,
// before anything that is written to it from now on; what comes later goes to the
// handlers again. A stream that has ended meanwhile ends for its handlers now. It does
// nothing after one of the channels has closed.
//
// Loop only: that of the channels.
func (r *Relay) Stop() {
	if r.crossing != nil {
		r.crossing.part()
	}
	if r.ways[0].src == nil {
		return
	}
	invariant.OnLoop(r.ways[0].src.Loop())
	if !r.ways[0].src.relayed {
		return
	}
	for i := range r.ways {
		w := &r.ways[i]
		w.src.relayed = false
		disclaim(w.src, r)
		w.src.limitUnsent(0)
		if w.dst.out.piped == 0 {
			w.mirrors.end()
		}
	}
	for i := range r.ways {
		s := r.ways[i].src
		if s.at == streamOpen && s.inputShut {
			s.inputEnded()
		}
		s.updateInterest()
	}
}

// Stats returns what has been sent on so far. It may be called on any goroutine.
func (r *Relay) Stats() RelayStats {
	up, down := &r.ways[0], &r.ways[1]
	return RelayStats{Up: up.stats(), Down: down.stats(), Mirrored: up.mirrored.Load(), Dropped: up.dropped.Load()}
}

// relayUnsent is how many bytes that it has not sent yet the kernel takes for a relayed
// socket. Left to itself it would take 4 MiB for a peer that does not read, and that for
// each of them; it costs nothing where peers read.
const relayUnsent = 128 << 10

// limitUnsent sets TCP_NOTSENT_LOWAT, 0 for the system's, unless Config has a limit.
func (s *stream) limitUnsent(n int) {
	f, ok := s.sock.(*fdSocket)
	if _, tcp := s.remote.load().(*net.TCPAddr); ok && tcp && s.cfg.UnsentLimit == 0 && s.at == streamOpen {
		_ = sys.SetOption(int(f.fd), sys.TCPNotSentLowAt, n) // it works without
	}
}

// relayEnded closes what a channel that has just closed was joined with.
func (s *stream) relayEnded(reason error) {
	other := s.rare.from.dst
	s.relayed, other.relayed = false, false
	disclaim(s, s.rare.from.relay)
	disclaim(other, s.rare.from.relay)
	for _, w := range []*way{s.rare.from, s.rare.into} {
		if w.dst.at == streamClosed || w.dst.out.piped == 0 {
			w.mirrors.end()
		}
	}
	(*streamCore)(other).DoClose(pipeline.CloseFlushed, reason)
}

// wayCounters is what a way has sent on. Any goroutine may read it.
type wayCounters struct{ copied, spliced, mirrored, dropped atomic.Int64 }

func (c *wayCounters) stats() WayStats {
	return WayStats{Copied: c.copied.Load(), Spliced: c.spliced.Load()}
}
