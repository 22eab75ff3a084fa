//go:build linux

package main

import (
	"fmt"

	"github.com/runnel-io/runnel/buffer"
)

// compositeGroup: the same access, to a Buf of about 4 KiB made of many. Of parts of
// 63 B three numbers in 64 lie across two.
func compositeGroup() group {
	g := group{title: "Access to uint32 in a composite of 4 KiB"}
	for _, x := range []struct {
		part  int
		ratio float64
	}{{1 << 10, 1.2}, {64, 2}, {63, 3}} {
		g.cases = append(g.cases, &bench{
			key:     fmt.Sprintf("composite/%d", x.part),
			name:    "sequential read, parts of " + sizeName(x.part),
			per:     compositeSize(x.part) / 4,
			targets: []target{{peer: inStruct, ratio: x.ratio}},
			setup:   func() ([]contender, func()) { return compositeReads(x.part) },
		})
	}
	g.cases = append(g.cases, &bench{
		key:     "composite/random",
		name:    "random read, 64 parts of 64 B",
		per:     accesses,
		targets: []target{{ns: 20}},
		setup:   randomCompositeReads,
	})
	return g
}

// compositeSize is 4 KiB, or the most below that as many numbers and whole parts fill.
func compositeSize(part int) int { return accessSize / part &^ 3 * part }

// newComposite returns a composite of whole parts with size bytes. Each part has
// memory of its own.
func newComposite(c *buffer.Cache, size, part int) *buffer.Buf {
	var parts []*buffer.Buf
	for range size / part {
		b := c.Alloc(part)
		b.Write(make([]byte, part))
		parts = append(parts, b)
	}
	return buffer.Compose(parts...)
}

func compositeReads(part int) ([]contender, func()) {
	c, done := newCache()
	size := compositeSize(part)
	b := newComposite(c, size, part)
	return []contender{
		{runnel, readBuf(b, size)},
		{inStruct, readCursor(size)},
	}, func() { b.Release(); done() }
}

func randomCompositeReads() ([]contender, func()) {
	c, done := newCache()
	b := newComposite(c, accessSize, 64)
	return []contender{
		{runnel, readBufAt(b, randomIndices())},
		{inStruct, readCursorAt(accessSize, randomIndices())},
	}, func() { b.Release(); done() }
}
