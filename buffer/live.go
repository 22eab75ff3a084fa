package buffer

import (
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/runnel-io/runnel/internal/invariant"
)

// heapLive counts the live handles that belong to no pool, and the FileRegions.
var heapLive atomic.Int64

// pools are the pools that have not been closed.
var pools struct {
	sync.Mutex
	all map[*Pool]struct{}
}

// Live returns how many Bufs and FileRegions of the process have not been released
// for the last time. A slice counts as one more. It is exact when nothing is being
// allocated or released meanwhile, as at the end of a test.
func Live() int64 {
	n := heapLive.Load()
	pools.Lock()
	defer pools.Unlock()
	for p := range pools.all {
		n += p.Live()
	}
	return n
}

// Counted is a message that holds references.
type Counted interface {
	// Release gives a reference back and reports whether it was the last one.
	Release() bool
}

// Release gives a reference to msg back, if it is a message that holds any, and
// reports whether it was the last one.
func Release(msg any) bool {
	if c, ok := msg.(Counted); ok {
		return c.Release()
	}
	return false
}

// Retain adds a reference to msg, if it is a Buf, a FileRegion or another message
// that has a method Retain without results, and returns msg.
func Retain(msg any) any {
	switch m := msg.(type) {
	case *Buf:
		m.Retain()
	case *FileRegion:
		m.Retain()
	case interface{ Retain() }:
		m.Retain()
	}
	return msg
}

// tally is a count that one goroutine at a time changes and any may read. A word
// is written at once on every machine Go runs on, so that no atomic operation is
// spent on it, except under the race detector, which cannot know.
type tally struct{ n uintptr }

func (t *tally) add(n uintptr) {
	if invariant.Race {
		atomic.AddUintptr(&t.n, n)
		return
	}
	t.n += n
}

func (t *tally) load() uintptr { return atomic.LoadUintptr(&t.n) }

// trace is where a handle was allocated and released for the last time. It is kept
// when assertions are on, and nil otherwise.
type trace struct {
	born, died [24]uintptr
}

func newTrace() *trace {
	t := new(trace)
	runtime.Callers(3, t.born[:])
	return t
}

func (t *trace) release() { runtime.Callers(4, t.died[:]) }

func (t *trace) misuse(op string) *MisuseError {
	e := &MisuseError{Op: op, Err: ErrReleased}
	if t != nil {
		e.Born, e.Died = printed(t.born[:]), printed(t.died[:])
	}
	return e
}

func printed(pcs []uintptr) string {
	n := 0
	for n < len(pcs) && pcs[n] != 0 {
		n++
	}
	if n == 0 {
		return ""
	}
	var s strings.Builder
	frames := runtime.CallersFrames(pcs[:n])
	for {
		f, more := frames.Next()
		s.WriteString("\t" + f.Function + "\n\t\t" + f.File + ":" + strconv.Itoa(f.Line) + "\n")
		if !more {
			return s.String()
		}
	}
}

// born begins the life of a handle.
func (b *Buf) born() {
	b.ref = 1
	if invariant.Enabled {
		b.trace = newTrace()
	}
}

// bury leaves a released handle as it is for good, so that every later use of it is
// found, and returns a new one with the memory it had. Memory of ours is poisoned.
func (b *Buf) bury() *Buf {
	s := b.slot
	if s != nil && s.from == nil {
		poison(bytesAt(s.mem, 0, s.size))
	}
	b.trace.release()
	n := &Buf{class: b.class, flags: b.flags, slot: s, owner: b.owner}
	b.part()
	return n
}

// poisoned is what released memory holds when assertions are on.
const poisoned = 0xdb

func poison(p []byte) {
	if len(p) == 0 {
		return
	}
	p[0] = poisoned
	for n := 1; n < len(p); n *= 2 {
		copy(p[n:], p[:n])
	}
}
