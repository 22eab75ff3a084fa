package buffer_test

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/runnel-io/runnel/buffer"
)

// modelSteps are the operations. Those with a larger weight come more often.
var modelSteps = weighted([]modelStep{
	{"WriteUint8", 1, func(m *model, x *modelBuf) {
		c := byte(m.byte())
		m.write(x, []byte{c}, func() { x.b.WriteUint8(c) })
	}},
	{"WriteUint16", 1, func(m *model, x *modelBuf) {
		p := m.filler(2)
		m.write(x, p, func() { x.b.WriteUint16(binary.BigEndian.Uint16(p)) })
	}},
	{"WriteUint24LE", 1, func(m *model, x *modelBuf) {
		p := m.filler(4)
		m.write(x, p[:3], func() { x.b.WriteUint24LE(binary.LittleEndian.Uint32(p)) })
	}},
	{"WriteUint32", 1, func(m *model, x *modelBuf) {
		p := m.filler(4)
		m.write(x, p, func() { x.b.WriteUint32(binary.BigEndian.Uint32(p)) })
	}},
	{"WriteUint64LE", 1, func(m *model, x *modelBuf) {
		p := m.filler(8)
		m.write(x, p, func() { x.b.WriteUint64LE(binary.LittleEndian.Uint64(p)) })
	}},
	{"Write", 3, func(m *model, x *modelBuf) {
		p := m.filler(m.size())
		m.write(x, p, func() { x.b.Write(p) })
	}},
	{"WriteString", 1, func(m *model, x *modelBuf) {
		p := m.filler(m.size())
		m.write(x, p, func() { x.b.WriteString(string(p)) })
	}},
	{"WriteUvarint", 1, func(m *model, x *modelBuf) {
		v := binary.BigEndian.Uint64(m.filler(8)) >> (m.byte() % 64)
		m.write(x, binary.AppendUvarint(nil, v), func() { x.b.WriteUvarint(v) })
	}},
	{"WriteBuf", 2, func(m *model, x *modelBuf) {
		o := m.pick() // which may be x
		if o.len() > modelLen {
			return
		}
		end := o.w
		if m.write(x, o.content(o.r, o.len()), func() { x.b.WriteBuf(o.b) }) {
			o.r = end
		}
	}},
	{"WriteRange", 1, func(m *model, x *modelBuf) {
		o := m.pick()
		i, n := m.index(o), m.size()
		write := func() { x.b.WriteRange(o.b, i, n) }
		if i < 0 || i+n > o.w || i < o.gone && n > 0 {
			m.refused(panicOf(write), buffer.ErrShort)
			return
		}
		m.write(x, o.content(i, n), write)
	}},
	{"Reserve", 1, func(m *model, x *modelBuf) {
		n, at := m.size(), x.w
		m.write(x, make([]byte, n), func() {
			if got := x.b.Reserve(n); got != at {
				m.fail("got %d, want %d", got, at)
			}
		})
	}},
	{"EnsureWritable", 1, func(m *model, x *modelBuf) {
		n := m.size()
		m.grow(x, n, func() { x.b.EnsureWritable(n) })
	}},
	{"Commit", 2, (*model).commit},
	{"Truncate", 1, (*model).truncate},

	{"ReadUint8", 1, func(m *model, x *modelBuf) {
		m.read(x, 1, func() []byte { return []byte{x.b.ReadUint8()} })
	}},
	{"ReadUint16LE", 1, func(m *model, x *modelBuf) {
		m.read(x, 2, func() []byte { return binary.LittleEndian.AppendUint16(nil, x.b.ReadUint16LE()) })
	}},
	{"ReadUint24", 1, func(m *model, x *modelBuf) {
		m.read(x, 3, func() []byte { return binary.BigEndian.AppendUint32(nil, x.b.ReadUint24())[1:] })
	}},
	{"ReadUint32", 2, func(m *model, x *modelBuf) {
		m.read(x, 4, func() []byte { return binary.BigEndian.AppendUint32(nil, x.b.ReadUint32()) })
	}},
	{"ReadUint64", 2, func(m *model, x *modelBuf) {
		m.read(x, 8, func() []byte { return binary.BigEndian.AppendUint64(nil, x.b.ReadUint64()) })
	}},
	{"ReadUint64LE", 1, func(m *model, x *modelBuf) {
		m.read(x, 8, func() []byte { return binary.LittleEndian.AppendUint64(nil, x.b.ReadUint64LE()) })
	}},
	{"ReadBytes", 1, func(m *model, x *modelBuf) {
		n := m.length(x)
		m.read(x, n, func() []byte { p := make([]byte, n); x.b.ReadBytes(p); return p })
	}},
	{"ReadString", 1, func(m *model, x *modelBuf) {
		n := m.length(x)
		m.read(x, n, func() []byte { return []byte(x.b.ReadString(n)) })
	}},
	{"TryReadUint32", 1, func(m *model, x *modelBuf) {
		v, ok := x.b.TryReadUint32()
		if want := x.len() >= 4; ok != want {
			m.fail("with %d left: got %v", x.len(), ok)
		} else if ok {
			m.read(x, 4, func() []byte { return binary.BigEndian.AppendUint32(nil, v) })
		}
	}},
	{"TryReadUvarint", 1, func(m *model, x *modelBuf) {
		want, n := binary.Uvarint(x.content(x.r, x.len()))
		if v, ok, _ := x.b.TryReadUvarint(); ok != (n > 0) || ok && v != want {
			m.fail("got %d, %v, want %d, %v", v, ok, want, n > 0)
		} else if ok {
			x.r += n
		}
	}},
	{"WriteTo", 1, func(m *model, x *modelBuf) {
		var all bytes.Buffer
		m.read(x, x.len(), func() []byte {
			if n, err := x.b.WriteTo(&all); n != int64(all.Len()) || err != nil {
				m.fail("got %d, %v", n, err)
			}
			return all.Bytes()
		})
	}},
	{"Peek", 3, func(m *model, x *modelBuf) {
		n, r := m.length(x), x.r
		m.peek(x, n, func() []byte { return x.b.Peek(n) })
		x.r = r
	}},
	{"Next", 3, func(m *model, x *modelBuf) {
		n := m.length(x)
		m.peek(x, n, func() []byte { return bytes.Clone(x.b.Next(n)) })
	}},
	{"Skip", 3, func(m *model, x *modelBuf) {
		n := m.length(x)
		m.read(x, n, func() []byte { x.b.Skip(n); return x.content(x.r, n) })
	}},
	{"Unread", 2, func(m *model, x *modelBuf) {
		n := m.length(x)
		err := panicOf(func() { x.b.Unread(n) })
		if n > x.r-x.gone {
			m.refused(err, buffer.ErrShort)
		} else {
			x.r -= n
		}
	}},
	{"SetReaderIndex", 1, func(m *model, x *modelBuf) {
		i := m.index(x)
		err := panicOf(func() { x.b.SetReaderIndex(i) })
		if i < x.gone || i > x.w {
			m.refused(err, buffer.ErrShort)
		} else {
			x.r = i
		}
	}},
	{"Window", 1, (*model).window},

	{"At", 3, (*model).at},
	{"SetAt", 3, (*model).setAt},
	{"SetBytesAt", 1, func(m *model, x *modelBuf) {
		i, p := m.index(x), m.filler(m.size())
		m.set(x, i, p, func() { x.b.SetBytesAt(i, p) })
	}},
	{"IndexByte", 1, func(m *model, x *modelBuf) {
		c, from := byte(m.byte()), m.size()
		want := -1
		if from <= x.len() {
			if want = bytes.IndexByte(x.content(x.r+from, x.len()-from), c); want >= 0 {
				want += from
			}
		}
		if got := x.b.IndexByte(c, from); got != want {
			m.fail("got %d, want %d", got, want)
		}
	}},

	{"Slice", 3, func(m *model, x *modelBuf) {
		i := m.index(x)
		n := m.size()
		if m.byte()%4 > 0 {
			n = min(n, max(0, x.w-i))
		}
		m.slice(x, i, n, func() *buffer.Buf { return x.b.Slice(i, n) })
	}},
	{"ReadSlice", 3, func(m *model, x *modelBuf) {
		if n := m.length(x); m.slice(x, x.r, n, func() *buffer.Buf { return x.b.ReadSlice(n) }) {
			x.r += n
		}
	}},
	{"TryReadSlice", 1, func(m *model, x *modelBuf) {
		n := m.size()
		s, ok := x.b.TryReadSlice(n)
		if ok != (n <= x.len()) {
			m.fail("%d of %d: got %v", n, x.len(), ok)
		}
		if ok {
			m.slice(x, x.r, n, func() *buffer.Buf { return s })
			x.r += n
		}
	}},
	{"Duplicate", 2, func(m *model, x *modelBuf) { m.duplicate(x, x.b.Duplicate()) }},
	{"ReadOnly", 2, func(m *model, x *modelBuf) {
		v := m.duplicate(x, x.b.ReadOnly())
		for k := range v.segs {
			v.segs[k].readOnly = true
		}
	}},
	{"Copy", 1, func(m *model, x *modelBuf) {
		var c *buffer.Buf
		if m.allocates(x, x.len(), func() { c = x.b.Copy() }) {
			m.add(c, false, m.fresh(x.content(x.r, x.len())))
		}
	}},
	{"Split", 3, (*model).split},
	{"Join", 2, (*model).joinTwo},

	{"Append", 6, func(m *model, x *modelBuf) {
		m.insert(x, x.w, m.pick(), func(o *buffer.Buf) { x.b.Append(o) })
	}},
	{"Prepend", 4, func(m *model, x *modelBuf) {
		m.insert(x, x.r, m.pick(), func(o *buffer.Buf) { x.b.Prepend(o) })
	}},
	{"Insert", 4, func(m *model, x *modelBuf) {
		i := m.index(x)
		m.insert(x, i, m.pick(), func(o *buffer.Buf) { x.b.Insert(i, o) })
	}},
	{"Compose", 2, (*model).composeOf},
	{"Consolidate", 1, (*model).consolidate},
	{"Clear", 1, (*model).clear},
	{"DiscardRead", 3, (*model).discardRead},
	{"DiscardReadParts", 3, func(m *model, x *modelBuf) {
		room := x.room()
		x.b.DiscardReadParts()
		if x.parts {
			m.discardParts(x, room)
		}
	}},

	{"Retain", 1, func(m *model, x *modelBuf) {
		x.b.Retain()
		x.refs++
	}},
	{"Release", 4, (*model).release},
})

type modelStep struct {
	name   string
	weight int
	do     func(*model, *modelBuf)
}

func weighted(steps []modelStep) (all []modelStep) {
	for _, s := range steps {
		all = append(all, slices.Repeat([]modelStep{s}, s.weight)...)
	}
	return all
}

// create makes a Buf out of nothing.
func (m *model) create() {
	kind := m.byte() % 10
	m.doing, m.on = "creation", modelBuf{}
	var b *buffer.Buf
	var err error
	n := m.size()
	switch kind {
	case 0, 1:
		b, err = m.cache.TryAlloc(n)
	case 2:
		b, err = m.pool.TryAlloc(n)
	case 3, 4:
		if b, err = m.tight.TryAlloc(n); err != nil && n <= tightMaxCap {
			m.refused(err, buffer.ErrOutOfMemory)
			return
		}
	case 5:
		b = buffer.Heap.Alloc(n)
	case 6:
		m.wrapped()
		return
	case 7:
		m.many()
		return
	case 8:
		// Room for what follows, and nothing else.
		x := m.add(buffer.Compose(), true, m.fresh(nil))
		m.check(x)
		return
	case 9:
		m.mapped()
		return
	}
	if err != nil {
		m.refused(err, buffer.ErrTooLarge)
		return
	}
	m.check(m.add(b, false, m.fresh(nil)))
}

func (m *model) mapped() {
	if m.file == nil {
		return
	}
	off := m.byte() * 37 % len(m.data)
	n := min(m.size(), len(m.data)-off)
	b, err := buffer.MapFile(m.file, int64(off), n)
	if err != nil {
		m.fail("MapFile: %v", err)
	}
	s := m.fresh(bytes.Clone(m.data[off : off+n]))
	s.mem.mapped, s.readOnly = true, true
	m.check(m.add(b, false, s))
}

func (m *model) wrapped() {
	w := &wrapping{}
	var pieces [][]byte
	var segs []seg
	for range m.byte() % 6 {
		p := m.filler(m.size())
		pieces = append(pieces, p)
		if len(p) > 0 {
			s := m.fresh(bytes.Clone(p))
			s.mem.wrap, s.mem.mine = w, p
			segs = append(segs, s)
		}
	}
	if len(segs) == 0 {
		s := m.fresh(nil)
		s.mem.wrap = w
		segs = append(segs, s)
	}
	w.left = len(segs)
	m.wraps = append(m.wraps, w)
	m.check(m.add(buffer.Wrap(func() { w.released++ }, pieces...), len(segs) > 1, segs...))
}

// many composes a Buf of many small ones, up to 2,000 parts.
func (m *model) many() {
	n := m.byte() % 24
	if n > 21 {
		n = m.byte() * 8
	}
	var bufs []*buffer.Buf
	var segs []seg
	var from *modelBuf
	for i := range n {
		if len(m.bufs) > 0 && i%5 > 0 {
			if i%5 == 1 {
				from = m.pick()
			}
			if k := i * 7; from != nil && from.r+k < from.w {
				// A slice of another, of a few bytes.
				size := min(1+i%9, from.w-from.r-k)
				bufs = append(bufs, from.b.Slice(from.r+k, size))
				for _, s := range m.views(from, from.r+k, size) {
					segs = m.join(segs, s)
				}
				continue
			}
		}
		p := []byte{byte(i), byte(i >> 8), byte(n)}[:1+i%3]
		b := m.cache.Alloc(len(p))
		b.Write(p)
		bufs = append(bufs, b)
		segs = append(segs, m.fresh(p))
	}
	if n == 0 {
		segs = append(segs, m.fresh(nil))
	}
	m.check(m.add(buffer.Compose(bufs...), true, segs...))
}

// commit fills some of the room.
func (m *model) commit(x *modelBuf) {
	p := x.b.Writable()
	if len(p) != x.room() {
		m.fail("Writable: got %d bytes, want %d", len(p), x.room())
	}
	if bytes.Contains(p, bytes.Repeat([]byte{0xdb}, 16)) {
		m.fail("Writable shows released memory")
	}
	n := min(m.size(), len(p))
	fill := m.filler(n / 2)
	copy(p, fill)
	// What was not filled reads as what was there before, if written, or zero.
	fill = append(fill, p[n/2:n]...)
	m.write(x, fill, func() { x.b.Commit(n) })
}

func (m *model) truncate(x *modelBuf) {
	i := m.index(x)
	err := panicOf(func() { x.b.Truncate(i) })
	switch {
	case i < x.r || i > x.w:
		m.refused(err, buffer.ErrShort)
	case i == x.w:
	case x.parts:
		at := x.w
		for k := len(x.segs) - 1; k >= 0; k-- {
			s := &x.segs[k]
			if at -= s.n; at < i {
				m.shorten(s, i-at)
				break
			}
			m.drop(*s)
			x.segs = x.segs[:k]
		}
		x.w = i
	default:
		m.shorten(&x.segs[0], i)
		x.w = i
	}
}

// shorten leaves the first n bytes of s. Where nobody else sees the rest it is room.
func (m *model) shorten(s *seg, n int) {
	if n < s.n && s.mem.handles == 1 && !s.readOnly && s.mem.wrap == nil {
		s.mem.bytes = s.mem.bytes[:s.off+n]
	}
	s.n = n
}

func (m *model) window(x *modelBuf) {
	n := 0
	at := x.gone
	for _, s := range x.segs {
		if at += s.n; at > x.r {
			n = at - x.r
			break
		}
	}
	if got, want := x.b.Window(), x.content(x.r, n); !bytes.Equal(got, want) {
		m.differ("window", got, want)
	}
}

// at reads a number at an index, or some bytes.
func (m *model) at(x *modelBuf) {
	i := m.index(x)
	var got []byte
	var n int
	var read func()
	switch m.byte() % 8 {
	case 0:
		n, read = 1, func() { got = append(got, x.b.Uint8At(i)) }
	case 1:
		n, read = 2, func() { got = binary.BigEndian.AppendUint16(got, x.b.Uint16At(i)) }
	case 2:
		n, read = 2, func() { got = binary.LittleEndian.AppendUint16(got, x.b.Uint16AtLE(i)) }
	case 3:
		n, read = 3, func() { got = binary.BigEndian.AppendUint32(got, x.b.Uint24At(i))[1:] }
	case 4:
		n, read = 4, func() { got = binary.BigEndian.AppendUint32(got, x.b.Uint32At(i)) }
	case 5:
		n, read = 4, func() { got = binary.LittleEndian.AppendUint32(got, x.b.Uint32AtLE(i)) }
	case 6:
		n, read = 8, func() { got = binary.BigEndian.AppendUint64(got, x.b.Uint64At(i)) }
	case 7:
		n = 1 + m.size()
		read = func() { got = []byte(x.b.StringAt(i, n)) }
	}
	err := panicOf(read)
	if i < x.gone || i+n > x.w {
		m.refused(err, buffer.ErrShort)
		return
	}
	if err != nil {
		m.fail("at %d: got panic %v", i, err)
	}
	if want := x.content(i, n); !bytes.Equal(got, want) {
		m.differ("at an index", got, want)
	}
}

// setAt changes a number at an index.
func (m *model) setAt(x *modelBuf) {
	i, p := m.index(x), m.filler(8)
	switch m.byte() % 6 {
	case 0:
		m.set(x, i, p[:1], func() { x.b.SetUint8At(i, p[0]) })
	case 1:
		m.set(x, i, p[:2], func() { x.b.SetUint16At(i, binary.BigEndian.Uint16(p)) })
	case 2:
		m.set(x, i, p[:3], func() { x.b.SetUint24AtLE(i, binary.LittleEndian.Uint32(p)) })
	case 3:
		m.set(x, i, p[:4], func() { x.b.SetUint32At(i, binary.BigEndian.Uint32(p)) })
	case 4:
		m.set(x, i, p[:4], func() { x.b.SetUint32AtLE(i, binary.LittleEndian.Uint32(p)) })
	case 5:
		m.set(x, i, p, func() { x.b.SetUint64At(i, binary.BigEndian.Uint64(p)) })
	}
}

// set changes bytes in place, wherever they are shown.
func (m *model) set(x *modelBuf, i int, p []byte, set func()) {
	err := panicOf(set)
	if i < 0 || i < x.gone && len(p) > 0 || i+len(p) > x.w {
		m.refused(err, buffer.ErrShort)
		return
	}
	type place struct{ dst, src []byte }
	var places []place
	at := x.gone
	for _, s := range x.segs {
		if from, to := max(i, at), min(i+len(p), at+s.n); from < to {
			if s.readOnly {
				m.refused(err, buffer.ErrReadOnly)
				return
			}
			places = append(places, place{s.bytes()[from-at : to-at], p[from-i : to-i]})
		}
		at += s.n
	}
	if err != nil {
		m.fail("at %d: got panic %v", i, err)
	}
	for _, c := range places {
		copy(c.dst, c.src)
	}
}

// slice checks a Buf over n bytes of x from index i, which make returns.
func (m *model) slice(x *modelBuf, i, n int, make func() *buffer.Buf) bool {
	var b *buffer.Buf
	err := panicOf(func() { b = make() })
	if i < x.gone || n < 0 || i+n > x.w {
		m.refused(err, buffer.ErrShort)
		return false
	}
	if err != nil {
		m.fail("at %d: got panic %v", i, err)
	}
	m.check(m.sliced(x, b, i, n))
	return true
}

func (m *model) sliced(x *modelBuf, b *buffer.Buf, i, n int) *modelBuf {
	if !x.parts {
		return m.add(b, false, x.segs[0].view(i, n))
	}
	at := x.gone
	for _, s := range x.segs {
		if i >= at && i+n <= at+s.n && n > 0 {
			return m.add(b, false, s.view(i-at, n))
		}
		at += s.n
	}
	return m.add(b, true, m.views(x, i, n)...)
}

// duplicate takes up d, a duplicate of x.
func (m *model) duplicate(x *modelBuf, d *buffer.Buf) *modelBuf {
	v := m.sliced(x, d, x.gone, x.w-x.gone)
	v.parts = v.parts || x.gone > 0
	v.gone, v.r, v.w = x.gone, x.r, x.w
	m.checkContent(v)
	return v
}

func (m *model) split(x *modelBuf) {
	i, room := m.index(x), x.room()
	var b *buffer.Buf
	err := panicOf(func() { b = x.b.Split(i) })
	if i < x.gone || i > x.w {
		m.refused(err, buffer.ErrShort)
		return
	}
	if err != nil {
		m.fail("at %d: got panic %v", i, err)
	}
	var back []seg
	if x.parts {
		k := m.cut(x, i, room)
		back = slices.Clone(x.segs[k:])
		x.segs = slices.Clone(x.segs[:k])
	} else {
		back = []seg{x.segs[0].view(i, x.w-i)}
		x.segs[0].n = i
	}
	v := m.add(b, x.parts, back...)
	v.r = max(0, x.r-i)
	x.r, x.w = min(x.r, i), i
	if b.Cap()-v.w != room {
		m.fail("at %d: room of %d, now %d", i, room, b.Cap()-v.w)
	}
	m.check(v)
}

// joinTwo tries to join what may have been split, or is split before.
func (m *model) joinTwo(x *modelBuf) {
	o := m.pick()
	how := m.byte()
	if how%2 == 0 {
		m.split(x)
		if o = m.bufs[len(m.bufs)-1]; how%3 == 0 {
			o.b.Retain()
			o.refs++
		}
	}
	for _, y := range m.bufs {
		if !x.parts && !y.parts && y.segs[0].mem == x.segs[0].mem && y.segs[0].off+y.r == x.segs[0].off+x.w && y.len() > 0 {
			o = y
		}
	}
	want, may := false, false
	room, cap := x.room(), 0
	if !x.parts && !o.parts && x != o && x.refs == 1 && room == 0 && x.segs[0].readOnly == o.segs[0].readOnly {
		s, t := x.segs[0], o.segs[0]
		want = s.mem == t.mem && s.off+s.n == t.off+o.r && x.w > 0 && o.len() > 0
		may = s.mem == t.mem // where empty ones lie is not known
	}
	if o.refs == 1 {
		cap = o.room()
	}
	got := x.b.Join(o.b)
	if got != want && !(got && may && (x.w == 0 || o.len() == 0)) {
		m.fail("with %v: got %v, want %v", o.b, got, want)
	}
	if !got {
		return
	}
	if x.w == 0 {
		x.segs[0].off = o.segs[0].off + o.r
	}
	x.segs[0].n += o.len()
	x.w += o.len()
	m.released(o)
	if x.room() != cap {
		m.fail("joined: got room for %d, want %d", x.room(), cap)
	}
}

// insert adds o to x in front of index i, by f, which takes a reference to o over.
func (m *model) insert(x *modelBuf, i int, o *modelBuf, f func(*buffer.Buf)) {
	if x == o || x.w+o.len() > modelLen || len(x.segs)+len(o.segs) > modelParts {
		return
	}
	room := x.room()
	err := panicOf(func() { f(o.b) })
	if i < x.gone || i > x.w {
		m.refused(err, buffer.ErrShort)
		m.released(o)
		return
	}
	if err != nil {
		m.fail("at %d: got panic %v", i, err)
	}
	if o.len() == 0 {
		m.released(o)
		return
	}
	m.compose(x, room)
	x.w += o.len()
	in := m.taken(o)
	if i == x.w-lenOf(in) {
		m.dropEmptyTail(x)
		for _, s := range in {
			x.segs = m.join(x.segs, s)
		}
		return
	}
	x.segs = slices.Insert(x.segs, m.cut(x, i, 0), in...)
}

func lenOf(segs []seg) (n int) {
	for _, s := range segs {
		n += s.n
	}
	return n
}

// taken returns what a composite gets of o when it takes a reference over.
func (m *model) taken(o *modelBuf) (in []seg) {
	if o.refs > 1 {
		o.refs--
		at := o.gone
		for _, s := range o.segs {
			if from := max(o.r, at); from < at+s.n {
				in = append(in, s.view(from-at, at+s.n-from))
			}
			at += s.n
		}
		return in
	}
	at := o.gone
	for _, s := range o.segs {
		if from := max(o.r, at); from < at+s.n {
			in = append(in, seg{s.mem, s.off + from - at, at + s.n - from, s.readOnly})
		} else {
			m.drop(s)
		}
		at += s.n
	}
	m.remove(o)
	return in
}

// composeOf makes a Buf of several others, some of which stay in use.
func (m *model) composeOf(x *modelBuf) {
	var bufs []*buffer.Buf
	var segs []seg
	for range 1 + m.byte()%5 {
		o := m.pick()
		if m.byte()%3 == 0 {
			o.b.Retain()
			o.refs++
		}
		if len(segs)+len(o.segs) > modelParts || lenOf(segs)+o.len() > modelLen {
			continue
		}
		bufs = append(bufs, o.b)
		if o.len() > 0 {
			for _, s := range m.taken(o) {
				segs = m.join(segs, s)
			}
		} else {
			m.released(o)
		}
		if len(m.bufs) == 0 {
			break
		}
	}
	if len(bufs) == 0 {
		segs = append(segs, m.fresh(nil))
	}
	m.check(m.add(buffer.Compose(bufs...), true, segs...))
}

func (m *model) consolidate(x *modelBuf) {
	if !x.parts {
		x.b.Consolidate()
		return
	}
	from := 0
	if x.gone > 0 {
		from = x.r
	}
	if !m.allocates(x, x.w-from, x.b.Consolidate) {
		return
	}
	p := x.content(from, x.w-from)
	m.drop(x.segs...)
	x.segs, x.parts, x.gone = []seg{m.fresh(p)}, false, 0
	x.r, x.w = x.r-from, x.w-from
}

func (m *model) clear(x *modelBuf) {
	x.b.Clear()
	switch {
	case x.parts:
		m.drop(x.segs...)
		x.segs, x.gone = nil, 0
	case x.reusable():
		m.drop(x.segs...)
		x.segs[0] = m.fresh(nil)
	default:
		x.segs[0].off += x.w
		x.segs[0].n = 0
	}
	x.r, x.w = 0, 0
}

func (m *model) discardRead(x *modelBuf) {
	room := x.room()
	x.b.DiscardRead()
	switch {
	case x.parts:
		m.discardParts(x, room)
		if read := x.r - x.gone; read > 0 {
			x.segs[0].off += read
			x.segs[0].n -= read
		}
		x.gone = 0
	case x.reusable():
		p := bytes.Clone(x.segs[0].bytes()[x.r:])
		m.drop(x.segs...)
		x.segs[0] = m.fresh(p)
	default:
		x.segs[0].off += x.r
		x.segs[0].n -= x.r
	}
	x.r, x.w = 0, x.w-x.r
}

// discardParts drops the parts of x that have been read, unless it is the last one and
// has room.
func (m *model) discardParts(x *modelBuf, room int) {
	for len(x.segs) > 0 && x.gone+x.segs[0].n <= x.r && (len(x.segs) > 1 || room == 0) {
		m.drop(x.segs[0])
		x.gone += x.segs[0].n
		x.segs = x.segs[1:]
	}
}
