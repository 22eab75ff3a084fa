package buffer

import (
	"math"
	"sync/atomic"
	"unsafe"

	"github.com/runnel-io/runnel/internal/sys"
)

// A Buf with flagParts is a composite: it has no memory but other Bufs, its parts,
// each with a handle that nobody else holds. Its read window is on the part that
// holds the next byte, and r and w are indices of that part; its write window is on
// the last part, and q and l are indices of that one. parts says where the parts lie,
// so that indices of the whole can be told from those of a part.
//
// Every method that looks at the fields of a Buf as if they were those of the whole
// must ask for flagParts first. Reads and writes need not: they see the windows, and
// what lies outside of them goes through need, room and at.

// Compose returns a Buf that consists of what can be read from bufs, one after the
// other, without copying it. It takes the references to all of them over. There is no
// limit to their number, they may be of any kind, and those that are composite
// themselves are taken apart. Without bufs it is empty.
func Compose(bufs ...*Buf) *Buf {
	var b *Buf
	if len(bufs) == 0 {
		b = FromBytes(nil)
		b.compose()
		return b
	}
	b = bufs[0].newHandle()
	b.born()
	b.become(newParts())
	added := 0
	defer func() {
		if added < len(bufs) {
			b.Release()
			for _, o := range bufs[added+1:] {
				o.Release()
			}
		}
	}()
	for _, o := range bufs {
		b.Append(o)
		added++
	}
	return b
}

// Append adds what can be read from o to the end of b without copying it, and takes
// the reference to o over. Further writes go behind it, into the room o has left or
// new memory.
func (b *Buf) Append(o *Buf) {
	b.insert("Append", b.WriterIndex(), o)
}

// Prepend adds what can be read from o in front of the bytes that can be read from b,
// without copying, and takes the reference to o over: o is read next.
func (b *Buf) Prepend(o *Buf) {
	b.insert("Prepend", b.ReaderIndex(), o)
}

// Insert adds what can be read from o in front of index i, without copying, and takes
// the reference to o over. Bytes from i on move up; ReaderIndex stays, so that what is
// inserted below it counts as read. It panics with ErrShort when i is more than
// WriterIndex, or below what [Buf.DiscardReadParts] has left; o is released then.
func (b *Buf) Insert(i int, o *Buf) {
	b.insert("Insert", i, o)
}

func (b *Buf) insert(op string, i int, o *Buf) {
	o.alive(op)
	if b == o {
		panic(&MisuseError{Op: op, Err: errOwnPart})
	}
	done := false
	defer func() {
		if !done {
			o.Release()
		}
	}()
	b.alive(op)
	end := b.WriterIndex()
	if i < 0 || i > end {
		b.outOfRange(op, i, 0)
	}
	if b.flags&flagParts == 0 {
		if o.Len() == 0 {
			return
		}
		b.compose()
	}
	ps := b.pieces()
	if i < b.leastIndex() {
		b.outOfRange(op, i, 0)
	}
	if o.Len() == 0 {
		return
	}
	if most := math.MaxInt - max(end, ps.end()); o.Len() > most {
		panic(&Error{op, o.Len(), most, ErrTooLarge})
	}
	done = true
	r := b.ReaderIndex()
	var room [4]part
	in := o.takeApart(room[:0])
	if i == end {
		ps.dropEmptyTail()
		for _, x := range in {
			ps.add(x.b)
		}
	} else {
		ps.insert(ps.cut(i+ps.origin), in)
	}
	b.reopen(r)
}

// compose makes b a composite, with its bytes so far as the only part.
func (b *Buf) compose() {
	r := b.r
	h := b.newHandle()
	h.born()
	h.hold(b.slot)
	h.flags = h.flags&flagsOfHandle | b.flags&^flagsOfHandle
	if b.flags&flagShown != 0 {
		h.show()
	}
	h.p, h.wp, h.q, h.l = b.p, b.wp, b.q, b.l
	h.owner, b.owner = b.owner, h.owner
	h.sync()
	ps := newParts()
	b.become(ps)
	if h.q == 0 && h.l == 0 {
		h.Release()
	} else {
		ps.put(h)
	}
	b.reopen(r)
}

// become makes b, whose own memory has been taken, a composite of ps.
func (b *Buf) become(ps *parts) {
	b.hold(&ps.slot)
	b.flags = b.flags&flagsOfHandle | flagParts
	b.r, b.w, b.q, b.l, b.lim3 = 0, 0, 0, 0, 0
}

// pieces returns the parts of a composite, the last of them up to date with what has
// been written.
func (b *Buf) pieces() *parts {
	ps := (*parts)(unsafe.Pointer(b.slot))
	if n := len(ps.list); n > ps.head {
		t := &ps.list[n-1]
		if t.b.q != b.q {
			t.end += b.q - t.b.q
			t.b.q = b.q
			t.b.sync()
		}
		t.b.flags |= b.flags & flagClean
	}
	return ps
}

func (b *Buf) partsReader() int { return (*parts)(unsafe.Pointer(b.slot)).rbase + b.r }
func (b *Buf) partsWriter() int { return (*parts)(unsafe.Pointer(b.slot)).wbase + b.q }

func (b *Buf) partsLen() int {
	ps := (*parts)(unsafe.Pointer(b.slot))
	return ps.wbase + b.q - ps.rbase - b.r
}

// leastIndex returns the index of the first byte there is: 0, unless parts of a
// composite have been discarded.
func (b *Buf) leastIndex() int {
	if b.flags&flagParts == 0 {
		return 0
	}
	ps := (*parts)(unsafe.Pointer(b.slot))
	return ps.first - ps.origin
}

// partsExclusive is Exclusive for a composite.
func (b *Buf) partsExclusive() bool {
	if atomic.LoadInt32(&b.ref) != 1 {
		return false
	}
	ps := b.pieces()
	for _, x := range ps.list[ps.head:] {
		if !x.b.Exclusive() {
			return false
		}
	}
	return true
}

// reopen sets the windows after the parts have changed, with the reader at index i.
func (b *Buf) reopen(i int) {
	ps := (*parts)(unsafe.Pointer(b.slot))
	b.flags = b.flags&flagsOfHandle | flagParts
	b.wp, b.q, b.l = nil, 0, 0
	ps.wbase = ps.first - ps.origin
	if n := len(ps.list) - 1; n >= ps.head {
		t := ps.list[n].b
		b.wp, b.q, b.l = t.p, t.q, t.l
		ps.wbase = ps.start(n) - ps.origin - t.r
		b.flags |= t.flags & flagClean
	}
	if ps.mapped > 0 {
		b.flags |= flagMapped
	}
	ps.cur, ps.hint = ps.head, ps.head
	b.seek(ps, i)
}

// seek sets the read window on the part of the byte at index i.
func (b *Buf) seek(ps *parts, i int) {
	k := len(ps.list) - 1
	if k < ps.head {
		b.p, b.r, b.w = nil, 0, 0
		ps.rbase = i
		return
	}
	if pos := i + ps.origin; pos < ps.list[k].end {
		k = ps.find(pos, &ps.cur)
	}
	ps.cur = k
	x := ps.list[k].b
	ps.rbase = ps.start(k) - ps.origin - x.r
	b.p, b.r, b.w = x.p, i-ps.rbase, x.q
}

// takeApart takes the caller's reference to b and appends Bufs of one reference,
// contiguous and not empty, to dst that make up what can be read from b, which is
// not empty.
func (b *Buf) takeApart(dst []part) []part {
	mine := atomic.LoadInt32(&b.ref) == 1
	switch {
	case b.flags&flagParts == 0 && mine:
		if tracing() { // the caller's handle is of no more use
			v := b.splitAt(b.r)
			b.Release()
			b = v
		}
		return append(dst, part{b: b})
	case b.flags&flagParts == 0:
		v := b.view(b.r, b.q-b.r)
		b.Release()
		return append(dst, part{b: v})
	case mine:
		b.discardParts(true)
		ps := b.pieces()
		ps.dropEmptyTail()
		dst = append(dst, ps.list[ps.head:]...)
		clear(ps.list)
		ps.list, ps.head = ps.list[:0], 0
		b.Release()
	default:
		b.eachView(b.ReaderIndex(), b.Len(), func(x *Buf) { dst = append(dst, part{b: x}) })
		b.Release()
	}
	return dst
}

// eachView calls add with views of the parts of n > 0 bytes from index i.
func (b *Buf) eachView(i, n int, add func(*Buf)) {
	ps := b.pieces()
	pos := i + ps.origin
	for k := ps.find(pos, &ps.hint); n > 0; k++ {
		x := ps.list[k].b
		off := x.r + pos - ps.start(k)
		m := min(n, x.q-off)
		add(x.view(off, m))
		pos += m
		n -= m
	}
}

// sliceParts returns a Buf of n bytes from index i of a composite.
func (b *Buf) sliceParts(i, n int) *Buf {
	ps := b.pieces()
	if i < b.leastIndex() {
		b.outOfRange("Slice", i, n)
	}
	if n > 0 {
		k := ps.find(i+ps.origin, &ps.hint)
		if pos := i + ps.origin; pos+n <= ps.list[k].end {
			x := ps.list[k].b
			return x.view(x.r+pos-ps.start(k), n)
		}
	}
	v := b.newHandle()
	v.born()
	vs := newParts()
	v.become(vs)
	if n > 0 {
		b.eachView(i, n, vs.add)
	}
	v.reopen(0)
	// What is appended goes to memory of its own, as with every slice.
	return v
}

// duplicateParts is Duplicate for a composite.
func (b *Buf) duplicateParts() *Buf {
	r, gone := b.ReaderIndex(), b.leastIndex()
	v := b.sliceParts(gone, b.WriterIndex()-gone)
	if gone == 0 {
		v.Skip(r)
		return v
	}
	if v.flags&flagParts == 0 {
		v.compose()
	}
	vs := v.pieces()
	vs.origin = vs.first - gone
	v.reopen(r)
	return v
}

// splitParts is Split for a composite. It moves the parts of the side that has fewer.
func (b *Buf) splitParts(i int) *Buf {
	ps := b.pieces()
	pos := i + ps.origin
	if i < b.leastIndex() {
		b.outOfRange("Split", i, 0)
	}
	r := b.ReaderIndex()
	v := b.newHandle()
	v.born()
	vs := newParts()
	v.become(vs)
	if k := ps.cut(pos); k-ps.head >= len(ps.list)-k {
		ps.pinned -= ps.charges(k, len(ps.list))
		ps.moveTo(vs, k, len(ps.list))
		ps.list = ps.list[:k]
	} else {
		ps.pinned -= ps.charges(ps.head, k)
		vs.first, vs.origin = ps.first, ps.origin
		ps.moveTo(vs, ps.head, k)
		ps.head, ps.first, ps.origin = k, pos, pos
		ps.pinned += ps.charge(k)
		b.hold(&vs.slot)
		v.hold(&ps.slot)
	}
	b.reopen(min(r, i))
	v.reopen(max(0, r-i))
	return v
}

// cutParts is cut for a composite.
func (b *Buf) cutParts(i int) {
	ps := b.pieces()
	r, pos := b.ReaderIndex(), i+ps.origin
	k := len(ps.list)
	for k > ps.head && ps.start(k-1) >= pos {
		k--
	}
	ps.pinned -= ps.charges(k, len(ps.list))
	for _, x := range ps.list[k:] {
		ps.release(x.b)
	}
	clear(ps.list[k:])
	ps.list = ps.list[:k]
	if k > ps.head {
		last := &ps.list[k-1]
		last.b.cut(last.b.r + pos - ps.start(k-1))
		last.end = pos
	}
	b.reopen(r)
}

// discardParts releases the parts that have been read, and with trim drops the read
// bytes of the first one left, so that ReaderIndex becomes 0.
func (b *Buf) discardParts(trim bool) {
	ps := b.pieces()
	i := b.ReaderIndex()
	pos := i + ps.origin
	for n := len(ps.list) - ps.head; n > 0 && ps.list[ps.head].end <= pos; n-- {
		if x := ps.list[ps.head].b; n == 1 && x.l > x.q {
			break // there is room left to write to
		}
		ps.drop()
	}
	if trim {
		if ps.head < len(ps.list) && ps.first < pos {
			ps.list[ps.head].b.r += pos - ps.first
			ps.first = pos
		}
		ps.origin = pos
		i = 0
		if pos > maxOrigin {
			ps.renumber()
		}
	}
	b.reopen(i)
}

// clearParts is Clear for a composite.
func (b *Buf) clearParts() {
	ps := b.pieces()
	for ps.head < len(ps.list) {
		ps.drop()
	}
	ps.first, ps.origin = 0, 0
	b.reopen(0)
}

// growParts adds a part with room for n more bytes.
func (b *Buf) growParts(n int) {
	ps := b.pieces()
	have := 0
	if k := len(ps.list) - 1; k >= ps.head {
		have = ps.list[k].b.Cap()
	}
	r := b.ReaderIndex()
	x := b.allocator().Alloc(min(max(n, min(2*have, maxPart), minPart), max(n, b.MaxCap()-b.WriterIndex())))
	ps.dropEmptyTail()
	ps.put(x)
	b.reopen(r)
}

// Sizes of the parts that writing to a composite adds.
const (
	minPart = 256
	maxPart = 64 << 10
)

// needParts sets the read window so that n <= 8 bytes can be read at r.
func (b *Buf) needParts(n int) {
	ps := (*parts)(unsafe.Pointer(b.slot))
	if !b.nextPart(ps, n) {
		b.needAnywhere(b.pieces(), n)
	}
}

// nextPart is needParts for the common case that the bytes lie in the next part, or
// in this one and the next. It reports whether it is that.
func (b *Buf) nextPart(ps *parts, n int) bool {
	k, left := ps.cur, b.w-b.r
	off := ps.resume
	if bounced := b.p == unsafe.Pointer(&ps.bounce); !bounced {
		if k++; k >= len(ps.list) {
			return false
		}
		off = ps.list[k].b.r
	} else if left > 0 {
		return false
	}
	x := ps.list[k].b
	end := x.q
	if k == len(ps.list)-1 {
		end = b.q
	}
	if off+n-left > end || left > 0 && b.flags&flagMapped != 0 {
		return false
	}
	i := ps.rbase + b.r
	ps.cur = k
	if left == 0 {
		ps.rbase = i - off
		b.p, b.r, b.w = x.p, off, end
		return true
	}
	copy(ps.bounce[:left], bytesAt(b.p, b.r, left))
	copy(ps.bounce[left:n], bytesAt(x.p, off, n-left))
	b.bounce(ps, i, n, off+n-left)
	return true
}

// needAnywhere is needParts for bytes in any number of parts.
func (b *Buf) needAnywhere(ps *parts, n int) {
	i := b.ReaderIndex()
	if ps.end()-ps.origin-i < n {
		b.short("read", n)
	}
	b.seek(ps, i)
	if b.w-b.r >= n {
		return
	}
	b.copyOut(ps.bounce[:n], i)
	b.seek(ps, i+n)
	b.bounce(ps, i, n, b.r)
}

// bounce sets the read window on a copy of the n bytes from index i. Behind them reading
// goes on at index resume of part cur.
func (b *Buf) bounce(ps *parts, i, n, resume int) {
	b.p, b.r, b.w = unsafe.Pointer(&ps.bounce), 0, n
	ps.rbase = i
	ps.resume = resume
}

// atParts returns an address of n <= 8 bytes from index i, which have been written, to
// be read: theirs, or that of a copy.
func (b *Buf) atParts(i, n int) unsafe.Pointer {
	ps := (*parts)(unsafe.Pointer(b.slot))
	pos := i + ps.origin
	if pos < ps.first {
		b.outOfRange("access at index", i, n)
	}
	k := ps.find(pos, &ps.hint)
	x := ps.list[k].b
	end := x.q
	if k == len(ps.list)-1 {
		end = b.q
	}
	if off := x.r + pos - ps.start(k); off+n <= end {
		return unsafe.Add(x.p, off)
	}
	b.copyOut(ps.aside[:n], i)
	return unsafe.Pointer(&ps.aside)
}

// placeParts returns the address of n > 0 bytes from index i, which exist, or nil if
// they lie in several parts.
func (b *Buf) placeParts(i, n int) unsafe.Pointer {
	ps := b.pieces()
	pos := i + ps.origin
	if pos < ps.first {
		b.outOfRange("access at index", i, n)
	}
	k := ps.find(pos, &ps.hint)
	if pos+n > ps.list[k].end {
		return nil
	}
	x := ps.list[k].b
	return unsafe.Add(x.p, x.r+pos-ps.start(k))
}

// setAtParts returns the address of n bytes from index i, which exist, to be changed,
// or nil if they lie in several parts.
func (b *Buf) setAtParts(i, n int) unsafe.Pointer {
	for at := i; at < i+n; {
		x, off := b.partAt(at)
		if x.flags&flagReadOnly != 0 {
			panic(&Error{"write at index", at, b.WriterIndex(), ErrReadOnly})
		}
		at += x.q - off
	}
	return b.placeParts(i, n)
}

// setOver changes the bytes from index i, which exist, in all the parts they lie in.
func (b *Buf) setOver(i int, p []byte) {
	for len(p) > 0 {
		n := copy(b.chunk(i), p)
		p = p[n:]
		i += n
	}
}

// partAt returns the part of the byte at index i, which exists, and its index there.
func (b *Buf) partAt(i int) (*Buf, int) {
	ps := b.pieces()
	pos := i + ps.origin
	if pos < ps.first {
		b.outOfRange("access at index", i, 1)
	}
	k := ps.find(pos, &ps.hint)
	x := ps.list[k].b
	return x, x.r + pos - ps.start(k)
}

// gather makes the n > 0 bytes from index i, which exist, lie at one place. If they do
// not, it copies them to a part of their own, which is read-only if one of those was
// whose place it takes; or to the first of these parts if there is room behind it, so
// that who looks at more and more does not have all copied each time.
func (b *Buf) gather(i, n int) {
	if b.placeParts(i, n) != nil {
		return
	}
	ps := b.pieces()
	r, pos := b.ReaderIndex(), i+ps.origin
	end := pos + n
	from, to := ps.find(pos, &ps.hint), ps.find(end-1, &ps.hint)
	var readOnly uint16
	for _, y := range ps.list[from : to+1] {
		readOnly |= y.b.flags & flagReadOnly
	}
	x, left, parts := ps.list[from].b, pos-ps.start(from), 1
	if left == 0 && readOnly == 0 && x.reusable() && x.offset()+x.r+n <= x.slot.size {
		have := x.q - x.r
		b.copyOut(bytesAt(x.p, x.q, n-have), i+have)
		x.q = x.r + n
		ps.list[from].end = end
		parts = 0
	} else {
		size := n
		if left == 0 && x.q-x.r > n/2 {
			size = max(n, min(n+n/4, b.MaxCap())) // more may follow
		}
		x = b.allocator().Alloc(size)
		b.copyTo(x, i, n)
		x.q = n
		x.flags |= readOnly
	}
	x.l = x.q
	x.sync()
	// What is left of the first of them and of the last stays, and room behind it.
	if left > 0 {
		y := ps.list[from].b
		y.q = y.r + left
		y.l = y.q
		y.sync()
		ps.list[from].end = pos
	}
	if left > 0 || parts == 0 {
		from++
	}
	z := &ps.list[to]
	z.b.r = z.b.q - (z.end - end)
	if end == z.end && (to < len(ps.list)-1 || z.b.q == z.b.l) {
		to++
	}
	ps.pinned -= ps.charges(from, to)
	for _, y := range ps.list[from:to] {
		ps.release(y.b)
	}
	from = ps.resize(from, to, parts)
	if parts > 0 {
		ps.list[from] = part{x, end}
	}
	ps.pinned += ps.charges(from, from+parts)
	b.reopen(r)
}

// peekParts is Peek for a composite.
func (b *Buf) peekParts(n int) []byte {
	if n == 0 {
		return nil
	}
	i := b.ReaderIndex()
	b.gather(i, n)
	ps := b.pieces()
	b.seek(ps, i)
	ps.list[ps.cur].b.show()
	return bytesAt(b.p, b.r, n)
}

// Parts returns of how many pieces of memory b consists: 1, unless it is composite.
func (b *Buf) Parts() int {
	if b.flags&flagParts == 0 {
		return 1
	}
	ps := b.pieces()
	return len(ps.list) - ps.head
}

// DiscardReadParts releases the parts of a composite that have been read. Indices
// stay as they are; bytes of those parts can no longer be read at an index, nor be
// unread. It does nothing to other Bufs. See [Buf.DiscardRead], which moves the
// indices and drops the rest of what has been read, too.
func (b *Buf) DiscardReadParts() {
	b.alive("DiscardReadParts")
	if b.flags&flagParts != 0 {
		b.discardParts(false)
	}
}

// Consolidate copies the parts of a composite into one piece of memory; nothing else
// does. It panics with ErrOutOfMemory or ErrTooLarge, and changes nothing then. The
// indices stay, unless parts have been discarded: then what has been read goes, too,
// and ReaderIndex becomes 0.
func (b *Buf) Consolidate() {
	b.alive("Consolidate")
	if b.flags&flagParts == 0 {
		return
	}
	ps := b.pieces()
	from, r := 0, b.ReaderIndex()
	if b.leastIndex() > 0 {
		from, r = r, 0
	}
	n := b.WriterIndex() - from
	o := b.allocator().Alloc(n)
	b.copyTo(o, from, n)
	o.q = n
	b.hold(o.slot)
	b.flags = b.flags&flagsOfHandle | o.flags&^flagsOfHandle
	b.owner, o.owner = o.owner, b.owner
	b.p, b.wp, b.r, b.q, b.l = o.p, o.wp, r, n, o.l
	b.sync()
	o.become(ps)
	o.reopen(0)
	o.Release()
}

// partsWindow is Window for a composite.
func (b *Buf) partsWindow() []byte {
	ps := b.pieces()
	b.seek(ps, b.ReaderIndex())
	if b.w == b.r {
		return nil
	}
	ps.list[ps.cur].b.show()
	return bytesAt(b.p, b.r, b.w-b.r)
}

// eachPart yields the bytes from the reader on, part by part.
func (b *Buf) eachPart(yield func([]byte) bool) {
	for i, end := b.ReaderIndex(), b.WriterIndex(); i < end; {
		x, _ := b.partAt(i)
		x.show()
		p := b.chunk(i)
		if !yield(p) {
			return
		}
		i += len(p)
	}
}

// partsIovecs is AppendIovecs for a composite.
func (b *Buf) partsIovecs(dst []sys.Iovec, max int) []sys.Iovec {
	ps := b.pieces()
	i := b.ReaderIndex()
	if i == b.WriterIndex() {
		return dst
	}
	pos := i + ps.origin
	for k := ps.find(pos, &ps.hint); k < len(ps.list) && max > 0; k++ {
		x := ps.list[k].b
		off := x.r + pos - ps.start(k)
		if n := x.q - off; n > 0 {
			dst = append(dst, sys.MakeIovec(bytesAt(x.p, off, n)))
			pos += n
			max--
		}
	}
	return dst
}
