package eventloop

import (
	"math/bits"
	"sync/atomic"
)

// Choice is how a [Group] chooses the loop for a new channel.
type Choice uint8

const (
	// RoundRobin hands the loops out one after the other.
	RoundRobin Choice = iota

	// Fewest takes a loop with the fewest registrations. Those it was chosen for and
	// that have not come yet count as well, more or less.
	Fewest

	// ByHash gives the same loop for the same hash, so that channels which belong
	// together, such as all those of one remote address, share a loop. It knows
	// nothing of how busy a loop is. Without a hash it is RoundRobin.
	ByHash
)

// Next returns the loop for a new channel, as [GroupConfig.Choose] says.
func (g *Group) Next() *Loop {
	if g.choose == Fewest {
		return g.fewest()
	}
	return g.loops[int((g.next.Add(1)-1)%uint32(len(g.loops)))]
}

// NextFor is Next for something with a hash, which need not be a good one. Only
// [ByHash] looks at it.
func (g *Group) NextFor(hash uint64) *Loop {
	if g.choose != ByHash {
		return g.Next()
	}
	// Neighbouring numbers, and those that differ in a few bits only, are spread.
	hash ^= hash >> 32
	hash *= 0x9e3779b97f4a7c15
	hash ^= hash >> 32
	hash *= 0x9e3779b97f4a7c15
	i, _ := bits.Mul64(hash, uint64(len(g.loops)))
	return g.loops[i]
}

// fewest returns a loop with the smallest load. Among equals the one whose turn it is
// comes first.
func (g *Group) fewest() *Loop {
	n := uint32(len(g.loops))
	from := g.next.Add(1) - 1
	var best *Loop
	var least int64
	for i := range n {
		l := g.loops[(from%n+i)%n]
		if load := l.load.now(); best == nil || load < least {
			best, least = l, load
		}
	}
	best.load.promised.Add(1)
	return best
}

// load is what a loop has to look after.
type load struct {
	registrations atomic.Int64 // stored on the loop
	promised      atomic.Int64 // times it was chosen for one that may not have come

	expected int64 // loop only: promised when the latest tasks were taken
}

func (ld *load) now() int64 { return ld.registrations.Load() + ld.promised.Load() }

// expect takes note of what was promised before the loop takes its tasks. Nearly all
// of it is among them.
func (ld *load) expect() { ld.expected = ld.promised.Load() }

// settle is called when these tasks have run: what they brought is registered, and
// what has not come by now, because of an error, will not.
func (ld *load) settle() {
	if ld.expected != 0 {
		ld.promised.Add(-ld.expected)
		ld.expected = 0
	}
}
