package transport

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"unsafe"
)

// openTerminal returns both ends of a terminal that passes bytes on as they are.
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	var n, unlock int32
	var raw syscall.Termios
	ioctl := func(f *os.File, request uintptr, p unsafe.Pointer) {
		t.Helper()
		c, err := f.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Control(func(fd uintptr) {
			if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(p)); e != 0 {
				t.Fatal(e)
			}
		})
	}
	ioctl(master, syscall.TIOCSPTLCK, unsafe.Pointer(&unlock))
	ioctl(master, syscall.TIOCGPTN, unsafe.Pointer(&n))
	slave, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		master.Close()
		t.Skip(err)
	}
	ioctl(slave, syscall.TCGETS, unsafe.Pointer(&raw))
	raw.Iflag, raw.Oflag, raw.Lflag = 0, 0, 0
	ioctl(slave, syscall.TCSETS, unsafe.Pointer(&raw))
	return master, slave
}
