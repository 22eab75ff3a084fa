//go:build !linux

package process

import (
	"errors"
	"os/exec"
)

// Mkfifo makes a FIFO that all may use.
func Mkfifo(string) error { return errors.ErrUnsupported }

func tieToParent(*exec.Cmd) {}
