package buffer_test

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
)

// Searching and comparing bytes that a truncated file has lost is an error.
func TestSearchOfTruncated(t *testing.T) {
	page := os.Getpagesize()
	left := make([]byte, 3*page) // what can be read of it, and as many zeros as to the end
	copy(left, "xxxxxxxxxx")
	other := buffer.FromBytes(left)
	defer other.Release()
	set := buffer.ByteSetOf("!")
	uses := map[string]func(b *buffer.Buf){
		"IndexByte":        func(b *buffer.Buf) { b.IndexByte('!', 0) },
		"LastIndexByte":    func(b *buffer.Buf) { b.LastIndexByte('!', b.Len()) },
		"IndexAny":         func(b *buffer.Buf) { b.IndexAny(set, 0) },
		"LastIndexAny":     func(b *buffer.Buf) { b.LastIndexAny(set, b.Len()) },
		"Index":            func(b *buffer.Buf) { b.Index([]byte("x!"), 0) },
		"LastIndex":        func(b *buffer.Buf) { b.LastIndex([]byte("x!"), b.Len()) },
		"IndexFunc":        func(b *buffer.Buf) { b.IndexFunc(set.Contains, 0) },
		"LastIndexFunc":    func(b *buffer.Buf) { b.LastIndexFunc(set.Contains, b.Len()) },
		"Equal":            func(b *buffer.Buf) { b.Equal(other) },
		"Equal of other":   func(b *buffer.Buf) { other.Equal(b) },
		"EqualBytes":       func(b *buffer.Buf) { b.EqualBytes(left) },
		"Compare":          func(b *buffer.Buf) { b.Compare(other) },
		"Compare of other": func(b *buffer.Buf) { other.Compare(b) },
		"HasPrefix":        func(b *buffer.Buf) { b.HasPrefix(left) },
		"HasSuffix":        func(b *buffer.Buf) { b.HasSuffix([]byte("x")) },
		"Hash":             func(b *buffer.Buf) { b.Hash() },
	}
	for what, use := range uses {
		t.Run(what, func(t *testing.T) {
			b := truncated(t, 3*page)
			defer b.Release()
			err := panicOf(func() { use(b) })
			var e *buffer.Error
			if !errors.Is(err, buffer.ErrTruncated) || !errors.As(err, &e) {
				t.Fatalf("got %v, want ErrTruncated", err)
			}
			if e.Want < page || e.Want >= 3*page || e.Have != 3*page {
				t.Errorf("got byte %d of %d, want one behind the first page of 3", e.Want, e.Have)
			}
			if b.ReaderIndex() != 0 || b.Len() != 3*page {
				t.Errorf("got %d bytes from %d, want all of them as before", b.Len(), b.ReaderIndex())
			}
			// What is found in front of the gap can still be found.
			if got := b.IndexByte(0, 0); got != 10 {
				t.Errorf("got a zero at %d, want 10", got)
			}
			if !b.HasPrefix([]byte("xxxxxxxxxx\x00")) {
				t.Error("what is left has another beginning")
			}
		})
	}
	t.Run("both", func(t *testing.T) {
		b, o := truncated(t, 3*page), truncated(t, 3*page)
		defer b.Release()
		defer o.Release()
		wantPanic(t, "Equal", buffer.ErrTruncated, func() { b.Equal(o) })
		wantPanic(t, "Compare", buffer.ErrTruncated, func() { b.Compare(o) })
	})
}

// A mapped file that is part of a composite can be truncated as well.
func TestSearchOfTruncatedPart(t *testing.T) {
	page := os.Getpagesize()
	b := buffer.Compose(buffer.FromString("before"), truncated(t, 3*page), buffer.FromString("behind"))
	defer b.Release()
	o := buffer.FromBytes(slices.Concat([]byte("beforexxxxxxxxxx"), make([]byte, 3*page-10), []byte("behind")))
	defer o.Release()
	for what, use := range map[string]func(){
		"Index":         func() { b.Index([]byte("x!"), 0) },
		"LastIndexByte": func() { b.LastIndexByte('!', b.Len()) },
		"IndexFunc":     func() { b.IndexFunc(func(c byte) bool { return c == '!' }, 0) },
		"LastIndexFunc": func() { b.LastIndexFunc(func(c byte) bool { return c == '!' }, b.Len()) },
		"Equal":         func() { b.Equal(o) },
		"Compare":       func() { o.Compare(b) },
		"Hash":          func() { b.Hash() },
	} {
		wantPanic(t, what, buffer.ErrTruncated, use)
	}
	if got := b.LastIndex([]byte("behind"), b.Len()); got != b.Len()-6 {
		t.Errorf("LastIndex behind the gap: got %d, want %d", got, b.Len()-6)
	}
	if !b.HasPrefix([]byte("beforexxxx")) || !b.HasSuffix([]byte("hind")) {
		t.Error("what is left has another beginning or end")
	}
}

// truncated returns a Buf over a file of n times 'x' that has shrunk to 10.
func truncated(t *testing.T, n int) *buffer.Buf {
	t.Helper()
	f := openTemp(t, strings.Repeat("x", n))
	defer f.Close()
	b := mapFile(t, f, 0, n)
	if err := os.Truncate(f.Name(), 10); err != nil {
		t.Fatal(err)
	}
	return b
}

// A function of the user runs as it would outside: what it does to faults, and the
// faults it causes itself, even in the same file, are its own.
func TestVisitorsAreNotGuarded(t *testing.T) {
	page := os.Getpagesize()
	f := openTemp(t, strings.Repeat("x", 2*page))
	defer f.Close()
	b := mapFile(t, f, 0, 2*page)
	defer b.Release()
	for what, visit := range map[string]func(stop func(byte) bool){
		"IndexFunc":     func(stop func(byte) bool) { b.IndexFunc(stop, 0) },
		"LastIndexFunc": func(stop func(byte) bool) { b.LastIndexFunc(stop, 10) },
	} {
		visit(func(byte) bool {
			on := debug.SetPanicOnFault(false)
			if on {
				t.Errorf("%s: faults are panics in the function", what)
			}
			return true
		})
	}
	if err := os.Truncate(f.Name(), 10); err != nil {
		t.Fatal(err)
	}
	window := b.Window()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	err := panicOf(func() {
		b.IndexFunc(func(byte) bool { return bytes.IndexByte(window, '!') >= 0 }, 0)
	})
	var fault runtime.Error
	if !errors.As(err, &fault) || errors.Is(err, buffer.ErrTruncated) {
		t.Errorf("a fault in the function: got %v, want the runtime's error", err)
	}
}
