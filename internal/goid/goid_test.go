package goid

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
)

func TestParse(t *testing.T) {
	tests := []struct {
		in   string
		want uintptr
	}{
		{"goroutine 1 [running]:\nmain.main()", 1},
		{"goroutine 4294967295 [runn", 4294967295},
		{"goroutine 18", 18},
		{"goroutine ", 0},
		{"goroutine x", 0},
		{"gorouti", 0},
		{"", 0},
	}
	for _, tt := range tests {
		if got := parse([]byte(tt.in)); got != tt.want {
			t.Errorf("parse(%q): got %d, want %d", tt.in, got, tt.want)
		}
	}
}

// ways are Current as it is here, and what it falls back to.
var ways = []struct {
	name string
	f    func() uintptr
}{{"current", Current}, {"slow", slow}}

func TestIdentity(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			const n = 200
			mine := way.f()
			var started, done sync.WaitGroup
			release := make(chan struct{})
			ids := make([]uintptr, n)
			started.Add(n)
			for i := range n {
				done.Go(func() {
					ids[i] = way.f()
					started.Done()
					<-release // all are alive at once
					deep(100)
					runtime.Gosched()
					if got := way.f(); got != ids[i] {
						t.Errorf("goroutine %d: got %#x after its stack grew, want %#x", i, got, ids[i])
					}
				})
			}
			started.Wait()
			seen := map[uintptr]int{mine: -1}
			for i, id := range ids {
				if id == 0 {
					t.Errorf("goroutine %d: got identity 0", i)
				}
				if j, ok := seen[id]; ok {
					t.Errorf("goroutines %d and %d: got the same identity %#x", i, j, id)
				}
				seen[id] = i
			}
			close(release)
			runtime.GC() // moves and shrinks stacks
			done.Wait()
			if got := way.f(); got != mine {
				t.Errorf("got %#x at the end, want %#x", got, mine)
			}
		})
	}
}

// Number is what a stack trace says.
func TestNumber(t *testing.T) {
	got := make(chan string)
	go func() {
		var buf [64]byte
		header := string(buf[:runtime.Stack(buf[:], false)])
		got <- fmt.Sprintf("goroutine %d |%s", Number(), header)
	}()
	want, header, _ := strings.Cut(<-got, "|")
	if !strings.HasPrefix(header, want) {
		t.Errorf("got %q, want the number in %q", want, header)
	}
}

//go:noinline
func deep(n int) byte {
	var frame [512]byte
	if n == 0 {
		return frame[0]
	}
	frame[n] = deep(n - 1)
	return frame[n]
}

func BenchmarkCurrent(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		Current()
	}
}

func BenchmarkSlow(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		slow()
	}
}
