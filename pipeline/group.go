package pipeline

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
)

// ChannelGroup is a set of channels, on any loops, that can be written to and closed
// together. A channel leaves it by itself when it has closed. The zero value is an
// empty group. It must not be copied.
//
// Where there are matches, an operation is for those channels only that each of them
// accepts. They are called before the operation returns, on the goroutine that asked
// for it. A method of Channel can be one:
//
//	g.Write(news, pipeline.Channel.Writable) // not to those who are behind
//
// An operation is for those that are members when it is called. On each loop they get
// it one after the other in one task, before anything that the caller does to them
// later; members on the caller's own loop get it before it returns.
//
// Ownership: a write takes the message over. Each channel gets a duplicate of a Buf,
// with indices of its own, and a retained reference to another message that can be
// retained, which its handlers must not change. A message that has a Release and no
// Retain cannot go to many, and no more can a *buffer.FileRegion, which counts how
// much of it has been sent: a write of these panics. Send a file with a region for
// each channel, or as one mapped Buf.
//
// Concurrency: all methods are safe from any goroutine. Netty: ChannelGroup.
type ChannelGroup struct {
	mu    sync.Mutex
	at    map[*Base]int // where it is among the members on its loop
	loops map[*eventloop.Loop]*loopMembers
	empty chan struct{} // closed when the last member leaves; nil if nobody waits for it
}

// loopMembers are those members of a group that are on one loop.
type loopMembers struct {
	list []*Base
	seen []*Base // a copy for who goes through them, which never changes; nil if it would be out of date
}

// Add makes ch a member. It reports false if it is one already, or has closed.
func (g *ChannelGroup) Add(ch Channel) bool {
	b := ch.base()
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.at[b]; ok || !b.joinGroup(g) {
		return false
	}
	if g.at == nil {
		g.at, g.loops = make(map[*Base]int), make(map[*eventloop.Loop]*loopMembers)
	}
	m := g.loops[b.loop]
	if m == nil {
		m = new(loopMembers)
		g.loops[b.loop] = m
	}
	g.at[b] = len(m.list)
	m.list, m.seen = append(m.list, b), nil
	return true
}

// Remove ends the membership of ch, and reports whether it was a member.
func (g *ChannelGroup) Remove(ch Channel) bool {
	b := ch.base()
	if !g.remove(b) {
		return false
	}
	b.forgetGroup(g)
	return true
}

func (g *ChannelGroup) remove(b *Base) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i, ok := g.at[b]
	if !ok {
		return false
	}
	delete(g.at, b)
	m := g.loops[b.loop]
	last := len(m.list) - 1
	if i != last {
		m.list[i] = m.list[last]
		g.at[m.list[i]] = i
	}
	m.list[last] = nil
	m.list, m.seen = m.list[:last], nil
	if last == 0 {
		delete(g.loops, b.loop)
	}
	if len(g.at) == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
	return true
}

// Contains reports whether ch is a member.
func (g *ChannelGroup) Contains(ch Channel) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.at[ch.base()]
	return ok
}

// Len returns the number of members.
func (g *ChannelGroup) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.at)
}

// All goes through those that are members when it begins, in no particular order.
func (g *ChannelGroup) All() iter.Seq[Channel] {
	return func(yield func(Channel) bool) {
		for _, p := range g.parts(nil) {
			for _, b := range p.members {
				if !yield(b.self) {
					return
				}
			}
		}
	}
}

// Write writes msg to the members. A failure goes to the HandleError of the channel
// that it happens to, unless it is a consequence of the close.
func (g *ChannelGroup) Write(msg any, match ...func(Channel) bool) {
	g.write(msg, nil, match)
}

// WriteThen is Write; then is called once, when msg has left or has failed everywhere,
// with the errors of those where it has failed: nil if there are none. It is called on
// the loop of the channel that was last, or, if there is none to write to, before
// WriteThen returns.
func (g *ChannelGroup) WriteThen(msg any, then func(failed map[Channel]error), match ...func(Channel) bool) {
	g.write(msg, &broadcast{then: then}, match)
}

func (g *ChannelGroup) write(msg any, to *broadcast, match []func(Channel) bool) {
	defer buffer.Release(msg)
	if !shareable(msg) {
		panic(fmt.Sprintf("pipeline: a %T cannot be written to several channels", msg))
	}
	parts := g.parts(match)
	if to != nil {
		for _, p := range parts {
			to.left += len(p.members)
		}
		if to.left == 0 {
			to.then(nil)
			return
		}
	}
	run(parts, func(p part) *groupTask {
		// Each loop has one of its own to make copies of.
		own := share(msg)
		return &groupTask{part: p, msg: own, do: func(b *Base) {
			var pr *eventloop.Promise
			if to != nil {
				pr = eventloop.NewPromise(b.loop)
				pr.Then(func(err error) { to.one(b, err) })
			}
			b.pl.ends.ForwardWrite(share(own), pr)
		}, lost: func(b *Base) {
			if to != nil {
				to.one(b, b.closeError())
			}
		}}
	})
}

// Flush flushes the members.
func (g *ChannelGroup) Flush(match ...func(Channel) bool) { g.each((*Base).Flush, match) }

// Close closes the members as [Channel] does, what was written first.
func (g *ChannelGroup) Close(match ...func(Channel) bool) { g.each((*Base).Close, match) }

func (g *ChannelGroup) each(do func(*Base), match []func(Channel) bool) {
	run(g.parts(match), func(p part) *groupTask { return &groupTask{part: p, do: do} })
}

// Wait waits until there is no member left, and returns nil, or for the end of ctx and
// returns its error. Members that have been closed are gone then with their
// descriptors, while their handlers may not all have been told. On a loop, or in an
// offloaded function, it refuses with [eventloop.ErrWouldDeadlock].
func (g *ChannelGroup) Wait(ctx context.Context) error {
	if eventloop.WouldDeadlock() {
		return eventloop.ErrWouldDeadlock
	}
	g.mu.Lock()
	if len(g.at) == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.empty == nil {
		g.empty = make(chan struct{})
	}
	empty := g.empty
	g.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// part is what an operation means on one loop.
type part struct {
	loop    *eventloop.Loop
	members []*Base
}

// parts returns the members that every match accepts, by loop.
func (g *ChannelGroup) parts(match []func(Channel) bool) []part {
	g.mu.Lock()
	parts := make([]part, 0, len(g.loops))
	for l, m := range g.loops {
		if m.seen == nil {
			m.seen = slices.Clone(m.list)
		}
		parts = append(parts, part{l, m.seen})
	}
	g.mu.Unlock()
	if len(match) == 0 {
		return parts
	}
	// A match may use the group.
	for i := range parts {
		var accepted []*Base
		for _, b := range parts[i].members {
			if !slices.ContainsFunc(match, func(m func(Channel) bool) bool { return !m(b.self) }) {
				accepted = append(accepted, b)
			}
		}
		parts[i].members = accepted
	}
	return slices.DeleteFunc(parts, func(p part) bool { return len(p.members) == 0 })
}

// run has the tasks of parts run by their loops, that of the caller's loop in place,
// after the others have been told.
func run(parts []part, task func(part) *groupTask) {
	var own *groupTask
	for _, p := range parts {
		t := task(p)
		if p.loop.InLoop() {
			own = t
		} else if p.loop.Submit(t) != nil {
			t.drop()
		}
	}
	if own != nil {
		own.Run()
	}
}

// groupTask does something with channels of one loop. On the loop.
type groupTask struct {
	part
	next int // the one whose turn it is
	do   func(*Base)
	lost func(*Base) // instead, when the loop has ended; may be nil
	msg  any         // released at the end
}

// Run does the rest. What a handler does to its own channel is contained there, all
// but a runtime.Goexit, after which another task goes on.
func (t *groupTask) Run() {
	defer func() {
		switch {
		case t.next == len(t.members):
			buffer.Release(t.msg)
		case t.loop.Submit(t) != nil:
			t.drop()
		}
	}()
	for t.next < len(t.members) {
		b := t.members[t.next]
		t.next++
		t.do(b)
	}
}

// drop ends the task of a loop that has ended.
func (t *groupTask) drop() {
	buffer.Release(t.msg)
	for ; t.lost != nil && t.next < len(t.members); t.next++ {
		t.lost(t.members[t.next])
	}
}

// broadcast counts the completions of a write to many.
type broadcast struct {
	then func(failed map[Channel]error)

	mu     sync.Mutex
	left   int
	failed map[Channel]error
}

// one takes note of the end of one write.
func (w *broadcast) one(b *Base, err error) {
	w.mu.Lock()
	if err != nil {
		if w.failed == nil {
			w.failed = make(map[Channel]error)
		}
		w.failed[b.self] = err
	}
	w.left--
	done := w.left == 0
	w.mu.Unlock()
	if done {
		w.then(w.failed)
	}
}

// shareable reports whether msg may go to several channels.
func shareable(msg any) bool {
	switch msg.(type) {
	case *buffer.Buf:
		return true
	case *buffer.FileRegion:
		return false
	case interface{ Retain() }:
		return true
	case buffer.Counted:
		return false
	}
	return true
}

// share returns msg once more for somebody else.
func share(msg any) any {
	if b, ok := msg.(*buffer.Buf); ok {
		return b.Duplicate()
	}
	return buffer.Retain(msg)
}

// joinGroup notes that the channel is in g, and reports false if it has closed.
func (b *Base) joinGroup(g *ChannelGroup) bool {
	x := b.extra()
	x.mu.Lock()
	defer x.mu.Unlock()
	if b.flags.has(flagEnded) {
		return false
	}
	x.groups = append(x.groups, g)
	return true
}

// forgetGroup undoes joinGroup.
func (b *Base) forgetGroup(g *ChannelGroup) {
	x := b.extra()
	x.mu.Lock()
	defer x.mu.Unlock()
	if i := slices.Index(x.groups, g); i >= 0 {
		x.groups = slices.Delete(x.groups, i, i+1)
	}
}

// leaveGroups takes b, which has closed, out of its groups.
func (x *extras) leaveGroups(b *Base) {
	x.mu.Lock()
	groups := x.groups
	x.groups = nil
	x.mu.Unlock()
	for _, g := range groups {
		g.remove(b)
	}
}
