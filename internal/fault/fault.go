// Package fault lets the tests of one package have what is below it fail as a kernel may.
// Only an eventloop.Manual asks it: no loop that serves anybody does.
package fault

import "sync/atomic"

var arm atomic.Pointer[func(fd int) error]

// SetArm has f decide whether a Manual can poll descriptor fd for what it is about to be asked
// for, or for something else than before: its error is that of SetInterest. The function that
// is returned ends that. It is for one test at a time.
func SetArm(f func(fd int) error) (end func()) {
	arm.Store(&f)
	return func() { arm.Store(nil) }
}

// Arm returns what SetArm's function says, nil without one.
func Arm(fd int) error {
	if f := arm.Load(); f != nil {
		return (*f)(fd)
	}
	return nil
}
