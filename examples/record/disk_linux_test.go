package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// smallDisk mounts a file system of 1 MiB on dir.
func smallDisk(t *testing.T, dir string) {
	t.Helper()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("cannot mount a small file system:", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

// ioctls of linux/fs.h
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// slowDisk is a file system of its own that can be told to take no writes for a while:
// whoever writes to it, or opens a file of it for writing, sleeps in the kernel until then.
type slowDisk struct {
	t    *testing.T
	dir  string
	root *os.File
}

// newSlowDisk mounts one, which must not be in use any more when the test ends.
func newSlowDisk(t *testing.T) *slowDisk {
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
	guard := exec.Command("/bin/sh", "-c", `cat; fsfreeze -u "$0" 2>/dev/null; umount "$0"`, dir)
	hold, err := guard.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // no interrupt from the terminal
	var said bytes.Buffer
	guard.Stdout, guard.Stderr = &said, &said
	if err := guard.Start(); err != nil {
		t.Fatal(err)
	}
	d := &slowDisk{t: t, dir: dir}
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

func (d *slowDisk) ioctl(request uintptr) syscall.Errno {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, d.root.Fd(), request, 0)
	return errno
}

// freeze has it take no writes.
func (d *slowDisk) freeze() {
	d.t.Helper()
	if errno := d.ioctl(fiFreeze); errno != 0 {
		d.t.Skip("cannot freeze the file system:", errno)
	}
	d.t.Cleanup(func() { d.ioctl(fiThaw) }) // before the server is waited for; fails if it is thawed
}

// thaw ends that.
func (d *slowDisk) thaw() {
	d.t.Helper()
	if errno := d.ioctl(fiThaw); errno != 0 {
		d.t.Fatal("thawing the file system:", errno)
	}
}
