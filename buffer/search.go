package buffer

import (
	"bytes"
	"slices"
)

// Searches count positions from ReaderIndex: the position of a byte is the number
// of bytes that can be read before it. Forward ones take from, the number of bytes
// not to be looked at, so that a decoder can go on behind what it has searched
// before; none are left when from is at least Len. Backward ones take before and
// look at the first so many bytes only; Len or more means all. Either panics with
// ErrShort when negative, and with ErrTruncated when bytes of a mapped file are gone.
//
// Each looks at bytes where they lie. Where all lie at one place, as mostly, it is
// package bytes that looks, called directly; else the functions over parts do.

// IndexByte returns where c is first found among the bytes that can be read: the
// number of bytes before it, counted from ReaderIndex, or -1. The first from bytes
// are not looked at; a decoder that has searched them before passes their number.
// It panics with ErrShort when from is negative.
func (b *Buf) IndexByte(c byte, from int) int {
	b.bound("IndexByte", from)
	i, n := b.ReaderIndex()+from, b.Len()-from
	if n <= 0 {
		return -1
	}
	if b.Mapped() {
		return plus(from, scan(b, func() int { return indexByte(b, i, n, c) }))
	}
	if p := b.chunk(i); len(p) == n {
		return plus(from, bytes.IndexByte(p, c))
	}
	return plus(from, indexByte(b, i, n, c))
}

// LastIndexByte returns where c is last found among the first before of the bytes
// that can be read: the number of bytes in front of it, counted from ReaderIndex,
// or -1. All bytes are looked at when before is Len or more. It panics with
// ErrShort when before is negative.
func (b *Buf) LastIndexByte(c byte, before int) int {
	b.bound("LastIndexByte", before)
	i, n := b.ReaderIndex(), min(before, b.Len())
	if n == 0 {
		return -1
	}
	if b.Mapped() {
		return scan(b, func() int { return lastIndexByte(b, i, n, c) })
	}
	if p := b.chunk(i); len(p) >= n {
		return bytes.LastIndexByte(p[:n], c)
	}
	return lastIndexByte(b, i, n, c)
}

// IndexAny is [Buf.IndexByte] for the first byte that is in set.
func (b *Buf) IndexAny(set ByteSet, from int) int {
	b.bound("IndexAny", from)
	i, n := b.ReaderIndex()+from, b.Len()-from
	if n <= 0 {
		return -1
	}
	if b.Mapped() {
		return plus(from, scan(b, func() int { return indexAny(b, i, n, &set) }))
	}
	if p := b.chunk(i); len(p) == n {
		return plus(from, set.index(p))
	}
	return plus(from, indexAny(b, i, n, &set))
}

// LastIndexAny is [Buf.LastIndexByte] for the last byte that is in set.
func (b *Buf) LastIndexAny(set ByteSet, before int) int {
	b.bound("LastIndexAny", before)
	i, n := b.ReaderIndex(), min(before, b.Len())
	if n == 0 {
		return -1
	}
	if b.Mapped() {
		return scan(b, func() int { return lastIndexAny(b, i, n, &set) })
	}
	if p := b.chunk(i); len(p) >= n {
		return set.lastIndex(p[:n])
	}
	return lastIndexAny(b, i, n, &set)
}

// Index returns where sep first begins, behind the first from of the bytes that can
// be read: the number of bytes before it, counted from ReaderIndex, or -1. An empty
// sep is found at from, unless that is more than Len. Index panics with ErrShort
// when from is negative.
//
// The time it takes is in proportion to the bytes looked at, in whatever parts they
// lie. It allocates only for a sep of more than 64 bytes in content of several parts.
func (b *Buf) Index(sep []byte, from int) int {
	b.bound("Index", from)
	i, n := b.ReaderIndex()+from, b.Len()-from
	switch {
	case n < len(sep):
		return -1
	case len(sep) == 0:
		return from
	case b.Mapped():
		return plus(from, scan(b, func() int { return index(b, i, n, sep) }))
	}
	if p := b.chunk(i); len(p) == n {
		return plus(from, bytes.Index(p, sep))
	}
	return plus(from, index(b, i, n, sep))
}

// LastIndex returns where sep last begins of those places where it lies wholly
// among the first before of the bytes that can be read: the number of bytes in front
// of it, counted from ReaderIndex, or -1. All bytes are looked at when before is
// Len or more. An empty sep is found behind the last of them. LastIndex panics with
// ErrShort when before is negative. It costs what [Buf.Index] does.
func (b *Buf) LastIndex(sep []byte, before int) int {
	b.bound("LastIndex", before)
	i, n := b.ReaderIndex(), min(before, b.Len())
	switch {
	case n < len(sep):
		return -1
	case len(sep) == 0:
		return n
	case b.Mapped():
		return scan(b, func() int { return lastIndex(b, i, n, sep) })
	}
	if p := b.chunk(i); len(p) >= n {
		return bytes.LastIndex(p[:n], sep)
	}
	return lastIndex(b, i, n, sep)
}

// IndexFunc calls stop with each of the bytes that can be read, in order, until it
// returns true, and returns where that was: the number of bytes before it, counted
// from ReaderIndex, or -1. The first from bytes are left out. It panics with
// ErrShort when from is negative. Netty: forEachByte.
//
// stop must not change, read from or release b. What it panics with is not touched.
func (b *Buf) IndexFunc(stop func(c byte) bool, from int) int {
	b.bound("IndexFunc", from)
	i, n := b.ReaderIndex()+from, b.Len()-from
	if n <= 0 {
		return -1
	}
	if b.Mapped() {
		return plus(from, b.indexFuncMapped(i, n, stop))
	}
	return plus(from, indexFunc(b, i, n, stop))
}

// LastIndexFunc is [Buf.IndexFunc] backwards: it calls stop with each of the first
// before of the bytes that can be read, the last one first. All bytes are looked at
// when before is Len or more. It panics with ErrShort when before is negative.
func (b *Buf) LastIndexFunc(stop func(c byte) bool, before int) int {
	b.bound("LastIndexFunc", before)
	i, n := b.ReaderIndex(), min(before, b.Len())
	if n == 0 {
		return -1
	}
	if b.Mapped() {
		return b.lastIndexFuncMapped(i, n, stop)
	}
	return lastIndexFunc(b, i, n, stop)
}

// bound checks that b can be searched from or before a position.
func (b *Buf) bound(op string, at int) {
	if at < 0 || b.Refs() <= 0 {
		b.outOfRange(op, at, 0)
	}
}

// plus returns where something is that was found at, which is -1 if it was not,
// behind the first from bytes.
func plus(from, at int) int {
	if at < 0 {
		return -1
	}
	return from + at
}

// scan returns what f does, which only reads b. When b is mapped and bytes are gone,
// it panics with ErrTruncated. f must run no code of the user.
func scan[T any](b *Buf, f func() T) (v T) {
	if !b.Mapped() {
		return f()
	}
	b.guarded(func() { v = f() })
	return v
}

// chunks is content at any number of places in memory: what the functions below need
// of a Buf. They take the index of the first byte and the number of bytes they may
// look at, and return how many of these lie before what was found, or -1.
type chunks interface {
	chunk(i int) []byte
	chunkBefore(i int) []byte
}

// head returns bytes of s from i on that lie at one place, at most n.
func head(s chunks, i, n int) []byte {
	p := s.chunk(i)
	return p[:min(n, len(p))]
}

// tail returns bytes of s in front of i that lie at one place, at most n.
func tail(s chunks, i, n int) []byte {
	p := s.chunkBefore(i)
	return p[max(0, len(p)-n):]
}

func indexByte(s chunks, i, n int, c byte) int {
	for done := 0; done < n; {
		p := head(s, i+done, n-done)
		if at := bytes.IndexByte(p, c); at >= 0 {
			return done + at
		}
		done += len(p)
	}
	return -1
}

func lastIndexByte(s chunks, i, n int, c byte) int {
	for n > 0 {
		p := tail(s, i+n, n)
		n -= len(p)
		if at := bytes.LastIndexByte(p, c); at >= 0 {
			return n + at
		}
	}
	return -1
}

func indexAny(s chunks, i, n int, set *ByteSet) int {
	for done := 0; done < n; {
		p := head(s, i+done, n-done)
		if at := set.index(p); at >= 0 {
			return done + at
		}
		done += len(p)
	}
	return -1
}

func lastIndexAny(s chunks, i, n int, set *ByteSet) int {
	for n > 0 {
		p := tail(s, i+n, n)
		n -= len(p)
		if at := set.lastIndex(p); at >= 0 {
			return n + at
		}
	}
	return -1
}

func indexFunc(s chunks, i, n int, stop func(byte) bool) int {
	for done := 0; done < n; {
		p := head(s, i+done, n-done)
		if at := slices.IndexFunc(p, stop); at >= 0 {
			return done + at
		}
		done += len(p)
	}
	return -1
}

func lastIndexFunc(s chunks, i, n int, stop func(byte) bool) int {
	for n > 0 {
		p := tail(s, i+n, n)
		n -= len(p)
		if at := lastFunc(p, stop); at >= 0 {
			return n + at
		}
	}
	return -1
}

func lastFunc(p []byte, stop func(byte) bool) int {
	for i := len(p) - 1; i >= 0; i-- {
		if stop(p[i]) {
			return i
		}
	}
	return -1
}

// copied is how many bytes of a mapped Buf are copied at a time for a function of
// the user: that has to run unguarded, so that its panics stay as they are and
// faults of its own are not taken for a truncated file.
const copied = 512

func (b *Buf) indexFuncMapped(i, n int, stop func(byte) bool) int {
	var block [copied]byte
	for done := 0; done < n; {
		p := block[:min(len(block), n-done)]
		b.guarded(func() { p = p[:copy(p, b.chunk(i+done))] })
		if at := slices.IndexFunc(p, stop); at >= 0 {
			return done + at
		}
		done += len(p)
	}
	return -1
}

func (b *Buf) lastIndexFuncMapped(i, n int, stop func(byte) bool) int {
	var block [copied]byte
	for n > 0 {
		p := block[:min(len(block), n)]
		b.guarded(func() { p = p[:copy(p, tail(b, i+n, len(p)))] })
		n -= len(p)
		if at := lastFunc(p, stop); at >= 0 {
			return n + at
		}
	}
	return -1
}

// index finds sep, of at least one byte: within a part by bytes.Index, across
// borders by a matcher, which sees no byte more than twice. So parts of a byte each,
// and bytes that match again and again but for the last one, cost no more than others.
func index(s chunks, i, n int, sep []byte) int {
	var room [maxStackSep]int
	m := matcher{sep: sep}
	for done := 0; done < n; {
		p := head(s, i+done, n-done)
		// Go on with what matches so far, for as long as it begins in front of p.
		seen := 0
		for m.k > seen && seen < len(p) {
			seen++
			if m.step(p[seen-1]) {
				return done + seen - len(sep)
			}
		}
		done += len(p)
		if m.k > seen {
			continue
		}
		// What matches now begins in p, and nothing else in front of that.
		p = p[seen-m.k:]
		if at := bytes.Index(p, sep); at >= 0 {
			return done - len(p) + at
		}
		if done == n {
			break
		}
		if m.k = 0; m.rest == nil {
			m.rest = m.table(room[:])
		}
		for _, c := range p[max(0, len(p)-len(sep)+1):] {
			m.step(c)
		}
	}
	return -1
}

// lastIndex is index with the direction turned round.
func lastIndex(s chunks, i, n int, sep []byte) int {
	var room [maxStackSep]int
	m := matcher{sep: sep, back: true}
	for n > 0 {
		p := tail(s, i+n, n)
		seen := 0
		for m.k > seen && seen < len(p) {
			seen++
			if m.step(p[len(p)-seen]) {
				return n - seen
			}
		}
		n -= len(p)
		if m.k > seen {
			continue
		}
		p = p[:len(p)-seen+m.k]
		if at := bytes.LastIndex(p, sep); at >= 0 {
			return n + at
		}
		if n == 0 {
			break
		}
		if m.k = 0; m.rest == nil {
			m.rest = m.table(room[:])
		}
		for j := min(len(p), len(sep)-1) - 1; j >= 0; j-- {
			m.step(p[j])
		}
	}
	return -1
}

// maxStackSep is the length up to which a separator is searched for across borders
// without an allocation.
const maxStackSep = 64

// matcher follows how much of a separator the bytes seen so far end with, by the
// algorithm of Knuth, Morris and Pratt: no input makes it take more than two
// comparisons a byte.
type matcher struct {
	sep  []byte
	back bool // bytes come from the end, and sep is compared from its end
	k    int  // bytes of sep matched

	// rest[j] is how many bytes of sep may still match when the first j+1 did and the
	// next does not.
	rest []int
}

// table returns rest, in room if that is enough.
func (m *matcher) table(room []int) []int {
	if len(m.sep) > len(room) {
		room = make([]int, len(m.sep))
	}
	t := matcher{sep: m.sep, back: m.back, rest: room[:len(m.sep)]}
	for j := 1; j < len(t.sep); j++ {
		t.step(t.at(j))
		t.rest[j] = t.k
	}
	return t.rest
}

// step takes the next byte and reports whether all of sep has been seen.
func (m *matcher) step(c byte) bool {
	for m.k > 0 && m.at(m.k) != c {
		m.k = m.rest[m.k-1]
	}
	if m.at(m.k) == c {
		m.k++
	}
	return m.k == len(m.sep)
}

func (m *matcher) at(j int) byte {
	if m.back {
		j = len(m.sep) - 1 - j
	}
	return m.sep[j]
}
