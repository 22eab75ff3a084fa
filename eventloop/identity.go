package eventloop

import (
	"sync"

	"github.com/runnel-io/runnel/internal/goid"
)

// identities counts, for each goroutine that runs a loop or offloaded functions,
// how many of them it runs: a Manual may be entered from inside another one. Only
// those who are about to wait ask, so a lock is cheap enough.
var identities = struct {
	mu sync.Mutex
	of map[uintptr]int
}{of: make(map[uintptr]int)}

// enterIdentity records that goroutine id must not wait.
func enterIdentity(id uintptr) {
	identities.mu.Lock()
	identities.of[id]++
	identities.mu.Unlock()
}

// leaveIdentity undoes one enterIdentity. It has to be called before the goroutine
// ends, because the runtime gives the identity to another one then.
func leaveIdentity(id uintptr) {
	identities.mu.Lock()
	if n := identities.of[id]; n > 1 {
		identities.of[id] = n - 1
	} else {
		delete(identities.of, id)
	}
	identities.mu.Unlock()
}

// WouldDeadlock reports whether the running goroutine is one that must not wait for
// a loop: a loop's own, or one that runs an offloaded function. Whoever offers a
// call that waits asks this first and refuses with [ErrWouldDeadlock].
func WouldDeadlock() bool {
	id := goid.Current()
	identities.mu.Lock()
	defer identities.mu.Unlock()
	return identities.of[id] > 0
}
