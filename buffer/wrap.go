package buffer

import (
	"sync/atomic"
	"unsafe"

	"github.com/runnel-io/runnel/internal/sys"
)

// origin is where memory comes from that is no allocator's.
type origin struct {
	data []byte // a mapped file; nil if none

	// Memory of the caller: hook is called when no piece of it is in use any more.
	hook   func()
	pieces atomic.Int32
}

// release gives back one piece of memory.
func (o *origin) release() {
	if o.data != nil {
		_ = sys.Unmap(o.data)
		return
	}
	if o.pieces.Add(-1) == 0 && o.hook != nil {
		o.hook()
	}
}

// Wrap returns a Buf that shows memory of the caller, one piece or many, without
// copying it. Until release is called the memory is the Buf's: changes in place show
// on both sides, and what is appended goes elsewhere. The caller who wants to go on
// reading the memory uses [Buf.ReadOnly] on what it hands out.
//
// Release, which may be nil, is called once: when the Buf and all its slices have been
// released, or after a growth has left the memory behind, on the goroutine that did so;
// or on one of the runtime's when the Buf is lost, see [LeakSampled].
func Wrap(release func(), pieces ...[]byte) *Buf {
	o := &origin{hook: release}
	bufs := make([]*Buf, 0, len(pieces))
	for _, p := range pieces {
		if len(p) > 0 {
			bufs = append(bufs, wrapped(p, o))
		}
	}
	if len(bufs) == 0 {
		bufs = append(bufs, wrapped(nil, o))
	}
	o.pieces.Store(int32(len(bufs)))
	if len(bufs) == 1 {
		return bufs[0]
	}
	return Compose(bufs...)
}

// nothing is a place for pointers to no bytes.
var nothing [1]byte

func wrapped(p []byte, o *origin) *Buf {
	s := &slot{mem: unsafe.Pointer(&nothing), size: len(p), pins: 1, class: classView, from: o}
	if len(p) > 0 {
		s.mem = unsafe.Pointer(unsafe.SliceData(p))
	}
	b := &Buf{class: classView}
	if o.hook != nil {
		b.enlist(nil) // it must be called
	}
	b.hold(s)
	b.flags = flagHeap
	b.q, b.l = len(p), len(p)
	b.sync()
	b.born()
	heapLive.Add(1)
	return b
}
