package buffer

import (
	"math"
	"slices"

	"github.com/runnel-io/runnel/internal/sys"
)

// allocHuge returns a Buf with a run of pages of its own, at a multiple of align.
func (c *Cache) allocHuge(n, align int) (*Buf, error) {
	p := c.pool
	page := max(pageSize, sys.PageSize())
	if n > p.limit || n > math.MaxInt-page {
		return nil, &Error{"alloc", n, p.limit, ErrOutOfMemory}
	}
	bytes := (max(n, 1) + page - 1) &^ (page - 1)
	align = max(align, page)
	run, err := p.takeHuge(bytes, align)
	if err != nil {
		c.reclaim()
		if run, err = p.takeHuge(bytes, align); err != nil {
			return nil, &Error{"alloc", n, p.limit, err}
		}
	}
	b := c.popHandle()
	apart := modes.Load()&modeApart != 0 && p.space != nil
	b.hold(&slot{mem: run.base, size: run.bytes, pins: 1, class: classHuge, apart: apart, owner: c, span: &span{chunk: run}})
	b.flags |= flagHuge
	return b, nil
}

func (p *Pool) takeHuge(n, align int) (*chunk, error) {
	p.mu.Lock()
	defer p.unlock()
	if p.closed {
		return nil, ErrClosed
	}
	room := p.limit - p.inUse
	if n > room {
		return nil, ErrOutOfMemory
	}
	best := -1
	for i, c := range p.huge {
		if c.bytes >= n && c.bytes-n <= n/4 && c.bytes <= room && uintptr(c.base)%uintptr(align) == 0 &&
			(best < 0 || c.bytes < p.huge[best].bytes) {
			best = i
		}
	}
	var c *chunk
	if best >= 0 {
		c = p.huge[best]
		p.huge = slices.Delete(p.huge, best, best+1)
		p.empty -= c.bytes
	} else {
		var err error
		if c, err = p.newChunk(n, align); err != nil {
			return nil, err
		}
	}
	p.inUse += c.bytes
	p.runs.Live++
	p.runs.Spans++
	p.runs.Mapped += int64(c.bytes)
	p.runs.Allocs++
	return c, nil
}

// freeHuge takes the run of pages from a handle. Remote is what ClassStats counts.
func (p *Pool) freeHuge(b *Buf, remote bool) {
	s := b.slot
	b.part()
	p.mu.Lock()
	defer p.unlock()
	_, bytes := s.span.run()
	p.runs.Live--
	p.runs.Spans--
	p.runs.Mapped -= int64(bytes)
	p.runs.Releases++
	if remote {
		p.runs.Remote++
	}
	if s.apart && p.lockUp(s.span) {
		return
	}
	c := s.span.chunk
	p.inUse -= c.bytes
	p.huge = append(p.huge, c)
	p.fallEmpty(c)
}
