package buffer_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
)

// edges are the numbers on both sides of each length of a varint, and the ends.
func edges() []uint64 {
	v := []uint64{0, math.MaxUint64}
	for n := 1; n < 64; n++ {
		v = append(v, 1<<n-1, 1<<n)
	}
	return v
}

func TestVarints(t *testing.T) {
	for name, layout := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			for _, v := range edges() {
				b := layout("#")
				b.WriteUvarint(v)
				b.WriteVarint(int64(v))
				b.WriteVarint(-int64(v))
				wire := []byte("#")
				wire = binary.AppendUvarint(wire, v)
				wire = binary.AppendVarint(wire, int64(v))
				wire = binary.AppendVarint(wire, -int64(v))
				if got := b.StringAt(0, b.WriterIndex()); got != string(wire) {
					t.Errorf("%#x: wrote %x, want %x", v, got, wire)
				}
				b.Release()

				b = layout(string(wire))
				b.Skip(1)
				if got := b.ReadUvarint(); got != v {
					t.Errorf("ReadUvarint: got %#x, want %#x", got, v)
				}
				if got := b.ReadVarint(); got != int64(v) {
					t.Errorf("ReadVarint: got %d, want %d", got, int64(v))
				}
				if got, ok, err := b.TryReadVarint(); got != -int64(v) || !ok || err != nil {
					t.Errorf("TryReadVarint: got %d, %v, %v, want %d", got, ok, err, -int64(v))
				}
				b.SetReaderIndex(1)
				if got, ok, err := b.TryReadUvarint(); got != v || !ok || err != nil {
					t.Errorf("TryReadUvarint: got %#x, %v, %v, want %#x", got, ok, err, v)
				}
				b.SetReaderIndex(1)
				if v <= math.MaxUint32 {
					if got := b.ReadUvarint32(); uint64(got) != v {
						t.Errorf("ReadUvarint32: got %#x, want %#x", got, v)
					}
					b.SetReaderIndex(1)
					if got, ok, err := b.TryReadUvarint32(); uint64(got) != v || !ok || err != nil {
						t.Errorf("TryReadUvarint32: got %#x, %v, %v, want %#x", got, ok, err, v)
					}
				} else {
					if got, ok, err := b.TryReadUvarint32(); got != 0 || ok || !errors.Is(err, buffer.ErrVarint) || b.ReaderIndex() != 1 {
						t.Errorf("TryReadUvarint32 of %#x: got %#x, %v, %v at %d, want ErrVarint", v, got, ok, err, b.ReaderIndex())
					}
					wantPanic(t, "ReadUvarint32", buffer.ErrVarint, func() { b.ReadUvarint32() })
				}
				b.Release()
			}
		})
	}
}

// A number that is not all there yet is told from one that never can be.
func TestVarintsIncompleteOrMalformed(t *testing.T) {
	const (
		incomplete = "incomplete"
		malformed  = "malformed"
	)
	more := func(n int) string { return strings.Repeat("\x80", n) } // n bytes with another to follow
	tests := []struct {
		name, in       string
		want64, want32 string // a number, or what is wrong
	}{
		{"nothing", "", incomplete, incomplete},
		{"1 of 2", "\x81", incomplete, incomplete},
		{"4 of 5", more(4), incomplete, incomplete},
		{"9 of 10", more(9), incomplete, malformed},
		{"longer than needed", "\x81\x00", "1", "1"},
		{"much longer than needed", "\x81\x80\x80\x80\x00", "1", "1"},
		{"as long as 64 bits may be", "\x81" + more(8) + "\x00", "1", malformed},
		{"one byte longer", "\x81" + more(9) + "\x00", malformed, malformed},
		{"10 bytes with another to follow", more(10), malformed, malformed},
		{"most of 32 bits", "\xff\xff\xff\xff\x0f", "4294967295", "4294967295"},
		{"33 bits", "\xff\xff\xff\xff\x1f", "8589934591", malformed},
		{"5 bytes with another to follow", more(5), incomplete, malformed},
		{"a 5th byte of 32 bits with another to follow", more(4) + "\x81", incomplete, malformed},
		{"most of 64 bits", strings.Repeat("\xff", 9) + "\x01", "18446744073709551615", malformed},
		{"65 bits", strings.Repeat("\xff", 9) + "\x02", malformed, malformed},
		{"10 bytes of 1", strings.Repeat("\xff", 10), malformed, malformed},
	}
	for where, layout := range kinds(t) {
		for _, tt := range tests {
			t.Run(where+"/"+tt.name, func(t *testing.T) {
				b := layout("##" + tt.in)
				defer b.Release()
				b.Skip(2)
				for _, x := range []struct {
					name, want string
					try        func() (any, bool, error)
					read       func() any
				}{
					{"Uvarint", tt.want64, func() (any, bool, error) { return triple(b.TryReadUvarint()) }, func() any { return b.ReadUvarint() }},
					{"Varint", tt.want64, func() (any, bool, error) { return triple(b.TryReadVarint()) }, func() any { return b.ReadVarint() }},
					{"Uvarint32", tt.want32, func() (any, bool, error) { return triple(b.TryReadUvarint32()) }, func() any { return b.ReadUvarint32() }},
				} {
					b.SetReaderIndex(2)
					v, ok, err := x.try()
					at := b.ReaderIndex()
					b.SetReaderIndex(2)
					switch x.want {
					case incomplete:
						if ok || err != nil || at != 2 {
							t.Errorf("TryRead%s: got %v, %v, %v at %d, want false and no error at 2", x.name, v, ok, err, at)
						}
						wantPanic(t, "Read"+x.name, buffer.ErrShort, func() { x.read() })
					case malformed:
						if ok || !errors.Is(err, buffer.ErrVarint) || at != 2 {
							t.Errorf("TryRead%s: got %v, %v, %v at %d, want ErrVarint at 2", x.name, v, ok, err, at)
						}
						wantPanic(t, "Read"+x.name, buffer.ErrVarint, func() { x.read() })
					default:
						if !ok || err != nil || at != 2+len(tt.in) {
							t.Errorf("TryRead%s: got %v, %v, %v at %d", x.name, v, ok, err, at)
						}
						if x.name != "Varint" && fmt.Sprint(v) != x.want {
							t.Errorf("TryRead%s: got %v, want %s", x.name, v, x.want)
						}
						if got := x.read(); got != v {
							t.Errorf("Read%s: got %v, want %v", x.name, got, v)
						}
						b.SetReaderIndex(2)
					}
					if b.ReaderIndex() != 2 {
						t.Errorf("Read%s: a failed read moved the index from 2 to %d", x.name, b.ReaderIndex())
					}
				}
			})
		}
	}
}

// triple makes the results of any TryRead those of one type.
func triple[T any](v T, ok bool, err error) (any, bool, error) { return v, ok, err }

func TestVarintErrorText(t *testing.T) {
	b := buffer.FromString("\xff\xff\xff\xff\xff\x01")
	defer b.Release()
	_, _, err := b.TryReadUvarint32()
	if got, want := fmt.Sprint(err), "buffer: read varint: varint has too many bits (want 33, have 32)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	err = panicOf(func() { b.WriteQUICVarint(1 << 62) })
	if got, want := fmt.Sprint(err), "buffer: WriteQUICVarint: varint has too many bits (want 63, have 62)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestQUICVarints(t *testing.T) {
	tests := []struct {
		wire    string
		v       uint64
		longest bool // not what WriteQUICVarint writes
	}{
		// The examples of RFC 9000, appendix A.1.
		{"\xc2\x19\x7c\x5e\xff\x14\xe8\x8c", 151_288_809_941_952_652, false},
		{"\x9d\x7f\x3e\x7d", 494_878_333, false},
		{"\x7b\xbd", 15_293, false},
		{"\x25", 37, false},
		{"\x40\x25", 37, true},
		// The ends of each length.
		{"\x00", 0, false},
		{"\x3f", 63, false},
		{"\x40\x40", 64, false},
		{"\x7f\xff", 16_383, false},
		{"\x80\x00\x40\x00", 16_384, false},
		{"\xbf\xff\xff\xff", 1<<30 - 1, false},
		{"\xc0\x00\x00\x00\x40\x00\x00\x00", 1 << 30, false},
		{"\xff\xff\xff\xff\xff\xff\xff\xff", buffer.MaxQUICVarint, false},
		{"\xc0\x00\x00\x00\x00\x00\x00\x00", 0, true},
		{"\x80\x00\x00\x01", 1, true},
	}
	for where, layout := range kinds(t) {
		for _, tt := range tests {
			b := layout("#" + tt.wire)
			b.Skip(1)
			if got := b.ReadQUICVarint(); got != tt.v || b.Len() != 0 {
				t.Errorf("%s: %x: got %d with %d left, want %d", where, tt.wire, got, b.Len(), tt.v)
			}
			b.SetReaderIndex(1)
			if got, ok := b.TryReadQUICVarint(); got != tt.v || !ok || b.Len() != 0 {
				t.Errorf("%s: %x: try: got %d, %v with %d left, want %d", where, tt.wire, got, ok, b.Len(), tt.v)
			}
			b.Release()
			for have := range len(tt.wire) {
				b := layout("#" + tt.wire[:have])
				b.Skip(1)
				if got, ok := b.TryReadQUICVarint(); got != 0 || ok || b.ReaderIndex() != 1 {
					t.Errorf("%s: %d of %x: try: got %d, %v at %d", where, have, tt.wire, got, ok, b.ReaderIndex())
				}
				wantPanic(t, where, buffer.ErrShort, func() { b.ReadQUICVarint() })
				if b.ReaderIndex() != 1 {
					t.Errorf("%s: a failed read moved the index from 1 to %d", where, b.ReaderIndex())
				}
				b.Release()
			}
			if tt.longest {
				continue
			}
			b = layout("#")
			b.WriteQUICVarint(tt.v)
			if got := b.StringAt(1, b.WriterIndex()-1); got != tt.wire {
				t.Errorf("%s: %d: wrote %x, want %x", where, tt.v, got, tt.wire)
			}
			b.Release()
		}
		b := layout("")
		for _, v := range []uint64{buffer.MaxQUICVarint + 1, 1 << 63, math.MaxUint64} {
			wantPanic(t, where, buffer.ErrVarint, func() { b.WriteQUICVarint(v) })
		}
		if b.Len() != 0 {
			t.Errorf("%s: a refused number left %d bytes", where, b.Len())
		}
		b.Release()
	}
}

// Whatever bytes come, varints are those of encoding/binary, which cannot tell that a
// number of ten bytes and more to follow is malformed before the eleventh.
func FuzzVarint(f *testing.F) {
	f.Add([]byte{}, uint64(0))
	f.Add([]byte("\x81\x00\xff"), uint64(300))
	f.Add([]byte("\xff\xff\xff\xff\x1f"), uint64(math.MaxUint32))
	f.Add(bytes.Repeat([]byte("\xff"), 11), uint64(math.MaxUint64))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), uint64(1)<<62)
	f.Add([]byte("\xc2\x19\x7c\x5e\xff\x14\xe8\x8c"), buffer.MaxQUICVarint)
	f.Fuzz(func(t *testing.T, in []byte, v uint64) {
		b := buffer.FromBytes(in)
		defer b.Release()
		check := func(what string, got, want any, ok bool, err error, n int) {
			t.Helper()
			switch {
			case n > 0 && (!ok || err != nil || got != want || b.ReaderIndex() != n):
				t.Errorf("%s of %x: got %v, %v, %v at %d, want %v at %d", what, in, got, ok, err, b.ReaderIndex(), want, n)
			case n < 0 && (ok || !errors.Is(err, buffer.ErrVarint) || b.ReaderIndex() != 0):
				t.Errorf("%s of %x: got %v, %v, %v at %d, want ErrVarint", what, in, got, ok, err, b.ReaderIndex())
			case n == 0 && (ok || err != nil || b.ReaderIndex() != 0):
				t.Errorf("%s of %x: got %v, %v, %v at %d, want it to wait for more", what, in, got, ok, err, b.ReaderIndex())
			}
			b.SetReaderIndex(0)
		}
		want, n := binary.Uvarint(in)
		if n == 0 && len(in) >= binary.MaxVarintLen64 {
			n = -1
		}
		got, ok, err := b.TryReadUvarint()
		check("Uvarint", got, want, ok, err, n)
		signed, _ := binary.Varint(in)
		gotSigned, ok, err := b.TryReadVarint()
		check("Varint", gotSigned, signed, ok, err, n)

		n32 := n
		switch {
		case n > 5, n > 0 && want > math.MaxUint32, n == 0 && len(in) >= 5:
			n32 = -1
		}
		got32, ok, err := b.TryReadUvarint32()
		check("Uvarint32", got32, uint32(want), ok, err, n32)

		quic, n := uint64(0), 0
		if len(in) > 0 {
			if n = 1 << (in[0] >> 6); n <= len(in) {
				for _, c := range in[:n] {
					quic = quic<<8 | uint64(c)
				}
				quic &^= 3 << (8*n - 2)
			} else {
				n = 0
			}
		}
		got, ok = b.TryReadQUICVarint()
		check("QUICVarint", got, quic, ok, nil, n)

		// What is written is read again, and as short as it can be.
		at := b.WriterIndex()
		b.SetReaderIndex(at)
		b.WriteUvarint(v)
		if n, most := b.Len(), max(1, (bits.Len64(v)+6)/7); n != most {
			t.Errorf("WriteUvarint of %#x took %d bytes, want %d", v, n, most)
		}
		b.WriteVarint(int64(v))
		b.WriteQUICVarint(v & buffer.MaxQUICVarint)
		if got := b.ReadUvarint(); got != v {
			t.Errorf("ReadUvarint: got %#x, want %#x", got, v)
		}
		if got := b.ReadVarint(); got != int64(v) {
			t.Errorf("ReadVarint: got %d, want %d", got, int64(v))
		}
		if got, want := b.ReadQUICVarint(), v&buffer.MaxQUICVarint; got != want || b.Len() != 0 {
			t.Errorf("ReadQUICVarint: got %#x with %d left, want %#x", got, b.Len(), want)
		}
	})
}

func ExampleBuf_TryReadUvarint() {
	b := buffer.Default().Alloc(64)
	defer b.Release()
	for _, received := range []string{"\xac", "\x02", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
		b.WriteString(received)
		switch v, ok, err := b.TryReadUvarint(); {
		case err != nil:
			fmt.Println(err) // a peer to be left
		case !ok:
			fmt.Println("more is needed")
		default:
			fmt.Println(v)
		}
	}
	// Output:
	// more is needed
	// 300
	// buffer: read varint: varint has too many bits (want 65, have 64)
}
