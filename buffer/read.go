package buffer

import (
	"encoding/binary"
	"math"
	"unsafe"
)

// The reads of integers move the index first, check it, and leave it to the slow
// path to repair the window or to undo and panic. In this form, and only in it,
// the compiler inlines them; TestInlined watches over that.

// need repairs the read window after a read of n bytes has moved past it. It
// panics with the index undone when b holds fewer than n bytes or was released.
func (b *Buf) need(n int) {
	b.r -= n
	b.alive("read")
	if b.flags&flagParts != 0 {
		b.needParts(n)
		b.r += n
		return
	}
	if b.q-b.r < n {
		b.short("read", n)
	}
	b.sync()
	b.r += n
}

//go:noinline
func (b *Buf) need1() { b.need(1) }

//go:noinline
func (b *Buf) need2() { b.need(2) }

//go:noinline
func (b *Buf) need4() { b.need(4) }

//go:noinline
func (b *Buf) need8() { b.need(8) }

// ReadUint8 reads a byte. Like every ReadX it panics with ErrShort when b does not
// hold enough.
func (b *Buf) ReadUint8() uint8 {
	if b.r++; b.r > b.w {
		b.need1()
	}
	return *(*uint8)(unsafe.Add(b.p, b.r-1))
}

// ReadUint16 reads a big-endian number of 2 bytes.
func (b *Buf) ReadUint16() uint16 {
	if b.r += 2; b.r > b.w {
		b.need2()
	}
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Add(b.p, b.r-2))[:])
}

// ReadUint16LE reads a little-endian number of 2 bytes.
func (b *Buf) ReadUint16LE() uint16 {
	if b.r += 2; b.r > b.w {
		b.need2()
	}
	return binary.LittleEndian.Uint16((*[2]byte)(unsafe.Add(b.p, b.r-2))[:])
}

// ReadUint32 reads a big-endian number of 4 bytes.
func (b *Buf) ReadUint32() uint32 {
	if b.r += 4; b.r > b.w {
		b.need4()
	}
	return binary.BigEndian.Uint32((*[4]byte)(unsafe.Add(b.p, b.r-4))[:])
}

// ReadUint32LE reads a little-endian number of 4 bytes.
func (b *Buf) ReadUint32LE() uint32 {
	if b.r += 4; b.r > b.w {
		b.need4()
	}
	return binary.LittleEndian.Uint32((*[4]byte)(unsafe.Add(b.p, b.r-4))[:])
}

// ReadUint64 reads a big-endian number of 8 bytes.
func (b *Buf) ReadUint64() uint64 {
	if b.r += 8; b.r > b.w {
		b.need8()
	}
	return binary.BigEndian.Uint64((*[8]byte)(unsafe.Add(b.p, b.r-8))[:])
}

// ReadUint64LE reads a little-endian number of 8 bytes.
func (b *Buf) ReadUint64LE() uint64 {
	if b.r += 8; b.r > b.w {
		b.need8()
	}
	return binary.LittleEndian.Uint64((*[8]byte)(unsafe.Add(b.p, b.r-8))[:])
}

// ReadUint24 reads a big-endian number of 3 bytes.
func (b *Buf) ReadUint24() uint32 {
	if b.Len() < 3 {
		b.short("read", 3)
	}
	high := uint32(b.ReadUint16())
	return high<<8 | uint32(b.ReadUint8())
}

// ReadUint24LE reads a little-endian number of 3 bytes.
func (b *Buf) ReadUint24LE() uint32 {
	if b.Len() < 3 {
		b.short("read", 3)
	}
	low := uint32(b.ReadUint16LE())
	return low | uint32(b.ReadUint8())<<16
}

// The reads below, but that of a byte, are a call each: too much for the inliner.
// Where one is hot, convert what the read of the unsigned number returns.

// ReadInt8 reads a signed byte.
func (b *Buf) ReadInt8() int8 {
	if b.r++; b.r > b.w {
		b.need1()
	}
	return *(*int8)(unsafe.Add(b.p, b.r-1))
}

// ReadInt16 reads a signed big-endian number of 2 bytes.
func (b *Buf) ReadInt16() int16 { return int16(b.ReadUint16()) }

// ReadInt16LE reads a signed little-endian number of 2 bytes.
func (b *Buf) ReadInt16LE() int16 { return int16(b.ReadUint16LE()) }

// ReadInt32 reads a signed big-endian number of 4 bytes.
func (b *Buf) ReadInt32() int32 { return int32(b.ReadUint32()) }

// ReadInt32LE reads a signed little-endian number of 4 bytes.
func (b *Buf) ReadInt32LE() int32 { return int32(b.ReadUint32LE()) }

// ReadInt64 reads a signed big-endian number of 8 bytes.
func (b *Buf) ReadInt64() int64 { return int64(b.ReadUint64()) }

// ReadInt64LE reads a signed little-endian number of 8 bytes.
func (b *Buf) ReadInt64LE() int64 { return int64(b.ReadUint64LE()) }

// ReadInt24 reads a signed big-endian number of 3 bytes.
func (b *Buf) ReadInt24() int32 { return signed24(b.ReadUint24()) }

// ReadInt24LE reads a signed little-endian number of 3 bytes.
func (b *Buf) ReadInt24LE() int32 { return signed24(b.ReadUint24LE()) }

// signed24 extends the sign of a number of 24 bits.
func signed24(v uint32) int32 { return int32(v<<8) >> 8 }

// ReadFloat32 reads a big-endian IEEE 754 number of 4 bytes.
func (b *Buf) ReadFloat32() float32 { return math.Float32frombits(b.ReadUint32()) }

// ReadFloat32LE reads a little-endian IEEE 754 number of 4 bytes.
func (b *Buf) ReadFloat32LE() float32 { return math.Float32frombits(b.ReadUint32LE()) }

// ReadFloat64 reads a big-endian IEEE 754 number of 8 bytes.
func (b *Buf) ReadFloat64() float64 { return math.Float64frombits(b.ReadUint64()) }

// ReadFloat64LE reads a little-endian IEEE 754 number of 8 bytes.
func (b *Buf) ReadFloat64LE() float64 { return math.Float64frombits(b.ReadUint64LE()) }

// ReadBool reads a byte, of which any but 0 is true.
func (b *Buf) ReadBool() bool { return b.ReadUint8() != 0 }

// TryReadUint8 reads a byte if b holds one. Like every
// TryReadX it is for input of unknown length: it returns false, and reads nothing,
// when b does not hold enough.
func (b *Buf) TryReadUint8() (uint8, bool) {
	if b.Len() < 1 {
		b.alive("read")
		return 0, false
	}
	return b.ReadUint8(), true
}

// TryReadUint16 reads a big-endian number of 2 bytes if b holds that many.
func (b *Buf) TryReadUint16() (uint16, bool) {
	if b.Len() < 2 {
		b.alive("read")
		return 0, false
	}
	return b.ReadUint16(), true
}

// TryReadUint16LE reads a little-endian number of 2 bytes if b holds that many.
func (b *Buf) TryReadUint16LE() (uint16, bool) {
	if b.Len() < 2 {
		b.alive("read")
		return 0, false
	}
	return b.ReadUint16LE(), true
}

// TryReadUint32 reads a big-endian number of 4 bytes if b holds that many.
func (b *Buf) TryReadUint32() (uint32, bool) {
	if b.Len() < 4 {
		b.alive("read")
		return 0, false
	}
	return b.ReadUint32(), true
}

// TryReadUint32LE reads a little-endian number of 4 bytes if b holds that many.
func (b *Buf) TryReadUint32LE() (uint32, bool) {
	if b.Len() < 4 {
		b.alive("read")
		return 0, false
	}
	return b.ReadUint32LE(), true
}

// TryReadUint64 reads a big-endian number of 8 bytes if b holds that many.
func (b *Buf) TryReadUint64() (uint64, bool) {
	if b.Len() < 8 {
		b.alive("read")
		return 0, false
	}
	return b.ReadUint64(), true
}

// TryReadUint64LE reads a little-endian number of 8 bytes if b holds that many.
func (b *Buf) TryReadUint64LE() (uint64, bool) {
	if b.Len() < 8 {
		b.alive("read")
		return 0, false
	}
	return b.ReadUint64LE(), true
}

// TryReadUint24 reads a big-endian number of 3 bytes if b holds that many.
func (b *Buf) TryReadUint24() (uint32, bool) {
	if b.Len() < 3 {
		b.alive("read")
		return 0, false
	}
	return b.ReadUint24(), true
}

// TryReadUint24LE reads a little-endian number of 3 bytes if b holds that many.
func (b *Buf) TryReadUint24LE() (uint32, bool) {
	if b.Len() < 3 {
		b.alive("read")
		return 0, false
	}
	return b.ReadUint24LE(), true
}

// TryReadInt8 reads a signed byte if b holds one.
func (b *Buf) TryReadInt8() (int8, bool) {
	v, ok := b.TryReadUint8()
	return int8(v), ok
}

// TryReadInt16 reads a signed big-endian number of 2 bytes if b holds that many.
func (b *Buf) TryReadInt16() (int16, bool) {
	v, ok := b.TryReadUint16()
	return int16(v), ok
}

// TryReadInt16LE reads a signed little-endian number of 2 bytes if b holds that many.
func (b *Buf) TryReadInt16LE() (int16, bool) {
	v, ok := b.TryReadUint16LE()
	return int16(v), ok
}

// TryReadInt24 reads a signed big-endian number of 3 bytes if b holds that many.
func (b *Buf) TryReadInt24() (int32, bool) {
	v, ok := b.TryReadUint24()
	return signed24(v), ok
}

// TryReadInt24LE reads a signed little-endian number of 3 bytes if b holds that many.
func (b *Buf) TryReadInt24LE() (int32, bool) {
	v, ok := b.TryReadUint24LE()
	return signed24(v), ok
}

// TryReadInt32 reads a signed big-endian number of 4 bytes if b holds that many.
func (b *Buf) TryReadInt32() (int32, bool) {
	v, ok := b.TryReadUint32()
	return int32(v), ok
}

// TryReadInt32LE reads a signed little-endian number of 4 bytes if b holds that many.
func (b *Buf) TryReadInt32LE() (int32, bool) {
	v, ok := b.TryReadUint32LE()
	return int32(v), ok
}

// TryReadInt64 reads a signed big-endian number of 8 bytes if b holds that many.
func (b *Buf) TryReadInt64() (int64, bool) {
	v, ok := b.TryReadUint64()
	return int64(v), ok
}

// TryReadInt64LE reads a signed little-endian number of 8 bytes if b holds that many.
func (b *Buf) TryReadInt64LE() (int64, bool) {
	v, ok := b.TryReadUint64LE()
	return int64(v), ok
}

// TryReadFloat32 reads a big-endian IEEE 754 number of 4 bytes if b holds that many.
func (b *Buf) TryReadFloat32() (float32, bool) {
	v, ok := b.TryReadUint32()
	return math.Float32frombits(v), ok
}

// TryReadFloat32LE reads a little-endian IEEE 754 number of 4 bytes if b holds that many.
func (b *Buf) TryReadFloat32LE() (float32, bool) {
	v, ok := b.TryReadUint32LE()
	return math.Float32frombits(v), ok
}

// TryReadFloat64 reads a big-endian IEEE 754 number of 8 bytes if b holds that many.
func (b *Buf) TryReadFloat64() (float64, bool) {
	v, ok := b.TryReadUint64()
	return math.Float64frombits(v), ok
}

// TryReadFloat64LE reads a little-endian IEEE 754 number of 8 bytes if b holds that many.
func (b *Buf) TryReadFloat64LE() (float64, bool) {
	v, ok := b.TryReadUint64LE()
	return math.Float64frombits(v), ok
}

// TryReadBool reads a byte if b holds one. Any but 0 is true.
func (b *Buf) TryReadBool() (bool, bool) {
	v, ok := b.TryReadUint8()
	return v != 0, ok
}

// Skip reads past n bytes.
func (b *Buf) Skip(n int) {
	if n > b.w-b.r || n < 0 {
		b.skip(n)
		return
	}
	b.r += n
}

// skip is Skip beyond the read window.
func (b *Buf) skip(n int) {
	if uint(n) > uint(b.Len()) {
		b.short("Skip", n)
	}
	if b.flags&flagParts != 0 {
		b.seek(b.pieces(), b.ReaderIndex()+n)
		return
	}
	b.r += n
	b.sync()
}

// Unread makes the last n bytes that were read readable once more. It panics with
// ErrShort when fewer than n lie in front of ReaderIndex.
func (b *Buf) Unread(n int) {
	i := b.ReaderIndex()
	if uint(n) > uint(i-b.leastIndex()) {
		b.outOfRange("Unread", i-n, 0)
	}
	if b.flags&flagParts != 0 {
		b.seek(b.pieces(), i-n)
		return
	}
	b.r -= n
}

// SetReaderIndex makes i the index of the next byte to be read: what ReaderIndex
// returned before, to read from there once more, or any other up to WriterIndex.
// Beyond it panics with ErrShort. There is no mark to be set: keep the index. It is
// good until Clear or DiscardRead moves the content, or DiscardReadParts gives up the
// part it lies in.
func (b *Buf) SetReaderIndex(i int) {
	b.alive("SetReaderIndex")
	if i < 0 || i > b.WriterIndex() {
		b.outOfRange("SetReaderIndex", i, 0)
	}
	if r := b.ReaderIndex(); i < r {
		b.Unread(r - i)
	} else {
		b.Skip(i - r)
	}
}

// Next reads n bytes and returns them where they lie, or, when they lie in several
// parts, copied together, see [Buf.Peek]. The slice is b's: it is good
// until b is written to, compacted or released, and must not be written to.
func (b *Buf) Next(n int) []byte {
	p := b.Peek(n)
	b.Skip(n)
	return p
}

// Peek returns the next n bytes where they lie and does not read them. The slice
// is b's, as that of [Buf.Next]. Bytes that lie in several parts of a composite are
// copied into a part of their own, so that they lie together from then on; that may
// panic with ErrOutOfMemory.
func (b *Buf) Peek(n int) []byte {
	if uint(n) > uint(b.Len()) {
		b.short("Peek", n)
	}
	if b.flags&flagParts != 0 {
		return b.peekParts(n)
	}
	if n > 0 {
		b.show()
	}
	return bytesAt(b.p, b.r, n)
}

// ReadBytes fills dst with the next bytes. It panics with ErrShort when b holds
// fewer than len(dst).
func (b *Buf) ReadBytes(dst []byte) {
	if len(dst) > b.Len() {
		b.short("ReadBytes", len(dst))
	}
	b.copyOut(dst, b.ReaderIndex())
	b.Skip(len(dst))
}

// TryReadBytes fills dst with the next bytes if b holds that many.
func (b *Buf) TryReadBytes(dst []byte) bool {
	if len(dst) > b.Len() {
		b.alive("read")
		return false
	}
	b.ReadBytes(dst)
	return true
}

// ReadString reads n bytes and returns a copy of them.
func (b *Buf) ReadString(n int) string {
	if uint(n) > uint(b.Len()) {
		b.short("ReadString", n)
	}
	if n == 0 {
		return ""
	}
	dst := make([]byte, n)
	b.copyOut(dst, b.ReaderIndex())
	b.Skip(n)
	return unsafe.String(&dst[0], n) // nobody else has dst
}

// TryReadString reads n bytes and returns a copy of them if b holds that many.
func (b *Buf) TryReadString(n int) (string, bool) {
	if uint(n) > uint(b.Len()) {
		b.alive("read")
		return "", false
	}
	return b.ReadString(n), true
}
