package buffer

import (
	"os"
	"sync/atomic"
)

// FileRegion is a range of a file as a message. A transport sends it from the file
// to the socket without its bytes entering the process, and keeps the progress in
// it. Nothing is read, mapped or checked before.
//
// Ownership: a FileRegion holds one reference when it is made, and owns its file:
// the last Release closes it, exactly once, or gives back what NewSharedRegion was told
// to. Write takes the reference over, whether or not it succeeds.
//
// Concurrency: Retain and Release are safe from any goroutine, and so is what does
// not change: File, Fd, Offset and Len. Advance, Sent and Remaining belong to who
// sends the region.
type FileRegion struct {
	file *os.File
	done func() // called instead of closing file; nil if there is none
	fd   int
	off  int64
	n    int64
	sent int64

	ref    atomic.Int32
	rec    *record       // what is known of this object without it; nil if its loss would not be noticed
	shared *sharedRecord // which rec is part of, if it is one over a shared file
}

// NewFileRegion returns a region of n bytes of f from offset off, and takes f over.
// It panics when off or n is negative or their sum overflows; a file that turns out
// to be shorter is an error of the write.
func NewFileRegion(f *os.File, off, n int64) *FileRegion {
	return newRegion("NewFileRegion", f, off, n, nil)
}

// NewSharedRegion is [NewFileRegion] for a file that others use too: the last Release
// does not close f, but calls done, exactly once and on the goroutine of that Release,
// or on one of the runtime's when the region is lost (see [LeakSampled]). f must stay
// open until then. done is called on event loops and must not wait.
func NewSharedRegion(f *os.File, off, n int64, done func()) *FileRegion {
	if done == nil {
		panic(&MisuseError{Op: "NewSharedRegion", Err: os.ErrInvalid})
	}
	return newRegion("NewSharedRegion", f, off, n, done)
}

func newRegion(op string, f *os.File, off, n int64, done func()) *FileRegion {
	if off < 0 || n < 0 || off+n < 0 {
		panic(&MisuseError{Op: op, Err: os.ErrInvalid})
	}
	var r *FileRegion
	if done != nil {
		r = reuse()
	}
	if r == nil {
		r = new(FileRegion)
	}
	r.file, r.done, r.fd = f, done, int(f.Fd())
	r.off, r.n, r.sent = off, n, 0
	r.ref.Store(1)
	r.enlist()
	heapLive.Add(1)
	return r
}

// Retain adds a reference and returns r.
func (r *FileRegion) Retain() *FileRegion {
	if r.ref.Add(1) <= 1 {
		r.ref.Add(-1)
		panic(r.rec.misuse("Retain"))
	}
	return r
}

// Release gives a reference back. It reports whether it was the last one: then the
// file has been closed, or the share in it given back.
func (r *FileRegion) Release() bool {
	n := r.ref.Add(-1)
	if n > 0 {
		return false
	}
	if n < 0 {
		r.ref.Add(1)
		panic(r.rec.misuse("Release"))
	}
	again := r.settle()
	heapLive.Add(-1)
	r.fd = -1 // the number may soon be another file's
	if r.done == nil {
		_ = r.file.Close() // opened for reading: there is nothing to lose
		return true
	}
	r.done()
	if again {
		idleRegions.Put(r)
	}
	return true
}

// Refs returns the number of references.
func (r *FileRegion) Refs() int32 { return r.ref.Load() }

// File returns the file. It is the region's: do not close it.
func (r *FileRegion) File() *os.File { return r.file }

// Fd returns the descriptor of the file, good for as long as a reference is held.
func (r *FileRegion) Fd() int { return r.fd }

// Offset returns where in the file the region begins.
func (r *FileRegion) Offset() int64 { return r.off }

// Len returns the length of the region.
func (r *FileRegion) Len() int64 { return r.n }

// Sent returns how many bytes of the region have been sent.
func (r *FileRegion) Sent() int64 { return r.sent }

// Remaining returns how many bytes of the region are still to be sent.
func (r *FileRegion) Remaining() int64 { return r.n - r.sent }

// Advance records that n more bytes have been sent. A transport calls it.
func (r *FileRegion) Advance(n int64) {
	if r.ref.Load() <= 0 {
		panic(r.rec.misuse("Advance"))
	}
	if n < 0 || n > r.n-r.sent {
		panic(&MisuseError{Op: "Advance", Err: ErrShort})
	}
	r.sent += n
}
