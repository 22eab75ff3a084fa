package process

import (
	"os/exec"
	"syscall"
)

// Mkfifo makes a FIFO that all may use.
func Mkfifo(path string) error { return syscall.Mkfifo(path, 0o666) }

// tieToParent has the process killed when the tests die without cleaning up, as
// they do when they run out of time.
func tieToParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
