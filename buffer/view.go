package buffer

import (
	"sync/atomic"
	"unsafe"
)

// Slice returns a new Buf over the n bytes from index i, with a reference of its
// own to the memory. The bytes must have been written.
func (b *Buf) Slice(i, n int) *Buf {
	if i < 0 || n < 0 || i > b.WriterIndex()-n {
		b.outOfRange("Slice", i, n)
	}
	if b.flags&flagParts != 0 {
		return b.sliceParts(i, n)
	}
	return b.view(i, n)
}

// ReadSlice returns a new Buf over the next n bytes, with a reference of its own
// to the memory, and reads past them. It panics with ErrShort when b holds fewer.
func (b *Buf) ReadSlice(n int) *Buf {
	if b.flags&flagParts != 0 {
		if uint(n) > uint(b.Len()) {
			b.short("ReadSlice", n)
		}
		v := b.sliceParts(b.ReaderIndex(), n)
		b.Skip(n)
		return v
	}
	if uint(n) > uint(b.q-b.r) {
		b.short("ReadSlice", n)
	}
	v := b.view(b.r, n)
	b.r += n
	return v
}

// TryReadSlice is ReadSlice for input of unknown length: it returns false and
// reads nothing when b holds fewer than n bytes.
func (b *Buf) TryReadSlice(n int) (*Buf, bool) {
	if uint(n) > uint(b.Len()) {
		b.alive("read")
		return nil, false
	}
	return b.ReadSlice(n), true
}

// Duplicate returns a new Buf with the same content and indices, and a reference
// of its own to the memory. From then on each moves its own indices.
func (b *Buf) Duplicate() *Buf {
	if b.flags&flagParts != 0 {
		return b.duplicateParts()
	}
	v := b.view(0, b.q)
	v.r = b.r
	return v
}

// Copy returns a new Buf with a copy of the bytes that can be read, from the
// allocator b came from.
func (b *Buf) Copy() *Buf {
	b.alive("Copy")
	n := b.Len()
	o := b.allocator().Alloc(n)
	b.copyTo(o, b.ReaderIndex(), n)
	o.q = n
	return o
}

// Join makes the bytes of o, which must lie directly behind those of b in the same
// memory, bytes of b, and releases o: the way back from [Buf.ReadSlice] and
// [Buf.Split]. The room behind them comes along when o has no other reference. Join
// returns false and changes nothing if they lie elsewhere, if one of the two is
// read-only and the other is not, or if b has room in between or other references.
func (b *Buf) Join(o *Buf) bool {
	if !b.Joins(o) {
		return false
	}
	b.q += o.q - o.r
	b.l = b.q
	if atomic.LoadInt32(&o.ref) == 1 {
		b.l += o.l - o.q
		b.flags = b.flags&^flagClean | o.flags&flagClean
	}
	b.sync()
	o.Release()
	return true
}

// Joins reports whether [Buf.Join] would join o to b.
func (b *Buf) Joins(o *Buf) bool {
	return b.slot == o.slot && (b.flags|o.flags)&flagParts == 0 && (b.flags^o.flags)&flagReadOnly == 0 &&
		b.q == b.l && b != o &&
		uintptr(b.p)+uintptr(b.q) == uintptr(o.p)+uintptr(o.r) && atomic.LoadInt32(&b.ref) == 1
}

// ReadOnly returns a new Buf with the same content and indices and a reference of its
// own to the memory, through which that cannot be changed in place: SetXAt panics with
// ErrReadOnly. What is appended goes to memory of its own.
func (b *Buf) ReadOnly() *Buf {
	v := b.Duplicate()
	if v.flags&flagParts != 0 {
		ps := v.pieces()
		for _, x := range ps.list[ps.head:] {
			x.b.flags |= flagReadOnly
		}
	} else {
		v.flags |= flagReadOnly
	}
	return v
}

// Split divides b at index i without copying: b keeps what lies below it, and the new
// Buf that is returned owns what lies behind, with the room there is. Each goes on by
// itself. Indices of the new Buf are lower by i; what had been read stays read. To
// part what has been read from what has not, split at ReaderIndex.
func (b *Buf) Split(i int) *Buf {
	if i < 0 || i > b.WriterIndex() {
		b.outOfRange("Split", i, 0)
	}
	if b.flags&flagParts != 0 {
		return b.splitParts(i)
	}
	return b.splitAt(i)
}

// splitAt is Split for a contiguous Buf.
func (b *Buf) splitAt(i int) *Buf {
	r := b.r
	v := b.view(i, b.q-i)
	v.flags |= b.flags & flagClean
	if v.l = b.l - i; v.l > 0 {
		v.p = unsafe.Add(b.p, i)
		v.wp = v.p
	}
	v.r = max(0, r-i)
	b.r, b.q, b.l = min(r, i), i, i
	b.sync()
	return v
}

// view returns a new handle on bytes i to i+n.
func (b *Buf) view(i, n int) *Buf {
	b.alive("Slice")
	s := b.slot
	if atomic.LoadInt32(&s.pins) == 1 {
		s.pins = 2 // the other hold is b's, and b is in the caller's use
	} else {
		atomic.AddInt32(&s.pins, 1)
	}
	b.flags |= flagShared
	v := b.newHandle()
	// As hold, without the call.
	v.slot, v.class = s, s.class
	if v.rec != nil {
		v.mirror()
	}
	v.flags |= b.flags&flagsOfMemory | flagShared | flagMoved
	v.p = s.mem
	if n > 0 {
		v.p = unsafe.Add(b.p, i)
	}
	v.wp = v.p
	v.r, v.q, v.l = 0, n, n
	v.sync()
	v.born()
	return v
}
