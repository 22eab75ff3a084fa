package buffer

import (
	"fmt"
	"log"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/runnel-io/runnel/internal/invariant"
)

// LeakLevel says how closely the process looks for Bufs and FileRegions that are
// lost: collected as garbage before their last release.
//
// The environment variable RUNNEL_LEAK sets it at the start: off, sampled or all.
type LeakLevel int

const (
	// LeakOff looks for nothing. What is lost is lost.
	LeakOff LeakLevel = iota
	// LeakSampled finds every lost Buf of a Pool, mapped Buf, Buf of wrapped memory with
	// a release function, and FileRegion, and knows where one in 1,024 of them was
	// allocated, at random. Of the Bufs of the Heap it finds those one in 1,024. It costs
	// a nanosecond or two an allocation, and some 120 bytes for each Buf a pool has ever needed at
	// the same time. It is the default.
	LeakSampled
	// LeakAll knows where each was allocated, released and [Touch]ed, never uses a
	// Buf a second time, and gives each memory of a Pool pages of its own, which
	// are protected after the last release until 4,096 later ones, or an eighth of the
	// pool's limit but at most 64 MiB of them, have taken their place: a slice that
	// outlives its Buf faults at the line that uses it. Where
	// pages cannot be protected (the Heap, off Linux, race and asan builds) the memory
	// is overwritten. It costs microseconds and pages for each Buf: it is for tests.
	// PoolStats counts all such memory as Huge.
	LeakAll
)

// Modes that follow from the level, and from CheckLeaks.
const (
	modeWatch uint32 = 1 << iota // handles have records
	modeTrace                    // every life is on record
	modeApart                    // memory has pages of its own
)

var (
	modes atomic.Uint32

	// plainSizes is the number of sizes, from 0 on, that the owner of a cache allocates
	// without a further look: none while every life is on record.
	plainSizes atomic.Uintptr

	levels struct {
		sync.Mutex
		level  LeakLevel
		checks int // CheckLeaks under way
	}
)

func watching() bool { return modes.Load()&modeWatch != 0 }
func tracing() bool  { return invariant.Enabled || modes.Load()&modeTrace != 0 }

// SetLeakLevel sets the level and returns what it was. It is in force for what is
// allocated from then on; but a Buf that a pool made at LeakOff, and uses again, is
// found at LeakSampled only when it is sampled. An unknown level panics.
func SetLeakLevel(l LeakLevel) LeakLevel {
	if l < LeakOff || l > LeakAll {
		panic(&MisuseError{Op: "SetLeakLevel", Err: os.ErrInvalid})
	}
	levels.Lock()
	defer levels.Unlock()
	old := levels.level
	levels.level = l
	setModes()
	if l != LeakAll {
		pardonAll()
	}
	return old
}

// setModes makes the modes those of the level. Under levels.
func setModes() {
	var m uint32
	switch levels.level {
	case LeakAll:
		m = modeWatch | modeTrace | modeApart
	case LeakSampled:
		m = modeWatch
	}
	if levels.checks > 0 {
		m |= modeWatch | modeTrace
	}
	modes.Store(m)
	if m&modeTrace != 0 {
		plainSizes.Store(0)
	} else {
		plainSizes.Store(maxSlot + 1)
	}
}

func init() {
	l, err := parseLevel(os.Getenv("RUNNEL_LEAK"))
	if err != nil {
		complain("%v\n", err)
	}
	SetLeakLevel(l)
}

// parseLevel returns the level that RUNNEL_LEAK names, the default if it names none.
func parseLevel(s string) (LeakLevel, error) {
	switch s {
	case "off":
		return LeakOff, nil
	case "", "sampled":
		return LeakSampled, nil
	case "all":
		return LeakAll, nil
	}
	return LeakSampled, fmt.Errorf("buffer: RUNNEL_LEAK is %q, neither off nor sampled nor all; it is taken for sampled", s)
}

func complain(format string, args ...any) { fmt.Fprintf(os.Stderr, format, args...) }

// Touching reports whether [Touch] notes anything.
func Touching() bool { return modes.Load()&modeTrace != 0 }

// Leak is a report of something that was lost.
type Leak struct {
	Kind    string   // "FileRegion" or "Buf", the latter perhaps with "heap", "mapped", "wrapped" or "composite" in front
	Bytes   int64    // of memory it kept alive: for a Buf of a Pool the size of its class, also if it was a slice of it; of a FileRegion the length
	Stack   string   // where it was allocated, in lines as a panic prints them; empty if it was not sampled
	Touches []string // the handlers it was given to, the first and the last 4 of them; only at LeakAll and under CheckLeaks
	// Reclaimed reports that the memory is back in use. It is false when a slice of
	// the memory was handed out, by Window or Peek for instance, which may still be in
	// use: then the memory is kept out of use for ever.
	Reclaimed bool
	Seen      int64 // how many of the same kind, size and stack were lost so far, with this one
}

// String returns the report as text of several lines, without a newline at the end.
func (l Leak) String() string {
	what := "was not released before it was garbage"
	if !l.Reclaimed {
		what += "; slices of it were handed out, so its memory is kept out of use"
	}
	return l.text(what)
}

func (l Leak) text(what string) string {
	s := "a " + l.Kind
	if l.Bytes > 0 {
		s += fmt.Sprintf(" of %d bytes", l.Bytes)
	}
	s += " " + what
	if l.Seen > 1 {
		s += fmt.Sprintf(", %d of them so far", l.Seen)
	}
	if len(l.Touches) > 0 {
		s += "\ngiven to: " + strings.Join(l.Touches, ", ")
	}
	if l.Stack == "" {
		return s
	}
	return s + "\nallocated at:\n" + strings.TrimSuffix(l.Stack, "\n")
}

// describe returns the report of something of a kind and size, whose trace may be nil.
func describe(k kind, bytes int64, t *trace) Leak {
	l := Leak{Kind: k.String(), Bytes: bytes}
	if t != nil {
		l.Stack, l.Touches = t.born.String(), t.touches()
	}
	return l
}

// leakKey is what leaks must have in common to be reported as one.
type leakKey struct {
	kind kind
	size int64
	born stack
}

// maxLeakKeys bounds how many are told apart. All others count as one.
const maxLeakKeys = 1024

var reports struct {
	sync.Mutex
	seen map[leakKey]int64
}

var onLeak atomic.Pointer[func(Leak)]

// OnLeak has f called with what was lost; nil restores the default, which logs it
// with the standard library's log package.
//
// Of those that share kind, size and stack the first is reported, the second, the
// fourth and so on, for a leak in each request not to flood the log; [Leak.Seen]
// counts them all. f runs on a goroutine of the runtime, perhaps on several at the
// same time. It must not block. A panic in it is printed and otherwise ignored.
func OnLeak(f func(Leak)) {
	if f == nil {
		onLeak.Store(nil)
		return
	}
	onLeak.Store(&f)
}

// report tells of a leak, unless enough was said about its like.
func report(l Leak, key leakKey) {
	reports.Lock()
	if reports.seen == nil {
		reports.seen = map[leakKey]int64{}
	}
	if _, known := reports.seen[key]; !known && len(reports.seen) >= maxLeakKeys {
		key = leakKey{}
	}
	reports.seen[key]++
	l.Seen = reports.seen[key]
	reports.Unlock()
	if l.Seen&(l.Seen-1) != 0 {
		return
	}
	if f := onLeak.Load(); f != nil {
		(*f)(l)
		return
	}
	hint := ""
	if !tracing() {
		hint = "\nRUNNEL_LEAK=all tells where it was allocated and which handlers had it"
	}
	log.Print("buffer: leak: ", l, hint)
}

// LeakStats counts what was lost since the start.
type LeakStats struct {
	Lost             int64 // Bufs and FileRegions that were garbage before their last release
	Quarantined      int64 // those of them whose memory is kept out of use
	QuarantinedBytes int64 // and how much that is
}

// Leaks returns a snapshot.
func Leaks() LeakStats {
	return LeakStats{Lost: lost.all.Load(), Quarantined: lost.kept.Load(), QuarantinedBytes: lost.keptBytes.Load()}
}

// keep keeps the memory of a lost handle out of use for ever: its hold on it stays.
func keep(r *record) {
	lost.kept.Add(1)
	lost.keptBytes.Add(r.bytes())
}
