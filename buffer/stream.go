package buffer

import (
	"errors"
	"io"
)

// A Buf is an io.Reader, io.Writer, io.ByteScanner, io.WriterTo and io.ReaderFrom by
// itself, so it can be given to whatever works on streams. Read, ReadByte and WriteTo
// tell the end of the content by what io says of them; the other ReadX panic there.

const (
	minRead      = 512      // room that ReadFrom asks for when there is none
	maxEmptyRead = 100      // reads without progress before ReadFrom gives up
	copySize     = 32 << 10 // bytes of a mapped file that WriteTo copies at once
)

// errCount reports a Reader or Writer that says it moved more than it was given.
var errCount = errors.New("impossible count from a Reader or Writer")

// Read reads up to len(p) bytes into p. It implements io.Reader: at the end of the
// content it returns io.EOF, until more is written. When a mapped file was truncated
// it reads nothing and returns an error that wraps ErrTruncated.
func (b *Buf) Read(p []byte) (int, error) {
	b.alive("Read")
	if len(p) == 0 {
		return 0, nil
	}
	n := min(len(p), b.Len())
	if n == 0 {
		return 0, io.EOF
	}
	if err := b.tryCopyOut(p[:n], b.ReaderIndex()); err != nil {
		return 0, err
	}
	b.Skip(n)
	return n, nil
}

// ReadByte reads a byte, with the errors of [Buf.Read]. It implements io.ByteReader.
func (b *Buf) ReadByte() (byte, error) {
	if b.Mapped() {
		var p [1]byte
		_, err := b.Read(p[:])
		return p[0], err
	}
	if b.Len() == 0 {
		b.alive("Read")
		return 0, io.EOF
	}
	return b.ReadUint8(), nil
}

// UnreadByte makes the last byte that was read, by whatever method, readable once
// more, and returns an error that wraps ErrShort when there is none in front of
// ReaderIndex. It implements io.ByteScanner.
func (b *Buf) UnreadByte() error {
	b.alive("UnreadByte")
	if b.ReaderIndex() == b.leastIndex() {
		return &Error{"UnreadByte", 1, 0, ErrShort}
	}
	b.Unread(1)
	return nil
}

// WriteTo writes all that can be read to w, part by part, reads past what w has taken,
// and returns its length. It implements io.WriterTo. Mapped content is copied on its
// way, so that a truncated file is an error that wraps ErrTruncated, whatever w does
// with the bytes.
func (b *Buf) WriteTo(w io.Writer) (int64, error) {
	b.alive("WriteTo")
	var sum int64
	var scratch []byte
	if b.Mapped() {
		scratch = make([]byte, min(b.Len(), copySize))
	}
	for b.Len() > 0 {
		var p []byte
		if scratch == nil {
			p = b.chunk(b.ReaderIndex())
		} else {
			p = scratch[:min(b.Len(), len(scratch))]
			if err := b.tryCopyOut(p, b.ReaderIndex()); err != nil {
				return sum, err
			}
		}
		n, err := w.Write(p)
		if n < 0 || n > len(p) {
			return sum, &Error{"WriteTo", n, len(p), errCount}
		}
		b.Skip(n)
		sum += int64(n)
		if err != nil {
			return sum, err
		}
		if n < len(p) {
			return sum, io.ErrShortWrite
		}
	}
	return sum, nil
}

// ReadFrom appends what r returns until it ends, and returns how many bytes that were.
// It implements io.ReaderFrom. Other than a write it returns an error, which wraps
// ErrTooLarge or ErrOutOfMemory, when b cannot grow any more before r has ended;
// io.ErrNoProgress when r returns nothing a hundred times on end; and the error of r.
// What was read until then stays. The room that r reads into is zeroed before.
func (b *Buf) ReadFrom(r io.Reader) (int64, error) {
	var sum int64
	for empty := 0; ; {
		p := b.writable()
		if len(p) == 0 {
			// The last bytes below MaxCap are used up; then one more is refused.
			want := max(1, min(minRead, b.MaxCap()-b.WriterIndex()))
			if err := b.tryEnsure(want); err != nil {
				return sum, err
			}
			p = b.writable()
		}
		n, err := r.Read(p)
		if n < 0 || n > len(p) {
			return sum, &Error{"ReadFrom", n, len(p), errCount}
		}
		b.Commit(n)
		sum += int64(n)
		if err == io.EOF {
			return sum, nil
		}
		if err != nil {
			return sum, err
		}
		if n > 0 {
			empty = 0
		} else if empty++; empty == maxEmptyRead {
			return sum, io.ErrNoProgress
		}
	}
}

// tryCopyOut is copyOut that returns its error.
func (b *Buf) tryCopyOut(dst []byte, i int) (err error) {
	defer caught(&err)
	b.copyOut(dst, i)
	return nil
}

// tryEnsure is EnsureWritable that returns its error.
func (b *Buf) tryEnsure(n int) (err error) {
	defer caught(&err)
	b.EnsureWritable(n)
	return nil
}

// caught, when deferred, has a function return the Error it panics with. A
// MisuseError goes on.
func caught(err *error) {
	switch v := recover().(type) {
	case nil:
	case *Error:
		*err = v
	default:
		panic(v)
	}
}
