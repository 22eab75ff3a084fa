package buffer

import "unsafe"

// chunk returns the bytes from index i on that lie at one place in memory, at least
// one of them: 0 <= i < WriterIndex. The slice is b's. Reading it may fault when b
// is mapped: see guarded.
func (b *Buf) chunk(i int) []byte {
	if b.flags&flagParts != 0 {
		return b.chunkOfParts(i)
	}
	return unsafe.Slice((*byte)(unsafe.Add(b.p, i)), b.q-i)
}

// chunkOfParts is chunk for a composite.
func (b *Buf) chunkOfParts(i int) []byte {
	x, i := b.partAt(i)
	return bytesAt(x.p, i, x.q-i)
}

// chunkBefore returns the bytes in front of index i that lie at one place in memory,
// at least one of them: 0 < i <= WriterIndex. The slice is b's, as that of chunk.
func (b *Buf) chunkBefore(i int) []byte {
	if b.flags&flagParts != 0 {
		x, last := b.partAt(i - 1)
		return bytesAt(x.p, x.r, last+1-x.r)
	}
	return bytesAt(b.p, 0, i)
}

// cut makes i the index at which the next byte is written: ReaderIndex <= i <=
// WriterIndex. Bytes behind it that others may show are no longer capacity.
func (b *Buf) cut(i int) {
	if i == b.WriterIndex() {
		return
	}
	if b.flags&flagParts != 0 {
		b.cutParts(i)
		return
	}
	if !b.reusable() {
		b.l = i
	}
	b.q = i
	b.sync()
}
