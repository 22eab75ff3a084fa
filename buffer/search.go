package buffer

import "bytes"

// IndexByte returns where c is first found among the bytes that can be read: the
// number of bytes before it, counted from ReaderIndex, or -1. The first from bytes
// are not looked at; a decoder that has searched them before passes their number.
func (b *Buf) IndexByte(c byte, from int) int {
	n := b.q - b.r
	if from < 0 {
		b.outOfRange("IndexByte", from, 0)
	}
	if from >= n {
		return -1
	}
	var i int
	if b.flags&flagMapped != 0 {
		b.guarded(func() { i = bytes.IndexByte(bytesAt(b.p, b.r+from, n-from), c) })
	} else {
		i = bytes.IndexByte(bytesAt(b.p, b.r+from, n-from), c)
	}
	if i < 0 {
		return -1
	}
	return from + i
}
