package buffer

import "unsafe"

// Heap is the Allocator of the Go heap: no limit but the runtime's, no pool, and
// nothing to be gained by a release but the finding of mistakes. Its Bufs behave
// like any others, except that at level [LeakSampled] the loss of one that was not
// sampled goes unnoticed: no memory is lost with it.
var Heap Allocator = heap{}

type heap struct{}

func (h heap) Alloc(n int) *Buf {
	b, err := h.TryAlloc(n)
	if err != nil {
		panic(err)
	}
	return b
}

func (heap) TryAlloc(n int) (*Buf, error) {
	if err := checkSize(n, defaultMaxCap); err != nil {
		return nil, err
	}
	mem := make([]byte, max(n, 16)) // at least a byte to point at
	o := &struct {
		b Buf
		s slot
	}{s: slot{mem: unsafe.Pointer(unsafe.SliceData(mem)), size: len(mem), pins: 1, class: classView}}
	b := &o.b
	b.hold(&o.s)
	b.flags = flagHeap | flagClean // the runtime has zeroed it
	b.l = len(mem)
	b.born()
	heapLive.Add(1)
	return b, nil
}

// FromString returns a Buf on the Go heap that holds a copy of s.
func FromString(s string) *Buf {
	b := Heap.Alloc(len(s))
	b.WriteString(s)
	return b
}

// FromBytes returns a Buf on the Go heap that holds a copy of p.
func FromBytes(p []byte) *Buf {
	b := Heap.Alloc(len(p))
	b.Write(p)
	return b
}
