package transport

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

var (
	// ErrPathEscapes is the cause when a path leads out of the directory of a
	// [FileCache]: it is absolute, has too many "..", or goes through a symbolic link
	// that does.
	ErrPathEscapes = errors.New("path leads out of the directory")
	// ErrNotRegular is the cause when a path leads to something that is no file with
	// content: a device, a socket, a FIFO.
	ErrNotRegular = errors.New("not a regular file")
	// ErrIsDirectory is the cause when it leads to a directory.
	ErrIsDirectory = errors.New("is a directory")
)

// FileCacheConfig sets what a [FileCache] keeps. The zero value is ready to use.
type FileCacheConfig struct {
	// Files is how many files stay open, besides those that are being sent. 0 means
	// 1024; negative is an error.
	Files int
	// TTL is for how long a file is used without a look whether its path still leads to
	// it and it is unchanged. 0 means one second; negative is an error.
	TTL time.Duration
	// Verify has the open file be looked at whenever it is used within the TTL, by one
	// fstat. One that has been written, truncated, removed or replaced is found out at
	// once then; what waits for the end of the TTL is a change of the directories and
	// links on the way to it.
	Verify bool
}

// FileCache opens the files below a directory, for sending, and keeps them open. A
// file that is asked for again within the TTL costs no system call. After that its
// path is looked at: when it leads to another file, or size, times or permissions have
// changed, the file is opened anew, while what is being sent goes on with the old one.
// A file that nobody asks for is closed after a minute at most.
//
// No path leads out of the directory: neither "..", nor an absolute path, nor a
// symbolic link, as long as nobody who may write there has mounted something else into
// it. The descriptors count against the process's limit.
//
// An event loop never waits for a disk: what the kernel knows by heart is opened in
// place, the rest on the group's workers. Where it cannot tell, because the
// directory is behind a network, or the kernel is old or forbids openat2, every look goes
// to the workers.
//
// Concurrency: all methods are safe from any goroutine; Open belongs into a handler.
type FileCache struct {
	limit  int
	ttl    time.Duration
	verify bool
	dir    opener

	mu     sync.Mutex
	places map[string]*place
	used   places // those with a file, the last used first
	n      int    // of those
	looks  int    // under way; the directory stays open for them
	closed bool
	stats  FileCacheStats
	sweep  *time.Timer // nil when there is nothing to sweep
}

// FileCacheStats is what a [FileCache] has done.
type FileCacheStats struct {
	Files     int    // open now, without those that are only being sent
	Hits      uint64 // files that were there
	Joined    uint64 // that came of a look which somebody else had begun
	Looks     uint64 // at a path
	Offloaded uint64 // of those, on a worker
	Opens     uint64 // files opened
	Evicted   uint64 // closed because there were too many, or nobody asked for them
}

const (
	defaultFiles   = 1024
	defaultFileTTL = time.Second
	// sweepEvery is how often the files are closed that nobody has asked for since the
	// last time.
	sweepEvery = 30 * time.Second
)

// NewFileCache returns a cache of the files below dir, which must be a directory.
func NewFileCache(dir string, cfg FileCacheConfig) (*FileCache, error) {
	if cfg.Files < 0 || cfg.TTL < 0 {
		return nil, fmt.Errorf("transport: negative Files (%d) or TTL (%v)", cfg.Files, cfg.TTL)
	}
	if cfg.Files == 0 {
		cfg.Files = defaultFiles
	}
	if cfg.TTL == 0 {
		cfg.TTL = defaultFileTTL
	}
	d, err := openerOf(dir)
	if err != nil {
		return nil, err
	}
	fc := &FileCache{limit: cfg.Files, ttl: cfg.TTL, verify: cfg.Verify, dir: d, places: map[string]*place{}}
	fc.used.init()
	return fc, nil
}

// place is a path: what it led to when it was last looked at, and who waits for a look
// that is under way. Guarded by FileCache.mu.
type place struct {
	path    string
	file    *CachedFile // nil until the first look has ended
	checked time.Time   // when the last look began
	recent  bool        // used since the last sweep
	looking bool
	waiting []fileRequest

	prev, next *place // among those with a file
}

// fileRequest is somebody who waits for a file.
type fileRequest struct {
	c    *pipeline.Context
	then func(f *CachedFile, err error)
}

// Open finds a file and calls then with it, as the handler of c does anything, exactly
// once: before Open returns, if the file is there or can be opened at once, or later;
// also when the channel has closed by then. The path uses "/" and is relative to the
// directory.
//
// f is then's to release. err is a *fs.PathError that wraps ErrPathEscapes,
// ErrIsDirectory, ErrNotRegular, os.ErrClosed after Close, or the system's reason, such
// as one that matches fs.ErrNotExist or fs.ErrPermission. Errors are not kept.
//
// It belongs into a handler of c, on whichever goroutine that runs.
func (fc *FileCache) Open(c *pipeline.Context, path string, then func(f *CachedFile, err error)) {
	now := clockOf(c.Loop())
	fc.mu.Lock()
	p := fc.places[path]
	if p != nil && p.file != nil && now.Sub(p.checked) < fc.ttl {
		f := fc.hit(p)
		fc.mu.Unlock()
		if !fc.verify || fc.unchanged(f) {
			then(f, nil)
			return
		}
		f.Release()
		fc.mu.Lock()
		fc.stats.Hits--
		p = fc.places[path]
	}
	switch {
	case fc.closed:
		fc.mu.Unlock()
		then(nil, pathError(path, os.ErrClosed))
		return
	case p == nil:
		p = &place{path: path}
		fc.places[path] = p
	case p.looking:
		fc.stats.Joined++
		p.waiting = append(p.waiting, fileRequest{c, then})
		fc.mu.Unlock()
		return
	}
	p.looking = true
	known := p.file
	if known != nil {
		known.refs.Add(1) // for the look
	}
	fc.looks++
	fc.stats.Looks++
	fc.mu.Unlock()

	l := look{fc, p, known, now}
	f, err := l.at(true)
	if err != sys.ErrAgain {
		f, err = l.ended(f, err, true)
		then(f, err)
		return
	}
	fc.mu.Lock()
	fc.stats.Offloaded++
	p.waiting = append(p.waiting, fileRequest{c, then})
	fc.mu.Unlock()
	// Not through c: what else its channel has offloaded is not the others' business.
	if err := c.Loop().Offload().Submit(l.offloaded); err != nil {
		l.ended(nil, pathError(path, err), false)
	}
}

// clockOf returns the time of the loop's turn, or off it just the time.
func clockOf(l *eventloop.Loop) time.Time {
	if l.InLoop() {
		return l.Now()
	}
	return time.Now()
}

// hit takes the file of p. Under mu.
func (fc *FileCache) hit(p *place) *CachedFile {
	fc.stats.Hits++
	p.recent = true
	if fc.used.first() != p {
		p.unlink()
		fc.used.pushFront(p)
	}
	p.file.refs.Add(1)
	return p.file
}

// unchanged reports whether f is known to be what it was when it was looked for.
func (fc *FileCache) unchanged(f *CachedFile) bool {
	info, err := fc.dir.check(f)
	return err == nil && info == f.info
}

// look is a look at a path that is under way.
type look struct {
	fc    *FileCache
	p     *place
	known *CachedFile // what the path led to before, with a reference; nil if nothing
	began time.Time
}

// at looks, and opens the file if it is not the one that is known: that is returned
// then, with one more reference. In place it fails with sys.ErrAgain where only a
// worker can tell.
func (l *look) at(inPlace bool) (*CachedFile, error) {
	info, err := l.fc.dir.look(l.p.path, inPlace)
	if err != nil {
		return nil, l.reason(err)
	}
	if l.known != nil && info == l.known.info {
		l.known.refs.Add(1)
		return l.known, nil
	}
	if err := regular(info); err != nil {
		return nil, l.reason(err)
	}
	file, info, err := l.fc.dir.open(l.p.path, inPlace)
	if err != nil {
		return nil, l.reason(err)
	}
	if err := regular(info); err != nil { // it is another by now
		file.Close()
		return nil, l.reason(err)
	}
	f := &CachedFile{file: file, fd: int(file.Fd()), info: info}
	f.done = f.Release
	f.refs.Store(1)
	return f, nil
}

func regular(info sys.FileInfo) error {
	switch {
	case info.Dir:
		return ErrIsDirectory
	case !info.Regular:
		return ErrNotRegular
	}
	return nil
}

// reason makes the error of Open, but leaves sys.ErrAgain as it is.
func (l *look) reason(err error) error {
	if err == sys.ErrAgain {
		return err
	}
	return pathError(l.p.path, err)
}

func pathError(path string, err error) error {
	return &fs.PathError{Op: "open", Path: path, Err: err}
}

var errLookBroken = errors.New("transport: the look at a file was broken off")

// offloaded looks on a worker.
func (l *look) offloaded() {
	f, err := (*CachedFile)(nil), pathError(l.p.path, errLookBroken) // unless it panics
	defer func() { l.ended(f, err, false) }()
	if f, err = l.at(false); err == sys.ErrAgain { // somebody holds a lease on the file
		err = pathError(l.p.path, syscall.EAGAIN)
	}
}

// ended takes note of what a look has found, and tells all who wait. f's reference
// goes to the cache, if it keeps f. With own, one more is returned for the caller.
func (l *look) ended(f *CachedFile, err error, own bool) (*CachedFile, error) {
	fc, p := l.fc, l.p
	var drop [3]*CachedFile // to be released outside of the lock
	drop[0] = l.known
	fc.mu.Lock()
	waiting := p.waiting
	p.waiting, p.looking = nil, false
	if f != nil {
		n := int32(len(waiting))
		if own {
			n++
		}
		f.refs.Add(n)
		if f != l.known {
			fc.stats.Opens++
		}
	}
	switch {
	case fc.closed:
		drop[1] = f
	case err != nil:
		delete(fc.places, p.path)
		drop[1] = fc.forget(p)
	case p.file == f:
		drop[1] = f // the cache has a reference already
		p.checked = l.began
		fc.touch(p)
	default:
		drop[1] = fc.forget(p)
		p.file, p.checked = f, l.began
		fc.n++
		fc.touch(p)
		drop[2] = fc.evict()
	}
	fc.looks--
	shut := fc.closed && fc.looks == 0
	fc.mu.Unlock()

	for _, d := range drop {
		if d != nil {
			d.Release()
		}
	}
	if shut {
		_ = fc.dir.close()
	}
	for _, w := range waiting {
		w.tell(f, err)
	}
	if !own {
		return nil, nil
	}
	return f, err
}

// tell brings the outcome to who waits, on the goroutine of its handler.
func (w fileRequest) tell(f *CachedFile, err error) {
	w.c.Offload(func(context.Context) (any, error) { return nil, nil }, func(any, error) { w.then(f, err) })
}

// touch puts p in front. Under mu.
func (fc *FileCache) touch(p *place) {
	p.recent = true
	if p.prev != nil {
		p.unlink()
	}
	fc.used.pushFront(p)
	if fc.sweep == nil {
		fc.sweep = time.AfterFunc(sweepEvery, fc.swept)
	}
}

// forget takes its file from p, and returns it for the caller to release. Under mu.
func (fc *FileCache) forget(p *place) *CachedFile {
	f := p.file
	if f != nil {
		p.file = nil
		p.unlink()
		fc.n--
	}
	return f
}

// evict drops the file that has not been used for longest, if there are too many, and
// returns it for the caller to release. Under mu.
func (fc *FileCache) evict() *CachedFile {
	if fc.n <= fc.limit {
		return nil
	}
	fc.stats.Evicted++
	return fc.evictPlace(fc.used.last())
}

func (fc *FileCache) evictPlace(p *place) *CachedFile {
	if !p.looking {
		delete(fc.places, p.path)
	}
	return fc.forget(p)
}

// swept drops the files that nobody has used since the last time.
func (fc *FileCache) swept() {
	var drop []*CachedFile
	fc.mu.Lock()
	for p := fc.used.last(); p != nil; {
		prev := fc.used.before(p)
		if !p.recent {
			fc.stats.Evicted++
			drop = append(drop, fc.evictPlace(p))
		}
		p.recent = false
		p = prev
	}
	switch {
	case fc.closed:
	case fc.n == 0:
		fc.sweep = nil
	default:
		fc.sweep.Reset(sweepEvery)
	}
	fc.mu.Unlock()
	for _, f := range drop {
		f.Release()
	}
}

// Stats returns what has been counted.
func (fc *FileCache) Stats() FileCacheStats {
	fc.mu.Lock()
	defer fc.mu.Unlock()
	s := fc.stats
	s.Files = fc.n
	return s
}

// Close closes the files, but those that are in use only when their last user has
// released them. Open fails from then on. A second Close does nothing.
func (fc *FileCache) Close() error {
	fc.mu.Lock()
	if fc.closed {
		fc.mu.Unlock()
		return nil
	}
	fc.closed = true
	var drop []*CachedFile
	for p := fc.used.first(); p != nil; p = fc.used.first() {
		drop = append(drop, fc.forget(p))
	}
	clear(fc.places)
	if fc.sweep != nil {
		fc.sweep.Stop()
	}
	shut := fc.looks == 0
	fc.mu.Unlock()
	for _, f := range drop {
		f.Release()
	}
	if shut {
		return fc.dir.close()
	}
	return nil
}

// CachedFile is an open file of a [FileCache]. What it says of the file was true when
// its path was looked at.
//
// Ownership: who gets it has one reference. The file is closed with the last one: the
// cache has one too, and so does each region.
//
// Concurrency: all methods are safe from any goroutine.
type CachedFile struct {
	file *os.File
	fd   int
	info sys.FileInfo
	done func() // Release, made once
	refs atomic.Int32
}

// Size returns the size of the file in bytes.
func (f *CachedFile) Size() int64 { return f.info.Size }

// ModTime returns when its content was last changed.
func (f *CachedFile) ModTime() time.Time { return time.Unix(0, f.info.Modified) }

// File returns the file, to map or to read from by ReadAt while a reference is held. Its
// position is shared by all users. Do not close it.
func (f *CachedFile) File() *os.File { return f.file }

// Region returns a message of n bytes of the file from offset off, with a reference of its
// own. It panics as [buffer.NewFileRegion] does.
func (f *CachedFile) Region(off, n int64) *buffer.FileRegion {
	r := buffer.NewSharedRegion(f.file, off, n, f.done)
	if f.refs.Add(1) <= 1 {
		panic("transport: CachedFile used after its release")
	}
	return r
}

// Release gives the reference back. One too many panics.
func (f *CachedFile) Release() {
	switch n := f.refs.Add(-1); {
	case n > 0:
	case n < 0:
		panic("transport: CachedFile released too often")
	case f.slowToClose():
		go f.file.Close()
	default:
		_ = f.file.Close() // opened for reading: there is nothing to lose
	}
}

// slowToClose reports whether the file has no name any more: then its blocks are freed by
// the close, and it may run on a loop.
func (f *CachedFile) slowToClose() bool {
	info, err := sys.Stat(f.fd)
	return err == nil && info.Unlinked
}

// places is a list of them in a ring; the zero value needs init.
type places struct{ head place }

func (l *places) init() { l.head.prev, l.head.next = &l.head, &l.head }

func (l *places) pushFront(p *place) {
	p.prev, p.next = &l.head, l.head.next
	p.prev.next, p.next.prev = p, p
}

func (l *places) first() *place { return l.real(l.head.next) }
func (l *places) last() *place  { return l.real(l.head.prev) }

// before returns the one that was used after p, or nil.
func (l *places) before(p *place) *place { return l.real(p.prev) }

func (l *places) real(p *place) *place {
	if p == &l.head {
		return nil
	}
	return p
}

func (p *place) unlink() {
	p.prev.next, p.next.prev = p.next, p.prev
	p.prev, p.next = nil, nil
}
