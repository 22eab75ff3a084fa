package buffer_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
)

func TestBytesAt(t *testing.T) {
	for name, layout := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			b := layout("0123456789")
			defer b.Release()
			b.Skip(3) // indices do not count from ReaderIndex
			tests := []struct{ i, n int }{{0, 0}, {0, 10}, {2, 5}, {9, 1}, {10, 0}}
			for _, tt := range tests {
				p := make([]byte, tt.n)
				b.BytesAt(tt.i, p)
				if got, want := string(p), "0123456789"[tt.i:tt.i+tt.n]; got != want {
					t.Errorf("BytesAt %d: got %q, want %q", tt.i, got, want)
				}
				if got := b.StringAt(tt.i, tt.n); got != string(p) {
					t.Errorf("StringAt %d, %d: got %q, want %q", tt.i, tt.n, got, p)
				}
				b.SetStringAt(tt.i, strings.Repeat("z", tt.n))
				b.SetBytesAt(tt.i, p)
				if got := b.StringAt(0, 10); got != "0123456789" {
					t.Errorf("set at %d and back: got %q", tt.i, got)
				}
			}
			for _, tt := range []struct{ i, n int }{{-1, 0}, {-1, 1}, {0, 11}, {9, 2}, {10, 1}, {11, 0}, {math.MaxInt, 5}, {math.MinInt, 5}} {
				what := fmt.Sprintf("%d bytes at %d", tt.n, tt.i)
				p := make([]byte, tt.n)
				wantPanic(t, "BytesAt: "+what, buffer.ErrShort, func() { b.BytesAt(tt.i, p) })
				wantPanic(t, "StringAt: "+what, buffer.ErrShort, func() { _ = b.StringAt(tt.i, tt.n) })
				wantPanic(t, "SetBytesAt: "+what, buffer.ErrShort, func() { b.SetBytesAt(tt.i, p) })
				wantPanic(t, "SetStringAt: "+what, buffer.ErrShort, func() { b.SetStringAt(tt.i, string(p)) })
			}
			for _, n := range []int{-1, math.MinInt, math.MaxInt} {
				wantPanic(t, fmt.Sprintf("StringAt of %d bytes", n), buffer.ErrShort, func() { _ = b.StringAt(1, n) })
			}
			if got := b.StringAt(0, 10); got != "0123456789" || b.ReaderIndex() != 3 {
				t.Errorf("after failed changes: got %q at %d", got, b.ReaderIndex())
			}
			b.SetStringAt(3, "abc")
			if got := b.ReadString(4); got != "abc6" {
				t.Errorf("got %q, want abc6", got)
			}
		})
	}
}

func TestReadOnlyAt(t *testing.T) {
	f := openTemp(t, "0123456789")
	defer f.Close()
	b, err := buffer.MapFile(f, 0, 10)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	for what, set := range map[string]func(){
		"SetUint24At":   func() { b.SetUint24At(0, 1) },
		"SetUint24AtLE": func() { b.SetUint24AtLE(0, 1) },
		"SetInt8At":     func() { b.SetInt8At(0, 1) },
		"SetFloat64At":  func() { b.SetFloat64At(0, 1) },
		"SetBoolAt":     func() { b.SetBoolAt(0, true) },
		"SetBytesAt":    func() { b.SetBytesAt(0, []byte("x")) },
		"SetStringAt":   func() { b.SetStringAt(0, "x") },
	} {
		wantPanic(t, what, buffer.ErrReadOnly, set)
	}
	// What is written to moves to memory of its own, also when there seems to be room.
	b.Truncate(4)
	b.WriteUint8('!')
	b.WriteZeros(2)
	if got := b.ReadString(b.Len()); got != "0123!\x00\x00" || b.Mapped() {
		t.Errorf("got %q, mapped %v", got, b.Mapped())
	}
	if got, err := os.ReadFile(f.Name()); err != nil || string(got) != "0123456789" {
		t.Errorf("the file: got %q, %v", got, err)
	}
}

// A change that would reach into memory that cannot be written is not begun.
func TestReadOnlyTail(t *testing.T) {
	plain := buffer.FromString("def")
	b := buffer.Compose(buffer.FromString("abc"), plain.ReadOnly())
	plain.Release()
	defer b.Release()
	for what, set := range map[string]func(){
		"SetUint24At":   func() { b.SetUint24At(1, 1) },
		"SetUint24AtLE": func() { b.SetUint24AtLE(2, 1) },
		"SetInt32At":    func() { b.SetInt32At(0, 1) },
		"SetBytesAt":    func() { b.SetBytesAt(0, []byte("123456")) },
		"SetStringAt":   func() { b.SetStringAt(2, "12") },
	} {
		wantPanic(t, what, buffer.ErrReadOnly, set)
		if got := b.StringAt(0, 6); got != "abcdef" {
			t.Errorf("%s: got %q, want abcdef as before", what, got)
		}
	}
	b.SetStringAt(0, "123")
	if got := b.ReadString(6); got != "123def" {
		t.Errorf("got %q, want 123def", got)
	}
}

func TestWriteRange(t *testing.T) {
	for name, layout := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			src := layout("0123456789")
			defer src.Release()
			src.Skip(6)
			b := layout("-")
			defer b.Release()
			b.WriteRange(src, 2, 5)
			b.WriteRange(src, 10, 0)
			b.WriteRange(src, 0, 10)
			if got, want := b.StringAt(0, b.WriterIndex()), "-234560123456789"; got != want || src.ReaderIndex() != 6 || src.Len() != 4 {
				t.Errorf("got %q and the source at %d, want %q and 6", got, src.ReaderIndex(), want)
			}
			for range 5 {
				b.WriteRange(b, 0, b.WriterIndex()) // moves, with what is being read
			}
			if got, want := b.ReadString(b.Len()), strings.Repeat("-234560123456789", 32); got != want {
				t.Errorf("doubled: got %q, want %q", got, want)
			}
			for _, tt := range [][2]int{{-1, 1}, {0, 11}, {11, 0}, {3, -1}, {math.MaxInt, math.MaxInt}, {0, math.MinInt}} {
				wantPanic(t, fmt.Sprint("WriteRange ", tt), buffer.ErrShort, func() { b.WriteRange(src, tt[0], tt[1]) })
			}
		})
	}
}

func TestWriteZeros(t *testing.T) {
	c := boundCache(t, buffer.PoolConfig{MaxCap: 1 << 16})
	dirty := c.Alloc(1 << 16)
	dirty.Write(bytes.Repeat([]byte{0xee}, 1<<16))
	dirty.Release()
	for _, n := range []int{0, 1, 1023, 1024, 1025, 5000} {
		b := c.Alloc(16)
		b.WriteUint8('x')
		b.WriteZeros(n)
		b.WriteUint8('y')
		if got, want := b.ReadString(b.Len()), "x"+strings.Repeat("\x00", n)+"y"; got != want {
			t.Errorf("%d: got %d bytes %.40q", n, len(got), got)
		}
		b.Release()
	}
	b := c.Alloc(16)
	defer b.Release()
	wantPanic(t, "WriteZeros -1", buffer.ErrShort, func() { b.WriteZeros(-1) })
	wantPanic(t, "Reserve -1", buffer.ErrShort, func() { b.Reserve(-1) })
	for _, n := range []int{1<<16 + 1, math.MaxInt} {
		wantPanic(t, "WriteZeros of too many", buffer.ErrTooLarge, func() { b.WriteZeros(n) })
		wantPanic(t, "Reserve of too many", buffer.ErrTooLarge, func() { b.Reserve(n) })
	}
	if b.WriterIndex() != 0 {
		t.Errorf("a failed write moved the index to %d", b.WriterIndex())
	}
}

func TestReserve(t *testing.T) {
	for name, layout := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			b := layout("ab")
			defer b.Release()
			b.Skip(1)
			i := b.Reserve(3)
			b.WriteString(strings.Repeat("c", 1000)) // moves to other memory
			b.SetUint24At(i, uint32(b.WriterIndex()-i-3))
			if got, want := b.ReadString(b.Len()), "b\x00\x03\xe8"+strings.Repeat("c", 1000); i != 2 || got != want {
				t.Errorf("got %.20q with the reserved at %d, want %.20q and 2", got, i, want)
			}
		})
	}
}

func TestSetReaderIndex(t *testing.T) {
	for name, layout := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			b := layout("0123456789")
			defer b.Release()
			mark := b.ReaderIndex()
			b.ReadUint32()
			b.SetReaderIndex(mark)
			if got := b.ReadString(2); got != "01" {
				t.Errorf("from the mark: got %q, want 01", got)
			}
			for _, i := range []int{10, 0, 5, 5, 9} {
				b.SetReaderIndex(i)
				if b.ReaderIndex() != i || b.Len() != 10-i {
					t.Errorf("got %d bytes from %d, want those from %d", b.Len(), b.ReaderIndex(), i)
				}
			}
			for _, i := range []int{-1, 11, math.MinInt, math.MaxInt} {
				wantPanic(t, fmt.Sprint("SetReaderIndex ", i), buffer.ErrShort, func() { b.SetReaderIndex(i) })
			}
			if got := b.ReadString(b.Len()); got != "9" {
				t.Errorf("after failed calls: got %q, want 9", got)
			}
		})
	}
}

func TestTruncate(t *testing.T) {
	for name, layout := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			b := layout("0123456789")
			defer b.Release()
			b.ReadUint16()
			b.Uint32At(0) // the fast paths know of 10 bytes
			for _, i := range []int{1, 11, -1, math.MinInt, math.MaxInt} {
				wantPanic(t, fmt.Sprint("Truncate ", i), buffer.ErrShort, func() { b.Truncate(i) })
			}
			b.Truncate(10)
			b.Truncate(5)
			if b.Len() != 3 || b.WriterIndex() != 5 {
				t.Errorf("got %d bytes up to %d, want 3 up to 5", b.Len(), b.WriterIndex())
			}
			wantPanic(t, "read of what was dropped", buffer.ErrShort, func() { b.ReadUint32() })
			wantPanic(t, "at what was dropped", buffer.ErrShort, func() { b.Uint16At(4) })
			wantPanic(t, "back again", buffer.ErrShort, func() { b.Truncate(6) })
			b.WriteString("abc")
			if got := b.ReadString(b.Len()); got != "234abc" {
				t.Errorf("got %q, want 234abc", got)
			}
			b.Truncate(8)
			if b.Len() != 0 {
				t.Errorf("got %d bytes, want none", b.Len())
			}
		})
	}
}

// What is written after Truncate does not change what others show of the memory.
func TestTruncateKeepsOff(t *testing.T) {
	for name, a := range allocators(t) {
		t.Run(name, func(t *testing.T) {
			b := a.Alloc(64)
			b.WriteString("0123456789")
			tail := b.Slice(5, 5)
			all := b.Duplicate()
			b.Truncate(5)
			if b.Cap() != 5 {
				t.Errorf("got capacity %d, want 5", b.Cap())
			}
			all.Truncate(7)
			b.WriteString("abcdefgh")
			all.WriteUint8('!')
			for _, x := range []struct {
				b    *buffer.Buf
				want string
			}{{b, "01234abcdefgh"}, {tail, "56789"}, {all, "0123456!"}} {
				if got := x.b.ReadString(x.b.Len()); got != x.want {
					t.Errorf("got %q, want %q", got, x.want)
				}
				x.b.Release()
			}

			// Who is alone again has all of the memory again.
			b = a.Alloc(64)
			b.WriteString("0123456789")
			tail = b.Slice(5, 5)
			b.Truncate(5)
			tail.Release()
			b.WriteString("abc")
			if got := b.StringAt(0, 8); got != "01234abc" || b.Cap() < 64 {
				t.Errorf("got %q in %d, want 01234abc in 64 or more", got, b.Cap())
			}
			// What lies behind a byte that was dropped is not next to what is left.
			b.Truncate(8)
			head, tail := b.ReadSlice(4), b.ReadSlice(4)
			head.Truncate(3)
			if head.Join(tail) {
				t.Error("joined over a byte that was dropped")
			}
			head.Release()
			tail.Release()
			b.Release()
		})
	}
}

// A composite gives back the parts behind where it is cut, and writes on in the room
// of the last one that is left.
func TestTruncateComposite(t *testing.T) {
	for name, a := range allocators(t) {
		t.Run(name, func(t *testing.T) {
			const all = "0123456789"
			for i := range len(all) + 1 {
				for _, read := range []int{0, i / 2, i} {
					before := buffer.Live()
					b := composed(a, "012", "3", "4567", "89")
					others := b.Duplicate()
					b.Skip(read)
					b.Truncate(i)
					if b.ReaderIndex() != read || b.WriterIndex() != i || content(t, b) != all[read:i] {
						t.Errorf("cut at %d: got %q from %d, want %q from %d", i, content(t, b), b.ReaderIndex(), all[read:i], read)
					}
					if want := []int{0, 1, 1, 1, 2, 3, 3, 3, 3, 4, 4}[i]; b.Parts() != want {
						t.Errorf("cut at %d: got %d parts, want %d", i, b.Parts(), want)
					}
					wantPanic(t, "at what was dropped", buffer.ErrShort, func() { b.Uint8At(i) })
					b.WriteString("abc")
					b.Append(buffer.FromString("def"))
					if got, want := content(t, b), all[read:i]+"abcdef"; got != want {
						t.Errorf("cut at %d and written to: got %q, want %q", i, got, want)
					}
					b.Truncate(read)
					b.Release()
					if got := content(t, others); got != all {
						t.Errorf("cut at %d: others show %q, want %q", i, got, all)
					}
					others.Release()
					if got := buffer.Live() - before; got != 0 {
						t.Errorf("cut at %d: got %d live, want 0", i, got)
					}
				}
			}

			// What is its own is room again.
			b := a.Alloc(64)
			b.WriteString("0123456789")
			b.Append(buffer.FromString("abc"))
			b.Truncate(5)
			if b.Cap() < 64 {
				t.Errorf("got capacity %d, want 64 or more", b.Cap())
			}
			b.WriteUint64(0x6161616161616161)
			if got := content(t, b); got != "01234aaaaaaaa" || b.Parts() != 1 {
				t.Errorf("got %q in %d parts", got, b.Parts())
			}
			b.Release()
		})
	}
}

// The accessors allocate nothing.
func TestAccessAllocates(t *testing.T) {
	c := boundCache(t, buffer.PoolConfig{})
	plain := c.Alloc(256)
	parts := composed(c, "0123456789", "0123456", "01")
	for _, b := range []*buffer.Buf{plain, parts} {
		b.EnsureWritable(200)
		b.WriteZeros(100 - b.WriterIndex())
		accessAllocates(t, b)
		b.Release()
	}
}

func accessAllocates(t *testing.T, b *buffer.Buf) {
	t.Helper()
	p := make([]byte, 8)
	ops := map[string]func(){
		"bool":    func() { b.WriteBool(true); b.ReadBool(); b.TryReadBool(); b.BoolAt(0); b.SetBoolAt(0, true) },
		"uint24":  func() { b.WriteUint24(1); b.ReadUint24(); b.TryReadUint24(); b.Uint24At(0); b.SetUint24At(0, 1) },
		"int8":    func() { b.WriteInt8(1); b.ReadInt8(); b.TryReadInt8(); b.Int8At(0); b.SetInt8At(0, 1) },
		"int16":   func() { b.WriteInt16(1); b.ReadInt16(); b.TryReadInt16(); b.Int16At(0); b.SetInt16At(0, 1) },
		"int24le": func() { b.WriteInt24LE(1); b.ReadInt24LE(); b.TryReadInt24LE(); b.Int24AtLE(0); b.SetInt24AtLE(0, 1) },
		"int32le": func() { b.WriteInt32LE(1); b.ReadInt32LE(); b.TryReadInt32LE(); b.Int32AtLE(0); b.SetInt32AtLE(0, 1) },
		"int64":   func() { b.WriteInt64(1); b.ReadInt64(); b.TryReadInt64(); b.Int64At(0); b.SetInt64At(0, 1) },
		"float32": func() { b.WriteFloat32(1); b.ReadFloat32(); b.TryReadFloat32(); b.Float32At(0); b.SetFloat32At(0, 1) },
		"float64le": func() {
			b.WriteFloat64LE(1)
			b.ReadFloat64LE()
			b.TryReadFloat64LE()
			b.Float64AtLE(0)
			b.SetFloat64AtLE(0, 1)
		},
		"uvarint":   func() { b.WriteUvarint(1 << 60); b.ReadUvarint() },
		"varint":    func() { b.WriteVarint(-1 << 60); _, _, _ = b.TryReadVarint() },
		"uvarint32": func() { b.WriteUvarint(1 << 30); b.ReadUvarint32() },
		"quic":      func() { b.WriteQUICVarint(1 << 60); b.TryReadQUICVarint() },
		"bytes":     func() { b.BytesAt(1, p); b.SetBytesAt(1, p); b.SetStringAt(1, "text") },
		"range":     func() { b.WriteRange(b, 0, 50); b.WriteZeros(50) },
		"indices":   func() { b.SetReaderIndex(20); b.Truncate(b.Reserve(4)) },
		"stream":    func() { _, _ = b.Read(p); _, _ = b.ReadByte(); _ = b.UnreadByte() },
	}
	for name, op := range ops {
		got := testing.AllocsPerRun(100, func() {
			b.SetReaderIndex(0)
			b.Truncate(100)
			op()
		})
		if got != 0 {
			t.Errorf("%s of %v: got %v allocations, want 0", name, b, got)
		}
	}
}

func ExampleBuf_Reserve() {
	b := buffer.Default().Alloc(64)
	defer b.Release()
	length := b.Reserve(4) // of what follows, known later
	b.WriteString("hello, ")
	b.WriteString("world")
	b.SetUint32At(length, uint32(b.WriterIndex()-length-4))

	n := b.ReadUint32()
	fmt.Println(n, b.ReadString(int(n)))
	// Output: 12 hello, world
}

func ExampleBuf_SetReaderIndex() {
	// message reads a length and as many bytes, or nothing at all.
	message := func(b *buffer.Buf) (string, bool) {
		mark := b.ReaderIndex()
		n, ok := b.TryReadUint16()
		if !ok {
			return "", false
		}
		s, ok := b.TryReadString(int(n))
		if !ok {
			b.SetReaderIndex(mark)
		}
		return s, ok
	}
	b := buffer.FromString("\x00\x05hel")
	defer b.Release()
	fmt.Println(message(b))
	b.WriteString("lo")
	fmt.Println(message(b))
	// Output:
	//  false
	// hello true
}

func ExampleBuf_Truncate() {
	b := buffer.FromString("")
	defer b.Release()
	for _, word := range []string{"one", "two", "three"} {
		before := b.WriterIndex()
		b.WriteString(word)
		b.WriteUint8(' ')
		if b.Len() > 8 { // it was too much
			b.Truncate(before)
			break
		}
	}
	fmt.Println(b.ReadString(b.Len()))
	// Output: one two
}
