package buffer_test

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
)

// boundCache returns a cache of a fresh pool that the calling goroutine owns.
func boundCache(tb testing.TB, cfg buffer.PoolConfig) *buffer.Cache {
	tb.Helper()
	p := newPool(tb, cfg)
	c := p.NewCache()
	c.Bind()
	tb.Cleanup(c.Close)
	return c
}

func newPool(tb testing.TB, cfg buffer.PoolConfig) *buffer.Pool {
	tb.Helper()
	p, err := buffer.NewPool(cfg)
	if err != nil {
		tb.Fatalf("NewPool: %v", err)
	}
	tb.Cleanup(func() {
		if err := p.Close(); err != nil {
			tb.Errorf("closing the pool: %v", err)
		}
	})
	return p
}

var sink byte

func BenchmarkAlloc(b *testing.B) {
	for _, n := range []int{64, 1 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("owner/%d", n), func(b *testing.B) {
			c := boundCache(b, buffer.PoolConfig{})
			b.ReportAllocs()
			for b.Loop() {
				c.Alloc(n).Release()
			}
		})
		b.Run(fmt.Sprintf("shared/%d", n), func(b *testing.B) {
			p := newPool(b, buffer.PoolConfig{})
			b.ReportAllocs()
			for b.Loop() {
				p.Alloc(n).Release()
			}
		})
		b.Run(fmt.Sprintf("syncPool/%d", n), func(b *testing.B) {
			p := sync.Pool{New: func() any { s := make([]byte, n); return &s }}
			b.ReportAllocs()
			for b.Loop() {
				p.Put(p.Get())
			}
		})
		b.Run(fmt.Sprintf("make/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				escape = make([]byte, n)
			}
		})
	}
}

var escape []byte

// BenchmarkRatio takes turns at allocation and release by their owner, sync.Pool and
// make, and reports the first as a part of the others.
func BenchmarkRatio(b *testing.B) {
	const turn = 1000
	for _, n := range []int{64, 4 << 10, 64 << 10} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := boundCache(b, buffer.PoolConfig{})
			p := sync.Pool{New: func() any { s := make([]byte, n); return &s }}
			var spent [3]time.Duration
			for b.Loop() {
				start := time.Now()
				for range turn {
					c.Alloc(n).Release()
				}
				first := time.Now()
				for range turn {
					p.Put(p.Get())
				}
				second := time.Now()
				for range turn {
					escape = make([]byte, n)
				}
				spent[0] += first.Sub(start)
				spent[1] += second.Sub(first)
				spent[2] += time.Since(second)
			}
			b.ReportMetric(float64(spent[0])/float64(b.N*turn), "ns/alloc")
			b.ReportMetric(float64(spent[0])/float64(spent[1]), "of-sync.Pool")
			b.ReportMetric(float64(spent[0])/float64(spent[2]), "of-make")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// A buffer is allocated on one goroutine and released on another.
func BenchmarkRemoteRelease(b *testing.B) {
	const batch = 256
	b.Run("cache", func(b *testing.B) {
		c := boundCache(b, buffer.PoolConfig{})
		c.Alloc(64).Release()
		give, back := make(chan []*buffer.Buf, 1), make(chan []*buffer.Buf, 1)
		go func() {
			for s := range give {
				for _, x := range s {
					x.Release()
				}
				back <- s
			}
		}()
		s := make([]*buffer.Buf, batch)
		for n := 0; n < b.N; n += batch {
			for i := range s {
				s[i] = c.Alloc(64)
			}
			give <- s
			s = <-back
		}
		close(give)
	})
	b.Run("syncPool", func(b *testing.B) {
		p := sync.Pool{New: func() any { s := make([]byte, 64); return &s }}
		give, back := make(chan []any, 1), make(chan []any, 1)
		go func() {
			for s := range give {
				for _, x := range s {
					p.Put(x)
				}
				back <- s
			}
		}()
		s := make([]any, batch)
		for n := 0; n < b.N; n += batch {
			for i := range s {
				s[i] = p.Get()
			}
			give <- s
			s = <-back
		}
		close(give)
	})
}

func BenchmarkSlice(b *testing.B) {
	c := boundCache(b, buffer.PoolConfig{})
	x := c.Alloc(1 << 10)
	defer x.Release()
	x.WriteString("0123456789abcdef")
	b.ReportAllocs()
	for b.Loop() {
		x.Slice(4, 8).Release()
	}
}

// A buffer is read into, cut into one frame and released, as a decoder does.
func BenchmarkReadSlice(b *testing.B) {
	c := boundCache(b, buffer.PoolConfig{})
	b.ReportAllocs()
	for b.Loop() {
		x := c.Alloc(1 << 10)
		x.WriteUint64(1)
		f := x.ReadSlice(8)
		x.Release()
		f.Release()
	}
}

func BenchmarkRetain(b *testing.B) {
	c := boundCache(b, buffer.PoolConfig{})
	x := c.Alloc(1 << 10)
	defer x.Release()
	for b.Loop() {
		x.Retain()
		x.Release()
	}
}

// The figures are for 4 KiB, 1024 accesses.
func BenchmarkAccess(b *testing.B) {
	const size = 4 << 10
	x := buffer.Heap.Alloc(size)
	defer x.Release()
	raw := make([]byte, size)
	b.Run("ReadUint32", func(b *testing.B) {
		x.Clear()
		x.Write(raw)
		var sum uint32
		for b.Loop() {
			for range size / 4 {
				sum += x.ReadUint32()
			}
			x.Clear()
			x.Commit(len(x.Writable()))
		}
		sink = byte(sum)
	})
	b.Run("slice read", func(b *testing.B) {
		var sum uint32
		for b.Loop() {
			for s := raw; len(s) >= 4; s = s[4:] {
				sum += binary.BigEndian.Uint32(s)
			}
		}
		sink = byte(sum)
	})
	b.Run("WriteUint32", func(b *testing.B) {
		for b.Loop() {
			x.Clear()
			for i := range size / 4 {
				x.WriteUint32(uint32(i))
			}
		}
	})
	b.Run("slice append", func(b *testing.B) {
		s := raw
		for b.Loop() {
			s = s[:0]
			for i := range size / 4 {
				s = binary.BigEndian.AppendUint32(s, uint32(i))
			}
		}
		sink = s[5]
	})
	b.Run("Uint32At", func(b *testing.B) {
		x.Clear()
		x.Write(raw)
		var sum uint32
		for b.Loop() {
			for i := 0; i+4 <= size; i += 4 {
				sum += x.Uint32At(i)
			}
		}
		sink = byte(sum)
	})
	b.Run("slice at", func(b *testing.B) {
		var sum uint32
		for b.Loop() {
			for i := 0; i+4 <= size; i += 4 {
				sum += binary.BigEndian.Uint32(raw[i:])
			}
		}
		sink = byte(sum)
	})
}

// inParts returns size bytes in parts of step.
func inParts(size, step int) *buffer.Buf {
	x := buffer.Compose()
	for n := 0; n < size; n += step {
		o := buffer.Heap.Alloc(step)
		o.Write(make([]byte, min(step, size-n)))
		x.Append(o)
	}
	return x
}

// BenchmarkComposite reads 4 KiB by 4 bytes, in turns with a slice, and reports how long
// one read takes at best, and what part of the slice's time that is. Parts of 63 bytes
// make a number in 16 lie in two of them.
func BenchmarkComposite(b *testing.B) {
	const size = 4 << 10
	raw := make([]byte, size)
	var order [size / 4]int
	for i := range order {
		order[i] = i * 4 * 389 % size // all of them, in leaps
	}
	kinds := []struct {
		name         string
		slice, parts func(x *buffer.Buf) uint32
	}{
		{"ReadUint32", func(*buffer.Buf) (sum uint32) {
			for s := raw; len(s) >= 4; s = s[4:] {
				sum += binary.BigEndian.Uint32(s)
			}
			return sum
		}, func(x *buffer.Buf) (sum uint32) {
			for range size / 4 {
				sum += x.ReadUint32()
			}
			x.SetReaderIndex(0)
			return sum
		}},
		{"Uint32At", func(*buffer.Buf) (sum uint32) {
			for _, i := range order {
				sum += binary.BigEndian.Uint32(raw[i:])
			}
			return sum
		}, func(x *buffer.Buf) (sum uint32) {
			for _, i := range order {
				sum += x.Uint32At(i)
			}
			return sum
		}},
	}
	for _, kind := range kinds {
		for _, step := range []int{size, 1 << 10, 64, 63} {
			name := fmt.Sprintf("%s/parts=%d", kind.name, step)
			x := inParts(size, step)
			if step == size {
				name = kind.name + "/contiguous"
				x.Consolidate()
			}
			b.Run(name, func(b *testing.B) {
				best := [2]time.Duration{time.Hour, time.Hour}
				for b.Loop() {
					for i, f := range []func(*buffer.Buf) uint32{kind.slice, kind.parts} {
						start := time.Now()
						for range 4 {
							sink += byte(f(x))
						}
						best[i] = min(best[i], time.Since(start))
					}
				}
				b.ReportMetric(float64(best[1])/size, "ns/access")
				b.ReportMetric(float64(best[1])/float64(best[0]), "of-slice")
				b.ReportMetric(0, "ns/op")
			})
			x.Release()
		}
	}
}

// BenchmarkManyParts reports what one step costs when a Buf consists of many parts of a
// byte, as a peer can have it. It must not grow with their number, except where a list has
// to be moved: to insert in the middle, or behind thousands of parts that have been read.
func BenchmarkManyParts(b *testing.B) {
	m := buffer.FromString("x")
	defer m.Release()
	many := func(n int) *buffer.Buf {
		x := buffer.Compose()
		for range n {
			x.Append(m.Slice(0, 1))
		}
		return x
	}
	peeked := 0
	steps := []struct {
		name  string
		bytes int // that a step uses up
		do    func(x *buffer.Buf) *buffer.Buf
	}{
		{"Append", 1, func(x *buffer.Buf) *buffer.Buf { x.Append(m.Slice(0, 1)); return x }},
		{"Append and write", 1, func(x *buffer.Buf) *buffer.Buf { x.Append(m.Slice(0, 1)); x.WriteUint8(1); return x }},
		{"Prepend", 1, func(x *buffer.Buf) *buffer.Buf { x.Prepend(m.Slice(0, 1)); return x }},
		{"Prepend after reads", 1, func(x *buffer.Buf) *buffer.Buf { x.Skip(1); x.Prepend(m.Slice(0, 1)); x.Skip(1); return x }},
		{"Insert", 1, func(x *buffer.Buf) *buffer.Buf { x.Insert(x.Len()/2, m.Slice(0, 1)); return x }},
		{"ReadUint32", 4, func(x *buffer.Buf) *buffer.Buf { x.ReadUint32(); return x }},
		{"ReadUint32 and DiscardRead", 4, func(x *buffer.Buf) *buffer.Buf { x.ReadUint32(); x.DiscardRead(); return x }},
		{"Peek and Skip", 4, func(x *buffer.Buf) *buffer.Buf { x.Peek(2); x.Skip(4); return x }},
		{"Peek more and more", 4, func(x *buffer.Buf) *buffer.Buf { peeked += 4; x.Peek(peeked); return x }},
		{"Peek and DiscardReadParts", 4, func(x *buffer.Buf) *buffer.Buf { x.Peek(2); x.Skip(4); x.DiscardReadParts(); return x }},
		{"Uint32At", 4, func(x *buffer.Buf) *buffer.Buf { x.Uint32At(x.ReaderIndex()); x.Skip(4); return x }},
		{"ReadSlice", 4, func(x *buffer.Buf) *buffer.Buf { x.ReadSlice(4).Release(); return x }},
		{"Split", 4, func(x *buffer.Buf) *buffer.Buf { rest := x.Split(4); x.Release(); return rest }},
		{"AppendIovecs", 4, func(x *buffer.Buf) *buffer.Buf { x.AppendIovecs(nil, 4); x.Skip(4); x.DiscardReadParts(); return x }},
		{"IndexByte", 4, func(x *buffer.Buf) *buffer.Buf { x.Skip(4); x.IndexByte('x', 0); return x }},
	}
	for _, s := range steps {
		for _, n := range []int{1000, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", s.name, n), func(b *testing.B) {
				best := time.Hour
				for b.Loop() {
					x := many(n)
					peeked = 0
					start := time.Now()
					for range n / s.bytes {
						x = s.do(x)
					}
					best = min(best, time.Since(start)/time.Duration(n/s.bytes))
					x.Release()
				}
				b.ReportMetric(float64(best), "ns/step")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
