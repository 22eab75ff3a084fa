package transport

import "testing"

func TestRecvSizeBounds(t *testing.T) {
	for _, tt := range []struct {
		name              string
		least, most       int
		first, low, large int
	}{
		{"none", 0, 0, 64 << 10, 64 << 10, 1 << 20},
		{"small", 1, 1, 64 << 10, 64 << 10, 64 << 10},
		{"rounded up", 64<<10 + 1, 256<<10 - 1, 256 << 10, 256 << 10, 256 << 10},
		{"at least the largest", 1 << 20, 0, 1 << 20, 1 << 20, 1 << 20},
		{"at most the middle", 0, 64<<10 + 1, 64 << 10, 64 << 10, 256 << 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRecvSize(tt.least)
			if r.size() != tt.first {
				t.Errorf("got %d to begin with, want %d", r.size(), tt.first)
			}
			for range 5 {
				r.read(r.size(), tt.most)
			}
			if r.size() != tt.large {
				t.Errorf("got %d after full reads, want %d", r.size(), tt.large)
			}
			for range 20 {
				r.turn(1, tt.least)
			}
			if r.size() != tt.low {
				t.Errorf("got %d after small ones, want %d", r.size(), tt.low)
			}
		})
	}
}
