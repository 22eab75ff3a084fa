package buffer

import (
	"math"
	"math/bits"
	"slices"
	"unsafe"

	"github.com/runnel-io/runnel/internal/invariant"
)

// A span is a run of pages cut into slots of one class.
type span struct {
	chunk *chunk
	base  unsafe.Pointer
	page  int
	pages int
	class int
	size  int
	slots int
	free  int
	bits  []uint64 // set: free
	next  *span    // in partial, or among the unused
	prev  *span
}

// refill adds objects of a class to a cache, some 16 KiB of them at once.
func (c *Cache) refill(class int) error {
	p := c.pool
	c.heed()
	size := classSizes[class]
	want := min(max(16<<10/size, 1), 32)
	p.mu.Lock()
	got, _ := p.cut(c, class, want)
	p.unlock()
	if got > 0 {
		return nil
	}
	c.reclaim()
	p.mu.Lock()
	got, err := p.cut(c, class, 1)
	p.unlock()
	if got > 0 {
		return nil
	}
	return &Error{"alloc", size, p.limit, err}
}

// cut moves up to want slots of a class into a cache and returns how many, and why
// not more. Under p.mu.
func (p *Pool) cut(c *Cache, class, want int) (int, error) {
	for got := range want {
		s := p.partial[class]
		if s == nil {
			var err error
			if s, err = p.newSpan(class, classPages[class]); err != nil {
				return got, err
			}
		}
		w := 0
		for s.bits[w] == 0 {
			w++
		}
		i := bits.TrailingZeros64(s.bits[w])
		s.bits[w] &^= 1 << i
		if s.free--; s.free == 0 {
			p.unlink(s)
		}
		b := p.newHandle()
		b.owner = c
		m := p.newSlot()
		*m = slot{mem: unsafe.Add(s.base, (w*64+i)*s.size), size: s.size, pins: 1, class: uint8(class), owner: c, span: s}
		b.hold(m)
		c.filled[class].add(1)
		c.push(b)
	}
	return want, nil
}

// newHandle returns an object for a slot or a view. Under p.mu.
func (p *Pool) newHandle() *Buf {
	b := p.spare
	if b == nil {
		b = &Buf{class: classView}
	} else {
		p.spare = b.next
		p.spares--
		b.next = nil
	}
	b.enlist(p)
	return b
}

// newSlot returns a record of memory. Under p.mu.
func (p *Pool) newSlot() *slot {
	if n := len(p.slots) - 1; n >= 0 {
		s := p.slots[n]
		p.slots = p.slots[:n]
		return s
	}
	return new(slot)
}

// refillHandles adds objects without memory to a cache.
func (p *Pool) refillHandles(c *Cache) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range 16 {
		b := p.newHandle()
		b.owner = c
		c.filled[classView].add(1)
		c.push(b)
	}
}

// take gets a chain of objects back. Released says that they come straight from
// their last release, which no cache has counted.
func (p *Pool) take(chain *Buf, released bool) {
	if chain == nil {
		return
	}
	p.mu.Lock()
	for chain != nil {
		b := chain
		chain = b.next
		if released {
			n := &p.past[b.class]
			n.releases++
			n.remote++
			n.live--
		}
		if m := b.slot; m != nil {
			s := m.span
			i := int(uintptr(m.mem)-uintptr(s.base)) / s.size
			invariant.Check(s.bits[i/64]&(1<<(i%64)) == 0, "slot returned twice")
			s.bits[i/64] |= 1 << (i % 64)
			if s.free++; s.free == 1 {
				p.link(s)
			}
			if s.free == s.slots {
				p.unlink(s)
				p.freeSpan(s)
			}
			*m = slot{}
			if len(p.slots) < maxSpares && !p.closed {
				p.slots = append(p.slots, m)
			}
		}
		b.part()
		b.rec.rest()
		b.owner, b.next = nil, nil
		if p.spares < maxSpares && !p.closed {
			b.next = p.spare
			p.spare = b
			p.spares++
		}
	}
	p.unlock()
}

func (p *Pool) link(s *span) {
	s.prev, s.next = nil, p.partial[s.class]
	if s.next != nil {
		s.next.prev = s
	}
	p.partial[s.class] = s
}

func (p *Pool) unlink(s *span) {
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		p.partial[s.class] = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	}
	s.prev, s.next = nil, nil
}

// newSpan takes so many pages for a class and links them.
func (p *Pool) newSpan(class, pages int) (*span, error) {
	if p.closed {
		return nil, ErrClosed
	}
	if p.inUse+pages*pageSize > p.limit {
		return nil, ErrOutOfMemory
	}
	c, page := p.findPages(pages)
	if c == nil {
		var err error
		if c, err = p.newChunk(chunkSize, pageSize); err != nil {
			return nil, err
		}
		at, _ := slices.BinarySearchFunc(p.chunks, c, func(a, b *chunk) int { return a.slot - b.slot })
		p.chunks = slices.Insert(p.chunks, at, c)
		p.lowerHints(at)
		p.empty += c.bytes
		page = 0
	}
	if c.used == 0 {
		p.empty -= c.bytes
	}
	c.mark(page, pages)
	c.used += pages
	p.inUse += pages * pageSize

	s := p.spans
	if s == nil {
		s = new(span)
	} else {
		p.spans = s.next
	}
	s.chunk, s.page, s.pages = c, page, pages
	s.base = unsafe.Add(c.base, page*pageSize)
	s.class, s.size = class, classSizes[class]
	s.slots = pages * pageSize / s.size
	s.free = s.slots
	words := (s.slots + 63) / 64
	s.bits = slices.Grow(s.bits[:0], words)[:words]
	for i := range s.bits {
		s.bits[i] = math.MaxUint64
	}
	if tail := s.slots % 64; tail != 0 {
		s.bits[words-1] = 1<<tail - 1
	}
	p.spanCount[class]++
	p.link(s)
	return s, nil
}

// freeSpan gives the pages of an unlinked span back to their chunk.
func (p *Pool) freeSpan(s *span) {
	c := s.chunk
	c.clear(s.page, s.pages)
	c.used -= s.pages
	c.largest = chunkPages
	p.inUse -= s.pages * pageSize
	p.spanCount[s.class]--
	at, _ := slices.BinarySearchFunc(p.chunks, c, func(a, b *chunk) int { return a.slot - b.slot })
	p.lowerHints(at)
	s.chunk, s.base = nil, nil
	s.next = p.spans
	p.spans = s
	if c.used == 0 {
		p.fallEmpty(c)
	}
}
