package sys

import "unsafe"

// JoinLast makes one part of the last two of parts if their memory adjoins.
func JoinLast(parts []Iovec) []Iovec {
	n := len(parts)
	if n < 2 {
		return parts
	}
	a, b := &parts[n-2], &parts[n-1]
	if uintptr(unsafe.Pointer(a.Base))+uintptr(a.Len) != uintptr(unsafe.Pointer(b.Base)) {
		return parts
	}
	a.SetLen(int(a.Len) + int(b.Len))
	*b = Iovec{}
	return parts[:n-1]
}
