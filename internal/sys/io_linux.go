package sys

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/runnel-io/runnel/internal/invariant"
)

// Iovec is one part of a vectored transfer. It keeps its memory alive.
type Iovec = unix.Iovec

// MakeIovec returns the part that covers p.
func MakeIovec(p []byte) Iovec {
	v := Iovec{Base: unsafe.SliceData(p)}
	v.SetLen(len(p))
	return v
}

// Flags for [Sendmsg].
const (
	// MsgMore says that more follows at once: the kernel may hold back a segment
	// that is not full.
	MsgMore = unix.MSG_MORE
)

// fail turns an errno into the error of this package.
func fail(call string, e unix.Errno) error {
	switch e {
	case unix.EAGAIN:
		return ErrAgain
	case unix.EINPROGRESS:
		return ErrInProgress
	}
	return os.NewSyscallError(call, e)
}

// failed is fail for calls of x/sys, which return an errno or nil as an error.
func failed(call string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := err.(unix.Errno); ok {
		return fail(call, e)
	}
	return os.NewSyscallError(call, err)
}

// retry calls f until it is not interrupted.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// Read reads into p from a socket or a pipe. It returns 0 and no error at the end
// of the stream, and when p is empty.
func Read(fd int, p []byte) (int, error) {
	base := unsafe.Pointer(unsafe.SliceData(p))
	for {
		var n uintptr
		var e unix.Errno
		if len(p) <= MaxRaw {
			n, _, e = unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(base), uintptr(len(p)))
		} else {
			n, _, e = unix.Syscall(unix.SYS_READ, uintptr(fd), uintptr(base), uintptr(len(p)))
		}
		switch e {
		case 0:
			raceWrote(base, int(n))
			raceAcquire()
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, fail("read", e)
		}
	}
}

// Readv is Read into several parts, at most [IOVMax].
func Readv(fd int, parts []Iovec) (int, error) {
	base := unsafe.Pointer(unsafe.SliceData(parts))
	small := rawSized(parts)
	for {
		var n uintptr
		var e unix.Errno
		if small {
			n, _, e = unix.RawSyscall(unix.SYS_READV, uintptr(fd), uintptr(base), uintptr(len(parts)))
		} else {
			n, _, e = unix.Syscall(unix.SYS_READV, uintptr(fd), uintptr(base), uintptr(len(parts)))
		}
		switch e {
		case 0:
			if invariant.Race {
				announce(parts, int(n), raceWrote)
			}
			raceAcquire()
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, fail("readv", e)
		}
	}
}

// Write writes p to a socket or a pipe and returns how much of it was taken.
func Write(fd int, p []byte) (int, error) {
	if len(p) > MaxRaw {
		return WriteSlow(fd, p)
	}
	base := unsafe.Pointer(unsafe.SliceData(p))
	raceRelease()
	for {
		n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(base), uintptr(len(p)))
		switch e {
		case 0:
			raceReads(base, int(n))
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, fail("write", e)
		}
	}
}

// WriteSlow is Write for memory that may have to be read from a disk first.
func WriteSlow(fd int, p []byte) (int, error) {
	base := unsafe.Pointer(unsafe.SliceData(p))
	raceRelease()
	for {
		n, _, e := unix.Syscall(unix.SYS_WRITE, uintptr(fd), uintptr(base), uintptr(len(p)))
		switch e {
		case 0:
			raceReads(base, int(n))
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, fail("write", e)
		}
	}
}

// Writev is Write from several parts, at most [IOVMax]. One part goes by write(2),
// which is a little cheaper.
func Writev(fd int, parts []Iovec) (int, error) {
	if len(parts) == 1 {
		return Write(fd, unsafe.Slice(parts[0].Base, int(parts[0].Len)))
	}
	if !rawSized(parts) {
		return WritevSlow(fd, parts)
	}
	base := unsafe.Pointer(unsafe.SliceData(parts))
	raceRelease()
	for {
		n, _, e := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(base), uintptr(len(parts)))
		switch e {
		case 0:
			if invariant.Race {
				announce(parts, int(n), raceReads)
			}
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, fail("writev", e)
		}
	}
}

// WritevSlow is Writev for memory that may have to be read from a disk first.
func WritevSlow(fd int, parts []Iovec) (int, error) {
	base := unsafe.Pointer(unsafe.SliceData(parts))
	raceRelease()
	for {
		n, _, e := unix.Syscall(unix.SYS_WRITEV, uintptr(fd), uintptr(base), uintptr(len(parts)))
		switch e {
		case 0:
			if invariant.Race {
				announce(parts, int(n), raceReads)
			}
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, fail("writev", e)
		}
	}
}

// Sendmsg is Writev on a socket, with flags. It never raises SIGPIPE. One part goes by
// sendto(2), for which less is copied into the kernel.
func Sendmsg(fd int, parts []Iovec, flags int) (int, error) {
	if len(parts) == 1 && parts[0].Len <= MaxRaw {
		return send(fd, &parts[0], flags|unix.MSG_NOSIGNAL)
	}
	msg := unix.Msghdr{Iov: unsafe.SliceData(parts)}
	msg.SetIovlen(len(parts))
	flags |= unix.MSG_NOSIGNAL
	small := rawSized(parts)
	raceRelease()
	for {
		var n uintptr
		var e unix.Errno
		if small {
			n, _, e = unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), uintptr(flags))
		} else {
			n, _, e = unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), uintptr(flags))
		}
		switch e {
		case 0:
			if invariant.Race {
				announce(parts, int(n), raceReads)
			}
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, fail("sendmsg", e)
		}
	}
}

func send(fd int, part *Iovec, flags int) (int, error) {
	base := unsafe.Pointer(part.Base)
	raceRelease()
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(base), uintptr(part.Len), uintptr(flags), 0, 0)
		switch e {
		case 0:
			raceReads(base, int(n))
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, fail("sendto", e)
		}
	}
}

// rawSized reports whether the parts are small enough together for a raw call.
func rawSized(parts []Iovec) bool {
	var sum uint64
	for i := range parts {
		sum += uint64(parts[i].Len)
	}
	return sum <= MaxRaw
}

// announce tells the race detector of the first n bytes of parts.
func announce(parts []Iovec, n int, tell func(unsafe.Pointer, int)) {
	for i := range parts {
		if n <= 0 {
			return
		}
		k := min(n, int(parts[i].Len))
		tell(unsafe.Pointer(parts[i].Base), k)
		n -= k
	}
}

// Pipe returns the two ends of a new pipe, non-blocking.
func Pipe() (r, w int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return -1, -1, failed("pipe2", err)
	}
	return p[0], p[1], nil
}

// Close closes fd. The descriptor is gone whatever the result; the error is one of
// writing back what was written to a file.
//
// It may sleep: with linger set, or when it drops the last reference to a file.
func Close(fd int) error {
	raceRelease()
	err := unix.Close(fd)
	// The next one of the same number would have been closed, had there been one by now.
	invariant.Check(err != unix.EBADF || fd < 0, "descriptor closed that is not open")
	if err == unix.EINTR {
		return nil // Linux has closed it; again would close somebody else's
	}
	return failed("close", err)
}
