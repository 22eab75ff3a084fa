package buffer_test

import (
	"sync"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/invariant"
)

// remotely runs f on another goroutine and waits for it.
func remotely(f func()) {
	var wg sync.WaitGroup
	wg.Go(f)
	wg.Wait()
}

// classStats returns what s says about the class for n bytes.
func classStats(s buffer.PoolStats, n int) buffer.ClassStats {
	for _, c := range s.Classes {
		if c.Size >= n {
			return c
		}
	}
	return s.Huge
}

// wantSums checks what holds of the numbers of a pool that is at rest.
func wantSums(t *testing.T, p *buffer.Pool) {
	t.Helper()
	s := p.Stats()
	pages, cached := s.Huge.Mapped, int64(0)
	for _, c := range s.Classes {
		if c.Live != int64(c.Allocs-c.Releases) || c.Remote > c.Releases || c.Cached < 0 ||
			(c.Live+c.Cached)*int64(c.Size) > c.Mapped || (c.Spans == 0) != (c.Mapped == 0) {
			t.Errorf("got class %+v", c)
		}
		pages += c.Mapped
		cached += c.Cached * int64(c.Size)
	}
	h := s.Huge
	if h.Live != int64(h.Allocs-h.Releases) || h.Live != int64(h.Spans) || h.Cached != 0 || h.Remote > h.Releases {
		t.Errorf("got huge %+v", h)
	}
	if s.InUse != pages || s.Cached != cached || s.Mapped < s.InUse+s.Empty || s.Live != int64(s.Allocs-s.Releases) || s.Remote > s.Releases {
		s.Classes = nil
		t.Errorf("got %+v, with %d bytes of pages and %d cached in the classes", s, pages, cached)
	}
	if got := p.Live(); got != s.Live {
		t.Errorf("got %d live, and %d in the statistics", got, s.Live)
	}
}

func TestStats(t *testing.T) {
	usualLevel(t)
	p := newPool(t, buffer.PoolConfig{Limit: 64 << 20})
	c := p.NewCache()
	c.Bind()
	type want struct{ live, allocs, releases, remote int }
	check := func(what string, size int, w want) {
		t.Helper()
		s := classStats(p.Stats(), size)
		if s.Live != int64(w.live) || s.Allocs != uint64(w.allocs) || s.Releases != uint64(w.releases) || s.Remote != uint64(w.remote) {
			t.Errorf("%s, %d bytes: got %+v, want %+v", what, size, s, w)
		}
		wantSums(t, p)
	}
	for _, size := range []int{64, 1000, 64 << 10, 1 << 20, 3 << 20} {
		a, b, d := c.Alloc(size), c.Alloc(size), p.Alloc(size)
		check("in use", size, want{live: 3, allocs: 3})
		a.Release()
		check("released by the owner", size, want{live: 2, allocs: 3, releases: 1})
		remotely(func() { b.Release() })
		check("released elsewhere", size, want{live: 1, allocs: 3, releases: 2, remote: 1})
		d.Release()
		check("of the pool", size, want{allocs: 3, releases: 3, remote: 2})
		if s := classStats(p.Stats(), size); size <= buffer.MaxSlot && s.Cached < 3 {
			t.Errorf("%d bytes: got %d cached, want 3 at least", size, s.Cached)
		}
		c.Trim()
		check("trimmed", size, want{allocs: 3, releases: 3, remote: 2})
		if s := p.Stats(); s.Cached != 0 || s.InUse != 0 {
			t.Errorf("%d bytes: got %d bytes cached and %d in use after Trim, want none", size, s.Cached, s.InUse)
		}
	}

	// Slices share memory: they are Bufs, and nothing in a class. Whoever is last
	// returns it, wherever that is.
	b := c.Alloc(200)
	before := p.Stats()
	v, w := b.Slice(0, 0), b.Slice(0, 0)
	b.Release()
	check("with two slices", 200, want{live: 1, allocs: 1})
	v.Release()
	if s := p.Stats(); s.Live != 1 || s.Allocs != before.Allocs+2 || s.Releases != before.Releases+2 {
		t.Errorf("got %d live, want 1; %d more allocations and %d more releases, want 2", s.Live, s.Allocs-before.Allocs, s.Releases-before.Releases)
	}
	remotely(func() { w.Release() })
	check("with no slices", 200, want{allocs: 1, releases: 1, remote: 1})

	// What a closed cache has counted stays.
	d := c.Alloc(200)
	sum := p.Stats()
	c.Close()
	if s := p.Stats(); s.Allocs != sum.Allocs || s.Releases != sum.Releases || s.Remote != sum.Remote || s.Live != 1 || s.Cached != 0 {
		s.Classes, sum.Classes = nil, nil
		t.Errorf("after Close: got %+v, want the sums of %+v", s, sum)
	}
	d.Release()
	check("released after Close", 200, want{allocs: 2, releases: 2, remote: 2})
}

// Statistics that are taken while Bufs come back from elsewhere lose none of them.
func TestStatsWhileReleasing(t *testing.T) {
	usualLevel(t)
	n := 20000
	if invariant.Enabled {
		n = 2000
	}
	p := newPool(t, buffer.PoolConfig{Cache: 64 << 10})
	c := p.NewCache()
	c.Bind()
	defer c.Close()
	give := make(chan *buffer.Buf, 64)
	var wg, watch sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for b := range give {
				b.Release()
			}
		})
	}
	done := make(chan bool)
	watch.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				if s := p.Stats(); s.Live < 0 || s.Allocs < s.Releases {
					t.Errorf("got %d live, %d allocations and %d releases", s.Live, s.Allocs, s.Releases)
					return
				}
			}
		}
	})
	for range n {
		give <- c.Alloc(100)
	}
	close(give)
	wg.Wait()
	if s := p.Stats(); s.Live != 0 || s.Allocs != uint64(n) || s.Remote != uint64(n) {
		t.Errorf("got %d live of %d, %d released elsewhere; want none of %d", s.Live, s.Allocs, s.Remote, n)
	}
	close(done)
	watch.Wait()
	wantSums(t, p)
}
