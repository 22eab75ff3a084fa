package buffer

import (
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
// for the last time. A slice counts as one more. One that was lost counts for ever,
// whether or not its memory has been reclaimed: so a test finds it, and the collector
// has no say in that. It is exact when nothing is being allocated or released
// meanwhile, as at the end of a test.
func Live() int64 {
	n := heapLive.Load() + lost.reclaimed.Load()
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
