package eventloop

import "time"

// poller is what a loop gets its work from. It speaks of submission and completion
// as well as of readiness, because not every kernel interface knows both: epoll
// reports that a descriptor is ready and leaves the calls to the handle; io_uring
// takes requests and reports that they have ended. Both come out of poll as
// outcomes, and what the poller cannot run itself the loop gives to its Offload.
//
// All methods but wake are called on the loop only.
type poller interface {
	// arm has readiness for ev reported with the key of r until the next arm or
	// disarm, besides EventHangup and EventError, again in every poll while it
	// lasts. r.armed tells whether the poller knows r already.
	arm(r *Registration, ev Event) error

	// disarm ends the reporting for r. It may take effect later: outcomes with the
	// key of r may still come and are dropped by whoever looks the key up; so an
	// outcome with a key owns nothing. What a request brought (a descriptor, a buffer)
	// stays with the poller until the handle takes it, and goes back when r closes.
	disarm(r *Registration) error

	// submit starts op and reports true, or reports false if op is not for this
	// poller. After true, exactly one outcome carries op, with N and Err set, never
	// before submit has returned.
	submit(op *Op) bool

	// poll waits for up to timeout, for ever if it is negative, and fills out with
	// what has happened; with 0 it does not wait, nor sleep in the kernel. It may
	// return early with nothing. Everything armed or submitted before is with the
	// kernel before it waits.
	poll(out []outcome, timeout time.Duration) (int, error)

	// wake makes a poll that waits, or the next one, return. Any goroutine; not
	// after close.
	wake() error

	// close frees the poller's descriptors. Nothing is armed or submitted any more.
	close() error
}

// outcome is one result of a poll: readiness of a registration, or the end of an
// Op.
type outcome struct {
	key uint64 // of the registration that is ready
	ev  Event
	op  *Op // not nil if this is the end of an Op
}

// keyWake is the key of the descriptor that interrupts a poll. No registration has
// it: there are fewer slots.
const keyWake = ^uint64(0)
