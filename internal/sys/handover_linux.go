package sys

import (
	"golang.org/x/sys/unix"
)

// DupListener returns another descriptor, non-blocking and closed by exec, for the
// listening stream socket fd. What is no such socket is refused with EINVAL.
func DupListener(fd int) (int, error) {
	listens, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return -1, err
	}
	kind, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return -1, err
	}
	if listens == 0 || kind != unix.SOCK_STREAM {
		return -1, failed("listen", unix.EINVAL)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, failed("fcntl", err)
	}
	// Of the socket, not of the descriptor: it is so for all who share it.
	if err := unix.SetNonblock(dup, true); err != nil {
		Close(dup)
		return -1, failed("fcntl", err)
	}
	return dup, nil
}

// CloseOnExec has the descriptor closed by exec, so that a child does not get it unasked.
func CloseOnExec(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC)
	return failed("fcntl", err)
}
