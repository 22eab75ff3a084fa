//go:build linux

package main

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/cloudwego/netpoll"

	"github.com/runnel-io/runnel/buffer"
)

const (
	accessSize = 4 << 10
	accesses   = accessSize / 4

	inStruct     = "[]byte in a struct"
	appendUint32 = "AppendUint32"
)

// accessGroup: numbers of 4 bytes, big-endian, in 4 KiB.
func accessGroup() group {
	return group{
		title: "Access to uint32 in 4 KiB",
		cases: []*bench{
			{key: "read", name: "sequential read", per: accesses, targets: []target{{peer: inStruct, ratio: 1.2}}, setup: reads},
			{key: "write", name: "sequential write", per: accesses, targets: []target{{peer: inStruct, ratio: 2}, {peer: appendUint32, ratio: 1}}, setup: writes},
			{key: "random", name: "random read", per: accesses, targets: []target{{peer: inStruct, ratio: 1.3}}, setup: randomReads},
		},
	}
}

// cursor is how decoders and encoders without a buffer type hold their bytes.
type cursor struct {
	b []byte
	i int
}

func (c *cursor) readUint32() uint32 {
	v := binary.BigEndian.Uint32(c.b[c.i:])
	c.i += 4
	return v
}

func (c *cursor) writeUint32(v uint32) {
	binary.BigEndian.PutUint32(c.b[c.i:], v)
	c.i += 4
}

func (c *cursor) uint32At(i int) uint32 { return binary.BigEndian.Uint32(c.b[i:]) }

func reads() ([]contender, func()) {
	c, done := newCache()
	b := c.Alloc(accessSize)
	b.Write(make([]byte, accessSize))
	return []contender{
		{runnel, readBuf(b, accessSize)},
		{inStruct, readCursor(accessSize)},
		{linkBuffer, func(n int) {
			var sum uint32
			for range n {
				l, _ := newLinkBuffer(accessSize)
				l.Flush()
				for range accesses {
					p, err := l.Next(4)
					if err != nil {
						panic(err) // never: the bytes are there
					}
					sum += binary.BigEndian.Uint32(p)
				}
				l.Close()
			}
			sink += uint64(sum)
		}},
	}, func() { b.Release(); done() }
}

// The functions below make the passes. They must not be inlined: in a closure that
// has been copied into another function the compiler inlines nothing any more, and
// each access would be a call.

// readBuf reads all of b, which holds size bytes, in each pass.
//
//go:noinline
func readBuf(b *buffer.Buf, size int) func(int) {
	return func(n int) {
		var sum uint32
		for range n {
			for range size / 4 {
				sum += b.ReadUint32()
			}
			b.Unread(size)
		}
		sink += uint64(sum)
	}
}

//go:noinline
func readCursor(size int) func(int) {
	s := &cursor{b: make([]byte, size)}
	return func(n int) {
		var sum uint32
		for range n {
			for range size / 4 {
				sum += s.readUint32()
			}
			s.i = 0
		}
		sink += uint64(sum)
	}
}

func writes() ([]contender, func()) {
	c, done := newCache()
	b := c.Alloc(accessSize)
	s := &cursor{b: make([]byte, accessSize)}
	a := &cursor{b: make([]byte, 0, accessSize)}
	return []contender{
		{runnel, func(n int) {
			for range n {
				b.Clear()
				for i := range accesses {
					b.WriteUint32(uint32(i))
				}
			}
			sink += uint64(b.Len())
		}},
		{inStruct, func(n int) {
			for range n {
				s.i = 0
				for i := range accesses {
					s.writeUint32(uint32(i))
				}
			}
			sink += uint64(s.i)
		}},
		{appendUint32, func(n int) {
			for range n {
				a.b = a.b[:0]
				for i := range accesses {
					a.b = binary.BigEndian.AppendUint32(a.b, uint32(i))
				}
			}
			sink += uint64(len(a.b))
		}},
		{linkBuffer, func(n int) {
			for range n {
				l := netpoll.NewLinkBuffer(accessSize)
				for i := range accesses {
					p, err := l.Malloc(4)
					if err != nil {
						panic(err) // never, by its contract
					}
					binary.BigEndian.PutUint32(p[:4], uint32(i))
				}
				sink += uint64(l.MallocLen())
				l.Close()
			}
		}},
	}, func() { b.Release(); done() }
}

func randomReads() ([]contender, func()) {
	c, done := newCache()
	b := c.Alloc(accessSize)
	b.Write(make([]byte, accessSize))
	return []contender{
		{runnel, readBufAt(b, randomIndices())},
		{inStruct, readCursorAt(accessSize, randomIndices())},
	}, func() { b.Release(); done() }
}

// randomIndices says where to read numbers of 4 bytes in 4 KiB, aligned or not.
func randomIndices() []int {
	r := rand.New(rand.NewPCG(1, 2))
	at := make([]int, accesses)
	for i := range at {
		at[i] = r.IntN(accessSize - 3)
	}
	return at
}

//go:noinline
func readBufAt(b *buffer.Buf, at []int) func(int) {
	return func(n int) {
		var sum uint32
		for range n {
			for _, i := range at {
				sum += b.Uint32At(i)
			}
		}
		sink += uint64(sum)
	}
}

//go:noinline
func readCursorAt(size int, at []int) func(int) {
	s := &cursor{b: make([]byte, size)}
	return func(n int) {
		var sum uint32
		for range n {
			for _, i := range at {
				sum += s.uint32At(i)
			}
		}
		sink += uint64(sum)
	}
}
