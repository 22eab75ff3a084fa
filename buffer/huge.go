package buffer

import (
	"math"
	"slices"

	"github.com/runnel-io/runnel/internal/sys"
)

// allocHuge returns a run of pages for one Buf.
func (c *Cache) allocHuge(n int) (*slot, error) {
	p := c.pool
	page := max(pageSize, sys.PageSize())
	if n > math.MaxInt-page {
		return nil, &Error{"alloc", n, p.limit, ErrOutOfMemory}
	}
	n = (n + page - 1) &^ (page - 1)
	run, err := p.takeHuge(n)
	if err != nil {
		c.reclaim()
		if run, err = p.takeHuge(n); err != nil {
			return nil, &Error{"alloc", n, p.limit, err}
		}
	}
	return &slot{mem: run.base, size: run.bytes, pins: 1, class: classHuge, owner: c, span: &span{chunk: run}}, nil
}

func (p *Pool) takeHuge(n int) (*chunk, error) {
	p.mu.Lock()
	defer p.unlock()
	if p.closed {
		return nil, ErrClosed
	}
	if n > p.limit-p.inUse {
		return nil, ErrOutOfMemory
	}
	best := -1
	for i, c := range p.huge {
		if c.bytes >= n && c.bytes-n <= n/4 && c.bytes <= p.limit-p.inUse && (best < 0 || c.bytes < p.huge[best].bytes) {
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
		if c, err = p.newChunk(n); err != nil {
			return nil, err
		}
	}
	p.inUse += c.bytes
	return c, nil
}

// freeHuge takes the run of pages from a handle.
func (p *Pool) freeHuge(b *Buf) {
	c := b.slot.span.chunk
	b.part()
	p.mu.Lock()
	p.inUse -= c.bytes
	p.huge = append(p.huge, c)
	p.fallEmpty(c)
	p.unlock()
}
