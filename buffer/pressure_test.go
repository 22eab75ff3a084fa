package buffer_test

import (
	"errors"
	"runtime"
	"testing"

	"github.com/runnel-io/runnel/buffer"
)

// hold allocates n Bufs of size bytes and returns a function that releases the last
// few of them.
func hold(a buffer.Allocator, n, size int) (release func(n int)) {
	var held []*buffer.Buf
	for range n {
		held = append(held, a.Alloc(size))
	}
	return func(n int) {
		for _, b := range held[len(held)-n:] {
			b.Release()
		}
		held = held[:len(held)-n]
	}
}

// Pressure begins at 90 % of the limit and ends at 80 %, and every change is told once.
func TestPressure(t *testing.T) {
	usualLevel(t)
	const run = 2 << 20 // a Buf that no cache keeps
	p := newPool(t, buffer.PoolConfig{Limit: 20 * run})
	told := make(chan bool, 10)
	stop := p.OnPressure(func(high bool) {
		p.Alloc(100).Release() // no lock is held
		if b, err := p.TryAlloc(run / 2); err == nil {
			b.Release()
		}
		p.Stats()
		told <- high
	})
	for round := range 3 {
		release := hold(p, 17, run)
		if p.Pressure() {
			t.Errorf("round %d: got pressure at 85 %%", round)
		}
		last := hold(p, 1, run)
		if !p.Pressure() || !p.Stats().Pressure {
			t.Errorf("round %d: got no pressure at 90 %%", round)
		}
		if got := <-told; !got {
			t.Errorf("round %d: got the end of pressure, want its beginning", round)
		}
		last(1)
		if !p.Pressure() {
			t.Errorf("round %d: got no pressure at 85 %%, want it until 80 %%", round)
		}
		release(2)
		if p.Pressure() || p.Stats().Pressure {
			t.Errorf("round %d: got pressure below 80 %%", round)
		}
		if got := <-told; got {
			t.Errorf("round %d: got the beginning of pressure, want its end", round)
		}
		release(15)
	}
	if n := len(told); n != 0 {
		t.Errorf("got told %d times more", n)
	}
	stop()
	stop()

	// Who comes late is told; who has stopped is not, even in the midst of it.
	release := hold(p, 19, run)
	late := make(chan bool, 10)
	var stopLate func()
	ready := make(chan bool)
	stopLate = p.OnPressure(func(high bool) {
		<-ready
		stopLate()
		late <- high
	})
	close(ready)
	if !<-late {
		t.Error("late: got the end of pressure, want its beginning")
	}
	p.OnPressure(func(high bool) {
		told <- high
		runtime.Goexit() // as a test that fails does
	})
	if !<-told {
		t.Error("got the end of pressure, want its beginning")
	}
	release(19)
	if <-told {
		t.Error("got the beginning of pressure, want its end, after a call that did not return")
	}
	if len(told) != 0 || len(late) != 0 {
		t.Errorf("got told %d and %d times more after stop", len(told), len(late))
	}
}

// Under pressure an owner gives back what it only keeps, when it next releases or
// takes memory from the pool, and from then on keeps little.
func TestPressureEmptiesCaches(t *testing.T) {
	usualLevel(t)
	const limit = 40 << 20
	for name, touch := range map[string]func(c *buffer.Cache){
		"release": func(c *buffer.Cache) { c.Alloc(64 << 10).Release() },
		"refill":  func(c *buffer.Cache) { c.Alloc(700).Release() },
	} {
		p := newPool(t, buffer.PoolConfig{Limit: limit, Cache: 4 << 20})
		c := p.NewCache()
		c.Bind()
		burst := func() { hold(c, 48, 64<<10)(48) }
		burst()
		if got := p.Stats().Cached; got < 2<<20 {
			t.Errorf("%s: got %d bytes cached before, want 2 MiB at least", name, got)
		}
		release := hold(p, 17, 2<<20)
		if !p.Pressure() {
			t.Fatalf("%s: got no pressure", name)
		}
		touch(c)
		if got := p.Stats().Cached; got > limit/16 {
			t.Errorf("%s: got %d bytes cached under pressure, want %d at most", name, got, limit/16)
		}
		burst()
		if got := p.Stats().Cached; got > limit/16 {
			t.Errorf("%s: got %d bytes cached after a burst under pressure, want %d at most", name, got, limit/16)
		}
		release(17)
		if p.Pressure() {
			t.Errorf("%s: got pressure at the end", name)
		}
		burst()
		if got := p.Stats().Cached; got < 2<<20 {
			t.Errorf("%s: got %d bytes cached after it, want 2 MiB at least", name, got)
		}
		c.Close()
	}
}

// At the limit, what lies on the return stacks of other caches is had at once, and
// what is in their lists as soon as their owners have seen that it is wanted.
func TestLimitTakesFromCaches(t *testing.T) {
	usualLevel(t)
	const limit = 32 << 20
	p := newPool(t, buffer.PoolConfig{Limit: limit, Cache: 8 << 20})
	idle, busy := p.NewCache(), p.NewCache()
	idle.Bind()
	busy.Bind()
	defer busy.Close()
	defer idle.Close()
	release := hold(idle, 60, 64<<10)
	remotely(func() { release(60) })
	hold(busy, 60, 64<<10)(60)
	if got := p.Stats().Cached; got < 7<<20 {
		t.Fatalf("got %d bytes cached, want 7 MiB at least", got)
	}
	fill, filled := make(chan bool), make(chan int)
	go func() {
		c := p.NewCache()
		c.Bind()
		var held []*buffer.Buf
		for range fill {
			for {
				b, err := c.TryAlloc(256 << 10)
				if err != nil {
					break
				}
				held = append(held, b)
			}
			filled <- len(held)
		}
		for _, b := range held {
			b.Release()
		}
		c.Close()
		close(filled)
	}()
	fill <- true
	if got, want := <-filled, (limit-4<<20)>>18; got < want-2 || got > want+2 {
		t.Errorf("got %d Bufs, want %d", got, want)
	}
	busy.Alloc(64 << 10).Release()
	fill <- true
	if got, want := <-filled, limit>>18; got < want-2 || got > want {
		t.Errorf("after the owner's turn: got %d Bufs, want %d", got, want)
	}
	close(fill)
	<-filled
}

// An allocation that is too large for the room there is asks the caches for theirs,
// long before there is pressure.
func TestRefusedAllocationAsks(t *testing.T) {
	usualLevel(t)
	const limit = 40 << 20
	p := newPool(t, buffer.PoolConfig{Limit: limit, Cache: 8 << 20})
	c := p.NewCache()
	c.Bind()
	defer c.Close()
	hold(c, 100, 64<<10)(100)
	for _, want := range []error{buffer.ErrOutOfMemory, nil} {
		b, err := p.TryAlloc(35 << 20)
		if !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
		if b != nil {
			b.Release()
		}
		c.Alloc(64 << 10).Release() // the owner's turn
	}
}

// What comes back to a cache after its owner has trimmed it goes to the pool, until
// the owner uses it again.
func TestTrimmedCacheKeepsNothing(t *testing.T) {
	usualLevel(t)
	p := newPool(t, buffer.PoolConfig{})
	c := p.NewCache()
	c.Bind()
	defer c.Close()
	for round := range 2 {
		release := hold(c, 100, 10<<10)
		c.Trim()
		remotely(func() { release(100) })
		if s := p.Stats(); s.Cached != 0 || s.InUse != 0 {
			t.Errorf("round %d: got %d bytes cached and %d in use, want none", round, s.Cached, s.InUse)
		}
		hold(c, 100, 10<<10)(100)
		if s := p.Stats(); s.Cached < 500<<10 {
			t.Errorf("round %d: got %d bytes cached in use again, want 500 KiB at least", round, s.Cached)
		}
	}
}
