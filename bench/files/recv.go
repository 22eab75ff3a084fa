//go:build linux

package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// recv is recvfrom without an address. With MSG_TRUNC it drops up to n bytes, which may
// be more than p holds, and touches p not at all.
func recv(fd int, p []byte, n, flags int) (int, error) {
	if flags&unix.MSG_TRUNC == 0 {
		n = min(n, len(p))
	}
	k, _, e := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(n), uintptr(flags), 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(k), nil
}
