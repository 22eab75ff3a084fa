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
		relay := &transport.Relay{Mode: p.mode}
		if err == nil {
			err = relay.Start(c, target)
		}
		if err != nil {
			p.log.Warn("client refused", zap.Stringer("remote", c.Channel().RemoteAddr()), zap.Error(err))
			if target != nil {
				target.Close()
			}
			c.Close()
			return
		}
		p.totals.begin(relay)
		c.Channel().Closed().Then(func(error) {
			target.Closed().Then(func(error) { p.totals.end(relay) })
		})
	})
	return nil
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
	live  map[*transport.Relay]struct{}
	ended transport.RelayStats
}

func (t *totals) begin(r *transport.Relay) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		t.live = make(map[*transport.Relay]struct{})
	}
	t.live[r] = struct{}{}
}

func (t *totals) end(r *transport.Relay) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.live, r)
	t.ended = add(t.ended, r.Stats())
}

func (t *totals) line() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.ended
	for r := range t.live {
		s = add(s, r.Stats())
	}
	up, down := s.Up, s.Down
	return fmt.Sprintf("relayed up=%d down=%d mirrored=0 dropped=0 splice=%d copy=%d",
		up.Copied+up.Spliced, down.Copied+down.Spliced, up.Spliced+down.Spliced, up.Copied+down.Copied)
}

func add(a, b transport.RelayStats) transport.RelayStats {
	a.Up, a.Down = addWay(a.Up, b.Up), addWay(a.Down, b.Down)
	return a
}

func addWay(a, b transport.WayStats) transport.WayStats {
	return transport.WayStats{Copied: a.Copied + b.Copied, Spliced: a.Spliced + b.Spliced}
}
