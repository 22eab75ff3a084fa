package buffer_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/runnel-io/runnel/buffer"
)

// vmFlags returns the kernel's flags of the mapping that p lies in.
func vmFlags(t *testing.T, p uintptr) string {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skipf("mappings cannot be read: %v", err)
	}
	in := false
	for line := range strings.Lines(string(smaps)) {
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok {
			if in {
				return flags
			}
			continue
		}
		from, rest, ok := strings.Cut(line, "-")
		to, _, _ := strings.Cut(rest, " ")
		low, err1 := strconv.ParseUint(from, 16, 64)
		high, err2 := strconv.ParseUint(to, 16, 64)
		if ok && err1 == nil && err2 == nil {
			in = uint64(p) >= low && uint64(p) < high
		}
	}
	t.Skip("the kernel does not tell the flags of a mapping")
	return ""
}

// Huge pages are asked for when they are wanted, and only then, for chunks and large
// Bufs that lie on whole ones.
func TestHugePages(t *testing.T) {
	hugePages(t, true)
	hugePages(t, false) // not in the addresses of the first
	hugePages(t, true)
}

func hugePages(t *testing.T, want bool) {
	t.Run(fmt.Sprint(want), func(t *testing.T) {
		p := newPool(t, buffer.PoolConfig{Limit: 64 << 20, HugePages: want})
		s := p.Stats()
		if !s.OffHeap {
			t.Skip("memory is on the Go heap")
		}
		if want && !s.HugePages {
			t.Skip("no huge pages here")
		}
		if s.HugePages != want {
			t.Errorf("got huge pages %v, want %v", s.HugePages, want)
		}
		odd, err := p.AllocAligned(1, 16<<10) // an odd number of megabytes of addresses
		if err != nil {
			t.Fatal(err)
		}
		small, large := p.Alloc(100), p.Alloc(5<<20)
		for name, b := range map[string]*buffer.Buf{"small": small, "large": large} {
			at := uintptr(unsafe.Pointer(unsafe.SliceData(b.Writable())))
			if got := strings.Contains(vmFlags(t, at), " hg"); got != want {
				t.Errorf("%s: got huge pages asked for %v, want %v", name, got, want)
			}
		}
		if at := uintptr(unsafe.Pointer(unsafe.SliceData(large.Writable()))); want && at%(2<<20) != 0 {
			t.Errorf("got large memory at %#x, want a multiple of 2 MiB", at)
		}
		for _, b := range []*buffer.Buf{odd, small, large} {
			b.Release()
		}
	})
}
