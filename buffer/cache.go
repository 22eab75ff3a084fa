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
// through a stack, or goes to the Pool when that holds about the bound already.
//
// Ownership: a Buf may outlive the Cache, but not keep it in use: [Cache.Close] gives
// all that is cached back to the Pool, and what is released later goes there.
//
// Concurrency: Alloc, TryAlloc and AllocAligned are safe from any goroutine; those
// that are not the owner allocate from the Pool. Bind makes the caller the owner; Unbind, Trim and
// Close are for the owner, or, when there is none, for whoever has the Cache to
// itself.
type Cache struct {
	// Fixed.
	pool   *Pool
	shared bool // the pool's own, used by many goroutines under mu

	// Read by all, seldom changed.
	owner atomic.Uintptr // identity of the goroutine that owns the cache; 0 if none
	bound atomic.Uintptr // of cached, and of the bytes on the return stack; 0 asks the owner to give back everything, see heed

	// The owner's.
	_      [64]byte   // away from what others read
	mu     sync.Mutex // taken by those who use a shared cache
	depth  int        // of nested Binds
	cached int        // bytes in lists, records included
	sample int        // allocations until one is sampled; the fourth word, for no list to lie in two lines of the processor's cache
	lists  [numClasses + 1]list
	filled [numClasses + 1]tally // objects from the pool, less those given back to it

	// Any goroutine's.
	_       [64]byte            // away from what the owner writes
	back    atomic.Pointer[Buf] // the return stack; closedStack when closed
	pending estimate            // of the bytes on it

	// Whoever takes the return stack holds taking until what was on it has been
	// counted: in frees and came, or in gone. Nothing else is locked meanwhile.
	_      [64]byte
	taking sync.Mutex
	came   [numClasses + 1]uintptr // objects that came back through the stack to the lists
	gone   [numClasses + 1]uintptr // and that went from it to the pool
}

// A list has the free objects of a class, with memory, or, the last one, without.
type list struct {
	top    *Buf
	cost   int   // bytes an object is charged with
	allocs tally // objects taken out for use
	frees  tally // and put back after it
}

// An estimate is a sum that any goroutine changes without an atomic operation, so
// that changes made at the same time may be lost. What keeps it near the truth is
// that it is set to 0 ever so often.
type estimate struct{ n uintptr }

func (e *estimate) load() uintptr { return atomic.LoadUintptr(&e.n) }

func (e *estimate) add(n uintptr) {
	if invariant.Race {
		atomic.AddUintptr(&e.n, n)
		return
	}
	e.n += n
}

func (e *estimate) reset() {
	if invariant.Race {
		atomic.StoreUintptr(&e.n, 0)
		return
	}
	e.n = 0
}

// closedStack is the return stack of a closed cache.
var closedStack = new(Buf)

// newCache returns a cache that p does not know yet.
func newCache(p *Pool) *Cache {
	c := &Cache{pool: p, sample: sampleGap()}
	c.bound.Store(uintptr(p.bound))
	for class := range c.lists {
		c.lists[class].cost = classCosts[class]
	}
	return c
}

// Pool returns the pool that the memory comes from.
func (c *Cache) Pool() *Pool { return c.pool }

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
		if uint(n) < uint(plainSizes.Load()) && !invariant.Enabled {
			f := &c.lists[classOf(n)]
			if b := f.top; b != nil {
				f.top = b.next
				b.next = nil // else b would keep that one from the collector
				c.cached -= f.cost
				f.allocs.add(1)
				b.l = f.cost - recordSize
				b.ref = 1
				if c.sample--; c.sample <= 0 {
					c.sample = sampleGap()
					b.follow()
				}
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
	if n > maxSlot {
		return begun(c.allocHuge(n, 1))
	}
	return begun(c.allocSlot(classOf(n)))
}

// allocSlot returns a Buf with a slot of a class.
func (c *Cache) allocSlot(class int) (*Buf, error) {
	if modes.Load()&modeApart != 0 {
		if b := c.allocApart(class); b != nil {
			return b, nil
		}
	}
	if c.lists[class].top == nil {
		c.drain()
	}
	if c.lists[class].top == nil {
		if err := c.refill(class); err != nil {
			return nil, err
		}
	}
	return c.pop(class), nil
}

// begun begins the life of a Buf that has been given memory.
func begun(b *Buf, err error) (*Buf, error) {
	if err != nil {
		return nil, err
	}
	b.l = b.slot.size
	b.born()
	return b, nil
}

// handle returns an object for more of s, without memory; not from a pool if c is nil.
func (c *Cache) handle(s *slot) *Buf {
	switch {
	case c == nil:
		return s.stray()
	case c.owner.Load() == goid.Current():
		return c.popHandle()
	case c.shared:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.popHandle()
	default:
		return c.pool.shared.handle(s)
	}
}

func (c *Cache) popHandle() *Buf {
	if c.lists[classView].top == nil {
		c.drain()
	}
	if c.lists[classView].top == nil {
		c.pool.refillHandles(c)
	}
	return c.pop(classView)
}

// pop takes an object out of a list that has one. For the owner, or under mu.
func (c *Cache) pop(class int) *Buf {
	f := &c.lists[class]
	b := f.top
	f.top = b.next
	b.next = nil // as in TryAlloc
	c.cached -= f.cost
	f.allocs.add(1)
	if c.sample--; c.sample <= 0 || tracing() {
		c.due(b)
	}
	return b
}

// push adds an object to its list. For the owner, or under mu.
func (c *Cache) push(b *Buf) {
	f := &c.lists[b.class]
	b.next = f.top
	f.top = b
	c.cached += f.cost
}

// put takes back a handle and its memory on any goroutine.
func (c *Cache) put(b *Buf) {
	if c.owner.Load() != goid.Current() {
		if b.class == classHuge {
			c.pool.freeHuge(b, true)
		}
		c.putBack(b)
		return
	}
	if b.class == classHuge {
		c.pool.freeHuge(b, false)
	}
	f := &c.lists[b.class]
	b.next = f.top
	f.top = b
	f.frees.add(1)
	cached := c.cached + f.cost
	if c.cached = cached; uintptr(cached) > c.bound.Load() {
		c.spill()
	}
}

// putBack takes back a handle, and its memory, on a goroutine that does not own c.
// One atomic operation does it; that is why pending is an estimate.
func (c *Cache) putBack(b *Buf) {
	cost := uintptr(classCosts[b.class])
	if c.pending.load()+cost <= c.bound.Load() {
		c.pending.add(cost)
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
	b.next = nil
	c.pool.take(b, true)
}

// drain moves what other goroutines have released to the lists.
func (c *Cache) drain() {
	c.collect()
	if uintptr(c.cached) > c.bound.Load() {
		c.spill()
	}
}

// collect is drain, whatever the bound is. It leaves the return stack alone while
// somebody else counts what is on it.
func (c *Cache) collect() {
	if c.back.Load() == nil || !c.taking.TryLock() {
		return
	}
	c.sort(c.stacked())
	c.taking.Unlock()
}

// sort moves what was on the return stack to the lists. Under taking.
func (c *Cache) sort(b *Buf) {
	c.pending.reset()
	for b != nil {
		next := b.next
		c.came[b.class]++
		c.lists[b.class].frees.add(1)
		c.push(b)
		b = next
	}
}

// clearStack gives what is on the return stack to the pool. On any goroutine.
func (c *Cache) clearStack() {
	c.taking.Lock()
	chain := c.stacked()
	c.pending.reset()
	for b := chain; b != nil; b = b.next {
		c.gone[b.class]++
	}
	c.taking.Unlock()
	c.pool.take(chain, false)
}

// stacked takes what is on the return stack. Under taking.
func (c *Cache) stacked() *Buf {
	if top := c.back.Load(); top == nil || top == closedStack {
		return nil
	}
	return c.back.Swap(nil) // only under taking it becomes closedStack
}

// spill gives memory back to the pool, the largest first, until half the bound is left.
func (c *Cache) spill() {
	if bound := int(c.bound.Load()); bound > 0 {
		c.giveBack(bound / 2)
	} else {
		c.heed()
	}
}

// ask has the owner give back what it keeps, and others what they release to the
// pool until then. The owner sees it when it releases, or when it needs memory from
// the pool: a bound of 0 sends it to spill and to heed.
func (c *Cache) ask() { c.bound.Store(0) }

// heed does what somebody has asked for. For the owner, or under mu.
func (c *Cache) heed() {
	if c.bound.Load() != 0 {
		return
	}
	c.collect()
	c.giveBack(0)
	p := c.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	c.bound.Store(p.cacheBound())
}

// giveBack leaves at most keep bytes in the cache.
func (c *Cache) giveBack(keep int) {
	var chain *Buf
	for class := numClasses - 1; class >= 0; class-- {
		chain = c.pick(class, keep, chain)
	}
	chain = c.pick(classView, keep, chain)
	c.pool.take(chain, false)
}

// pick moves objects of a class to chain while more than keep bytes are cached.
func (c *Cache) pick(class, keep int, chain *Buf) *Buf {
	f := &c.lists[class]
	for c.cached > keep && f.top != nil {
		b := f.top
		f.top = b.next
		c.cached -= f.cost
		c.filled[class].add(^uintptr(0)) // less one
		b.next = chain
		chain = b
	}
	return chain
}

// Trim gives all memory that is cached back to the pool, and has what others release
// go there too until the owner allocates or releases. A loop calls it when it has had
// nothing to do for a while, not in every turn.
func (c *Cache) Trim() {
	c.mustOwn("Trim")
	c.ask()
	c.collect()
	c.giveBack(0)
	c.pool.trim()
}

// Close gives everything cached back to the Pool and ends the use of the cache.
// Further allocations through it are made by the Pool.
func (c *Cache) Close() {
	c.mustOwn("Close")
	c.taking.Lock()
	top := c.back.Swap(closedStack)
	if top == closedStack {
		c.taking.Unlock()
		return
	}
	c.sort(top)
	c.taking.Unlock()
	c.owner.Store(0)
	c.depth = 0
	c.giveBack(0)
	c.pool.forget(c)
}

func (c *Cache) mustOwn(op string) {
	if id := c.owner.Load(); id != 0 && id != goid.Current() {
		panic(&MisuseError{Op: op, Err: errNotOwner})
	}
}
