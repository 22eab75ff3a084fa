package transport

import (
	"errors"
	"sync"
	"syscall"

	"github.com/runnel-io/runnel/internal/sys"
)

const (
	// filingBudget is after how many bytes an Op of a FileReceiver leaves its worker to
	// others.
	filingBudget = 4 << 20
	// keepDiskPipes is how many of the pipes for files a loop keeps. They are large,
	// which saves a quarter of the CPU time: a page of the socket takes one of the 16
	// slots that a pipe has by default, and long writes are cheaper to the file. But all pipes of a user have a bound.
	keepDiskPipes = 2
)

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
	diskWriter
	state   *loopState
	sock    socket
	end     int64 // offset behind the last byte that may come
	bounded bool  // it is what was asked for
	last    bool  // the reception has been stopped

	prepared bool
	eof      bool // the end of the stream has been read
	synced   bool

	intake // of a reception with mirrors

	// How the last Op has ended.
	read    int64 // bytes that it has read into buffers
	empty   bool  // the socket has no more
	broken  error // of the socket
	short   error // there is no memory
	failure error // of the file
}

// left is how many bytes may still come.
func (f *filing) left() int64 { return f.end - f.at }

// run is the Op: it moves what the socket has into the file, until there is no more of
// it or others are to have their turn. On a worker.
func (r *FileReceiver) run() (int64, error) {
	before := r.written()
	r.read, r.empty, r.broken, r.short = 0, false, nil, nil
	err := r.to.use(func() { r.failure = r.file() })
	if err != nil && r.failure == nil {
		r.failure = r.failed("write", err)
	}
	return r.written() - before, nil
}

func (r *FileReceiver) file() error {
	if err := r.prepare(); err != nil {
		return err
	}
	switch {
	case r.mirrors != nil:
		if err := r.storePiece(); err != nil {
			return err
		}
	case !r.eof:
		if err := r.spliceAll(r.written()); err != nil {
			return err
		}
	}
	if r.Sync && !r.synced && (r.left() == 0 || r.eof || r.last) {
		if err := r.to.sync(); err != nil {
			return r.failed("sync", err)
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
			return r.failed("allocate", err)
		}
	}
	if r.First != nil {
		return r.storeBuf(r.First)
	}
	return nil
}

// goesOn reports whether the Op, which began at a length of from, is to move more.
func (r *FileReceiver) goesOn(from int64) bool {
	return r.left() > 0 && r.written()-from < filingBudget && !r.halt.Load()
}

// ended takes note that the socket has nothing and never will. If the channel closes, that may
// be its own doing.
func (r *FileReceiver) ended() {
	if r.halt.Load() {
		r.empty = true // whoever comes next finds the same end
		return
	}
	r.eof = true
}

// spliceAll moves what the socket has, through a pipe if it can.
func (r *FileReceiver) spliceAll(from int64) error {
	if r.route().path != PathSplice {
		return r.copyAll(from)
	}
	p, err := r.state.disk.lend()
	if err != nil {
		r.took(route{PathCopy, whySmallPipes})
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
		n, err := r.sock.(splicer).spliceIn(p.w, int(min(r.left(), int64(size))))
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
			r.ended()
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

// copyAll moves what the socket has through a buffer.
func (r *FileReceiver) copyAll(from int64) error {
	b, err := r.alloc().TryAlloc(filingBuffer)
	if err != nil {
		r.short = err
		return nil
	}
	defer b.Release()
	for r.goesOn(from) {
		n, err := r.sock.read(b, int(min(r.left(), filingBuffer)))
		switch {
		case err == sys.ErrAgain:
			r.empty = true
			return nil
		case err != nil:
			r.broken = err
			return nil
		case n == 0:
			r.ended()
			return nil
		}
		r.read += int64(n)
		if err := r.storeBuf(b); err != nil {
			return err
		}
		b.Clear()
	}
	return nil
}
