package buffer

import (
	"slices"
	"sync"
	"unsafe"
)

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

	cur    int // the part under the read window, or behind it while that is on bounce
	resume int // and then the index in it at which reading goes on
	hint   int // the part that was last looked at by index
	rbase  int // what to add to r for the index of the whole
	wbase  int // and to q

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
// it found last and the one behind it before it searches. The last part is told from
// what lies before it alone, so it need not be up to date.
func (ps *parts) find(pos int, last *int) int {
	list := ps.list
	k := *last
	if k >= ps.head && k < len(list) && (k == ps.head || pos >= list[k-1].end) {
		if pos < list[k].end {
			return k
		}
		if k++; k < len(list) && pos < list[k].end {
			*last = k
			return k
		}
	}
	// The first part that ends behind pos, by halves, without a branch that the
	// processor would have to guess.
	lo, n := ps.head, len(list)-ps.head
	for n > 1 {
		half := n >> 1
		next := lo + half
		if list[next-1].end <= pos {
			lo = next
		}
		n -= half
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
		if ps.origin -= size; ps.origin < -maxOrigin {
			ps.renumber()
		}
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

// maxOrigin is the position that index 0 may reach, in either direction.
const maxOrigin = 1 << 30

// renumber makes index 0 position 0 again, so that a Buf may live for ever.
func (ps *parts) renumber() {
	for k := ps.head; k < len(ps.list); k++ {
		ps.list[k].end -= ps.origin
	}
	ps.first -= ps.origin
	ps.origin = 0
}
