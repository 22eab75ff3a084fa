package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// Dup returns a second descriptor for what fd stands for. They share O_NONBLOCK and
// the position in a file.
func Dup(fd int) (n int, err error) {
	err = retry(func() (err error) {
		n, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	return n, nil
}

// SetBlocking says whether calls on what fd stands for may wait.
func SetBlocking(fd int, on bool) error {
	return os.NewSyscallError("fcntl", unix.SetNonblock(fd, !on))
}

// Describe says what fd stands for.
func Describe(fd int) (d Description, err error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return d, os.NewSyscallError("fcntl", err)
	}
	d.Blocking = flags&unix.O_NONBLOCK == 0
	if flags&unix.O_PATH == 0 {
		mode := flags & unix.O_ACCMODE
		d.Reads, d.Writes = mode != unix.O_WRONLY, mode != unix.O_RDONLY
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return d, os.NewSyscallError("fstat", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFIFO:
		d.Kind = KindPipe
	case unix.S_IFCHR:
		d.Kind = KindDevice
	case unix.S_IFSOCK:
		typ, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if typ == unix.SOCK_DGRAM {
			d.Kind = KindDatagram
		}
		if err != nil || typ != unix.SOCK_STREAM {
			return d, err
		}
		listens, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err != nil {
			return d, err
		}
		d.Kind = KindStream
		if listens != 0 {
			d.Kind = KindListener
		}
	}
	return d, nil
}

// Pollable returns nil if readiness of fd can be waited for, else why not: EPERM for
// files and the like.
func Pollable(fd int) error {
	epfd, err := EpollCreate()
	if err != nil {
		return err
	}
	defer Close(epfd)
	return EpollAdd(epfd, fd, 0, 0)
}
