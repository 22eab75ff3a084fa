package transport

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/sys"
)

const (
	// filingBudget is after how many bytes an Op of a FileReceiver leaves its worker to
	// others.
	filingBudget = 4 << 20
	// filingBuffer is how many bytes are copied at a time where nothing can be spliced.
	filingBuffer = 256 << 10
	// keepDiskPipes is how many of the pipes for files a loop keeps. They are large,
	// which saves a quarter of the CPU time: a page of the socket takes one of the 16
	// slots that a pipe has by default, and long writes are cheaper to the file. But all pipes of a user have a bound.
	keepDiskPipes = 2
)

// storage is what a FileReceiver asks of its file: the seam where tests put a scripted
// one. All of it may sleep. The errors are those of internal/sys.
type storage interface {
	// use calls f and keeps the file open meanwhile. The others are called in f only.
	use(f func()) error
	splice(pipe int, off int64, n int) (int, error)
	write(p []byte, off int64) (int, error)
	allocate(off, n int64) error
	sync() error
	name() string
}

// diskFile is a file of the system.
type diskFile struct {
	file *os.File
	conn syscall.RawConn
	fd   int
}

// newDiskFile says why f cannot be received into.
func newDiskFile(f *os.File) (*diskFile, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var writing, appending bool
	var flagsErr error
	if conn.Control(func(fd uintptr) { writing, appending, flagsErr = sys.OpenedFor(int(fd)) }) != nil {
		return nil, os.ErrClosed
	}
	switch {
	case flagsErr != nil:
		return nil, flagsErr
	case !writing:
		return nil, errors.New("it was not opened for writing")
	case appending:
		return nil, errors.New("it was opened with O_APPEND")
	}
	return &diskFile{file: f, conn: conn}, nil
}

func (d *diskFile) use(f func()) error {
	if d.conn.Control(func(fd uintptr) {
		d.fd = int(fd)
		f()
	}) != nil {
		return os.ErrClosed
	}
	return nil
}

func (d *diskFile) splice(pipe int, off int64, n int) (int, error) {
	return sys.SpliceToFile(d.fd, pipe, off, n)
}
func (d *diskFile) write(p []byte, off int64) (int, error) { return sys.WriteFile(d.fd, p, off) }
func (d *diskFile) allocate(off, n int64) error            { return sys.AllocateFile(d.fd, off, n) }
func (d *diskFile) sync() error                            { return sys.SyncData(d.fd) }
func (d *diskFile) name() string                           { return d.file.Name() }

// sharedPipes is the empty pipes of a loop for its Ops: a worker takes one when it
// begins, so that there are no more in use than there are workers.
type sharedPipes struct {
	mu sync.Mutex
	pipePool
}

func (sp *sharedPipes) lend() (pipe, error) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	idle := len(sp.idle) > 0
	p, err := sp.pipePool.lend()
	if err == nil && !idle {
		_, _ = sys.SetPipeSize(p.w, longSplice) // else it is a small one
	}
	return p, err
}

func (sp *sharedPipes) back(p pipe) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if len(sp.idle) < keepDiskPipes {
		sp.pipePool.back(p)
		return
	}
	p.close()
}

// filing is what the Op of a FileReceiver works with. What it has taken from the socket
// it writes before it ends, whatever happens to the channel.
type filing struct {
	to      storage
	state   *loopState
	sock    socket
	at      int64 // offset of the next byte
	left    int64 // bytes that may still come
	bounded bool  // to what was asked for
	last    bool  // the reception has been stopped

	prepared bool
	copying  bool // the socket or the file has nothing to do with pipes
	eof      bool // the end of the stream has been read
	synced   bool

	// How the last Op has ended.
	empty   bool  // the socket has no more
	broken  error // of the socket
	short   error // there is no memory
	failure error // of the file
}

// run is the Op: it moves what the socket has into the file, until there is no more of
// it or others are to have their turn. On a worker.
func (r *FileReceiver) run() (int64, error) {
	before := r.written()
	r.empty, r.broken, r.short = false, nil, nil
	err := r.to.use(func() { r.failure = r.file() })
	if err != nil && r.failure == nil {
		r.failure = r.pathError("write", err)
	}
	return r.written() - before, nil
}

func (r *FileReceiver) file() error {
	if err := r.prepare(); err != nil {
		return err
	}
	if !r.eof {
		if err := r.spliceAll(r.written()); err != nil {
			return err
		}
	}
	if r.Sync && !r.synced && (r.left == 0 || r.eof || r.last) {
		if err := r.to.sync(); err != nil {
			return r.pathError("sync", err)
		}
		r.synced = true
	}
	return nil
}

// prepare does what comes before the first byte of the socket.
func (r *FileReceiver) prepare() error {
	if r.prepared {
		return nil
	}
	r.prepared = true
	if r.Preallocate > 0 {
		if err := r.to.allocate(r.Offset, r.Preallocate); err != nil {
			return r.pathError("allocate", err)
		}
	}
	if r.First != nil {
		for p := range r.First.Segments {
			if err := r.store(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// goesOn reports whether the Op, which began at a length of from, is to move more.
func (r *FileReceiver) goesOn(from int64) bool {
	return r.left > 0 && r.written()-from < filingBudget && !r.halt.Load()
}

// spliceAll moves what the socket has, through a pipe if it can.
func (r *FileReceiver) spliceAll(from int64) error {
	in, ok := r.sock.(splicer)
	if !ok || r.copying {
		return r.copyAll(from)
	}
	p, err := r.state.disk.lend()
	if err != nil {
		return r.copyAll(from)
	}
	held := 0
	defer func() {
		if held > 0 {
			piped.Add(int64(-held))
			p.close()
		} else {
			r.state.disk.back(p)
		}
	}()
	for r.goesOn(from) {
		size := spliceSize()
		if size == 0 {
			return r.copyAll(from)
		}
		n, err := in.spliceIn(p.w, int(min(r.left, int64(size))))
		switch {
		case err == sys.ErrAgain:
			r.empty = true
			return nil
		case errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS):
			r.copying = true
			return r.copyAll(from)
		case err != nil:
			r.broken = err
			return nil
		case n == 0:
			r.eof = true
			return nil
		}
		held = n
		piped.Add(int64(n))
		for held > 0 {
			n, err := r.drain(p, held)
			held -= n
			piped.Add(int64(-n))
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// drain moves some of the n bytes in a pipe, and returns how many it has taken out.
func (r *FileReceiver) drain(p pipe, n int) (int, error) {
	if !r.copying {
		m, err := r.to.splice(p.r, r.at, n)
		if err == nil && m == 0 {
			err = io.ErrShortWrite
		}
		switch {
		case err == nil:
			r.moved(m, &r.spliced)
			return m, nil
		case !errors.Is(err, syscall.EINVAL):
			return 0, r.pathError("write", err)
		}
		r.copying = true // the file has nothing to do with pipes
	}
	b, err := r.alloc().TryAlloc(min(n, filingBuffer))
	if err != nil {
		return 0, r.pathError("write", err)
	}
	defer b.Release()
	n, err = b.FillFrom(p.r, min(n, filingBuffer))
	if err != nil {
		return 0, r.pathError("write", err)
	}
	return n, r.store(b.Window())
}

// copyAll moves what the socket has through a buffer.
func (r *FileReceiver) copyAll(from int64) error {
	b, err := r.alloc().TryAlloc(filingBuffer)
	if err != nil {
		r.short = err
		return nil
	}
	defer b.Release()
	for r.goesOn(from) {
		n, err := r.sock.read(b, int(min(r.left, filingBuffer)))
		switch {
		case err == sys.ErrAgain:
			r.empty = true
			return nil
		case err != nil:
			r.broken = err
			return nil
		case n == 0:
			r.eof = true
			return nil
		}
		for p := range b.Segments {
			if err := r.store(p); err != nil {
				return err
			}
		}
		b.Clear()
	}
	return nil
}

// store writes p.
func (r *FileReceiver) store(p []byte) error {
	for len(p) > 0 {
		n, err := r.to.write(p, r.at)
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return r.pathError("write", err)
		}
		p = p[n:]
		r.moved(n, &r.copied)
	}
	return nil
}

// moved takes note of n bytes in the file.
func (r *FileReceiver) moved(n int, counter *atomic.Int64) {
	r.at += int64(n)
	r.left -= int64(n)
	counter.Add(int64(n))
}

// alloc is where a worker gets its buffers.
func (r *FileReceiver) alloc() buffer.Allocator {
	if p := r.state.pool; p != nil {
		return p
	}
	return buffer.Default()
}

func (r *FileReceiver) pathError(op string, err error) error {
	return &os.PathError{Op: op, Path: r.to.name(), Err: err}
}
