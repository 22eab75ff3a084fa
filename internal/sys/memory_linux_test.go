package sys

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// faults reports whether reading or writing the byte at p is a fault.
func faults(p unsafe.Pointer, write bool) (bad bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { bad = recover() != nil }()
	b := (*byte)(p)
	if write {
		*b = 1
		return false
	}
	sink = *b
	return false
}

var sink byte

func TestReserve(t *testing.T) {
	page := uintptr(PageSize())
	const chunk = 1 << 20
	p, err := Reserve(64 << 20)
	check(t, err)
	b := func(i, n uintptr) []byte { return unsafe.Slice((*byte)(unsafe.Add(p, i)), n) }

	for _, write := range []bool{false, true} {
		if !faults(p, write) {
			t.Errorf("reserved, write %v: got no fault", write)
		}
	}
	check(t, Commit(unsafe.Add(p, chunk), chunk))
	if i := bytes.IndexFunc(b(chunk, chunk), func(r rune) bool { return r != 0 }); i >= 0 {
		t.Errorf("committed: got something in byte %d, want zeros", i)
	}
	copy(b(chunk, chunk), bytes.Repeat([]byte{0xaa}, chunk))
	for name, at := range map[string]uintptr{"before": chunk - 1, "behind": 2 * chunk} {
		if !faults(unsafe.Add(p, at), false) {
			t.Errorf("%s what is committed: got no fault", name)
		}
	}

	// A part given back faults, and its neighbours stay as they are.
	check(t, Decommit(unsafe.Add(p, chunk+page), page))
	if !faults(unsafe.Add(p, chunk+page), true) {
		t.Error("decommitted: got no fault")
	}
	if b(chunk+page-1, 1)[0] != 0xaa || b(chunk+2*page, 1)[0] != 0xaa {
		t.Error("got a neighbour changed")
	}
	check(t, Commit(unsafe.Add(p, chunk+page), page))
	if !bytes.Equal(b(chunk+page, page), make([]byte, page)) {
		t.Error("committed again: got old bytes, want zeros")
	}
	check(t, Commit(unsafe.Add(p, chunk), chunk)) // again, as it is
	if b(chunk, 1)[0] != 0xaa {
		t.Error("committed twice: got the bytes lost")
	}
	check(t, Decommit(p, 64<<20)) // all of it, most of which was never committed

	wantErrno(t, Commit(unsafe.Add(p, 1), page), "mprotect", syscall.EINVAL)
	wantErrno(t, Decommit(unsafe.Add(p, 1), page), "mprotect", syscall.EINVAL)
	_, err = Reserve(0)
	wantErrno(t, err, "mmap", syscall.EINVAL)
	_, err = Reserve(^uintptr(0) &^ (page - 1))
	wantErrno(t, err, "mmap", syscall.ENOMEM)
}

func TestHugePages(t *testing.T) {
	p, err := Reserve(8 << 20)
	check(t, err)
	if err := HugePages(p, 8<<20); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("no huge pages here")
	} else {
		check(t, err)
	}
	check(t, Commit(p, 8<<20))
	b := unsafe.Slice((*byte)(p), 8<<20)
	b[0], b[len(b)-1] = 1, 1
	check(t, Decommit(p, 8<<20))
	wantErrno(t, HugePages(unsafe.Add(p, 1), 1<<20), "madvise", syscall.EINVAL)
}

// Address space is not memory: more of it than the machine has is no matter.
func TestReserveMuch(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) < 8 {
		t.Skip("there is not that much address space")
	}
	p, err := Reserve(1 << (8*unsafe.Sizeof(uintptr(0)) - 24)) // 1 TiB
	check(t, err)
	check(t, Commit(p, 1<<20))
	*(*byte)(p) = 1
	check(t, Decommit(p, 1<<20))
}

func TestMapFile(t *testing.T) {
	page := PageSize()
	content := pattern(5*page + 123)
	f := tempFile(t, content)
	mapped := func() int {
		t.Helper()
		maps, err := os.ReadFile("/proc/self/maps")
		check(t, err)
		return strings.Count(string(maps), f.Name())
	}
	tests := []struct {
		name string
		off  int
		n    int
	}{
		{"all", 0, len(content)},
		{"one byte", 0, 1},
		{"last byte of a page", page - 1, 1},
		{"over the edge of a page", page - 1, 2},
		{"one page", page, page},
		{"odd offset, page length", 17, page},
		{"odd offset, several pages", page + 4095, 2*page + 7},
		{"last byte", len(content) - 1, 1},
		{"nothing", 100, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := MapFile(int(f.Fd()), int64(tt.off), tt.n)
			check(t, err)
			if len(b) != tt.n || cap(b) != tt.n {
				t.Errorf("got length %d and capacity %d, want %d", len(b), cap(b), tt.n)
			}
			same(t, b, content[tt.off:tt.off+tt.n])
			if tt.n > 0 && !faults(unsafe.Pointer(&b[0]), true) {
				t.Error("got a mapping that can be written")
			}
			check(t, Unmap(b))
			if n := mapped(); n != 0 {
				t.Errorf("got %d mappings of the file left", n)
			}
		})
	}
	for _, tt := range []struct {
		off int64
		n   int
	}{{-1, 1}, {0, -1}} {
		_, err := MapFile(int(f.Fd()), tt.off, tt.n)
		wantErrno(t, err, "mmap", syscall.EINVAL)
	}
	check(t, Unmap(nil))
}

// The memory is the file's, and a fault when the file has become shorter.
func TestMapFileShared(t *testing.T) {
	page := PageSize()
	f := tempFile(t, make([]byte, 3*page))
	b, err := MapFile(int(f.Fd()), int64(page)+1, page)
	check(t, err)
	defer Unmap(b)
	_, err = f.WriteAt([]byte("new"), int64(page)+1)
	check(t, err)
	if got := string(b[:3]); got != "new" {
		t.Errorf("got %q, want %q", got, "new")
	}
	check(t, f.Truncate(0))
	if !faults(unsafe.Pointer(&b[0]), false) {
		t.Error("truncated: got no fault")
	}
	// The kernel gives an error where a program gets a fault.
	r, w, err := Pipe()
	check(t, err)
	closing(t, r)
	closing(t, w)
	_, err = WriteSlow(w, b)
	wantErrno(t, err, "write", syscall.EFAULT)
}

func TestMapFileLarge(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) < 8 {
		t.Skip("offsets of 32 bits")
	}
	f := tempFile(t, nil)
	const off = 5<<30 + 12345
	if _, err := f.WriteAt([]byte("far"), off); err != nil {
		t.Skipf("no sparse files of this size: %v", err)
	}
	b, err := MapFile(int(f.Fd()), off, 3)
	check(t, err)
	defer Unmap(b)
	if string(b) != "far" {
		t.Errorf("got %q, want far", b)
	}
}

func TestMapFileUnreadable(t *testing.T) {
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "f"), os.O_WRONLY|os.O_CREATE, 0o644)
	check(t, err)
	defer f.Close()
	_, err = MapFile(int(f.Fd()), 0, 1)
	wantErrno(t, err, "mmap", syscall.EACCES)
}
