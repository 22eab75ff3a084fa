package buffer

import (
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"
)

// A record is what is known of a handle, or of a FileRegion, without reaching it. The
// collector hands it to lose when the handle is gone, so nothing in it may lead
// back to the handle: what it knows of it is mirrored here, by hold and part.
//
// A record belongs to who has the use of its handle, and once that is gone to lose.
type record struct {
	slot  *slot  // what the handle holds, or a stand-in with its size where the collector frees that; nil if nothing
	pool  *Pool  // where the handle returns to; nil if to none
	trace *trace // of this life, if it is on record
	kind  kind
	shown bool // a slice of the memory has been handed out
	idle  bool // the handle is out of use, and may be dropped
}

// kind is what a record is about.
type kind uint8

const (
	kindBuf kind = iota
	kindHeap
	kindMapped
	kindWrapped
	kindComposite
	kindRegion
)

func (k kind) String() string {
	return [...]string{"Buf", "heap Buf", "mapped Buf", "wrapped Buf", "composite Buf", "FileRegion"}[k]
}

// enlist makes sure that the loss of a handle of p that comes into use, or of none if p
// is nil, is noticed.
func (b *Buf) enlist(p *Pool) {
	if b.rec != nil {
		b.rec.idle = false
	} else if watching() {
		b.attach(p)
	}
}

// attach gives b its record, and the collector the record.
func (b *Buf) attach(p *Pool) {
	b.rec = &record{pool: p}
	if b.slot != nil {
		b.mirror()
	}
	if watching() {
		runtime.AddCleanup(b, lose, b.rec)
	}
}

// mirror notes what memory b has.
func (b *Buf) mirror() {
	r, s := b.rec, b.slot
	r.slot = s
	switch {
	case s.owner != nil:
		r.kind = kindBuf
	case s.class == classParts:
		r.kind = kindComposite
	case s.from == nil:
		r.kind, r.slot = kindHeap, &slot{size: s.size} // s may be one object with the handle
	case s.from.data != nil:
		r.kind = kindMapped
	default:
		r.kind = kindWrapped
	}
	if r.trace != nil && r.trace.whole {
		r.trace.describe(r.kind, r.bytes())
	}
}

// bytes is how much what r is about keeps from use.
func (r *record) bytes() int64 {
	switch {
	case r.slot == nil:
		return 0
	case r.kind == kindComposite:
		return int64((*parts)(unsafe.Pointer(r.slot)).pinned)
	}
	return int64(r.slot.size)
}

// rest notes that the handle is out of use.
func (r *record) rest() {
	if r != nil {
		r.idle = true
	}
}

// show notes that a slice of b's memory is handed out. While one may be in use the
// memory of a lost Buf cannot be. Every method that returns or yields a slice calls
// it, of a composite for the part, unless somebody holds a reference for as long as the
// slice is used.
func (b *Buf) show() {
	if b.rec != nil {
		b.rec.shown = true
		b.flags |= flagShown
	}
}

// showLast is show for the memory that is written next.
func (b *Buf) showLast() {
	if b.flags&flagParts != 0 {
		ps := b.pieces()
		b = ps.list[len(ps.list)-1].b
	}
	b.show()
}

// sampleEvery is how many allocations there are to one whose stack is taken at level
// LeakSampled, on average.
const sampleEvery = 1024

// sampleGap returns after how many allocations the next is to be sampled. It varies,
// for a program that allocates in a regular way to have each of its places sampled.
func sampleGap() int { return 1 + rand.IntN(2*sampleEvery-1) }

// due marks b for born, to be put on record. For the owner of c, or under mu.
//
//go:noinline
func (c *Cache) due(b *Buf) {
	if c.sample <= 0 {
		c.sample = sampleGap()
	}
	b.flags |= flagTraced
}

// born begins the life of a handle.
func (b *Buf) born() {
	b.ref = 1
	if b.owner == nil || b.flags&flagTraced != 0 {
		b.bornWatched()
	}
}

// bornWatched is born for those that are marked, and those that no cache marks.
func (b *Buf) bornWatched() {
	if b.flags&flagTraced != 0 || tracing() || watching() && rand.Uint32N(sampleEvery) == 0 {
		b.follow()
	}
}

// stray returns a handle for more of s that belongs to no pool.
func (s *slot) stray() *Buf {
	heapLive.Add(1)
	b := &Buf{class: classView}
	if s.reclaimable() {
		b.enlist(nil)
	}
	return b
}

// follow puts the life that begins on record, if the level wants any on record.
//
//go:noinline
func (b *Buf) follow() {
	if !watching() && !tracing() {
		b.flags &^= flagTraced
		return
	}
	if b.rec == nil {
		var p *Pool
		if b.owner != nil {
			p = b.owner.pool
		}
		b.attach(p)
	}
	b.rec.follow()
	b.flags |= flagTraced
}

// settle ends what is on record of a life, and returns the handle that returns the
// memory: b, or, if every later use of b is to be found, a new one.
func (b *Buf) settle() *Buf {
	r := b.rec
	r.shown = false
	if r.trace == nil || !r.unfollow() {
		return b
	}
	return b.bury()
}

// bury leaves a released handle as it is for good, and returns a new one with the
// memory it had. That is poisoned if it is ours, unless it will be protected.
func (b *Buf) bury() *Buf {
	s := b.slot
	if s != nil && s.from == nil && !s.apart {
		poison(bytesAt(s.mem, 0, s.size))
	}
	n := &Buf{class: b.class, flags: b.flags &^ flagsOfHandle, slot: s, owner: b.owner}
	if b.owner != nil && watching() {
		n.attach(b.rec.pool)
	}
	b.rec.idle = true
	b.part()
	return n
}

// poisoned is what released memory holds where misuse is looked for.
const poisoned = 0xdb

func poison(p []byte) {
	if len(p) == 0 {
		return
	}
	p[0] = poisoned
	for n := 1; n < len(p); n *= 2 {
		copy(p[n:], p[:n])
	}
}

// lost counts what the collector has found.
var lost struct {
	all, reclaimed, kept atomic.Int64 // Bufs and FileRegions; Bufs of pools; Bufs whose memory is kept
	keptBytes            atomic.Int64
}

// lose deals with what the collector has found unreachable. It runs on a goroutine of
// the runtime, at any time.
func lose(r *record) {
	if r.idle || !watching() {
		return
	}
	defer func() {
		if v := recover(); v != nil {
			complain("buffer: reporting a leak: panic: %v\n", v)
		}
	}()
	lost.all.Add(1)
	l := describe(r.kind, r.bytes(), r.trace)
	l.Reclaimed = r.reclaim()
	var born stack
	if r.trace != nil {
		born = r.trace.born.key()
		if l.Reclaimed || r.kind == kindComposite {
			r.leaveProfile() // else it is still alive
		}
	}
	report(l, leakKey{r.kind, l.Bytes, born})
}

// reclaim returns what a lost handle held. It is false where the memory is kept out of use.
func (r *record) reclaim() bool {
	s, all := r.slot, true
	switch {
	case s == nil || !s.reclaimable():
		s = nil
	case r.kind == kindComposite:
		all, s = (*parts)(unsafe.Pointer(s)).reclaim(), nil
	case r.shown:
		keep(r)
		return false
	}
	b := &Buf{class: classView}
	if r.pool != nil {
		lost.reclaimed.Add(1)
		b.owner = r.pool.shared
		b.attach(r.pool)
	}
	if s != nil && s.unpin() {
		b.hold(s)
	}
	b.recycle()
	return all
}

// reclaim releases the parts of a lost composite, except those that were shown: it
// keeps these out of use, and returns false.
func (ps *parts) reclaim() bool {
	var free []part
	kept := 0
	for _, x := range ps.list[ps.head:] {
		if x.b.flags&flagShown != 0 && x.b.slot.reclaimable() {
			x.b.rec.rest() // it has been told of
			keep(x.b.rec)
			kept++
		} else {
			free = append(free, x)
		}
	}
	ps.list, ps.head = free, 0
	ps.giveBack()
	return kept == 0
}

// sharedRecord is the record of a FileRegion over a file that others use too.
type sharedRecord struct {
	record
	size slot // a stand-in with the length
	done func()
}

// loseShared gives back what a lost region had of its file.
func loseShared(s *sharedRecord) {
	if !s.idle && watching() {
		s.done()
	}
	lose(&s.record)
}

// enlist makes sure that the loss of r is noticed. A file of its own is closed by the
// runtime then, or a share in one given back: all that is left to do is to tell.
func (r *FileRegion) enlist() {
	size := int(min(r.n, math.MaxInt))
	if s := r.shared; s != nil { // used before
		s.idle, s.size.size, s.done = false, size, r.done
	} else {
		if !watching() && !tracing() {
			return
		}
		if r.done == nil {
			r.rec = &record{kind: kindRegion, slot: &slot{size: size}}
			if watching() {
				runtime.AddCleanup(r, lose, r.rec)
			}
		} else {
			s := &sharedRecord{record: record{kind: kindRegion}, size: slot{size: size}, done: r.done}
			s.slot = &s.size
			r.rec, r.shared = &s.record, s
			if watching() {
				runtime.AddCleanup(r, loseShared, s)
			}
		}
	}
	if tracing() || watching() && rand.Uint32N(sampleEvery) == 0 {
		r.rec.follow()
	}
}

// idleRegions are shared regions that are out of use, with records that are known to the
// collector: to make those is what makes a region dear.
var idleRegions sync.Pool

// reuse returns a region that was used before, or nil. While every life is on record
// none is used again.
func reuse() *FileRegion {
	if !watching() || tracing() {
		return nil
	}
	r, _ := idleRegions.Get().(*FileRegion)
	return r
}

// settle ends what is on record of r, and reports whether r may be used again.
func (r *FileRegion) settle() bool {
	if r.rec == nil {
		return false
	}
	r.rec.idle = true
	if r.rec.trace != nil {
		r.rec.unfollow()
		return false
	}
	return r.shared != nil && watching() && !tracing()
}
