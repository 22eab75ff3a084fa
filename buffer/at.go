package buffer

import (
	"math/bits"
	"unsafe"
)

// Indices are those of ReaderIndex and WriterIndex: absolute, from 0, up to what
// has been written. The fast paths look at lim3 only, which is 0 whenever p does
// not show index 0; the slow ones cover the last bytes as well.

// at returns the address of n written bytes from index i.
//
//go:noinline
func (b *Buf) at(i, n int) unsafe.Pointer {
	if i < 0 || i > b.q-n {
		b.outOfRange("read at index", i, n)
	}
	b.sync()
	return unsafe.Add(b.p, i)
}

// setAt returns the address of n written bytes from index i, to be changed.
func (b *Buf) setAt(i, n int) unsafe.Pointer {
	if i < 0 || i > b.q-n {
		b.outOfRange("write at index", i, n)
	}
	if b.flags&flagReadOnly != 0 {
		panic(&Error{"write at index", i, b.q, ErrReadOnly})
	}
	return unsafe.Add(b.p, i)
}

// Uint8At returns the byte at index i. Like every XAt it takes an index in the
// sense of ReaderIndex, of which everything below WriterIndex can be read, and
// panics with ErrShort beyond.
func (b *Buf) Uint8At(i int) uint8 {
	if uint(i) < uint(b.lim3) {
		return *(*uint8)(unsafe.Add(b.p, i))
	}
	return *(*uint8)(b.at(i, 1))
}

// Uint16At returns the big-endian number of 2 bytes at index i.
func (b *Buf) Uint16At(i int) uint16 {
	if uint(i) < uint(b.lim3) {
		return bits.ReverseBytes16(*(*uint16)(unsafe.Add(b.p, i)))
	}
	return bits.ReverseBytes16(*(*uint16)(b.at(i, 2)))
}

// Uint16AtLE returns the little-endian number of 2 bytes at index i.
func (b *Buf) Uint16AtLE(i int) uint16 {
	if uint(i) < uint(b.lim3) {
		return (*(*uint16)(unsafe.Add(b.p, i)))
	}
	return (*(*uint16)(b.at(i, 2)))
}

// Uint32At returns the big-endian number of 4 bytes at index i.
func (b *Buf) Uint32At(i int) uint32 {
	if uint(i) < uint(b.lim3) {
		return bits.ReverseBytes32(*(*uint32)(unsafe.Add(b.p, i)))
	}
	return bits.ReverseBytes32(*(*uint32)(b.at(i, 4)))
}

// Uint32AtLE returns the little-endian number of 4 bytes at index i.
func (b *Buf) Uint32AtLE(i int) uint32 {
	if uint(i) < uint(b.lim3) {
		return (*(*uint32)(unsafe.Add(b.p, i)))
	}
	return (*(*uint32)(b.at(i, 4)))
}

// Uint64At returns the big-endian number of 8 bytes at index i.
func (b *Buf) Uint64At(i int) uint64 {
	return bits.ReverseBytes64(*(*uint64)(b.at(i, 8)))
}

// Uint64AtLE returns the little-endian number of 8 bytes at index i.
func (b *Buf) Uint64AtLE(i int) uint64 {
	return (*(*uint64)(b.at(i, 8)))
}

// SetUint8At changes the byte at index i, which must have been written before.
// Bufs that share the memory see the change. Like every SetXAt it panics with
// ErrReadOnly when the memory cannot be written.
func (b *Buf) SetUint8At(i int, v uint8) { *(*uint8)(b.setAt(i, 1)) = v }

// SetUint16At changes the 2 bytes at index i to the big-endian v.
func (b *Buf) SetUint16At(i int, v uint16) { *(*uint16)(b.setAt(i, 2)) = bits.ReverseBytes16(v) }

// SetUint16AtLE changes the 2 bytes at index i to the little-endian v.
func (b *Buf) SetUint16AtLE(i int, v uint16) { *(*uint16)(b.setAt(i, 2)) = v }

// SetUint32At changes the 4 bytes at index i to the big-endian v.
func (b *Buf) SetUint32At(i int, v uint32) { *(*uint32)(b.setAt(i, 4)) = bits.ReverseBytes32(v) }

// SetUint32AtLE changes the 4 bytes at index i to the little-endian v.
func (b *Buf) SetUint32AtLE(i int, v uint32) { *(*uint32)(b.setAt(i, 4)) = v }

// SetUint64At changes the 8 bytes at index i to the big-endian v.
func (b *Buf) SetUint64At(i int, v uint64) { *(*uint64)(b.setAt(i, 8)) = bits.ReverseBytes64(v) }

// SetUint64AtLE changes the 8 bytes at index i to the little-endian v.
func (b *Buf) SetUint64AtLE(i int, v uint64) { *(*uint64)(b.setAt(i, 8)) = v }
