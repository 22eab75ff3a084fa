package transport

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// slowOpener does as an opener with which nothing, or all, can be had in place.
type slowOpener struct {
	opener
	cold  bool
	looks int
	opens int
	hook  func() // called in each look
	off   bool   // a look has been made off the loop
	loop  *eventloop.Loop
}

func (o *slowOpener) look(path string, inPlace bool) (sys.FileInfo, error) {
	if inPlace && o.cold {
		return sys.FileInfo{}, sys.ErrAgain
	}
	o.looks++
	o.off = !o.loop.InLoop()
	if o.hook != nil {
		o.hook()
	}
	return o.opener.look(path, false)
}

func (o *slowOpener) open(path string, inPlace bool) (*os.File, sys.FileInfo, error) {
	o.opens++
	return o.opener.open(path, false)
}

// cacheRig is a FileCache, and a channel on virtual time to use it from.
type cacheRig struct {
	*FileCache
	*rig
	dir string
	o   *slowOpener
	c   *pipeline.Context
}

func newCacheRig(t *testing.T, cfg FileCacheConfig) *cacheRig {
	t.Helper()
	dir := t.TempDir()
	fc := must(NewFileCache(dir, cfg))
	t.Cleanup(func() { _ = fc.Close() })
	r := &cacheRig{FileCache: fc, rig: newRig(t, rigConfig{}, new(writer)), dir: dir}
	r.o = &slowOpener{opener: fc.dir, loop: r.Loop()}
	fc.dir = r.o
	r.c = pipeline.Find[*writer](r.Pipeline())
	return r
}

func (r *cacheRig) put(name, content string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(content), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// open opens a file and waits until it is there.
func (r *cacheRig) open(path string) (f *CachedFile, err error) {
	r.t.Helper()
	told := 0
	if err := r.Loop().Execute(func() { // in a turn, which reads the clock
		r.FileCache.Open(r.c, path, func(g *CachedFile, e error) { f, err, told = g, e, told+1 })
	}); err != nil {
		r.t.Fatal(err)
	}
	r.m.RunUntilIdle()
	if told != 1 {
		r.t.Fatalf("told %d times of %s, want once", told, path)
	}
	if (f == nil) == (err == nil) {
		r.t.Fatalf("%s: got %v and %v", path, f, err)
	}
	return f, err
}

func (r *cacheRig) want(path, content string) {
	r.t.Helper()
	f, err := r.open(path)
	if err != nil {
		r.t.Errorf("%s: %v", path, err)
		return
	}
	defer f.Release()
	got := must(io.ReadAll(io.NewSectionReader(f.File(), 0, f.Size())))
	if string(got) != content {
		r.t.Errorf("%s: got %q, want %q", path, got, content)
	}
}

func (r *cacheRig) wantErr(path string, want error) {
	r.t.Helper()
	_, err := r.open(path)
	var pe *fs.PathError
	if !errors.Is(err, want) || !errors.As(err, &pe) || pe.Path != path {
		r.t.Errorf("%q: got %v, want a PathError of %v", path, err, want)
	}
}

func (r *cacheRig) wantStats(want FileCacheStats) {
	r.t.Helper()
	if got := r.Stats(); got != want {
		r.t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// fds returns how many descriptors lead to the directory or into it.
func (r *cacheRig) fds() (n int) {
	for _, e := range must(os.ReadDir("/proc/self/fd")) {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if to == r.dir || strings.HasPrefix(to, r.dir+"/") {
			n++
		}
	}
	return n
}

// wantFDs wants so many of them.
func (r *cacheRig) wantFDs(want int) {
	r.t.Helper()
	if runtime.GOOS != "linux" {
		return
	}
	if got := r.fds(); got != want {
		r.t.Errorf("got %d descriptors of the cache, want %d", got, want)
	}
}

// waitFDs waits for what is closed in the background.
func (r *cacheRig) waitFDs(want int) {
	r.t.Helper()
	if runtime.GOOS != "linux" {
		return
	}
	for end := time.Now().Add(patience); r.fds() != want; runtime.Gosched() {
		if time.Now().After(end) {
			r.t.Fatalf("got %d descriptors of the cache, want %d", r.fds(), want)
		}
	}
}

// A file is opened once, in place or by a worker, and found again without a system call
// until the TTL has passed.
func TestFileCacheHits(t *testing.T) {
	for _, cold := range []bool{false, true} {
		t.Run(fmt.Sprintf("cold %v", cold), func(t *testing.T) {
			r := newCacheRig(t, FileCacheConfig{TTL: time.Second})
			r.o.cold = cold
			r.put("file", "content")
			for range 5 {
				r.want("file", "content")
			}
			if r.o.looks != 1 || r.o.opens != 1 || r.o.off != cold {
				t.Errorf("got %d looks and %d opens, off the loop %v; want one of each, %v", r.o.looks, r.o.opens, r.o.off, cold)
			}
			r.wantFDs(2) // the directory and the file
			r.m.Advance(time.Second)
			r.want("file", "content")
			want := FileCacheStats{Files: 1, Hits: 4, Looks: 2, Opens: 1}
			if cold {
				want.Offloaded = 2
			}
			r.wantStats(want)
			if err := r.FileCache.Close(); err != nil {
				t.Error(err)
			}
			r.wantFDs(0)
			r.wantErr("file", os.ErrClosed)
		})
	}
}

// A file that is not what it was is opened anew; who has the old one keeps it.
func TestFileCacheChanges(t *testing.T) {
	tests := []struct {
		name   string
		change func(path string) error
		want   string
		err    error
	}{
		{"replaced", func(path string) error {
			if err := os.WriteFile(path+"+", []byte("another"), 0o600); err != nil {
				return err
			}
			return os.Rename(path+"+", path)
		}, "another", nil},
		{"written", func(path string) error { return os.WriteFile(path, []byte("CONTENT"), 0o600) }, "CONTENT", nil},
		{"grown", func(path string) error { return os.Truncate(path, 9) }, "content\x00\x00", nil},
		{"shrunk", func(path string) error { return os.Truncate(path, 3) }, "con", nil},
		{"touched", func(path string) error { return os.Chtimes(path, time.Time{}, time.Unix(1, 0)) }, "content", nil},
		{"permissions", func(path string) error { return os.Chmod(path, 0o640) }, "content", nil},
		{"removed", os.Remove, "", fs.ErrNotExist},
		{"a directory", func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.Mkdir(path, 0o700)
		}, "", ErrIsDirectory},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newCacheRig(t, FileCacheConfig{TTL: time.Second})
			r.put("file", "content")
			old, err := r.open("file")
			if err != nil {
				t.Fatal(err)
			}
			region := old.Region(0, 7)
			// The clock of a file system may not tell two moments apart.
			past := time.Unix(1e9, 0)
			if err := os.Chtimes(filepath.Join(r.dir, "file"), past, past); err != nil {
				t.Fatal(err)
			}
			if err := tt.change(filepath.Join(r.dir, "file")); err != nil {
				t.Fatal(err)
			}
			r.m.Advance(999 * time.Millisecond)
			if again, err := r.open("file"); again != old {
				t.Errorf("got %v, %v within the TTL, want the same", again, err)
			}
			old.Release()
			r.m.Advance(time.Millisecond)
			if tt.err != nil {
				r.wantErr("file", tt.err)
			} else {
				r.want("file", tt.want)
				if f, err := r.open("file"); f == old || err != nil {
					t.Errorf("got the old file, or %v", err)
				} else {
					f.Release()
				}
			}
			if old.Size() != 7 {
				t.Errorf("got %d for the size of the old file, want 7", old.Size())
			}
			old.Release()
			if _, err := old.File().Stat(); err != nil {
				t.Errorf("the old file has been closed under a region: %v", err)
			}
			region.Release()
			_ = r.FileCache.Close()
			r.waitFDs(0)
		})
	}
}

// With Verify a change is found out within the TTL.
func TestFileCacheVerifies(t *testing.T) {
	r := newCacheRig(t, FileCacheConfig{TTL: time.Hour, Verify: true})
	path := filepath.Join(r.dir, "file")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r.put("file", "content")
	r.want("file", "content")
	r.want("file", "content")
	if sys.Features().Openat2 && r.o.opener.(*kernelOpener).local {
		r.wantStats(FileCacheStats{Files: 1, Hits: 1, Looks: 1, Opens: 1})
	}
	check(os.Truncate(path, 3))
	r.want("file", "con")
	r.put("file+", "another")
	check(os.Rename(path+"+", path))
	r.want("file", "another")
	check(os.Remove(path))
	r.wantErr("file", fs.ErrNotExist)
	r.put("file", "again")
	r.want("file", "again")
	r.FileCache.dir = &rootOpener{must(os.OpenRoot(r.dir))} // which cannot tell in place
	check(r.o.opener.close())
	r.put("file", "once more")
	r.want("file", "once more")
}

// There are never more files open than allowed, besides those in use; the one that has
// not been used for longest goes first.
func TestFileCacheIsBounded(t *testing.T) {
	r := newCacheRig(t, FileCacheConfig{Files: 2})
	for i := range 5 {
		r.put(fmt.Sprint(i), fmt.Sprint("content ", i))
	}
	held, err := r.open("0")
	if err != nil {
		t.Fatal(err)
	}
	region := held.Region(0, held.Size())
	held.Release()
	r.want("1", "content 1")
	r.want("0", "content 0")
	r.want("2", "content 2") // in place of 1
	r.wantStats(FileCacheStats{Files: 2, Hits: 1, Looks: 3, Opens: 3, Evicted: 1})
	r.want("0", "content 0")
	r.wantStats(FileCacheStats{Files: 2, Hits: 2, Looks: 3, Opens: 3, Evicted: 1})
	r.want("3", "content 3") // of 2
	r.want("4", "content 4") // of 0, which is held
	r.wantStats(FileCacheStats{Files: 2, Hits: 2, Looks: 5, Opens: 5, Evicted: 3})
	r.wantFDs(1 + 3) // the directory, and the files
	got := make([]byte, region.Len())
	if _, err := region.File().ReadAt(got, 0); err != nil || string(got) != "content 0" {
		t.Errorf("got %q, %v from a region whose file has been evicted", got, err)
	}
	region.Release()
	r.wantFDs(1 + 2)
}

// What nobody has asked for between two sweeps is closed.
func TestFileCacheSweeps(t *testing.T) {
	r := newCacheRig(t, FileCacheConfig{})
	r.put("a", "a")
	r.put("b", "b")
	r.want("a", "a")
	r.want("b", "b")
	r.swept()
	r.want("b", "b")
	r.swept()
	r.wantStats(FileCacheStats{Files: 1, Hits: 1, Looks: 2, Opens: 2, Evicted: 1})
	r.swept()
	r.wantStats(FileCacheStats{Hits: 1, Looks: 2, Opens: 2, Evicted: 2})
	if r.sweep != nil {
		t.Error("the timer goes on with nothing to sweep")
	}
	r.want("a", "a")
	if r.sweep == nil {
		t.Error("no timer with something to sweep")
	}
}

// Those who ask for a file while it is looked for wait for that look, and all are told
// the same, each with a reference of its own.
func TestFileCacheJoins(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(r *cacheRig)
		want error
	}{
		{"found", func(r *cacheRig) { r.put("file", "content") }, nil},
		{"missing", func(*cacheRig) {}, fs.ErrNotExist},
		{"panic", func(r *cacheRig) { r.o.hook = func() { panic("broken") } }, errLookBroken},
		{"closed meanwhile", func(r *cacheRig) {
			r.put("file", "content")
			r.o.hook = func() { _ = r.FileCache.Close() }
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newCacheRig(t, FileCacheConfig{})
			r.o.cold = true
			tt.do(r)
			var files []*CachedFile
			var errs []error
			r.m.Enter(func() {
				for range 3 {
					r.FileCache.Open(r.c, "file", func(f *CachedFile, err error) {
						if !r.Loop().InLoop() {
							t.Error("told off the loop")
						}
						files, errs = append(files, f), append(errs, err)
					})
				}
			})
			if len(errs) != 0 {
				t.Fatal("told before a worker has looked")
			}
			idle(r.m)
			if len(errs) != 3 || r.o.looks != 1 {
				t.Fatalf("told %d times after %d looks, want 3 after one", len(errs), r.o.looks)
			}
			for i, err := range errs {
				if !errors.Is(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				if files[i] != files[0] || (files[i] == nil) != (tt.want != nil) {
					t.Errorf("got file %v and %v", files[i], files[0])
				}
			}
			for _, f := range files {
				if f != nil {
					f.Release()
				}
			}
			if s := r.Stats(); s.Joined != 2 || s.Looks != 1 || s.Offloaded != 1 {
				t.Errorf("got %+v, want one look on a worker, joined twice", s)
			}
			_ = r.FileCache.Close()
			r.waitFDs(0)
		})
	}
}

// idle runs m until there is nothing to do, through the panics of workers.
func idle(m *eventloop.Manual) {
	for done := false; !done; {
		func() {
			defer func() { _ = recover() }()
			m.RunUntilIdle()
			done = true
		}()
	}
}

// Whoever is told after its channel has closed still gets the file.
func TestFileCacheAfterClose(t *testing.T) {
	r := newCacheRig(t, FileCacheConfig{})
	r.o.cold = true
	r.put("file", "content")
	var got *CachedFile
	r.do(func() {
		r.FileCache.Open(r.c, "file", func(f *CachedFile, err error) { got = f })
		r.Reset()
	})
	r.m.RunUntilIdle()
	if got == nil {
		t.Fatal("not told")
	}
	got.Release()
}

// No path leads out, whoever looks; what is not a file with content is refused unopened.
func TestFileCachePaths(t *testing.T) {
	kernel := func(dir string) (opener, error) {
		if !sys.Features().Openat2 {
			t.Skip("no openat2 here")
		}
		return openerOf(dir)
	}
	for _, tt := range []struct {
		name string
		of   func(dir string) (opener, error)
	}{{"openat2", kernel}, {"walk", newRootOpener}} {
		for _, inPlace := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s in place %v", tt.name, inPlace), func(t *testing.T) {
				if runtime.GOOS == "windows" {
					t.Skip("other names and links")
				}
				testPaths(t, tt.of, inPlace)
			})
		}
	}
}

func testPaths(t *testing.T, of func(dir string) (opener, error), inPlace bool) {
	r := newCacheRig(t, FileCacheConfig{})
	_ = r.dir
	top := r.dir
	root := filepath.Join(top, "root")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.MkdirAll(filepath.Join(root, "sub"), 0o755))
	r.put("secret", "secret")
	r.put("root/file", "file")
	r.put("root/empty", "")
	r.put("root/sub/file", "sub")
	r.put("root/..odd", "odd")
	for link, to := range map[string]string{
		"inside": "sub/file", "sub/up": "../file", "outside": "../secret", "absolute": filepath.Join(root, "file"),
		"above": "..", "loop": "loop", "dangling": "nowhere", "proc": "/proc/self/root",
	} {
		check(os.Symlink(to, filepath.Join(root, link)))
	}
	l, err := net.Listen("unix", filepath.Join(root, "socket"))
	check(err)
	defer l.Close()
	private := filepath.Join(root, "private")
	check(os.WriteFile(private, []byte("private"), 0))
	var wantPrivate error
	if f, err := os.Open(private); err != nil {
		wantPrivate = fs.ErrPermission
	} else {
		f.Close() // root may
	}

	o, err := of(root)
	check(err)
	check(r.o.opener.close())
	r.o.opener = o
	if inPlace {
		r.dirInPlace()
	} else {
		r.o.cold = true
	}
	for range 2 { // the second time the kernel knows it
		for _, tt := range []struct {
			path, want string
			err        error
		}{
			{"file", "file", nil}, {"./file", "file", nil}, {"sub/../file", "file", nil}, {"sub//file", "sub", nil},
			{"inside", "sub", nil}, {"sub/up", "file", nil}, {"..odd", "odd", nil}, {"empty", "", nil},
			{"private", "private", wantPrivate},
			{"nothing", "", fs.ErrNotExist}, {"dangling", "", fs.ErrNotExist}, {"", "", fs.ErrNotExist},
			{"file/file", "", syscall.ENOTDIR}, {"file/", "", syscall.ENOTDIR},
			{strings.Repeat("x", 300), "", syscall.ENAMETOOLONG},
			{"..", "", ErrPathEscapes}, {"../secret", "", ErrPathEscapes}, {"../root/file", "", ErrPathEscapes},
			{"sub/../../secret", "", ErrPathEscapes}, {"/etc/passwd", "", ErrPathEscapes}, {"/", "", ErrPathEscapes},
			{root + "/file", "", ErrPathEscapes}, {"outside", "", ErrPathEscapes}, {"absolute", "", ErrPathEscapes},
			{"above/secret", "", ErrPathEscapes}, {"proc/etc/passwd", "", ErrPathEscapes},
			{"loop", "", syscall.ELOOP}, {"file\x00", "", syscall.EINVAL},
			{".", "", ErrIsDirectory}, {"sub", "", ErrIsDirectory}, {"sub/", "", ErrIsDirectory}, {"sub/..", "", ErrIsDirectory},
			{"socket", "", ErrNotRegular},
		} {
			if tt.err != nil {
				r.wantErr(tt.path, tt.err)
			} else {
				r.want(tt.path, tt.want)
			}
		}
	}
}

// dirInPlace has the opener be asked in place as it is.
func (r *cacheRig) dirInPlace() { r.FileCache.dir = r.o.opener }

func TestNewFileCacheRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, dir string
		cfg       FileCacheConfig
	}{
		{"negative files", dir, FileCacheConfig{Files: -1}},
		{"negative TTL", dir, FileCacheConfig{TTL: -1}},
		{"no directory", file, FileCacheConfig{}},
		{"nothing", filepath.Join(dir, "nothing"), FileCacheConfig{}},
	} {
		if fc, err := NewFileCache(tt.dir, tt.cfg); err == nil {
			t.Errorf("%s: got a cache, want an error", tt.name)
			_ = fc.Close()
		}
	}
	if runtime.GOOS == "linux" {
		if _, err := NewFileCache(file, FileCacheConfig{}); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("got %v, want ENOTDIR", err)
		}
	}
}

func TestCachedFileMisuse(t *testing.T) {
	r := newCacheRig(t, FileCacheConfig{})
	r.put("file", "content")
	f := must(r.open("file"))
	if got := f.ModTime(); time.Since(got) > time.Hour || time.Since(got) < -time.Hour {
		t.Errorf("got %v for a file just written", got)
	}
	wantPanic(t, func() { f.Region(-1, 1) })
	_ = r.FileCache.Close()
	f.Release()
	wantPanic(t, f.Release)
}

func wantPanic(t *testing.T, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Error("got no panic")
		}
	}()
	f()
}

// A file that is there costs no memory but the region.
func TestFileCacheHitAllocatesNothing(t *testing.T) {
	r := newCacheRig(t, FileCacheConfig{})
	r.put("file", "content")
	r.want("file", "content")
	then := func(f *CachedFile, err error) { f.Release() }
	r.m.Enter(func() {
		if n := testing.AllocsPerRun(100, func() { r.FileCache.Open(r.c, "file", then) }); n != 0 {
			t.Errorf("got %v allocations, want 0", n)
		}
	})
}

// endlessSocket takes whatever it is sent of files, and moves nothing.
type endlessSocket struct {
	scriptSocket
	next, most int64
	calls      int
}

func (s *endlessSocket) sendfile(_ int, off int64, n int) (int, error) {
	if off != s.next {
		s.t.Errorf("call %d: got offset %d, want %d", s.calls, off, s.next)
	}
	s.calls++
	s.next += int64(n)
	s.most = max(s.most, int64(n))
	return n, nil
}

// Offsets and lengths beyond 32 bits keep their digits, and no call moves more than a
// piece of the budget.
func TestHugeRegion(t *testing.T) {
	const off, n = 1<<62 + 3, 1<<33 + 123
	r := newRig(t, rigConfig{})
	s := &endlessSocket{scriptSocket: scriptSocket{r.k}, next: off}
	r.stream.sock = s
	var sent int64
	told := 0
	r.do(func() {
		r.WriteThen(buffer.NewFileRegion(tempFile(t, ""), off, n), func(err error) {
			if err != nil {
				t.Error(err)
			}
			told++
			sent = s.next - off
		})
	})
	r.m.RunUntilIdle()
	if told != 1 || sent != n || s.most > regionPiece || s.calls != n/regionPiece+1 {
		t.Errorf("told %d times after %d bytes, in %d calls of %d at most", told, sent, s.calls, s.most)
	}
}
