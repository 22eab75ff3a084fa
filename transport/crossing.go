package transport

import (
	"sync/atomic"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
)

// crossing joins two channels that splice cannot: they are on two loops, or one is no
// stream of the kernel's. A handler at the head of each pipeline writes what it gets to the
// other channel. Stop takes them out again.
type crossing struct {
	ends [2]*crossEnd
	over atomic.Bool
}

// crossEnd is the handler of one of the two.
type crossEnd struct {
	x     *crossing
	count *wayCounters     // of what comes from here
	ch    pipeline.Channel // of this end
	to    pipeline.Channel
}

// join has both ends added, the one of the running loop at once. x has claimed both.
func (x *crossing) join(a, b pipeline.Channel, up, down *wayCounters) error {
	x.ends[0] = &crossEnd{x: x, count: up, ch: a, to: b}
	x.ends[1] = &crossEnd{x: x, count: down, ch: b, to: a}
	if err := a.Pipeline().AddFirst(x.ends[0]); err != nil {
		disclaim(a, x)
		disclaim(b, x)
		return err
	}
	if err := b.Loop().Execute(func() {
		if b.Pipeline().AddFirst(x.ends[1]) != nil {
			disclaim(b, x)
			a.Close()
		}
	}); err != nil {
		_ = a.Pipeline().Remove(pipeline.Find[*crossEnd](a.Pipeline()))
		disclaim(b, x)
		return err
	}
	return nil
}

// part takes both ends out.
func (x *crossing) part() {
	if x.over.Swap(true) {
		return
	}
	for _, e := range x.ends {
		ch := e.ch
		// A loop that has ended has closed its channel.
		_ = ch.Loop().Execute(func() {
			if c := pipeline.Find[*crossEnd](ch.Pipeline()); c != nil {
				_ = c.Remove()
			}
			ch.SetAutoRead(true)
		})
	}
}

// HandleRemoved implements pipeline.RemovedHandler: the relay is over, or the channel.
func (e *crossEnd) HandleRemoved(*pipeline.Context) { disclaim(e.ch, e.x) }

// HandleAdded has each read only while the other is writable.
func (e *crossEnd) HandleAdded(c *pipeline.Context) error { return e.HandleWritability(c) }

// HandleWritability implements pipeline.WritabilityHandler.
func (e *crossEnd) HandleWritability(c *pipeline.Context) error {
	if !e.x.over.Load() {
		e.to.SetAutoRead(c.Channel().Writable())
	}
	return nil
}

// HandleRead implements pipeline.ReadHandler.
func (e *crossEnd) HandleRead(c *pipeline.Context, msg any) error {
	if e.x.over.Load() {
		c.FireRead(msg)
		return nil
	}
	switch m := msg.(type) {
	case *buffer.Buf:
		e.count.copied.Add(int64(m.Len()))
	case *buffer.FileRegion:
		e.count.copied.Add(m.Remaining())
	case []byte:
		e.count.copied.Add(int64(len(m)))
	case string:
		e.count.copied.Add(int64(len(m)))
	}
	e.to.Write(msg)
	return nil
}

// HandleEvent implements pipeline.EventHandler.
func (e *crossEnd) HandleEvent(c *pipeline.Context, ev any) error {
	if _, ended := ev.(pipeline.InputShutdown); ended && !e.x.over.Load() {
		e.to.CloseWrite()
	}
	c.FireEvent(ev)
	return nil
}

// HandleInactive implements pipeline.InactiveHandler: what was under way still leaves.
func (e *crossEnd) HandleInactive(*pipeline.Context) error {
	if !e.x.over.Load() {
		e.to.Close()
	}
	return nil
}
