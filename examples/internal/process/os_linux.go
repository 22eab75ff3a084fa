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

// SmallReceiveBuffer, the Control of a net.Dialer, leaves a connection room for a few KiB
// that it does not read.
func SmallReceiveBuffer(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) }); e != nil {
		return e
	}
	return err
}
