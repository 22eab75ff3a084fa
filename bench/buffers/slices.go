//go:build linux

package main

import "github.com/cloudwego/netpoll"

const (
	frames    = 64
	frameSize = 1 << 10
)

// sliceGroup: a buffer of 64 KiB is cut into frames of 1 KiB, which are released one by
// one, as behind a decoder. Runnel's starts again from the front; a LinkBuffer
// cannot, so it gets new memory for each pass, a 64th of it in each figure.
func sliceGroup() group {
	return group{
		title: "Slices",
		cases: []*bench{{
			key:     "slice",
			name:    "create and release",
			per:     frames,
			targets: []target{{ns: 20}},
			setup:   cut,
		}},
	}
}

func cut() ([]contender, func()) {
	c, done := newCache()
	b := c.Alloc(frames * frameSize)
	b.Write(make([]byte, frames*frameSize))
	return []contender{
		{runnel, func(n int) {
			var sum int
			for range n {
				for range frames {
					s := b.ReadSlice(frameSize)
					sum += s.Len()
					s.Release()
				}
				b.Unread(frames * frameSize)
			}
			sink += uint64(sum)
		}},
		{linkBuffer, func(n int) {
			var sum int
			for range n {
				l, _ := newLinkBuffer(frames * frameSize)
				l.Flush()
				for range frames {
					s, err := l.Slice(frameSize)
					if err != nil {
						panic(err) // never: the bytes are there
					}
					sum += s.Len()
					s.(*netpoll.LinkBuffer).Close()
				}
				l.Close()
			}
			sink += uint64(sum)
		}},
	}, func() { b.Release(); done() }
}
