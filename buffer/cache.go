package buffer

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/runnel-io/runnel/internal/goid"
	"github.com/runnel-io/runnel/internal/invariant"
)

// errNotOwner is the cause of a misuse of a Cache.
var errNotOwner = errors.New("cache belongs to another goroutine")

// Cache is one goroutine's view of a Pool. It keeps memory that was released for
// the next allocation, bounded in bytes, so that the owner allocates and releases
// without locks. Each loop has one for each Pool it uses.
//
// A Buf of the cache that is released on another goroutine comes back to it
// through a bounded stack, or goes to the Pool when that is full.
//
// Ownership: a Buf may outlive the Cache, but not keep it in use: [Cache.Close] gives
// all that is cached back to the Pool, and what is released later goes there.
//
// Concurrency: Alloc and TryAlloc are safe from any goroutine; those that are not the
// owner allocate from the Pool. Bind makes the caller the owner; Unbind, Trim and
// Close are for the owner, or, when there is none, for whoever has the Cache to
// itself.
type Cache struct {
	// Fixed.
	pool   *Pool
	bound  int  // of cached, and of the bytes on the return stack
	shared bool // the pool's own, used by many goroutines under mu

	owner atomic.Uintptr // identity of the goroutine that owns the cache; 0 if none

	// The owner's.
	free   [numClasses + 1]*Buf // by class, with memory; the last are handles without
	cached int                  // bytes in free, records included
	allocs tally
	frees  tally
	depth  int // of nested Binds

	mu sync.Mutex // taken by those who use a shared cache

	// Any goroutine's.
	_       [64]byte            // away from what the owner writes
	back    atomic.Pointer[Buf] // the return stack; closedStack when closed
	pending atomic.Int64        // on the stack: bytes << pendingShift | handles
}

const pendingShift = 24

// closedStack is the return stack of a closed cache.
var closedStack = new(Buf)

// Bind makes the calling goroutine the owner. It may be called again by the owner;
// each call needs an Unbind. It panics with a [MisuseError] when another goroutine
// owns the cache.
func (c *Cache) Bind() {
	id := goid.Current()
	if !c.owner.CompareAndSwap(0, id) && c.owner.Load() != id {
		panic(&MisuseError{Op: "Bind", Err: errNotOwner})
	}
	c.depth++
}

// Unbind ends what Bind began. An owner must do so before its goroutine ends.
func (c *Cache) Unbind() {
	if c.owner.Load() != goid.Current() {
		panic(&MisuseError{Op: "Unbind", Err: errNotOwner})
	}
	if c.depth--; c.depth == 0 {
		c.owner.Store(0)
	}
}

// Alloc returns an empty Buf with room for at least n bytes. It panics with
// ErrOutOfMemory when the pool's limit is reached.
func (c *Cache) Alloc(n int) *Buf {
	b, err := c.TryAlloc(n)
	if err != nil {
		panic(err)
	}
	return b
}

// TryAlloc is Alloc with an error in place of a panic.
func (c *Cache) TryAlloc(n int) (*Buf, error) {
	if c.owner.Load() == goid.Current() {
		if uint(n) <= maxSlot && !invariant.Enabled {
			class := classOf(n)
			f := &c.free[class]
			if b := *f; b != nil {
				*f = b.next
				c.cached -= classCosts[class]
				c.allocs.add(1)
				b.l = classSizes[class]
				b.ref = 1
				return b, nil
			}
		}
		return c.alloc(n)
	}
	return c.pool.TryAlloc(n)
}

// alloc is TryAlloc for the owner, or under mu.
func (c *Cache) alloc(n int) (*Buf, error) {
	if err := checkSize(n, c.pool.maxCap); err != nil {
		return nil, err
	}
	var b *Buf
	if n > maxSlot {
		s, err := c.allocHuge(n)
		if err != nil {
			return nil, err
		}
		b = c.popHandle()
		b.hold(s)
		b.flags = flagHuge
	} else {
		class := classOf(n)
		f := &c.free[class]
		if *f == nil {
			c.drain()
		}
		if *f == nil {
			if err := c.refill(class); err != nil {
				return nil, err
			}
		}
		b = *f
		*f = b.next
		c.cached -= classCosts[class]
		c.allocs.add(1)
	}
	b.l = b.slot.size
	b.born()
	return b, nil
}

// handle returns an object without memory.
func (c *Cache) handle() *Buf {
	switch {
	case c.owner.Load() == goid.Current():
		return c.popHandle()
	case c.shared:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.popHandle()
	default:
		return c.pool.shared.handle()
	}
}

func (c *Cache) popHandle() *Buf {
	f := &c.free[classView]
	if *f == nil {
		c.drain()
	}
	if *f == nil {
		c.pool.refillHandles(c)
	}
	b := *f
	*f = b.next
	c.cached -= handleSize
	c.allocs.add(1)
	return b
}

// put takes back a handle and its memory on any goroutine.
func (c *Cache) put(b *Buf) {
	if b.class == classHuge {
		c.pool.freeHuge(b)
	}
	if c.owner.Load() == goid.Current() {
		c.frees.add(1)
		c.push(b)
		if c.cached > c.bound {
			c.spill()
		}
		return
	}
	cost := int64(classCosts[b.class])<<pendingShift | 1
	if c.pending.Add(cost)>>pendingShift <= int64(c.bound) {
		for {
			top := c.back.Load()
			if top == closedStack {
				break
			}
			b.next = top
			if c.back.CompareAndSwap(top, b) {
				return
			}
		}
	}
	c.pending.Add(-cost)
	b.next = nil
	c.pool.take(b, 1)
}

// push adds a handle to its free list. For the owner, or under mu.
func (c *Cache) push(b *Buf) {
	f := &c.free[b.class]
	b.next = *f
	*f = b
	c.cached += classCosts[b.class]
}

// drain moves what other goroutines have released to the free lists.
func (c *Cache) drain() {
	if c.back.Load() == nil {
		return
	}
	c.sort(c.back.Swap(nil))
	if c.cached > c.bound {
		c.spill()
	}
}

// sort moves what was on the return stack to the free lists.
func (c *Cache) sort(b *Buf) {
	var cost int64
	var handles uintptr
	for b != nil {
		next := b.next
		handles++
		cost += int64(classCosts[b.class])
		c.push(b)
		b = next
	}
	c.pending.Add(-(cost<<pendingShift | int64(handles)))
	c.frees.add(handles)
}

// spill gives memory back to the pool, the largest first, until half the bound is left.
func (c *Cache) spill() { c.giveBack(c.bound / 2) }

// giveBack leaves at most keep bytes in the cache.
func (c *Cache) giveBack(keep int) {
	var chain *Buf
	for class := numClasses - 1; class >= 0; class-- {
		chain = c.pick(class, keep, chain)
	}
	chain = c.pick(classView, keep, chain)
	c.pool.take(chain, 0)
}

// pick moves objects of a class to chain while more than keep bytes are cached.
func (c *Cache) pick(class, keep int, chain *Buf) *Buf {
	for c.cached > keep {
		b := c.free[class]
		if b == nil {
			break
		}
		c.free[class] = b.next
		c.cached -= classCosts[class]
		b.next = chain
		chain = b
	}
	return chain
}

// Trim gives all memory that is cached back to the pool. A loop calls it when it has
// had nothing to do for a while, not in every turn.
func (c *Cache) Trim() {
	c.mustOwn("Trim")
	c.drain()
	c.giveBack(0)
	c.pool.trim()
}

// Close gives everything cached back to the Pool and ends the use of the cache.
// Further allocations through it are made by the Pool.
func (c *Cache) Close() {
	c.mustOwn("Close")
	top := c.back.Swap(closedStack)
	if top == closedStack {
		return
	}
	c.owner.Store(0)
	c.depth = 0
	c.sort(top)
	c.giveBack(0)
	c.pool.forget(c)
}

func (c *Cache) mustOwn(op string) {
	if id := c.owner.Load(); id != 0 && id != goid.Current() {
		panic(&MisuseError{Op: op, Err: errNotOwner})
	}
}

// live returns how many of the cache's Bufs are in use.
func (c *Cache) live() int64 {
	pending := c.pending.Load() & (1<<pendingShift - 1)
	return int64(int(c.allocs.load()-c.frees.load())) - pending
}
