package buffer_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/sys"
)

// Every index, by the fast path and by the slow one.
func TestIndices(t *testing.T) {
	p := make([]byte, 40)
	for i := range p {
		p[i] = byte(i*37 + 1)
	}
	b := buffer.FromBytes(p)
	defer b.Release()
	for range 2 { // the first access brings the fast path up to date
		for i := range p {
			tail := append(bytes.Clone(p[i:]), make([]byte, 8)...)
			if got := b.Uint8At(i); got != p[i] {
				t.Errorf("Uint8At(%d): got %x, want %x", i, got, p[i])
			}
			if i+2 <= len(p) {
				if got, want := b.Uint16At(i), binary.BigEndian.Uint16(tail); got != want {
					t.Errorf("Uint16At(%d): got %x, want %x", i, got, want)
				}
				if got, want := b.Uint16AtLE(i), binary.LittleEndian.Uint16(tail); got != want {
					t.Errorf("Uint16AtLE(%d): got %x, want %x", i, got, want)
				}
			}
			if i+4 <= len(p) {
				if got, want := b.Uint32At(i), binary.BigEndian.Uint32(tail); got != want {
					t.Errorf("Uint32At(%d): got %x, want %x", i, got, want)
				}
				if got, want := b.Uint32AtLE(i), binary.LittleEndian.Uint32(tail); got != want {
					t.Errorf("Uint32AtLE(%d): got %x, want %x", i, got, want)
				}
			}
			if i+8 <= len(p) {
				if got, want := b.Uint64At(i), binary.BigEndian.Uint64(tail); got != want {
					t.Errorf("Uint64At(%d): got %x, want %x", i, got, want)
				}
				if got, want := b.Uint64AtLE(i), binary.LittleEndian.Uint64(tail); got != want {
					t.Errorf("Uint64AtLE(%d): got %x, want %x", i, got, want)
				}
			}
		}
	}
}

func TestTryReads(t *testing.T) {
	b := buffer.FromString("abcdef")
	defer b.Release()
	if s, ok := b.TryReadString(7); ok || s != "" {
		t.Errorf("TryReadString(7): got %q, %v", s, ok)
	}
	if s, ok := b.TryReadString(2); !ok || s != "ab" {
		t.Errorf("TryReadString(2): got %q, %v", s, ok)
	}
	if _, ok := b.TryReadString(-1); ok {
		t.Error("TryReadString(-1): got true")
	}
	p := make([]byte, 5)
	if b.TryReadBytes(p) {
		t.Error("TryReadBytes of 5 with 4 left: got true")
	}
	if !b.TryReadBytes(p[:2]) || string(p[:2]) != "cd" {
		t.Errorf("TryReadBytes: got %q", p[:2])
	}
	if s, ok := b.TryReadSlice(3); ok || s != nil {
		t.Errorf("TryReadSlice(3): got %v, %v", s, ok)
	}
	s, ok := b.TryReadSlice(2)
	if !ok || string(s.Window()) != "ef" {
		t.Fatalf("TryReadSlice(2): got %v", ok)
	}
	s.Release()
	for _, n := range []int{-1, 1} {
		wantPanic(t, fmt.Sprint("Skip ", n), buffer.ErrShort, func() { b.Skip(n) })
		wantPanic(t, fmt.Sprint("Next ", n), buffer.ErrShort, func() { b.Next(n) })
		wantPanic(t, fmt.Sprint("Peek ", n), buffer.ErrShort, func() { b.Peek(n) })
		wantPanic(t, fmt.Sprint("ReadString ", n), buffer.ErrShort, func() { b.ReadString(n) })
		wantPanic(t, fmt.Sprint("ReadSlice ", n), buffer.ErrShort, func() { b.ReadSlice(n) })
		wantPanic(t, fmt.Sprint("Slice ", n), buffer.ErrShort, func() { b.Slice(6, n) })
	}
	wantPanic(t, "EnsureWritable -1", buffer.ErrShort, func() { b.EnsureWritable(-1) })
	wantPanic(t, "Slice from the last", buffer.ErrShort, func() { b.Slice(math.MaxInt, 1) })
}

func TestUnread(t *testing.T) {
	b := buffer.FromString("abcdef")
	b.Skip(4)
	b.Unread(3)
	if got := string(b.Window()); got != "bcdef" {
		t.Errorf("got %q, want bcdef", got)
	}
	wantPanic(t, "Unread 2 of 1", buffer.ErrShort, func() { b.Unread(2) })
	wantPanic(t, "Unread -1", buffer.ErrShort, func() { b.Unread(-1) })
	b.Unread(1)
	if got := b.ReadUint32(); got != 0x61626364 {
		t.Errorf("got %x, want 61626364", got)
	}
	b.DiscardRead()
	wantPanic(t, "Unread after DiscardRead", buffer.ErrShort, func() { b.Unread(1) })
	b.Release()
	wantPanic(t, "Unread after Release", buffer.ErrReleased, func() { b.Unread(1) })
}

// What Peek, Next and Window return cannot be appended to into bytes of the Buf.
func TestWindowsEndWhereTheyEnd(t *testing.T) {
	b := buffer.FromString("abcdef")
	defer b.Release()
	for _, p := range [][]byte{b.Peek(2), b.Next(2), b.Window()} {
		if len(p) != cap(p) {
			t.Errorf("got capacity %d, want %d", cap(p), len(p))
		}
	}
}

func TestSlicesShareMemory(t *testing.T) {
	for name, a := range allocators(t) {
		t.Run(name, func(t *testing.T) {
			b := a.Alloc(64)
			b.WriteString("0123456789")
			s := b.Slice(2, 4)
			d := b.Duplicate()
			if !s.SharesMemory(b) || !d.SharesMemory(s) {
				t.Error("a slice does not share memory with what it was cut from")
			}
			if b.Exclusive() || s.Exclusive() {
				t.Error("shared memory is said to be exclusive")
			}
			b.SetUint16At(2, 0x4142)
			if got, want := string(s.Window()), "AB45"; got != want {
				t.Errorf("slice after a change of the parent: got %q, want %q", got, want)
			}
			s.SetUint8At(3, 'Z')
			if got, want := string(d.Window()), "01AB4Z6789"; got != want {
				t.Errorf("duplicate after a change of a slice: got %q, want %q", got, want)
			}
			if s.Pinned() != b.Pinned() {
				t.Errorf("slice pins %d, the whole %d", s.Pinned(), b.Pinned())
			}

			// Appending to any of them does not show in the others.
			s.WriteString("--------")
			d.WriteString("++++")
			b.WriteString("****")
			if got, want := string(s.Window()), "AB4Z--------"; got != want {
				t.Errorf("slice: got %q, want %q", got, want)
			}
			if got, want := string(d.Window()), "01AB4Z6789++++"; got != want {
				t.Errorf("duplicate: got %q, want %q", got, want)
			}
			if got, want := string(b.Window()), "01AB4Z6789****"; got != want {
				t.Errorf("parent: got %q, want %q", got, want)
			}
			for _, x := range []*buffer.Buf{b, s, d} {
				if !x.Exclusive() {
					t.Error("not exclusive after all have moved apart")
				}
				x.Release()
			}
		})
	}
}

// Slices that lie side by side can be put together again, and nothing else can.
func TestJoin(t *testing.T) {
	for name, a := range allocators(t) {
		t.Run(name, func(t *testing.T) {
			before := buffer.Live()
			b := a.Alloc(100)
			b.WriteString("abcdefgh")
			other := a.Alloc(8)
			other.WriteString("cd")
			ab, cd, ef := b.ReadSlice(2), b.ReadSlice(2), b.ReadSlice(2)
			tests := []struct {
				name string
				b, o *buffer.Buf
			}{
				{"a gap", ab, ef},
				{"the wrong order", cd, ab},
				{"itself", ab, ab},
				{"other memory", ab, other},
				{"memory that is not shared", other, cd},
			}
			for _, tt := range tests {
				if tt.b.Join(tt.o) || tt.b.Len() != 2 || tt.o.Refs() != 1 {
					t.Errorf("%s: joined, or changed", tt.name)
				}
			}
			ab.Retain()
			if ab.Join(cd) {
				t.Error("joined to a Buf that somebody else holds")
			}
			ab.Release()

			cd.ReadUint8()
			if ab.Join(cd) {
				t.Error("joined over a byte that has been read")
			}
			cd.Unread(1)
			ab.ReadUint8()
			if !ab.Join(cd) || !ab.Join(ef) || !ab.Join(b) {
				t.Fatal("not joined")
			}
			if got, want := string(ab.Window()), "bcdefgh"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			ab.WriteString("ijk") // in memory of its own or not
			if got, want := ab.ReadString(ab.Len()), "bcdefghijk"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			ab.Release()
			other.Release()
			if got := buffer.Live() - before; got != 0 {
				t.Errorf("got %d live, want 0", got)
			}
		})
	}
}

// The parent may go first; the memory stays until the last slice goes.
func TestSliceOutlivesParent(t *testing.T) {
	for name, a := range allocators(t) {
		t.Run(name, func(t *testing.T) {
			before := buffer.Live()
			b := a.Alloc(100)
			b.WriteString("hello, world")
			s := b.ReadSlice(5)
			s2 := s.Slice(1, 3)
			if got := buffer.Live() - before; got != 3 {
				t.Errorf("got %d live, want 3", got)
			}
			if !b.Release() {
				t.Error("Release of the only reference: got false")
			}
			s.Release()
			if got := buffer.Live() - before; got != 1 {
				t.Errorf("got %d live, want 1", got)
			}
			other := a.Alloc(100) // would get the memory, were it free
			other.WriteString("############")
			if got := string(s2.Window()); got != "ell" {
				t.Errorf("got %q, want %q", got, "ell")
			}
			other.Release()
			// The last one has all of the memory again.
			if !s2.Exclusive() {
				t.Error("the last slice is not exclusive")
			}
			s2.EnsureWritable(90)
			s2.WriteString("!")
			if got := string(s2.Window()); got != "ell!" {
				t.Errorf("got %q, want %q", got, "ell!")
			}
			s2.Release()
			if got := buffer.Live() - before; got != 0 {
				t.Errorf("got %d live, want 0", got)
			}
		})
	}
}

func TestClearAndDiscardKeepOff(t *testing.T) {
	c := boundCache(t, buffer.PoolConfig{})
	b := c.Alloc(64)
	b.WriteString("frame one|frame two|rest")
	s := b.ReadSlice(9)
	b.Skip(1)
	b.DiscardRead()
	if b.ReaderIndex() != 0 || string(b.Window()) != "frame two|rest" {
		t.Errorf("after DiscardRead: got %q at %d", b.Window(), b.ReaderIndex())
	}
	b.Clear()
	b.WriteString("overwritten?")
	if got := string(s.Window()); got != "frame one" {
		t.Errorf("slice: got %q, want %q", got, "frame one")
	}
	s.Release()
	b.Clear()
	if b.Cap() != 64 {
		t.Errorf("got capacity %d after the slices are gone, want 64", b.Cap())
	}
	b.Release()
}

func TestDiscardReadCompacts(t *testing.T) {
	b := buffer.Heap.Alloc(16)
	defer b.Release()
	b.WriteString("0123456789abcdef")
	b.Skip(10)
	b.DiscardRead()
	b.WriteString("0123456789")
	if got, want := string(b.Window()), "abcdef0123456789"; got != want || b.Cap() != 16 {
		t.Errorf("got %q in %d, want %q in 16", got, b.Cap(), want)
	}
}

// A prefix that is written first and set later stays where it is while b grows.
func TestGrowthKeepsIndices(t *testing.T) {
	c := boundCache(t, buffer.PoolConfig{})
	b := c.Alloc(16)
	defer b.Release()
	b.WriteString("old")
	b.Skip(3)
	at := b.WriterIndex()
	b.WriteUint32(0)
	for range 1000 {
		b.WriteString("0123456789")
	}
	b.SetUint32At(at, uint32(b.WriterIndex()-at-4))
	if got := b.ReadUint32(); got != 10000 {
		t.Errorf("got length %d, want 10000", got)
	}
	if got := b.Len(); got != 10000 {
		t.Errorf("got %d bytes, want 10000", got)
	}
}

func TestMaxCap(t *testing.T) {
	c := boundCache(t, buffer.PoolConfig{MaxCap: 100}) // 112 is the size class
	if _, err := c.TryAlloc(113); !errors.Is(err, buffer.ErrTooLarge) {
		t.Errorf("TryAlloc beyond MaxCap: got %v, want ErrTooLarge", err)
	}
	wantPanic(t, "Alloc beyond MaxCap", buffer.ErrTooLarge, func() { c.Alloc(113) })
	wantPanic(t, "Alloc of less than nothing", buffer.ErrTooLarge, func() { c.Alloc(-1) })
	wantPanic(t, "Alloc of less than nothing", buffer.ErrTooLarge, func() { buffer.Heap.Alloc(-1) })
	b := c.Alloc(0)
	defer b.Release()
	if b.MaxCap() != 112 {
		t.Errorf("got MaxCap %d, want 112", b.MaxCap())
	}
	b.Write(make([]byte, 111))
	b.WriteUint8(1)
	for what, write := range map[string]func(){
		"WriteUint8":     func() { b.WriteUint8(1) },
		"WriteUint64":    func() { b.WriteUint64(1) },
		"Write":          func() { b.Write(make([]byte, 1)) },
		"WriteString":    func() { b.WriteString("x") },
		"EnsureWritable": func() { b.EnsureWritable(1) },
		"the most":       func() { b.EnsureWritable(math.MaxInt) },
	} {
		wantPanic(t, what, buffer.ErrTooLarge, write)
		if b.WriterIndex() != 112 {
			t.Fatalf("%s: a failed write moved the index to %d", what, b.WriterIndex())
		}
	}
}

// Memory that was used before shows through no door.
func TestNothingUnwrittenIsExposed(t *testing.T) {
	c := boundCache(t, buffer.PoolConfig{})
	b := c.Alloc(64)
	b.Write(bytes.Repeat([]byte{0xee}, 64))
	b.Release()

	b = c.Alloc(64)
	defer b.Release()
	wantPanic(t, "Commit without Writable", buffer.ErrShort, func() { b.Commit(1) })
	b.WriteUint8(1)
	wantPanic(t, "index in the room", buffer.ErrShort, func() { b.Uint8At(1) })
	wantPanic(t, "slice of the room", buffer.ErrShort, func() { b.Slice(0, 2) })
	p := b.Writable()
	if len(p) != 63 || slices.ContainsFunc(p, func(c byte) bool { return c != 0 }) {
		t.Errorf("Writable: got % x, want 63 zeros", p)
	}
	wantPanic(t, "Commit of more", buffer.ErrShort, func() { b.Commit(64) })
	wantPanic(t, "Commit of less than nothing", buffer.ErrShort, func() { b.Commit(-1) })
	copy(p, "ab")
	b.Commit(2)
	b.Commit(1)
	if got, want := string(b.Window()), "\x01ab\x00"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	b.EnsureWritable(100) // other memory: what it holds is not zeroed yet
	wantPanic(t, "Commit after growth", buffer.ErrShort, func() { b.Commit(1) })
}

func TestWriteBuf(t *testing.T) {
	src := buffer.FromString("xabc")
	src.Skip(1)
	dst := buffer.FromString("-")
	dst.WriteBuf(src)
	if got := string(dst.Window()); got != "-abc" || src.Len() != 0 {
		t.Errorf("got %q and %d left, want %q and none", got, src.Len(), "-abc")
	}
	src.Release()
	dst.Release()
}

func TestCopyIsApart(t *testing.T) {
	for name, a := range allocators(t) {
		t.Run(name, func(t *testing.T) {
			b := a.Alloc(8)
			b.WriteString("xabc")
			b.Skip(1)
			c := b.Copy()
			b.SetUint8At(1, 'X')
			if got := string(c.Window()); got != "abc" || c.SharesMemory(b) {
				t.Errorf("got %q, want %q in memory of its own", got, "abc")
			}
			b.Release()
			c.Release()
		})
	}
}

func TestExports(t *testing.T) {
	b := buffer.FromString("xabc")
	defer b.Release()
	b.Skip(1)
	var parts []string
	for p := range b.Segments {
		parts = append(parts, string(p))
	}
	if !slices.Equal(parts, []string{"abc"}) {
		t.Errorf("Segments: got %q, want one of %q", parts, "abc")
	}
	if got := b.AppendIovecs(nil, 0); len(got) != 0 {
		t.Errorf("AppendIovecs of none: got %d", len(got))
	}
	got := b.AppendIovecs(make([]sys.Iovec, 1), 8)
	if want := sys.MakeIovec(b.Window()); len(got) != 2 || got[1] != want {
		t.Errorf("AppendIovecs: got %v, want %v behind another", got, want)
	}
	b.Skip(3)
	if got := b.AppendIovecs(nil, 8); len(got) != 0 {
		t.Errorf("AppendIovecs of nothing: got %d parts, want 0", len(got))
	}
	for range b.Segments {
		t.Error("Segments of nothing yields a part")
	}
}

func TestIndexByte(t *testing.T) {
	b := buffer.FromString("..a.b.a")
	defer b.Release()
	b.Skip(2)
	tests := []struct {
		c    byte
		from int
		want int
	}{
		{'a', 0, 0}, {'a', 1, 4}, {'b', 0, 2}, {'b', 3, -1}, {'x', 0, -1}, {'a', 5, -1}, {'a', 99, -1},
	}
	for _, tt := range tests {
		if got := b.IndexByte(tt.c, tt.from); got != tt.want {
			t.Errorf("IndexByte(%q, %d): got %d, want %d", tt.c, tt.from, got, tt.want)
		}
	}
	wantPanic(t, "IndexByte from -1", buffer.ErrShort, func() { b.IndexByte('a', -1) })
}

func TestRetainAndRelease(t *testing.T) {
	b := buffer.FromString("x")
	if b.Retain() != b || b.Refs() != 2 {
		t.Errorf("got %d references after Retain, want 2", b.Refs())
	}
	if b.Exclusive() {
		t.Error("exclusive with two references")
	}
	if b.Release() {
		t.Error("first Release: got true")
	}
	if !b.Release() {
		t.Error("last Release: got false")
	}
}

// holder is a message of somebody else's that counts references.
type holder struct{ n int }

func (h *holder) Retain()       { h.n++ }
func (h *holder) Release() bool { h.n--; return h.n == 0 }

func TestMessages(t *testing.T) {
	b := buffer.FromString("x")
	r := buffer.NewFileRegion(openTemp(t, "x"), 0, 1)
	h := &holder{1}
	for _, msg := range []any{b, r, h} {
		if buffer.Retain(msg) != msg {
			t.Errorf("Retain of %T does not return it", msg)
		}
		if buffer.Release(msg) {
			t.Errorf("first Release of %T: got true", msg)
		}
		if !buffer.Release(msg) {
			t.Errorf("last Release of %T: got false", msg)
		}
	}
	if buffer.Retain("text") != "text" || buffer.Release("text") || buffer.Release(nil) {
		t.Error("messages without references are not left alone")
	}
}

// allocators are all kinds, with a cache that the calling goroutine owns.
func allocators(t *testing.T) map[string]buffer.Allocator {
	c := boundCache(t, buffer.PoolConfig{})
	return map[string]buffer.Allocator{"cache": c, "pool": newPool(t, buffer.PoolConfig{}), "heap": buffer.Heap}
}

func ExampleBuf() {
	b := buffer.Default().Alloc(64)
	defer b.Release()
	at := b.WriterIndex()
	b.WriteUint16(0) // the length, known later
	b.WriteString("hello")
	b.SetUint16At(at, uint16(b.Len()-2))

	n := int(b.ReadUint16())
	word := b.ReadSlice(n) // a reference of its own
	fmt.Println(n, word.ReadString(word.Len()), b.Len())
	word.Release()
	// Output: 5 hello 0
}
