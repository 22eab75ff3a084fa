package buffer

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/internal/sys"
)

// Allocator makes Bufs. Pool, Cache and Heap are Allocators.
type Allocator interface {
	// Alloc returns an empty Buf with room for at least n bytes. It panics with
	// an error that wraps ErrOutOfMemory or ErrTooLarge.
	Alloc(n int) *Buf
	// TryAlloc returns that error instead.
	TryAlloc(n int) (*Buf, error)
}

// PoolConfig sets the bounds of a Pool. The zero value is ready to use.
type PoolConfig struct {
	Limit  int64 // bytes the pool may hold, in use and cached; 0 means a quarter of the memory this process may use
	MaxCap int   // bytes to which a Buf grows, rounded up to a size class; 0 means 2 GiB - 1, which is also the most
	Cache  int   // bytes each Cache keeps for itself, less under pressure; 0 means 4 MiB, or an eighth of Limit if that is less
	Retain int64 // bytes of empty memory kept for Grace before the system gets it back; beyond, it gets it at once; 0 means 16 MiB, negative none

	Grace time.Duration // how long empty memory is kept; 0 means a second

	HugePages bool // ask the system to back memory by huge pages; PoolStats says whether it does
}

// Pool makes Bufs from memory outside the Go heap, which the garbage collector
// neither scans nor counts, within a limit.
//
// It cuts slots of some 60 sizes up to 1 MiB out of chunks of 4 MiB, and gives
// larger Bufs pages of their own. Chunks that fall empty go back to the system; their
// addresses do not, so that a stale pointer never meets memory of somebody else.
// Where memory outside the heap cannot be had, or the race detector could not see
// it, the chunks come from the Go heap.
//
// What caches keep counts as in use. An allocation that finds the limit reached has
// the pool's own cache, and what waits on return stacks, given up for it. What is in
// the lists of other caches only their owners can give: they are asked to, and do when
// they next release or come to the pool for more; until then allocations may fail.
// See also [Pool.Pressure].
//
// Ownership: a Pool is used until it is closed, and may be used for ever.
//
// Concurrency: all methods are safe from any goroutine. Alloc takes a lock; a
// goroutine that allocates much has a [Cache], as each loop does.
type Pool struct {
	// Fixed.
	limit, retain int
	maxCap, bound int
	grace         time.Duration
	space         *space // nil when memory comes from the Go heap
	shared        *Cache // for goroutines without a cache

	pressure atomic.Bool // changed under mu

	mu        sync.Mutex
	inUse     int               // bytes in spans and huge runs
	mapped    int               // bytes in chunks, empty ones included
	empty     int               // bytes in empty chunks
	chunks    []*chunk          // with pages to cut spans from, by address
	hints     [10]int           // chunks before hints[k] have no run of 1<<k pages
	huge      []*chunk          // empty runs that were given out whole
	partial   [numClasses]*span // spans with free slots
	spans     *span             // unused span records, for reuse
	spare     *Buf              // handles without memory, for reuse
	spares    int
	slots     []*slot // records of no memory, for reuse
	jail      jail    // memory of released Bufs that nobody may touch
	caches    []*Cache
	past      books      // of closed caches, and of what was released straight to the pool
	runs      ClassStats // of huge runs
	spanCount [numClasses]int
	doomed    []*chunk  // taken out, to be given to the system by unlock
	dooming   int       // calls of unlock that do so
	settled   sync.Cond // none does any more
	watchers  []*watcher
	telling   bool        // a goroutine calls them
	tick      uint64      // of the grace timer
	timer     *time.Timer // nil when nothing is empty
	closed    bool
}

const (
	defaultCache  = 4 << 20
	defaultRetain = 16 << 20
	defaultGrace  = time.Second
	maxSpares     = 4096
)

// Default returns the Pool that is used where none is named. It is made, with a
// zero PoolConfig, when it is first asked for.
func Default() *Pool { return defaultPool() }

var defaultPool = sync.OnceValue(func() *Pool {
	p, err := NewPool(PoolConfig{})
	if err != nil {
		panic(err) // a zero configuration is never refused
	}
	return p
})

// NewPool returns a Pool. It refuses negative bounds and a MaxCap above the most.
func NewPool(cfg PoolConfig) (*Pool, error) {
	switch {
	case cfg.Limit < 0:
		return nil, fmt.Errorf("buffer: PoolConfig.Limit is %d", cfg.Limit)
	case cfg.MaxCap < 0 || cfg.MaxCap > defaultMaxCap:
		return nil, fmt.Errorf("buffer: PoolConfig.MaxCap is %d", cfg.MaxCap)
	case cfg.Cache < 0:
		return nil, fmt.Errorf("buffer: PoolConfig.Cache is %d", cfg.Cache)
	case cfg.Grace < 0:
		return nil, fmt.Errorf("buffer: PoolConfig.Grace is %v", cfg.Grace)
	}
	if cfg.Limit == 0 {
		if cfg.Limit = sys.MemoryLimit() / 4; cfg.Limit <= 0 {
			cfg.Limit = 1 << 30
		}
	}
	if cfg.MaxCap == 0 {
		cfg.MaxCap = defaultMaxCap
	}
	if cfg.MaxCap <= maxSlot {
		cfg.MaxCap = classSizes[classOf(cfg.MaxCap)]
	}
	if cfg.Retain == 0 {
		cfg.Retain = defaultRetain
	}
	if cfg.Grace == 0 {
		cfg.Grace = defaultGrace
	}
	p := &Pool{
		limit:  int(min(cfg.Limit, maxLimit)),
		retain: int(min(max(cfg.Retain, 0), maxLimit)),
		maxCap: cfg.MaxCap,
		grace:  cfg.Grace,
	}
	if !invariant.Race && !invariant.Asan {
		p.space = reserve(p.limit, cfg.HugePages)
	}
	if p.space != nil {
		p.limit = min(p.limit, p.space.units*unitSize)
	}
	if p.bound = cfg.Cache; p.bound == 0 {
		p.bound = min(defaultCache, p.limit/8)
	}
	p.settled.L = &p.mu
	p.shared = newCache(p)
	p.shared.shared = true
	p.caches = []*Cache{p.shared}
	pools.Lock()
	defer pools.Unlock()
	if pools.all == nil {
		pools.all = map[*Pool]struct{}{}
	}
	pools.all[p] = struct{}{}
	return p, nil
}

// NewCache returns a Cache of p that nobody owns yet.
func (p *Pool) NewCache() *Cache {
	c := newCache(p)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.caches = append(p.caches, c)
	c.bound.Store(p.cacheBound())
	return c
}

// Alloc returns an empty Buf with room for at least n bytes. It panics with
// ErrOutOfMemory when the limit is reached.
func (p *Pool) Alloc(n int) *Buf {
	b, err := p.TryAlloc(n)
	if err != nil {
		panic(err)
	}
	return b
}

// TryAlloc is Alloc with an error in place of a panic.
func (p *Pool) TryAlloc(n int) (*Buf, error) {
	p.shared.mu.Lock()
	defer p.shared.mu.Unlock()
	return p.shared.alloc(n)
}

// Close ends the use of p and gives its memory back. It returns an error that wraps
// ErrInUse, and changes nothing, while Bufs are in use or Caches are open. Closing
// again does nothing.
func (p *Pool) Close() error {
	p.shared.mu.Lock()
	defer p.shared.mu.Unlock()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	open, live := len(p.caches)-1, p.past.live()
	for _, c := range p.caches {
		live += c.live()
	}
	if open != 0 || live != 0 {
		p.mu.Unlock()
		return fmt.Errorf("buffer: close: %d Bufs and %d Caches left: %w", live, open, ErrInUse)
	}
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	p.mu.Unlock()

	p.shared.collect()
	p.shared.giveBack(0)

	p.mu.Lock()
	p.clearJail()
	p.dropEmpty(0, math.MaxUint64)
	p.spare, p.spares, p.spans, p.slots = nil, 0, nil, nil
	space := p.space
	p.unlock()
	p.mu.Lock()
	p.await()
	p.mu.Unlock()

	pools.Lock()
	defer pools.Unlock()
	delete(pools.all, p)
	if space != nil {
		spaces.put(space)
	}
	return nil
}

// checkSize returns an error for a size that no Buf can have.
func checkSize(n, most int) error {
	if n < 0 || n > most {
		return &Error{"alloc", n, most, ErrTooLarge}
	}
	return nil
}

// forget ends the use of a closed cache.
func (p *Pool) forget(c *Cache) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.caches = slices.DeleteFunc(p.caches, func(o *Cache) bool { return o == c })
	c.addTo(&p.past)
}
