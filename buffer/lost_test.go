package buffer_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
)

// What is lost is reported with all that is known of it, and its memory returns.
func TestLostIsReported(t *testing.T) {
	tests := []struct {
		name  string
		lose  func(t *testing.T, c *buffer.Cache)
		kind  string
		bytes int64
	}{
		{"of a cache", func(_ *testing.T, c *buffer.Cache) { buffer.Touch(c.Alloc(1000), "one") }, "Buf", 1024},
		{"of a pool", func(_ *testing.T, c *buffer.Cache) { buffer.Touch(c.Pool().Alloc(1000), "one") }, "Buf", 1024},
		{"large", func(_ *testing.T, c *buffer.Cache) { buffer.Touch(c.Alloc(3<<20), "one") }, "Buf", 3 << 20},
		{"grown", func(_ *testing.T, c *buffer.Cache) {
			b := c.Alloc(10)
			b.WriteString(strings.Repeat("x", 1000))
			buffer.Touch(b, "one")
		}, "Buf", 1024},
		{"of the heap", func(*testing.T, *buffer.Cache) { buffer.Touch(buffer.FromString("0123456789abcdefgh"), "one") }, "heap Buf", 18},
		{"grown on the heap", func(*testing.T, *buffer.Cache) {
			b := buffer.Heap.Alloc(10)
			b.WriteString(strings.Repeat("x", 100))
			buffer.Touch(b, "one")
		}, "heap Buf", 100},
		{"slice", func(_ *testing.T, c *buffer.Cache) {
			b := c.Alloc(1000)
			b.WriteString("0123456789")
			buffer.Touch(b.Slice(1, 2), "one")
			b.Release()
		}, "Buf", 1024},
		{"slice of the heap", func(*testing.T, *buffer.Cache) {
			b := buffer.FromString("0123456789abcdefgh")
			buffer.Touch(b.Slice(1, 2), "one")
			b.Release()
		}, "heap Buf", 18},
		{"wrapped", func(*testing.T, *buffer.Cache) {
			buffer.Touch(buffer.Wrap(nil, []byte("0123456789")), "one")
		}, "wrapped Buf", 10},
		{"composite", func(_ *testing.T, c *buffer.Cache) {
			b := composed(c, "0123", "4567")
			buffer.Touch(b, "one")
		}, "composite Buf", 0},
		{"made composite", func(_ *testing.T, c *buffer.Cache) {
			b := c.Alloc(10)
			b.WriteString("0123")
			b.Append(buffer.FromString("4567"))
			buffer.Touch(b, "one")
		}, "composite Buf", 0},
		{"consolidated", func(_ *testing.T, c *buffer.Cache) {
			b := composed(c, "0123", "4567")
			b.Consolidate()
			buffer.Touch(b, "one")
		}, "Buf", 16},
		{"region", func(t *testing.T, _ *buffer.Cache) {
			f, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			buffer.Touch(buffer.NewFileRegion(f, 3, 4), "one")
		}, "FileRegion", 4},
		{"shared region", func(t *testing.T, _ *buffer.Cache) {
			f := openTemp(t, "content")
			done := func() {
				if err := f.Close(); err != nil {
					t.Errorf("the share is given back twice: %v", err)
				}
			}
			buffer.Touch(buffer.NewSharedRegion(f, 3, 4, done), "one")
			t.Cleanup(func() {
				if err := f.Close(); err == nil {
					t.Error("the share has not been given back")
				}
			})
		}, "FileRegion", 4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			setLevel(t, buffer.LeakAll)
			l := lookForLeaks(t, 1)
			p, c := ownPool(t)
			before := buffer.Leaks()
			loseHere(func() { tt.lose(t, c) })
			leak := l.next()
			if tt.kind == "composite Buf" && leak.Bytes > 0 {
				leak.Bytes = 0 // whatever its parts pin
			}
			if leak.Kind != tt.kind || leak.Bytes != tt.bytes || !leak.Reclaimed || leak.Seen != 1 {
				t.Errorf("got %+v, want a %s of %d bytes, reclaimed, the first", leak, tt.kind, tt.bytes)
			}
			if !strings.Contains(leak.Stack, "buffer_test.TestLostIsReported") || strings.Contains(leak.Stack, "runnel/buffer.") {
				t.Errorf("got stack\n%swant it to begin in the test", leak.Stack)
			}
			if got := strings.Join(leak.Touches, " "); got != "one" {
				t.Errorf("got touches %q, want one", got)
			}
			l.none()
			if s := p.Stats(); s.Live != 0 {
				t.Errorf("got %d live in the pool, want 0", s.Live)
			}
			if s := buffer.Leaks(); s.Lost != before.Lost+1 || s.Quarantined != before.Quarantined {
				t.Errorf("got %+v after %+v, want one more lost", s, before)
			}
			closePool(t, p, c)
		})
	}
}

// The memory of a lost Buf is used again, unless a slice of it was handed out in the
// life that ended so.
func TestLostMemory(t *testing.T) {
	content := "0123456789"
	tests := []struct {
		name  string
		use   func(b *buffer.Buf)
		shown bool
	}{
		{"untouched", func(b *buffer.Buf) {}, false},
		{"read", func(b *buffer.Buf) { b.ReadUint16(); b.ReadString(3); b.ReadBytes(make([]byte, 2)); b.Uint8At(1) }, false},
		{"searched", func(b *buffer.Buf) { b.IndexByte('7', 0) }, false},
		{"copied", func(b *buffer.Buf) { b.Copy().Release() }, false},
		{"sliced", func(b *buffer.Buf) { b.Slice(0, 4).Release() }, false},
		{"gathered", func(b *buffer.Buf) { b.AppendIovecs(nil, 4) }, false},
		{"slice shown", func(b *buffer.Buf) {
			s := b.Slice(0, 4)
			s.Window()
			s.Release()
		}, false},
		{"empty", func(b *buffer.Buf) { b.Skip(b.Len()); b.Window(); b.Peek(0); b.Next(0) }, false},
		{"Window", func(b *buffer.Buf) { b.Window() }, true},
		{"Peek", func(b *buffer.Buf) { b.Peek(2) }, true},
		{"Next", func(b *buffer.Buf) { b.Next(2) }, true},
		{"Writable", func(b *buffer.Buf) { b.Writable() }, true},
		{"Segments", func(b *buffer.Buf) { b.Segments(func([]byte) bool { return true }) }, true},
		{"Window, then growth", func(b *buffer.Buf) { b.Window(); b.EnsureWritable(4000) }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			setLevel(t, buffer.LeakSampled)
			l := lookForLeaks(t, 1)
			p, c := ownPool(t)
			before := buffer.Leaks()
			loseHere(func() {
				b := c.Alloc(100)
				b.WriteString(content)
				b.Window()
				b.Release() // what was handed out before is over
				b = c.Alloc(100)
				b.WriteString(content)
				tt.use(b)
			})
			leak := l.next()
			if leak.Reclaimed == tt.shown {
				t.Errorf("got reclaimed %v, want %v", leak.Reclaimed, !tt.shown)
			}
			after := buffer.Leaks()
			if !tt.shown {
				if after.Quarantined != before.Quarantined {
					t.Errorf("got %+v after %+v, want nothing kept", after, before)
				}
				closePool(t, p, c)
				return
			}
			if after.Quarantined != before.Quarantined+1 || after.QuarantinedBytes != before.QuarantinedBytes+leak.Bytes {
				t.Errorf("got %+v after %+v, want %d bytes kept", after, before, leak.Bytes)
			}
			if got := p.Live(); got != 1 {
				t.Errorf("got %d live, want 1, for ever", got)
			}
			c.Close()
			if err := p.Close(); !errors.Is(err, buffer.ErrInUse) {
				t.Errorf("closing the pool: got %v, want ErrInUse", err)
			}
			buffer.Disown(p)
			buffer.Forget(-1) // Disown has taken it off already
		})
	}
}

// A lost Buf gives back its hold on memory, and no more than that.
func TestLostWhileShared(t *testing.T) {
	setLevel(t, buffer.LeakSampled)
	for _, shown := range []bool{false, true} {
		t.Run(fmt.Sprintf("shown %v", shown), func(t *testing.T) {
			l := lookForLeaks(t, 1)
			p, c := ownPool(t)
			b := c.Alloc(100)
			b.WriteString("0123456789")
			loseHere(func() {
				s := b.Slice(2, 4)
				if shown {
					s.Window()
				}
			})
			if leak := l.next(); leak.Reclaimed == shown {
				t.Errorf("got reclaimed %v, want %v", leak.Reclaimed, !shown)
			}
			if got := b.Exclusive(); got == shown {
				t.Errorf("got exclusive %v, want %v", got, !shown)
			}
			if got := b.ReadString(10); got != "0123456789" {
				t.Errorf("got %q, want what was written", got)
			}
			b.Release()
			if !shown {
				closePool(t, p, c)
				return
			}
			for range 100 {
				o := c.Alloc(100)
				if o.SharesMemory(b) {
					t.Fatal("memory that may still be read was handed out")
				}
				defer o.Release()
			}
			buffer.Disown(p)
			buffer.Forget(-1)
		})
	}

	t.Run("owner before its slice", func(t *testing.T) {
		l := lookForLeaks(t, 1)
		p, c := ownPool(t)
		var s *buffer.Buf
		loseHere(func() {
			b := c.Alloc(100)
			b.WriteString("0123456789")
			s = b.Slice(2, 4)
		})
		l.next()
		if got := p.Live(); got != 1 {
			t.Errorf("got %d live, want 1, the slice", got)
		}
		if got := s.ReadString(4); got != "2345" {
			t.Errorf("got %q, want 2345", got)
		}
		s.Release()
		closePool(t, p, c)
	})
}

// A Buf that is alive does not hide the loss of one that lay behind it in a free list.
func TestLostBesideTheLiving(t *testing.T) {
	setLevel(t, buffer.LeakSampled)
	l := lookForLeaks(t, 2)
	p, c := ownPool(t)
	loseHere(func() {
		var held []*buffer.Buf
		for range 10 {
			held = append(held, c.Alloc(100))
		}
		for _, b := range held {
			b.Slice(0, 0).Release()
			b.Release()
		}
	})
	first := c.Alloc(100)
	loseHere(func() { c.Alloc(100) })
	l.next()
	slice := first.Slice(0, 0)
	loseHere(func() { first.Slice(0, 0) })
	l.next()
	slice.Release()
	first.Release()
	closePool(t, p, c)
}

// A lost composite gives its parts back, but those of which slices were handed out.
func TestLostComposite(t *testing.T) {
	setLevel(t, buffer.LeakSampled)
	tests := []struct {
		name string
		use  func(b *buffer.Buf)
		kept int64
	}{
		{"untouched", func(b *buffer.Buf) {}, 0},
		{"read", func(b *buffer.Buf) {
			b.ReadUint64()
			b.ReadString(5)
			b.Index([]byte("9ab"), 0)
			b.AppendIovecs(nil, 9)
		}, 0},
		{"Window", func(b *buffer.Buf) { b.Window() }, 1},
		{"Window of another part", func(b *buffer.Buf) { b.ReadUint32(); b.Window() }, 1},
		{"Peek in a part", func(b *buffer.Buf) { b.Peek(4) }, 1},
		{"Peek over parts", func(b *buffer.Buf) { b.Peek(6) }, 1},
		{"Segments", func(b *buffer.Buf) { b.Segments(func([]byte) bool { return true }) }, 3},
		{"some Segments", func(b *buffer.Buf) { b.Segments(func(p []byte) bool { return p[0] < '4' }) }, 2},
		{"Writable", func(b *buffer.Buf) { b.EnsureWritable(100); b.Writable() }, 1},
		{"Window of what became a part", nil, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := lookForLeaks(t, 1+tt.kept)
			p, c := ownPool(t)
			before := buffer.Leaks()
			loseHere(func() {
				if tt.use == nil {
					b := c.Alloc(16)
					b.WriteString("0123")
					b.Window()
					b.Append(composed(c, "4567"))
					return
				}
				tt.use(composed(c, "0123", "4567", "89abcdef"))
			})
			if leak := l.next(); leak.Kind != "composite Buf" || leak.Reclaimed != (tt.kept == 0) {
				t.Errorf("got %+v, want a composite, reclaimed: %v", leak, tt.kept == 0)
			}
			if got := buffer.Leaks().Quarantined - before.Quarantined; got != tt.kept {
				t.Errorf("got %d parts kept, want %d", got, tt.kept)
			}
			if got := p.Live(); got != tt.kept {
				t.Errorf("got %d live, want %d", got, tt.kept)
			}
			runtime.GC() // the parts are not lost besides
			runtime.GC()
			l.none()
			if tt.kept == 0 {
				closePool(t, p, c)
				return
			}
			c.Close()
			buffer.Disown(p)
			buffer.Forget(-tt.kept)
		})
	}
}

// The two sides of a split composite give back their own parts.
func TestLostHalves(t *testing.T) {
	setLevel(t, buffer.LeakSampled)
	for at := range 17 {
		l := lookForLeaks(t, 1)
		p, c := ownPool(t)
		var front, back *buffer.Buf
		loseHere(func() {
			front = composed(c, "0123", "4567", "89ab", "cdef")
			back = front.Split(at)
			if at%2 == 0 {
				front = nil
			} else {
				back = nil
			}
		})
		l.next()
		spread(c) // over what is free
		b, want := front, "0123456789abcdef"[:at]
		if b == nil {
			b, want = back, "0123456789abcdef"[at:]
		}
		if got := b.ReadString(b.Len()); got != want {
			t.Errorf("split at %d: got %q, want %q", at, got, want)
		}
		b.Release()
		closePool(t, p, c)
		buffer.Forget(0)
	}
}

// Handles are watched in all of their lives: out of the pool's store, after one that
// was kept whole, and after a loss.
func TestLostInALaterLife(t *testing.T) {
	setLevel(t, buffer.LeakSampled)
	l := lookForLeaks(t, 5)
	p, c := ownPool(t)

	c.Alloc(100).Release()
	c.Trim() // to the pool's store
	loseHere(func() { c.Alloc(100) })
	if leak := l.next(); leak.Bytes != 112 {
		t.Errorf("from the store: got %v", leak)
	}

	// Slots of 1 MiB come one by one: the next one is what the lost one had.
	for range 2 {
		loseHere(func() { c.Alloc(1 << 20) })
		if leak := l.next(); leak.Bytes != 1<<20 {
			t.Errorf("after a loss: got %v", leak)
		}
		buffer.Forget(0)
	}

	c.Trim()
	buffer.SetLeakLevel(buffer.LeakAll)
	held := c.Alloc(200)
	loseHere(func() {
		var slices []*buffer.Buf
		for range 100 {
			slices = append(slices, held.Slice(0, 0))
		}
		for _, s := range slices {
			s.Release()
		}
	})
	buffer.SetLeakLevel(buffer.LeakSampled)
	loseHere(func() { held.Slice(0, 0) })
	if leak := l.next(); leak.Bytes != 224 {
		t.Errorf("after a life at level all: got %v", leak)
	}
	held.Release()

	loseHere(func() { c.Alloc(300) })
	l.next()
	closePool(t, p, c)
}

// Who lends memory is told when its Buf is lost, unless a slice of it was handed out.
func TestLostWrap(t *testing.T) {
	setLevel(t, buffer.LeakSampled)
	l := lookForLeaks(t, 4)
	back := make(chan string, 10)
	memory := []byte("0123456789")
	loseHere(func() { buffer.Wrap(func() { back <- "whole" }, memory) })
	l.next()
	if got := <-back; got != "whole" {
		t.Errorf("got %q", got)
	}
	loseHere(func() {
		b := buffer.Wrap(func() { back <- "slice" }, memory)
		b.Slice(2, 3)
		b.Release()
	})
	l.next()
	if got := <-back; got != "slice" {
		t.Errorf("got %q", got)
	}
	loseHere(func() { buffer.Wrap(func() { back <- "parts" }, memory[:5], memory[5:]) })
	for leak := l.next(); leak.Kind != "composite Buf"; leak = l.next() {
		t.Errorf("got %v, want the composite alone", leak)
	}
	if got := <-back; got != "parts" {
		t.Errorf("got %q", got)
	}
	buffer.Forget(0)
	loseHere(func() { buffer.Wrap(func() { back <- "shown" }, memory).Window() })
	if leak := l.next(); leak.Reclaimed {
		t.Error("got memory back that was shown")
	}
	select {
	case got := <-back:
		t.Errorf("got %q, want nothing", got)
	default:
	}
}

// Handles that are dropped on purpose are not lost: those of a closed pool, those
// beyond what a pool keeps, and those of the heap.
func TestDroppedIsNotLost(t *testing.T) {
	setLevel(t, buffer.LeakSampled)
	l := lookForLeaks(t, 1)
	for range 3 {
		p, c := ownPool(t)
		var held []*buffer.Buf
		for range 6000 {
			held = append(held, c.Alloc(16))
		}
		for i, b := range held {
			b.WriteUint8(1)
			if i%2 == 0 {
				b.Duplicate().Release()
			}
			b.Release()
		}
		c.Trim()
		closePool(t, p, c)
	}
	setLevel(t, buffer.LeakAll)
	for range 100 {
		b := buffer.FromString("x")
		b.Slice(0, 1).Release()
		b.Release()
	}
	p, c := ownPool(t)
	for range 100 {
		c.Alloc(100).Release()
	}
	closePool(t, p, c)
	// One that is, to know when the collector is through.
	loseHere(func() { buffer.FromString("lost") })
	if leak := l.next(); leak.Bytes != 16 || leak.Kind != "heap Buf" {
		t.Errorf("got %v", leak)
	}
	l.none()
}
