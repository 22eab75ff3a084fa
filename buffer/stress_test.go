package buffer_test

import (
	"errors"
	"flag"
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/invariant"
)

var (
	stressSeed = flag.Uint64("stress.seed", 0, "seed of TestPoolStress; 0 means by the clock")
	stressFor  = flag.Duration("stress.for", 0, "how long TestPoolStress repeats its round; 0 means one round")
)

// Goroutines allocate, grow, slice, hand over and release at random, most of them as
// owners of a cache, in a pool that is often near its limit. What a Buf holds is who
// made it, a sequence and a checksum, and never anything else. At the end nothing is
// left, and empty memory is within its bound.
//
// A seed repeats what each goroutine does, not how they take turns.
func TestPoolStress(t *testing.T) {
	usualLevel(t)
	seed := *stressSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for start, round := time.Now(), uint64(0); ; round++ {
		if stressPool(t, seed+round); t.Failed() {
			t.Fatalf("round %d: repeat with -stress.seed=%d", round, seed+round)
		}
		if time.Since(start) >= *stressFor {
			t.Logf("%d rounds from seed %d", round+1, seed)
			return
		}
	}
}

func stressPool(t *testing.T, seed uint64) {
	const (
		workers = 8
		limit   = 20 << 20
		retain  = 4 << 20
	)
	steps := 400000
	if invariant.Enabled || runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" { // asking for the running goroutine takes long
		steps /= 40
	}
	if testing.Short() {
		steps /= 10
	}
	p, err := buffer.NewPool(buffer.PoolConfig{Limit: limit, Cache: 256 << 10, Retain: retain, Grace: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	inbox := make([]chan *buffer.Buf, workers)
	for i := range inbox {
		inbox[i] = make(chan *buffer.Buf, 64)
	}
	var wg, watch sync.WaitGroup
	for id := range workers {
		w := &stressWorker{t: t, pool: p, id: id, rnd: rand.New(rand.NewPCG(seed, uint64(id))), alloc: p, inbox: inbox}
		wg.Go(func() { w.run(steps) })
	}
	done := make(chan bool)
	watcher := func() func(high bool) {
		told := false
		return func(high bool) {
			if high == told {
				t.Errorf("told twice that pressure is %v", high)
			}
			told = high
			if b, err := p.TryAlloc(10); err == nil {
				b.Release()
			}
		}
	}
	p.OnPressure(watcher())
	watch.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			stop := p.OnPressure(watcher())
			if s := p.Stats(); s.InUse > limit || s.Mapped > limit+4<<20 || s.Live < 0 {
				t.Errorf("got %d bytes in use, %d mapped, %d live", s.InUse, s.Mapped, s.Live)
			}
			stop()
		}
	})
	wg.Wait()
	close(done)
	watch.Wait()
	for _, c := range inbox {
		close(c)
		for b := range c {
			check(t, b)
			b.Release()
		}
	}
	c := p.NewCache() // has the pool trim what it keeps for those without a cache
	c.Trim()
	c.Close()
	if s := p.Stats(); s.Live != 0 || s.InUse != 0 || s.Cached != 0 || s.Mapped > retain || s.Pressure {
		t.Errorf("got %d live, %d bytes in use, %d cached and %d mapped, pressure %v; want none, and %d mapped at most",
			s.Live, s.InUse, s.Cached, s.Mapped, s.Pressure, retain)
	}
	wantSums(t, p)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if s := p.Stats(); s.Mapped != 0 {
		t.Errorf("after Close: got %d bytes mapped, want 0", s.Mapped)
	}
}

type stressWorker struct {
	t     *testing.T
	pool  *buffer.Pool
	id    int
	rnd   *rand.Rand
	alloc interface {
		buffer.Allocator
		AllocAligned(n, align int) (*buffer.Buf, error)
	}
	inbox []chan *buffer.Buf
	held  []*buffer.Buf
}

func (w *stressWorker) run(steps int) {
	owner := w.id%4 != 0
	var c *buffer.Cache
	for i := range steps {
		if owner && (c == nil || w.rnd.IntN(5000) == 0) {
			if c != nil {
				c.Close()
			}
			c = w.pool.NewCache()
			c.Bind()
			w.alloc = c
		}
		switch op := w.rnd.IntN(16); {
		case op < 6:
			w.make(uint64(i))
		case op < 9:
			w.give()
		case op < 11:
			select {
			case b := <-w.inbox[w.id]:
				w.held = append(w.held, b)
			default:
			}
		case op < 14 || len(w.held) > 200:
			if b := w.take(); b != nil {
				check(w.t, b)
				b.Release()
			}
		case op < 15:
			if b := w.take(); b != nil {
				w.held = append(w.held, w.grown(b))
			}
		default:
			if c != nil && w.rnd.IntN(200) == 0 {
				c.Trim()
			}
		}
	}
	for _, b := range w.held {
		check(w.t, b)
		b.Release()
	}
	if c != nil {
		c.Close()
	}
}

// make allocates and fills a Buf, unless there is no memory.
func (w *stressWorker) make(seq uint64) {
	n := w.rnd.IntN(16<<w.rnd.IntN(9)) + 12
	if w.rnd.IntN(300) == 0 {
		n = w.rnd.IntN(4 << 20)
	}
	var b *buffer.Buf
	var err error
	if w.rnd.IntN(20) == 0 {
		b, err = w.alloc.AllocAligned(n, 1<<w.rnd.IntN(15))
	} else {
		b, err = w.alloc.TryAlloc(n)
	}
	if err != nil {
		if !errors.Is(err, buffer.ErrOutOfMemory) {
			w.t.Errorf("allocating %d bytes: %v", n, err)
		}
		return
	}
	if b.Len() != 0 || b.Refs() != 1 || b.Cap() < n {
		w.t.Errorf("allocating %d bytes: got length %d, %d references, capacity %d", n, b.Len(), b.Refs(), b.Cap())
	}
	if b.Cap() < 12 { // n was 0 or so
		b.EnsureWritable(12)
	}
	b.WriteUint32(0)
	b.WriteUint64(uint64(w.id)<<56 | seq)
	for range w.rnd.IntN(max(1, min(b.Cap()-b.Len(), 2048)/8)) {
		b.WriteUint64(w.rnd.Uint64())
	}
	sum(b)
	w.held = append(w.held, b)
}

// take returns a Buf that is held no more, nil if there is none.
func (w *stressWorker) take() *buffer.Buf {
	last := len(w.held) - 1
	if last < 0 {
		return nil
	}
	i := w.rnd.IntN(last + 1)
	b := w.held[i]
	w.held[i] = w.held[last]
	w.held = w.held[:last]
	return b
}

// give hands a Buf, or a slice of it, to another worker, or releases it.
func (w *stressWorker) give() {
	b := w.take()
	if b == nil {
		return
	}
	if w.rnd.IntN(2) == 0 {
		whole := b
		b = b.ReadSlice(b.Len())
		whole.Release()
	}
	select {
	case w.inbox[w.rnd.IntN(len(w.inbox))] <- b:
	default:
		check(w.t, b)
		b.Release()
	}
}

// grown returns b with more in it, if there is memory.
func (w *stressWorker) grown(b *buffer.Buf) *buffer.Buf {
	check(w.t, b)
	if err := panicOf(func() { b.EnsureWritable(w.rnd.IntN(2 * b.Len())) }); err != nil {
		if !errors.Is(err, buffer.ErrOutOfMemory) {
			w.t.Errorf("growing: %v", err)
		}
		return b
	}
	if b.Exclusive() && b.Cap()-b.WriterIndex() >= 8 {
		b.WriteUint64(w.rnd.Uint64())
		sum(b)
	}
	return b
}

// sum writes the checksum of b to its front.
func sum(b *buffer.Buf) {
	b.SetUint32At(b.ReaderIndex(), crc32.ChecksumIEEE(b.Window()[4:]))
}

// check compares the checksum at the front of b.
func check(t *testing.T, b *buffer.Buf) {
	p := b.Window()
	if got, want := crc32.ChecksumIEEE(p[4:]), b.Uint32At(b.ReaderIndex()); got != want {
		t.Errorf("got checksum %x of %d bytes by worker %d, want %x", got, len(p), p[4], want)
	}
}
