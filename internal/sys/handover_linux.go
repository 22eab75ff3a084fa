package sys

import "golang.org/x/sys/unix"

// CloseOnExec has the descriptor closed by exec, so that a child does not get it unasked.
func CloseOnExec(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC)
	return failed("fcntl", err)
}
