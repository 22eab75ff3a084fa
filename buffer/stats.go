package buffer

import "slices"

// PoolStats is a snapshot of a Pool. Its numbers are taken one after the other
// while the pool is in use, so they may not add up.
//
// Counts of events are those since the pool was made; on a 32-bit machine those of
// a cache start again at 0 after 2^32.
type PoolStats struct {
	Limit  int64 // bytes InUse may reach
	InUse  int64 // bytes of pages that have Bufs in them, in use or cached; what the limit and Pressure are about
	Mapped int64 // bytes of memory the pool has from the system; more than the limit by a chunk at most
	Empty  int64 // bytes of Mapped that wait for reuse or for Grace to pass
	Cached int64 // bytes of memory of released Bufs that caches keep for the next

	Live     int64  // Bufs in use, slices included
	Allocs   uint64 // Bufs handed out, slices included
	Releases uint64 // Bufs that were released for the last time
	Remote   uint64 // Releases on a goroutine that does not own the cache the Buf goes back to

	Chunks    int  // pieces of memory, of 4 MiB, that are cut into spans
	Pressure  bool // see Pool.Pressure
	OffHeap   bool // memory is outside the Go heap: false under the race detector and off Linux
	HugePages bool // the system backs memory by huge pages where it can: false when it was not asked or knows none

	Classes []ClassStats // by rising size, up to 1 MiB
	Huge    ClassStats   // Bufs of more than 1 MiB, or of a large alignment, with pages of their own
}

// ClassStats is a snapshot of one size class of a Pool.
type ClassStats struct {
	Size     int    // bytes of memory a Buf of the class has; 0 for PoolStats.Huge, where each has its own
	Live     int64  // pieces of memory in use; slices share one
	Cached   int64  // pieces that caches keep for the next Bufs
	Allocs   uint64 // pieces handed out
	Releases uint64 // pieces that came back
	Remote   uint64 // Releases on a goroutine that does not own the cache the piece goes back to
	Spans    int    // runs of pages that are cut into such pieces; with PoolStats.Huge, as many as are Live
	Mapped   int64  // bytes of Spans
}

// Stats returns a snapshot. It is made for a monitor that asks every second or so: the
// pool's lock is held for a moment only, and no allocation waits for the rest. What
// takes time is counting what was released on other goroutines and has not been
// collected by the owners of the caches yet, at most PoolConfig.Cache bytes for each.
func (p *Pool) Stats() PoolStats {
	p.mu.Lock()
	s := PoolStats{
		Limit:    int64(p.limit),
		InUse:    int64(p.inUse),
		Mapped:   int64(p.mapped),
		Empty:    int64(p.empty),
		Chunks:   len(p.chunks),
		Pressure: p.pressure.Load(),
		OffHeap:  p.space != nil,
		Huge:     p.runs,
	}
	s.HugePages = s.OffHeap && p.space.huge
	spans := p.spanCount
	sum, caches := p.past, slices.Clone(p.caches)
	p.mu.Unlock()
	for _, c := range caches {
		c.addTo(&sum)
	}

	s.Live = sum.live()
	s.Classes = make([]ClassStats, numClasses)
	for class := range sum {
		n := &sum[class]
		s.Allocs += n.allocs
		s.Releases += n.releases
		s.Remote += n.remote
		if class == classView {
			continue
		}
		n.cached = max(0, n.cached)
		size := classSizes[class]
		s.Cached += n.cached * int64(size)
		s.Classes[class] = ClassStats{
			Size:     size,
			Live:     n.live,
			Cached:   n.cached,
			Allocs:   n.allocs,
			Releases: n.releases,
			Remote:   n.remote,
			Spans:    spans[class],
			Mapped:   int64(spans[class] * classPages[class] * pageSize),
		}
	}
	return s
}

// Live returns how many Bufs of p are in use, slices included. It is exact when
// nothing is being allocated or released meanwhile.
func (p *Pool) Live() int64 {
	p.mu.Lock()
	n, caches := p.past.live(), slices.Clone(p.caches)
	p.mu.Unlock()
	for _, c := range caches {
		n += c.live()
	}
	return n
}

// books are what is known of the objects of each class, those without memory last.
type books [numClasses + 1]counts

type counts struct {
	allocs   uint64
	releases uint64
	remote   uint64 // of the releases
	live     int64
	cached   int64
}

func (b *books) live() int64 {
	n := int64(0)
	for i := range b {
		n += b[i].live
	}
	return n
}

func (c *Cache) live() int64 {
	var b books
	c.addTo(&b)
	return b.live()
}

// addTo adds what c knows. On any goroutine: what is on the return stack nobody else
// has counted, so it is taken, and put back. An owner that finds none meanwhile goes
// to the pool.
func (c *Cache) addTo(sum *books) {
	c.taking.Lock()
	defer c.taking.Unlock()
	top := c.stacked()
	var stacked [numClasses + 1]uintptr
	var last *Buf
	for b := top; b != nil; b = b.next {
		stacked[b.class]++
		last = b
	}
	for class := range c.lists {
		f, n := &c.lists[class], &sum[class]
		back := c.gone[class] + stacked[class]
		// What was released has been allocated before: in this order.
		frees := f.frees.load()
		allocs := f.allocs.load()
		n.allocs += uint64(allocs)
		n.releases += uint64(frees + back)
		n.remote += uint64(c.came[class] + back)
		n.live += int64(int(allocs - frees - back))
		n.cached += int64(int(c.filled[class].load() + frees - allocs + stacked[class]))
	}
	for last != nil {
		last.next = c.back.Load()
		if c.back.CompareAndSwap(last.next, top) {
			break
		}
	}
}
