//go:build !linux

package sys

// The functions below are described in the file for Linux.

func Splice(out, in, n int) (int, error) { return 0, errUnsupported }
func Tee(out, in, n int) (int, error)    { return 0, errUnsupported }
func PipeSize(fd int) (int, error)       { return 0, errUnsupported }
func SetPipeSize(fd, n int) (int, error) { return 0, errUnsupported }

// SpliceToFile is described in the file for Linux.
func SpliceToFile(file, pipe int, off int64, n int) (int, error) { return 0, errUnsupported }
