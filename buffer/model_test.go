package buffer_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
)

// block is the model of memory that several Bufs may share.
type block struct {
	bytes    []byte
	handles  int
	readOnly bool
}

// modelBuf is a Buf and what it should hold: the bytes off to off+w of a block.
type modelBuf struct {
	b    *buffer.Buf
	mem  *block
	off  int
	r, w int
	refs int32
}

func (m *modelBuf) content() []byte { return m.mem.bytes[m.off : m.off+m.w] }
func (m *modelBuf) exclusive() bool {
	return m.refs == 1 && m.mem.handles == 1 && !m.mem.readOnly
}

// move gives m memory of its own with the content from index i on.
func (m *modelBuf) move(i int) {
	m.mem.handles--
	m.mem = &block{bytes: bytes.Clone(m.content()[i:]), handles: 1}
	m.off = 0
	m.r, m.w = m.r-i, m.w-i
}

// model runs operations, read from a stream of bytes, on Bufs and on plain slices.
type model struct {
	t     *testing.T
	in    []byte
	cache *buffer.Cache
	pool  *buffer.Pool
	file  *os.File // nil where files cannot be mapped
	data  []byte   // of the file
	bufs  []*modelBuf
	ops   int
}

const modelMaxCap = 1 << 16

func (m *model) byte() int {
	if len(m.in) == 0 {
		return 0
	}
	c := m.in[0]
	m.in = m.in[1:]
	return int(c)
}

// size returns a length that is mostly small.
func (m *model) size() int {
	switch n := m.byte(); {
	case n < 200:
		return n % 48
	case n < 250:
		return n * 4
	default:
		return n * m.byte()
	}
}

func (m *model) filler(n int) []byte {
	p := make([]byte, n)
	c := byte(m.byte())
	for i := range p {
		p[i] = c
		c = c*31 + 7
	}
	return p
}

func (m *model) add(b *buffer.Buf, content []byte) {
	m.bufs = append(m.bufs, &modelBuf{b: b, mem: &block{bytes: content, handles: 1}, w: len(content), refs: 1})
}

// fits does what the Buf does to make room for n bytes, and reports whether it can.
func (m *model) fits(x *modelBuf, n int, write func()) bool {
	if n > x.b.Cap()-x.w {
		if x.w+n > x.b.MaxCap() {
			if err := panicOf(write); !errors.Is(err, buffer.ErrTooLarge) {
				m.t.Fatalf("op %d: write of %d at %d: got %v, want ErrTooLarge", m.ops, n, x.w, err)
			}
			return false
		}
		x.move(0)
	}
	write()
	return true
}

func (m *model) write(x *modelBuf, p []byte, write func()) {
	if m.fits(x, len(p), write) && len(p) > 0 {
		if at := x.off + x.w; at != len(x.mem.bytes) {
			m.t.Fatalf("op %d: appended at %d of shared memory of %d bytes", m.ops, at, len(x.mem.bytes))
		}
		x.mem.bytes = append(x.mem.bytes[:x.off+x.w], p...)
		x.w += len(p)
	}
}

// read checks a read of n bytes, which is to panic when there are fewer.
func (m *model) read(x *modelBuf, n int, read func() []byte) {
	var got []byte
	err := panicOf(func() { got = read() })
	if n > x.w-x.r {
		if !errors.Is(err, buffer.ErrShort) {
			m.t.Fatalf("op %d: read of %d with %d left: got %v, want ErrShort", m.ops, n, x.w-x.r, err)
		}
		return
	}
	if err != nil {
		m.t.Fatalf("op %d: read of %d: %v", m.ops, n, err)
	}
	if want := x.content()[x.r : x.r+n]; !bytes.Equal(got, want) {
		m.t.Fatalf("op %d: read: got %x, want %x", m.ops, got, want)
	}
	x.r += n
}

func (m *model) view(x *modelBuf, b *buffer.Buf, i, n int) *modelBuf {
	x.mem.handles++
	v := &modelBuf{b: b, mem: x.mem, off: x.off + i, w: n, refs: 1}
	m.bufs = append(m.bufs, v)
	return v
}

func (m *model) release(i int) {
	x := m.bufs[i]
	var last bool
	if m.byte()%4 == 0 {
		done := make(chan struct{})
		go func() { last = x.b.Release(); close(done) }()
		<-done
	} else {
		last = x.b.Release()
	}
	x.refs--
	if want := x.refs == 0; last != want {
		m.t.Fatalf("op %d: Release: got %v, want %v", m.ops, last, want)
	}
	if last {
		x.mem.handles--
		m.bufs[i] = m.bufs[len(m.bufs)-1]
		m.bufs = m.bufs[:len(m.bufs)-1]
	}
}

func (m *model) check(x *modelBuf) {
	b, t := x.b, m.t
	if b.ReaderIndex() != x.r || b.WriterIndex() != x.w || b.Len() != x.w-x.r || b.Refs() != x.refs {
		t.Fatalf("op %d: got r %d, w %d, len %d, refs %d, want r %d, w %d, refs %d",
			m.ops, b.ReaderIndex(), b.WriterIndex(), b.Len(), b.Refs(), x.r, x.w, x.refs)
	}
	if b.Cap() < x.w || b.Pinned() < x.w {
		t.Fatalf("op %d: got cap %d, pinned %d with %d bytes", m.ops, b.Cap(), b.Pinned(), x.w)
	}
	if got, want := b.Window(), x.content()[x.r:]; !bytes.Equal(got, want) {
		t.Fatalf("op %d: got %x, want %x", m.ops, got, want)
	}
	if got := b.Exclusive(); got != x.exclusive() {
		t.Fatalf("op %d: Exclusive: got %v, want %v", m.ops, got, x.exclusive())
	}
	o := m.bufs[m.ops%len(m.bufs)]
	if got, want := b.SharesMemory(o.b), x.mem == o.mem; got != want {
		t.Fatalf("op %d: SharesMemory: got %v, want %v", m.ops, got, want)
	}
}

func (m *model) create() {
	switch m.byte() % 5 {
	case 0:
		m.add(m.cache.Alloc(m.size()), nil)
	case 1:
		m.add(m.pool.Alloc(m.size()), nil)
	case 2:
		m.add(buffer.Heap.Alloc(m.size()), nil)
	case 3:
		p := m.filler(m.size())
		m.add(buffer.FromBytes(p), p)
	case 4:
		if m.file == nil {
			return
		}
		off := m.byte() * 37 % len(m.data)
		n := min(m.size(), len(m.data)-off)
		b, err := buffer.MapFile(m.file, int64(off), n)
		if err != nil {
			m.t.Fatalf("op %d: MapFile: %v", m.ops, err)
		}
		m.add(b, bytes.Clone(m.data[off:off+n]))
		m.bufs[len(m.bufs)-1].mem.readOnly = true
	}
}

func (m *model) step() {
	m.ops++
	if len(m.bufs) == 0 || m.byte() < 12 && len(m.bufs) < 40 {
		m.create()
		return
	}
	i := m.byte() % len(m.bufs)
	x := m.bufs[i]
	b := x.b
	switch op := m.byte() % 40; op {
	case 0:
		c := byte(m.byte())
		m.write(x, []byte{c}, func() { b.WriteUint8(c) })
	case 1:
		p := m.filler(2)
		m.write(x, p, func() { b.WriteUint16(binary.BigEndian.Uint16(p)) })
	case 2:
		p := m.filler(4)
		m.write(x, p, func() { b.WriteUint32(binary.BigEndian.Uint32(p)) })
	case 3:
		p := m.filler(8)
		m.write(x, p, func() { b.WriteUint64(binary.BigEndian.Uint64(p)) })
	case 4:
		p := m.filler(4)
		m.write(x, p, func() { b.WriteUint32LE(binary.LittleEndian.Uint32(p)) })
	case 5, 6, 7:
		p := m.filler(m.size())
		m.write(x, p, func() { b.Write(p) })
	case 8:
		p := m.filler(m.size())
		m.write(x, p, func() { b.WriteString(string(p)) })
	case 9:
		if o := m.bufs[m.byte()%len(m.bufs)]; o != x {
			p := bytes.Clone(o.content()[o.r:])
			before := x.w
			m.write(x, p, func() { b.WriteBuf(o.b) })
			if x.w != before || len(p) == 0 {
				o.r = o.w
			}
		}
	case 10:
		n := m.size()
		m.fits(x, n, func() { b.EnsureWritable(n) })
	case 11:
		p := b.Writable()
		if len(p) != b.Cap()-x.w {
			m.t.Fatalf("op %d: Writable: got %d bytes, want %d", m.ops, len(p), b.Cap()-x.w)
		}
		n := min(m.size(), len(p))
		fill := m.filler(n / 2)
		copy(p, fill)
		fill = append(fill, make([]byte, n-n/2)...)
		// What was not filled reads as what was there before, if written, or zero.
		copy(fill[n/2:], p[n/2:n])
		m.write(x, fill, func() { b.Commit(n) })
	case 12:
		m.read(x, 1, func() []byte { return []byte{b.ReadUint8()} })
	case 13:
		m.read(x, 2, func() []byte { return binary.BigEndian.AppendUint16(nil, b.ReadUint16()) })
	case 14:
		m.read(x, 4, func() []byte { return binary.BigEndian.AppendUint32(nil, b.ReadUint32()) })
	case 15:
		m.read(x, 8, func() []byte { return binary.BigEndian.AppendUint64(nil, b.ReadUint64()) })
	case 16:
		m.read(x, 8, func() []byte { return binary.LittleEndian.AppendUint64(nil, b.ReadUint64LE()) })
	case 17:
		n := m.size()
		m.read(x, n, func() []byte { return bytes.Clone(b.Next(n)) })
	case 18:
		n := m.size()
		m.read(x, n, func() []byte { p := make([]byte, n); b.ReadBytes(p); return p })
	case 19:
		n := m.size()
		m.read(x, n, func() []byte { return []byte(b.ReadString(n)) })
	case 20:
		v, ok := b.TryReadUint32()
		if want := x.w-x.r >= 4; ok != want {
			m.t.Fatalf("op %d: TryReadUint32 with %d left: got %v", m.ops, x.w-x.r, ok)
		} else if ok {
			m.read(x, 4, func() []byte { return binary.BigEndian.AppendUint32(nil, v) })
		}
	case 21:
		n := min(m.size(), x.w-x.r)
		b.Skip(n)
		x.r += n
		back := m.size() % (x.r + 1)
		b.Unread(back)
		x.r -= back
	case 22, 23:
		n := m.size()
		var s *buffer.Buf
		r := x.r
		m.read(x, n, func() []byte { s = b.ReadSlice(n); return s.Window() })
		if s != nil {
			m.view(x, s, r, n)
		}
	case 24:
		from := min(m.size(), x.w)
		n := min(m.size(), x.w-from)
		m.view(x, b.Slice(from, n), from, n)
	case 25:
		m.view(x, b.Duplicate(), 0, x.w).r = x.r
	case 26:
		m.add(b.Copy(), bytes.Clone(x.content()[x.r:]))
	case 27:
		if x.exclusive() {
			x.move(x.w)
		} else {
			x.off += x.w
		}
		x.r, x.w = 0, 0
		b.Clear()
	case 28:
		if x.exclusive() {
			x.move(x.r)
		} else {
			x.off += x.r
			x.w -= x.r
		}
		x.r = 0
		b.DiscardRead()
	case 29:
		at := m.size()
		p := m.filler(4)
		err := panicOf(func() { b.SetUint32At(at, binary.BigEndian.Uint32(p)) })
		switch {
		case at+4 > x.w:
			if !errors.Is(err, buffer.ErrShort) {
				m.t.Fatalf("op %d: SetUint32At %d of %d: got %v, want ErrShort", m.ops, at, x.w, err)
			}
		case x.mem.readOnly:
			if !errors.Is(err, buffer.ErrReadOnly) {
				m.t.Fatalf("op %d: SetUint32At: got %v, want ErrReadOnly", m.ops, err)
			}
		case err != nil:
			m.t.Fatalf("op %d: SetUint32At: %v", m.ops, err)
		default:
			copy(x.content()[at:], p)
			if got := b.Uint32At(at); got != binary.BigEndian.Uint32(p) {
				m.t.Fatalf("op %d: Uint32At: got %x, want %x", m.ops, got, p)
			}
		}
	case 30:
		c := byte(m.byte())
		from := m.size()
		want := -1
		if from <= x.w-x.r {
			if want = bytes.IndexByte(x.content()[x.r+from:], c); want >= 0 {
				want += from
			}
		}
		if got := b.IndexByte(c, from); got != want {
			m.t.Fatalf("op %d: IndexByte: got %d, want %d", m.ops, got, want)
		}
	case 32:
		i := x.r + m.size()%(x.w-x.r+1)
		if x.exclusive() {
			x.mem.bytes = x.mem.bytes[:x.off+i]
		}
		x.w = i
		b.Truncate(i)
	case 33:
		x.r = m.size() % (x.w + 1)
		b.SetReaderIndex(x.r)
	case 34:
		o := m.bufs[m.byte()%len(m.bufs)]
		from := min(m.size(), o.w)
		n := min(m.size(), o.w-from)
		p := bytes.Clone(o.content()[from : from+n])
		m.write(x, p, func() { b.WriteRange(o.b, from, n) })
	case 35:
		n := m.size()
		at := x.w
		m.write(x, make([]byte, n), func() {
			if got := b.Reserve(n); got != at {
				m.t.Fatalf("op %d: Reserve: got %d, want %d", m.ops, got, at)
			}
		})
	case 36:
		at := min(m.size(), x.w)
		p := m.filler(min(m.size(), x.w-at))
		if x.mem.readOnly {
			break
		}
		b.SetBytesAt(at, p)
		copy(x.content()[at:], p)
		if got := b.StringAt(at, len(p)); got != string(p) {
			m.t.Fatalf("op %d: StringAt: got %x, want %x", m.ops, got, p)
		}
	case 37:
		v := binary.BigEndian.Uint64(m.filler(8)) >> (m.byte() % 64)
		m.write(x, binary.AppendUvarint(nil, v), func() { b.WriteUvarint(v) })
	case 38:
		want, n := binary.Uvarint(x.content()[x.r:])
		if v, ok, _ := b.TryReadUvarint(); ok != (n > 0) || ok && v != want {
			m.t.Fatalf("op %d: TryReadUvarint: got %d, %v, want %d, %v", m.ops, v, ok, want, n > 0)
		} else if ok {
			x.r += n
		}
	case 39:
		var all bytes.Buffer
		m.read(x, x.w-x.r, func() []byte {
			if n, err := b.WriteTo(&all); n != int64(all.Len()) || err != nil {
				m.t.Fatalf("op %d: WriteTo: got %d, %v", m.ops, n, err)
			}
			return all.Bytes()
		})
	case 31:
		if m.byte()%4 == 0 {
			b.Retain()
			x.refs++
		} else {
			m.release(i)
		}
		return
	}
	m.check(x)
	if len(m.bufs) > 50 {
		m.release(m.byte() % len(m.bufs))
	}
}

// run executes the stream, then checks and releases all that is left.
func (m *model) run(in []byte) {
	for m.in = in; len(m.in) > 0; {
		m.step()
		if m.ops%64 == 0 {
			for _, x := range m.bufs {
				m.check(x)
			}
		}
	}
	for len(m.bufs) > 0 {
		m.check(m.bufs[0])
		m.release(0)
	}
	if n := m.pool.Live(); n != 0 {
		m.t.Fatalf("got %d live buffers, want 0", n)
	}
}

// modelFile is a file to map, with its content.
func modelFile(tb testing.TB) (*os.File, []byte) {
	data := make([]byte, 3*os.Getpagesize()+123)
	for i := range data {
		data[i] = byte(i * 7)
	}
	name := filepath.Join(tb.TempDir(), "data")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		tb.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	b, err := buffer.MapFile(f, 0, 1)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, nil
	}
	if err != nil {
		tb.Fatal(err)
	}
	b.Release()
	return f, data
}

// Whatever is done to Bufs, they hold what a plain slice would.
func TestModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	c := boundCache(t, buffer.PoolConfig{MaxCap: modelMaxCap})
	f, data := modelFile(t)
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	ops := 0
	for range rounds {
		in := make([]byte, 8192)
		for i := range in {
			in[i] = byte(rnd.Uint32())
		}
		m := &model{t: t, cache: c, pool: buffer.PoolOf(c), file: f, data: data}
		m.run(in)
		ops += m.ops
	}
	t.Logf("%d operations", ops)
}

func FuzzModel(f *testing.F) {
	f.Add([]byte("\x00\x00\x20\x10\x00\x05\x08abcdefgh\x10\x00\x16\x04\x10\x00\x1f\x01"))
	file, data := modelFile(f)
	p, err := buffer.NewPool(buffer.PoolConfig{MaxCap: modelMaxCap})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		c := p.NewCache()
		c.Bind()
		defer c.Close()
		(&model{t: t, cache: c, pool: p, file: file, data: data}).run(in)
	})
}
