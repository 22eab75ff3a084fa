package eventloop

import "errors"

var (
	// ErrLoopClosed reports that a loop has ended, or is ending and takes no new
	// registrations.
	ErrLoopClosed = errors.New("eventloop: loop closed")

	// ErrClosed reports use of a [Registration] after its Close.
	ErrClosed = errors.New("eventloop: registration closed")

	// ErrWouldDeadlock reports an attempt to wait on the goroutine of a loop or of
	// an offloaded function, where it could wait for itself.
	ErrWouldDeadlock = errors.New("eventloop: waiting here would deadlock")

	// ErrOffloadClosed reports a submission to an [Offload] after its Close.
	ErrOffloadClosed = errors.New("eventloop: offload closed")

	// ErrOffloadFull reports that an [Offload] has as many functions waiting as it
	// may hold.
	ErrOffloadFull = errors.New("eventloop: offload full")
)
