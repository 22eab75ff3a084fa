//go:build !linux

package sys

// The functions below are described in the files for Linux.

func DupListener(fd int) (int, error) { return -1, errUnsupported }
func CloseOnExec(fd int) error        { return errUnsupported }
