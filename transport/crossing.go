package transport

import (
	"sync/atomic"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
)

// crossing joins two channels that splice cannot: they are on two loops, or one is no
// stream of the kernel's. A handler at the head of each pipeline writes what it gets from
// the place of the other. Stop takes them out again.
type crossing struct {
	ends [2]*crossEnd
	over atomic.Bool
}

// crossEnd is the handler of one of the two.
type crossEnd struct {
	x     *crossing
	count *wayCounters     // of what comes from here
	ch    pipeline.Channel // of this end
	to    *crossEnd
	head  headWriter

	joined bool // the other end is there. Only for the loop of ch
}

// join has both ends added, the one of the running loop at once. x has claimed both.
//
// Until both are there nothing more is read: a would be ahead of the water marks of b, and
// what b reads is for the relay from its first byte on.
func (x *crossing) join(a, b pipeline.Channel, up, down *wayCounters) error {
	from, to := &crossEnd{x: x, count: up, ch: a}, &crossEnd{x: x, count: down, ch: b}
	from.to, to.to = to, from
	x.ends = [2]*crossEnd{from, to}
	if err := a.Pipeline().AddFirst(from); err != nil {
		disclaim(a, x)
		disclaim(b, x)
		return err
	}
	reads := a.AutoRead()
	a.SetAutoRead(false)
	if err := b.Loop().Execute(func() {
		if b.Pipeline().AddFirst(to) != nil {
			to.head.refused()
			disclaim(b, x)
			a.Close()
			return
		}
		_ = a.Loop().Execute(from.join) // a loop that has ended has closed its channel
		to.join()
	}); err != nil {
		_ = a.Pipeline().Remove(pipeline.Find[*crossEnd](a.Pipeline()))
		a.SetAutoRead(reads)
		disclaim(b, x)
		return err
	}
	return nil
}

// part takes both ends out. The loop of each, which had the other channel read or not, has
// it read again: nobody else would come last.
func (x *crossing) part() {
	if x.over.Swap(true) {
		return
	}
	for _, e := range x.ends {
		reads := func() { e.to.ch.SetAutoRead(true) }
		if e.ch.Loop().Execute(func() {
			if c := pipeline.Find[*crossEnd](e.ch.Pipeline()); c != nil {
				_ = c.Remove()
			}
			reads()
		}) != nil { // it has closed its channel
			reads()
		}
	}
}

// HandleRemoved implements pipeline.RemovedHandler: the relay is over, or the channel.
func (e *crossEnd) HandleRemoved(*pipeline.Context) { disclaim(e.ch, e.x) }

// HandleAdded implements pipeline.AddedHandler.
func (e *crossEnd) HandleAdded(c *pipeline.Context) error {
	e.head.added(c)
	return nil
}

// join is called on the loop of e when both ends are there.
func (e *crossEnd) join() {
	e.joined = true
	e.fit()
}

// fit has the other channel read only while this one is writable. So the loop of this one
// alone says when the other one reads.
func (e *crossEnd) fit() {
	if e.joined && !e.x.over.Load() {
		e.to.ch.SetAutoRead(e.ch.Writable())
	}
}

// HandleWritability implements pipeline.WritabilityHandler.
func (e *crossEnd) HandleWritability(*pipeline.Context) error {
	e.fit()
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
	e.to.head.write(msg)
	return nil
}

// HandleEvent implements pipeline.EventHandler.
func (e *crossEnd) HandleEvent(c *pipeline.Context, ev any) error {
	if _, ended := ev.(pipeline.InputShutdown); ended && !e.x.over.Load() {
		e.to.ch.CloseWrite()
	}
	c.FireEvent(ev)
	return nil
}

// HandleInactive implements pipeline.InactiveHandler: what was under way still leaves.
func (e *crossEnd) HandleInactive(*pipeline.Context) error {
	if !e.x.over.Load() {
		e.to.ch.Close()
	}
	return nil
}
