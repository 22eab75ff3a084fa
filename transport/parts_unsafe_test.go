package transport

import (
	"unsafe"

	"github.com/runnel-io/runnel/internal/sys"
)

// partBytes is the memory of an iovec.
func partBytes(v sys.Iovec) []byte { return unsafe.Slice(v.Base, int(v.Len)) }

const (
	streamSize = unsafe.Sizeof(stream{})
	wordSize   = unsafe.Sizeof(uintptr(0))
)
