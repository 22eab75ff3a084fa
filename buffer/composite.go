package buffer

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/runnel-io/runnel/internal/invariant"
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

// parts is what a composite is made of. A position is an index plus origin: positions
// of bytes stay the same when bytes in front of them come or go.
type parts struct {
	slot slot // must be the first field: see pieces

	list   []part
	head   int // the parts are list[head:]; what lies before is room for more
	first  int // position of the first byte of list[head]
	origin int // position of index 0
	pinned int // bytes the parts keep alive; memory that neighbours share counts once
	mapped int // parts that are mapped files

	cur   int // the part under the read window
	hint  int // the part that was last looked at by index
	rbase int // what to add to r for the index of the whole
	wbase int // and to q

	bounce [8]byte // a number that lies in several parts is read from here
	aside  [8]byte // and when it is read at an index, from here
}

// part is a contiguous Buf whose bytes from r to q belong to the whole. Only the last
// one may be empty, when room has been made and nothing written to it.
type part struct {
	b   *Buf
	end int // position behind its last byte
}

const partSize = int(unsafe.Sizeof(part{}))

// Lists of parts longer than this are not kept for reuse.
const keepParts = 256

var sparePart = sync.Pool{New: func() any {
	return &parts{slot: slot{class: classParts}}
}}

func newParts() *parts {
	ps := sparePart.Get().(*parts)
	ps.slot.pins = 1
	return ps
}

// giveBack ends the use of ps and releases what it still has.
func (ps *parts) giveBack() {
	for i := ps.head; i < len(ps.list); i++ {
		ps.list[i].b.Release()
	}
	clear(ps.list)
	list := ps.list[:0]
	if cap(list) > keepParts {
		list = nil
	}
	*ps = parts{slot: slot{class: classParts}, list: list}
	sparePart.Put(ps)
}

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
	if i+ps.origin < ps.first {
		b.outOfRange(op, i, 0)
	}
	if o.Len() == 0 {
		return
	}
	if most := math.MaxInt - ps.end(); o.Len() > most {
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
	h.slot, h.class, h.flags = b.slot, b.class, b.flags
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
	b.slot, b.class, b.flags = &ps.slot, classParts, flagParts
	b.p, b.wp = nil, nil
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
	b.flags = flagParts
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
	x := ps.list[k].b
	ps.rbase = ps.start(k) - ps.origin - x.r
	b.p, b.r, b.w = x.p, i-ps.rbase, x.q
}

// start returns the position of the first byte of part k.
func (ps *parts) start(k int) int {
	if k == ps.head {
		return ps.first
	}
	return ps.list[k-1].end
}

// end returns the position behind the last byte.
func (ps *parts) end() int {
	if n := len(ps.list); n > ps.head {
		return ps.list[n-1].end
	}
	return ps.first
}

// find returns the part of the byte at a position that exists. It looks at the part
// it found last and the one behind it before it searches.
func (ps *parts) find(pos int, last *int) int {
	k := *last
	if k >= ps.head && k < len(ps.list) && pos >= ps.start(k) {
		if pos < ps.list[k].end {
			return k
		}
		if k++; k < len(ps.list) && pos < ps.list[k].end {
			*last = k
			return k
		}
	}
	lo, hi := ps.head, len(ps.list)-1
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if pos < ps.list[mid].end {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	*last = lo
	return lo
}

// charge returns what part k keeps alive beyond the part in front of it.
func (ps *parts) charge(k int) int {
	s := ps.list[k].b.slot
	if k > ps.head && ps.list[k-1].b.slot == s {
		return handleSize
	}
	return handleSize + s.size + slotSize
}

// charges is the sum for the parts from to to, and the one behind them if there is
// any: what may change when they do.
func (ps *parts) charges(from, to int) (n int) {
	for k := from; k <= to && k < len(ps.list); k++ {
		n += ps.charge(k)
	}
	return n
}

// put adds a part at the end.
func (ps *parts) put(x *Buf) {
	if len(ps.list) == cap(ps.list) && ps.head > len(ps.list)/2 {
		n := copy(ps.list, ps.list[ps.head:])
		clear(ps.list[n:])
		ps.list = ps.list[:n]
		ps.head = 0
	}
	ps.list = append(ps.list, part{x, ps.end() + x.q - x.r})
	ps.pinned += ps.charge(len(ps.list) - 1)
	if x.Mapped() {
		ps.mapped++
	}
}

// add adds a part at the end, or joins it to the last one if it lies behind it in
// the same memory.
func (ps *parts) add(x *Buf) {
	if n := len(ps.list) - 1; n >= ps.head {
		t := &ps.list[n]
		if size := x.q - x.r; t.b.Join(x) {
			t.end += size
			return
		}
	}
	ps.put(x)
}

// insert adds parts, of which only the Bufs are given, in front of part k. It costs
// as much as there are parts on the shorter side.
func (ps *parts) insert(k int, in []part) {
	size := 0
	for _, x := range in {
		size += x.b.q - x.b.r
	}
	ps.pinned -= ps.charges(k, k)
	if k-ps.head < len(ps.list)-k {
		for j := ps.head; j < k; j++ {
			ps.list[j].end -= size
		}
		ps.first -= size
		ps.origin -= size
	} else {
		for j := k; j < len(ps.list); j++ {
			ps.list[j].end += size
		}
	}
	k = ps.resize(k, k, len(in))
	for j, x := range in {
		ps.list[k+j] = part{x.b, ps.start(k+j) + x.b.q - x.b.r}
		if x.b.Mapped() {
			ps.mapped++
		}
	}
	ps.pinned += ps.charges(k, k+len(in))
}

// resize makes room for n parts in place of those from from to to, which the caller
// has taken out, and returns where it begins. It moves the shorter side of the list.
func (ps *parts) resize(from, to, n int) int {
	more := n - (to - from)
	if from-ps.head < len(ps.list)-to {
		if more > ps.head {
			have := len(ps.list) - ps.head
			room := max(more, have/2)
			list := make([]part, room+have, 2*(room+have))
			copy(list[room:], ps.list[ps.head:])
			from += room - ps.head
			ps.list, ps.head = list, room
		}
		copy(ps.list[ps.head-more:], ps.list[ps.head:from])
		clear(ps.list[ps.head:max(ps.head, ps.head-more)])
		ps.head -= more
		return from - more
	}
	end := len(ps.list)
	if more > 0 {
		ps.list = slices.Grow(ps.list, more)[:end+more]
	}
	copy(ps.list[to+more:], ps.list[to:end])
	if more < 0 {
		clear(ps.list[end+more:])
		ps.list = ps.list[:end+more]
	}
	return from
}

// release releases a Buf that is no part any more.
func (ps *parts) release(x *Buf) {
	if x.Mapped() {
		ps.mapped--
	}
	x.Release()
}

// drop releases the first part.
func (ps *parts) drop() {
	x := ps.list[ps.head]
	ps.pinned -= ps.charges(ps.head, ps.head+1)
	ps.first = x.end
	ps.list[ps.head] = part{}
	if ps.head++; ps.head == len(ps.list) {
		ps.list, ps.head = ps.list[:0], 0
	} else {
		ps.pinned += ps.charge(ps.head)
	}
	ps.release(x.b)
}

// dropEmptyTail releases the last part if it is room that was never written to.
func (ps *parts) dropEmptyTail() {
	n := len(ps.list) - 1
	if n < ps.head || ps.list[n].end > ps.start(n) {
		return
	}
	x := ps.list[n].b
	ps.pinned -= ps.charge(n)
	ps.list[n] = part{}
	ps.list = ps.list[:n]
	ps.release(x)
}

// cut makes a position inside the parts, or at their end, a border and returns the
// part that begins there. Behind the last byte that is what room there is.
func (ps *parts) cut(pos int) int {
	k := len(ps.list) - 1
	if k < ps.head {
		return len(ps.list)
	}
	if pos < ps.list[k].end {
		k = ps.find(pos, &ps.hint)
	}
	x := ps.list[k].b
	n := pos - ps.start(k)
	if n == 0 {
		return k
	}
	if x.r+n == x.l {
		return k + 1
	}
	back, end := x.splitAt(x.r+n), ps.list[k].end
	k = ps.resize(k+1, k+1, 1)
	ps.list[k-1].end = pos
	ps.list[k] = part{back, end}
	ps.pinned += handleSize
	if back.Mapped() {
		ps.mapped++
	}
	return k
}

// takeApart takes the caller's reference to b and appends Bufs of one reference,
// contiguous and not empty, to dst that make up what can be read from b, which is
// not empty.
func (b *Buf) takeApart(dst []part) []part {
	mine := atomic.LoadInt32(&b.ref) == 1
	switch {
	case b.flags&flagParts == 0 && mine:
		if invariant.Enabled { // the caller's handle is of no more use
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
	if i+ps.origin < ps.first {
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
	ps := b.pieces()
	r, gone := b.ReaderIndex(), ps.first-ps.origin
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
	if pos < ps.first {
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
		b.slot, v.slot = v.slot, b.slot
	}
	b.reopen(min(r, i))
	v.reopen(max(0, r-i))
	return v
}

// moveTo moves the parts from from to to, which the caller takes out of the list, to
// the end of o.
func (ps *parts) moveTo(o *parts, from, to int) {
	had := o.mapped
	for _, x := range ps.list[from:to] {
		o.put(x.b)
	}
	clear(ps.list[from:to])
	ps.mapped -= o.mapped - had
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

// renumber makes index 0 position 0 again, so that a Buf may live for ever.
func (ps *parts) renumber() {
	for k := ps.head; k < len(ps.list); k++ {
		ps.list[k].end -= ps.origin
	}
	ps.first -= ps.origin
	ps.origin = 0
}

// maxOrigin is the position that index 0 may reach.
const maxOrigin = 1 << 30

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
	ps := b.pieces()
	i := b.ReaderIndex()
	if ps.end()-ps.origin-i < n {
		b.short("read", n)
	}
	b.seek(ps, i)
	if b.w-b.r >= n {
		return
	}
	b.copyOut(ps.bounce[:n], i)
	b.p, b.r, b.w = unsafe.Pointer(&ps.bounce), 0, n
	ps.rbase = i
}

// atParts returns an address of n <= 8 bytes from index i, which exist, to be read:
// theirs, or that of a copy.
func (b *Buf) atParts(i, n int) unsafe.Pointer {
	if p := b.placeParts(i, n); p != nil {
		return p
	}
	ps := b.pieces()
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

// gather makes the n > 0 bytes from index i, which exist, lie at one place: it copies
// them to a part of their own if they do not. That is read-only if one of those it
// takes the place of was.
func (b *Buf) gather(i, n int) {
	if b.placeParts(i, n) != nil {
		return
	}
	x := b.allocator().Alloc(n)
	b.copyTo(x, i, n)
	x.q, x.l = n, n
	x.sync()
	ps := b.pieces()
	r := b.ReaderIndex()
	pos := i + ps.origin
	end := pos + n
	from, to := ps.find(pos, &ps.cur), ps.find(end-1, &ps.hint)
	for k := from; k <= to; k++ {
		x.flags |= ps.list[k].b.flags & flagReadOnly
	}
	// What is left of the first of them and of the last stays, and room behind it.
	if left := pos - ps.start(from); left > 0 {
		y := ps.list[from].b
		y.q = y.r + left
		y.l = y.q
		y.sync()
		ps.list[from].end = pos
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
	k := ps.resize(from, to, 1)
	ps.list[k] = part{x, end}
	ps.pinned += ps.charges(k, k+1)
	b.reopen(r)
}

// peekParts is Peek for a composite.
func (b *Buf) peekParts(n int) []byte {
	if n == 0 {
		return nil
	}
	i := b.ReaderIndex()
	b.gather(i, n)
	b.seek(b.pieces(), i)
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
	if ps.first != ps.origin {
		from, r = r, 0
	}
	n := b.WriterIndex() - from
	o := b.allocator().Alloc(n)
	b.copyTo(o, from, n)
	o.q = n
	b.slot, b.class, b.flags = o.slot, o.class, o.flags
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
	return bytesAt(b.p, b.r, b.w-b.r)
}

// eachPart yields the bytes from the reader on, part by part.
func (b *Buf) eachPart(yield func([]byte) bool) {
	for i, end := b.ReaderIndex(), b.WriterIndex(); i < end; {
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
	for k := ps.find(pos, &ps.cur); k < len(ps.list) && max > 0; k++ {
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
