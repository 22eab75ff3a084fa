package buffer

import (
	"encoding/binary"
	"math/bits"
)

// MaxQUICVarint is the largest number that fits into a QUIC varint.
const MaxQUICVarint uint64 = 1<<62 - 1

// ReadUvarint reads an unsigned LEB128 number of up to 64 bits: 7 bits a byte, the
// lowest first, as encoding/binary and Protocol Buffers have it. Forms with more
// bytes than needed are accepted up to the 10 bytes that 64 bits take. It panics with
// ErrShort when b ends within the number and with ErrVarint when it has too many
// bits.
func (b *Buf) ReadUvarint() uint64 { return b.mustUvarint(64) }

// TryReadUvarint is ReadUvarint for input of unknown length and content. ok is false
// and err nil when b ends within the number: call it again when there is more. err
// wraps ErrVarint when the number has too many bits, whatever follows. Nothing is
// read unless ok is true.
func (b *Buf) TryReadUvarint() (v uint64, ok bool, err error) { return b.tryUvarint(64) }

// ReadUvarint32 is [Buf.ReadUvarint] for numbers of up to 32 bits, in up to 5 bytes.
func (b *Buf) ReadUvarint32() uint32 { return uint32(b.mustUvarint(32)) }

// TryReadUvarint32 is [Buf.TryReadUvarint] for numbers of up to 32 bits, in up to 5
// bytes.
func (b *Buf) TryReadUvarint32() (v uint32, ok bool, err error) {
	n, ok, err := b.tryUvarint(32)
	return uint32(n), ok, err
}

// ReadVarint reads a signed number by the rules of [Buf.ReadUvarint]: zig-zag, so that
// numbers near 0 are short, as encoding/binary and the sint types of Protocol Buffers
// have it.
func (b *Buf) ReadVarint() int64 { return zigzag(b.mustUvarint(64)) }

// TryReadVarint reads a signed zig-zag number by the rules of [Buf.TryReadUvarint].
func (b *Buf) TryReadVarint() (v int64, ok bool, err error) {
	n, ok, err := b.tryUvarint(64)
	return zigzag(n), ok, err
}

// WriteUvarint appends an unsigned LEB128 number in as few bytes as it takes, 1 to 10.
func (b *Buf) WriteUvarint(v uint64) {
	var p [binary.MaxVarintLen64]byte
	b.Write(p[:binary.PutUvarint(p[:], v)])
}

// WriteVarint appends a signed zig-zag number in as few bytes as it takes, 1 to 10.
func (b *Buf) WriteVarint(v int64) { b.WriteUvarint(uint64(v)<<1 ^ uint64(v>>63)) }

// zigzag returns the signed number that v stands for.
func zigzag(v uint64) int64 { return int64(v>>1) ^ -int64(v&1) }

func (b *Buf) mustUvarint(width int) uint64 {
	v, n := b.uvarint(width)
	if n == 0 {
		b.short("read varint", b.Len()+1)
	}
	if n < 0 {
		panic(tooWide(width))
	}
	b.Skip(n)
	return v
}

func (b *Buf) tryUvarint(width int) (uint64, bool, error) {
	v, n := b.uvarint(width)
	if n <= 0 {
		b.alive("read")
		if n < 0 {
			return 0, false, tooWide(width)
		}
		return 0, false, nil
	}
	b.Skip(n)
	return v, true, nil
}

func tooWide(width int) error {
	return &Error{"read varint", width + 1, width, ErrVarint}
}

// uvarint returns the LEB128 number at ReaderIndex and how many bytes it takes: 0 when
// it is not complete, -1 when it has more than width bits.
func (b *Buf) uvarint(width int) (v uint64, n int) {
	last := (width - 1) / 7 // the byte that no other can follow
	i, end := b.ReaderIndex(), b.WriterIndex()
	for i+n < end {
		for _, c := range b.chunk(i + n) {
			if n == last && c>>(width-7*last) != 0 {
				return 0, -1
			}
			v |= uint64(c&0x7f) << (7 * n)
			n++
			if c < 0x80 {
				return v, n
			}
		}
	}
	return 0, 0
}

// ReadQUICVarint reads a number of up to 62 bits in 1, 2, 4 or 8 bytes: big-endian,
// with the length in the two highest bits (RFC 9000, section 16). Forms longer than
// needed are accepted, as section 16 has it, so there are none that are malformed.
func (b *Buf) ReadQUICVarint() uint64 {
	n := b.quicLen()
	if b.Len() < n {
		b.short("read varint", n)
	}
	switch n {
	case 1:
		return uint64(b.ReadUint8())
	case 2:
		return uint64(b.ReadUint16() & (1<<14 - 1))
	case 4:
		return uint64(b.ReadUint32() & (1<<30 - 1))
	default:
		return b.ReadUint64() & MaxQUICVarint
	}
}

// TryReadQUICVarint reads a QUIC varint if b holds all of it.
func (b *Buf) TryReadQUICVarint() (uint64, bool) {
	if b.Len() < b.quicLen() {
		b.alive("read")
		return 0, false
	}
	return b.ReadQUICVarint(), true
}

// quicLen returns how many bytes the QUIC varint at ReaderIndex takes, as far as can be
// told: 1 when nothing of it is there.
func (b *Buf) quicLen() int {
	if b.Len() == 0 {
		return 1
	}
	return 1 << (b.Uint8At(b.ReaderIndex()) >> 6)
}

// WriteQUICVarint appends v as a QUIC varint in as few bytes as it takes. It panics
// with ErrVarint when v is above MaxQUICVarint.
func (b *Buf) WriteQUICVarint(v uint64) {
	switch n := bits.Len64(v); {
	case n <= 6:
		b.WriteUint8(uint8(v))
	case n <= 14:
		b.WriteUint16(uint16(v) | 1<<14)
	case n <= 30:
		b.WriteUint32(uint32(v) | 2<<30)
	case n <= 62:
		b.WriteUint64(v | 3<<62)
	default:
		panic(&Error{"WriteQUICVarint", n, 62, ErrVarint})
	}
}
