package buffer_test

import (
	"errors"
	"math"
	"os"
	"testing"
	"unsafe"

	"github.com/runnel-io/runnel/buffer"
)

func TestAllocAligned(t *testing.T) {
	p := newPool(t, buffer.PoolConfig{Limit: 256 << 20})
	c := p.NewCache()
	c.Bind()
	defer c.Close()
	from := map[string]func(n, align int) (*buffer.Buf, error){"pool": p.AllocAligned, "cache": c.AllocAligned}
	for align := 1; align <= 1<<20; align *= 2 {
		for name, alloc := range from {
			var held []*buffer.Buf
			for _, n := range []int{0, 1, 63, 100, 513, 4096, 10000, 70000, 1 << 20, 3<<20 + 1} {
				for range 3 {
					b, err := alloc(n, align)
					if err != nil {
						t.Fatalf("%s, %d bytes at %d: %v", name, n, align, err)
					}
					held = append(held, b)
					room := b.Writable()
					if at := uintptr(unsafe.Pointer(&room[0])); at%uintptr(align) != 0 {
						t.Errorf("%s, %d bytes: got address %#x, want a multiple of %d", name, n, at, align)
					}
					if b.Cap() < n || b.Cap() > max(2*n, 2*align, 16<<10) || b.Len() != 0 || !b.Exclusive() {
						t.Errorf("%s, %d bytes at %d: got capacity %d, length %d", name, n, align, b.Cap(), b.Len())
					}
					// It stays where it is when it is used again.
					b.Commit(len(room))
					b.Skip(b.Len())
					b.DiscardRead()
					if again := b.Writable(); &again[0] != &room[0] {
						t.Errorf("%s, %d bytes at %d: moved when its content was dropped", name, n, align)
					}
				}
			}
			for _, b := range held {
				b.Release()
			}
		}
	}
	for _, align := range []int{0, -1, -8, 3, 4097, 2 << 20} {
		for name, alloc := range from {
			wantPanic(t, name, os.ErrInvalid, func() { alloc(1, align) })
		}
	}
	for _, n := range []int{-1, math.MinInt} {
		if _, err := p.AllocAligned(n, 64); !errors.Is(err, buffer.ErrTooLarge) {
			t.Errorf("%d bytes: got %v, want ErrTooLarge", n, err)
		}
	}
	for _, align := range []int{64, 64 << 10} {
		if _, err := c.AllocAligned(257<<20, align); !errors.Is(err, buffer.ErrOutOfMemory) {
			t.Errorf("more than the limit at %d: got %v, want ErrOutOfMemory", align, err)
		}
	}
}
