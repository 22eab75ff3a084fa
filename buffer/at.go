package buffer

import (
	"encoding/binary"
	"unsafe"
)

// Indices are those of ReaderIndex and WriterIndex: absolute, from 0, up to what
// has been written. The fast paths look at lim3 only, which is 0 whenever p does
// not show index 0; the slow ones cover the last bytes as well.

// at returns the address of n written bytes from index i.
//
//go:noinline
func (b *Buf) at(i, n int) unsafe.Pointer {
	if i < 0 || i > b.WriterIndex()-n {
		b.outOfRange("read at index", i, n)
	}
	if b.flags&flagParts != 0 {
		return b.atParts(i, n)
	}
	b.sync()
	return unsafe.Add(b.p, i)
}

// setAt returns the address of n written bytes from index i, to be changed, or nil if
// they do not lie together.
func (b *Buf) setAt(i, n int) unsafe.Pointer {
	if i < 0 || i > b.WriterIndex()-n {
		b.outOfRange("write at index", i, n)
	}
	if b.flags&flagParts != 0 {
		return b.setAtParts(i, n)
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
	if uint(i) >= uint(b.lim3) {
		return b.uint16At(i)
	}
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Add(b.p, i))[:])
}

// Uint16AtLE returns the little-endian number of 2 bytes at index i.
func (b *Buf) Uint16AtLE(i int) uint16 {
	if uint(i) >= uint(b.lim3) {
		return b.uint16AtLE(i)
	}
	return binary.LittleEndian.Uint16((*[2]byte)(unsafe.Add(b.p, i))[:])
}

// Uint32At returns the big-endian number of 4 bytes at index i.
func (b *Buf) Uint32At(i int) uint32 {
	if uint(i) >= uint(b.lim3) {
		return b.uint32At(i)
	}
	return binary.BigEndian.Uint32((*[4]byte)(unsafe.Add(b.p, i))[:])
}

// Uint32AtLE returns the little-endian number of 4 bytes at index i.
func (b *Buf) Uint32AtLE(i int) uint32 {
	if uint(i) >= uint(b.lim3) {
		return b.uint32AtLE(i)
	}
	return binary.LittleEndian.Uint32((*[4]byte)(unsafe.Add(b.p, i))[:])
}

// Uint64At returns the big-endian number of 8 bytes at index i.
func (b *Buf) Uint64At(i int) uint64 {
	return binary.BigEndian.Uint64((*[8]byte)(b.at(i, 8))[:])
}

// Uint64AtLE returns the little-endian number of 8 bytes at index i.
func (b *Buf) Uint64AtLE(i int) uint64 {
	return binary.LittleEndian.Uint64((*[8]byte)(b.at(i, 8))[:])
}

// SetUint8At changes the byte at index i, which must have been written before.
// Bufs that share the memory see the change. Like every SetXAt it panics with
// ErrReadOnly when the memory cannot be written.
func (b *Buf) SetUint8At(i int, v uint8) { *(*uint8)(b.setAt(i, 1)) = v }

// SetUint16At changes the 2 bytes at index i to the big-endian v.
func (b *Buf) SetUint16At(i int, v uint16) {
	if p := b.setAt(i, 2); p != nil {
		binary.BigEndian.PutUint16((*[2]byte)(p)[:], v)
		return
	}
	var p [2]byte
	binary.BigEndian.PutUint16(p[:], v)
	b.setOver(i, p[:])
}

// SetUint16AtLE changes the 2 bytes at index i to the little-endian v.
func (b *Buf) SetUint16AtLE(i int, v uint16) {
	if p := b.setAt(i, 2); p != nil {
		binary.LittleEndian.PutUint16((*[2]byte)(p)[:], v)
		return
	}
	var p [2]byte
	binary.LittleEndian.PutUint16(p[:], v)
	b.setOver(i, p[:])
}

// SetUint32At changes the 4 bytes at index i to the big-endian v.
func (b *Buf) SetUint32At(i int, v uint32) {
	if p := b.setAt(i, 4); p != nil {
		binary.BigEndian.PutUint32((*[4]byte)(p)[:], v)
		return
	}
	var p [4]byte
	binary.BigEndian.PutUint32(p[:], v)
	b.setOver(i, p[:])
}

// SetUint32AtLE changes the 4 bytes at index i to the little-endian v.
func (b *Buf) SetUint32AtLE(i int, v uint32) {
	if p := b.setAt(i, 4); p != nil {
		binary.LittleEndian.PutUint32((*[4]byte)(p)[:], v)
		return
	}
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	b.setOver(i, p[:])
}

// SetUint64At changes the 8 bytes at index i to the big-endian v.
func (b *Buf) SetUint64At(i int, v uint64) {
	if p := b.setAt(i, 8); p != nil {
		binary.BigEndian.PutUint64((*[8]byte)(p)[:], v)
		return
	}
	var p [8]byte
	binary.BigEndian.PutUint64(p[:], v)
	b.setOver(i, p[:])
}

// SetUint64AtLE changes the 8 bytes at index i to the little-endian v.
func (b *Buf) SetUint64AtLE(i int, v uint64) {
	if p := b.setAt(i, 8); p != nil {
		binary.LittleEndian.PutUint64((*[8]byte)(p)[:], v)
		return
	}
	var p [8]byte
	binary.LittleEndian.PutUint64(p[:], v)
	b.setOver(i, p[:])
}

//go:noinline
func (b *Buf) uint16At(i int) uint16 { return binary.BigEndian.Uint16((*[2]byte)(b.at(i, 2))[:]) }

//go:noinline
func (b *Buf) uint16AtLE(i int) uint16 { return binary.LittleEndian.Uint16((*[2]byte)(b.at(i, 2))[:]) }

//go:noinline
func (b *Buf) uint32At(i int) uint32 { return binary.BigEndian.Uint32((*[4]byte)(b.at(i, 4))[:]) }

//go:noinline
func (b *Buf) uint32AtLE(i int) uint32 { return binary.LittleEndian.Uint32((*[4]byte)(b.at(i, 4))[:]) }
