package buffer

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"
	"unsafe"

	"github.com/runnel-io/runnel/internal/sys"
)

// A chunk is memory from the system: chunkPages pages to cut spans from, or one run
// of any length.
type chunk struct {
	base    unsafe.Pointer
	bytes   int
	slot    int    // first unit of address space; -1 on the Go heap
	units   int    // of address space
	used    int    // pages in spans
	largest int    // no run of free pages is longer; an upper bound
	emptied uint64 // tick at which it fell empty
	taken   [chunkPages / 64]uint64
}

// lowerHints notes that the chunk at an index has pages again.
func (p *Pool) lowerHints(at int) {
	for k := range p.hints {
		p.hints[k] = min(p.hints[k], at)
	}
}

// findPages returns the first chunk with a run of free pages, and where in it.
func (p *Pool) findPages(pages int) (*chunk, int) {
	k := bits.Len(uint(pages)) - 1
	leading := true // no chunk passed over could hold 1<<k pages
	for i := p.hints[k]; i < len(p.chunks); i++ {
		c := p.chunks[i]
		if c.largest >= pages {
			if page := c.find(pages); page >= 0 {
				return c, page
			}
		}
		if leading = leading && c.largest < 1<<k; leading {
			p.hints[k] = i + 1
		}
	}
	return nil, 0
}

// find returns the first run of free pages, or -1, and then lowers largest.
func (c *chunk) find(pages int) int {
	longest, at := 0, 0
	for at < chunkPages {
		// Skip taken pages, then measure the free run.
		w := c.taken[at/64] >> (at % 64)
		if w != 0 && w&1 != 0 {
			at += min(bits.TrailingZeros64(^w), 64-at%64)
			continue
		}
		start := at
		for at < chunkPages && at-start < pages {
			w := c.taken[at/64] >> (at % 64)
			n := min(bits.TrailingZeros64(w), 64-at%64)
			at += n
			if n == 0 || at%64 != 0 {
				break
			}
		}
		if at-start >= pages {
			return start
		}
		longest = max(longest, at-start)
	}
	c.largest = longest
	return -1
}

func (c *chunk) mark(page, pages int) {
	for i := page; i < page+pages; i++ {
		c.taken[i/64] |= 1 << (i % 64)
	}
}

func (c *chunk) clear(page, pages int) {
	for i := page; i < page+pages; i++ {
		c.taken[i/64] &^= 1 << (i % 64)
	}
}

// newChunk takes bytes of memory from the system, whole pages, at a multiple of align,
// at most a unit. Under p.mu.
func (p *Pool) newChunk(bytes, align int) (*chunk, error) {
	// Room for one chunk above the limit, so that a small limit has a chunk at all.
	if p.mapped+bytes > p.limit+chunkSize {
		p.dropEmpty(0, math.MaxUint64)
		p.giveUp()
		if p.mapped+bytes > p.limit+chunkSize {
			return nil, ErrOutOfMemory
		}
	}
	c := &chunk{bytes: bytes, slot: -1, largest: chunkPages}
	if p.space == nil {
		c.base = alignUp(unsafe.Pointer(unsafe.SliceData(make([]byte, bytes+align-1))), align)
	} else {
		c.units = (bytes + unitSize - 1) / unitSize
		if c.slot = p.space.find(c.units); c.slot < 0 {
			p.dropEmpty(0, math.MaxUint64)
			p.giveUp()
			if c.slot = p.space.find(c.units); c.slot < 0 {
				return nil, ErrOutOfMemory
			}
		}
		c.base = unsafe.Add(p.space.base, c.slot*unitSize)
		if err := sys.Commit(c.base, uintptr(bytes)); err != nil {
			p.space.give(c.slot, c.units)
			return nil, fmt.Errorf("%w: %w", ErrOutOfMemory, err)
		}
	}
	p.mapped += bytes
	return c, nil
}

// fallEmpty counts a chunk as empty and gives the system what is beyond the bound.
func (p *Pool) fallEmpty(c *chunk) {
	c.emptied = p.tick
	p.empty += c.bytes
	p.dropEmpty(p.retain, p.tick)
	if p.empty > 0 && p.timer == nil && !p.closed {
		p.timer = time.AfterFunc(p.grace, p.expire)
	}
}

// expire gives the system what has been empty for a whole grace period.
func (p *Pool) expire() {
	p.mu.Lock()
	defer p.unlock()
	p.timer = nil
	p.dropExpired()
	p.tick++
	if p.empty > 0 && !p.closed {
		p.timer = time.AfterFunc(p.grace, p.expire)
	}
}

// dropExpired takes out all chunks that fell empty before this tick.
func (p *Pool) dropExpired() {
	if p.tick > 0 {
		p.dropEmpty(0, p.tick-1)
	}
}

// dropEmpty takes out empty chunks, those at high addresses first, until at most
// keep bytes of them are left; only those that fell empty at tick last or before.
// The memory goes to the system with unlock.
func (p *Pool) dropEmpty(keep int, last uint64) {
	for i := len(p.huge) - 1; i >= 0 && p.empty > keep; i-- {
		if c := p.huge[i]; c.emptied <= last {
			p.huge = slices.Delete(p.huge, i, i+1)
			p.drop(c)
		}
	}
	for i := len(p.chunks) - 1; i >= 0 && p.empty > keep; i-- {
		if c := p.chunks[i]; c.used == 0 && c.emptied <= last {
			p.chunks = slices.Delete(p.chunks, i, i+1)
			for k := range p.hints {
				if p.hints[k] > i {
					p.hints[k]--
				}
			}
			p.drop(c)
		}
	}
}

func (p *Pool) drop(c *chunk) {
	p.empty -= c.bytes
	p.doomed = append(p.doomed, c)
}

// unlock unlocks p.mu, and gives the system what was dropped meanwhile, a call that
// may take a while, without it.
func (p *Pool) unlock() {
	p.judge()
	doomed := p.doomed
	p.doomed = nil
	if len(doomed) == 0 {
		p.mu.Unlock()
		return
	}
	p.dooming++
	p.mu.Unlock()
	p.decommit(doomed)
	p.mu.Lock()
	p.settle(doomed)
	if p.dooming--; p.dooming == 0 {
		p.settled.Broadcast()
	}
	p.mu.Unlock()
}

// await waits until what has been dropped is the system's. Under p.mu, which it gives
// up meanwhile.
func (p *Pool) await() {
	for p.dooming > 0 {
		p.settled.Wait()
	}
}

// giveUp does what unlock does, under the lock: for those who need the room now.
func (p *Pool) giveUp() {
	p.decommit(p.doomed)
	p.settle(p.doomed)
	p.doomed = nil
}

func (p *Pool) decommit(doomed []*chunk) {
	for _, c := range doomed {
		if p.space != nil && sys.Decommit(c.base, uintptr(c.bytes)) != nil {
			c.units = 0 // the addresses stay out of use
		}
		c.base = nil
	}
}

func (p *Pool) settle(doomed []*chunk) {
	for _, c := range doomed {
		p.mapped -= c.bytes
		if p.space != nil && c.units > 0 {
			p.space.give(c.slot, c.units)
		}
	}
}
