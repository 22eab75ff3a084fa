//go:build !linux

package sys

// CloseOnExec is described in the files for Linux.
func CloseOnExec(fd int) error { return errUnsupported }
