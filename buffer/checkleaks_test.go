package buffer_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
)

// fakeT is a test that notes its errors.
type fakeT struct {
	errors   []string
	cleanups []func()
}

func (f *fakeT) Helper()                   {}
func (f *fakeT) Cleanup(c func())          { f.cleanups = append(f.cleanups, c) }
func (f *fakeT) Errorf(s string, a ...any) { f.errors = append(f.errors, fmt.Sprintf(s, a...)) }

// end does what the end of a test does.
func (f *fakeT) end() {
	for i := len(f.cleanups) - 1; i >= 0; i-- {
		f.cleanups[i]()
	}
}

func TestCheckLeaks(t *testing.T) {
	c := boundCache(t, buffer.PoolConfig{})
	earlier := c.Alloc(100)
	defer earlier.Release()
	open := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	tests := []struct {
		name string
		test func() []buffer.Counted // returns what it leaves behind
		want []string                // in the error; none if empty
	}{
		{"nothing", func() []buffer.Counted { return nil }, nil},
		{"all released", func() []buffer.Counted {
			b := c.Alloc(100)
			b.WriteUint64(1)
			s := b.Slice(0, 2)
			b.EnsureWritable(5000)
			b.Release()
			s.Release()
			buffer.FromString("x").Release()
			buffer.NewFileRegion(open(), 0, 1).Release()
			return nil
		}, nil},
		{"a Buf", func() []buffer.Counted {
			b := allocateHere(c)
			buffer.Touch(b, "Decoder#0")
			buffer.Touch(b, "Handler#0")
			return []buffer.Counted{b}
		}, []string{"not released: 1 of", "a Buf of 64 bytes", "allocateHere", "given to: Decoder#0, Handler#0"}},
		{"of the pool", func() []buffer.Counted { return []buffer.Counted{allocateHere(c.Pool())} },
			[]string{"a Buf of 64 bytes", "allocateHere"}},
		{"of the heap", func() []buffer.Counted { return []buffer.Counted{allocateHere(buffer.Heap)} },
			[]string{"a heap Buf of 64 bytes", "allocateHere"}},
		{"a slice of what was there", func() []buffer.Counted { return []buffer.Counted{earlier.Slice(0, 0)} },
			[]string{"a Buf of 112 bytes", "TestCheckLeaks"}},
		{"grown", func() []buffer.Counted {
			b := c.Alloc(64)
			b.EnsureWritable(1000)
			return []buffer.Counted{b}
		}, []string{"not released: 1 of", "a Buf of 1024 bytes"}},
		{"a composite", func() []buffer.Counted { return []buffer.Counted{composed(c, "ab", "cd")} },
			[]string{"not released: 3 of", "a composite Buf was not released", "2 times a Buf of 16 bytes"}},
		{"a region", func() []buffer.Counted { return []buffer.Counted{buffer.NewFileRegion(open(), 0, 7)} },
			[]string{"a FileRegion of 7 bytes", "TestCheckLeaks"}},
		{"several", func() (left []buffer.Counted) {
			for range 3 {
				left = append(left, allocateHere(c))
			}
			return append(left, buffer.FromString("x"))
		}, []string{"not released: 4 of", "3 times a Buf of 64 bytes", "\na heap Buf of 16 bytes"}},
		{"from many places", func() (left []buffer.Counted) {
			for i := range 13 {
				left = append(left, buffer.Heap.Alloc(100+i))
			}
			return left
		}, []string{"not released: 13 of", "a heap Buf of 109 bytes", "and more from 3 other places"}},
	}
	for _, level := range []buffer.LeakLevel{buffer.LeakOff, buffer.LeakSampled, buffer.LeakAll} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s at level %d", tt.name, level), func(t *testing.T) {
				setLevel(t, level)
				var warm []*buffer.Buf
				for range 5 {
					warm = append(warm, c.Alloc(64))
				}
				for _, b := range warm {
					b.Release()
				}
				f := new(fakeT)
				buffer.CheckLeaks(f)
				left := tt.test()
				f.end()
				for _, m := range left {
					m.Release()
				}
				if len(f.errors) != min(1, len(tt.want)) {
					t.Fatalf("got errors %q, want %d", f.errors, min(1, len(tt.want)))
				}
				for _, want := range tt.want {
					if !strings.Contains(f.errors[0], want) {
						t.Errorf("got %s\nwant %q in it", f.errors[0], want)
					}
				}
			})
		}
	}
}

// The owner of a cache that has memory at hand is followed, too.
func TestCheckLeaksOfOwner(t *testing.T) {
	setLevel(t, buffer.LeakSampled)
	c := boundCache(t, buffer.PoolConfig{})
	c.Alloc(64).Release()
	f := new(fakeT)
	buffer.CheckLeaks(f)
	b := allocateHere(c)
	f.end()
	b.Release()
	if len(f.errors) != 1 || !strings.Contains(f.errors[0], "allocateHere") {
		t.Errorf("got %q, want the Buf", f.errors)
	}
}

// Checks may be nested: each is told of what came after its own beginning.
func TestCheckLeaksNested(t *testing.T) {
	var outer, inner fakeT
	buffer.CheckLeaks(&outer)
	a := buffer.Heap.Alloc(100)
	buffer.CheckLeaks(&inner)
	b := buffer.Heap.Alloc(200)
	inner.end()
	d := buffer.Heap.Alloc(300)
	outer.end()
	for _, x := range []*buffer.Buf{a, b, d} {
		x.Release()
	}
	if len(inner.errors) != 1 || !strings.Contains(inner.errors[0], "not released: 1 of") {
		t.Errorf("inner: got %q, want one Buf", inner.errors)
	}
	if len(outer.errors) != 1 || !strings.Contains(outer.errors[0], "not released: 3 of") {
		t.Errorf("outer: got %q, want three Bufs", outer.errors)
	}
	if got, want := buffer.Touching(), os.Getenv("RUNNEL_LEAK") == "all"; got != want {
		t.Errorf("after the checks: got touching %v, want %v", got, want)
	}
}

// Each of two tests that run in parallel is charged with its own.
func TestCheckOwnLeaks(t *testing.T) {
	var here, there fakeT
	buffer.CheckOwnLeaks(&here)
	a := buffer.Heap.Alloc(100)
	var b, c *buffer.Buf
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer.CheckOwnLeaks(&there)
		b, c = buffer.Heap.Alloc(200), buffer.Heap.Alloc(200)
		b.Release()
		there.end()
	}()
	<-done
	here.end()
	a.Release()
	c.Release()
	for _, f := range []fakeT{here, there} {
		if len(f.errors) != 1 || !strings.Contains(f.errors[0], "not released: 1 of") {
			t.Errorf("got %q, want one Buf", f.errors)
		}
	}
	if !strings.Contains(here.errors[0], "Buf of 100 bytes") || !strings.Contains(there.errors[0], "Buf of 200 bytes") {
		t.Errorf("got %q and %q: not their own", here.errors, there.errors)
	}
}

// What the collector has found meanwhile counts as well.
func TestCheckLeaksOfGarbage(t *testing.T) {
	setLevel(t, buffer.LeakSampled)
	l := lookForLeaks(t, 1)
	p, c := ownPool(t)
	f := new(fakeT)
	buffer.CheckLeaks(f)
	loseHere(func() { allocateHere(c) })
	if leak := l.next(); !leak.Reclaimed || !strings.Contains(leak.Stack, "allocateHere") {
		t.Errorf("got %v", leak)
	}
	f.end()
	if len(f.errors) != 1 || !strings.Contains(f.errors[0], "allocateHere") {
		t.Errorf("got %q, want the lost Buf", f.errors)
	}
	closePool(t, p, c)
}

// A test checks itself; *testing.T is what CheckLeaks wants.
func TestCheckLeaksOfThisTest(t *testing.T) {
	buffer.CheckLeaks(t)
	b := buffer.Default().Alloc(100)
	b.WriteString("released")
	b.Release()
}
