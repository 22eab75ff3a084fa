package buffer_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
)

// kinds are the ways in which content can lie in memory. Each returns a Buf whose
// ReaderIndex is 0 and that ends with content.
func kinds(t *testing.T) map[string]func(content string) *buffer.Buf {
	c := boundCache(t, buffer.PoolConfig{})
	// split returns Bufs of n bytes each, with room for more behind them.
	split := func(s string, n, room int) []*buffer.Buf {
		var all []*buffer.Buf
		for len(s) > 0 {
			b := c.Alloc(n + room)
			b.WriteString(s[:min(n, len(s))])
			all = append(all, b)
			s = s[min(n, len(s)):]
		}
		return all
	}
	return map[string]func(string) *buffer.Buf{
		"pooled": func(s string) *buffer.Buf {
			b := c.Alloc(16)
			b.WriteString(s)
			return b
		},
		"ends with its memory": buffer.FromString,
		"slice of shared memory": func(s string) *buffer.Buf {
			b := c.Alloc(16)
			defer b.Release()
			b.WriteString("#" + s + "#")
			return b.Slice(1, len(s))
		},
		"wrapped":            func(s string) *buffer.Buf { return buffer.Wrap(nil, []byte(s)) },
		"composite of bytes": func(s string) *buffer.Buf { return buffer.Compose(split(s, 1, 0)...) },
		"composite of fives": func(s string) *buffer.Buf { return buffer.Compose(split(s, 5, 32)...) },
		"composite of slices": func(s string) *buffer.Buf {
			b := buffer.Compose()
			for i, p := range split("#"+s, 3, 0) {
				if i == 0 {
					p.Skip(1)
				}
				b.Append(p.Slice(p.ReaderIndex(), p.Len()))
				p.Release()
			}
			return b
		},
	}
}

// scalar tests the accessors of one type, for each of the values against what
// encoding/binary makes of it.
func scalar[T any](
	wire func(T) []byte,
	write func(*buffer.Buf, T), read func(*buffer.Buf) T, try func(*buffer.Buf) (T, bool),
	at func(*buffer.Buf, int) T, set func(*buffer.Buf, int, T), values ...T,
) func(t *testing.T) {
	return func(t *testing.T) {
		for where, layout := range kinds(t) {
			for _, v := range values {
				want := string(wire(v))
				n := len(want)
				same := func(what string, got T) {
					t.Helper()
					if string(wire(got)) != want {
						t.Errorf("%s: %s: got %v, want %v", where, what, got, v)
					}
				}
				for _, lead := range []int{0, 1, 8, 16 - n} {
					b := layout(strings.Repeat("x", lead))
					write(b, v) // over the end of the memory, in some of them
					if got := b.StringAt(lead, n); got != want || b.WriterIndex() != lead+n {
						t.Errorf("%s: wrote %x up to %d, want %x", where, got, b.WriterIndex(), want)
					}
					b.Release()

					b = layout(strings.Repeat("x", lead) + want)
					b.Skip(lead)
					same("at", at(b, lead))
					if got, ok := try(b); ok {
						same("try", got)
					} else {
						t.Errorf("%s: try of %d with as many there: got false", where, n)
					}
					b.Unread(n)
					same("read", read(b))
					b.Release()

					// With 1 to n bytes missing.
					for have := range n {
						b := layout(strings.Repeat("x", lead) + want[:have])
						b.Skip(lead)
						if _, ok := try(b); ok || b.ReaderIndex() != lead {
							t.Errorf("%s: try with %d of %d: got %v at %d", where, have, n, ok, b.ReaderIndex())
						}
						wantPanic(t, where+": read", buffer.ErrShort, func() { read(b) })
						if b.ReaderIndex() != lead {
							t.Errorf("%s: a failed read moved the index from %d to %d", where, lead, b.ReaderIndex())
						}
						wantPanic(t, where+": at", buffer.ErrShort, func() { at(b, lead) })
						wantPanic(t, where+": set", buffer.ErrShort, func() { set(b, lead, v) })
						if got := b.StringAt(lead, have); got != want[:have] {
							t.Errorf("%s: a failed set left %x, want %x", where, got, want[:have])
						}
						b.Release()
					}
				}

				b := layout(strings.Repeat("x", 12))
				for i := range 12 - n + 1 {
					b.SetBytesAt(0, bytes.Repeat([]byte("x"), 12))
					set(b, i, v)
					if got, want := b.StringAt(0, 12), strings.Repeat("x", i)+want+strings.Repeat("x", 12-n-i); got != want {
						t.Errorf("%s: set at %d: got %x, want %x", where, i, got, want)
					}
				}
				for _, i := range []int{-1, -n, math.MinInt, math.MaxInt, math.MaxInt - 8, 12} {
					wantPanic(t, fmt.Sprintf("%s: at %d", where, i), buffer.ErrShort, func() { at(b, i) })
					was := b.StringAt(0, 12)
					wantPanic(t, fmt.Sprintf("%s: set at %d", where, i), buffer.ErrShort, func() { set(b, i, v) })
					if got := b.StringAt(0, 12); got != was {
						t.Errorf("%s: a failed set at %d made %x of %x", where, i, got, was)
					}
				}
				b.Release()
			}
			// Across growths.
			b := layout("")
			var want []byte
			for i := range 100 {
				v := values[i%len(values)]
				write(b, v)
				want = append(want, wire(v)...)
			}
			if got := b.ReadString(b.Len()); got != string(want) {
				t.Errorf("%s: 100 writes: got %x, want %x", where, got, want)
			}
			b.Release()
		}
	}
}

func TestScalars(t *testing.T) {
	type B = buffer.Buf
	const nan32, nan64 = 0x7fa12345, 0x7ff4123456789abc // with a payload, signalling
	u16 := []uint16{0, 1, 0x7fff, 0x8000, 0x8182, 0xffff}
	u24 := []uint32{0, 1, 0x7fffff, 0x800000, 0x818283, 0xffffff}
	u32 := []uint32{0, 1, 0x7fffffff, 0x80000000, 0x81828384, math.MaxUint32}
	u64 := []uint64{0, 1, math.MaxInt64, 1 << 63, 0x8182838485868788, math.MaxUint64}
	i16 := []int16{0, 1, -1, -0x7e7e, math.MinInt16, math.MaxInt16}
	i24 := []int32{0, 1, -1, -0x7e7d7d, -1 << 23, 1<<23 - 1}
	i32 := []int32{0, 1, -1, -0x7e7d7c7c, math.MinInt32, math.MaxInt32}
	i64 := []int64{0, 1, -1, -0x7e7d7c7b7a797878, math.MinInt64, math.MaxInt64}
	f32 := []float32{0, float32(math.Copysign(0, -1)), 1, -2.5, math.MaxFloat32, math.SmallestNonzeroFloat32, float32(math.Inf(1)), math.Float32frombits(nan32 | 1<<22)}
	f64 := []float64{0, math.Copysign(0, -1), 1, -2.5, math.MaxFloat64, math.SmallestNonzeroFloat64, math.Inf(-1), math.Float64frombits(nan64)}
	tests := []struct {
		name string
		run  func(*testing.T)
	}{
		{"bool", scalar(big[bool], (*B).WriteBool, (*B).ReadBool, (*B).TryReadBool, (*B).BoolAt, (*B).SetBoolAt, false, true)},
		{"uint8", scalar(big[uint8], (*B).WriteUint8, (*B).ReadUint8, (*B).TryReadUint8, (*B).Uint8At, (*B).SetUint8At, 0, 1, 0x7f, 0x80, 0xff)},
		{"uint16", scalar(big[uint16], (*B).WriteUint16, (*B).ReadUint16, (*B).TryReadUint16, (*B).Uint16At, (*B).SetUint16At, u16...)},
		{"uint16le", scalar(little[uint16], (*B).WriteUint16LE, (*B).ReadUint16LE, (*B).TryReadUint16LE, (*B).Uint16AtLE, (*B).SetUint16AtLE, u16...)},
		{"uint24", scalar(big24[uint32], (*B).WriteUint24, (*B).ReadUint24, (*B).TryReadUint24, (*B).Uint24At, (*B).SetUint24At, u24...)},
		{"uint24le", scalar(little24[uint32], (*B).WriteUint24LE, (*B).ReadUint24LE, (*B).TryReadUint24LE, (*B).Uint24AtLE, (*B).SetUint24AtLE, u24...)},
		{"uint32", scalar(big[uint32], (*B).WriteUint32, (*B).ReadUint32, (*B).TryReadUint32, (*B).Uint32At, (*B).SetUint32At, u32...)},
		{"uint32le", scalar(little[uint32], (*B).WriteUint32LE, (*B).ReadUint32LE, (*B).TryReadUint32LE, (*B).Uint32AtLE, (*B).SetUint32AtLE, u32...)},
		{"uint64", scalar(big[uint64], (*B).WriteUint64, (*B).ReadUint64, (*B).TryReadUint64, (*B).Uint64At, (*B).SetUint64At, u64...)},
		{"uint64le", scalar(little[uint64], (*B).WriteUint64LE, (*B).ReadUint64LE, (*B).TryReadUint64LE, (*B).Uint64AtLE, (*B).SetUint64AtLE, u64...)},
		{"int8", scalar(big[int8], (*B).WriteInt8, (*B).ReadInt8, (*B).TryReadInt8, (*B).Int8At, (*B).SetInt8At, 0, 1, -1, -0x77, math.MinInt8, math.MaxInt8)},
		{"int16", scalar(big[int16], (*B).WriteInt16, (*B).ReadInt16, (*B).TryReadInt16, (*B).Int16At, (*B).SetInt16At, i16...)},
		{"int16le", scalar(little[int16], (*B).WriteInt16LE, (*B).ReadInt16LE, (*B).TryReadInt16LE, (*B).Int16AtLE, (*B).SetInt16AtLE, i16...)},
		{"int24", scalar(big24[int32], (*B).WriteInt24, (*B).ReadInt24, (*B).TryReadInt24, (*B).Int24At, (*B).SetInt24At, i24...)},
		{"int24le", scalar(little24[int32], (*B).WriteInt24LE, (*B).ReadInt24LE, (*B).TryReadInt24LE, (*B).Int24AtLE, (*B).SetInt24AtLE, i24...)},
		{"int32", scalar(big[int32], (*B).WriteInt32, (*B).ReadInt32, (*B).TryReadInt32, (*B).Int32At, (*B).SetInt32At, i32...)},
		{"int32le", scalar(little[int32], (*B).WriteInt32LE, (*B).ReadInt32LE, (*B).TryReadInt32LE, (*B).Int32AtLE, (*B).SetInt32AtLE, i32...)},
		{"int64", scalar(big[int64], (*B).WriteInt64, (*B).ReadInt64, (*B).TryReadInt64, (*B).Int64At, (*B).SetInt64At, i64...)},
		{"int64le", scalar(little[int64], (*B).WriteInt64LE, (*B).ReadInt64LE, (*B).TryReadInt64LE, (*B).Int64AtLE, (*B).SetInt64AtLE, i64...)},
		{"float32", scalar(big[float32], (*B).WriteFloat32, (*B).ReadFloat32, (*B).TryReadFloat32, (*B).Float32At, (*B).SetFloat32At, f32...)},
		{"float32le", scalar(little[float32], (*B).WriteFloat32LE, (*B).ReadFloat32LE, (*B).TryReadFloat32LE, (*B).Float32AtLE, (*B).SetFloat32AtLE, f32...)},
		{"float64", scalar(big[float64], (*B).WriteFloat64, (*B).ReadFloat64, (*B).TryReadFloat64, (*B).Float64At, (*B).SetFloat64At, f64...)},
		{"float64le", scalar(little[float64], (*B).WriteFloat64LE, (*B).ReadFloat64LE, (*B).TryReadFloat64LE, (*B).Float64AtLE, (*B).SetFloat64AtLE, f64...)},
	}
	for _, tt := range tests {
		t.Run(tt.name, tt.run)
	}
}

func big[T any](v T) []byte {
	p, err := binary.Append(nil, binary.BigEndian, v)
	if err != nil {
		panic(err)
	}
	return p
}

func little[T any](v T) []byte {
	p, err := binary.Append(nil, binary.LittleEndian, v)
	if err != nil {
		panic(err)
	}
	return p
}

func big24[T int32 | uint32](v T) []byte    { return big(v)[1:] }
func little24[T int32 | uint32](v T) []byte { return little(v)[:3] }

// What 24 bits cannot hold is left out, and signs are extended.
func TestLeftOutBits(t *testing.T) {
	b := buffer.FromString("")
	defer b.Release()
	b.WriteUint24(0xff123456)
	b.WriteUint24LE(0xff123456)
	b.WriteInt24(math.MinInt32 + 0x123456)
	b.SetUint24At(b.Reserve(3), 0xff123456)
	b.WriteUint8(2)
	if got, want := b.StringAt(0, 12), "\x12\x34\x56\x56\x34\x12\x12\x34\x56\x12\x34\x56"; got != want {
		t.Errorf("got %x, want %x", got, want)
	}
	if !b.BoolAt(12) {
		t.Error("BoolAt of a 2: got false")
	}
	b.Skip(12)
	if v, ok := b.TryReadBool(); !v || !ok {
		t.Errorf("TryReadBool of a 2: got %v, %v", v, ok)
	}
	b.Unread(1)
	if !b.ReadBool() {
		t.Error("ReadBool of a 2: got false")
	}
}
