//go:build !linux

package sys

// WriteFile is described in the files for Linux.
func WriteFile(fd int, p []byte, off int64) (int, error) { return 0, errUnsupported }

// AllocateFile is described in the files for Linux.
func AllocateFile(fd int, off, n int64) error { return errUnsupported }

// SyncData is described in the files for Linux.
func SyncData(fd int) error { return errUnsupported }

// OpenedFor is described in the files for Linux.
func OpenedFor(fd int) (writing, appending bool, err error) { return false, false, errUnsupported }
