package sys

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxSendfile   = 0x7ffff000 // the most that the kernel moves in one call
	resolveCached = 0x20       // RESOLVE_CACHED, which x/sys does not have
	zfsMagic      = 0x2fc12fc1 // nor this
)

// ReadFile reads from a file at off, whatever its own position. It returns 0 and no
// error at the end of the file. It may sleep.
func ReadFile(fd int, p []byte, off int64) (n int, err error) {
	err = retry(func() (err error) {
		n, err = unix.Pread(fd, p, off)
		return err
	})
	if err != nil {
		return 0, failed("pread", err)
	}
	return n, nil
}

// Sendfile moves up to n bytes of the file in, from off on, to the socket out. It
// returns 0 and no error at the end of the file. It may sleep until the file has
// been read, unless [Cached] has just said otherwise.
func Sendfile(out, in int, off int64, n int) (int, error) {
	if n < 0 {
		return 0, failed("sendfile", unix.EINVAL)
	}
	n = min(n, maxSendfile)
	raceRelease()
	for {
		at := off
		sent, err := unix.Sendfile(out, in, &at, n)
		switch err {
		case nil:
			return sent, nil
		case unix.EINTR:
		default:
			return 0, failed("sendfile", err)
		}
	}
}

// Cached reports whether the byte of the file at off is in memory, so that reading
// it does not sleep. An offset at or after the end counts as cached. When it is not
// known the answer is no; see [Learn].
func Cached(fd int, off int64) (bool, error) {
	if off < 0 {
		return false, failed("preadv2", unix.EINVAL) // -1 would be the file's own position
	}
	var b [1]byte
	part := MakeIovec(b[:])
	for {
		// The offset comes in two halves of a long; of a 64-bit one the second is 0.
		low, high := uintptr(off), uintptr(uint64(off)>>(unix.SizeofLong*8-1)>>1)
		// Raw: with this flag it does not sleep.
		_, _, e := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&part)), 1, low, high, unix.RWF_NOWAIT)
		switch e {
		case 0:
			return true, nil
		case unix.EINTR:
		case unix.EAGAIN, unix.ENOSYS, unix.EPERM:
			return false, nil
		case unix.EOPNOTSUPP:
			return inMemory(fd), nil
		default:
			return false, fail("preadv2", e)
		}
	}
}

// diskless says of file systems, by device, whether they have no disk. Those do not
// take RWF_NOWAIT, and neither do some that are slow, such as FUSE.
var diskless struct {
	sync.Mutex
	known map[uint64]bool
}

// inMemory reports whether fd is a file of a file system that is known to have no disk.
// It asks nobody outside of the kernel.
func inMemory(fd int) bool {
	dev, ok := device(fd)
	if !ok {
		return false
	}
	diskless.Lock()
	defer diskless.Unlock()
	return diskless.known[dev]
}

// Learn finds out about the file system of fd, unless that is known, what [Cached] has
// to know of it. It may sleep.
func Learn(fd int) {
	dev, ok := device(fd)
	if !ok {
		return
	}
	diskless.Lock()
	_, known := diskless.known[dev]
	diskless.Unlock()
	if known {
		return
	}
	var st unix.Statfs_t
	if retry(func() error { return unix.Fstatfs(fd, &st) }) != nil {
		return
	}
	is := false
	switch uint32(st.Type) {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.HUGETLBFS_MAGIC:
		is = true
	}
	diskless.Lock()
	defer diskless.Unlock()
	if diskless.known == nil {
		diskless.known = map[uint64]bool{}
	}
	diskless.known[dev] = is
}

// device returns what names the file system of fd, without asking the one who serves it.
func device(fd int) (dev uint64, ok bool) {
	var st unix.Statx_t
	err := retry(func() error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st)
	})
	return uint64(st.Dev_major)<<32 | uint64(st.Dev_minor), err == nil
}

// OpenDir opens a directory to be the root of [OpenBeneath]. Nothing can be read
// from the descriptor.
func OpenDir(path string) (fd int, err error) {
	err = retry(func() (err error) {
		fd, err = unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, failed("open", err)
	}
	return fd, nil
}

// OpenBeneath opens a file for reading, never one outside of the directory dirfd:
// the kernel refuses, with EXDEV, a path that is absolute, leads up and out, or
// goes through a symbolic link that does.
//
// It does not wait for the other end of a FIFO, and a terminal does not become the
// controlling one; what kind of file it is remains for the caller to see. With
// cachedOnly it does not read directories from a disk, and does not cross into
// another file system, which may be slow to answer: it returns [ErrAgain] where it
// would have to do the one, and EXDEV for the other. Without, it may sleep.
func OpenBeneath(dirfd int, path string, cachedOnly bool) (int, error) {
	return openBeneath(dirfd, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_LARGEFILE, cachedOnly)
}

// LookBeneath returns what the path leads to, as [OpenBeneath] would open it, without
// opening it: no device takes notice.
func LookBeneath(dirfd int, path string, cachedOnly bool) (FileInfo, error) {
	fd, err := openBeneath(dirfd, path, unix.O_PATH, cachedOnly)
	if err != nil {
		return FileInfo{}, err
	}
	info, err := Stat(fd)
	_ = Close(fd) // drops no file
	return info, err
}

func openBeneath(dirfd int, path string, flags uint64, cachedOnly bool) (int, error) {
	features := Features()
	if !features.Openat2 {
		return -1, errors.ErrUnsupported
	}
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	}
	if cachedOnly {
		if !features.ResolveCached {
			return -1, ErrAgain
		}
		how.Resolve |= resolveCached | unix.RESOLVE_NO_XDEV
	}
	// EAGAIN also says that the tree was renamed while the kernel followed "..",
	// which is worth another try, and that somebody holds a lease on the file.
	for tries := 0; ; {
		fd, err := unix.Openat2(dirfd, path, &how)
		switch {
		case err == nil:
			return fd, nil
		case err == unix.EINTR:
		case err == unix.EAGAIN && !cachedOnly && tries < 8:
			tries++
		default:
			return -1, failed("openat2", err)
		}
	}
}

// Stat returns what is known of an open file.
func Stat(fd int) (FileInfo, error) {
	var st unix.Stat_t
	for {
		err := unix.Fstat(fd, &st)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return FileInfo{}, failed("fstat", err)
		}
	}
	return FileInfo{
		Device:   uint64(st.Dev),
		Inode:    st.Ino,
		Size:     st.Size,
		Modified: st.Mtim.Nano(),
		Changed:  st.Ctim.Nano(),
		Regular:  st.Mode&unix.S_IFMT == unix.S_IFREG,
		Dir:      st.Mode&unix.S_IFMT == unix.S_IFDIR,
		Unlinked: st.Nlink == 0,
	}, nil
}

// InfoOf returns what os knows of a file.
func InfoOf(fi os.FileInfo) FileInfo {
	info := FileInfo{Size: fi.Size(), Modified: fi.ModTime().UnixNano(), Regular: fi.Mode().IsRegular(), Dir: fi.IsDir()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		info.Device, info.Inode = uint64(st.Dev), st.Ino
		info.Changed = st.Ctim.Nano()
		info.Unlinked = st.Nlink == 0
	}
	return info
}

// Local reports whether fd is on a file system that is known to answer for what it
// has in memory without asking anybody: what is behind a network or in another
// process is not.
func Local(fd int) bool {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return false
	}
	switch uint32(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC,
		unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC, unix.SQUASHFS_MAGIC,
		unix.EROFS_SUPER_MAGIC_V1, zfsMagic:
		return true
	}
	return false
}
