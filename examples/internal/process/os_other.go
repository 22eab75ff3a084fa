//go:build !linux

package process

import (
	"errors"
	"os/exec"
	"syscall"
)

// Mkfifo makes a FIFO that all may use.
func Mkfifo(string) error { return errors.ErrUnsupported }

func tieToParent(*exec.Cmd) {}

func SmallReceiveBuffer(string, string, syscall.RawConn) error { return errors.ErrUnsupported }
