package buffer

import (
	"encoding/binary"
	"math"
	"unsafe"

	"github.com/runnel-io/runnel/internal/sys"
)

// room makes room after a write of n bytes has moved the index past what there is.
func (b *Buf) room(n int) {
	b.q -= n
	b.grow(n)
	b.q += n
}

//go:noinline
func (b *Buf) room1() { b.room(1) }

//go:noinline
func (b *Buf) room2() { b.room(2) }

//go:noinline
func (b *Buf) room4() { b.room(4) }

//go:noinline
func (b *Buf) room8() { b.room(8) }

// WriteUint8 appends a byte. Like every WriteX it grows b when needed, and panics
// with ErrTooLarge beyond MaxCap, or with ErrOutOfMemory.
func (b *Buf) WriteUint8(v uint8) {
	if b.q++; b.q > b.l {
		b.room1()
	}
	*(*uint8)(unsafe.Add(b.wp, b.q-1)) = v
}

// WriteUint16 appends a big-endian number of 2 bytes.
func (b *Buf) WriteUint16(v uint16) {
	if b.q += 2; b.q > b.l {
		b.room2()
	}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Add(b.wp, b.q-2))[:], v)
}

// WriteUint16LE appends a little-endian number of 2 bytes.
func (b *Buf) WriteUint16LE(v uint16) {
	if b.q += 2; b.q > b.l {
		b.room2()
	}
	binary.LittleEndian.PutUint16((*[2]byte)(unsafe.Add(b.wp, b.q-2))[:], v)
}

// WriteUint32 appends a big-endian number of 4 bytes.
func (b *Buf) WriteUint32(v uint32) {
	if b.q += 4; b.q > b.l {
		b.room4()
	}
	binary.BigEndian.PutUint32((*[4]byte)(unsafe.Add(b.wp, b.q-4))[:], v)
}

// WriteUint32LE appends a little-endian number of 4 bytes.
func (b *Buf) WriteUint32LE(v uint32) {
	if b.q += 4; b.q > b.l {
		b.room4()
	}
	binary.LittleEndian.PutUint32((*[4]byte)(unsafe.Add(b.wp, b.q-4))[:], v)
}

// WriteUint64 appends a big-endian number of 8 bytes.
func (b *Buf) WriteUint64(v uint64) {
	if b.q += 8; b.q > b.l {
		b.room8()
	}
	binary.BigEndian.PutUint64((*[8]byte)(unsafe.Add(b.wp, b.q-8))[:], v)
}

// WriteUint64LE appends a little-endian number of 8 bytes.
func (b *Buf) WriteUint64LE(v uint64) {
	if b.q += 8; b.q > b.l {
		b.room8()
	}
	binary.LittleEndian.PutUint64((*[8]byte)(unsafe.Add(b.wp, b.q-8))[:], v)
}

// WriteUint24 appends the lower 24 bits of v as a big-endian number of 3 bytes.
func (b *Buf) WriteUint24(v uint32) {
	b.EnsureWritable(3)
	b.WriteUint16(uint16(v >> 8))
	b.WriteUint8(uint8(v))
}

// WriteUint24LE appends the lower 24 bits of v as a little-endian number of 3 bytes.
func (b *Buf) WriteUint24LE(v uint32) {
	b.EnsureWritable(3)
	b.WriteUint16LE(uint16(v))
	b.WriteUint8(uint8(v >> 16))
}

// WriteInt8 appends a signed byte.
func (b *Buf) WriteInt8(v int8) { b.WriteUint8(uint8(v)) }

// WriteInt16 appends a signed big-endian number of 2 bytes.
func (b *Buf) WriteInt16(v int16) { b.WriteUint16(uint16(v)) }

// WriteInt16LE appends a signed little-endian number of 2 bytes.
func (b *Buf) WriteInt16LE(v int16) { b.WriteUint16LE(uint16(v)) }

// WriteInt24 appends the lower 24 bits of v as a signed big-endian number of 3 bytes.
func (b *Buf) WriteInt24(v int32) { b.WriteUint24(uint32(v)) }

// WriteInt24LE appends the lower 24 bits of v as a signed little-endian number of 3 bytes.
func (b *Buf) WriteInt24LE(v int32) { b.WriteUint24LE(uint32(v)) }

// WriteInt32 appends a signed big-endian number of 4 bytes.
func (b *Buf) WriteInt32(v int32) { b.WriteUint32(uint32(v)) }

// WriteInt32LE appends a signed little-endian number of 4 bytes.
func (b *Buf) WriteInt32LE(v int32) { b.WriteUint32LE(uint32(v)) }

// WriteInt64 appends a signed big-endian number of 8 bytes.
func (b *Buf) WriteInt64(v int64) { b.WriteUint64(uint64(v)) }

// WriteInt64LE appends a signed little-endian number of 8 bytes.
func (b *Buf) WriteInt64LE(v int64) { b.WriteUint64LE(uint64(v)) }

// WriteFloat32 appends a big-endian IEEE 754 number of 4 bytes.
func (b *Buf) WriteFloat32(v float32) { b.WriteUint32(math.Float32bits(v)) }

// WriteFloat32LE appends a little-endian IEEE 754 number of 4 bytes.
func (b *Buf) WriteFloat32LE(v float32) { b.WriteUint32LE(math.Float32bits(v)) }

// WriteFloat64 appends a big-endian IEEE 754 number of 8 bytes.
func (b *Buf) WriteFloat64(v float64) { b.WriteUint64(math.Float64bits(v)) }

// WriteFloat64LE appends a little-endian IEEE 754 number of 8 bytes.
func (b *Buf) WriteFloat64LE(v float64) { b.WriteUint64LE(math.Float64bits(v)) }

// WriteBool appends a byte: 1 for true and 0 for false.
func (b *Buf) WriteBool(v bool) { b.WriteUint8(bit(v)) }

// bit returns 1 for true.
func bit(v bool) uint8 {
	if v {
		return 1
	}
	return 0
}

// Write appends p. It implements io.Writer and always returns len(p) and nil: what
// makes it fail makes it panic, as in every other write.
func (b *Buf) Write(p []byte) (int, error) {
	if len(p) > b.l-b.q {
		b.grow(len(p))
	}
	copy(bytesAt(b.wp, b.q, len(p)), p)
	b.q += len(p)
	return len(p), nil
}

// WriteString appends s. It implements io.StringWriter, with the rules of
// [Buf.Write].
func (b *Buf) WriteString(s string) (int, error) {
	if len(s) > b.l-b.q {
		b.grow(len(s))
	}
	copy(bytesAt(b.wp, b.q, len(s)), s)
	b.q += len(s)
	return len(s), nil
}

// WriteBuf appends a copy of the bytes that can be read from src, and reads past
// them. The reference to src stays the caller's.
func (b *Buf) WriteBuf(src *Buf) {
	src.alive("WriteBuf")
	n := src.Len()
	if n > b.l-b.q {
		b.grow(n)
	}
	src.copyOut(bytesAt(b.wp, b.q, n), src.ReaderIndex())
	src.Skip(n)
	b.q += n
}

// WriteRange appends a copy of n bytes from index i of src, whose indices stay where
// they are. The bytes must have been written. src may be b itself.
func (b *Buf) WriteRange(src *Buf, i, n int) {
	b.alive("WriteRange")
	src.readable(i, n)
	b.EnsureWritable(n) // src does not move any more, if it is b
	if src.Mapped() {
		src.copyOut(b.writable()[:n], i) // all of it, or a panic and nothing
		b.Commit(n)
		return
	}
	for n > 0 {
		p := src.chunk(i)
		p = p[:min(n, len(p))]
		b.Write(p)
		i += len(p)
		n -= len(p)
	}
}

// WriteZeros appends n bytes of 0.
func (b *Buf) WriteZeros(n int) {
	b.alive("WriteZeros")
	b.EnsureWritable(n)
	for n > 0 {
		p := zeros[:min(n, len(zeros))]
		b.Write(p)
		n -= len(p)
	}
}

var zeros [1024]byte // never written to

// Reserve appends n bytes of 0 and returns the index of the first, for what is known
// only later: a length before what it counts is set by [Buf.SetUint32At] or another
// SetXAt. The index is good until Clear or DiscardRead moves the content.
func (b *Buf) Reserve(n int) int {
	i := b.WriterIndex()
	b.WriteZeros(n)
	return i
}

// Truncate drops the bytes from index i on, so that WriterIndex becomes i: the way
// back to what WriterIndex returned before. It panics with ErrShort when i lies in
// front of ReaderIndex or behind WriterIndex; there is no way forward over bytes
// that were never written. What other Bufs show of the memory stays as it is.
func (b *Buf) Truncate(i int) {
	b.alive("Truncate")
	if i < b.ReaderIndex() || i > b.WriterIndex() {
		b.outOfRange("Truncate", i, 0)
	}
	b.cut(i)
}

// Writable returns the room up to Cap, zeroed, for the caller to fill. What has
// been filled becomes readable by [Buf.Commit]. Call [Buf.EnsureWritable] first for
// a certain size. The slice is b's, as that of [Buf.Next].
func (b *Buf) Writable() []byte {
	p := b.writable()
	if len(p) > 0 {
		b.showLast()
	}
	return p
}

// writable is Writable for those who hold b for as long as they use the slice.
func (b *Buf) writable() []byte {
	b.alive("Writable")
	p := bytesAt(b.wp, b.q, b.l-b.q)
	if b.flags&flagClean == 0 {
		clear(p)
		b.flags |= flagClean
	}
	return p
}

// Commit appends the first n bytes of what Writable has returned. It panics with
// ErrShort when that was fewer, so that nothing is exposed that was never written.
func (b *Buf) Commit(n int) {
	b.alive("Commit")
	if n < 0 || n > b.l-b.q || b.flags&flagClean == 0 && n > 0 {
		have := 0
		if b.flags&flagClean != 0 {
			have = b.l - b.q
		}
		panic(&Error{"Commit", n, have, ErrShort})
	}
	b.q += n
}

// FillFrom reads once from a descriptor into the room up to Cap, at most max bytes;
// it does not make more room. It returns 0 and nil at the end of the stream, and
// sys.ErrAgain when nothing is there yet.
func (b *Buf) FillFrom(fd, max int) (int, error) {
	b.alive("FillFrom")
	room := min(max, b.l-b.q)
	if room <= 0 {
		return 0, &Error{"FillFrom", 1, room, ErrTooLarge}
	}
	n, err := sys.Read(fd, bytesAt(b.wp, b.q, room))
	if n > 0 {
		b.q += n
	}
	return n, err
}
