package main

import (
	"fmt"
	"sync"

	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
	"go.uber.org/zap"
)

// proxy is the handler of all clients: it connects each to the target.
type proxy struct {
	to     string
	mode   transport.RelayMode
	log    *zap.Logger
	mirror *mirrors // nil for none
	totals totals
}

// Shareable: what it keeps of a client is in closures.
func (p *proxy) Shareable() {}

func (p *proxy) HandleActive(c *pipeline.Context) error {
	// Nobody is there yet to take what comes, nor its end.
	c.Channel().SetAutoRead(false)
	dialer := &transport.Dialer{Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.OnError(p.failed))
	}}
	dialer.DialThen(c, "tcp", p.to, func(target pipeline.Channel, err error) {
		if err != nil {
			p.refuse(c, err)
			return
		}
		// Nor is there anybody for what the target says meanwhile.
		target.SetAutoRead(false)
		p.mirror.connect(c, p.log, func(mirrors []transport.Mirror) { p.relay(c, target, mirrors) })
	})
	return nil
}

// relay joins a client and its target.
func (p *proxy) relay(c *pipeline.Context, target pipeline.Channel, mirrors []transport.Mirror) {
	relay := &transport.Relay{Mode: p.mode, Mirrors: mirrors}
	// What a mirror has missed is known when its file has been written.
	parts := 1 + len(mirrors)
	end := func() {
		if parts--; parts == 0 {
			p.totals.end(relay)
		}
	}
	for i := range mirrors {
		ended := mirrors[i].Ended
		mirrors[i].Ended = func(n int64, err error) {
			ended(n, err)
			end()
		}
	}
	if err := relay.Start(c, target); err != nil {
		target.Close()
		for _, m := range mirrors {
			if m.Channel != nil {
				m.Channel.Close()
			}
		}
		p.refuse(c, err)
		return
	}
	p.totals.begin(relay, p.mirror != nil && len(mirrors) == 0)
	c.Channel().Closed().Then(func(error) {
		target.Closed().Then(func(error) { end() })
	})
}

func (p *proxy) refuse(c *pipeline.Context, err error) {
	p.log.Warn("client refused", zap.Stringer("remote", c.Channel().RemoteAddr()), zap.Error(err))
	c.Close()
}

// HandleError implements pipeline.ErrorHandler.
func (p *proxy) HandleError(c *pipeline.Context, err error) { p.failed(c, err) }

// failed logs what has ended a connection: of a proxy, mostly resets by a peer.
func (p *proxy) failed(c *pipeline.Context, err error) {
	p.log.Debug("connection failed", zap.Stringer("remote", c.Channel().RemoteAddr()), zap.Error(err))
}

// totals is what all relays have moved.
type totals struct {
	mu    sync.Mutex
	live  map[*transport.Relay]bool // whether all that goes up misses its mirror, which is not there
	ended transport.RelayStats
}

func (t *totals) begin(r *transport.Relay, noMirror bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		t.live = make(map[*transport.Relay]bool)
	}
	t.live[r] = noMirror
}

// of returns what a relay has moved, and what its mirror has got or missed. Under mu.
func (t *totals) of(r *transport.Relay) transport.RelayStats {
	s := r.Stats()
	if t.live[r] {
		s.Dropped = s.Up.Copied + s.Up.Spliced
	}
	return s
}

func (t *totals) end(r *transport.Relay) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = add(t.ended, t.of(r))
	delete(t.live, r)
}

func (t *totals) line() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.ended
	for r := range t.live {
		s = add(s, t.of(r))
	}
	up, down := s.Up, s.Down
	return fmt.Sprintf("relayed up=%d down=%d mirrored=%d dropped=%d splice=%d copy=%d",
		up.Copied+up.Spliced, down.Copied+down.Spliced, s.Mirrored, s.Dropped, up.Spliced+down.Spliced, up.Copied+down.Copied)
}

func add(a, b transport.RelayStats) transport.RelayStats {
	a.Up, a.Down = addWay(a.Up, b.Up), addWay(a.Down, b.Down)
	a.Mirrored += b.Mirrored
	a.Dropped += b.Dropped
	return a
}

func addWay(a, b transport.WayStats) transport.WayStats {
	return transport.WayStats{Copied: a.Copied + b.Copied, Spliced: a.Spliced + b.Spliced}
}
