package buffer

import (
	"math"
	"sync/atomic"
	"unsafe"

	"github.com/runnel-io/runnel/internal/goid"
	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/internal/sys"
)

// Buf is a reference-counted byte buffer with separate read and write indices:
// 0 <= ReaderIndex <= WriterIndex <= Cap. It grows when it is written to, up to
// MaxCap.
//
// A Buf may consist of many pieces of memory, see [Compose]; every method works on
// those as well.
//
// Slices and duplicates share memory. Each is a Buf with indices and references of
// its own, and keeps the memory alive. A change through [Buf.SetUint32At] and its
// like is visible in all of them; what is appended to one never overwrites bytes
// of another: a Buf whose memory is shared or read-only moves to memory of its own
// when it needs more room than it has.
//
// Ownership: a new Buf holds one reference, the caller's. FireRead and Write take
// it over, whether or not they succeed; Retain first to keep using the Buf. The
// last Release returns the memory. A read or write after that panics with a
// [MisuseError] as long as the Buf has not been handed out again; under the
// invariants tag and at [LeakAll] that never happens, so that every such use is
// found. The []byte of Peek, Next, Window and Writable belong to the Buf and are
// good until it is written to, compacted or released.
//
// Concurrency: Retain and Release are safe from any goroutine. Everything else
// needs exclusive use; in a handler that means the channel's loop. Bufs that share
// memory may be used by different goroutines as long as none of them changes bytes
// in place.
type Buf struct {
	// The read window: bytes r to w at p. w lags behind the writer and is brought
	// up to date by need, the slow path of every read. A released Buf has r = w = 0,
	// so that the next access lands there.
	p unsafe.Pointer
	r int
	w int

	// The write window: the next byte goes to q, and room is left up to l.
	wp unsafe.Pointer
	q  int
	l  int

	lim3 int // indices below it can be read by 4 bytes at p; lags behind like w

	ref   int32 // references; 0 is a released handle
	class uint8 // of slot, or classView
	flags uint16

	slot  *slot  // the memory behind the windows; nil in a free list of handles
	owner *Cache // where this object returns to; nil if not from a pool

	next *Buf    // in a free list or return stack
	rec  *record // what is known of this object without it; nil if its loss would not be noticed
}

// A slot is memory, and how to give it back. Handles that share memory point at the
// same slot.
type slot struct {
	mem   unsafe.Pointer
	size  int
	pins  int32 // handles that hold it; 1 while it waits in a free list with one
	class uint8
	apart bool    // in pages of its own, which are protected when it is given back
	owner *Cache  // where it returns to; nil if not from a pool
	span  *span   // the pages mem was cut from; nil if not from a pool
	from  *origin // whose memory it is otherwise; nil if ours
}

// Flags of a Buf. A pool's Buf that is not shared and starts at its memory has
// none but flagClean and flagShown, which is what the fast paths look for.
const (
	flagClean    uint16 = 1 << iota // all bytes below l were written or zeroed
	flagMoved                       // p is not the slot's memory
	flagShared                      // the slot has been shared, and may still be
	flagHeap                        // memory is on the Go heap
	flagMapped                      // memory is a mapped file
	flagReadOnly                    // memory cannot be written
	flagHuge                        // memory is a run of pages that no cache keeps
	flagParts                       // no memory but parts, see composite.go
	flagTraced                      // this life is on record: see record.trace
	flagShown                       // a slice of the memory has been handed out

	// flagsOfMemory are those that all handles of a slot have in common.
	flagsOfMemory = flagHeap | flagMapped | flagReadOnly | flagHuge
	// flagsOfHandle stay with a handle that takes other memory.
	flagsOfHandle = flagTraced | flagShown
)

const (
	// handleSize is what a handle costs beside its memory, and slotSize what keeping
	// account of that does.
	handleSize = int(unsafe.Sizeof(Buf{}))
	slotSize   = int(unsafe.Sizeof(slot{}))

	// defaultMaxCap bounds the growth of a Buf.
	defaultMaxCap = math.MaxInt32
)

// Retain adds a reference and returns b.
func (b *Buf) Retain() *Buf {
	if atomic.AddInt32(&b.ref, 1) <= 1 {
		atomic.AddInt32(&b.ref, -1)
		b.misuse("Retain")
	}
	return b
}

// Release gives a reference back. It reports whether it was the last one: then b
// must not be touched again, and its memory has been returned unless a slice still
// holds it.
func (b *Buf) Release() bool {
	// A count of one is the caller's own: nobody else may touch it, so no
	// read-modify-write is needed.
	if atomic.LoadInt32(&b.ref) == 1 && b.flags&^(flagClean|flagShown) == 0 && !invariant.Enabled {
		if b.flags&flagShown != 0 {
			b.rec.shown = false
		}
		b.ref = 0
		b.flags = 0
		b.r, b.w, b.q, b.l, b.lim3 = 0, 0, 0, 0, 0
		c := b.owner
		if c.owner.Load() != goid.Current() {
			c.putBack(b)
			return true
		}
		f := &c.lists[b.class]
		b.next = f.top
		f.top = b
		f.frees.add(1)
		cached := c.cached + f.cost
		if c.cached = cached; uintptr(cached) > c.bound.Load() {
			c.spill()
		}
		return true
	}
	return b.release()
}

// release is Release for every kind of Buf and on every goroutine.
func (b *Buf) release() bool {
	if atomic.LoadInt32(&b.ref) != 1 {
		n := atomic.AddInt32(&b.ref, -1)
		if n > 0 {
			return false
		}
		if n < 0 {
			atomic.AddInt32(&b.ref, 1)
			b.misuse("Release")
		}
	}
	b.ref = 0
	b.retire()
	return true
}

// retire takes a handle without references out of use and gives back what it held.
func (b *Buf) retire() {
	b.r, b.w, b.q, b.l, b.lim3 = 0, 0, 0, 0, 0
	own := b.flags & flagsOfHandle
	if b.owner == nil {
		heapLive.Add(-1)
		b.rec.rest() // nothing takes it back
	}
	if b.flags&flagParts != 0 {
		ps := b.pieces()
		b.part()
		ps.giveBack()
	} else if b.flags&flagShared != 0 && !b.slot.unpin() {
		b.part()
	}
	if own != 0 {
		b = b.settle()
	}
	b.recycle()
}

// part takes the memory from a handle without giving it back.
func (b *Buf) part() {
	b.slot, b.class, b.flags = nil, classView, 0
	b.p, b.wp = nil, nil
	if b.rec != nil {
		b.rec.slot = nil
	}
}

// unpin gives back one hold on s and reports whether it was the last one.
func (s *slot) unpin() bool {
	// A count of one is the caller's own, as in Buf.Release.
	if atomic.LoadInt32(&s.pins) == 1 {
		return true
	}
	n := atomic.AddInt32(&s.pins, -1)
	invariant.Check(n >= 0, "slot released too often")
	if n == 0 {
		s.pins = 1 // the caller's
	}
	return n == 0
}

// recycle returns a handle without references, and the memory that it was the last
// to hold, to where they came from.
func (b *Buf) recycle() {
	s := b.slot
	switch {
	case s == nil:
		if b.owner != nil {
			b.owner.put(b)
		}
	case s.owner == nil:
		from := s.from
		b.part()
		if from != nil {
			from.release()
		}
		if b.owner != nil {
			b.owner.put(b)
		}
	default:
		b.p, b.wp = s.mem, s.mem
		b.flags = 0
		b.owner = s.owner
		b.owner.put(b)
	}
}

// reclaimable reports whether there is something to return when the last handle is
// lost, or whether the collector does all by itself. A slot that is must be an object
// of its own: the records of its handles point at it.
func (s *slot) reclaimable() bool {
	return s.owner != nil || s.from != nil || s.class == classParts
}

// Refs returns the number of references to b itself, without those of its slices.
func (b *Buf) Refs() int32 { return atomic.LoadInt32(&b.ref) }

// Len returns the number of bytes that can be read.
func (b *Buf) Len() int {
	if b.flags&flagParts != 0 {
		return b.partsLen()
	}
	return b.q - b.r
}

// Cap returns the number of bytes b can hold before it has to move to more memory,
// counted from index 0.
func (b *Buf) Cap() int {
	if b.flags&flagParts != 0 {
		return b.partsWriter() + b.l - b.q
	}
	return b.l
}

// MaxCap returns the capacity up to which b grows by itself.
func (b *Buf) MaxCap() int {
	if b.owner != nil {
		return b.owner.pool.maxCap
	}
	return defaultMaxCap
}

// ReaderIndex returns the index of the next byte to be read.
func (b *Buf) ReaderIndex() int {
	if b.flags&flagParts != 0 {
		return b.partsReader()
	}
	return b.r
}

// WriterIndex returns the index at which the next byte is written.
func (b *Buf) WriterIndex() int {
	if b.flags&flagParts != 0 {
		return b.partsWriter()
	}
	return b.q
}

// Pinned returns how many bytes of memory b keeps alive, whatever its length: all
// of the memory it shares, and its own handles. Limits are charged by it.
func (b *Buf) Pinned() int {
	if b.flags&flagParts != 0 {
		ps := b.pieces()
		return ps.pinned + len(ps.list)*partSize + handleSize
	}
	return b.slot.size + slotSize + handleSize
}

// SharesMemory reports whether b and o keep some of the same memory alive, as a Buf
// and its slice do. The parts of a composite are compared one by one.
func (b *Buf) SharesMemory(o *Buf) bool {
	if b.flags&flagParts != 0 {
		ps := b.pieces()
		for _, x := range ps.list[ps.head:] {
			if o.SharesMemory(x.b) {
				return true
			}
		}
		return b == o
	}
	if o.flags&flagParts != 0 {
		return o.SharesMemory(b)
	}
	return b.slot == o.slot
}

// Exclusive reports whether the caller is the only user of b's memory and may
// change it: b has one reference, no slice shares its memory, and it is not
// read-only.
func (b *Buf) Exclusive() bool {
	if b.flags&flagParts != 0 {
		return b.partsExclusive()
	}
	return atomic.LoadInt32(&b.ref) == 1 && b.flags&flagReadOnly == 0 && b.sole()
}

// Mapped reports whether b shows a mapped file: reading it may wait for the disk,
// and may fail when the file has been truncated.
func (b *Buf) Mapped() bool { return b.flags&flagMapped != 0 }

// Clear drops all content: both indices become 0. Bytes that are shared stay as
// they are in the other Bufs; then b continues behind them with what capacity is
// left. The parts of a composite are released.
func (b *Buf) Clear() {
	b.alive("Clear")
	if b.flags&flagParts != 0 {
		b.clearParts()
		return
	}
	if b.reusable() {
		b.r, b.q = 0, 0
		b.rewind()
	} else {
		b.rebase(b.q)
		b.r, b.q = 0, 0
	}
	b.sync()
}

// DiscardRead drops the bytes that have been read, so that ReaderIndex becomes 0.
// It moves the rest to the front of the memory, unless that is shared, read-only or
// wrapped: then the capacity shrinks instead. Of a composite it releases the parts
// that have been read, and moves nothing.
func (b *Buf) DiscardRead() {
	b.alive("DiscardRead")
	if b.flags&flagParts != 0 {
		b.discardParts(true)
		return
	}
	if b.reusable() {
		n := b.q - b.r
		copy(bytesAt(b.slot.mem, 0, b.slot.size), bytesAt(b.p, b.r, n))
		b.r, b.q = 0, n
		b.rewind()
	} else if b.r > 0 {
		n := b.q - b.r
		b.rebase(b.r)
		b.r, b.q = 0, n
	}
	b.sync()
}

// EnsureWritable makes room for n more bytes. It panics with ErrTooLarge when b
// would have to grow beyond MaxCap, and with ErrOutOfMemory when there is no memory
// to be had.
func (b *Buf) EnsureWritable(n int) {
	if n < 0 || n > b.l-b.q {
		b.grow(n)
	}
}

// Window returns the bytes that can be read and lie at one place in memory: all
// of them, unless b is made of several parts. The slice is b's; do not write to it.
func (b *Buf) Window() []byte {
	if b.flags&flagParts != 0 {
		return b.partsWindow()
	}
	if b.q == b.r {
		return nil
	}
	b.show()
	return bytesAt(b.p, b.r, b.q-b.r)
}

// Segments yields the bytes that can be read, part by part and in order, until
// yield returns false. The slices are b's.
func (b *Buf) Segments(yield func([]byte) bool) {
	if b.flags&flagParts != 0 {
		b.eachPart(yield)
		return
	}
	if b.q > b.r {
		yield(b.Window())
	}
}

// AppendIovecs appends the parts of what can be read to dst, at most max of them,
// for a gathering write. Empty parts are left out. The memory must stay alive for
// as long as the result is used: hold a reference.
func (b *Buf) AppendIovecs(dst []sys.Iovec, max int) []sys.Iovec {
	if b.flags&flagParts != 0 {
		return b.partsIovecs(dst, max)
	}
	if b.q > b.r && max > 0 {
		dst = append(dst, sys.MakeIovec(b.chunk(b.r)))
	}
	return dst
}

// sole reports whether no other handle shares b's memory.
func (b *Buf) sole() bool {
	return b.flags&flagShared == 0 || atomic.LoadInt32(&b.slot.pins) == 1
}

// reusable reports whether all of b's memory may be written to: it is b's alone, and
// not the caller's, see Wrap.
func (b *Buf) reusable() bool { return b.Exclusive() && b.slot.from == nil }

// offset returns where in its memory index 0 of b is.
func (b *Buf) offset() int { return int(uintptr(b.p) - uintptr(b.slot.mem)) }

// sync brings what lags behind the writer up to date.
func (b *Buf) sync() {
	b.w = b.q
	b.lim3 = max(0, b.q-3)
}

// rebase moves index 0 up by n bytes. The caller adjusts the indices.
func (b *Buf) rebase(n int) {
	if b.l -= n; b.l > 0 && n > 0 {
		b.p = unsafe.Add(b.p, n)
		b.wp = b.p
		b.flags |= flagMoved
	}
	// With no capacity left the pointer stays: one behind the end of an object
	// would be another object's.
}

// rewind makes all of the memory, which b has to itself, its capacity again.
func (b *Buf) rewind() {
	s := b.slot
	if b.l != s.size {
		b.flags &^= flagClean
	}
	b.p, b.wp, b.l = s.mem, s.mem, s.size
	b.flags &^= flagMoved | flagShared
}

// newHandle returns an object without memory from where b's come from.
func (b *Buf) newHandle() *Buf { return b.owner.handle(b.slot) }

// hold gives a handle memory.
func (b *Buf) hold(s *slot) {
	b.slot, b.class = s, s.class
	b.p, b.wp = s.mem, s.mem
	if b.rec != nil {
		b.mirror()
	}
}

// allocator returns where more memory for b comes from.
func (b *Buf) allocator() Allocator {
	if b.owner == nil {
		return Heap
	}
	return b.owner
}

// grow makes room for n more bytes: in the memory b has, if it is the only user
// and there is more of it, else by moving to other memory. Indices stay as they are.
func (b *Buf) grow(n int) {
	b.alive("write")
	if n < 0 {
		panic(&Error{"EnsureWritable", n, 0, ErrShort})
	}
	need := b.WriterIndex() + n
	most := b.MaxCap()
	if need > most || need < 0 {
		panic(&Error{"write", need, most, ErrTooLarge})
	}
	if b.flags&flagParts != 0 {
		b.growParts(n)
		return
	}
	if b.reusable() && need <= b.slot.size {
		b.flags &^= flagClean | flagShared
		s := b.slot
		off := b.offset()
		if off+need > s.size {
			copy(bytesAt(s.mem, 0, b.q), bytesAt(b.p, 0, b.q))
			off = 0
			b.p, b.wp = s.mem, s.mem
			b.flags &^= flagMoved
		}
		b.l = s.size - off
		return
	}
	o := b.allocator().Alloc(enlarge(b.l, need, most))
	b.copyTo(o, 0, b.q)
	// b takes o's memory, and o what b had, to give it back.
	mine, flags, owner := b.slot, b.flags, b.owner
	b.hold(o.slot)
	b.flags, b.owner, b.l = o.flags&^flagsOfHandle|flags&flagsOfHandle, o.owner, o.l
	o.hold(mine)
	o.flags, o.owner = o.flags&flagsOfHandle|flags&^(flagsOfHandle|flagMoved), owner
	o.Release()
}

// enlarge returns the capacity for a Buf of capacity have that needs need bytes:
// double, and by a quarter from 4 MiB on, so that appending costs a constant per byte.
func enlarge(have, need, most int) int {
	const step = 4 << 20
	n := have * 2
	if have >= step {
		n = have + have/4
	}
	return min(max(n, need, 64), most)
}

// alive panics when b has been released.
func (b *Buf) alive(op string) {
	if atomic.LoadInt32(&b.ref) <= 0 {
		b.misuse(op)
	}
}

// misuse panics because b has been released.
//
//go:noinline
func (b *Buf) misuse(op string) {
	panic(b.rec.misuse(op))
}

// short panics because b holds fewer than n bytes.
//
//go:noinline
func (b *Buf) short(op string, n int) {
	b.alive(op)
	panic(&Error{op, n, b.Len(), ErrShort})
}

// outOfRange panics because bytes i to i+n have not all been written.
//
//go:noinline
func (b *Buf) outOfRange(op string, i, n int) {
	b.alive(op)
	if i < 0 || n < 0 {
		panic(&Error{op, min(i, n), b.WriterIndex(), ErrShort})
	}
	panic(&Error{op, i + n, b.WriterIndex(), ErrShort})
}

// bytesAt returns n bytes from offset off behind p, and no capacity beyond. It
// never forms a pointer behind the last byte.
func bytesAt(p unsafe.Pointer, off, n int) []byte {
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Add(p, off)), n)
}
