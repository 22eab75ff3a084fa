//go:build !linux

package sys

// The functions below are described in the file for Linux.

func EnableZeroCopy(fd int) error                                      { return errUnsupported }
func SendZeroCopy(fd int, parts []Iovec, slow, more bool) (int, error) { return 0, errUnsupported }
func ReadConfirmation(fd int) (Confirmation, error)                    { return Confirmation{}, errUnsupported }
func Disconnect(fd int) error                                          { return errUnsupported }
func Unconnect(fd int) error                                           { return errUnsupported }
