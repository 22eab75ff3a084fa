//go:build !linux

package sys

// The functions below are described in the file for Linux.

func Dup(fd int) (int, error)              { return -1, errUnsupported }
func SetBlocking(fd int, on bool) error    { return errUnsupported }
func Describe(fd int) (Description, error) { return Description{}, errUnsupported }
func Pollable(fd int) error                { return errUnsupported }
