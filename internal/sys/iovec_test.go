package sys

import "testing"

func TestJoinLast(t *testing.T) {
	b := make([]byte, 100)
	for _, tt := range []struct {
		name     string
		parts    []Iovec
		wantN    int
		wantLast int // length of the last part
	}{
		{"none", nil, 0, 0},
		{"one", []Iovec{MakeIovec(b)}, 1, 100},
		{"adjoining", []Iovec{MakeIovec(b[:10]), MakeIovec(b[10:30])}, 1, 30},
		{"gap", []Iovec{MakeIovec(b[:10]), MakeIovec(b[11:30])}, 2, 19},
		{"overlap", []Iovec{MakeIovec(b[:10]), MakeIovec(b[9:30])}, 2, 21},
		{"wrong order", []Iovec{MakeIovec(b[10:30]), MakeIovec(b[:10])}, 2, 10},
		{"only the last two", []Iovec{MakeIovec(b[:10]), MakeIovec(b[10:20]), MakeIovec(b[20:50])}, 2, 40},
	} {
		got := JoinLast(tt.parts)
		if len(got) != tt.wantN || len(got) > 0 && int(got[len(got)-1].Len) != tt.wantLast {
			t.Errorf("%s: got %d parts %v, want %d, the last of %d bytes", tt.name, len(got), got, tt.wantN, tt.wantLast)
		}
	}
}
