//go:build linux

package main

import (
	"fmt"
	"sync"

	"github.com/cloudwego/netpoll"
	"github.com/valyala/bytebufferpool"

	"github.com/runnel-io/runnel/buffer"
)

// The peers. What a column means in each group is in the README.
const (
	runnel     = "Runnel"
	syncPool   = "sync.Pool"
	byteBuffer = "bytebufferpool"
	linkBuffer = "LinkBuffer"
	plainMake  = "make"
)

// ownerGroup: a buffer is allocated, its first byte written, and released, all on one
// goroutine, as a loop does it. Only the first byte, because a Buf has no way to
// reach the last without writing what comes before it.
func ownerGroup() group {
	g := group{title: "Allocation and release by one goroutine"}
	for _, size := range []int{64, 1 << 10, 16 << 10, 64 << 10} {
		g.cases = append(g.cases, &bench{
			key:     fmt.Sprintf("owner/%d", size),
			name:    sizeName(size),
			per:     1,
			targets: []target{{ns: 10}, {peer: syncPool, ratio: 1}},
			setup:   func() ([]contender, func()) { return owner(size) },
		})
	}
	return g
}

func owner(size int) ([]contender, func()) {
	c, done := newCache()
	lists := newPools(size)
	return []contender{
		{runnel, func(n int) {
			var sum int
			for i := range n {
				b := c.Alloc(size)
				b.WriteUint8(byte(i))
				sum += b.Len()
				b.Release()
			}
			sink += uint64(sum)
		}},
		{syncPool, func(n int) {
			var sum int
			for i := range n {
				b := lists.slices.Get().(*[]byte)
				(*b)[0] = byte(i)
				sum += len(*b)
				lists.slices.Put(b)
			}
			sink += uint64(sum)
		}},
		{byteBuffer, func(n int) {
			var sum int
			for i := range n {
				b := lists.byteBuffer()
				b.B[0] = byte(i)
				sum += len(b.B)
				lists.buffers.Put(b)
			}
			sink += uint64(sum)
		}},
		{linkBuffer, func(n int) {
			var sum int
			for i := range n {
				b, p := newLinkBuffer(size)
				p[0] = byte(i)
				sum += len(p)
				b.Close()
			}
			sink += uint64(sum)
		}},
		{plainMake, func(n int) {
			var sum int
			for i := range n {
				escape = make([]byte, size)
				escape[0] = byte(i)
				sum += len(escape)
			}
			escape = nil
			sink += uint64(sum)
		}},
	}, done
}

// escape keeps what make returns on the heap.
var escape []byte

// newCache returns a cache of a pool of its own, owned by the calling goroutine.
func newCache() (*buffer.Cache, func()) {
	p, err := buffer.NewPool(buffer.PoolConfig{})
	if err != nil {
		panic(err) // no bound is set that could be wrong
	}
	c := p.NewCache()
	c.Bind()
	return c, func() {
		c.Close()
		if err := p.Close(); err != nil {
			panic(err) // a case has lost a buffer
		}
	}
}

// pools are the peers that keep buffers for reuse, all of one size.
type pools struct {
	size    int
	slices  sync.Pool // of *[]byte
	buffers bytebufferpool.Pool
}

func newPools(size int) *pools {
	return &pools{size: size, slices: sync.Pool{New: func() any { b := make([]byte, size); return &b }}}
}

// byteBuffer takes a buffer of the size from bytebufferpool, which knows no sizes.
func (p *pools) byteBuffer() *bytebufferpool.ByteBuffer {
	b := p.buffers.Get()
	if cap(b.B) < p.size {
		b.B = make([]byte, p.size)
	}
	b.B = b.B[:p.size]
	return b
}

// newLinkBuffer returns a LinkBuffer and its memory for size bytes.
func newLinkBuffer(size int) (*netpoll.LinkBuffer, []byte) {
	b := netpoll.NewLinkBuffer(size)
	p, err := b.Malloc(size)
	if err != nil {
		panic(err) // never, by its contract
	}
	return b, p[:size]
}

func sizeName(n int) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}
