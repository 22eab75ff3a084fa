package transport

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/runnel-io/runnel/internal/sys"
)

// opener finds files below a directory and never outside of it. With inPlace it must
// not wait, and returns sys.ErrAgain where it would have to. Errors are causes, without
// a path.
type opener interface {
	// look returns what a path leads to, without opening it: a device may take notice of
	// that.
	look(path string, inPlace bool) (sys.FileInfo, error)
	// open opens a file, of which kind it may be. It does not wait for the other end of
	// a FIFO.
	open(path string, inPlace bool) (*os.File, sys.FileInfo, error)
	// check returns, in place, what an open file is now.
	check(f *CachedFile) (sys.FileInfo, error)
	close() error
}

// openerOf returns the best there is for a directory.
func openerOf(dir string) (opener, error) {
	if !sys.Features().Openat2 {
		return newRootOpener(dir)
	}
	fd, err := sys.OpenDir(dir)
	if err != nil {
		return nil, fmt.Errorf("transport: %w", &fs.PathError{Op: "open", Path: dir, Err: cause(err)})
	}
	return &kernelOpener{fd: fd, local: sys.Local(fd)}, nil
}

// kernelOpener leaves the search to openat2.
type kernelOpener struct {
	fd    int
	local bool // what is in memory comes without waiting
}

func (o *kernelOpener) look(path string, inPlace bool) (sys.FileInfo, error) {
	if inPlace && !o.local {
		return sys.FileInfo{}, sys.ErrAgain
	}
	info, err := sys.LookBeneath(o.fd, path, inPlace)
	return info, o.settle(err, inPlace)
}

func (o *kernelOpener) open(path string, inPlace bool) (*os.File, sys.FileInfo, error) {
	fd, err := sys.OpenBeneath(o.fd, path, inPlace)
	if err != nil {
		return nil, sys.FileInfo{}, o.settle(err, inPlace)
	}
	f := os.NewFile(uintptr(fd), path)
	info, err := sys.Stat(fd)
	if err != nil {
		f.Close()
		return nil, info, cause(err)
	}
	return f, info, nil
}

func (o *kernelOpener) check(f *CachedFile) (sys.FileInfo, error) {
	if !o.local {
		return sys.FileInfo{}, sys.ErrAgain
	}
	return sys.Stat(f.fd)
}

// settle finds the cause of an error. In place, what may be due to the place alone is
// left for a worker to find out: the other side of a mount, for one.
func (o *kernelOpener) settle(err error, inPlace bool) error {
	err = cause(err)
	if !inPlace || err == nil {
		return err
	}
	switch err {
	case syscall.ENOENT, syscall.ENOTDIR, syscall.ENAMETOOLONG, syscall.EACCES, syscall.ELOOP:
		return err
	}
	return sys.ErrAgain
}

func (o *kernelOpener) close() error { return sys.Close(o.fd) }

// rootOpener walks by itself, with an os.Root, and always waits: for kernels that have no
// openat2, or forbid it.
type rootOpener struct{ root *os.Root }

func newRootOpener(dir string) (opener, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("transport: %w", err)
	}
	return &rootOpener{root}, nil
}

func (o *rootOpener) look(path string, inPlace bool) (sys.FileInfo, error) {
	if inPlace {
		return sys.FileInfo{}, sys.ErrAgain
	}
	if path == "" {
		return sys.FileInfo{}, syscall.ENOENT // as the kernel says it
	}
	info, err := o.root.Stat(path)
	if err != nil {
		return sys.FileInfo{}, cause(err)
	}
	return sys.InfoOf(info), nil
}

func (o *rootOpener) open(path string, inPlace bool) (*os.File, sys.FileInfo, error) {
	if inPlace {
		return nil, sys.FileInfo{}, sys.ErrAgain
	}
	f, err := o.root.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, sys.FileInfo{}, cause(err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, sys.FileInfo{}, cause(err)
	}
	return f, sys.InfoOf(info), nil
}

func (o *rootOpener) check(*CachedFile) (sys.FileInfo, error) {
	return sys.FileInfo{}, sys.ErrAgain
}

func (o *rootOpener) close() error { return o.root.Close() }

// cause returns what is behind an error of a path, without the path and the call. What
// has no errno is an os.Root's refusal to leave itself.
func cause(err error) error {
	var errno syscall.Errno
	switch {
	case err == nil, err == sys.ErrAgain:
		return err
	case !errors.As(err, &errno):
		var p *fs.PathError
		if errors.As(err, &p) {
			return ErrPathEscapes
		}
		return err
	case errno == syscall.EXDEV:
		return ErrPathEscapes
	case errno == syscall.ENXIO || errno == syscall.ENODEV:
		return ErrNotRegular
	case errno == syscall.EISDIR:
		return ErrIsDirectory
	}
	return errno
}
