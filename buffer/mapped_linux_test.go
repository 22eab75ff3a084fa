package buffer_test

import (
	"errors"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"

	"github.com/runnel-io/runnel/buffer"
)

func mapFile(t *testing.T, f *os.File, off int64, n int) *buffer.Buf {
	t.Helper()
	b, err := buffer.MapFile(f, off, n)
	if err != nil {
		t.Fatalf("MapFile(%d, %d): %v", off, n, err)
	}
	return b
}

// mappings counts the mappings of a file in this process.
func mappings(t *testing.T, name string) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Skipf("cannot see the mappings: %v", err)
	}
	return strings.Count(string(maps), name)
}

func TestMapFile(t *testing.T) {
	page := os.Getpagesize()
	content := strings.Repeat("0123456789abcdef", page/4)
	f := openTemp(t, content)
	for _, r := range [][2]int{
		{0, 0}, {0, 1}, {0, len(content)}, {1, 10}, {page - 1, 2}, {page, page}, {page + 7, page}, {len(content), 0}, {len(content) - 1, 1},
	} {
		b := mapFile(t, f, int64(r[0]), r[1])
		if got, want := string(b.Window()), content[r[0]:r[0]+r[1]]; got != want {
			t.Errorf("%v: got %d bytes %.20q, want %d bytes %.20q", r, len(got), got, len(want), want)
		}
		if !b.Mapped() || b.Exclusive() || b.Pinned() != r[1]+buffer.HandleSize {
			t.Errorf("%v: got mapped %v, exclusive %v, pinned %d", r, b.Mapped(), b.Exclusive(), b.Pinned())
		}
		b.Release()
	}
	for _, r := range [][2]int{{0, len(content) + 1}, {len(content), 1}, {len(content) + page, 0}} {
		if _, err := buffer.MapFile(f, int64(r[0]), r[1]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%v: got %v, want io.ErrUnexpectedEOF", r, err)
		}
	}
	for _, r := range [][2]int{{-1, 1}, {0, -1}} {
		if _, err := buffer.MapFile(f, int64(r[0]), r[1]); !errors.Is(err, os.ErrInvalid) {
			t.Errorf("%v: got %v, want os.ErrInvalid", r, err)
		}
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if _, err := buffer.MapFile(dir, 0, 1); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("a directory: got %v, want os.ErrInvalid", err)
	}
	f.Close()
	if _, err := buffer.MapFile(f, 0, 1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed file: got %v, want os.ErrClosed", err)
	}
}

// The mapping needs no open file, and ends with the last reference of any slice.
func TestMappingEnds(t *testing.T) {
	f := openTemp(t, "0123456789")
	b := mapFile(t, f, 2, 8)
	f.Close()
	if got := mappings(t, f.Name()); got != 1 {
		t.Fatalf("got %d mappings, want 1", got)
	}
	s := b.ReadSlice(4)
	b.Release()
	if got := string(s.Window()); got != "2345" || !s.Mapped() {
		t.Errorf("got %q, mapped %v", got, s.Mapped())
	}
	if got := mappings(t, f.Name()); got != 1 {
		t.Errorf("got %d mappings while a slice is alive, want 1", got)
	}
	s.Release()
	if got := mappings(t, f.Name()); got != 0 {
		t.Errorf("got %d mappings, want 0", got)
	}
}

func TestMappedIsReadOnly(t *testing.T) {
	f := openTemp(t, "0123456789")
	defer f.Close()
	b := mapFile(t, f, 0, 10)
	wantPanic(t, "SetUint8At", buffer.ErrReadOnly, func() { b.SetUint8At(0, 'x') })
	if n, err := b.FillFrom(0, 1); n != 0 || !errors.Is(err, buffer.ErrTooLarge) {
		t.Errorf("FillFrom: got %d, %v, want ErrTooLarge", n, err)
	}
	if p := b.Writable(); len(p) != 0 {
		t.Errorf("Writable: got %d bytes, want 0", len(p))
	}
	d := b.Duplicate()
	// Writing moves it to memory of its own.
	b.WriteUint8('!')
	b.SetUint8At(0, 'x')
	if got := string(b.Window()); got != "x123456789!" || b.Mapped() {
		t.Errorf("got %q, mapped %v", got, b.Mapped())
	}
	d.Clear()
	d.WriteString("new")
	if got := string(d.Window()); got != "new" || d.Mapped() {
		t.Errorf("got %q, mapped %v", got, d.Mapped())
	}
	if got := mappings(t, f.Name()); got != 0 {
		t.Errorf("got %d mappings, want 0", got)
	}
	b.Release()
	d.Release()
}

// A file that is truncated under its mapping is an error, and nothing leaks.
func TestTruncated(t *testing.T) {
	page := os.Getpagesize()
	uses := map[string]func(b *buffer.Buf){
		"ReadBytes":  func(b *buffer.Buf) { b.ReadBytes(make([]byte, 2*page)) },
		"ReadString": func(b *buffer.Buf) { b.ReadString(2 * page) },
		"Copy":       func(b *buffer.Buf) { b.Copy() },
		"WriteBuf": func(b *buffer.Buf) {
			o := buffer.Heap.Alloc(1)
			defer o.Release()
			o.WriteBuf(b)
		},
		"IndexByte": func(b *buffer.Buf) { b.IndexByte('!', 0) },
		"growth":    func(b *buffer.Buf) { b.WriteUint8(1) },
		"of a slice": func(b *buffer.Buf) {
			s := b.Slice(page, page)
			defer s.Release()
			s.ReadString(page)
		},
	}
	for what, use := range uses {
		t.Run(what, func(t *testing.T) {
			f := openTemp(t, strings.Repeat("x", 3*page))
			defer f.Close()
			b := mapFile(t, f, 0, 3*page)
			defer b.Release()
			if err := os.Truncate(f.Name(), 10); err != nil {
				t.Fatal(err)
			}
			live := buffer.Live()
			err := panicOf(func() { use(b) })
			if !errors.Is(err, buffer.ErrTruncated) {
				t.Errorf("got %v, want ErrTruncated", err)
			}
			var e *buffer.Error
			if errors.As(err, &e) && (e.Want < 10 || e.Want >= e.Have || e.Have != 3*page) {
				t.Errorf("got byte %d of %d", e.Want, e.Have)
			}
			if b.ReaderIndex() != 0 || b.Len() != 3*page {
				t.Errorf("got %d bytes from %d, want all of them as before", b.Len(), b.ReaderIndex())
			}
			if got := buffer.Live(); got != live {
				t.Errorf("got %d live, want %d", got, live)
			}
			// The rest of the last page can still be read.
			left := b.Slice(0, 10)
			if got := left.ReadString(10); got != "xxxxxxxxxx" {
				t.Errorf("got %q of what is left, want 10 x", got)
			}
			left.Release()
		})
	}
}

// Reading in place panics, where faults are made panics, as on loops.
func TestTruncatedInPlace(t *testing.T) {
	page := os.Getpagesize()
	f := openTemp(t, strings.Repeat("x", 3*page))
	defer f.Close()
	b := mapFile(t, f, 0, 3*page)
	defer b.Release()
	if err := os.Truncate(f.Name(), 0); err != nil {
		t.Fatal(err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var fault runtime.Error
	if err := panicOf(func() { sink = byte(b.ReadUint32()) }); !errors.As(err, &fault) {
		t.Errorf("got %v, want a runtime error", err)
	}
}

// Advice reaches the kernel, whatever the place of the bytes.
func TestAdvise(t *testing.T) {
	page := os.Getpagesize()
	f := openTemp(t, strings.Repeat("x", 4*page))
	b := buffer.Compose(buffer.FromString("head"), mapFile(t, f, 5, page), mapFile(t, f, int64(page)+100, 3*page-200))
	defer b.Release()
	for _, a := range []buffer.Advice{
		buffer.AdviseNormal, buffer.AdviseRandom, buffer.AdviseSequential, buffer.AdviseWillNeed, buffer.AdviseDontNeed,
	} {
		if err := b.Advise(a); err != nil {
			t.Errorf("advice %d: %v", a, err)
		}
	}
	if err := b.Advise(1000); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("no such advice: got %v, want EINVAL", err)
	}
	plain := buffer.FromString("x")
	defer plain.Release()
	if err := plain.Advise(1000); err != nil {
		t.Errorf("not mapped: got %v, want nil", err)
	}
}

// A composite with a mapped part says where the file ended.
func TestTruncatedPart(t *testing.T) {
	page := os.Getpagesize()
	f := openTemp(t, strings.Repeat("x", 4*page))
	b := buffer.Compose(buffer.FromString("head"), mapFile(t, f, 0, 4*page), buffer.FromString("tail"))
	defer b.Release()
	if err := os.Truncate(f.Name(), int64(page)); err != nil {
		t.Fatal(err)
	}
	if got := b.ReadString(page); len(got) != page {
		t.Errorf("got %d bytes", len(got))
	}
	before := buffer.Live()
	wantPanic(t, "ReadString", buffer.ErrTruncated, func() { b.ReadString(3 * page) })
	wantPanic(t, "Copy", buffer.ErrTruncated, func() { b.Copy() })
	wantPanic(t, "Consolidate", buffer.ErrTruncated, func() { b.Consolidate() })
	if got := buffer.Live(); got != before {
		t.Errorf("got %d live, want %d", got, before)
	}
	b.Skip(3*page + 4)
	if got := b.ReadString(b.Len()); got != "tail" {
		t.Errorf("got %q", got)
	}
}
