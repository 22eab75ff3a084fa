//go:build linux

package main

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/cloudwego/netpoll"
	"github.com/valyala/bytebufferpool"

	"github.com/runnel-io/runnel/buffer"
)

const (
	remoteSize = 1 << 10
	batchSize  = 256
	ringSize   = 1 << 10

	handOver = "hand-over alone"
)

// remoteGroup: one goroutine allocates and writes the first byte, another releases.
// Singly, both are at work at the same time and each buffer is handed over by itself.
// In batches they take turns, and the time is what both need together. The hand-over
// is part of every figure; a column shows it alone. Singly it is most of the figure,
// so the bound in nanoseconds is for batches.
func remoteGroup() group {
	below := target{peer: syncPool, ratio: 1}
	return group{
		title: "Allocation on one goroutine, release on another, 1 KiB",
		cases: []*bench{
			{key: "remote/single", name: "singly", per: batchSize, wall: true, targets: []target{below}, setup: func() ([]contender, func()) { return remote(false) }},
			{key: "remote/batch", name: "in batches of 256", per: batchSize, wall: true, targets: []target{{ns: 35}, below}, setup: func() ([]contender, func()) { return remote(true) }},
		},
	}
}

func remote(batches bool) ([]contender, func()) {
	c, done := newCache()
	lists := newPools(remoteSize)
	same := new([]byte)
	return []contender{
		{runnel, relay(batches,
			func(i int) *buffer.Buf { b := c.Alloc(remoteSize); b.WriteUint8(byte(i)); return b },
			func(b *buffer.Buf) int { n := b.Len(); b.Release(); return n })},
		{syncPool, relay(batches,
			func(i int) *[]byte { b := lists.slices.Get().(*[]byte); (*b)[0] = byte(i); return b },
			func(b *[]byte) int { n := len(*b); lists.slices.Put(b); return n })},
		{byteBuffer, relay(batches,
			func(i int) *bytebufferpool.ByteBuffer { b := lists.byteBuffer(); b.B[0] = byte(i); return b },
			func(b *bytebufferpool.ByteBuffer) int { n := len(b.B); lists.buffers.Put(b); return n })},
		{linkBuffer, relay(batches,
			func(i int) *netpoll.LinkBuffer { b, p := newLinkBuffer(remoteSize); p[0] = byte(i); return b },
			func(b *netpoll.LinkBuffer) int { n := b.MallocLen(); b.Close(); return n })},
		{plainMake, relay(batches,
			func(i int) []byte { b := make([]byte, remoteSize); b[0] = byte(i); return b },
			func(b []byte) int { return len(b) })},
		{handOver, relay(batches,
			func(int) *[]byte { return same },
			func(b *[]byte) int { return len(*b) })},
	}, done
}

// relay returns a pass of batchSize buffers from one goroutine to another.
func relay[T any](batches bool, alloc func(i int) T, release func(T) int) func(int) {
	if batches {
		return func(passes int) { byTurns(passes, alloc, release) }
	}
	return func(passes int) { singly(passes, alloc, release) }
}

// byTurns: the owner fills a batch, the other empties it, and neither works meanwhile.
func byTurns[T any](passes int, alloc func(int) T, release func(T) int) {
	var batch [batchSize]T
	var full atomic.Bool
	var ended sync.WaitGroup
	ended.Go(func() {
		var sum int
		for range passes {
			await(func() bool { return full.Load() })
			for _, b := range batch {
				sum += release(b)
			}
			full.Store(false)
		}
		atomic.AddUint64(&sink, uint64(sum))
	})
	for range passes {
		for i := range batch {
			batch[i] = alloc(i)
		}
		full.Store(true)
		await(func() bool { return !full.Load() })
	}
	ended.Wait()
}

// singly: both work at once, with a queue in between.
func singly[T any](passes int, alloc func(int) T, release func(T) int) {
	var q queue[T]
	var ended sync.WaitGroup
	ended.Go(func() {
		var sum int
		for range passes * batchSize {
			sum += release(q.pop())
		}
		atomic.AddUint64(&sink, uint64(sum))
	})
	for i := range passes * batchSize {
		q.push(alloc(i))
	}
	ended.Wait()
}

// queue passes values from one goroutine to one other. Each side looks at the other's
// count only when what it last saw of it does not suffice.
type queue[T any] struct {
	slots [ringSize]T

	_      [64]byte
	pushed atomic.Uint64
	room   uint64 // up to here there was room, as the pushing side last saw

	_      [64]byte
	popped atomic.Uint64
	filled uint64 // up to here it was filled, as the popping side last saw
	_      [64]byte
}

func (q *queue[T]) push(v T) {
	n := q.pushed.Load()
	if n == q.room {
		await(func() bool { q.room = q.popped.Load() + ringSize; return n < q.room })
	}
	q.slots[n%ringSize] = v
	q.pushed.Store(n + 1)
}

func (q *queue[T]) pop() T {
	n := q.popped.Load()
	if n == q.filled {
		await(func() bool { q.filled = q.pushed.Load(); return n < q.filled })
	}
	v := q.slots[n%ringSize]
	q.popped.Store(n + 1)
	return v
}

// await spins: to be woken costs more than what is measured. It gives way when it
// takes long, because the other may have lost its core.
func await(ready func() bool) {
	for i := 0; !ready(); i++ {
		if i > 1000 {
			runtime.Gosched()
		}
	}
}
