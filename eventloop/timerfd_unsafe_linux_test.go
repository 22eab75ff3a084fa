package eventloop_test

import (
	"syscall"
	"time"
	"unsafe"
)

// newTimerfd returns a timerfd that becomes readable once d has passed.
func newTimerfd(d time.Duration) (int, error) {
	const clockMonotonic = 1
	fd, _, e := syscall.Syscall(syscall.SYS_TIMERFD_CREATE, clockMonotonic, syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if e != 0 {
		return -1, e
	}
	spec := [2]syscall.Timespec{1: syscall.NsecToTimespec(int64(d))} // interval, first time
	_, _, e = syscall.Syscall6(syscall.SYS_TIMERFD_SETTIME, fd, 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
	if e != 0 {
		_ = syscall.Close(int(fd))
		return -1, e
	}
	return int(fd), nil
}
