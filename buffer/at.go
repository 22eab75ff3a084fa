package buffer

import (
	"encoding/binary"
	"math"
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

// Uint24At returns the big-endian number of 3 bytes at index i.
func (b *Buf) Uint24At(i int) uint32 {
	high := uint32(b.Uint16At(i))
	return high<<8 | uint32(b.Uint8At(i+2))
}

// Uint24AtLE returns the little-endian number of 3 bytes at index i.
func (b *Buf) Uint24AtLE(i int) uint32 {
	low := uint32(b.Uint16AtLE(i))
	return low | uint32(b.Uint8At(i+2))<<16
}

// Int8At returns the signed byte at index i.
func (b *Buf) Int8At(i int) int8 { return int8(b.Uint8At(i)) }

// Int16At returns the signed big-endian number of 2 bytes at index i.
func (b *Buf) Int16At(i int) int16 { return int16(b.Uint16At(i)) }

// Int16AtLE returns the signed little-endian number of 2 bytes at index i.
func (b *Buf) Int16AtLE(i int) int16 { return int16(b.Uint16AtLE(i)) }

// Int24At returns the signed big-endian number of 3 bytes at index i.
func (b *Buf) Int24At(i int) int32 { return signed24(b.Uint24At(i)) }

// Int24AtLE returns the signed little-endian number of 3 bytes at index i.
func (b *Buf) Int24AtLE(i int) int32 { return signed24(b.Uint24AtLE(i)) }

// Int32At returns the signed big-endian number of 4 bytes at index i.
func (b *Buf) Int32At(i int) int32 { return int32(b.Uint32At(i)) }

// Int32AtLE returns the signed little-endian number of 4 bytes at index i.
func (b *Buf) Int32AtLE(i int) int32 { return int32(b.Uint32AtLE(i)) }

// Int64At returns the signed big-endian number of 8 bytes at index i.
func (b *Buf) Int64At(i int) int64 { return int64(b.Uint64At(i)) }

// Int64AtLE returns the signed little-endian number of 8 bytes at index i.
func (b *Buf) Int64AtLE(i int) int64 { return int64(b.Uint64AtLE(i)) }

// Float32At returns the big-endian IEEE 754 number of 4 bytes at index i.
func (b *Buf) Float32At(i int) float32 { return math.Float32frombits(b.Uint32At(i)) }

// Float32AtLE returns the little-endian IEEE 754 number of 4 bytes at index i.
func (b *Buf) Float32AtLE(i int) float32 { return math.Float32frombits(b.Uint32AtLE(i)) }

// Float64At returns the big-endian IEEE 754 number of 8 bytes at index i.
func (b *Buf) Float64At(i int) float64 { return math.Float64frombits(b.Uint64At(i)) }

// Float64AtLE returns the little-endian IEEE 754 number of 8 bytes at index i.
func (b *Buf) Float64AtLE(i int) float64 { return math.Float64frombits(b.Uint64AtLE(i)) }

// BoolAt returns whether the byte at index i is any but 0.
func (b *Buf) BoolAt(i int) bool { return b.Uint8At(i) != 0 }

// BytesAt fills dst with the bytes from index i on.
func (b *Buf) BytesAt(i int, dst []byte) {
	b.readable(i, len(dst))
	b.copyOut(dst, i)
}

// StringAt returns a copy of the n bytes from index i on.
func (b *Buf) StringAt(i, n int) string {
	b.readable(i, n)
	if n == 0 {
		return ""
	}
	dst := make([]byte, n)
	b.copyOut(dst, i)
	return unsafe.String(&dst[0], n) // nobody else has dst
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

// SetUint24At changes the 3 bytes at index i to the lower 24 bits of v, big-endian.
func (b *Buf) SetUint24At(i int, v uint32) {
	b.SetBytesAt(i, []byte{byte(v >> 16), byte(v >> 8), byte(v)})
}

// SetUint24AtLE changes the 3 bytes at index i to the lower 24 bits of v,
// little-endian.
func (b *Buf) SetUint24AtLE(i int, v uint32) {
	b.SetBytesAt(i, []byte{byte(v), byte(v >> 8), byte(v >> 16)})
}

// SetInt8At changes the byte at index i to the signed v.
func (b *Buf) SetInt8At(i int, v int8) { b.SetUint8At(i, uint8(v)) }

// SetInt16At changes the 2 bytes at index i to the signed big-endian v.
func (b *Buf) SetInt16At(i int, v int16) { b.SetUint16At(i, uint16(v)) }

// SetInt16AtLE changes the 2 bytes at index i to the signed little-endian v.
func (b *Buf) SetInt16AtLE(i int, v int16) { b.SetUint16AtLE(i, uint16(v)) }

// SetInt24At changes the 3 bytes at index i to the lower 24 bits of v, big-endian.
func (b *Buf) SetInt24At(i int, v int32) { b.SetUint24At(i, uint32(v)) }

// SetInt24AtLE changes the 3 bytes at index i to the lower 24 bits of v, little-endian.
func (b *Buf) SetInt24AtLE(i int, v int32) { b.SetUint24AtLE(i, uint32(v)) }

// SetInt32At changes the 4 bytes at index i to the signed big-endian v.
func (b *Buf) SetInt32At(i int, v int32) { b.SetUint32At(i, uint32(v)) }

// SetInt32AtLE changes the 4 bytes at index i to the signed little-endian v.
func (b *Buf) SetInt32AtLE(i int, v int32) { b.SetUint32AtLE(i, uint32(v)) }

// SetInt64At changes the 8 bytes at index i to the signed big-endian v.
func (b *Buf) SetInt64At(i int, v int64) { b.SetUint64At(i, uint64(v)) }

// SetInt64AtLE changes the 8 bytes at index i to the signed little-endian v.
func (b *Buf) SetInt64AtLE(i int, v int64) { b.SetUint64AtLE(i, uint64(v)) }

// SetFloat32At changes the 4 bytes at index i to the big-endian IEEE 754 number v.
func (b *Buf) SetFloat32At(i int, v float32) { b.SetUint32At(i, math.Float32bits(v)) }

// SetFloat32AtLE changes the 4 bytes at index i to the little-endian IEEE 754 number v.
func (b *Buf) SetFloat32AtLE(i int, v float32) { b.SetUint32AtLE(i, math.Float32bits(v)) }

// SetFloat64At changes the 8 bytes at index i to the big-endian IEEE 754 number v.
func (b *Buf) SetFloat64At(i int, v float64) { b.SetUint64At(i, math.Float64bits(v)) }

// SetFloat64AtLE changes the 8 bytes at index i to the little-endian IEEE 754 number v.
func (b *Buf) SetFloat64AtLE(i int, v float64) { b.SetUint64AtLE(i, math.Float64bits(v)) }

// SetBoolAt changes the byte at index i to 1 for true and 0 for false.
func (b *Buf) SetBoolAt(i int, v bool) { b.SetUint8At(i, bit(v)) }

// SetBytesAt changes the bytes from index i on to p: all of them or, when it panics,
// none. They must have been written before.
func (b *Buf) SetBytesAt(i int, p []byte) {
	b.alive("write")
	if len(p) == 0 {
		b.readable(i, 0)
		return
	}
	b.setAt(i, len(p)) // checks all of them
	b.setOver(i, p)
}

// SetStringAt changes the bytes from index i on to s, as [Buf.SetBytesAt] does.
func (b *Buf) SetStringAt(i int, s string) {
	b.SetBytesAt(i, unsafe.Slice(unsafe.StringData(s), len(s))) // which only reads it
}

// readable panics unless the n bytes from index i have been written and are there.
func (b *Buf) readable(i, n int) {
	b.alive("read")
	if i < 0 || n < 0 || i > b.WriterIndex()-n || n > 0 && i < b.leastIndex() {
		b.outOfRange("read at index", i, n)
	}
}

//go:noinline
func (b *Buf) uint16At(i int) uint16 { return binary.BigEndian.Uint16((*[2]byte)(b.at(i, 2))[:]) }

//go:noinline
func (b *Buf) uint16AtLE(i int) uint16 { return binary.LittleEndian.Uint16((*[2]byte)(b.at(i, 2))[:]) }

//go:noinline
func (b *Buf) uint32At(i int) uint32 { return binary.BigEndian.Uint32((*[4]byte)(b.at(i, 4))[:]) }

//go:noinline
func (b *Buf) uint32AtLE(i int) uint32 { return binary.LittleEndian.Uint32((*[4]byte)(b.at(i, 4))[:]) }
