package buffer_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
)

func TestCompare(t *testing.T) {
	long := strings.Repeat("0123456789", 100)
	tests := []struct {
		name, a, b string
		want       int
	}{
		{"nothing", "", "", 0},
		{"nothing and something", "", "a", -1},
		{"the same", "abc", "abc", 0},
		{"last byte", "abd", "abc", 1},
		{"first byte", "bbc", "abc", 1},
		{"beginning of the other", "abc", "abcd", -1},
		{"bytes have no sign", "\x80", "\x7f", 1},
		{"zeros count", "a\x00", "a", 1},
		{"long", long, long, 0},
		{"long, last byte", long + "a", long + "b", -1},
		{"long, length", long, long + "\x00", -1},
		{"length is not what comes first", "b", "abc", 1},
	}
	all := layouts(t)
	for _, tt := range tests {
		for nameA, layoutA := range all {
			a := layoutA([]byte(tt.a))
			for nameB, layoutB := range all {
				b := layoutB([]byte(tt.b))
				if got := a.Compare(b); got != tt.want {
					t.Errorf("%s: %s to %s: got %d, want %d", tt.name, nameA, nameB, got, tt.want)
				}
				if got := b.Compare(a); got != -tt.want {
					t.Errorf("%s: %s to %s: got %d, want %d", tt.name, nameB, nameA, got, -tt.want)
				}
				if got := a.Equal(b); got != (tt.want == 0) {
					t.Errorf("%s: %s equal to %s: got %v, want %v", tt.name, nameA, nameB, got, tt.want == 0)
				}
				if got := a.Hash() == b.Hash(); got != (tt.want == 0) {
					t.Errorf("%s: hashes of %s and %s are equal: got %v, want %v", tt.name, nameA, nameB, got, tt.want == 0)
				}
				b.Release()
			}
			if !a.Equal(a) || a.Compare(a) != 0 {
				t.Errorf("%s: %s is not equal to itself", tt.name, nameA)
			}
			if got := a.EqualBytes([]byte(tt.b)); got != (tt.want == 0) {
				t.Errorf("%s: %s EqualBytes: got %v, want %v", tt.name, nameA, got, tt.want == 0)
			}
			a.Release()
		}
	}
}

func TestPrefixAndSuffix(t *testing.T) {
	const content = "GET / HTTP/1.1"
	tests := []struct {
		p              string
		prefix, suffix bool
	}{
		{"", true, true},
		{"GET ", true, false},
		{"/1.1", false, true},
		{content, true, true},
		{content + " ", false, false},
		{" " + content, false, false},
		{"get", false, false},
		{"1.2", false, false},
		{"T /", false, false},
	}
	for name, layout := range layouts(t) {
		b, empty := layout([]byte(content)), layout(nil)
		for _, tt := range tests {
			if got := b.HasPrefix([]byte(tt.p)); got != tt.prefix {
				t.Errorf("%s: HasPrefix(%q): got %v, want %v", name, tt.p, got, tt.prefix)
			}
			if got := b.HasSuffix([]byte(tt.p)); got != tt.suffix {
				t.Errorf("%s: HasSuffix(%q): got %v, want %v", name, tt.p, got, tt.suffix)
			}
		}
		if !empty.HasPrefix(nil) || !empty.HasSuffix([]byte{}) || !empty.EqualBytes(nil) || empty.HasPrefix([]byte("x")) {
			t.Errorf("%s: wrong about no content", name)
		}
		b.Release()
		empty.Release()
	}
}

// Every byte goes into the hash, and where they lie does not.
func TestHash(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 30)
	b := buffer.FromBytes(content)
	defer b.Release()
	want := b.Hash()
	for i := range content {
		c := b.Uint8At(i)
		b.SetUint8At(i, c+1)
		if b.Hash() == want {
			t.Errorf("byte %d makes no difference", i)
		}
		b.SetUint8At(i, c)
	}
	for _, name := range []string{"first", "second"} {
		if got := b.Hash(); got != want {
			t.Errorf("%s time: got %#x, want %#x", name, got, want)
		}
		b.EnsureWritable(1 << 16)
	}
	for b.Len() > 0 {
		before := b.Hash()
		if b.Skip(1); b.Hash() == before {
			t.Errorf("%d and %d bytes have the same hash", b.Len()+1, b.Len())
		}
	}
}
