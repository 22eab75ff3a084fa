package sys

import (
	"bytes"
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reserve takes n bytes of address space in which nothing can be read or written
// until it is committed. They cost no memory, and are never given back.
//
// What is committed in them is not backed by huge pages, unless [HugePages] asks
// for it.
func Reserve(n uintptr) (unsafe.Pointer, error) {
	p, err := unix.MmapPtr(-1, 0, nil, n, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, failed("mmap", err)
	}
	_ = unix.Madvise(unsafe.Slice((*byte)(p), n), unix.MADV_NOHUGEPAGE) // EINVAL: a kernel without them
	return p, nil
}

// Commit makes n bytes at p, whole pages of a reserved range, usable. They read as
// zero unless they have been committed before and not decommitted since.
func Commit(p unsafe.Pointer, n uintptr) error {
	return failed("mprotect", unix.Mprotect(unsafe.Slice((*byte)(p), n), unix.PROT_READ|unix.PROT_WRITE))
}

// HugePages asks the kernel to back n bytes at p, a part of a reserved range, by huge
// pages where enough of them are committed side by side. The error is
// errors.ErrUnsupported when the kernel has none, or is told to use none.
func HugePages(p unsafe.Pointer, n uintptr) error {
	mode, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	if err != nil || bytes.Contains(mode, []byte("[never]")) {
		return errors.ErrUnsupported
	}
	return failed("madvise", unix.Madvise(unsafe.Slice((*byte)(p), n), unix.MADV_HUGEPAGE))
}

// Decommit gives the memory of n bytes at p, whole pages, back to the kernel. A
// use faults until they are committed again.
func Decommit(p unsafe.Pointer, n uintptr) error {
	b := unsafe.Slice((*byte)(p), n)
	if err := unix.Mprotect(b, unix.PROT_NONE); err != nil {
		return failed("mprotect", err)
	}
	return failed("madvise", unix.Madvise(b, unix.MADV_DONTNEED))
}

// MapFile maps n bytes of a file, from any offset on, for reading. They are the
// file's: a change of it shows, and reading behind its end is a fault. The caller
// gives the very slice that it got to [Unmap].
func MapFile(fd int, off int64, n int) ([]byte, error) {
	if off < 0 || n < 0 {
		return nil, failed("mmap", unix.EINVAL)
	}
	if n == 0 {
		return []byte{}, nil
	}
	lead := int(off % int64(PageSize()))
	length := uintptr(lead) + uintptr(n)
	p, err := unix.MmapPtr(fd, off-int64(lead), nil, length, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, failed("mmap", err)
	}
	return unsafe.Slice((*byte)(unsafe.Add(p, lead)), n), nil
}

// Unmap ends a mapping. B is what MapFile has returned.
func Unmap(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	p := unsafe.Pointer(unsafe.SliceData(b))
	lead := int(uintptr(p) % uintptr(PageSize()))
	return failed("munmap", unix.MunmapPtr(unsafe.Add(p, -lead), uintptr(lead)+uintptr(len(b))))
}

// Advise tells the kernel how b, memory of MapFile or a part of it, will be used, by a
// value of madvise(2). The advice covers all the pages that b touches.
func Advise(b []byte, advice int) error {
	if len(b) == 0 {
		return nil
	}
	p := unsafe.Pointer(unsafe.SliceData(b))
	lead := int(uintptr(p) % uintptr(PageSize()))
	return failed("madvise", unix.Madvise(unsafe.Slice((*byte)(unsafe.Add(p, -lead)), lead+len(b)), advice))
}
