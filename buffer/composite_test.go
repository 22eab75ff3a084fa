package buffer_test

import (
	"bytes"
	"errors"
	"math"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/invariant"
)

// composed returns a composite of pieces, each in a Buf of its own.
func composed(a buffer.Allocator, pieces ...string) *buffer.Buf {
	bufs := make([]*buffer.Buf, len(pieces))
	for i, s := range pieces {
		bufs[i] = a.Alloc(len(s))
		bufs[i].WriteString(s)
	}
	return buffer.Compose(bufs...)
}

// content is what can be read from b, read twice in different ways.
func content(t *testing.T, b *buffer.Buf) string {
	t.Helper()
	var all []byte
	for p := range b.Segments {
		all = append(all, p...)
	}
	c := b.Copy()
	defer c.Release()
	if !bytes.Equal(all, c.Window()) {
		t.Errorf("parts %q, copied %q", all, c.Window())
	}
	return string(all)
}

// inPlace is what can be read from b, taken where it lies.
func inPlace(b *buffer.Buf) string {
	var all []byte
	for p := range b.Segments {
		all = append(all, p...)
	}
	return string(all)
}

func TestComposite(t *testing.T) {
	for name, a := range allocators(t) {
		t.Run(name, func(t *testing.T) {
			tests := []struct {
				name  string
				make  func() *buffer.Buf
				parts int
				want  string
			}{
				{"none", func() *buffer.Buf { return buffer.Compose() }, -1, ""},
				{"empty ones", func() *buffer.Buf { return composed(a, "", "") }, 0, ""},
				{"one", func() *buffer.Buf { return composed(a, "abc") }, 1, "abc"},
				{"three", func() *buffer.Buf { return composed(a, "ab", "c", "", "def") }, 3, "abcdef"},
				{"nested", func() *buffer.Buf {
					return buffer.Compose(composed(a, "ab", "cd"), composed(a, "e"), composed(a, "fg", "h"))
				}, 5, "abcdefgh"},
				{"nested and half read", func() *buffer.Buf {
					in := composed(a, "abc", "def")
					in.Skip(4)
					return buffer.Compose(composed(a, "x"), in)
				}, 2, "xef"},
				{"appended to a plain one", func() *buffer.Buf {
					b := a.Alloc(4)
					b.WriteString("ab")
					b.Append(composed(a, "cd", "ef"))
					return b
				}, 3, "abcdef"},
				{"in front of a plain one", func() *buffer.Buf {
					b := a.Alloc(4)
					b.WriteString("ab")
					b.Prepend(composed(a, "cd", "ef"))
					b.Prepend(composed(a, "gh"))
					return b
				}, 4, "ghcdefab"},
				{"in front of what is left", func() *buffer.Buf {
					b := composed(a, "abc", "def")
					b.Skip(1)
					b.Prepend(composed(a, "x", "y"))
					return b
				}, 5, "xybcdef"},
				{"in the middle", func() *buffer.Buf {
					b := composed(a, "abc", "def")
					b.Insert(4, composed(a, "1", "2"))
					b.Insert(3, composed(a, "3"))
					return b
				}, 6, "abc3d12ef"},
				{"neighbours are one part", func() *buffer.Buf {
					m := a.Alloc(8)
					m.WriteString("abcdef")
					b := buffer.Compose(m.ReadSlice(2), m.ReadSlice(2))
					b.Append(m)
					return b
				}, 1, "abcdef"},
				{"written to", func() *buffer.Buf {
					b := composed(a, "ab", "cd")
					for range 2000 {
						b.WriteString("x")
					}
					b.Skip(2000)
					return b
				}, -1, "xxxx"},
				{"somebody else holds a part", func() *buffer.Buf {
					p := a.Alloc(4)
					p.WriteString("abcd")
					p.Retain()
					b := buffer.Compose(p, composed(a, "e"))
					p.Skip(3)
					p.Release()
					return b
				}, 2, "abcde"},
			}
			for _, tt := range tests {
				t.Run(tt.name, func(t *testing.T) {
					before := buffer.Live()
					b := tt.make()
					if got := content(t, b); got != tt.want || b.Len() != len(tt.want) {
						t.Errorf("got %q, want %q", got, tt.want)
					}
					if got := b.Parts(); tt.parts >= 0 && got != tt.parts {
						t.Errorf("got %d parts, want %d", got, tt.parts)
					}
					b.Consolidate()
					if got := string(b.Window()); got != tt.want {
						t.Errorf("in one piece: got %q, want %q", got, tt.want)
					}
					b.Release()
					if got := buffer.Live() - before; got != 0 {
						t.Errorf("got %d live, want 0", got)
					}
				})
			}
		})
	}
}

// Numbers that lie in several parts are read, and changed, like others.
func TestStraddling(t *testing.T) {
	for name, a := range allocators(t) {
		t.Run(name, func(t *testing.T) {
			b := composed(a, "\x01\x02\x03", "\x04", "\x05\x06\x07\x08\x09", "\x0a\x0b")
			defer b.Release()
			if got := b.Uint64At(1); got != 0x0203040506070809 {
				t.Errorf("Uint64At: got %#x", got)
			}
			if got := b.Uint32AtLE(2); got != 0x06050403 {
				t.Errorf("Uint32AtLE: got %#x", got)
			}
			if got := b.ReadUint16(); got != 0x0102 {
				t.Errorf("got %#x", got)
			}
			if got := b.ReadUint32(); got != 0x03040506 {
				t.Errorf("got %#x", got)
			}
			b.Unread(3)
			if got := b.ReadUint64(); got != 0x040506070809_0a0b {
				t.Errorf("got %#x", got)
			}
			wantPanic(t, "ReadUint8 at the end", buffer.ErrShort, func() { b.ReadUint8() })
			b.SetUint64At(2, 0xa1a2a3a4a5a6a7a8)
			b.Unread(9)
			if got := b.Peek(9); !bytes.Equal(got, []byte{0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0x0b}) {
				t.Errorf("got %x", got)
			}
		})
	}
}

// A slice of a component keeps just that component alive.
func TestSliceOfComposite(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{})
	b := composed(p, "abc", "def", "ghi")
	one := b.Slice(3, 3)
	two := b.Slice(4, 4)
	all := b.Duplicate()
	b.Skip(4)
	rest := b.ReadSlice(5)
	b.Release()
	all.Release()
	if got := content(t, one); got != "def" || one.Parts() != 1 {
		t.Errorf("got %q in %d parts", got, one.Parts())
	}
	if got := content(t, two); got != "efgh" || two.Parts() != 2 {
		t.Errorf("got %q in %d parts", got, two.Parts())
	}
	if got := content(t, rest); got != "efghi" {
		t.Errorf("got %q", got)
	}
	two.Release()
	rest.Release()
	if got := p.Live(); got != 1 {
		t.Errorf("got %d live, want 1", got)
	}
	one.Release()
}

func TestSplit(t *testing.T) {
	for name, a := range allocators(t) {
		for parts, make := range map[string]func() *buffer.Buf{
			"contiguous": func() *buffer.Buf { b := a.Alloc(100); b.WriteString("abcdefgh"); return b },
			"composite":  func() *buffer.Buf { return composed(a, "abc", "d", "efgh") },
		} {
			t.Run(name+"/"+parts, func(t *testing.T) {
				for i := range 9 {
					for r := range 9 {
						b := make()
						b.Skip(r)
						rest := b.Split(i)
						if got, want := content(t, b), "abcdefgh"[min(r, i):i]; got != want {
							t.Errorf("at %d, %d read: b holds %q, want %q", i, r, got, want)
						}
						if got, want := content(t, rest), "abcdefgh"[max(r, i):]; got != want {
							t.Errorf("at %d, %d read: the rest holds %q, want %q", i, r, got, want)
						}
						if b.WriterIndex() != i || rest.WriterIndex() != 8-i {
							t.Errorf("at %d: got writers at %d and %d", i, b.WriterIndex(), rest.WriterIndex())
						}
						b.WriteString("XYZ")
						rest.WriteString("123")
						b.Skip(b.Len() - 3)
						rest.Skip(rest.Len() - 3)
						if x, y := content(t, b), content(t, rest); x != "XYZ" || y != "123" {
							t.Errorf("at %d: wrote XYZ and 123, read %q and %q", i, x, y)
						}
						b.Release()
						rest.Release()
					}
				}
			})
		}
	}
}

// Of a composite, too, wherever it is divided.
func TestSplitOfCompositeKeepsRoom(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{})
	for i := range 8 {
		b := composed(p, "abc", "def")
		b.EnsureWritable(100)
		b.WriteString("g")
		room := b.Cap() - 7
		rest := b.Split(i)
		if rest.Cap() != 7-i+room {
			t.Errorf("at %d: got capacity %d, want %d", i, rest.Cap(), 7-i+room)
		}
		b.Append(rest)
		if got := content(t, b); got != "abcdefg" {
			t.Errorf("at %d: got %q", i, got)
		}
		b.Release()
	}
}

// What fetches bytes together takes no room, and makes nothing writable.
func TestPeekChangesNothingElse(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{})
	b := composed(p, "abcd", "ef")
	b.EnsureWritable(200)
	b.WriteString("gh")
	room := b.Writable()
	room[0] = 'i'
	for _, n := range []int{8, 7} {
		had := b.Cap()
		if got := string(b.Peek(n)); got != "abcdefgh"[:n] || b.Cap() != had {
			t.Errorf("Peek(%d): got %q, capacity %d, want %d", n, got, b.Cap(), had)
		}
	}
	b.Commit(1)
	if got := content(t, b); got != "abcdefghi" {
		t.Errorf("got %q", got)
	}
	b.Release()

	b = composed(p, "abcd", "efgh")
	r := b.ReadOnly()
	r.Skip(3)
	if got := string(r.Peek(2)); got != "de" || r.Parts() != 3 {
		t.Errorf("got %q, then %d parts", got, r.Parts())
	}
	for i := range 8 {
		wantPanic(t, "SetUint8At", buffer.ErrReadOnly, func() { r.SetUint8At(i, 'x') })
	}
	r.Release()
	b.Release()
}

// A range that begins in what has been discarded is refused before there is room for it.
func TestRangeOfDiscardedParts(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{})
	b := composed(p, "abc", "def")
	b.Skip(4)
	b.DiscardReadParts()
	o := p.Alloc(16)
	o.WriteString("all but two..")
	had := o.Cap()
	wantPanic(t, "WriteRange", buffer.ErrShort, func() { o.WriteRange(b, 2, 3) })
	wantPanic(t, "StringAt", buffer.ErrShort, func() { b.StringAt(2, 3) })
	wantPanic(t, "WriteRange", buffer.ErrShort, func() { o.WriteRange(b, 0, 6) })
	if o.Cap() != had || b.StringAt(2, 0) != "" {
		t.Errorf("got capacity %d, want %d", o.Cap(), had)
	}
	o.Release()
	b.Release()
}

// Who looks at more and more has only the new bytes copied, unless somebody else shows
// what has been copied before.
func TestPeekMoreAndMore(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{})
	b := composed(p, "a", "b", "c", "d", "e", "f", "g", "h", "i", "j")
	first := &b.Peek(2)[0]
	for n := 3; n < 8; n++ {
		if got := b.Peek(n); string(got) != "abcdefghij"[:n] || &got[0] != first {
			t.Errorf("Peek(%d): got %q, moved: %v", n, got, &got[0] != first)
		}
	}
	if b.Parts() != 4 || !b.Exclusive() {
		t.Errorf("got %d parts, exclusive %v", b.Parts(), b.Exclusive())
	}
	s := b.Slice(2, 4)
	if got := b.Peek(9); string(got) != "abcdefghi" || &got[0] == first {
		t.Errorf("with a slice: got %q, moved: %v", got, &got[0] != first)
	}
	b.SetUint8At(3, 'D')
	if got := content(t, s); got != "cdef" {
		t.Errorf("the slice: got %q", got)
	}
	s.Release()
	if got := content(t, b); got != "abcDefghij" {
		t.Errorf("got %q", got)
	}
	b.Release()
}

// Nothing to add changes nothing.
func TestAppendEmpty(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{})
	plain := p.Alloc(16)
	plain.WriteString("abc")
	room := composed(p, "abc")
	room.EnsureWritable(100)
	for what, b := range map[string]*buffer.Buf{"plain": plain, "with room": room} {
		had, parts := b.Cap(), b.Parts()
		b.Append(p.Alloc(16))
		b.Prepend(composed(p, "", ""))
		b.Insert(2, buffer.FromString(""))
		if b.Cap() != had || b.Parts() != parts || content(t, b) != "abc" {
			t.Errorf("%s: got %q in %d parts, capacity %d, want %d, %d", what, content(t, b), b.Parts(), b.Cap(), parts, had)
		}
		b.Release()
	}
}

// More bytes pass through a composite than an int of 32 bits counts, in both directions.
func TestCompositeLivesLong(t *testing.T) {
	const size = 64 << 20
	m := buffer.Heap.Alloc(size)
	defer m.Release()
	m.Commit(size)
	m.SetUint8At(0, 'a')
	m.SetUint8At(size-1, 'z')
	b := buffer.Compose(buffer.FromString("bcd"))
	defer b.Release()
	for round := range 5 << 30 / size {
		b.Append(m.Duplicate())
		b.Append(buffer.FromString("abc"))
		b.Skip(b.Len() - 4)
		b.DiscardRead()
		if got := content(t, b); got != "zabc" || b.Uint8At(3) != 'c' || b.WriterIndex() != 4 {
			t.Fatalf("round %d: got %q", round, got)
		}
	}
	for round := range 5 << 30 / size {
		b.Prepend(m.Duplicate())
		b.Truncate(2)
		if got := content(t, b); got != "a\x00" || b.Uint8At(0) != 'a' || b.WriterIndex() != 2 {
			t.Fatalf("round %d from the front: got %q", round, got)
		}
	}
	if strconv.IntSize > 32 {
		return
	}
	for b.WriterIndex() < math.MaxInt-size {
		b.Append(m.Duplicate())
	}
	had := b.WriterIndex()
	for what, add := range map[string]func(*buffer.Buf){"Append": b.Append, "Prepend": b.Prepend} {
		wantPanic(t, what, buffer.ErrTooLarge, func() { add(m.Duplicate()) })
	}
	if b.WriterIndex() != had || b.Uint8At(0) != 'a' {
		t.Errorf("got %v, want writer at %d", b, had)
	}
}

// The room goes with the second half, so that it is filled without a move.
func TestSplitKeepsRoom(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{})
	b := p.Alloc(64)
	b.WriteString("abcdef")
	rest := b.Split(4)
	if b.Cap() != 4 || rest.Cap() != 60 {
		t.Errorf("got capacities %d and %d, want 4 and 60", b.Cap(), rest.Cap())
	}
	rest.Retain()
	if !b.Join(rest) || b.Cap() != 6 {
		t.Errorf("with another owner: got capacity %d, want 6", b.Cap())
	}
	rest.Release()
	b.Release()

	b = p.Alloc(64)
	b.WriteString("abcdef")
	if !b.Join(b.Split(4)) || string(b.Window()) != "abcdef" || b.Cap() != 64 {
		t.Errorf("joined again: got %q of %d", b.Window(), b.Cap())
	}
	b.Release()
}

// A duplicate leaves its original as it is, and begins where that does.
func TestDuplicateOfComposite(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{})
	for _, gone := range []int{0, 3, 6} { // bytes of discarded parts
		b := composed(p, "abc", "def", "ghi")
		b.Skip(gone)
		if gone > 0 {
			b.DiscardReadParts()
		}
		b.Skip(1)
		r, parts := b.ReaderIndex(), b.Parts()
		for what, d := range map[string]*buffer.Buf{"Duplicate": b.Duplicate(), "ReadOnly": b.ReadOnly()} {
			if b.ReaderIndex() != r || b.WriterIndex() != 9 || b.Parts() != parts {
				t.Errorf("%s changed its original: got reader at %d, writer at %d, %d parts", what, b.ReaderIndex(), b.WriterIndex(), b.Parts())
			}
			if d.ReaderIndex() != r || d.WriterIndex() != 9 || content(t, d) != content(t, b) {
				t.Errorf("%s: got reader at %d, writer at %d, %q", what, d.ReaderIndex(), d.WriterIndex(), content(t, d))
			}
			if got := d.Uint8At(gone); got != "abcdefghi"[gone] {
				t.Errorf("%s: got %c first", what, got)
			}
			if gone > 0 {
				wantPanic(t, what, buffer.ErrShort, func() { d.Uint8At(gone - 1) })
			}
			d.WriteString("x")
			d.Release()
		}
		b.Unread(r - gone)
		if got := content(t, b); got != "abcdefghi"[gone:] {
			t.Errorf("got %q", got)
		}
		b.Release()
	}
}

func TestReadOnly(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{})
	for _, b := range []*buffer.Buf{composed(p, "abcdefgh"), composed(p, "abc", "defgh")} {
		r := b.ReadOnly()
		wantPanic(t, "SetUint8At", buffer.ErrReadOnly, func() { r.SetUint8At(1, 'x') })
		wantPanic(t, "SetUint32At", buffer.ErrReadOnly, func() { r.SetUint32At(1, 1) })
		s := r.Slice(0, 8)
		wantPanic(t, "of a slice", buffer.ErrReadOnly, func() { s.SetUint8At(1, 'x') })
		r.WriteString("ij")
		b.SetUint8At(0, 'A')
		if got := content(t, b); got != "Abcdefgh" {
			t.Errorf("got %q", got)
		}
		if got := content(t, r); len(got) != 10 || got[1:] != "bcdefghij" {
			t.Errorf("got %q", got)
		}
		s.Release()
		r.Release()
		b.Release()
	}
}

// Two that end where their memory does are not joined, nor is a pointer formed to what
// lies behind it.
func TestJoinAtTheEndOfMemory(t *testing.T) {
	m := buffer.FromString("0123456789abcdef")
	if m.Cap() != 16 {
		t.Fatalf("got capacity %d, want 16", m.Cap())
	}
	a, b, none := m.Slice(8, 8), m.Slice(0, 16), m.Slice(16, 0)
	if a.Join(b) || b.Join(a) {
		t.Error("joined")
	}
	if a.Join(none) {
		none = m.Slice(16, 0)
	}
	if got := content(t, a); got != "89abcdef" {
		t.Errorf("got %q", got)
	}
	for _, x := range []*buffer.Buf{m, a, b, none} {
		x.Release()
	}
}

// What is read-only stays so beside memory that is not.
func TestReadOnlyIsNotJoined(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{})
	m := p.Alloc(8)
	m.WriteString("abcdefgh")
	head := m.ReadSlice(4)
	ro := m.ReadOnly()
	if head.Join(ro) || ro.Join(head) {
		t.Error("joined")
	}
	b := buffer.Compose(head, ro)
	wantPanic(t, "SetUint8At", buffer.ErrReadOnly, func() { b.SetUint8At(4, 'x') })
	wantPanic(t, "SetUint16At", buffer.ErrReadOnly, func() { b.SetUint16At(3, 1) })
	b.SetUint8At(3, 'D')
	if got := content(t, b); got != "abcDefgh" {
		t.Errorf("got %q", got)
	}
	b.Release()
	m.Release()
}

func TestDiscardReadParts(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{})
	b := composed(p, "abc", "def", "ghi")
	defer b.Release()
	b.Skip(5)
	b.DiscardReadParts()
	if b.Parts() != 2 || b.ReaderIndex() != 5 || b.Uint8At(3) != 'd' {
		t.Errorf("got %d parts, reader at %d", b.Parts(), b.ReaderIndex())
	}
	wantPanic(t, "Uint8At of a discarded byte", buffer.ErrShort, func() { b.Uint8At(2) })
	wantPanic(t, "Unread of one", buffer.ErrShort, func() { b.Unread(3) })
	b.Unread(2)
	if err := b.UnreadByte(); !errors.Is(err, buffer.ErrShort) {
		t.Errorf("UnreadByte of one: got %v, want ErrShort", err)
	}
	b.Skip(2)
	wantPanic(t, "Slice of one", buffer.ErrShort, func() { b.Slice(2, 1) })
	wantPanic(t, "Insert in front of one", buffer.ErrShort, func() { b.Insert(2, buffer.FromString("x")) })
	b.DiscardRead()
	if b.ReaderIndex() != 0 || b.Len() != 4 || b.Uint8At(0) != 'f' {
		t.Errorf("got reader at %d, %d bytes", b.ReaderIndex(), b.Len())
	}
	b.Skip(4)
	b.DiscardRead()
	b.Append(composed(p, "jk"))
	if got := content(t, b); got != "jk" {
		t.Errorf("got %q", got)
	}
	b.Clear()
	b.WriteString("lm")
	if got := content(t, b); got != "lm" {
		t.Errorf("got %q", got)
	}
}

// What fails changes nothing, and what it was given is released all the same.
func TestComposeMisuse(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{})
	b := composed(p, "abc", "def")
	for _, i := range []int{-1, 7} {
		wantPanic(t, "Insert", buffer.ErrShort, func() { b.Insert(i, composed(p, "x")) })
	}
	var misuse *buffer.MisuseError
	if err := panicOf(func() { b.Append(b) }); !errors.As(err, &misuse) {
		t.Errorf("appended to itself: got %v, want a MisuseError", err)
	}
	if invariant.Enabled {
		mine := composed(p, "a")
		taken := p.Alloc(1)
		taken.WriteUint8('b')
		mine.Append(taken)
		wantPanic(t, "a write to a part", buffer.ErrReleased, func() { taken.WriteUint8('c') })
		wantPanic(t, "the release of a part", buffer.ErrReleased, func() { taken.Release() })
		mine.Release()
	}
	gone := p.Alloc(1)
	gone.Release()
	wantPanic(t, "Compose", buffer.ErrReleased, func() { buffer.Compose(composed(p, "a"), gone, composed(p, "b")) })
	wantPanic(t, "Append", buffer.ErrReleased, func() { b.Append(gone) })
	if got := content(t, b); got != "abcdef" {
		t.Errorf("got %q", got)
	}
	b.Release()
	wantPanic(t, "Append to a released one", buffer.ErrReleased, func() { b.Append(composed(p, "x")) })
	wantPanic(t, "ReadUint8", buffer.ErrReleased, func() { b.ReadUint8() })
	wantPanic(t, "Slice", buffer.ErrReleased, func() { b.Slice(0, 0) })
	if got := p.Live(); got != 0 {
		t.Errorf("got %d live, want 0", got)
	}
}

// What there is no memory for fails, and changes nothing.
func TestCompositeOutOfMemory(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{Limit: 1 << 20, Cache: 1})
	b := composed(p, "abc", "def", "ghi", "jkl")
	b.Skip(4)
	b.DiscardReadParts()
	var all []*buffer.Buf
	for n := 256 << 10; n > 0; n /= 2 {
		for {
			x, err := p.TryAlloc(n)
			if err != nil {
				break
			}
			all = append(all, x)
		}
	}
	for what, f := range map[string]func(){
		"Consolidate":    b.Consolidate,
		"Peek":           func() { b.Peek(4) },
		"Copy":           func() { b.Copy() },
		"WriteUint64":    func() { b.WriteString("fills what room is left"); b.WriteUint64(1) },
		"EnsureWritable": func() { b.EnsureWritable(1000) },
	} {
		live := p.Live()
		wantPanic(t, what, buffer.ErrOutOfMemory, f)
		if got := inPlace(b); got != "efghijkl" || b.ReaderIndex() != 4 || b.Parts() != 3 || p.Live() != live {
			t.Errorf("%s: got %q from %d in %d parts, %d live, want %d", what, got, b.ReaderIndex(), b.Parts(), p.Live(), live)
		}
	}
	for _, x := range all {
		x.Release()
	}
	b.Consolidate()
	if got := content(t, b); got != "efghijkl" || b.ReaderIndex() != 0 {
		t.Errorf("got %q from %d", got, b.ReaderIndex())
	}
	b.Release()
}

// Steps of an iovec array cover all parts.
func TestIovecsOfComposite(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{})
	b := buffer.Compose()
	defer b.Release()
	for i := range 3000 {
		o := p.Alloc(2)
		o.WriteUint16(uint16(i))
		b.Append(o)
	}
	b.Skip(1)
	n := 0
	for b.Len() > 0 {
		v := b.AppendIovecs(nil, 1024)
		step := 0
		for _, x := range v {
			step += int(x.Len)
		}
		b.Skip(step)
		b.DiscardReadParts()
		n++
	}
	if n != 3 {
		t.Errorf("got %d steps, want 3", n)
	}
	if got := p.Live(); got != 1 {
		t.Errorf("got %d live parts at the end, want 1, the one with room left", got)
	}
}

// Duplicates of a composite are used on a goroutine each, whatever they are used for.
func TestDuplicatesOnGoroutines(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{})
	b := composed(p, "abc", "defgh", "i", "jklmnop", "qrs")
	b.WriteString("tuvwxyz")
	const want = "abcdefghijklmnopqrstuvwxyz"
	uses := []func(d *buffer.Buf){
		func(d *buffer.Buf) { d.Peek(20) },
		func(d *buffer.Buf) { d.Consolidate() },
		func(d *buffer.Buf) { d.Append(d.Split(7)) },
		func(d *buffer.Buf) { d.Prepend(d.ReadSlice(9)) },
		func(d *buffer.Buf) { s := d.ReadSlice(13); d.DiscardRead(); d.Insert(0, s) },
		func(d *buffer.Buf) { d.WriteString("z"); d.Truncate(d.WriterIndex() - 1) },
		func(d *buffer.Buf) { d.Uint64At(3); d.ReadUint64(); d.Unread(8) },
		func(d *buffer.Buf) { d.ReadOnly().Release(); d.Copy().Release() },
	}
	var done sync.WaitGroup
	for _, use := range uses {
		d := b.Duplicate()
		done.Add(1)
		go func() {
			defer done.Done()
			for range 50 {
				e := d.Duplicate()
				use(e)
				if got := inPlace(e); got != want {
					t.Errorf("got %q", got)
				}
				e.Release()
			}
			d.Release()
		}()
	}
	b.Release()
	done.Wait()
}

func TestCompositeAllocatesNothing(t *testing.T) {
	usualLevel(t)
	if invariant.Enabled || runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Skip("see TestAllocations")
	}
	c := boundCache(t, buffer.PoolConfig{})
	run := func() {
		b := c.Alloc(16)
		b.WriteString("head")
		o := c.Alloc(16)
		o.WriteString("body")
		b.Append(o)
		s := b.ReadSlice(6)
		b.ReadUint16()
		s.Release()
		b.Release()
	}
	run()
	if got := testing.AllocsPerRun(100, run); got > 0 {
		t.Errorf("got %v allocations, want 0", got)
	}
}

// A composite as a queue: what comes is added at the end, what was read is given back.
func TestQueueOfParts(t *testing.T) {
	b := buffer.Compose()
	defer b.Release()
	for i := range 1000 {
		b.Append(buffer.FromString("abcd"))
		if i < 3 {
			continue
		}
		if got := b.ReadString(4); got != "abcd" {
			t.Fatalf("round %d: got %q, want abcd", i, got)
		}
		b.DiscardReadParts()
		one := buffer.FromString("abcd")
		if want := 3*one.Pinned() + buffer.HandleSize; b.Parts() != 3 || b.Pinned() < want {
			t.Fatalf("round %d: got %d parts that pin %d, want 3 and %d or more", i, b.Parts(), b.Pinned(), want)
		}
		one.Release()
	}
}
