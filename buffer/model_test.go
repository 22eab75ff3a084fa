package buffer_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/invariant"
)

var (
	modelSeed = flag.Uint64("model.seed", 0, "seed of TestModel; 0 means by the clock")
	modelOps  = flag.Int("model.ops", 0, "operations of TestModel; 0 means as many as take a second or two")
)

// Whatever is done to Bufs, they hold what plain slices would.
func TestModel(t *testing.T) {
	seed, ops := *modelSeed, *modelOps
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	if ops == 0 {
		if ops = 150_000; testing.Short() || invariant.Race {
			ops = 20_000
		}
	}
	f, data := modelFile(t)
	var sum model
	for ; sum.ops < ops; seed++ {
		rnd := rand.New(rand.NewPCG(seed, 0))
		in := make([]byte, 8192)
		for i := range in {
			in[i] = byte(rnd.Uint32())
		}
		m := &model{file: f, data: data}
		if err := m.run(in); err != nil {
			t.Fatalf("%v\nrepeat with -model.seed=%d -model.ops=1", err, seed)
		}
		sum.ops += m.ops
		sum.failed += m.failed
		sum.parts = max(sum.parts, m.parts)
	}
	t.Logf("%d operations, %d of them refused, Bufs of up to %d parts", sum.ops, sum.failed, sum.parts)
}

// The input is the list of operations.
func FuzzModel(f *testing.F) {
	f.Add([]byte("\x00\x00\x20\x10\x00\x05\x08abcdefgh\x10\x00\x16\x04\x10\x00\x1f\x01"))
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		in := make([]byte, 300)
		for i := range in {
			in[i] = byte(rnd.Uint32())
		}
		f.Add(in)
	}
	file, data := modelFile(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		if err := (&model{file: file, data: data}).run(in); err != nil {
			t.Fatal(err)
		}
	})
}

// memory is the model of a piece of memory, which any number of Bufs and parts may
// show.
type memory struct {
	bytes   []byte
	handles int // that show it
	mapped  bool
	wrap    *wrapping // whose it is; nil if it is not the caller's
	mine    []byte    // and where
}

// wrapping is memory that was given to Wrap.
type wrapping struct {
	left     int // pieces that are still shown
	released int // calls of the hook
}

// seg is the model of a contiguous Buf, or of a part of a composite.
type seg struct {
	mem      *memory
	off, n   int
	readOnly bool
}

func (s seg) bytes() []byte { return s.mem.bytes[s.off : s.off+s.n] }

// modelBuf is a Buf and what it should be.
type modelBuf struct {
	b     *buffer.Buf
	parts bool  // it is a composite
	segs  []seg // of a contiguous one there is one
	gone  int   // bytes of discarded parts
	r, w  int
	refs  int32
}

func (x *modelBuf) len() int { return x.w - x.r }

// room is what x has left, which is up to the Buf: of the size of memory there is no
// model.
func (x *modelBuf) room() int { return x.b.Cap() - x.w }

// content is what there is from index i on, for n bytes.
func (x *modelBuf) content(i, n int) []byte {
	p := make([]byte, 0, n)
	at := x.gone
	for _, s := range x.segs {
		if from, to := max(i, at), min(i+n, at+s.n); from < to {
			p = append(p, s.bytes()[from-at:to-at]...)
		}
		at += s.n
	}
	return p
}

// exclusive is what Exclusive should return.
func (x *modelBuf) exclusive() bool {
	for _, s := range x.segs {
		if s.mem.handles != 1 || s.readOnly {
			return false
		}
	}
	return x.refs == 1
}

func (x *modelBuf) shares(o *modelBuf) bool {
	for _, s := range x.segs {
		for _, p := range o.segs {
			if s.mem == p.mem {
				return true
			}
		}
	}
	return x == o
}

// reusable reports whether all of a contiguous Buf's memory may become room.
func (x *modelBuf) reusable() bool { return x.exclusive() && x.segs[0].mem.wrap == nil }

// model runs operations, read from a stream of bytes, on Bufs and on plain slices.
type model struct {
	in    []byte
	cache *buffer.Cache
	pool  *buffer.Pool
	tight *buffer.Pool // with a limit that is reached
	file  *os.File     // nil where files cannot be mapped
	data  []byte       // of the file
	bufs  []*modelBuf
	wraps []*wrapping
	live  int64 // when it began

	ops    int
	doing  string   // the operation
	on     modelBuf // as it was before
	failed int      // operations that were refused
	parts  int      // the most a Buf consisted of
}

const (
	modelMaxCap = 1 << 16
	tightMaxCap = 1 << 15
	tightLimit  = 1 << 18
	modelLen    = 1 << 17 // no Buf is made longer
	modelParts  = 4000    // nor of more parts, or a few more
)

// modelError is what fail panics with.
type modelError struct{ error }

// String says where the run is.
func (m *model) String() string {
	x := &m.on
	return fmt.Sprintf("operation %d, %s (reader %d, writer %d, %d references, %d parts, composite: %v, discarded: %d)",
		m.ops, m.doing, x.r, x.w, x.refs, len(x.segs), x.parts, x.gone)
}

// fail ends the run.
func (m *model) fail(format string, args ...any) {
	panic(modelError{fmt.Errorf("%v: %s", m, fmt.Sprintf(format, args...))})
}

// differ fails because of bytes that are not what they should be.
func (m *model) differ(what string, got, want []byte) {
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	m.fail("%s: got %d bytes, from byte %d on %.32x, want %d and %.32x", what, len(got), i, got[i:], len(want), want[i:])
}

// run executes the stream, then checks and releases all that is left.
func (m *model) run(in []byte) (err error) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case modelError:
			err = v
		default:
			err = fmt.Errorf("%v: panic: %v\n%s", m, v, debug.Stack())
		}
	}()
	m.live = buffer.Live()
	m.pool = must(buffer.NewPool(buffer.PoolConfig{MaxCap: modelMaxCap, Cache: 1 << 16}))
	m.tight = must(buffer.NewPool(buffer.PoolConfig{MaxCap: tightMaxCap, Limit: tightLimit, Cache: 1 << 12}))
	m.cache = m.pool.NewCache()
	m.cache.Bind()
	for m.in = in; len(m.in) > 0; {
		m.step()
		if m.ops%64 == 0 {
			m.checkAll()
		}
	}
	m.checkAll()
	m.doing, m.on = "at the end", modelBuf{}
	for len(m.bufs) > 0 {
		m.check(m.bufs[0])
		m.release(m.bufs[0])
	}
	m.checkAll()
	m.cache.Close()
	return errors.Join(m.pool.Close(), m.tight.Close())
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (m *model) step() {
	m.ops++
	if len(m.bufs) == 0 || m.byte() < 12 && len(m.bufs) < 40 {
		m.create()
		return
	}
	x := m.pick()
	op := modelSteps[m.byte()%len(modelSteps)]
	m.doing, m.on = op.name, *x
	op.do(m, x)
	// A check looks everywhere, which brings a Buf up to date. So one in four waits.
	if m.ops%4 != 1 && slices.Contains(m.bufs, x) {
		m.check(x)
	}
	if len(m.bufs) > 50 {
		m.release(m.pick())
	}
}

func (m *model) byte() int {
	if len(m.in) == 0 {
		return 0
	}
	c := m.in[0]
	m.in = m.in[1:]
	return int(c)
}

func (m *model) pick() *modelBuf { return m.bufs[m.byte()%len(m.bufs)] }

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

// index returns an index that mostly lies in x, and often where a part begins or ends.
func (m *model) index(x *modelBuf) int {
	switch how := m.byte() % 16; {
	case how == 0:
		return m.size() - 8
	case how < 6 && len(x.segs) > 0:
		i := x.gone
		for _, s := range x.segs[:m.byte()%len(x.segs)] {
			i += s.n
		}
		return i
	}
	n := m.byte()<<8 | m.byte()
	return n % (x.w + 1)
}

// length returns a number of bytes to be read from x.
func (m *model) length(x *modelBuf) int {
	if m.byte()%8 == 0 {
		return x.len()
	}
	return m.size()
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

// add takes a new Buf up.
func (m *model) add(b *buffer.Buf, parts bool, segs ...seg) *modelBuf {
	x := &modelBuf{b: b, parts: parts, segs: segs, refs: 1}
	for _, s := range segs {
		x.w += s.n
	}
	m.bufs = append(m.bufs, x)
	return x
}

func (m *model) fresh(content []byte) seg {
	return seg{mem: &memory{bytes: content, handles: 1}, n: len(content)}
}

// view returns a further handle on n bytes of s.
func (s seg) view(from, n int) seg {
	s.mem.handles++
	return seg{s.mem, s.off + from, n, s.readOnly}
}

// views returns views of n bytes of x from index i, as one part where they lie side
// by side.
func (m *model) views(x *modelBuf, i, n int) (v []seg) {
	at := x.gone
	for _, s := range x.segs {
		if from, to := max(i, at), min(i+n, at+s.n); from < to {
			v = m.join(v, s.view(from-at, to-from))
		}
		at += s.n
	}
	return v
}

// join appends a seg, or makes it one with the last.
func (m *model) join(v []seg, s seg) []seg {
	if n := len(v) - 1; n >= 0 && v[n].mem == s.mem && v[n].off+v[n].n == s.off && v[n].readOnly == s.readOnly {
		v[n].n += s.n
		m.drop(s)
		return v
	}
	return append(v, s)
}

// drop takes handles away.
func (m *model) drop(segs ...seg) {
	for _, s := range segs {
		if s.mem.handles--; s.mem.handles == 0 && s.mem.wrap != nil {
			s.mem.wrap.left--
		}
	}
}

// dropEmptyTail takes room away that nothing was written to.
func (m *model) dropEmptyTail(x *modelBuf) {
	if n := len(x.segs) - 1; x.parts && n >= 0 && x.segs[n].n == 0 {
		m.drop(x.segs[n])
		x.segs = x.segs[:n]
	}
}

// cut makes index i a border, and returns which seg begins there. At the end that is
// room, if there is any.
func (m *model) cut(x *modelBuf, i, room int) int {
	at := x.gone
	for k := range x.segs {
		s := &x.segs[k]
		switch {
		case i == at:
			return k
		case i < at+s.n, i == at+s.n && k == len(x.segs)-1 && room > 0:
			back := s.view(i-at, at+s.n-i)
			s.n = i - at
			x.segs = slices.Insert(x.segs, k+1, back)
			return k + 1
		}
		at += s.n
	}
	return len(x.segs)
}

// compose makes x a composite.
func (m *model) compose(x *modelBuf, room int) {
	if !x.parts && x.w == 0 && room == 0 {
		m.drop(x.segs...)
		x.segs = nil
	}
	x.parts = true
}

// refused counts an operation that fails with the error it should.
func (m *model) refused(err, want error) {
	m.failed++
	if !errors.Is(err, want) {
		m.fail("got panic %v, want %v", err, want)
	}
}

// allocates runs what needs n bytes of new memory of x's kind and reports whether it
// got them. Where it did not, nothing must have changed.
func (m *model) allocates(x *modelBuf, n int, f func()) bool {
	err := panicOf(f)
	switch {
	case n > x.b.MaxCap():
		m.refused(err, buffer.ErrTooLarge)
		return false
	case err != nil && x.b.MaxCap() == tightMaxCap:
		m.refused(err, buffer.ErrOutOfMemory)
		return false
	case err != nil:
		m.fail("got panic %v", err)
	}
	return true
}

// grow makes room for n bytes, by what write does.
func (m *model) grow(x *modelBuf, n int, write func()) bool {
	if n <= x.room() {
		write()
		return true
	}
	if !m.allocates(x, x.w+n, write) {
		return false
	}
	if x.parts {
		m.dropEmptyTail(x)
		x.segs = append(x.segs, m.fresh(nil))
	} else {
		p := bytes.Clone(x.segs[0].bytes())
		m.drop(x.segs...)
		x.segs = []seg{m.fresh(p)}
	}
	return true
}

// write appends p.
func (m *model) write(x *modelBuf, p []byte, write func()) bool {
	if !m.grow(x, len(p), write) {
		return false
	}
	if len(p) > 0 {
		s := &x.segs[len(x.segs)-1]
		if at := s.off + s.n; at != len(s.mem.bytes) || s.mem.wrap != nil {
			m.fail("appended at %d to memory of %d bytes, which is shared or somebody else's", at, len(s.mem.bytes))
		}
		s.mem.bytes = append(s.mem.bytes, p...)
		s.n += len(p)
		x.w += len(p)
	}
	return true
}

// read checks a read of n bytes, which is to fail when there are fewer.
func (m *model) read(x *modelBuf, n int, read func() []byte) bool {
	var got []byte
	err := panicOf(func() { got = read() })
	if n < 0 || n > x.len() {
		m.refused(err, buffer.ErrShort)
		return false
	}
	if err != nil {
		m.fail("read of %d: got panic %v", n, err)
	}
	if want := x.content(x.r, n); !bytes.Equal(got, want) {
		m.differ("read", got, want)
	}
	x.r += n
	return true
}

// peek checks Peek or Next, which makes n bytes lie together when they do not.
func (m *model) peek(x *modelBuf, n int, peek func() []byte) bool {
	room := x.room()
	// The parts the bytes begin and end in, and where those begin.
	from, to, start, end := -1, -1, 0, 0
	at := x.gone
	for k, s := range x.segs {
		if from < 0 && x.r < at+s.n {
			from, start = k, at
		}
		if from >= 0 && to < 0 && x.r+n <= at+s.n {
			to, end = k, at
		}
		at += s.n
	}
	if n <= 0 || n > x.len() || from == to {
		return m.read(x, n, peek)
	}
	var got []byte
	if err := panicOf(func() { got = peek() }); err != nil {
		return m.allocates(x, n, func() { panic(err) })
	}
	together := m.fresh(x.content(x.r, n))
	for _, s := range x.segs[from : to+1] {
		together.readOnly = together.readOnly || s.readOnly
	}
	var segs []seg
	first, last := x.segs[from], x.segs[to]
	if first.n = x.r - start; first.n > 0 {
		segs = append(segs, first)
	} else {
		m.drop(first)
	}
	segs = append(segs, together)
	m.drop(x.segs[from+1 : to]...)
	gone := x.r + n - end
	last.off, last.n = last.off+gone, last.n-gone
	if last.n > 0 || to == len(x.segs)-1 && room > 0 {
		segs = append(segs, last)
	} else {
		m.drop(last)
	}
	x.segs = slices.Replace(x.segs, from, to+1, segs...)
	if x.room() != room {
		m.fail("got room for %d, want %d as before", x.room(), room)
	}
	return m.read(x, n, func() []byte { return got })
}

// release gives one reference back, at times on another goroutine.
func (m *model) release(x *modelBuf) {
	var last bool
	if m.byte()%4 == 0 {
		done := make(chan struct{})
		go func() { last = x.b.Release(); close(done) }()
		<-done
	} else {
		last = x.b.Release()
	}
	if want := x.refs == 1; last != want {
		m.fail("Release: got %v, want %v", last, want)
	}
	m.released(x)
}

// released takes note of a reference given back.
func (m *model) released(x *modelBuf) {
	if x.refs--; x.refs == 0 {
		m.drop(x.segs...)
		m.remove(x)
	}
}

func (m *model) remove(x *modelBuf) {
	i := slices.Index(m.bufs, x)
	m.bufs[i] = m.bufs[len(m.bufs)-1]
	m.bufs = m.bufs[:len(m.bufs)-1]
}

// checkAll checks all Bufs, and what is known of all of them together.
func (m *model) checkAll() {
	want := m.live
	for _, x := range m.bufs {
		m.check(x)
		want++
		if x.parts {
			want += int64(len(x.segs))
		}
	}
	if got := buffer.Live(); got != want {
		m.fail("got %d live handles, want %d", got, want)
	}
	m.wraps = slices.DeleteFunc(m.wraps, func(w *wrapping) bool {
		if (w.left == 0) != (w.released == 1) || w.released > 1 {
			m.fail("wrapped memory was released %d times with %d pieces in use", w.released, w.left)
		}
		return w.left == 0
	})
}

// check compares x with its model and changes nothing about it.
func (m *model) check(x *modelBuf) {
	b := x.b
	if b.ReaderIndex() != x.r || b.WriterIndex() != x.w || b.Len() != x.len() || b.Refs() != x.refs || b.Cap() < x.w {
		m.fail("got %v, want reader %d, writer %d, refs %d", b, x.r, x.w, x.refs)
	}
	if err := buffer.CheckParts(b); err != nil {
		m.fail("%v", err)
	}
	if got, want := b.Parts(), len(x.segs); got != want {
		m.fail("got %d parts, want %d", got, want)
	}
	m.parts = max(m.parts, len(x.segs))
	m.checkContent(x)
	m.checkMemory(x)
}

// checkContent reads all of x, in three ways.
func (m *model) checkContent(x *modelBuf) {
	want := x.content(x.gone, x.w-x.gone)
	all := make([]byte, len(want))
	if buffer.CopyAt(x.b, all, x.gone); !bytes.Equal(all, want) {
		m.differ("copied", all, want)
	}
	want = want[x.r-x.gone:]
	rest, parts := want, 0
	for p := range x.b.Segments {
		if len(p) == 0 || !bytes.HasPrefix(rest, p) {
			m.differ("part by part", p, rest)
		}
		rest = rest[len(p):]
		parts++
	}
	if len(rest) > 0 {
		m.fail("%d bytes are in no part", len(rest))
	}
	most := 1 + m.ops%1024
	rest = want
	v := x.b.AppendIovecs(nil, most)
	for _, e := range v {
		p := buffer.IovecBytes(e)
		if len(p) == 0 || !bytes.HasPrefix(rest, p) {
			m.differ("as iovecs", p, rest)
		}
		rest = rest[len(p):]
	}
	if len(v) != min(most, parts) {
		m.fail("got %d iovecs of %d parts, at most %d", len(v), parts, most)
	}
}

// checkMemory checks what x knows of its memory, and the memory of wrapped parts.
func (m *model) checkMemory(x *modelBuf) {
	least := (1 + len(x.segs)) * buffer.HandleSize / 2
	mapped := false
	for k, s := range x.segs {
		if k == 0 || x.segs[k-1].mem != s.mem {
			least += s.n
		}
		mapped = mapped || s.mem.mapped
		if s.mem.wrap != nil && !bytes.Equal(s.mem.mine, s.mem.bytes) {
			m.differ("wrapped", s.mem.mine, s.mem.bytes)
		}
	}
	if got := x.b.Pinned(); got < least {
		m.fail("got %d bytes pinned, want at least %d", got, least)
	}
	if got := x.b.Mapped(); got != mapped {
		m.fail("Mapped: got %v, want %v", got, mapped)
	}
	if got, want := x.b.Exclusive(), x.exclusive(); got != want {
		m.fail("Exclusive: got %v, want %v", got, want)
	}
	o := m.bufs[m.ops%len(m.bufs)]
	if len(x.segs)*len(o.segs) < 10_000 {
		if got, want := x.b.SharesMemory(o.b), x.shares(o); got != want {
			m.fail("SharesMemory: got %v, want %v", got, want)
		}
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
