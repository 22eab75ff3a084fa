package sys

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// EpollEvent is one entry of what a wait returns: the Events that are ready, and
// the data given when the descriptor was added.
type EpollEvent unix.EpollEvent

// Data returns what was given to EpollAdd or EpollMod for the descriptor.
func (e *EpollEvent) Data() uint64 { return uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32 }

// Readiness as epoll(7) has it. EpollErr and EpollHup are always reported.
const (
	EpollIn    = unix.EPOLLIN
	EpollOut   = unix.EPOLLOUT
	EpollRdHup = unix.EPOLLRDHUP
	EpollErr   = unix.EPOLLERR
	EpollHup   = unix.EPOLLHUP
	EpollET    = unix.EPOLLET
)

// EpollCreate returns a new epoll set.
func EpollCreate() (int, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return -1, failed("epoll_create1", err)
	}
	return fd, nil
}

// EpollAdd adds fd to the set. Data comes back with each of its events.
func EpollAdd(epfd, fd int, events uint32, data uint64) error {
	return epollCtl(epfd, unix.EPOLL_CTL_ADD, fd, events, data)
}

// EpollMod changes what is reported of fd, and its data.
func EpollMod(epfd, fd int, events uint32, data uint64) error {
	return epollCtl(epfd, unix.EPOLL_CTL_MOD, fd, events, data)
}

// EpollDel takes fd out of the set.
func EpollDel(epfd, fd int) error {
	return epollCtl(epfd, unix.EPOLL_CTL_DEL, fd, 0, 0)
}

func epollCtl(epfd, op, fd int, events uint32, data uint64) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(uint32(data)), Pad: int32(uint32(data >> 32))}
	for {
		_, _, e := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
		switch e {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return fail("epoll_ctl", e)
		}
	}
}

// EpollWait fills events and returns how many there are: none when timeoutMs
// milliseconds have passed. A timeout of 0 asks and does not wait, -1 waits for
// ever. A wait with a timeout that is interrupted ends early, without events.
func EpollWait(epfd int, events []EpollEvent, timeoutMs int) (int, error) {
	base := unsafe.Pointer(unsafe.SliceData(events))
	for {
		var n uintptr
		var e unix.Errno
		if timeoutMs == 0 {
			n, _, e = unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(base), uintptr(len(events)), 0, 0, 0)
		} else {
			n, _, e = unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(base), uintptr(len(events)), uintptr(timeoutMs), 0, 0)
		}
		switch {
		case e == 0:
			return int(n), nil
		case e != unix.EINTR:
			return 0, fail("epoll_pwait", e)
		case timeoutMs > 0:
			return 0, nil
		}
	}
}

// EpollWaitFor is EpollWait with a timeout to the nanosecond, which is rounded by
// nothing but the kernel's timer slack: 50 microseconds unless the thread has asked
// for less. 0 asks and does not wait, a negative one waits for ever. [Features] tells
// whether the kernel has it.
func EpollWaitFor(epfd int, events []EpollEvent, timeout time.Duration) (int, error) {
	if timeout <= 0 {
		return EpollWait(epfd, events, int(max(timeout, -1)))
	}
	base := unsafe.Pointer(unsafe.SliceData(events))
	ts := kernelTimespec{int64(timeout / time.Second), int64(timeout % time.Second)}
	n, _, e := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(epfd), uintptr(base), uintptr(len(events)), uintptr(unsafe.Pointer(&ts)), 0, 0)
	switch e {
	case 0:
		return int(n), nil
	case unix.EINTR:
		return 0, nil
	default:
		return 0, fail("epoll_pwait2", e)
	}
}

// kernelTimespec has 64 bits for each part on every architecture.
type kernelTimespec struct{ sec, nsec int64 }

// Eventfd returns a new eventfd, non-blocking, with nothing in it.
func Eventfd() (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return -1, failed("eventfd2", err)
	}
	return fd, nil
}

// EventfdWrite makes fd readable.
func EventfdWrite(fd int) error {
	one := uint64(1)
	raceRelease()
	for {
		_, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), 8)
		switch e {
		case 0, unix.EAGAIN: // EAGAIN: it is as readable as it can be
			return nil
		case unix.EINTR:
		default:
			return fail("write", e)
		}
	}
}

// EventfdRead makes fd unreadable again. It returns [ErrAgain] when it was so.
func EventfdRead(fd int) error {
	var count uint64
	for {
		_, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&count)), 8)
		switch e {
		case 0:
			raceAcquire()
			return nil
		case unix.EINTR:
		default:
			return fail("read", e)
		}
	}
}
