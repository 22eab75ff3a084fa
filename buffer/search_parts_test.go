package buffer

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// cut is content in parts: one ends where ends says so, or at the end.
type cut struct {
	t       testing.TB
	content []byte
	ends    []bool // ends[i]: a part ends in front of byte i
	calls   int
}

func (c *cut) chunk(i int) []byte {
	c.calls++
	if i < 0 || i >= len(c.content) {
		c.t.Fatalf("chunk %d of %d bytes", i, len(c.content))
	}
	end := i + 1
	for end < len(c.content) && !c.ends[end] {
		end++
	}
	return c.content[i:end:end]
}

func (c *cut) chunkBefore(i int) []byte {
	c.calls++
	if i <= 0 || i > len(c.content) {
		c.t.Fatalf("chunk before %d of %d bytes", i, len(c.content))
	}
	begin := i - 1
	for begin > 0 && !c.ends[begin] {
		begin--
	}
	return c.content[begin:i:i]
}

// newCut cuts content into parts of about size bytes.
func newCut(t testing.TB, rnd *rand.Rand, content []byte, size int) *cut {
	ends := make([]bool, len(content))
	for i := range ends {
		ends[i] = rnd.IntN(size) == 0
	}
	return &cut{t: t, content: content, ends: ends}
}

// checkParts compares what the functions over parts find in n bytes of s from index i
// on, and make of those of o, which is as long, with what package bytes does.
func checkParts(t *testing.T, s, o *cut, i, n int, sep []byte) {
	t.Helper()
	p := s.content[i : i+n]
	members := string(sep[:min(2, len(sep))])
	set := ByteSetOf(members)
	inSet := func(c rune) bool { return strings.ContainsRune(members, c) }
	var visited, back []byte
	visit := func(c byte) bool { visited = append(visited, c); return set.has(c) }
	visitBack := func(c byte) bool { back = append(back, c); return set.has(c) }
	type result struct {
		name      string
		got, want int
	}
	results := []result{
		{"indexAny", indexAny(s, i, n, &set), bytes.IndexAny(p, members)},
		{"lastIndexAny", lastIndexAny(s, i, n, &set), bytes.LastIndexAny(p, members)},
		{"indexFunc", indexFunc(s, i, n, visit), bytes.IndexFunc(p, inSet)},
		{"lastIndexFunc", lastIndexFunc(s, i, n, visitBack), bytes.LastIndexFunc(p, inSet)},
		{"compare", compare(s, o, i, i, n), bytes.Compare(p, o.content[i:i+n])},
	}
	if len(sep) > 0 {
		results = append(results,
			result{"indexByte", indexByte(s, i, n, sep[0]), bytes.IndexByte(p, sep[0])},
			result{"lastIndexByte", lastIndexByte(s, i, n, sep[0]), bytes.LastIndexByte(p, sep[0])},
			result{"index", index(s, i, n, sep), bytes.Index(p, sep)},
			result{"lastIndex", lastIndex(s, i, n, sep), bytes.LastIndex(p, sep)},
		)
	}
	for _, r := range results {
		if r.got != r.want {
			t.Errorf("%s of %q in bytes %d to %d of %.200q: got %d, want %d", r.name, sep, i, i+n, s.content, r.got, r.want)
		}
	}
	if !bytes.HasPrefix(p, visited) {
		t.Errorf("indexFunc of %q in %.200q visited %.200q", sep, p, visited)
	}
	slices.Reverse(back)
	if !bytes.HasSuffix(p, back) {
		t.Errorf("lastIndexFunc of %q in %.200q visited %.200q backwards", sep, p, back)
	}
	if got, want := equal(s, i, sep[:min(n, len(sep))]), bytes.HasPrefix(p, sep[:min(n, len(sep))]); got != want {
		t.Errorf("%q equal to the beginning of %.200q: got %v, want %v", sep, p, got, want)
	}
	if got, want := hash(s, i, n), maphash.Bytes(hashSeed, p); got != want {
		t.Errorf("hash of %.200q: got %x, want %x", p, got, want)
	}
}

// However the content is cut, the results are those of package bytes.
func TestPartsAreSearchedAsOne(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	rounds := 20000
	if testing.Short() {
		rounds = 2000
	}
	random := func(n int, letters string) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = letters[rnd.IntN(len(letters))]
		}
		return p
	}
	for range rounds {
		content := random(1+rnd.IntN(300), []string{"ab", "aaaaab", "abc", "abcdefgh"}[rnd.IntN(4)])
		other := bytes.Clone(content)
		if rnd.IntN(2) == 0 {
			other[rnd.IntN(len(other))]++
		}
		s := newCut(t, rnd, content, 1+rnd.IntN(60))
		o := newCut(t, rnd, other, 1+rnd.IntN(60))
		i := rnd.IntN(len(content) + 1)
		n := rnd.IntN(len(content) + 1 - i)
		var sep []byte
		switch at := rnd.IntN(len(content)); rnd.IntN(3) {
		case 0: // is there
			sep = bytes.Clone(content[at : at+rnd.IntN(len(content)-at)])
		case 1: // is nearly there
			sep = bytes.Clone(content[at : at+1+rnd.IntN(len(content)-at)])
			sep[rnd.IntN(len(sep))] = 'x'
		default:
			sep = random(rnd.IntN(10), "aab")
		}
		checkParts(t, s, o, i, n, sep)
		if t.Failed() {
			return
		}
	}
}

// The bits of cuts say where the content is cut.
func FuzzParts(f *testing.F) {
	f.Add([]byte("aaaaaaab"), []byte("aab"), []byte("\xff"), uint(0), uint(8))
	f.Add([]byte("abcabcabd\x00\xff"), []byte("abcabd"), []byte("\x24\x01"), uint(1), uint(9))
	f.Add(bytes.Repeat([]byte("ab"), 100), append(bytes.Repeat([]byte("ab"), 40), 'b'), []byte("\x24\x01\x77"), uint(0), uint(200))
	f.Fuzz(func(t *testing.T, content, sep, cuts []byte, i, n uint) {
		if len(content) > 1<<12 {
			return
		}
		s := &cut{t: t, content: content, ends: make([]bool, len(content))}
		o := &cut{t: t, content: bytes.Clone(content), ends: make([]bool, len(content))}
		for j := range content {
			if k := j / 8; k < len(cuts) {
				s.ends[j] = cuts[k]>>(j%8)&1 != 0
				o.ends[j] = cuts[len(cuts)-1-k]>>(j%8)&1 != 0
			}
		}
		if len(sep) > 0 && len(content) > 0 {
			o.content[int(sep[0])%len(content)] ^= sep[0] & 1
		}
		i %= uint(len(content)) + 1
		n %= uint(len(content)) + 1 - i
		if !isASCII(sep) || !isASCII(content) {
			// Sets of package bytes are of characters.
			for _, p := range [][]byte{sep, s.content, o.content} {
				for j := range p {
					p[j] &= 0x7f
				}
			}
		}
		checkParts(t, s, o, int(i), int(n), sep)
	})
}

func isASCII(p []byte) bool { return !slices.ContainsFunc(p, func(c byte) bool { return c > 0x7f }) }

// Input made to match again and again, but for the last byte, in parts of a byte
// each, is looked at once and no byte compared more than a few times.
func TestHostileInputIsSearchedInLinearTime(t *testing.T) {
	const size = 1 << 18
	for _, m := range []int{2, 64, 1000, size / 2} {
		for _, part := range []int{1, 3, 100} {
			t.Run(fmt.Sprintf("%d in parts of %d", m, part), func(t *testing.T) {
				s := &cut{t: t, content: bytes.Repeat([]byte("a"), size), ends: make([]bool, size)}
				for i := 0; i < size; i += part {
					s.ends[i] = true
				}
				sep := bytes.Repeat([]byte("a"), m)
				for _, odd := range []int{0, m / 2, m - 1} {
					sep[odd] = 'b'
					s.calls = 0
					if got := index(s, 0, size, sep); got != -1 {
						t.Errorf("got %d, want -1", got)
					}
					if got := lastIndex(s, 0, size, sep); got != -1 {
						t.Errorf("backwards: got %d, want -1", got)
					}
					if want := 2 * ((size + part - 1) / part); s.calls != want {
						t.Errorf("got %d parts, want %d", s.calls, want)
					}
					sep[odd] = 'a'
				}
			})
		}
	}
}

func TestSearchOfPartsAllocatesNothing(t *testing.T) {
	s := newCut(t, rand.New(rand.NewPCG(1, 2)), bytes.Repeat([]byte("ab"), 1000), 3)
	o := &cut{t: t, content: s.content, ends: make([]bool, len(s.content))}
	sep := append(bytes.Repeat([]byte("ab"), 31), "bb"...)
	set := ByteSetOf("xyz")
	n := len(s.content)
	for name, f := range map[string]func(){
		"index":         func() { index(s, 0, n, sep) },
		"lastIndex":     func() { lastIndex(s, 0, n, sep) },
		"indexByte":     func() { indexByte(s, 0, n, 'x') },
		"indexAny":      func() { indexAny(s, 0, n, &set) },
		"lastIndexAny":  func() { lastIndexAny(s, 0, n, &set) },
		"indexFunc":     func() { indexFunc(s, 0, n, set.has) },
		"lastIndexFunc": func() { lastIndexFunc(s, 0, n, set.has) },
		"compare":       func() { compare(s, o, 0, 0, n) },
		"equal":         func() { equal(s, 0, s.content) },
		"hash":          func() { hash(s, 0, n) },
	} {
		if got := testing.AllocsPerRun(20, f); got != 0 {
			t.Errorf("%s: got %v allocations, want 0", name, got)
		}
	}
}

// The figures are for 16 KiB.
func BenchmarkSearchParts(b *testing.B) {
	const size = 16 << 10
	sep := []byte("\r\n--boundary")
	for _, part := range []int{1, 64, 1 << 10, size} {
		s := &cut{t: b, content: bytes.Repeat([]byte("\r\n--bounds"), size/10), ends: make([]bool, size)}
		for i := 0; i < size; i += part {
			s.ends[i] = true
		}
		n := len(s.content)
		b.Run(fmt.Sprintf("index/parts=%d", part), func(b *testing.B) {
			for b.Loop() {
				index(s, 0, n, sep)
			}
		})
		b.Run(fmt.Sprintf("lastIndex/parts=%d", part), func(b *testing.B) {
			for b.Loop() {
				lastIndex(s, 0, n, sep)
			}
		})
	}
}
