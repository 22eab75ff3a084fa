package buffer_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"unsafe"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/invariant"
)

// protects skips the test where released memory cannot be protected.
func protects(t *testing.T) {
	t.Helper()
	if invariant.Race || invariant.Asan {
		t.Skip("memory is on the Go heap")
	}
	if os.Getpagesize() > 8<<10 {
		t.Skip("pages are too large")
	}
	setLevel(t, buffer.LeakAll)
}

//go:noinline
func readStale(p []byte, i int) byte { return p[i] }

// faultOf runs f with faults made panics, and returns the address of the one it ends
// with, 0 if it returns.
func faultOf(t *testing.T, f func()) (at uintptr) {
	t.Helper()
	done := make(chan any)
	go func() {
		defer func() { done <- recover() }()
		debug.SetPanicOnFault(true)
		f()
	}()
	v := <-done
	if v == nil {
		return 0
	}
	err, ok := v.(runtime.Error)
	var fault interface{ Addr() uintptr }
	if !ok || !errors.As(err, &fault) {
		t.Fatalf("got a panic with %v, want a runtime error with an address", v)
	}
	return fault.Addr()
}

// At level all a slice that outlives its Buf faults at the line that uses it.
func TestStaleSliceFaults(t *testing.T) {
	protects(t)
	p, c := ownPool(t)
	for _, a := range []buffer.Allocator{c, p} {
		for _, size := range []int{1, 16, 100, 4 << 10, 100 << 10, 1 << 20, 1<<20 + 1, 5 << 20} {
			t.Run(fmt.Sprintf("%T/%d", a, size), func(t *testing.T) {
				b, other := a.Alloc(size), a.Alloc(size)
				stale := b.Writable()
				other.Writable()[0] = 'x'
				for _, i := range []int{0, len(stale) / 2, len(stale) - 1} {
					stale[i] = 'y'
				}
				b.Release()
				for _, i := range []int{0, len(stale) / 2, len(stale) - 1} {
					at := uintptr(unsafe.Pointer(unsafe.SliceData(stale))) + uintptr(i)
					if got := faultOf(t, func() { readStale(stale, i) }); got != at {
						t.Errorf("reading byte %d: got a fault at %#x, want it at %#x", i, got, at)
					}
					if got := faultOf(t, func() { stale[i] = 1 }); got != at {
						t.Errorf("writing byte %d: got a fault at %#x, want it at %#x", i, got, at)
					}
				}
				if p := other.Writable(); p[0] != 'x' {
					t.Errorf("its neighbour holds %#x, want 'x'", p[0])
				}
				other.Release()
			})
		}
	}
	closePool(t, p, c)
}

// Memory is good until the last of those that share it is released, on whatever
// goroutine.
func TestStaleSliceOfShared(t *testing.T) {
	protects(t)
	p, c := ownPool(t)
	b := c.Alloc(100)
	b.WriteString("0123456789")
	s := b.Slice(2, 4)
	stale := b.Window()
	b.Release()
	if got := string(stale); got != "0123456789" {
		t.Errorf("got %q while a slice is alive", got)
	}
	done := make(chan bool)
	go func() {
		s.Release()
		done <- true
	}()
	<-done
	if faultOf(t, func() { readStale(stale, 0) }) == 0 {
		t.Error("got no fault after the last release")
	}

	b = c.Alloc(100)
	b.WriteString("0123456789")
	stale = b.Window()
	b.EnsureWritable(10000) // moves
	if faultOf(t, func() { readStale(stale, 0) }) == 0 {
		t.Error("got no fault after a growth")
	}
	b.Release()
	closePool(t, p, c)
}

// What is protected is bounded: in the end memory is used again, and it is as good as
// any.
func TestProtectedMemoryComesBack(t *testing.T) {
	protects(t)
	p, err := buffer.NewPool(buffer.PoolConfig{Limit: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	c := p.NewCache()
	c.Bind()
	for i := range 1000 {
		size := []int{10, 5000, 100 << 10, 3 << 20}[i%4]
		b := c.Alloc(size)
		w := b.Writable()
		if w[0] != 0 || w[len(w)-1] != 0 {
			t.Fatalf("got %#x and %#x in new memory", w[0], w[len(w)-1])
		}
		w[0], w[len(w)-1] = 'x', 'x'
		b.Release()
	}
	if s := p.Stats(); s.InUse != 0 || s.Live != 0 || s.Mapped > 20<<20 {
		t.Errorf("got %+v, want nothing in use", s)
	}
	// Little of every chunk is protected.
	var held []*buffer.Buf
	for range 1500 {
		held = append(held, c.Alloc(8<<10))
	}
	for i, b := range held {
		if i%10 != 0 {
			b.Release()
		}
	}
	for i := 0; i < len(held); i += 10 {
		held[i].Release()
	}
	if runs, bytes := buffer.Jailed(p); runs < 100 || bytes > 16<<20/8 {
		t.Errorf("got %d runs of pages protected, %d bytes, want 100 at least and an eighth of the limit at most", runs, bytes)
	}
	// All the same nearly all of the limit can be had in one piece, when room is needed.
	b, err := c.TryAlloc(12 << 20)
	if err != nil {
		t.Fatal(err)
	}
	b.Release()
	// And in the usual way, when the level is.
	buffer.SetLeakLevel(buffer.LeakSampled)
	if runs, _ := buffer.Jailed(p); runs != 0 {
		t.Errorf("got %d runs of pages protected at the usual level, want 0", runs)
	}
	held = nil
	for range 1 << 10 {
		held = append(held, c.Alloc(8<<10))
	}
	for _, b := range held {
		b.Release()
	}
	buffer.SetLeakLevel(buffer.LeakAll)
	c.Alloc(2 << 20).Release()
	c.Alloc(100).Release()
	closePool(t, p, c)
	if s := p.Stats(); s.Mapped != 0 || s.InUse != 0 {
		t.Errorf("after Close: got %+v, want nothing mapped", s)
	}
}

// Without a limit in sight, thousands of Bufs are alive at level all.
func TestManyApart(t *testing.T) {
	protects(t)
	c := boundCache(t, buffer.PoolConfig{Limit: 256 << 20})
	var held []*buffer.Buf
	for i := range 5000 {
		b := c.Alloc(i)
		b.WriteUint16(uint16(i))
		held = append(held, b)
	}
	for i := 0; i < len(held); i += 2 { // pages with and without protection alternate
		held[i].Release()
	}
	for i := 1; i < len(held); i += 2 {
		if got := held[i].ReadUint16(); got != uint16(i) {
			t.Errorf("got %d, want %d", got, i)
		}
		held[i].Release()
	}
}

// A stale slice ends the process, with the line on the stack, unless faults are made
// panics.
func TestStaleSliceKills(t *testing.T) {
	protects(t)
	if os.Getenv("READ_STALE") != "" {
		b := buffer.Default().Alloc(100)
		stale := b.Writable()
		b.Release()
		readStale(stale, 7)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestStaleSliceKills$")
	cmd.Env = append(os.Environ(), "READ_STALE=1", "RUNNEL_LEAK=all")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("got %v, want the process to die\n%s", err, out)
	}
	for _, want := range []string{"unexpected fault address", "buffer_test.readStale", "apart_linux_test.go"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("got no %q in\n%s", want, out)
		}
	}
}
