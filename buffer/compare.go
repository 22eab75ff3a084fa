package buffer

import (
	"bytes"
	"cmp"
	"hash/maphash"
)

// Comparisons are about the bytes that can be read, wherever the indices stand and
// in whatever parts the bytes lie. They panic with ErrTruncated when bytes of a
// mapped file are gone.

// Equal reports whether b and o hold the same bytes to be read.
func (b *Buf) Equal(o *Buf) bool {
	b.alive("Equal")
	o.alive("Equal")
	n := b.Len()
	if n == 0 || n != o.Len() {
		return n == o.Len()
	}
	if !o.Mapped() {
		if q := o.chunk(o.ReaderIndex()); len(q) == n {
			return b.equalAt(b.ReaderIndex(), q)
		}
	}
	return b.compare(o, n) == 0
}

// Compare compares the bytes of b and o that can be read, as bytes.Compare does: 0
// if they are the same, -1 if b's come first in the order of bytes or are the
// beginning of o's, else 1.
func (b *Buf) Compare(o *Buf) int {
	b.alive("Compare")
	o.alive("Compare")
	n, m := b.Len(), o.Len()
	if c := b.compare(o, min(n, m)); c != 0 {
		return c
	}
	return cmp.Compare(n, m)
}

// EqualBytes reports whether the bytes that can be read are those of p.
func (b *Buf) EqualBytes(p []byte) bool {
	b.alive("EqualBytes")
	return b.Len() == len(p) && b.equalAt(b.ReaderIndex(), p)
}

// HasPrefix reports whether the bytes that can be read begin with p.
func (b *Buf) HasPrefix(p []byte) bool {
	b.alive("HasPrefix")
	return b.Len() >= len(p) && b.equalAt(b.ReaderIndex(), p)
}

// HasSuffix reports whether the bytes that can be read end with p.
func (b *Buf) HasSuffix(p []byte) bool {
	b.alive("HasSuffix")
	return b.Len() >= len(p) && b.equalAt(b.WriterIndex()-len(p), p)
}

// hashSeed keeps hashes from being known to those who choose the bytes.
var hashSeed = maphash.MakeSeed()

// Hash returns a hash of the bytes that can be read. Bufs that are Equal have the
// same one. Each process hashes in a way of its own that peers cannot foresee, so
// that they cannot make different bytes collide: keep no hash beyond the process,
// and send none.
func (b *Buf) Hash() uint64 {
	b.alive("Hash")
	i, n := b.ReaderIndex(), b.Len()
	if b.Mapped() {
		return scan(b, func() uint64 { return hash(b, i, n) })
	}
	if n > 0 {
		if p := b.chunk(i); len(p) == n {
			return maphash.Bytes(hashSeed, p)
		}
	}
	return hash(b, i, n)
}

// compare compares the first n bytes to be read of b and o.
func (b *Buf) compare(o *Buf, n int) int {
	if n == 0 {
		return 0
	}
	i, j := b.ReaderIndex(), o.ReaderIndex()
	if b.Mapped() || o.Mapped() {
		return scan(b, func() int {
			return scan(o, func() int { return compare(b, o, i, j, n) })
		})
	}
	if p, q := b.chunk(i), o.chunk(j); len(p) >= n && len(q) >= n {
		return bytes.Compare(p[:n], q[:n])
	}
	return compare(b, o, i, j, n)
}

// equalAt reports whether the bytes from index i on, of which there are enough, are
// those of p.
func (b *Buf) equalAt(i int, p []byte) bool {
	if len(p) == 0 {
		return true
	}
	if b.Mapped() {
		return scan(b, func() bool { return equal(b, i, p) })
	}
	if q := b.chunk(i); len(q) >= len(p) {
		return bytes.Equal(q[:len(p)], p)
	}
	return equal(b, i, p)
}

func equal(s chunks, i int, p []byte) bool {
	for len(p) > 0 {
		q := head(s, i, len(p))
		if !bytes.Equal(q, p[:len(q)]) {
			return false
		}
		p = p[len(q):]
		i += len(q)
	}
	return true
}

// compare compares n bytes of s from index i and of o from index j.
func compare(s, o chunks, i, j, n int) int {
	var p, q []byte
	for n > 0 {
		if len(p) == 0 {
			p = head(s, i, n)
		}
		if len(q) == 0 {
			q = head(o, j, n)
		}
		k := min(len(p), len(q))
		if c := bytes.Compare(p[:k], q[:k]); c != 0 {
			return c
		}
		p, q = p[k:], q[k:]
		i, j, n = i+k, j+k, n-k
	}
	return 0
}

func hash(s chunks, i, n int) uint64 {
	var h maphash.Hash
	h.SetSeed(hashSeed)
	for n > 0 {
		p := head(s, i, n)
		h.Write(p)
		i, n = i+len(p), n-len(p)
	}
	return h.Sum64()
}
