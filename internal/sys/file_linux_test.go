package sys

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestReadFile(t *testing.T) {
	content := pattern(10_000)
	f := tempFile(t, content)
	tests := []struct {
		name    string
		off     int64
		n, want int
	}{
		{"start", 0, 100, 100},
		{"odd offset", 4097, 4096, 4096},
		{"to the end", 9_000, 5_000, 1_000},
		{"at the end", 10_000, 10, 0},
		{"after the end", 1 << 40, 10, 0},
		{"nothing", 5, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := make([]byte, tt.n)
			n, err := ReadFile(int(f.Fd()), b, tt.off)
			if n != tt.want || err != nil {
				t.Fatalf("got %d, %v, want %d, nil", n, err, tt.want)
			}
			if n > 0 {
				same(t, b[:n], content[tt.off:int(tt.off)+n])
			}
		})
	}
	_, err := ReadFile(int(f.Fd()), make([]byte, 1), -1)
	wantErrno(t, err, "pread", syscall.EINVAL)
	dir, err := os.Open(t.TempDir())
	check(t, err)
	defer dir.Close()
	_, err = ReadFile(int(dir.Fd()), make([]byte, 1), 0)
	wantErrno(t, err, "pread", syscall.EISDIR)
}

func TestSendfile(t *testing.T) {
	content := pattern(100_000)
	f := tempFile(t, content)
	in := int(f.Fd())
	tests := []struct {
		name string
		off  int64
		n    int
		want int // bytes; -1 for an error
		err  syscall.Errno
	}{
		{"start", 0, 10, 10, 0},
		{"odd range", 4095, 8193, 8193, 0},
		{"nothing", 10, 0, 0, 0},
		{"longer than the file", 99_990, 1000, 10, 0},
		{"as long as can be asked", 99_999, math.MaxInt, 1, 0},
		{"at the end", 100_000, 10, 0, 0},
		{"after the end", 1 << 33, 10, 0, 0},
		{"negative length", 0, -1, -1, syscall.EINVAL},
		{"negative offset", -1, 1, -1, syscall.EINVAL},
	}
	for name, at := range endpoints(t) {
		t.Run(name, func(t *testing.T) {
			client, server := pair(t, at)
			for _, tt := range tests {
				t.Run(tt.name, func(t *testing.T) {
					n, err := Sendfile(client, in, tt.off, tt.n)
					if tt.want < 0 {
						wantErrno(t, err, "sendfile", tt.err)
						return
					}
					if n != tt.want || err != nil {
						t.Fatalf("got %d, %v, want %d, nil", n, err, tt.want)
					}
					if n > 0 {
						same(t, readAll(t, server, n), content[tt.off:int(tt.off)+n])
					}
				})
			}
			sum := fill(t, client)
			if n, err := Sendfile(client, in, 0, 10_000); n != 0 || err != ErrAgain {
				t.Errorf("full socket: got %d, %v, want 0, ErrAgain", n, err)
			}
			readAll(t, server, sum)
		})
	}
	if pos, err := f.Seek(0, 1); pos != int64(len(content)) || err != nil {
		t.Errorf("got file position %d, %v, want it untouched at %d", pos, err, len(content))
	}
}

// A file that has shrunk ends early, by 0 bytes and no error.
func TestSendfileShrunk(t *testing.T) {
	f := tempFile(t, pattern(10_000))
	client, server := tcpPair(t)
	check(t, f.Truncate(5_000))
	n, err := Sendfile(client, int(f.Fd()), 0, 10_000)
	if n != 5_000 || err != nil {
		t.Errorf("got %d, %v, want 5000, nil", n, err)
	}
	if n, err = Sendfile(client, int(f.Fd()), 5_000, 5_000); n != 0 || err != nil {
		t.Errorf("got %d, %v, want 0, nil", n, err)
	}
	readAll(t, server, 5_000)
}

func TestSendfileFromSocket(t *testing.T) {
	client, server := tcpPair(t)
	if n, err := Sendfile(client, server, 0, 10); err == nil {
		t.Errorf("got %d, nil, want an error", n)
	}
}

func TestCached(t *testing.T) {
	if !Features().PreadNowait {
		t.Skip("no RWF_NOWAIT here")
	}
	f := tempFile(t, pattern(10_000))
	Learn(int(f.Fd()))
	for _, off := range []int64{0, 1, 4096, 9_999, 10_000, 1 << 40} {
		got, err := Cached(int(f.Fd()), off)
		if err != nil {
			t.Errorf("offset %d: %v", off, err)
		}
		// A file system that cannot tell answers no, or, if it has no disk, yes.
		if !got && nowaitSupported(int(f.Fd())) {
			t.Errorf("offset %d: got not cached, want cached", off)
		}
	}
	_, err := Cached(int(f.Fd()), -1)
	wantErrno(t, err, "preadv2", syscall.EINVAL)
	r, w, err := Pipe()
	check(t, err)
	closing(t, r)
	closing(t, w)
	_, err = Cached(r, 0)
	wantErrno(t, err, "preadv2", syscall.ESPIPE)
}

func nowaitSupported(fd int) bool {
	var b [1]byte
	v := MakeIovec(b[:])
	_, _, e := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&v)), 1, 0, 0, unix.RWF_NOWAIT)
	return e != unix.EOPNOTSUPP
}

// What the kernel has dropped is not called cached, unless the read that the question
// starts has brought it already: on a fast disk it has.
func TestCachedCold(t *testing.T) {
	const size = 8 << 20
	f := tempFile(t, pattern(size))
	fd := int(f.Fd())
	Learn(fd)
	if inMemory(fd) || !Features().PreadNowait {
		t.Skip("nothing is ever cold here")
	}
	check(t, f.Sync())
	check(t, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
	m, err := MapFile(fd, 0, size)
	check(t, err)
	defer Unmap(m)
	resident := func(off int64) bool {
		var page [1]byte
		at := off / int64(PageSize()) * int64(PageSize())
		if _, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[at])), 1, uintptr(unsafe.Pointer(&page))); e != 0 {
			t.Fatal(e)
		}
		return page[0]&1 != 0
	}
	cold := 0
	for off := int64(size - 1); off > 0; off -= 1 << 20 { // too far apart for one read to bring two
		if resident(off) {
			continue // the kernel has kept it
		}
		got, err := Cached(fd, off)
		check(t, err)
		if got && !resident(off) {
			t.Errorf("byte %d: got cached, and it is not in memory", off)
		}
		if !got {
			cold++
		}
		if _, err := ReadFile(fd, make([]byte, 1), off); err != nil {
			t.Fatal(err)
		}
		if got, err = Cached(fd, off); err != nil || !got && nowaitSupported(fd) {
			t.Errorf("byte %d: got %v, %v after it was read, want cached", off, got, err)
		}
	}
	t.Logf("%d places were cold", cold)
}

func TestCachedInMemory(t *testing.T) {
	fd, err := unix.MemfdCreate("runnel", unix.MFD_CLOEXEC)
	check(t, err)
	closing(t, fd)
	check(t, unix.Ftruncate(fd, 100))
	Learn(fd)
	Learn(fd)
	Learn(-1)
	if got, err := Cached(fd, 0); !got || err != nil {
		t.Errorf("tmpfs: got %v, %v, want true, nil", got, err)
	}
	// Neither it nor its file system is one without a disk.
	proc, err := os.Open("/proc/self/status")
	check(t, err)
	defer proc.Close()
	Learn(int(proc.Fd()))
	if inMemory(int(proc.Fd())) {
		t.Error("/proc: got a file system known to be fast")
	}
}

func TestOpenBeneath(t *testing.T) {
	if !Features().Openat2 {
		t.Skip("no openat2 here")
	}
	base := t.TempDir()
	root := filepath.Join(base, "root")
	check(t, os.MkdirAll(filepath.Join(root, "dir", "deep"), 0o755))
	check(t, os.WriteFile(filepath.Join(base, "secret"), []byte("secret"), 0o644))
	check(t, os.WriteFile(filepath.Join(root, "file"), []byte("file"), 0o644))
	check(t, os.WriteFile(filepath.Join(root, "dir", "inner"), []byte("inner"), 0o644))
	check(t, os.WriteFile(filepath.Join(root, "closed"), []byte("x"), 0o000))
	check(t, os.WriteFile(filepath.Join(root, "..odd"), []byte("odd"), 0o644))
	check(t, unix.Mkfifo(filepath.Join(root, "fifo"), 0o644))
	for name, to := range map[string]string{
		"in": "dir/inner", "dir/up": "../file", "out": "../secret", "dir/out": "../../secret",
		"abs": filepath.Join(root, "file"), "etc": "/etc", "dirlink": "dir", "loop": "loop",
		"magic": "/proc/self/root", "dangling": "nothing", "self": "..",
	} {
		check(t, os.Symlink(to, filepath.Join(root, name)))
	}
	l, err := net.Listen("unix", filepath.Join(root, "socket"))
	check(t, err)
	defer l.Close()
	dir, err := OpenDir(root)
	check(t, err)
	closing(t, dir)

	tests := []struct {
		path string
		want string // content
		err  syscall.Errno
	}{
		{path: "file", want: "file"},
		{path: "./dir/../file", want: "file"},
		{path: "dir//inner", want: "inner"},
		{path: "..odd", want: "odd"},
		{path: "in", want: "inner"},
		{path: "dir/up", want: "file"},
		{path: "dirlink/inner", want: "inner"},
		{path: "dirlink/up", want: "file"},
		{path: "dir/deep/../../file", want: "file"},
		{path: "../secret", err: syscall.EXDEV},
		{path: "..", err: syscall.EXDEV},
		{path: "dir/../../secret", err: syscall.EXDEV},
		{path: "../root/file", err: syscall.EXDEV},
		{path: "/etc/passwd", err: syscall.EXDEV},
		{path: filepath.Join(root, "file"), err: syscall.EXDEV},
		{path: "out", err: syscall.EXDEV},
		{path: "dir/out", err: syscall.EXDEV},
		{path: "abs", err: syscall.EXDEV},
		{path: "etc/passwd", err: syscall.EXDEV},
		{path: "magic/etc/passwd", err: syscall.EXDEV},
		{path: "self/secret", err: syscall.EXDEV},
		{path: "loop", err: syscall.ELOOP},
		{path: "dangling", err: syscall.ENOENT},
		{path: "nothing", err: syscall.ENOENT},
		{path: "", err: syscall.ENOENT},
		{path: "file/x", err: syscall.ENOTDIR},
		{path: "a\x00b", err: syscall.EINVAL},
		{path: "socket", err: syscall.ENXIO},
	}
	if os.Getuid() != 0 {
		tests = append(tests, struct {
			path string
			want string
			err  syscall.Errno
		}{path: "closed", err: syscall.EACCES})
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%q", tt.path), func(t *testing.T) {
			fd, err := OpenBeneath(dir, tt.path, false)
			if tt.err != 0 {
				wantErrno(t, err, "openat2", tt.err)
				return
			}
			check(t, err)
			closing(t, fd)
			b := make([]byte, 100)
			n, err := ReadFile(fd, b, 0)
			if string(b[:n]) != tt.want || err != nil {
				t.Errorf("got %q, %v, want %q", b[:n], err, tt.want)
			}
			// It has just been looked up, so it is there without a disk.
			cached, err := OpenBeneath(dir, tt.path, true)
			if err == ErrAgain {
				return // allowed always: the kernel may have dropped it, or lack the flag
			}
			check(t, err)
			check(t, Close(cached))
		})
	}

	// To look is not to open.
	for _, tt := range []struct {
		path         string
		regular, dir bool
		size         int64
	}{
		{"file", true, false, 4}, {"in", true, false, 5}, {"closed", true, false, 1},
		{"dir", false, true, 0}, {"fifo", false, false, 0}, {"socket", false, false, 0},
	} {
		info, err := LookBeneath(dir, tt.path, false)
		check(t, err)
		if info.Regular != tt.regular || info.Dir != tt.dir || tt.regular && info.Size != tt.size {
			t.Errorf("%q: got %+v", tt.path, info)
		}
		fi, err := os.Stat(filepath.Join(root, tt.path))
		check(t, err)
		if got := InfoOf(fi); got != info {
			t.Errorf("%q: got %+v by os.Stat, want %+v", tt.path, got, info)
		}
	}
	_, err = LookBeneath(dir, "out", false)
	wantErrno(t, err, "openat2", syscall.EXDEV)

	// Neither waits for anybody.
	for _, path := range []string{"fifo", "dir", "."} {
		fd, err := OpenBeneath(dir, path, false)
		if err != nil {
			t.Errorf("%q: %v", path, err)
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		check(t, err)
		if flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%q: got a descriptor that children inherit", path)
		}
		check(t, Close(fd))
	}

	_, err = OpenBeneath(-1, "file", false)
	wantErrno(t, err, "openat2", syscall.EBADF)
	if _, err = OpenBeneath(-1, "file", true); err != ErrAgain {
		wantErrno(t, err, "openat2", syscall.EBADF)
	}
}

func TestOpenDir(t *testing.T) {
	base := t.TempDir()
	check(t, os.WriteFile(filepath.Join(base, "file"), nil, 0o644))
	_, err := OpenDir(filepath.Join(base, "file"))
	wantErrno(t, err, "open", syscall.ENOTDIR)
	_, err = OpenDir(filepath.Join(base, "nothing"))
	wantErrno(t, err, "open", syscall.ENOENT)
	dir, err := OpenDir(base)
	check(t, err)
	closing(t, dir)
	if _, err := Read(dir, make([]byte, 1)); !errors.Is(err, syscall.EBADF) {
		t.Errorf("read of the directory: got %v, want EBADF", err)
	}
}

// What is there does not change while the process lives.
func TestFeatures(t *testing.T) {
	first := Features()
	if again := Features(); again != first {
		t.Errorf("got %+v, then %+v", first, again)
	}
	if first.ResolveCached && !first.Openat2 {
		t.Error("got a flag of openat2 without openat2")
	}
}

// Two looks at a file are the same as long as nothing has happened to it.
func TestStat(t *testing.T) {
	f := tempFile(t, pattern(100))
	fd := int(f.Fd())
	look := func() FileInfo {
		t.Helper()
		info, err := Stat(fd)
		check(t, err)
		return info
	}
	first := look()
	if first != look() || first.Size != 100 || !first.Regular || first.Dir || first.Unlinked {
		t.Errorf("got %+v, then %+v", first, look())
	}
	check(t, f.Truncate(99))
	if got := look(); got.Size != 99 || got == first || got.Inode != first.Inode {
		t.Errorf("got %+v after %+v", got, first)
	}
	check(t, os.Remove(f.Name()))
	if got := look(); !got.Unlinked {
		t.Error("got a name, want none")
	}
	_, err := Stat(-1)
	wantErrno(t, err, "fstat", syscall.EBADF)
}

func TestLocal(t *testing.T) {
	fd, err := unix.MemfdCreate("runnel", unix.MFD_CLOEXEC)
	check(t, err)
	closing(t, fd)
	if !Local(fd) {
		t.Error("tmpfs: got not local")
	}
	proc, err := OpenDir("/proc")
	check(t, err)
	closing(t, proc)
	if Local(proc) {
		t.Error("/proc: got local")
	}
	if Local(-1) {
		t.Error("no file: got local")
	}
}
