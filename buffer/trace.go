package buffer

import (
	"math/rand/v2"
	"reflect"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
)

// stack is where something was done, from the inside out.
type stack struct {
	n   int
	pcs [32]uintptr
}

// key returns s with nothing behind the first n, for comparisons.
func (s *stack) key() stack {
	k := stack{n: s.n}
	copy(k.pcs[:], s.pcs[:s.n])
	return k
}

// sampledDepth is how much of the stack of a sampled allocation is kept.
const sampledDepth = 16

// trace is the life of a handle or FileRegion that is on record.
type trace struct {
	born     stack
	whole    bool // everything is kept, also who touched it and where it was released
	profiled bool

	next *trace // among the unused

	// Of those kept whole.
	died stack
	seq  uint64  // in order of allocation, for CheckLeaks
	by   uintptr // the goroutine, for CheckOwnLeaks

	// Of those, under touching.
	kind   kind
	bytes  int64
	first  string              // who was given it first
	others [touchesKept]string // and the last of the others, a ring
	n      int                 // touches in all
}

// touchesKept is how many touches are kept beside the first.
const touchesKept = 4

// touching is held while touches are noted or looked at, which several goroutines
// may do at the same time: the owners of a Buf, and CheckLeaks.
var touching sync.Mutex

// traces are those not in use, kept for sampling not to allocate.
var traces struct {
	sync.Mutex
	free *trace
	n    int
}

const maxTraces = 1024

func newTrace() *trace {
	traces.Lock()
	defer traces.Unlock()
	t := traces.free
	if t == nil {
		return new(trace)
	}
	traces.free = t.next
	traces.n--
	return t
}

// recycle takes back a trace that was not kept whole.
func (t *trace) recycle() {
	traces.Lock()
	defer traces.Unlock()
	if traces.n < maxTraces {
		t.next = traces.free
		traces.free = t
		traces.n++
	}
}

// profile shows what is alive. Its keys are records, never handles: it keeps them
// from the collector.
var profile = pprof.NewProfile("runnel/buffers")

// profileEvery is how many sampled allocations there are to one in the profile, on
// average: to put it there costs more than to take its stack.
const profileEvery = 4

// follow puts the life that begins on record.
func (r *record) follow() {
	whole, depth := tracing(), sampledDepth
	var t *trace
	if whole {
		t = &trace{whole: true, kind: r.kind, bytes: r.bytes()}
		depth = len(t.born.pcs)
	} else {
		t = newTrace()
	}
	// Here, not in a function of its own: each more in between costs 50 ns.
	t.born.n = runtime.Callers(3, t.born.pcs[:depth])
	if t.profiled = whole || rand.Uint32N(profileEvery) == 0; t.profiled {
		profile.Add(r, 2)
	}
	r.trace = t
	if whole {
		checks.add(t)
	}
}

// unfollow ends that at the last release. It reports whether the life was kept whole:
// then the handle is not to be used again, and keeps its trace.
func (r *record) unfollow() bool {
	t := r.trace
	r.leaveProfile()
	if !t.whole {
		r.trace = nil
		t.recycle()
		return false
	}
	checks.remove(t)
	t.died.n = runtime.Callers(3, t.died.pcs[:])
	return true
}

func (r *record) leaveProfile() {
	if r.trace.profiled {
		profile.Remove(r)
	}
}

// Touch notes that msg, a Buf or a FileRegion, was given to who, for the report of its
// loss or misuse; at level [LeakAll] and under [CheckLeaks], otherwise it does nothing.
// A pipeline calls it for each handler. The first touch and the last 4 are kept. It is
// safe from any goroutine that holds a reference to msg.
func Touch(msg any, who string) {
	var r *record
	switch m := msg.(type) {
	case *Buf:
		r = m.rec
	case *FileRegion:
		r = m.rec
	}
	if r == nil || r.trace == nil || !r.trace.whole {
		return
	}
	t := r.trace
	touching.Lock()
	defer touching.Unlock()
	if t.n == 0 {
		t.first = who
	} else {
		t.others[(t.n-1)%touchesKept] = who
	}
	t.n++
}

// describe notes what is followed.
func (t *trace) describe(k kind, bytes int64) {
	touching.Lock()
	defer touching.Unlock()
	t.kind, t.bytes = k, bytes
}

// described returns that.
func (t *trace) described() (kind, int64) {
	touching.Lock()
	defer touching.Unlock()
	return t.kind, t.bytes
}

// touches returns who was given it, the first and the last of them, in order.
func (t *trace) touches() []string {
	touching.Lock()
	defer touching.Unlock()
	if t.n == 0 {
		return nil
	}
	s := []string{t.first}
	for i := max(0, t.n-1-touchesKept); i < t.n-1; i++ {
		s = append(s, t.others[i%touchesKept])
	}
	return s
}

// misuse returns the error of a use after the last release.
func (r *record) misuse(op string) *MisuseError {
	e := &MisuseError{Op: op, Err: ErrReleased}
	if r != nil && r.trace != nil && r.trace.whole {
		e.Born, e.Died = r.trace.born.String(), r.trace.died.String()
		e.Touches = r.trace.touches()
	}
	return e
}

// ownPrefix begins the names of this package's functions.
var ownPrefix = reflect.TypeFor[Buf]().PkgPath() + "."

// String returns s as the runtime prints stacks, without the calls inside this
// package that it begins with.
func (s *stack) String() string {
	var text strings.Builder
	frames := runtime.CallersFrames(s.pcs[:s.n])
	for more := s.n > 0; more; {
		var f runtime.Frame
		f, more = frames.Next()
		if text.Len() > 0 || !strings.HasPrefix(f.Function, ownPrefix) {
			text.WriteString("\t" + f.Function + "\n\t\t" + f.File + ":" + strconv.Itoa(f.Line) + "\n")
		}
	}
	return text.String()
}
