package buffer_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

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
		"WriteRange": func(b *buffer.Buf) {
			o := buffer.Heap.Alloc(1)
			defer o.Release()
			defer func() {
				if o.Len() != 0 {
					t.Errorf("WriteRange: got %d bytes of what cannot be read", o.Len())
				}
			}()
			o.WriteRange(b, 5, 2*page)
		},
		"BytesAt":   func(b *buffer.Buf) { b.BytesAt(5, make([]byte, 2*page)) },
		"StringAt":  func(b *buffer.Buf) { _ = b.StringAt(5, 2*page) },
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

// A composite with a mapped part says where the file ended, and stays as it was.
func TestTruncatedPart(t *testing.T) {
	page := os.Getpagesize()
	f := openTemp(t, strings.Repeat("x", 4*page))
	b := buffer.Compose(buffer.FromString("head"), mapFile(t, f, 0, 4*page), buffer.FromString("tail"))
	defer b.Release()
	o := buffer.Compose(buffer.FromString("abc"))
	defer o.Release()
	o.EnsureWritable(4*page + 8)
	if err := os.Truncate(f.Name(), int64(page)); err != nil {
		t.Fatal(err)
	}
	if got := b.ReadString(page); len(got) != page {
		t.Errorf("got %d bytes", len(got))
	}
	end := 4 + 4*page // of the mapped part
	uses := map[string]struct {
		from int
		use  func()
	}{
		"ReadString":  {page, func() { b.ReadString(3 * page) }},
		"Copy":        {page, func() { b.Copy() }},
		"Consolidate": {page, b.Consolidate},
		"WriteBuf":    {page, func() { o.WriteBuf(b) }},
		"Equal":       {page, func() { b.EqualBytes(make([]byte, b.Len())) }},
		// Those that lie in two parts are copied to be read.
		"ReadUint32": {end - 2, func() { b.ReadUint32() }},
		"ReadUint24": {end - 1, func() { b.ReadUint24() }},
		"ReadUint64": {end - 4, func() { b.ReadUint64() }},
		"Uint32At":   {end, func() { b.Uint32At(end - 1) }},
		"Peek":       {end - 3, func() { b.Peek(5) }},
		"Next":       {end - 3, func() { b.Next(7) }},
	}
	for what, tt := range uses {
		b.SetReaderIndex(tt.from)
		live := buffer.Live()
		wantPanic(t, what, buffer.ErrTruncated, tt.use)
		if b.ReaderIndex() != tt.from || b.WriterIndex() != end+4 || b.Parts() != 3 || buffer.Live() != live {
			t.Errorf("%s: got %v, %d live, want reader %d, writer %d, %d live", what, b, buffer.Live(), tt.from, end+4, live)
		}
		if o.Len() != 3 || o.WriterIndex() != 3 {
			t.Errorf("%s: got %v of what is written to", what, o)
		}
	}
	b.SetReaderIndex(page)
	b.Skip(3*page + 4)
	if got := b.ReadString(b.Len()); got != "tail" {
		t.Errorf("got %q", got)
	}
}

// A stream of several parts ends where the truncated one ends.
func TestTruncatedPartStreams(t *testing.T) {
	page := os.Getpagesize()
	f := openTemp(t, strings.Repeat("x", 4*page))
	defer f.Close()
	b := buffer.Compose(buffer.FromString("head"), mapFile(t, f, 0, 4*page), buffer.FromString("tail"))
	defer b.Release()
	if err := os.Truncate(f.Name(), int64(page)); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%.4x", b); !strings.Contains(got, "|head|") {
		t.Errorf("dump: got %s, want the head", got)
	}
	var all strings.Builder
	if n, err := io.CopyBuffer(&all, struct{ io.Reader }{b}, make([]byte, 100)); n < int64(page)-100 || !errors.Is(err, buffer.ErrTruncated) {
		t.Errorf("Read: got %d, %v, want about %d and ErrTruncated", n, err, page)
	}
	if _, err := b.WriteTo(io.Discard); !errors.Is(err, buffer.ErrTruncated) {
		t.Errorf("WriteTo: got %v, want ErrTruncated", err)
	}
	b.SetReaderIndex(4*page + 4)
	if c, err := b.ReadByte(); c != 't' || err != nil {
		t.Errorf("ReadByte behind the file: got %q, %v, want t", c, err)
	}
	o := buffer.FromString("")
	defer o.Release()
	if n, err := b.WriteTo(o); n != 3 || err != nil || o.ReadString(3) != "ail" {
		t.Errorf("WriteTo behind the file: got %d, %v", n, err)
	}
}

// Streams and prints return the error of a truncated file, on any goroutine.
func TestTruncatedStreams(t *testing.T) {
	page := os.Getpagesize()
	f := openTemp(t, strings.Repeat("x", 3*page))
	defer f.Close()
	b := mapFile(t, f, 0, 3*page)
	defer b.Release()
	if err := os.Truncate(f.Name(), 10); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Read(make([]byte, 2*page)); n != 0 || !errors.Is(err, buffer.ErrTruncated) || b.ReaderIndex() != 0 {
		t.Errorf("Read: got %d, %v at %d, want ErrTruncated", n, err, b.ReaderIndex())
	}
	if n, err := b.Read(make([]byte, 10)); n != 10 || err != nil {
		t.Errorf("Read of what is left: got %d, %v", n, err)
	}
	b.SetReaderIndex(2 * page)
	if c, err := b.ReadByte(); c != 0 || !errors.Is(err, buffer.ErrTruncated) || b.ReaderIndex() != 2*page {
		t.Errorf("ReadByte: got %d, %v at %d, want ErrTruncated", c, err, b.ReaderIndex())
	}
	if got := fmt.Sprintf("%x", b); !strings.Contains(got, buffer.ErrTruncated.Error()) {
		t.Errorf("dump: got %s, want it to say that the file was truncated", got)
	}
	b.SetReaderIndex(0)
	if c, err := b.ReadByte(); c != 'x' || err != nil {
		t.Errorf("ReadByte of what is left: got %q, %v", c, err)
	}
	// The bytes are copied by the goroutine that reads from the pipe.
	r, w := io.Pipe()
	got := make(chan int64)
	go func() {
		n, _ := io.Copy(io.Discard, r)
		got <- n
	}()
	n, err := b.WriteTo(w)
	w.Close()
	if read := <-got; n != read || !errors.Is(err, buffer.ErrTruncated) || b.ReaderIndex() != 1+int(n) {
		t.Errorf("WriteTo: got %d, %v at %d, %d received, want ErrTruncated", n, err, b.ReaderIndex(), read)
	}
	// Growth moves it to other memory, and cannot.
	if n, err := b.ReadFrom(strings.NewReader("more")); n != 0 || !errors.Is(err, buffer.ErrTruncated) {
		t.Errorf("ReadFrom: got %d, %v, want ErrTruncated", n, err)
	}
}

func TestMappedStreams(t *testing.T) {
	content := text(100_000)
	f := openTemp(t, content)
	defer f.Close()
	b := mapFile(t, f, 3, len(content)-3)
	defer b.Release()
	if err := iotest.TestReader(b, []byte(content[3:])); err != nil {
		t.Error(err)
	}
	b.SetReaderIndex(0)
	var got strings.Builder
	if n, err := b.WriteTo(&got); n != int64(len(content)-3) || err != nil || got.String() != content[3:] {
		t.Errorf("WriteTo: got %d, %v", n, err)
	}
	b.SetReaderIndex(50_000)
	w := &limitedWriter{n: 40_000}
	if n, err := b.WriteTo(w); n != 40_000 || err != io.ErrShortWrite || b.ReaderIndex() != 90_000 || string(w.got) != content[50_003:90_003] {
		t.Errorf("a short write: got %d, %v at %d", n, err, b.ReaderIndex())
	}
	if got, want := fmt.Sprint(b), "Buf(reader 90000, writer 99997, cap 99997, refs 1, mapped)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// The mapping of a lost Buf ends, unless a slice of it was handed out.
func TestLostMapping(t *testing.T) {
	setLevel(t, buffer.LeakSampled)
	l := lookForLeaks(t, 3)
	f := openTemp(t, "0123456789")
	loseHere(func() { mapFile(t, f, 0, 10).ReadUint16() })
	if leak := l.next(); leak.Kind != "mapped Buf" || leak.Bytes != 10 || !leak.Reclaimed {
		t.Errorf("got %+v, want a mapped Buf of 10 bytes, reclaimed", leak)
	}
	if got := mappings(t, f.Name()); got != 0 {
		t.Errorf("got %d mappings, want 0", got)
	}
	loseHere(func() {
		b := mapFile(t, f, 0, 10)
		b.Slice(2, 3)
		b.Release()
	})
	l.next()
	if got := mappings(t, f.Name()); got != 0 {
		t.Errorf("got %d mappings after the loss of a slice, want 0", got)
	}
	var stale []byte
	buffer.Forget(0) // for the third to be reported
	loseHere(func() { stale = mapFile(t, f, 0, 10).Window() })
	if leak := l.next(); leak.Reclaimed {
		t.Errorf("got %+v, want it kept", leak)
	}
	if got := mappings(t, f.Name()); got != 1 || string(stale) != "0123456789" {
		t.Errorf("got %d mappings and %q, want 1 that can be read", got, stale)
	}
}
