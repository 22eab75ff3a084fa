//go:build gc && (amd64 || arm64)

package goid

import (
	"sync/atomic"
	"testing"
)

// On the architectures that have a stub, it works.
func TestStubIsUsed(t *testing.T) {
	if useSlow {
		t.Error("got the slow way, want the stub")
	}
}

func TestNoAllocations(t *testing.T) {
	if got := testing.AllocsPerRun(100, func() { Current() }); got != 0 {
		t.Errorf("got %v allocations, want 0", got)
	}
}

func TestVerify(t *testing.T) {
	var n atomic.Uintptr
	tests := []struct {
		name     string
		identity func() uintptr
		want     bool
	}{
		{"the slow way", slow, true},
		{"zero", func() uintptr { return 0 }, false},
		{"the same everywhere", func() uintptr { return 7 }, false},
		{"another one each time", func() uintptr { return n.Add(1) }, false},
	}
	for _, tt := range tests {
		if got := verify(tt.identity); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

// The stub goes on to the slow way when it is told to, also from a goroutine whose
// stack is small.
func TestFallback(t *testing.T) {
	defer func(old bool) { useSlow = old }(useSlow)
	fast := Current()
	useSlow = true
	if got, want := Current(), slow(); got != want {
		t.Errorf("got %#x, want %#x", got, want)
	}
	type pair struct{ got, want uintptr }
	c := make(chan pair)
	go func() { c <- pair{Current(), slow()} }()
	if p := <-c; p.got != p.want {
		t.Errorf("on another goroutine: got %#x, want %#x", p.got, p.want)
	}
	useSlow = false
	if got := Current(); got != fast {
		t.Errorf("got %#x with the stub again, want %#x", got, fast)
	}
}
