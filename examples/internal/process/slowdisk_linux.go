package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// System calls to wait for by WaitAsleep.
const (
	CallSplice = syscall.SYS_SPLICE
	CallOpen   = syscall.SYS_OPENAT
	CallWrite  = syscall.SYS_PWRITE64
)

// ioctls of linux/fs.h
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// SlowDisk is a file system of its own that can be told to take no writes for a while:
// whoever writes to it, or makes a file, sleeps in the kernel until then, and no signal
// wakes him.
type SlowDisk struct {
	Dir string // where it is mounted

	t    testing.TB
	root *os.File
}

// NewSlowDisk mounts one, which must not be in use any more when the test ends. It skips the
// test where that cannot be done.
func NewSlowDisk(t testing.TB) *SlowDisk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can mount a file system and freeze it")
	}
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	err = f.Truncate(256 << 20)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-F", image},
		{"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("cannot mount a file system that can be frozen: %v: %v: %s", args, err, bytes.TrimSpace(out))
		}
	}
	// Whatever ends the tests, nobody is to sleep in it for ever after: the shell's input
	// ends with them.
	guard := exec.Command("/bin/sh", "-c", `cat; fsfreeze -u "$0" 2>/dev/null; umount "$0" || { umount -l "$0"; exit 1; }`, dir)
	hold, err := guard.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // no interrupt from the terminal
	var said bytes.Buffer
	guard.Stdout, guard.Stderr = &said, &said
	if err := guard.Start(); err != nil {
		_ = syscall.Unmount(dir, 0)
		t.Fatal(err)
	}
	d := &SlowDisk{t: t, Dir: dir}
	t.Cleanup(func() {
		d.root.Close()
		hold.Close()
		if err := guard.Wait(); err != nil {
			t.Errorf("unmounting: %v: %s", err, said.Bytes())
		}
	})
	if d.root, err = os.Open(dir); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *SlowDisk) ioctl(request uintptr) syscall.Errno {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, d.root.Fd(), request, 0)
	return errno
}

// Freeze has it take no writes. Call it when the server has been started.
func (d *SlowDisk) Freeze() {
	d.t.Helper()
	if errno := d.ioctl(fiFreeze); errno != 0 {
		d.t.Skip("cannot freeze the file system:", errno)
	}
	d.t.Cleanup(func() { d.ioctl(fiThaw) }) // before the server is waited for; fails if it is thawed
}

// Thaw ends that.
func (d *SlowDisk) Thaw() {
	d.t.Helper()
	if errno := d.ioctl(fiThaw); errno != 0 {
		d.t.Fatal("thawing the file system:", errno)
	}
}

// WaitAsleep waits until so many of the server's threads sleep in a system call where no
// signal wakes them, as in one on a SlowDisk.
func (s *Server) WaitAsleep(call, want int) {
	s.t.Helper()
	for end := time.Now().Add(Patience); ; runtime.Gosched() {
		got := 0
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", s.cmd.Process.Pid))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, thread := range threads {
			stat, err := os.ReadFile(filepath.Join(thread, "stat"))
			if err != nil || !bytes.Contains(stat, []byte(") D ")) {
				continue // it may have ended
			}
			in, err := os.ReadFile(filepath.Join(thread, "syscall"))
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
				s.t.Skip("the kernel does not say what a thread waits for:", err)
			}
			if bytes.HasPrefix(in, fmt.Appendf(nil, "%d ", call)) {
				got++
			}
		}
		if got == want {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("got %d threads that wait for the disk, want %d", got, want)
		}
	}
}
