package buffer_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/invariant"
)

// layouts are the ways in which a Buf can hold content. Where they have bytes around
// it, those are the content once more, so that a search too far finds something.
func layouts(t testing.TB) map[string]func(content []byte) *buffer.Buf {
	c := boundCache(t, buffer.PoolConfig{})
	all := map[string]func([]byte) *buffer.Buf{
		"heap": func(p []byte) *buffer.Buf { return buffer.FromBytes(p) },
		"pooled": func(p []byte) *buffer.Buf {
			b := c.Alloc(len(p))
			b.Write(p)
			return b
		},
		"half read": func(p []byte) *buffer.Buf {
			b := c.Alloc(2 * len(p))
			b.Write(p)
			b.Write(p)
			b.Skip(len(p))
			return b
		},
		"slice": func(p []byte) *buffer.Buf {
			b := c.Alloc(4 * len(p))
			for range 4 {
				b.Write(p)
			}
			s := b.Slice(len(p), 2*len(p))
			b.Release()
			s.Skip(len(p))
			return s
		},
	}
	for _, size := range []int{1, 7, 100} {
		all[fmt.Sprintf("composite of %d", size)] = func(p []byte) *buffer.Buf {
			return buffer.Compose(pieces(p, size)...)
		}
	}
	all["slice of a composite"] = func(p []byte) *buffer.Buf {
		b := buffer.Compose(pieces(slices.Concat(p, p, p), 5)...)
		b.Write(p)
		s := b.Slice(len(p), 2*len(p))
		b.Release()
		s.Skip(len(p))
		return s
	}
	all["composite that is written to"] = func(p []byte) *buffer.Buf {
		b := buffer.Compose(pieces(p[:len(p)/2], 3)...)
		b.Write(p[len(p)/2:])
		return b
	}
	all["wrapped"] = func(p []byte) *buffer.Buf {
		return buffer.Wrap(nil, p[:len(p)/3], p[len(p)/3:])
	}
	name := filepath.Join(t.TempDir(), "data")
	mapped := func(p []byte) (*buffer.Buf, error) {
		if err := os.WriteFile(name, slices.Concat(p, p, p), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		defer os.Remove(name) // each mapping has a file of its own
		return buffer.MapFile(f, int64(len(p)), len(p))
	}
	if b, err := mapped([]byte("x")); err == nil {
		b.Release()
		all["mapped"] = func(p []byte) *buffer.Buf {
			b, err := mapped(p)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		all["composite with a mapped part"] = func(p []byte) *buffer.Buf {
			b, err := mapped(p[:len(p)/2])
			if err != nil {
				t.Fatal(err)
			}
			b = buffer.Compose(b)
			for _, x := range pieces(p[len(p)/2:], 50) {
				b.Append(x)
			}
			return b
		}
	} else if !errors.Is(err, errors.ErrUnsupported) {
		t.Fatal(err)
	}
	return all
}

// pieces returns Bufs of size bytes of p each, the last one shorter if need be.
func pieces(p []byte, size int) []*buffer.Buf {
	var bufs []*buffer.Buf
	for q := range slices.Chunk(p, size) {
		bufs = append(bufs, buffer.FromBytes(q))
	}
	return bufs
}

func TestSearchEdges(t *testing.T) {
	set := buffer.ByteSetOf("bn")
	none := buffer.ByteSet{}
	tests := []struct {
		name string
		find func(b *buffer.Buf) int
		want int // in "banana"
	}{
		{"byte", func(b *buffer.Buf) int { return b.IndexByte('a', 0) }, 1},
		{"byte from itself", func(b *buffer.Buf) int { return b.IndexByte('a', 3) }, 3},
		{"byte from the last", func(b *buffer.Buf) int { return b.IndexByte('a', 5) }, 5},
		{"byte from the end", func(b *buffer.Buf) int { return b.IndexByte('a', 6) }, -1},
		{"byte from beyond", func(b *buffer.Buf) int { return b.IndexByte('a', math.MaxInt) }, -1},
		{"byte in front", func(b *buffer.Buf) int { return b.IndexByte('b', 1) }, -1},
		{"last byte", func(b *buffer.Buf) int { return b.LastIndexByte('a', 6) }, 5},
		{"last byte before itself", func(b *buffer.Buf) int { return b.LastIndexByte('a', 5) }, 3},
		{"last byte before the first", func(b *buffer.Buf) int { return b.LastIndexByte('b', 1) }, 0},
		{"last byte before nothing", func(b *buffer.Buf) int { return b.LastIndexByte('b', 0) }, -1},
		{"last byte before beyond", func(b *buffer.Buf) int { return b.LastIndexByte('n', math.MaxInt) }, 4},
		{"any", func(b *buffer.Buf) int { return b.IndexAny(set, 1) }, 2},
		{"any from beyond", func(b *buffer.Buf) int { return b.IndexAny(set, 99) }, -1},
		{"any of none", func(b *buffer.Buf) int { return b.IndexAny(none, 0) }, -1},
		{"last any", func(b *buffer.Buf) int { return b.LastIndexAny(set, 4) }, 2},
		{"last any before nothing", func(b *buffer.Buf) int { return b.LastIndexAny(set, 0) }, -1},
		{"last any of none", func(b *buffer.Buf) int { return b.LastIndexAny(none, 99) }, -1},
		{"sequence", func(b *buffer.Buf) int { return b.Index([]byte("an"), 0) }, 1},
		{"sequence from itself", func(b *buffer.Buf) int { return b.Index([]byte("an"), 1) }, 1},
		{"sequence from behind its begin", func(b *buffer.Buf) int { return b.Index([]byte("an"), 2) }, 3},
		{"sequence from beyond", func(b *buffer.Buf) int { return b.Index([]byte("an"), math.MaxInt) }, -1},
		{"all", func(b *buffer.Buf) int { return b.Index([]byte("banana"), 0) }, 0},
		{"more than all", func(b *buffer.Buf) int { return b.Index([]byte("bananas"), 0) }, -1},
		{"nothing", func(b *buffer.Buf) int { return b.Index(nil, 0) }, 0},
		{"nothing from the end", func(b *buffer.Buf) int { return b.Index(nil, 6) }, 6},
		{"nothing from beyond", func(b *buffer.Buf) int { return b.Index(nil, 7) }, -1},
		{"last sequence", func(b *buffer.Buf) int { return b.LastIndex([]byte("ana"), 6) }, 3},
		{"last sequence before its end", func(b *buffer.Buf) int { return b.LastIndex([]byte("ana"), 5) }, 1},
		{"last sequence before nothing", func(b *buffer.Buf) int { return b.LastIndex([]byte("b"), 0) }, -1},
		{"last all", func(b *buffer.Buf) int { return b.LastIndex([]byte("banana"), 99) }, 0},
		{"last more than all", func(b *buffer.Buf) int { return b.LastIndex([]byte("abanana"), 99) }, -1},
		{"last nothing", func(b *buffer.Buf) int { return b.LastIndex(nil, 99) }, 6},
		{"last nothing before the third", func(b *buffer.Buf) int { return b.LastIndex(nil, 2) }, 2},
		{"func from beyond", func(b *buffer.Buf) int { return b.IndexFunc(always, 6) }, -1},
		{"func", func(b *buffer.Buf) int { return b.IndexFunc(always, 5) }, 5},
		{"last func", func(b *buffer.Buf) int { return b.LastIndexFunc(always, 99) }, 5},
		{"last func before nothing", func(b *buffer.Buf) int { return b.LastIndexFunc(always, 0) }, -1},
	}
	for name, layout := range layouts(t) {
		b := layout([]byte("banana"))
		r, w := b.ReaderIndex(), b.WriterIndex()
		for _, tt := range tests {
			if got := tt.find(b); got != tt.want {
				t.Errorf("%s: %s: got %d, want %d", name, tt.name, got, tt.want)
			}
		}
		for what, find := range map[string]func(){
			"IndexByte":     func() { b.IndexByte('a', -1) },
			"LastIndexByte": func() { b.LastIndexByte('a', -1) },
			"IndexAny":      func() { b.IndexAny(set, math.MinInt) },
			"LastIndexAny":  func() { b.LastIndexAny(set, -1) },
			"Index":         func() { b.Index(nil, -1) },
			"LastIndex":     func() { b.LastIndex(nil, math.MinInt) },
			"IndexFunc":     func() { b.IndexFunc(always, -1) },
			"LastIndexFunc": func() { b.LastIndexFunc(always, -1) },
		} {
			wantPanic(t, name+": "+what+" with less than 0", buffer.ErrShort, find)
		}
		if b.ReaderIndex() != r || b.WriterIndex() != w {
			t.Errorf("%s: searching moved the indices", name)
		}
		b.Release()
	}
}

func always(byte) bool { return true }

func TestByteSet(t *testing.T) {
	const members = "\x00 a~\x7f\x80é\xff"
	s := buffer.ByteSetOf(members)
	n := s.Complement()
	for c := range 256 {
		want := strings.IndexByte(members, byte(c)) >= 0
		if got := s.Contains(byte(c)); got != want {
			t.Errorf("%#x: got %v, want %v", c, got, want)
		}
		if got := n.Contains(byte(c)); got == want {
			t.Errorf("%#x in the complement: got %v, want %v", c, got, !want)
		}
	}
	if n.Complement() != s {
		t.Error("the complement of the complement is another set")
	}
	if (buffer.ByteSet{}) != buffer.ByteSetOf("") {
		t.Error("the zero ByteSet is not the empty set")
	}
}

// Whatever is looked for in whatever content, the result is that of package bytes.
func TestSearchIsThatOfBytes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	rounds := 300
	if testing.Short() {
		rounds = 50
	}
	for name, layout := range layouts(t) {
		for range rounds {
			content := make([]byte, 1+rnd.IntN(200))
			if rnd.IntN(8) == 0 {
				content = make([]byte, 1+rnd.IntN(9000))
			}
			for i := range content {
				content[i] = "aab"[rnd.IntN(3)]
			}
			content[rnd.IntN(len(content))] = 'c'
			b := layout(content)
			for range 20 {
				i := rnd.IntN(len(content) + 3)
				sep := make([]byte, rnd.IntN(5))
				for i := range sep {
					sep[i] = "aabc"[rnd.IntN(4)]
				}
				checkSearch(t, name, b, content, sep, i)
			}
			b.Release()
			if t.Failed() {
				return
			}
		}
	}
}

// checkSearch compares what is found in b from and before index i with what package
// bytes finds in its content.
func checkSearch(t *testing.T, name string, b *buffer.Buf, content, sep []byte, i int) {
	t.Helper()
	behind, front := []byte(nil), content[:min(i, len(content))]
	if i <= len(content) {
		behind = content[i:]
	}
	from := func(at int) int {
		if at < 0 || i > len(content) {
			return -1
		}
		return i + at
	}
	members := string(append([]byte("c"), sep[:min(1, len(sep))]...))
	set := buffer.ByteSetOf(members)
	inSet := func(c rune) bool { return strings.ContainsRune(members, c) }
	c := members[len(members)-1]
	var visited, back []byte
	visit := func(c byte) bool { visited = append(visited, c); return inSet(rune(c)) }
	visitBack := func(c byte) bool { back = append(back, c); return inSet(rune(c)) }
	for _, tt := range []struct {
		what      string
		got, want int
	}{
		{"IndexByte", b.IndexByte(c, i), from(bytes.IndexByte(behind, c))},
		{"LastIndexByte", b.LastIndexByte(c, i), bytes.LastIndexByte(front, c)},
		{"IndexAny", b.IndexAny(set, i), from(bytes.IndexAny(behind, members))},
		{"LastIndexAny", b.LastIndexAny(set, i), bytes.LastIndexAny(front, members)},
		{"Index", b.Index(sep, i), from(bytes.Index(behind, sep))},
		{"LastIndex", b.LastIndex(sep, i), bytes.LastIndex(front, sep)},
		{"IndexFunc", b.IndexFunc(visit, i), from(bytes.IndexFunc(behind, inSet))},
		{"LastIndexFunc", b.LastIndexFunc(visitBack, i), bytes.LastIndexFunc(front, inSet)},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %s of %q, %d in %d bytes: got %d, want %d", name, tt.what, sep, i, len(content), tt.got, tt.want)
		}
	}
	if n := len(visited); n > len(behind) || !bytes.Equal(visited, behind[:n]) {
		t.Errorf("%s: IndexFunc from %d visited %q", name, i, visited)
	}
	slices.Reverse(back)
	if !bytes.HasSuffix(front, back) {
		t.Errorf("%s: LastIndexFunc before %d visited %q backwards", name, i, back)
	}
}

// What a function of the user does to end itself is between it and its caller.
func TestVisitorsEndTheirOwnWay(t *testing.T) {
	type mine struct{ error }
	for name, layout := range layouts(t) {
		b := layout([]byte(strings.Repeat("0123456789", 200)))
		for what, visit := range map[string]func(stop func(byte) bool){
			"IndexFunc":     func(stop func(byte) bool) { b.IndexFunc(stop, 0) },
			"LastIndexFunc": func(stop func(byte) bool) { b.LastIndexFunc(stop, b.Len()) },
		} {
			calls := 0
			at := func(n int, end func()) func(byte) bool {
				calls = 0
				return func(byte) bool {
					if calls++; calls == n {
						end()
					}
					return false
				}
			}
			want := &mine{errors.New("mine")}
			if err := panicOf(func() { visit(at(700, func() { panic(want) })) }); err != error(want) || calls != 700 {
				t.Errorf("%s: %s: got panic %v after %d calls, want %v after 700", name, what, err, calls, want)
			}
			var null *int
			err := panicOf(func() { visit(at(3, func() { *null = 1 })) })
			var fault runtime.Error
			if !errors.As(err, &fault) || errors.Is(err, buffer.ErrTruncated) {
				t.Errorf("%s: %s: got panic %v, want the runtime's", name, what, err)
			}
			done := make(chan bool)
			go func() {
				returned := false
				defer func() { done <- returned }()
				visit(at(600, runtime.Goexit))
				returned = true
			}()
			if <-done || calls != 600 {
				t.Errorf("%s: %s: went on after Goexit in call %d, want an end after 600", name, what, calls)
			}
		}
		b.Release()
	}
}

func TestSearchAllocatesNothing(t *testing.T) {
	if invariant.Enabled {
		t.Skip("assertions allocate")
	}
	content := []byte(strings.Repeat("0123456789", 300))
	sep := bytes.Repeat([]byte("9"), 64)
	set := buffer.ByteSetOf("xyz")
	var found int
	for name, layout := range layouts(t) {
		b, o := layout(content), layout(content)
		for what, f := range map[string]func(){
			"IndexByte":     func() { found += b.IndexByte('x', 0) },
			"LastIndexByte": func() { found += b.LastIndexByte('x', b.Len()) },
			"IndexAny":      func() { found += b.IndexAny(set, 0) },
			"LastIndexAny":  func() { found += b.LastIndexAny(set, b.Len()) },
			"Index":         func() { found += b.Index(sep, 0) },
			"LastIndex":     func() { found += b.LastIndex(sep, b.Len()) },
			"IndexFunc":     func() { b.IndexFunc(func(c byte) bool { found++; return c == 'x' }, 0) },
			"LastIndexFunc": func() { b.LastIndexFunc(func(c byte) bool { found++; return c == 'x' }, b.Len()) },
			"Equal":         func() { b.Equal(o) },
			"EqualBytes":    func() { b.EqualBytes(content) },
			"Compare":       func() { found += b.Compare(o) },
			"HasPrefix":     func() { b.HasPrefix([]byte("0123")) },
			"HasSuffix":     func() { b.HasSuffix([]byte("6789")) },
			"Hash":          func() { found += int(b.Hash()) },
		} {
			if got := testing.AllocsPerRun(20, f); got != 0 {
				t.Errorf("%s: %s: got %v allocations, want 0", name, what, got)
			}
		}
		b.Release()
		o.Release()
	}
	sink += byte(found)
}

func ExampleBuf_Index() {
	b := buffer.FromString("one--two--three")
	defer b.Release()
	sep := []byte("--")
	for {
		n := b.Index(sep, 0)
		if n < 0 {
			break
		}
		fmt.Println(b.ReadString(n))
		b.Skip(len(sep))
	}
	fmt.Println(b.ReadString(b.Len()))
	// Output:
	// one
	// two
	// three
}

func ExampleBuf_IndexAny() {
	space := buffer.ByteSetOf(" \t\r\n")
	b := buffer.FromString("  GET\t/index.html \r\n")
	defer b.Release()
	for {
		n := b.IndexAny(space.Complement(), 0)
		if n < 0 {
			break
		}
		b.Skip(n)
		if n = b.IndexAny(space, 0); n < 0 {
			n = b.Len()
		}
		fmt.Printf("%q\n", b.ReadString(n))
	}
	// Output:
	// "GET"
	// "/index.html"
}

// Each search goes on in front of what the one before has found.
func ExampleBuf_LastIndexByte() {
	b := buffer.FromString("www.example.org")
	defer b.Release()
	for i := b.LastIndexByte('.', b.Len()); i >= 0; i = b.LastIndexByte('.', i) {
		fmt.Println(i)
	}
	// Output:
	// 11
	// 3
}

func BenchmarkIndexByte(b *testing.B) {
	for _, n := range []int{16, 64, 1 << 10, 16 << 10} {
		content := append(bytes.Repeat([]byte("x"), n-1), '\n')
		b.Run(fmt.Sprintf("Buf/%d", n), func(b *testing.B) {
			x := boundCache(b, buffer.PoolConfig{}).Alloc(n)
			defer x.Release()
			x.Write(content)
			for b.Loop() {
				sink += byte(x.IndexByte('\n', 0))
			}
		})
		b.Run(fmt.Sprintf("bytes/%d", n), func(b *testing.B) {
			for b.Loop() {
				sink += byte(bytes.IndexByte(content, '\n'))
			}
		})
	}
}

// The figures are for 4 KiB that are looked at to the last byte.
func BenchmarkSearch(b *testing.B) {
	const size = 4 << 10
	x := buffer.Heap.Alloc(size)
	defer x.Release()
	x.Write(append(bytes.Repeat([]byte("ab"), size/2-1), "\r\n"...))
	y := x.Copy()
	defer y.Release()
	set := buffer.ByteSetOf("\r\n")
	for _, bb := range []struct {
		name string
		f    func() int
	}{
		{"IndexAny", func() int { return x.IndexAny(set, 0) }},
		{"LastIndexAny", func() int { return x.LastIndexAny(set, size-2) }},
		{"Index", func() int { return x.Index([]byte("\r\n"), 0) }},
		{"LastIndex", func() int { return x.LastIndex([]byte("\r\n"), size-1) }},
		{"IndexFunc", func() int { return x.IndexFunc(func(c byte) bool { return c == '\n' }, 0) }},
		{"Compare", func() int { return x.Compare(y) }},
		{"Equal", func() int { x.Equal(y); return 0 }},
		{"Hash", func() int { return int(x.Hash()) }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			for b.Loop() {
				sink += byte(bb.f())
			}
		})
	}
}
