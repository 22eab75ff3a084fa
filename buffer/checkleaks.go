package buffer

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/runnel-io/runnel/internal/goid"
)

// checks is what CheckLeaks looks at.
var checks leakChecks

// leakChecks are the lives on record, in order, while a check is under way.
type leakChecks struct {
	mu   sync.Mutex
	on   bool
	seq  uint64
	live map[*trace]struct{} // what is lost stays
}

func (k *leakChecks) add(t *trace) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.on {
		k.seq++
		t.seq, t.by = k.seq, goid.Current()
		k.live[t] = struct{}{}
	}
}

func (k *leakChecks) remove(t *trace) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.live, t)
}

// begin has everything followed that is allocated from now on, and returns the number
// that the last one before has.
func (k *leakChecks) begin() uint64 {
	levels.Lock()
	defer levels.Unlock()
	k.mu.Lock()
	if !k.on {
		k.on, k.live = true, map[*trace]struct{}{}
	}
	seq := k.seq
	k.mu.Unlock()
	levels.checks++
	setModes()
	return seq
}

// end returns what was allocated after seq, by one goroutine unless by is 0, and is still
// alive, in order.
func (k *leakChecks) end(seq uint64, by uintptr) []*trace {
	levels.Lock()
	defer levels.Unlock()
	levels.checks--
	setModes()
	k.mu.Lock()
	defer k.mu.Unlock()
	var left []*trace
	for t := range k.live {
		if t.seq > seq && (by == 0 || t.by == by) {
			left = append(left, t)
		}
	}
	if levels.checks == 0 {
		k.on, k.live = false, nil
	}
	slices.SortFunc(left, func(a, b *trace) int { return cmp.Compare(a.seq, b.seq) })
	return left
}

// failer is the part of testing.TB that a check uses.
type failer interface {
	Helper()
	Cleanup(func())
	Errorf(format string, args ...any)
}

// CheckLeaks fails a test that leaves Bufs or FileRegions behind: what is allocated
// after the call and has not been released for the last time when the test and the
// cleanups that it registers later have ended. It says where each was allocated and
// which handlers it was given to. It needs no garbage collection and counts exactly.
//
//	func TestServer(t *testing.T) {
//		buffer.CheckLeaks(t)
//		...
//	}
//
// Until the check every allocation of the process is followed, as at [LeakAll] but
// for the pages; the pipelines that are made meanwhile tell which handlers had a message.
// Whose allocation it is nobody can tell: tests that run in parallel are charged with
// each other's, so a test that checks must not be one of them, unless [CheckOwnLeaks]
// does. A loop that is still running may hold a receive buffer: shut its Group down first.
func CheckLeaks(t failer) {
	t.Helper()
	checkLeaks(t, 0)
}

// CheckOwnLeaks is [CheckLeaks] for what the calling goroutine, the test's, allocates
// itself, so tests that run in parallel may check. What it starts other goroutines for,
// and loops with one of their own, are not looked at.
func CheckOwnLeaks(t failer) {
	t.Helper()
	// The goroutine outlives its check, so nobody else is taken for it.
	checkLeaks(t, goid.Current())
}

func checkLeaks(t failer, by uintptr) {
	t.Helper()
	seq := checks.begin()
	t.Cleanup(func() {
		t.Helper()
		if left := checks.end(seq, by); len(left) > 0 {
			t.Errorf("%s", listed(left))
		}
	})
}

// listed says what was not released, once for each place where it was allocated.
func listed(left []*trace) string {
	type place struct {
		leakKey
		touches string
	}
	var order []place
	counts := map[place]int{}
	first := map[place]Leak{}
	for _, t := range left {
		kind, bytes := t.described()
		l := describe(kind, bytes, t)
		k := place{leakKey{kind, bytes, t.born.key()}, strings.Join(l.Touches, "\n")}
		if counts[k]++; counts[k] == 1 {
			order = append(order, k)
			first[k] = l
		}
	}
	var s strings.Builder
	fmt.Fprintf(&s, "not released: %d of what was allocated meanwhile", len(left))
	const most = 10
	for i, k := range order {
		if i == most {
			fmt.Fprintf(&s, "\nand more from %d other places", len(order)-most)
			break
		}
		times := ""
		if counts[k] > 1 {
			times = fmt.Sprintf("%d times ", counts[k])
		}
		s.WriteString("\n" + times + first[k].text("was not released"))
	}
	return s.String()
}
