package sys

import (
	"errors"

	"golang.org/x/sys/unix"
)

// WriteFile writes p to a file at off, whatever its own position, and returns how much of
// it was taken. It may sleep. To a file that was opened with O_APPEND it writes at the end:
// pwrite(2).
func WriteFile(fd int, p []byte, off int64) (n int, err error) {
	raceRelease()
	err = retry(func() (err error) {
		n, err = unix.Pwrite(fd, p, off)
		return err
	})
	if err != nil {
		return 0, failed("pwrite", err)
	}
	return n, nil
}

// AllocateFile has the file system keep room for n bytes of a file from off on; the size
// of the file stays as it is. Where the file system cannot do that nothing happens. It may
// sleep.
func AllocateFile(fd int, off, n int64) error {
	err := retry(func() error { return unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, off, n) })
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS),
		errors.Is(err, unix.ENODEV), errors.Is(err, unix.ESPIPE): // the last two are devices
		return nil
	}
	return failed("fallocate", err)
}

// SyncData waits until what has been written to a file, and its size, are on the disk. A
// device that has nothing of that kind is no error.
func SyncData(fd int) error {
	err := retry(func() error { return unix.Fdatasync(fd) })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return failed("fdatasync", err)
}

// OpenedFor says whether a file was opened for writing, and whether with O_APPEND.
func OpenedFor(fd int) (writing, appending bool, err error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return false, false, failed("fcntl", err)
	}
	return flags&unix.O_ACCMODE != unix.O_RDONLY, flags&unix.O_APPEND != 0, nil
}
