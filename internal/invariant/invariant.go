// Package invariant holds assertions that cost nothing in a release build.
//
// They are on when a program is built with the race detector or with the tag
// invariants, so that tests run the code that ships, only with more checks. State
// with [Check] what the code relies on and cannot handle: bad input, failed calls
// and everything else that can happen in a correct program is an error, not an
// assertion.
package invariant

import "fmt"

// Check panics with the formatted message when ok is false and [Enabled] is true.
// It compiles to nothing otherwise, except that the arguments are still evaluated:
// pass values at hand, and put anything dearer behind "if invariant.Enabled".
func Check(ok bool, format string, args ...any) {
	if Enabled && !ok {
		panic("invariant broken: " + fmt.Sprintf(format, args...))
	}
}

// OnLoop checks that the running goroutine is l's.
func OnLoop(l interface{ InLoop() bool }) {
	if Enabled && !l.InLoop() {
		panic("invariant broken: called outside of the loop that owns the state")
	}
}
