package sys

import (
	"golang.org/x/sys/unix"
)

const spliceFlags = unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK

// Splice moves up to n bytes from in to out without their entering the process. One of
// the two is a pipe, the other a socket; neither is waited for. It returns 0 and no error
// at the end of the stream. With an empty pipe [ErrAgain] means that the socket is not
// ready; with one that holds bytes it may be the pipe: splice(2).
func Splice(out, in, n int) (int, error) {
	if n < 0 {
		return 0, failed("splice", unix.EINVAL)
	}
	for {
		m, _, e := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(in), 0, uintptr(out), 0, uintptr(n), spliceFlags)
		switch e {
		case 0:
			return int(m), nil
		case unix.EINTR:
		default:
			return 0, fail("splice", e)
		}
	}
}

// Tee duplicates up to n bytes of the pipe in into the pipe out; they stay in in. It
// returns 0 and no error if in is empty and has no writer, and [ErrAgain] if in is empty
// or out is full: tee(2).
func Tee(out, in, n int) (int, error) {
	if n < 0 {
		return 0, failed("tee", unix.EINVAL)
	}
	for {
		m, _, e := unix.RawSyscall6(unix.SYS_TEE, uintptr(in), uintptr(out), uintptr(n), unix.SPLICE_F_NONBLOCK, 0, 0)
		switch e {
		case 0:
			return int(m), nil
		case unix.EINTR:
		default:
			return 0, fail("tee", e)
		}
	}
}

// PipeSize returns how many bytes a pipe may hold, in pages that are full.
func PipeSize(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
	return n, failed("fcntl", err)
}

// SetPipeSize has a pipe hold n bytes or more, and returns how many. It fails with EPERM
// where the user may not have so many: pipe(7).
func SetPipeSize(fd, n int) (int, error) {
	size, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, n)
	return size, failed("fcntl", err)
}

// SpliceToFile moves up to n bytes of a pipe, which holds as many, into a file at off. It
// may sleep. Files that were opened with O_APPEND are refused: splice(2).
func SpliceToFile(file, pipe int, off int64, n int) (int, error) {
	if n < 0 || off < 0 {
		return 0, failed("splice", unix.EINVAL)
	}
	for {
		at := off
		m, err := unix.Splice(pipe, nil, file, &at, n, unix.SPLICE_F_MOVE)
		switch err {
		case nil:
			return int(m), nil
		case unix.EINTR:
		default:
			return 0, failed("splice", err)
		}
	}
}
