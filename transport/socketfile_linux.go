package transport

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/runnel-io/runnel/internal/sys"
)

const (
	lockWait  = time.Second
	lockRetry = 10 * time.Millisecond
)

// bindSocket gives fd its address and calls then, which has it listen and may be nil.
// The file of a Unix socket that nobody has any more, because its server was killed,
// does not stand in the way. It may sleep.
func bindSocket(fd int, local net.Addr, then func() error) (*socketFile, error) {
	var lock *os.File
	path, ok := pathOf(local)
	if ok {
		lock = lockDir(path)
		defer lock.Close()
	}
	err := sys.Bind(fd, local)
	if lock != nil && errors.Is(err, syscall.EADDRINUSE) && removeStale(path, local) {
		err = sys.Bind(fd, local)
	}
	if err != nil {
		return nil, err
	}
	file := socketFileOf(local)
	if then != nil {
		if err := then(); err != nil {
			file.remove()
			return nil, err
		}
	}
	return file, nil
}

// lockDir locks the directory of path against others who are about to listen there:
// between bind and listen a socket refuses connections like one whose server was
// killed. The result is nil if that cannot be done, or not soon: then what is there
// stays.
func lockDir(path string) *os.File {
	dir, err := os.OpenFile(filepath.Dir(path), os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil
	}
	for waited := time.Duration(0); waited < lockWait; waited += lockRetry {
		err = syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return dir
		}
		if err != syscall.EWOULDBLOCK && err != syscall.EINTR {
			break
		}
		time.Sleep(lockRetry)
	}
	dir.Close()
	return nil
}

// removeStale removes what is at path if it is a socket that nobody has. The
// directory is locked.
func removeStale(path string, addr net.Addr) bool {
	before, err := os.Lstat(path)
	if err != nil || before.Mode().Type() != os.ModeSocket {
		return false
	}
	fd, err := sys.Socket(addr)
	if err != nil {
		return false
	}
	err = sys.Connect(fd, addr)
	_ = sys.Close(fd)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return false
	}
	after, err := os.Lstat(path)
	return err == nil && os.SameFile(before, after) && os.Remove(path) == nil
}
