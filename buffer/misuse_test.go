package buffer_test

import (
	"errors"
	"io"
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
		"Release":           func(b *buffer.Buf) { b.Release() },
		"Retain":            func(b *buffer.Buf) { b.Retain() },
		"ReadUint8":         func(b *buffer.Buf) { b.ReadUint8() },
		"ReadUint16":        func(b *buffer.Buf) { b.ReadUint16() },
		"ReadUint32":        func(b *buffer.Buf) { b.ReadUint32() },
		"ReadUint64":        func(b *buffer.Buf) { b.ReadUint64() },
		"TryReadUint32":     func(b *buffer.Buf) { b.TryReadUint32() },
		"TryReadString":     func(b *buffer.Buf) { b.TryReadString(1) },
		"TryReadBytes":      func(b *buffer.Buf) { b.TryReadBytes(make([]byte, 1)) },
		"TryReadSlice":      func(b *buffer.Buf) { b.TryReadSlice(1) },
		"ReadBytes":         func(b *buffer.Buf) { b.ReadBytes(make([]byte, 1)) },
		"ReadString":        func(b *buffer.Buf) { b.ReadString(1) },
		"ReadSlice":         func(b *buffer.Buf) { b.ReadSlice(0) },
		"Peek":              func(b *buffer.Buf) { b.Peek(1) },
		"Next":              func(b *buffer.Buf) { b.Next(1) },
		"Skip":              func(b *buffer.Buf) { b.Skip(1) },
		"WriteUint8":        func(b *buffer.Buf) { b.WriteUint8(1) },
		"WriteUint16":       func(b *buffer.Buf) { b.WriteUint16(1) },
		"WriteUint32":       func(b *buffer.Buf) { b.WriteUint32(1) },
		"WriteUint64":       func(b *buffer.Buf) { b.WriteUint64(1) },
		"Write":             func(b *buffer.Buf) { b.Write([]byte("x")) },
		"WriteString":       func(b *buffer.Buf) { b.WriteString("x") },
		"WriteBuf":          func(b *buffer.Buf) { b.WriteBuf(b) },
		"EnsureWritable":    func(b *buffer.Buf) { b.EnsureWritable(1) },
		"Writable":          func(b *buffer.Buf) { b.Writable() },
		"Commit":            func(b *buffer.Buf) { b.Commit(0) },
		"FillFrom":          func(b *buffer.Buf) { b.FillFrom(0, 1) },
		"Lend":              func(b *buffer.Buf) { b.Lend(nil, 0, 1) },
		"Filled":            func(b *buffer.Buf) { b.Filled(nil, 0) },
		"Uint8At":           func(b *buffer.Buf) { b.Uint8At(0) },
		"Uint32At":          func(b *buffer.Buf) { b.Uint32At(0) },
		"SetUint32At":       func(b *buffer.Buf) { b.SetUint32At(0, 1) },
		"ReadBool":          func(b *buffer.Buf) { b.ReadBool() },
		"TryReadBool":       func(b *buffer.Buf) { b.TryReadBool() },
		"WriteBool":         func(b *buffer.Buf) { b.WriteBool(true) },
		"BoolAt":            func(b *buffer.Buf) { b.BoolAt(0) },
		"SetBoolAt":         func(b *buffer.Buf) { b.SetBoolAt(0, true) },
		"ReadInt8":          func(b *buffer.Buf) { b.ReadInt8() },
		"TryReadInt8":       func(b *buffer.Buf) { b.TryReadInt8() },
		"WriteInt8":         func(b *buffer.Buf) { b.WriteInt8(1) },
		"Int8At":            func(b *buffer.Buf) { b.Int8At(0) },
		"SetInt8At":         func(b *buffer.Buf) { b.SetInt8At(0, 1) },
		"ReadUint24":        func(b *buffer.Buf) { b.ReadUint24() },
		"TryReadUint24":     func(b *buffer.Buf) { b.TryReadUint24() },
		"WriteUint24":       func(b *buffer.Buf) { b.WriteUint24(1) },
		"Uint24At":          func(b *buffer.Buf) { b.Uint24At(0) },
		"SetUint24At":       func(b *buffer.Buf) { b.SetUint24At(0, 1) },
		"ReadUint24LE":      func(b *buffer.Buf) { b.ReadUint24LE() },
		"TryReadUint24LE":   func(b *buffer.Buf) { b.TryReadUint24LE() },
		"WriteUint24LE":     func(b *buffer.Buf) { b.WriteUint24LE(1) },
		"Uint24AtLE":        func(b *buffer.Buf) { b.Uint24AtLE(0) },
		"SetUint24AtLE":     func(b *buffer.Buf) { b.SetUint24AtLE(0, 1) },
		"ReadInt16":         func(b *buffer.Buf) { b.ReadInt16() },
		"TryReadInt16":      func(b *buffer.Buf) { b.TryReadInt16() },
		"WriteInt16":        func(b *buffer.Buf) { b.WriteInt16(1) },
		"Int16At":           func(b *buffer.Buf) { b.Int16At(0) },
		"SetInt16At":        func(b *buffer.Buf) { b.SetInt16At(0, 1) },
		"ReadInt16LE":       func(b *buffer.Buf) { b.ReadInt16LE() },
		"TryReadInt16LE":    func(b *buffer.Buf) { b.TryReadInt16LE() },
		"WriteInt16LE":      func(b *buffer.Buf) { b.WriteInt16LE(1) },
		"Int16AtLE":         func(b *buffer.Buf) { b.Int16AtLE(0) },
		"SetInt16AtLE":      func(b *buffer.Buf) { b.SetInt16AtLE(0, 1) },
		"ReadInt24":         func(b *buffer.Buf) { b.ReadInt24() },
		"TryReadInt24":      func(b *buffer.Buf) { b.TryReadInt24() },
		"WriteInt24":        func(b *buffer.Buf) { b.WriteInt24(1) },
		"Int24At":           func(b *buffer.Buf) { b.Int24At(0) },
		"SetInt24At":        func(b *buffer.Buf) { b.SetInt24At(0, 1) },
		"ReadInt24LE":       func(b *buffer.Buf) { b.ReadInt24LE() },
		"TryReadInt24LE":    func(b *buffer.Buf) { b.TryReadInt24LE() },
		"WriteInt24LE":      func(b *buffer.Buf) { b.WriteInt24LE(1) },
		"Int24AtLE":         func(b *buffer.Buf) { b.Int24AtLE(0) },
		"SetInt24AtLE":      func(b *buffer.Buf) { b.SetInt24AtLE(0, 1) },
		"ReadInt32":         func(b *buffer.Buf) { b.ReadInt32() },
		"TryReadInt32":      func(b *buffer.Buf) { b.TryReadInt32() },
		"WriteInt32":        func(b *buffer.Buf) { b.WriteInt32(1) },
		"Int32At":           func(b *buffer.Buf) { b.Int32At(0) },
		"SetInt32At":        func(b *buffer.Buf) { b.SetInt32At(0, 1) },
		"ReadInt32LE":       func(b *buffer.Buf) { b.ReadInt32LE() },
		"TryReadInt32LE":    func(b *buffer.Buf) { b.TryReadInt32LE() },
		"WriteInt32LE":      func(b *buffer.Buf) { b.WriteInt32LE(1) },
		"Int32AtLE":         func(b *buffer.Buf) { b.Int32AtLE(0) },
		"SetInt32AtLE":      func(b *buffer.Buf) { b.SetInt32AtLE(0, 1) },
		"ReadInt64":         func(b *buffer.Buf) { b.ReadInt64() },
		"TryReadInt64":      func(b *buffer.Buf) { b.TryReadInt64() },
		"WriteInt64":        func(b *buffer.Buf) { b.WriteInt64(1) },
		"Int64At":           func(b *buffer.Buf) { b.Int64At(0) },
		"SetInt64At":        func(b *buffer.Buf) { b.SetInt64At(0, 1) },
		"ReadInt64LE":       func(b *buffer.Buf) { b.ReadInt64LE() },
		"TryReadInt64LE":    func(b *buffer.Buf) { b.TryReadInt64LE() },
		"WriteInt64LE":      func(b *buffer.Buf) { b.WriteInt64LE(1) },
		"Int64AtLE":         func(b *buffer.Buf) { b.Int64AtLE(0) },
		"SetInt64AtLE":      func(b *buffer.Buf) { b.SetInt64AtLE(0, 1) },
		"ReadFloat32":       func(b *buffer.Buf) { b.ReadFloat32() },
		"TryReadFloat32":    func(b *buffer.Buf) { b.TryReadFloat32() },
		"WriteFloat32":      func(b *buffer.Buf) { b.WriteFloat32(1) },
		"Float32At":         func(b *buffer.Buf) { b.Float32At(0) },
		"SetFloat32At":      func(b *buffer.Buf) { b.SetFloat32At(0, 1) },
		"ReadFloat32LE":     func(b *buffer.Buf) { b.ReadFloat32LE() },
		"TryReadFloat32LE":  func(b *buffer.Buf) { b.TryReadFloat32LE() },
		"WriteFloat32LE":    func(b *buffer.Buf) { b.WriteFloat32LE(1) },
		"Float32AtLE":       func(b *buffer.Buf) { b.Float32AtLE(0) },
		"SetFloat32AtLE":    func(b *buffer.Buf) { b.SetFloat32AtLE(0, 1) },
		"ReadFloat64":       func(b *buffer.Buf) { b.ReadFloat64() },
		"TryReadFloat64":    func(b *buffer.Buf) { b.TryReadFloat64() },
		"WriteFloat64":      func(b *buffer.Buf) { b.WriteFloat64(1) },
		"Float64At":         func(b *buffer.Buf) { b.Float64At(0) },
		"SetFloat64At":      func(b *buffer.Buf) { b.SetFloat64At(0, 1) },
		"ReadFloat64LE":     func(b *buffer.Buf) { b.ReadFloat64LE() },
		"TryReadFloat64LE":  func(b *buffer.Buf) { b.TryReadFloat64LE() },
		"WriteFloat64LE":    func(b *buffer.Buf) { b.WriteFloat64LE(1) },
		"Float64AtLE":       func(b *buffer.Buf) { b.Float64AtLE(0) },
		"SetFloat64AtLE":    func(b *buffer.Buf) { b.SetFloat64AtLE(0, 1) },
		"BytesAt":           func(b *buffer.Buf) { b.BytesAt(0, nil) },
		"StringAt":          func(b *buffer.Buf) { _ = b.StringAt(0, 0) },
		"SetBytesAt":        func(b *buffer.Buf) { b.SetBytesAt(0, nil) },
		"SetStringAt":       func(b *buffer.Buf) { b.SetStringAt(0, "") },
		"WriteRange":        func(b *buffer.Buf) { b.WriteRange(b, 0, 0) },
		"WriteZeros":        func(b *buffer.Buf) { b.WriteZeros(0) },
		"Reserve":           func(b *buffer.Buf) { b.Reserve(0) },
		"SetReaderIndex":    func(b *buffer.Buf) { b.SetReaderIndex(0) },
		"Truncate":          func(b *buffer.Buf) { b.Truncate(0) },
		"ReadUvarint":       func(b *buffer.Buf) { b.ReadUvarint() },
		"ReadUvarint32":     func(b *buffer.Buf) { b.ReadUvarint32() },
		"ReadVarint":        func(b *buffer.Buf) { b.ReadVarint() },
		"TryReadUvarint":    func(b *buffer.Buf) { _, _, _ = b.TryReadUvarint() },
		"TryReadUvarint32":  func(b *buffer.Buf) { _, _, _ = b.TryReadUvarint32() },
		"TryReadVarint":     func(b *buffer.Buf) { _, _, _ = b.TryReadVarint() },
		"WriteUvarint":      func(b *buffer.Buf) { b.WriteUvarint(1) },
		"WriteVarint":       func(b *buffer.Buf) { b.WriteVarint(1) },
		"ReadQUICVarint":    func(b *buffer.Buf) { b.ReadQUICVarint() },
		"TryReadQUICVarint": func(b *buffer.Buf) { b.TryReadQUICVarint() },
		"WriteQUICVarint":   func(b *buffer.Buf) { b.WriteQUICVarint(1) },
		"Read":              func(b *buffer.Buf) { _, _ = b.Read(nil) },
		"ReadByte":          func(b *buffer.Buf) { _, _ = b.ReadByte() },
		"UnreadByte":        func(b *buffer.Buf) { _ = b.UnreadByte() },
		"WriteTo":           func(b *buffer.Buf) { _, _ = b.WriteTo(io.Discard) },
		"ReadFrom":          func(b *buffer.Buf) { _, _ = b.ReadFrom(strings.NewReader("")) },
		"Slice":             func(b *buffer.Buf) { b.Slice(0, 0) },
		"Duplicate":         func(b *buffer.Buf) { b.Duplicate() },
		"Copy":              func(b *buffer.Buf) { b.Copy() },
		"Clear":             func(b *buffer.Buf) { b.Clear() },
		"DiscardRead":       func(b *buffer.Buf) { b.DiscardRead() },
		"IndexByte":         func(b *buffer.Buf) { b.IndexByte('0', 0) },
		"LastIndexByte":     func(b *buffer.Buf) { b.LastIndexByte('0', 99) },
		"IndexAny":          func(b *buffer.Buf) { b.IndexAny(buffer.ByteSet{}, 0) },
		"LastIndexAny":      func(b *buffer.Buf) { b.LastIndexAny(buffer.ByteSet{}, 99) },
		"Index":             func(b *buffer.Buf) { b.Index(nil, 0) },
		"LastIndex":         func(b *buffer.Buf) { b.LastIndex(nil, 99) },
		"IndexFunc":         func(b *buffer.Buf) { b.IndexFunc(always, 0) },
		"LastIndexFunc":     func(b *buffer.Buf) { b.LastIndexFunc(always, 99) },
		"EqualBytes":        func(b *buffer.Buf) { b.EqualBytes(nil) },
		"HasPrefix":         func(b *buffer.Buf) { b.HasPrefix([]byte("0123")) },
		"HasSuffix":         func(b *buffer.Buf) { b.HasSuffix(nil) },
		"Hash":              func(b *buffer.Buf) { b.Hash() },
		"Equal":             func(b *buffer.Buf) { b.Equal(none) },
		"Equal of it":       func(b *buffer.Buf) { none.Equal(b) },
		"Compare":           func(b *buffer.Buf) { b.Compare(none) },
		"Compare of it":     func(b *buffer.Buf) { none.Compare(b) },
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

				b = composed(a, "0123", "4567", "89abcdef")
				b.ReadUint8()
				b.Release()
				wantPanic(t, what+" of a composite", buffer.ErrReleased, func() { use(b) })
			})
		}
	}
}

// With assertions on, and at level all, a handle is never used again, and the panic
// tells where it was allocated and released.
func TestMisuseIsFoundForGood(t *testing.T) {
	if !invariant.Enabled {
		setLevel(t, buffer.LeakAll)
	}
	for name, a := range allocators(t) {
		t.Run(name, func(t *testing.T) {
			b := allocateHere(a)
			p, apart := b.Writable(), buffer.Apart(b)
			releaseHere(b)
			for range 100 {
				o := a.Alloc(64)
				if o == b {
					t.Fatal("a handle was handed out again")
				}
				o.Release()
			}
			if !apart && p[0] != 0xdb {
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
