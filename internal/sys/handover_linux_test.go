package sys

import (
	"errors"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCloseOnExec(t *testing.T) {
	r, w, err := Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer Close(r)
	defer Close(w)
	if _, err := unix.FcntlInt(uintptr(r), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	if err := CloseOnExec(r); err != nil {
		t.Error(err)
	}
	if flags, err := unix.FcntlInt(uintptr(r), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags: got %#x, %v; want FD_CLOEXEC", flags, err)
	}
	if err := CloseOnExec(1 << 20); !errors.Is(err, syscall.EBADF) {
		t.Errorf("nothing: got %v, want EBADF", err)
	}
}
