package eventloop

// WouldDeadlock reports whether the calling goroutine is one that must not wait
// for a loop: a loop's own, or one that runs an offloaded function. Whoever offers
// a call that waits asks this first and refuses with [ErrWouldDeadlock].
func WouldDeadlock() bool { return mustNotWait() }
