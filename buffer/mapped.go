package buffer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"unsafe"

	"github.com/runnel-io/runnel/internal/sys"
)

// MapFile returns a Buf over n bytes of a file from offset off, which may be any,
// without reading them. The Buf is read-only and does not need f to stay open; the
// mapping ends with the last Release of it and its slices. Writing to it moves it
// to the Go heap, with a copy of its content.
//
// When the file is truncated later, the methods that copy, search or compare
// ([Buf.ReadBytes], [Buf.Copy], [Buf.WriteBuf], [Buf.Index], [Buf.Equal] and their kin)
// panic with ErrTruncated for bytes that are gone. Those that read in place panic with a
// runtime error where debug.SetPanicOnFault is set, as it is on loops and offload
// workers, and kill the process elsewhere. What the kernel is given to write ends
// short or with EFAULT. The bytes between the new end and the end of its page read
// as zero.
//
// It returns io.ErrUnexpectedEOF when the range ends behind the file, and
// errors.ErrUnsupported off Linux.
func MapFile(f *os.File, off int64, n int) (*Buf, error) {
	if off < 0 || n < 0 {
		return nil, &Error{"MapFile", n, 0, os.ErrInvalid}
	}
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("buffer: MapFile: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("buffer: MapFile: %s is not a regular file: %w", f.Name(), os.ErrInvalid)
	}
	if size := info.Size(); off > size || int64(n) > size-off {
		return nil, fmt.Errorf("buffer: MapFile: %s has %d bytes, not %d from %d: %w", f.Name(), size, n, off, io.ErrUnexpectedEOF)
	}
	data, err := sys.MapFile(int(f.Fd()), off, n)
	runtime.KeepAlive(f)
	if err != nil {
		return nil, fmt.Errorf("buffer: MapFile: %w", err)
	}
	b := &Buf{class: classView}
	b.enlist(nil)
	b.hold(&slot{mem: unsafe.Pointer(unsafe.SliceData(data)), size: n, pins: 1, class: classView, from: &origin{data: data}})
	b.flags = flagMapped | flagReadOnly
	b.q, b.l = n, n
	b.sync()
	b.born()
	heapLive.Add(1)
	return b, nil
}

// Advice is how mapped memory will be used.
type Advice int

// The values of Advice are those of Linux, see madvise(2).
const (
	AdviseNormal     Advice = 0 // nothing is known
	AdviseRandom     Advice = 1 // here and there: do not read ahead
	AdviseSequential Advice = 2 // from front to back: read ahead much
	AdviseWillNeed   Advice = 3 // soon: begin to read it
	AdviseDontNeed   Advice = 4 // not soon: it may leave the page tables
)

// Advise tells the kernel how the bytes of b that can be read will be used, where they
// lie in a mapped file; elsewhere it does nothing. See madvise(2).
func (b *Buf) Advise(a Advice) error {
	b.alive("Advise")
	var first error
	for i, end := b.ReaderIndex(), b.WriterIndex(); i < end; {
		p, mapped := b.chunk(i), b.flags&flagMapped != 0
		if b.flags&flagParts != 0 {
			x, _ := b.partAt(i)
			mapped = x.Mapped()
		}
		if mapped {
			if err := sys.Advise(p, int(a)); err != nil && first == nil {
				first = fmt.Errorf("buffer: Advise: %w", err)
			}
		}
		i += len(p)
	}
	return first
}

// copyOut fills dst from index i, turning a fault of a mapped file into a panic
// with ErrTruncated.
func (b *Buf) copyOut(dst []byte, i int) {
	if b.flags&(flagMapped|flagParts) == 0 {
		copy(dst, bytesAt(b.p, i, len(dst)))
		runtime.KeepAlive(b) // the memory of a lost Buf may be another's at once
		return
	}
	if b.flags&flagMapped != 0 {
		b.guarded(func() { b.copyParts(dst, i) })
		return
	}
	b.copyParts(dst, i)
}

// copyParts fills dst from index i, chunk by chunk.
func (b *Buf) copyParts(dst []byte, i int) {
	for len(dst) > 0 {
		n := copy(dst, b.chunk(i))
		dst = dst[n:]
		i += n
	}
}

// copyTo copies n bytes from index i to the front of o's memory. When they cannot be
// read, o is released on the way out.
func (b *Buf) copyTo(o *Buf, i, n int) {
	if b.flags&flagMapped != 0 {
		copied := false
		defer func() {
			if !copied {
				o.Release()
			}
		}()
		b.copyOut(bytesAt(o.p, 0, n), i)
		copied = true
		return
	}
	b.copyOut(bytesAt(o.p, 0, n), i)
}

// guarded runs f, which reads b's mapped memory.
func (b *Buf) guarded(f func()) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		var fault interface{ Addr() uintptr }
		if err, ok := v.(runtime.Error); ok && errors.As(err, &fault) {
			if s := b.mappedSlot(fault.Addr()); s != nil {
				panic(&Error{"read", int(fault.Addr() - uintptr(s.mem)), s.size, ErrTruncated})
			}
		}
		panic(v)
	}()
	f()
}

// mappedSlot returns b's mapped memory that has the address, or nil.
func (b *Buf) mappedSlot(addr uintptr) *slot {
	if b.flags&flagParts != 0 {
		ps := b.pieces()
		for _, x := range ps.list[ps.head:] {
			if s := x.b.mappedSlot(addr); s != nil {
				return s
			}
		}
		return nil
	}
	if s := b.slot; b.flags&flagMapped != 0 && addr-uintptr(s.mem) < uintptr(s.size) {
		return s
	}
	return nil
}
