package buffer_test

import (
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/invariant"
)

// Above 64 bytes at most a quarter of a slot is wasted.
func TestSizeClasses(t *testing.T) {
	classes := 0
	last := 0
	for n := range buffer.MaxSlot + 1 {
		size := buffer.ClassSize(n)
		if size < n || size < last {
			t.Fatalf("got a slot of %d for %d bytes, after one of %d", size, n, last)
		}
		if n > 64 && (size-n)*4 > size {
			t.Fatalf("a slot of %d for %d bytes wastes %d", size, n, size-n)
		}
		if n <= 64 && size-n > 16 {
			t.Fatalf("a slot of %d for %d bytes", size, n)
		}
		if size != last {
			classes++
			last = size
		}
	}
	if classes != 60 || last != buffer.MaxSlot {
		t.Errorf("got %d classes up to %d, want 60 up to %d", classes, last, buffer.MaxSlot)
	}
}

// Every class, and sizes beyond, give memory that is the Buf's alone.
func TestBlocksDoNotOverlap(t *testing.T) {
	c := boundCache(t, buffer.PoolConfig{Limit: 256 << 20})
	var all []*buffer.Buf
	for n := 16; n < 3<<20; n += n/4 + 1 {
		for range max(1, min(40, 1<<20/n)) {
			b := c.Alloc(n)
			if b.Cap() < n || b.Len() != 0 || b.ReaderIndex() != 0 || b.Refs() != 1 || !b.Exclusive() || b.Pinned() != b.Cap()+buffer.HandleSize {
				t.Fatalf("Alloc(%d): got capacity %d, length %d, %d references, pinned %d", n, b.Cap(), b.Len(), b.Refs(), b.Pinned())
			}
			p := b.Writable()
			binary.BigEndian.PutUint64(p, uint64(len(all)))
			binary.BigEndian.PutUint64(p[len(p)-8:], uint64(len(all)))
			b.Commit(len(p))
			all = append(all, b)
		}
	}
	for i, b := range all {
		p := b.Window()
		if first, last := binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[len(p)-8:]); first != uint64(i) || last != uint64(i) {
			t.Fatalf("buffer %d of %d bytes holds %d and %d", i, len(p), first, last)
		}
		b.Release()
	}
}

func TestPoolConfig(t *testing.T) {
	for _, cfg := range []buffer.PoolConfig{{Limit: -1}, {MaxCap: -1}, {Cache: -1}, {Grace: -1}} {
		if p, err := buffer.NewPool(cfg); err == nil {
			t.Errorf("%+v: got no error", cfg)
			p.Close()
		}
	}
	if s := buffer.Default().Stats(); s.Limit <= 0 {
		t.Errorf("the default pool has limit %d", s.Limit)
	}
	if first := buffer.Default(); first != buffer.Default() {
		t.Error("there are two default pools")
	}
}

func TestLimit(t *testing.T) {
	usualLevel(t)
	const limit = 4 << 20
	for _, size := range []int{64, 4 << 10, 100 << 10, 1 << 20, 3 << 20} {
		p := newPool(t, buffer.PoolConfig{Limit: limit})
		c := p.NewCache()
		c.Bind()
		var held []*buffer.Buf
		sum := 0
		for {
			b, err := c.TryAlloc(size)
			if err != nil {
				if !errors.Is(err, buffer.ErrOutOfMemory) {
					t.Errorf("size %d: got %v, want ErrOutOfMemory", size, err)
				}
				break
			}
			held = append(held, b)
			if sum += b.Cap(); sum > limit {
				t.Fatalf("size %d: got %d bytes, the limit is %d", size, sum, limit)
			}
		}
		if sum < limit*7/10 {
			t.Errorf("size %d: out of memory after %d bytes, the limit is %d", size, sum, limit)
		}
		wantPanic(t, "Alloc", buffer.ErrOutOfMemory, func() { c.Alloc(size) })
		wantPanic(t, "Alloc", buffer.ErrOutOfMemory, func() { p.Alloc(size) })
		wantPanic(t, "growth", buffer.ErrOutOfMemory, func() { held[0].EnsureWritable(2 * size) })
		if s := p.Stats(); s.InUse > limit || s.Mapped > limit+4<<20 || s.Live != int64(len(held)) {
			t.Errorf("size %d: got %+v with %d buffers of a limit of %d", size, s, len(held), limit)
		}
		// What is released can be had again, in any size.
		for _, b := range held {
			b.Release()
		}
		for _, other := range []int{size, 16, 2 << 20} {
			b, err := c.TryAlloc(other)
			if err != nil {
				t.Errorf("size %d, then %d: got %v", size, other, err)
				continue
			}
			b.Release()
		}
		c.Close()
	}
	c := boundCache(t, buffer.PoolConfig{Limit: limit})
	if _, err := c.TryAlloc(math.MaxInt32); !errors.Is(err, buffer.ErrOutOfMemory) {
		t.Errorf("got %v, want ErrOutOfMemory", err)
	}
}

// Memory that is empty in one shape makes room for another.
func TestEmptyMemoryMakesRoom(t *testing.T) {
	usualLevel(t)
	const limit = 16 << 20
	c := boundCache(t, buffer.PoolConfig{Limit: limit, Retain: limit})
	for _, size := range []int{1 << 10, 3 << 20, 500 << 10, 12 << 20, 64} {
		var held []*buffer.Buf
		for sum := 0; sum < limit*2/3; {
			b, err := c.TryAlloc(size)
			if err != nil {
				t.Fatalf("size %d: %v after %d bytes", size, err, sum)
			}
			sum += b.Cap()
			held = append(held, b)
		}
		for _, b := range held {
			b.Release()
		}
		if s := c.Pool().Stats(); s.Mapped > limit+4<<20 {
			t.Errorf("size %d: got %d bytes mapped, want at most a chunk above the limit", size, s.Mapped)
		}
	}
}

// After everything is released nothing is in use; what is empty goes to the system
// after the grace period, and at once beyond the bound.
func TestMemoryGoesBack(t *testing.T) {
	usualLevel(t)
	synctest.Test(t, func(t *testing.T) {
		const retain = 8 << 20
		p, err := buffer.NewPool(buffer.PoolConfig{Limit: 512 << 20, Retain: retain, Grace: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		c := p.NewCache()
		c.Bind()
		for round := range 2 {
			var held []*buffer.Buf
			for i := range 400 {
				held = append(held, c.Alloc([]int{16, 64 << 10, 1 << 20, 1300 << 10}[i%4]))
			}
			if s := p.Stats(); s.Mapped < 150<<20 || s.Live != 400 {
				t.Fatalf("round %d: got %+v", round, s)
			}
			for _, b := range held {
				b.Release()
			}
			c.Trim()
			if s := p.Stats(); s.InUse != 0 || s.Live != 0 || s.Mapped > retain || s.Empty != s.Mapped {
				t.Errorf("round %d: after Trim: got %+v, want nothing in use and at most %d mapped", round, s, retain)
			}
			time.Sleep(30 * time.Second)
			if s := p.Stats(); s.Mapped == 0 {
				t.Errorf("round %d: memory is given back before the grace period", round)
			}
			time.Sleep(2 * time.Minute)
			if s := p.Stats(); s.Mapped != 0 || s.Empty != 0 {
				t.Errorf("round %d: after the grace period: got %+v, want nothing mapped", round, s)
			}
		}
		c.Close()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Memory that has gone back to the system faults; it is never somebody else's.
func TestStaleMemoryFaults(t *testing.T) {
	usualLevel(t)
	p := newPool(t, buffer.PoolConfig{Retain: -1})
	if !p.Stats().OffHeap {
		t.Skip("memory is on the Go heap")
	}
	b := p.Alloc(2 << 20)
	stale := b.Writable()
	b.Release()
	if s := p.Stats(); s.Mapped != 0 {
		t.Errorf("got %d bytes mapped, want 0", s.Mapped)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var fault runtime.Error
	if err := panicOf(func() { sink = stale[0] }); !errors.As(err, &fault) {
		t.Errorf("got %v, want a fault", err)
	}
	b = p.Alloc(2 << 20)
	defer b.Release()
	if &b.Writable()[0] != &stale[0] {
		t.Error("the addresses are not used again")
	}
}

// A cache is bounded, and so is what comes back to it from elsewhere.
func TestCacheIsBounded(t *testing.T) {
	usualLevel(t)
	const bound = 256 << 10
	p := newPool(t, buffer.PoolConfig{Cache: bound})
	c := p.NewCache()
	c.Bind()
	defer c.Close()
	release := map[string]func(held []*buffer.Buf){
		"owner": func(held []*buffer.Buf) {
			for _, b := range held {
				b.Release()
			}
		},
		"remote": func(held []*buffer.Buf) {
			var wg sync.WaitGroup
			wg.Go(func() {
				for _, b := range held {
					b.Release()
				}
			})
			wg.Wait()
		},
	}
	for name, release := range release {
		var held []*buffer.Buf
		for range 1000 {
			held = append(held, c.Alloc(8<<10))
		}
		release(held)
		if s := p.Stats(); s.InUse > 2*bound || s.Live != 0 {
			t.Errorf("%s: got %+v, want at most the bound of %d in use", name, s, bound)
		}
	}
}

// What is released elsewhere is allocated again by the owner.
func TestRemoteReleaseComesBack(t *testing.T) {
	usualLevel(t)
	if invariant.Enabled {
		t.Skip("handles are not used again")
	}
	c := boundCache(t, buffer.PoolConfig{})
	seen := map[*buffer.Buf]bool{}
	for range 1000 {
		b := c.Alloc(1 << 10)
		seen[b] = true
		var wg sync.WaitGroup
		wg.Go(func() { b.Release() })
		wg.Wait()
	}
	if len(seen) > 64 {
		t.Errorf("got %d different buffers, want a few over and over", len(seen))
	}
}

func TestCacheOwnership(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{})
	c := p.NewCache()
	elsewhere := func(f func()) error {
		var err error
		var wg sync.WaitGroup
		wg.Go(func() { err = panicOf(f) })
		wg.Wait()
		return err
	}
	c.Bind()
	c.Bind() // again, by the owner
	b := c.Alloc(10)
	for what, f := range map[string]func(){"Bind": c.Bind, "Unbind": c.Unbind, "Trim": c.Trim, "Close": c.Close} {
		var misuse *buffer.MisuseError
		if err := elsewhere(f); !errors.As(err, &misuse) {
			t.Errorf("%s by another goroutine: got %v, want a MisuseError", what, err)
		}
	}
	// Others allocate from the pool.
	if err := elsewhere(func() { c.Alloc(10).Release() }); err != nil {
		t.Errorf("Alloc by another goroutine: %v", err)
	}
	c.Unbind()
	if err := elsewhere(c.Bind); err == nil {
		t.Error("Bind while bound twice: got no panic")
	}
	c.Unbind()
	if err := elsewhere(func() { c.Bind(); b.Release(); c.Unbind() }); err != nil {
		t.Errorf("another owner, after the first: %v", err)
	}
	b = c.Alloc(10)
	s := b.Slice(0, 0)
	c.Close()
	c.Close()
	c.Trim() // does nothing any more
	if got := p.Live(); got != 2 {
		t.Errorf("got %d live after the cache is closed, want 2", got)
	}
	if err := p.Close(); !errors.Is(err, buffer.ErrInUse) {
		t.Errorf("closing the pool: got %v, want ErrInUse", err)
	}
	s.Release()
	b.Release()
	c.Alloc(10).Release()
	if got := p.Live(); got != 0 {
		t.Errorf("got %d live, want 0", got)
	}
}

func TestPoolClose(t *testing.T) {
	p, err := buffer.NewPool(buffer.PoolConfig{})
	if err != nil {
		t.Fatal(err)
	}
	c := p.NewCache()
	if err := p.Close(); !errors.Is(err, buffer.ErrInUse) {
		t.Errorf("with an open cache: got %v, want ErrInUse", err)
	}
	c.Close()
	b := p.Alloc(100)
	if err := p.Close(); !errors.Is(err, buffer.ErrInUse) {
		t.Errorf("with a live buffer: got %v, want ErrInUse", err)
	}
	b.Release()
	for range 2 {
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	for _, n := range []int{10, 2 << 20} {
		if _, err := p.TryAlloc(n); !errors.Is(err, buffer.ErrClosed) {
			t.Errorf("TryAlloc(%d) after Close: got %v, want ErrClosed", n, err)
		}
	}
	if s := p.Stats(); s.Mapped != 0 || s.InUse != 0 {
		t.Errorf("after Close: got %+v, want nothing mapped", s)
	}
}

// 10,000 connections that hold one byte each cost little.
func TestSmallBuffersAreCheap(t *testing.T) {
	usualLevel(t)
	if invariant.Enabled {
		t.Skip("handles are larger with assertions on")
	}
	const n = 10000
	c := boundCache(t, buffer.PoolConfig{})
	held := make([]*buffer.Buf, n)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range held {
		held[i] = c.Alloc(1)
		held[i].WriteUint8(1)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int(after.HeapAlloc-before.HeapAlloc) + int(c.Pool().Stats().InUse)) / n
	t.Logf("%d bytes each", each)
	if each > 240 { // a quarter of it for its loss to be noticed
		t.Errorf("a buffer of one byte costs %d bytes, want at most 240", each)
	}
	for _, b := range held {
		b.Release()
	}
}

func TestAllocations(t *testing.T) {
	usualLevel(t)
	if invariant.Enabled {
		t.Skip("assertions allocate")
	}
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Skip("asking for the running goroutine allocates here")
	}
	c := boundCache(t, buffer.PoolConfig{})
	p := c.Pool()
	x := c.Alloc(1 << 10)
	defer x.Release()
	x.WriteString("0123456789abcdef")
	give, done := make(chan *buffer.Buf), make(chan bool)
	go func() {
		for b := range give {
			b.Release()
			done <- true
		}
	}()
	defer close(give)
	tests := []struct {
		name string
		f    func()
	}{
		{"alloc and release", func() { c.Alloc(64).Release() }},
		{"from the pool", func() { p.Alloc(64).Release() }},
		{"released elsewhere", func() { give <- c.Alloc(1 << 10); <-done }},
		{"slice", func() { x.Slice(2, 4).Release() }},
		{"duplicate", func() { x.Duplicate().Release() }},
		{"copy", func() { x.Copy().Release() }},
		{"frame", func() {
			b := c.Alloc(256)
			b.WriteUint64(1)
			f := b.ReadSlice(8)
			b.Release()
			f.ReadUint64()
			f.Release()
		}},
		{"growth", func() {
			b := c.Alloc(16)
			for range 100 {
				b.WriteUint64(1)
			}
			b.Release()
		}},
		{"growth while shared", func() {
			b := c.Alloc(16)
			b.WriteUint64(1)
			s := b.Slice(0, 8)
			b.EnsureWritable(100)
			b.Release()
			s.Release()
		}},
		{"retain", func() { x.Retain(); x.Release() }},
		{"search", func() { x.IndexByte('f', 0) }},
		{"messages", func() { buffer.Release(buffer.Retain(x)) }},
	}
	for _, tt := range tests {
		if got := testing.AllocsPerRun(200, tt.f); got != 0 {
			t.Errorf("%s: got %v allocations, want 0", tt.name, got)
		}
	}
}
