package buffer

import (
	"os"

	"github.com/runnel-io/runnel/internal/goid"
)

// maxAlign is the largest alignment of memory: every run of pages has it.
const maxAlign = unitSize

// AllocAligned is TryAlloc for memory that begins, at index 0, at a multiple of
// align, which is a power of two up to 1 MiB; it panics with a [MisuseError] for
// another. It is for files opened with O_DIRECT, and for cache lines.
//
// Up to 8 KiB the alignment is that of the size class, which may be a larger one; a
// larger alignment takes pages of their own from the pool, as a Buf of more than 1 MiB
// does. A Buf that has to move when it grows, because it is full or because its memory
// is shared or read-only, moves to memory that has no such alignment.
func (p *Pool) AllocAligned(n, align int) (*Buf, error) {
	p.shared.mu.Lock()
	defer p.shared.mu.Unlock()
	return p.shared.allocAligned(n, align)
}

// AllocAligned is [Pool.AllocAligned] through the cache.
func (c *Cache) AllocAligned(n, align int) (*Buf, error) {
	if c.owner.Load() == goid.Current() {
		return c.allocAligned(n, align)
	}
	return c.pool.AllocAligned(n, align)
}

// allocAligned is AllocAligned for the owner, or under mu.
func (c *Cache) allocAligned(n, align int) (*Buf, error) {
	if align <= 0 || align > maxAlign || align&(align-1) != 0 {
		panic(&MisuseError{Op: "AllocAligned", Err: os.ErrInvalid})
	}
	if err := checkSize(n, c.pool.maxCap); err != nil {
		return nil, err
	}
	if n > maxSlot || align > pageSize {
		return begun(c.allocHuge(n, align))
	}
	class := classOf(n)
	for classSizes[class]%align != 0 { // the last one is a multiple of them all
		class++
	}
	return begun(c.allocSlot(class))
}
