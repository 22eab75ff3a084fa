package sys

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A duplicate of a listening socket accepts, does not block, and is not passed on.
func TestDupListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
		t.Fatal(err)
	}
	fd, err := DupListener(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer Close(fd)
	if _, _, err := Accept(fd); err != ErrAgain {
		t.Errorf("accept with nobody waiting: got %v, want ErrAgain", err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags: got %#x, %v; want FD_CLOEXEC", flags, err)
	}
	if a, err := LocalAddr(fd, ""); err != nil || a.String() != l.Addr().String() {
		t.Errorf("address: got %v, %v; want %v", a, err, l.Addr())
	}
}

func TestDupListenerRefuses(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer Close(pair[0])
	defer Close(pair[1])
	r, w, err := Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer Close(r)
	defer Close(w)
	for _, tt := range []struct {
		name string
		fd   int
		want error
	}{
		{"a connection", pair[0], syscall.EINVAL},
		{"a pipe", r, syscall.ENOTSOCK},
		{"nothing", 1 << 20, syscall.EBADF},
	} {
		if fd, err := DupListener(tt.fd); fd != -1 || !errors.Is(err, tt.want) {
			t.Errorf("%s: got %d, %v; want %v", tt.name, fd, err, tt.want)
		}
	}
}

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
