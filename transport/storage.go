package transport

import (
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
)

// filingBuffer is how many bytes are copied at a time where nothing can be spliced.
const filingBuffer = 256 << 10

// storage is what is asked of a file that is written: the seam where tests put a scripted
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

// tally is how much of what goes into a file has been added to a loop's counters. Loop-only.
type tally struct{ spliced, copied int64 }

// add adds what has gone into the file since.
func (t *tally) add(count *wayCounters, to *eventloop.Counters) {
	spliced, copied := count.spliced.Load(), count.copied.Load()
	to.BytesFiled += uint64(spliced - t.spliced)
	to.BytesStored += uint64(copied - t.copied)
	*t = tally{spliced, copied}
}

// diskWriter writes pipes and buffers into a file, one after the other. It may sleep: on a
// worker, and inside of to.use.
type diskWriter struct {
	to      storage
	pool    *buffer.Pool // of the buffers; nil for the default one
	count   *wayCounters // of what is in the file
	at      int64        // offset of the next byte
	copying bool         // the file, or where its bytes come from, has nothing to do with pipes
}

// drain moves some of the n bytes in a pipe, and returns how many it has taken out: if it
// fails, perhaps more than are in the file.
func (d *diskWriter) drain(p pipe, n int) (int, error) {
	if !d.copying {
		m, err := d.to.splice(p.r, d.at, n)
		if err == nil && m == 0 {
			err = io.ErrShortWrite
		}
		switch {
		case err == nil:
			d.at += int64(m)
			d.count.spliced.Add(int64(m))
			return m, nil
		case !errors.Is(err, syscall.EINVAL):
			return 0, d.failed("write", err)
		}
		d.copying = true // the file has nothing to do with pipes
	}
	b, err := d.alloc().TryAlloc(min(n, filingBuffer))
	if err != nil {
		return 0, d.failed("write", err)
	}
	defer b.Release()
	n, err = b.FillFrom(p.r, min(n, filingBuffer))
	if err != nil {
		return 0, d.failed("write", err)
	}
	return n, d.storeBuf(b)
}

// storeBuf writes what is in b, and leaves it as it is.
func (d *diskWriter) storeBuf(b *buffer.Buf) error {
	for p := range b.Segments {
		if err := d.store(p); err != nil {
			return err
		}
	}
	return nil
}

// store writes p.
func (d *diskWriter) store(p []byte) error {
	for len(p) > 0 {
		n, err := d.to.write(p, d.at)
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return d.failed("write", err)
		}
		p = p[n:]
		d.at += int64(n)
		d.count.copied.Add(int64(n))
	}
	return nil
}

// alloc is where a worker gets its buffers.
func (d *diskWriter) alloc() buffer.Allocator {
	if d.pool != nil {
		return d.pool
	}
	return buffer.Default()
}

func (d *diskWriter) failed(op string, err error) error {
	return &os.PathError{Op: op, Path: d.to.name(), Err: err}
}
