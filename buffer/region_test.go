package buffer_test

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/invariant"
)

func openTemp(t *testing.T, content string) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFileRegion(t *testing.T) {
	const off, n = 5 << 30, 3 << 31 // beyond what an int32 holds
	before := buffer.Live()
	f := openTemp(t, "content")
	r := buffer.NewFileRegion(f, off, n)
	if r.File() != f || r.Fd() != int(f.Fd()) || r.Offset() != off || r.Len() != n || r.Sent() != 0 || r.Remaining() != n || r.Refs() != 1 {
		t.Errorf("got offset %d, length %d, sent %d, remaining %d, %d references", r.Offset(), r.Len(), r.Sent(), r.Remaining(), r.Refs())
	}
	if got := buffer.Live() - before; got != 1 {
		t.Errorf("got %d live, want 1", got)
	}
	r.Advance(1 << 32)
	r.Advance(0)
	if r.Sent() != 1<<32 || r.Remaining() != n-1<<32 {
		t.Errorf("got sent %d, remaining %d", r.Sent(), r.Remaining())
	}
	for _, by := range []int64{-1, r.Remaining() + 1, math.MaxInt64} {
		wantPanic(t, "Advance too far", buffer.ErrShort, func() { r.Advance(by) })
	}
	r.Advance(r.Remaining())

	if r.Retain() != r || r.Release() {
		t.Error("the first of two releases closes the region")
	}
	if _, err := f.Stat(); err != nil {
		t.Errorf("the file is closed before the last release: %v", err)
	}
	if !r.Release() {
		t.Error("last Release: got false")
	}
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closing the file again: got %v, want os.ErrClosed", err)
	}
	if got := r.Fd(); got != -1 {
		t.Errorf("Fd after the last release: got %d, want -1", got)
	}
	wantPanic(t, "Release", buffer.ErrReleased, func() { r.Release() })
	wantPanic(t, "Retain", buffer.ErrReleased, func() { r.Retain() })
	wantPanic(t, "Advance", buffer.ErrReleased, func() { r.Advance(0) })
	if got := buffer.Live() - before; got != 0 {
		t.Errorf("got %d live, want 0", got)
	}
}

func TestFileRegionRefusesBadRanges(t *testing.T) {
	f := openTemp(t, "content")
	defer f.Close()
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {math.MaxInt64, 1}} {
		wantPanic(t, "NewFileRegion", os.ErrInvalid, func() { buffer.NewFileRegion(f, r[0], r[1]) })
	}
	if _, err := f.Stat(); err != nil {
		t.Errorf("a refused file was closed: %v", err)
	}
}

// Regions that share a file give their shares back, and leave it open.
func TestSharedRegion(t *testing.T) {
	before := buffer.Live()
	f := openTemp(t, "content")
	defer f.Close()
	shares := 2
	a := buffer.NewSharedRegion(f, 0, 3, func() { shares-- })
	b := buffer.NewSharedRegion(f, 3, 4, func() { shares-- })
	if a.File() != f || a.Fd() != b.Fd() || b.Offset() != 3 || b.Len() != 4 {
		t.Errorf("got descriptors %d and %d, range %d %d", a.Fd(), b.Fd(), b.Offset(), b.Len())
	}
	a.Retain()
	if a.Release() || shares != 2 {
		t.Errorf("got %d shares before the last release, want 2", shares)
	}
	if !a.Release() || shares != 1 {
		t.Errorf("got %d shares after it, want 1", shares)
	}
	wantPanic(t, "Release", buffer.ErrReleased, func() { a.Release() })
	b.Release()
	if shares != 0 {
		t.Errorf("got %d shares at the end, want 0", shares)
	}
	if _, err := f.Stat(); err != nil {
		t.Errorf("the file is closed: %v", err)
	}
	wantPanic(t, "NewSharedRegion", os.ErrInvalid, func() { buffer.NewSharedRegion(f, 0, 1, nil) })
	wantPanic(t, "NewSharedRegion", os.ErrInvalid, func() { buffer.NewSharedRegion(f, -1, 1, func() {}) })
	if got := buffer.Live() - before; got != 0 {
		t.Errorf("got %d live, want 0", got)
	}
}

// Of many goroutines exactly one closes the file.
func TestFileRegionClosesOnce(t *testing.T) {
	const holders = 8
	for range 50 {
		f := openTemp(t, "content")
		r := buffer.NewFileRegion(f, 0, 7)
		for range holders - 1 {
			r.Retain()
		}
		var last atomic.Int32
		var wg sync.WaitGroup
		for range holders {
			wg.Go(func() {
				if r.Release() {
					last.Add(1)
				}
			})
		}
		wg.Wait()
		if got := last.Load(); got != 1 {
			t.Fatalf("got %d last releases, want 1", got)
		}
	}
}

// A region of a file that stays open costs next to nothing, also where its loss would be
// noticed.
func TestSharedRegionAllocatesNothing(t *testing.T) {
	if invariant.Enabled {
		t.Skip("no object is used twice")
	}
	setLevel(t, buffer.LeakSampled)
	f := openTemp(t, "content")
	defer f.Close()
	done := func() {}
	// Now and then one is made: where a stack is taken, and after a collection.
	if n := testing.AllocsPerRun(1000, func() { buffer.NewSharedRegion(f, 0, 7, done).Release() }); n >= 1 {
		t.Errorf("got %v allocations, want 0", n)
	}
}
