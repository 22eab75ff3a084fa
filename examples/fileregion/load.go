package main

import (
	"io"

	"github.com/runnel-io/runnel/buffer"
)

// loader brings the next piece of a file, at most f.size bytes, into memory. It waits
// for the disk. With a nil loader the file goes from the kernel to the kernel.
type loader func(f *span, alloc buffer.Allocator) (*buffer.Buf, error)

var modes = map[string]loader{
	"auto":     nil,
	"sendfile": nil,
	"mmap":     mapped,
	"copy":     copied,
}

const (
	pieceSize  = 256 << 10 // of a copied file
	windowSize = 64 << 20  // of a mapped file
	tailSize   = 4 << 10   // of a mapped file, and copied all the same
)

// copied reads the next piece.
func copied(f *span, alloc buffer.Allocator) (*buffer.Buf, error) {
	n := int(min(f.size, pieceSize))
	b, err := alloc.TryAlloc(n)
	if err != nil {
		return nil, err
	}
	if _, err := f.file.File().ReadAt(b.Writable()[:n], f.off); err != nil {
		b.Release()
		if err == io.EOF { // there were more bytes when the file was opened
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	b.Commit(n)
	return b, nil
}

// mapped maps the next piece.
//
// When the file is truncated, the pages behind its new end are gone, which the kernel
// finds when it sends them. But the rest of the page in which it ends reads as zeros,
// and nobody would notice if that was the last page. So the tail of the file is read,
// not mapped, after all before it has left.
func mapped(f *span, alloc buffer.Allocator) (*buffer.Buf, error) {
	if f.size <= tailSize {
		return copied(f, alloc)
	}
	return buffer.MapFile(f.file.File(), f.off, int(min(f.size-tailSize, windowSize)))
}
