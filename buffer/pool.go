package buffer

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"sync"
	"time"
	"unsafe"

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
	Cache  int   // bytes each Cache keeps for itself; 0 means 4 MiB, or an eighth of Limit if that is less
	Retain int64 // bytes of empty memory kept for Grace before the system gets it back; beyond, it gets it at once; 0 means 16 MiB, negative none

	Grace time.Duration // how long empty memory is kept; 0 means a second
}

// PoolStats is a snapshot of a Pool. Its numbers are taken one after the other
// while the pool is in use, so they may not add up.
type PoolStats struct {
	Limit   int64 // bytes InUse may reach
	InUse   int64 // bytes in Bufs and caches, as whole pages; what the limit is about
	Mapped  int64 // bytes of memory the pool has from the system
	Empty   int64 // bytes of Mapped that wait for reuse or for Grace to pass
	Live    int64 // Bufs in use, slices included
	OffHeap bool  // memory is outside the Go heap: false under the race detector and off Linux
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

	mu      sync.Mutex
	inUse   int               // bytes in spans and huge runs
	mapped  int               // bytes in chunks, empty ones included
	empty   int               // bytes in empty chunks
	chunks  []*chunk          // with pages to cut spans from, by address
	hints   [10]int           // chunks before hints[k] have no run of 1<<k pages
	huge    []*chunk          // empty runs that were given out whole
	partial [numClasses]*span // spans with free slots
	spans   *span             // unused span records, for reuse
	spare   *Buf              // handles without memory, for reuse
	spares  int
	slots   []*slot // records of no memory, for reuse
	caches  map[*Cache]struct{}
	folded  int64       // live Bufs of closed caches, less those returned straight to the pool
	doomed  []*chunk    // taken out, to be given to the system by unlock
	tick    uint64      // of the grace timer
	timer   *time.Timer // nil when nothing is empty
	closed  bool
}

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
		caches: map[*Cache]struct{}{},
	}
	if !invariant.Race && !invariant.Asan {
		p.space = reserve(p.limit)
	}
	if p.space != nil {
		p.limit = min(p.limit, p.space.units*unitSize)
	}
	if p.bound = cfg.Cache; p.bound == 0 {
		p.bound = min(defaultCache, p.limit/8)
	}
	p.shared = &Cache{pool: p, bound: p.bound, shared: true}
	p.caches[p.shared] = struct{}{}
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
	c := &Cache{pool: p, bound: p.bound}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.caches[c] = struct{}{}
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

// Live returns how many Bufs of p are in use, slices included. It is exact when
// nothing is being allocated or released meanwhile.
func (p *Pool) Live() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.live()
}

func (p *Pool) live() int64 {
	n := p.folded
	for c := range p.caches {
		n += c.live()
	}
	return n
}

// Stats returns a snapshot.
func (p *Pool) Stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PoolStats{
		Limit:   int64(p.limit),
		InUse:   int64(p.inUse),
		Mapped:  int64(p.mapped),
		Empty:   int64(p.empty),
		Live:    p.live(),
		OffHeap: p.space != nil,
	}
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
	if open, live := len(p.caches)-1, p.live(); open != 0 || live != 0 {
		p.mu.Unlock()
		return fmt.Errorf("buffer: close: %d Bufs and %d Caches left: %w", live, open, ErrInUse)
	}
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	p.mu.Unlock()

	p.shared.drain()
	p.shared.giveBack(0)

	p.mu.Lock()
	p.dropEmpty(0, math.MaxUint64)
	p.spare, p.spares, p.spans, p.slots = nil, 0, nil, nil
	space := p.space
	p.unlock()

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

// refill adds objects of a class to a cache, some 16 KiB of them at once.
func (c *Cache) refill(class int) error {
	p := c.pool
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

// reclaim gives back what c and the shared cache hold, to make room for something else.
func (c *Cache) reclaim() {
	c.drain()
	c.giveBack(0)
	if s := c.pool.shared; s != c {
		s.mu.Lock()
		s.drain()
		s.giveBack(0)
		s.mu.Unlock()
	}
}

// cut moves up to want slots of a class into a cache and returns how many, and why
// not more. Under p.mu.
func (p *Pool) cut(c *Cache, class, want int) (int, error) {
	for got := range want {
		s := p.partial[class]
		if s == nil {
			var err error
			if s, err = p.newSpan(class); err != nil {
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
		c.push(b)
	}
	return want, nil
}

// newHandle returns an object for a slot or a view. Under p.mu.
func (p *Pool) newHandle() *Buf {
	b := p.spare
	if b == nil {
		return &Buf{class: classView}
	}
	p.spare = b.next
	p.spares--
	b.next = nil
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
		c.push(b)
	}
}

// take gets a chain of objects back, of which handles are handles that no cache
// has counted.
func (p *Pool) take(chain *Buf, handles int) {
	if chain == nil {
		return
	}
	p.mu.Lock()
	p.folded -= int64(handles)
	for chain != nil {
		b := chain
		chain = b.next
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
		b.owner, b.next = nil, nil
		if p.spares < maxSpares && !p.closed {
			b.next = p.spare
			p.spare = b
			p.spares++
		}
	}
	p.unlock()
}

// forget ends the use of a closed cache.
func (p *Pool) forget(c *Cache) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.caches[c]; ok {
		delete(p.caches, c)
		p.folded += int64(int(c.allocs.load() - c.frees.load()))
	}
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

// newSpan takes pages for a class and links them.
func (p *Pool) newSpan(class int) (*span, error) {
	if p.closed {
		return nil, ErrClosed
	}
	pages := classPages[class]
	if p.inUse+pages*pageSize > p.limit {
		return nil, ErrOutOfMemory
	}
	c, page := p.findPages(pages)
	if c == nil {
		var err error
		if c, err = p.newChunk(chunkSize); err != nil {
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
	at, _ := slices.BinarySearchFunc(p.chunks, c, func(a, b *chunk) int { return a.slot - b.slot })
	p.lowerHints(at)
	s.chunk, s.base = nil, nil
	s.next = p.spans
	p.spans = s
	if c.used == 0 {
		p.fallEmpty(c)
	}
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

// newChunk takes bytes of memory from the system, whole pages. Under p.mu.
func (p *Pool) newChunk(bytes int) (*chunk, error) {
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
		c.base = unsafe.Pointer(unsafe.SliceData(make([]byte, bytes)))
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

// trim gives up what the shared cache holds.
func (p *Pool) trim() {
	s := p.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drain()
	s.giveBack(0)
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
	doomed := p.doomed
	p.doomed = nil
	p.mu.Unlock()
	if len(doomed) == 0 {
		return
	}
	p.decommit(doomed)
	p.mu.Lock()
	p.settle(doomed)
	p.mu.Unlock()
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

// maxLimit is the most a pool can hold: all of a 64-bit machine's memory, and what a
// range can be found for on a 32-bit one.
const maxLimit = 1<<(28+14*(strconv.IntSize/64)) - chunkSize

// A space is a reserved range of addresses in units of unitSize.
type space struct {
	base  unsafe.Pointer
	units int
	taken []uint64
	low   int // no unit before it is free
}

// spaces are the ranges of closed pools. A range is never unmapped: the next pool
// uses it.
var spaces freeSpaces

type freeSpaces struct {
	sync.Mutex
	all []*space
}

func (f *freeSpaces) put(s *space) {
	f.Lock()
	defer f.Unlock()
	f.all = append(f.all, s)
}

func (f *freeSpaces) get(units int) *space {
	f.Lock()
	defer f.Unlock()
	for i, s := range f.all {
		if s.units >= units {
			f.all = slices.Delete(f.all, i, i+1)
			return s
		}
	}
	return nil
}

// reserve finds addresses for a pool: four times its limit, so that large runs find
// room among others, or less where there is less. It returns nil if there is no
// room for the limit, or no such thing on this system.
func reserve(limit int) *space {
	least := limit/unitSize + 2*chunkSize/unitSize
	if s := spaces.get(least); s != nil {
		return s
	}
	most := least * 4
	if strconv.IntSize == 32 {
		most = least + least/2
	}
	for units := most; units >= least; units = max(units/2, least) {
		if base, err := sys.Reserve(uintptr(units) * unitSize); err == nil {
			return &space{base: base, units: units, taken: make([]uint64, (units+63)/64)}
		}
		if units == least {
			break
		}
	}
	return nil
}

// find takes a run of free units and returns the first, or -1.
func (s *space) find(units int) int {
	run := 0
	for i := s.low; i < s.units; i++ {
		if i%64 == 0 && s.taken[i/64] == math.MaxUint64 {
			run = 0
			i += 63
			continue
		}
		if s.taken[i/64]&(1<<(i%64)) != 0 {
			run = 0
			continue
		}
		if run++; run == units {
			first := i - units + 1
			for j := first; j <= i; j++ {
				s.taken[j/64] |= 1 << (j % 64)
			}
			if first == s.low {
				s.low = i + 1
			}
			return first
		}
	}
	return -1
}

// give returns a run of units.
func (s *space) give(first, units int) {
	for i := first; i < first+units; i++ {
		s.taken[i/64] &^= 1 << (i % 64)
	}
	s.low = min(s.low, first)
}
