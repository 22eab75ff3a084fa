package sys

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestWriteFile(t *testing.T) {
	f := tempFile(t, []byte("0123456789"))
	for _, w := range []struct {
		p   string
		off int64
	}{{"ab", 2}, {"", 5}, {"xyz", 12}} {
		if n, err := WriteFile(int(f.Fd()), []byte(w.p), w.off); n != len(w.p) || err != nil {
			t.Errorf("%q at %d: got %d, %v", w.p, w.off, n, err)
		}
	}
	got, err := os.ReadFile(f.Name())
	check(t, err)
	if want := "01ab456789\x00\x00xyz"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	_, err = WriteFile(int(f.Fd()), []byte("x"), -1)
	wantErrno(t, err, "pwrite", syscall.EINVAL)
}

// What a pipe holds goes to a file at an offset, and nowhere else.
func TestSpliceToFile(t *testing.T) {
	r, w, err := Pipe()
	check(t, err)
	defer Close(r)
	defer Close(w)
	f := tempFile(t, []byte("0123456789"))
	for _, n := range []int{4, 3, 100} {
		content := pattern(n)
		if m, err := Write(w, content); m != n || err != nil {
			t.Fatalf("got %d, %v", m, err)
		}
		if m, err := SpliceToFile(int(f.Fd()), r, int64(5*n), n); m != n || err != nil {
			t.Fatalf("got %d, %v; want %d", m, err, n)
		}
		got := make([]byte, n)
		if _, err := f.ReadAt(got, int64(5*n)); err != nil {
			t.Fatal(err)
		}
		same(t, got, content)
	}
	_, err = Write(w, []byte("left"))
	check(t, err)
	ending, err := os.OpenFile(f.Name(), os.O_WRONLY|os.O_APPEND, 0)
	check(t, err)
	defer ending.Close()
	_, err = SpliceToFile(int(ending.Fd()), r, 0, 4)
	wantErrno(t, err, "splice", syscall.EINVAL)
	_, err = SpliceToFile(int(f.Fd()), r, -1, 4)
	wantErrno(t, err, "splice", syscall.EINVAL)
	_, err = SpliceToFile(int(f.Fd()), r, 0, -1)
	wantErrno(t, err, "splice", syscall.EINVAL)
}

func TestAllocateFile(t *testing.T) {
	f := tempFile(t, []byte("abc"))
	check(t, AllocateFile(int(f.Fd()), 3, 1<<20))
	if info, err := f.Stat(); err != nil || info.Size() != 3 {
		t.Errorf("size: got %v, %v; want 3", info.Size(), err)
	}
	check(t, SyncData(int(f.Fd())))
	null, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	check(t, err)
	defer null.Close()
	check(t, AllocateFile(int(null.Fd()), 0, 1<<20))
	check(t, SyncData(int(null.Fd())))
	wantErrno(t, AllocateFile(int(f.Fd()), 0, 0), "fallocate", syscall.EINVAL)
	wantErrno(t, AllocateFile(-1, 0, 1), "fallocate", syscall.EBADF)
	wantErrno(t, SyncData(-1), "fdatasync", syscall.EBADF)
}

func TestOpenedFor(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	for flags, want := range map[int][2]bool{
		os.O_WRONLY | os.O_CREATE: {true, false},
		os.O_RDONLY:               {false, false},
		os.O_RDWR | os.O_APPEND:   {true, true},
	} {
		f, err := os.OpenFile(name, flags|os.O_CREATE, 0o600)
		check(t, err)
		writing, appending, err := OpenedFor(int(f.Fd()))
		if writing != want[0] || appending != want[1] || err != nil {
			t.Errorf("flags %#x: got %v, %v, %v; want %v", flags, writing, appending, err, want)
		}
		f.Close()
	}
	_, _, err := OpenedFor(-1)
	wantErrno(t, err, "fcntl", syscall.EBADF)
}
