package buffer

import (
	"unsafe"

	"github.com/runnel-io/runnel/internal/sys"
)

// At level all the memory of a Buf has pages of its own, which go to jail when it is
// released: nothing can be read or written there until they are pardoned. Jail holds
// no memory, only addresses.
//
// The kernel keeps a record for each run of pages with the same protection, and has
// 65,530 of them for a process by default. When it runs out, memory is as at the
// other levels.

// jail is the runs of pages that nobody may touch, the oldest first. Under Pool.mu.
type jail struct {
	first, last *span
	runs        int
	bytes       int
}

// maxJailRuns bounds jail in number, jailBytes in bytes.
const maxJailRuns = 4096

func (p *Pool) jailBytes() int { return min(p.limit/8, 64<<20) }

// allocApart returns a Buf of a class whose memory has pages of its own; nil if they
// are not to be had. For the owner of c, or under mu.
func (c *Cache) allocApart(class int) *Buf {
	if c.pool.space == nil || sys.PageSize() > pageSize {
		return nil
	}
	run := c.pool.takeApart(class)
	if run == nil {
		return nil
	}
	b := c.popHandle()
	b.hold(&slot{mem: run.base, size: run.size, pins: 1, class: classHuge, apart: true, owner: c, span: run})
	b.flags |= flagHuge
	return b
}

// takeApart returns a span of which only the first slot is used, or nil.
func (p *Pool) takeApart(class int) *span {
	p.mu.Lock()
	defer p.unlock()
	pages := (classSizes[class] + pageSize - 1) / pageSize
	s, err := p.newSpan(class, pages)
	if err != nil {
		p.clearJail()
		if s, err = p.newSpan(class, pages); err != nil {
			return nil
		}
	}
	p.unlink(s)
	p.spanCount[class]-- // it counts as a run
	p.runs.Live++
	p.runs.Spans++
	p.runs.Mapped += int64(s.pages * pageSize)
	p.runs.Allocs++
	return s
}

// run returns the pages of a span, or of the chunk of its own that it stands for.
func (s *span) run() (base unsafe.Pointer, bytes int) {
	if s.pages == 0 {
		return s.chunk.base, s.chunk.bytes
	}
	return s.base, s.pages * pageSize
}

// lockUp sends the pages of released memory to jail, and pardons the oldest for it. It
// is false for a chunk that the kernel would not protect, which is as good as before.
// Under p.mu.
func (p *Pool) lockUp(s *span) bool {
	base, bytes := s.run()
	if sys.Decommit(base, uintptr(bytes)) != nil {
		if sys.Commit(base, uintptr(bytes)) != nil {
			return true // out of use for ever
		}
		if s.pages > 0 {
			p.freeApart(s)
			return true
		}
		return false
	}
	p.inUse -= bytes
	if s.pages == 0 {
		p.mapped -= bytes // only the addresses are still ours
	}
	j := &p.jail
	s.next = nil
	if j.last != nil {
		j.last.next = s
	} else {
		j.first = s
	}
	j.last = s
	j.runs++
	j.bytes += bytes
	for j.first != j.last && (j.runs > maxJailRuns || j.bytes > p.jailBytes()) {
		p.pardonFirst()
	}
	return true
}

// pardonFirst gives the oldest pages in jail back to where they came from.
func (p *Pool) pardonFirst() {
	j := &p.jail
	s := j.first
	if j.first = s.next; j.first == nil {
		j.last = nil
	}
	s.next = nil
	base, bytes := s.run()
	j.runs--
	j.bytes -= bytes
	if s.pages == 0 {
		p.space.give(s.chunk.slot, s.chunk.units)
		return
	}
	if sys.Commit(base, uintptr(bytes)) == nil {
		p.inUse += bytes // which freeSpan takes off
		p.freeApart(s)
	}
	// Else the pages stay out of use: the kernel has no record to spare.
}

// freeApart gives back a span of takeApart.
func (p *Pool) freeApart(s *span) {
	p.spanCount[s.class]++
	p.freeSpan(s)
}

// clearJail pardons all. Under p.mu.
func (p *Pool) clearJail() {
	for p.jail.first != nil {
		p.pardonFirst()
	}
}

// pardon is clearJail for those who need room.
func (p *Pool) pardon() {
	p.mu.Lock()
	defer p.unlock()
	p.clearJail()
}

// pardonAll clears the jails of all pools.
func pardonAll() {
	pools.Lock()
	defer pools.Unlock()
	for p := range pools.all {
		p.pardon()
	}
}
