package buffer_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/invariant"
)

func TestUseAfterRelease(t *testing.T) {
	none := buffer.FromString("")
	defer none.Release()
	uses := map[string]func(b *buffer.Buf){
		"Release":        func(b *buffer.Buf) { b.Release() },
		"Retain":         func(b *buffer.Buf) { b.Retain() },
		"ReadUint8":      func(b *buffer.Buf) { b.ReadUint8() },
		"ReadUint16":     func(b *buffer.Buf) { b.ReadUint16() },
		"ReadUint32":     func(b *buffer.Buf) { b.ReadUint32() },
		"ReadUint64":     func(b *buffer.Buf) { b.ReadUint64() },
		"TryReadUint32":  func(b *buffer.Buf) { b.TryReadUint32() },
		"TryReadString":  func(b *buffer.Buf) { b.TryReadString(1) },
		"TryReadBytes":   func(b *buffer.Buf) { b.TryReadBytes(make([]byte, 1)) },
		"TryReadSlice":   func(b *buffer.Buf) { b.TryReadSlice(1) },
		"ReadBytes":      func(b *buffer.Buf) { b.ReadBytes(make([]byte, 1)) },
		"ReadString":     func(b *buffer.Buf) { b.ReadString(1) },
		"ReadSlice":      func(b *buffer.Buf) { b.ReadSlice(0) },
		"Peek":           func(b *buffer.Buf) { b.Peek(1) },
		"Next":           func(b *buffer.Buf) { b.Next(1) },
		"Skip":           func(b *buffer.Buf) { b.Skip(1) },
		"WriteUint8":     func(b *buffer.Buf) { b.WriteUint8(1) },
		"WriteUint16":    func(b *buffer.Buf) { b.WriteUint16(1) },
		"WriteUint32":    func(b *buffer.Buf) { b.WriteUint32(1) },
		"WriteUint64":    func(b *buffer.Buf) { b.WriteUint64(1) },
		"Write":          func(b *buffer.Buf) { b.Write([]byte("x")) },
		"WriteString":    func(b *buffer.Buf) { b.WriteString("x") },
		"WriteBuf":       func(b *buffer.Buf) { b.WriteBuf(b) },
		"EnsureWritable": func(b *buffer.Buf) { b.EnsureWritable(1) },
		"Writable":       func(b *buffer.Buf) { b.Writable() },
		"Commit":         func(b *buffer.Buf) { b.Commit(0) },
		"FillFrom":       func(b *buffer.Buf) { b.FillFrom(0, 1) },
		"Uint8At":        func(b *buffer.Buf) { b.Uint8At(0) },
		"Uint32At":       func(b *buffer.Buf) { b.Uint32At(0) },
		"SetUint32At":    func(b *buffer.Buf) { b.SetUint32At(0, 1) },
		"Slice":          func(b *buffer.Buf) { b.Slice(0, 0) },
		"Duplicate":      func(b *buffer.Buf) { b.Duplicate() },
		"Copy":           func(b *buffer.Buf) { b.Copy() },
		"Clear":          func(b *buffer.Buf) { b.Clear() },
		"DiscardRead":    func(b *buffer.Buf) { b.DiscardRead() },
		"IndexByte":      func(b *buffer.Buf) { b.IndexByte('0', 0) },
		"LastIndexByte":  func(b *buffer.Buf) { b.LastIndexByte('0', 99) },
		"IndexAny":       func(b *buffer.Buf) { b.IndexAny(buffer.ByteSet{}, 0) },
		"LastIndexAny":   func(b *buffer.Buf) { b.LastIndexAny(buffer.ByteSet{}, 99) },
		"Index":          func(b *buffer.Buf) { b.Index(nil, 0) },
		"LastIndex":      func(b *buffer.Buf) { b.LastIndex(nil, 99) },
		"IndexFunc":      func(b *buffer.Buf) { b.IndexFunc(always, 0) },
		"LastIndexFunc":  func(b *buffer.Buf) { b.LastIndexFunc(always, 99) },
		"EqualBytes":     func(b *buffer.Buf) { b.EqualBytes(nil) },
		"HasPrefix":      func(b *buffer.Buf) { b.HasPrefix([]byte("0123")) },
		"HasSuffix":      func(b *buffer.Buf) { b.HasSuffix(nil) },
		"Hash":           func(b *buffer.Buf) { b.Hash() },
		"Equal":          func(b *buffer.Buf) { b.Equal(none) },
		"Equal of it":    func(b *buffer.Buf) { none.Equal(b) },
		"Compare":        func(b *buffer.Buf) { b.Compare(none) },
		"Compare of it":  func(b *buffer.Buf) { none.Compare(b) },
	}
	for name, a := range allocators(t) {
		for what, use := range uses {
			t.Run(name+"/"+what, func(t *testing.T) {
				b := a.Alloc(64)
				b.WriteString("0123456789abcdef")
				s := b.Slice(0, 8)
				b.Release()
				wantPanic(t, what, buffer.ErrReleased, func() { use(b) })
				s.Release()
				wantPanic(t, what+" of a slice", buffer.ErrReleased, func() { use(s) })

				b = a.Alloc(64)
				b.WriteString("0123456789abcdef")
				b.ReadUint8()
				b.Uint32At(0)
				b.Release()
				wantPanic(t, what, buffer.ErrReleased, func() { use(b) })
			})
		}
	}
}

// With assertions on, a handle is never used again, and the panic tells where it
// was allocated and released.
func TestMisuseIsFoundForGood(t *testing.T) {
	if !invariant.Enabled {
		t.Skip("assertions are off")
	}
	for name, a := range allocators(t) {
		t.Run(name, func(t *testing.T) {
			b := allocateHere(a)
			p := b.Writable()
			releaseHere(b)
			for range 100 {
				o := a.Alloc(64)
				if o == b {
					t.Fatal("a handle was handed out again")
				}
				o.Release()
			}
			if p[0] != 0xdb {
				t.Errorf("released memory holds %#x, want 0xdb", p[0])
			}
			var misuse *buffer.MisuseError
			if err := panicOf(func() { b.ReadUint8() }); !errors.As(err, &misuse) {
				t.Fatalf("got %v, want a MisuseError", err)
			}
			if !strings.Contains(misuse.Born, "allocateHere") || !strings.Contains(misuse.Died, "releaseHere") {
				t.Errorf("got stacks\n%s\nand\n%s\nwant allocateHere and releaseHere in them", misuse.Born, misuse.Died)
			}
			if text := misuse.Error(); !strings.Contains(text, "allocateHere") || !strings.Contains(text, "releaseHere") {
				t.Errorf("the message has no stacks: %s", text)
			}
		})
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	r := buffer.NewFileRegion(f, 0, 1)
	r.Release()
	var misuse *buffer.MisuseError
	if err := panicOf(func() { r.Release() }); !errors.As(err, &misuse) || misuse.Born == "" || misuse.Died == "" {
		t.Errorf("double release of a region: got %v, want both stacks", err)
	}
}

//go:noinline
func allocateHere(a buffer.Allocator) *buffer.Buf { return a.Alloc(64) }

//go:noinline
func releaseHere(b *buffer.Buf) { b.Release() }

func TestErrorText(t *testing.T) {
	tests := []struct {
		err  error
		want string
	}{
		{&buffer.Error{Op: "read", Want: 4, Have: 3, Err: buffer.ErrShort}, "buffer: read: not enough bytes (want 4, have 3)"},
		{&buffer.MisuseError{Op: "Retain", Err: buffer.ErrReleased}, "buffer: Retain: used after its last release"},
	}
	for _, tt := range tests {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}
