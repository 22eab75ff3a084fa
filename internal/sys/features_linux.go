package sys

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Features returns what was found when it was called first.
func Features() FeatureSet { return probed() }

// probed tries each call once. A kernel that lacks one answers ENOSYS, a sandbox
// EPERM, and to an unknown flag the answer is EINVAL or EOPNOTSUPP.
var probed = sync.OnceValue(func() (f FeatureSet) {
	open := func(resolve uint64) bool {
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve}
		var fd int
		err := retry(func() (err error) {
			fd, err = unix.Openat2(unix.AT_FDCWD, ".", &how)
			return err
		})
		if err == nil {
			unix.Close(fd)
		}
		// Any other errno is about the working directory and not about the call.
		return err != unix.ENOSYS && err != unix.EPERM && err != unix.EINVAL
	}
	f.Openat2 = open(unix.RESOLVE_BENEATH)
	f.ResolveCached = f.Openat2 && open(unix.RESOLVE_BENEATH|resolveCached)

	// A set that is not there is found out after the arguments have been read.
	var ev unix.EpollEvent
	var ts kernelTimespec
	_, _, e := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, ^uintptr(0), uintptr(unsafe.Pointer(&ev)), 1, uintptr(unsafe.Pointer(&ts)), 0, 0)
	f.EpollPwait2 = e == unix.EBADF

	// A pipe takes no offset: with the flag known and the descriptor good that is
	// what the kernel complains of.
	var b [1]byte
	part := MakeIovec(b[:])
	r, w, err := Pipe()
	if err != nil {
		return f
	}
	_, _, e = unix.Syscall6(unix.SYS_PREADV2, uintptr(r), uintptr(unsafe.Pointer(&part)), 1, 0, 0, unix.RWF_NOWAIT)
	f.PreadNowait = e == unix.ESPIPE
	Close(r)
	Close(w)
	return f
})
