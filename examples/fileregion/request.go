package main

import (
	"errors"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// reason is why a request is refused, as the client is told.
type reason string

func (r reason) Error() string { return string(r) }

const (
	noSuchFile  reason = "no such file"
	isDirectory reason = "is a directory"
	notAllowed  reason = "not allowed"
	notRegular  reason = "not a regular file"
	badRange    reason = "bad range"
	badRequest  reason = "bad request"
)

// request is what a client asks for.
type request struct {
	path      string
	off, size int64 // size -1: to the end
}

// parse reads a line. The path is decoded first and judged afterwards, so that it
// makes no difference how a client encodes it.
func parse(line string) (request, error) {
	fields := strings.Split(line, " ")
	req := request{size: -1}
	var err error
	switch len(fields) {
	case 1:
	case 3:
		if req.off, err = decimal(fields[1]); err != nil {
			return request{}, err
		}
		if req.size, err = decimal(fields[2]); err != nil {
			return request{}, err
		}
	default:
		return request{}, badRequest
	}
	req.path, err = url.PathUnescape(fields[0])
	if err != nil || req.path == "" || strings.Contains(req.path, "\x00") {
		return request{}, badRequest
	}
	return req, nil
}

// decimal reads a number. One too large for any file becomes the largest there is.
func decimal(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) || s[0] == '+' {
		return 0, badRequest
	}
	return n, nil
}

// span is a range of an open file.
type span struct {
	*os.File
	off, size int64
}

// open finds what req asks for beneath root. It waits for the disk.
//
// An os.Root lets neither ".." nor a symbolic link lead out. What the file is, is
// looked at before it is opened, because a device may take notice of that, and again
// afterwards, because it may be another by then; O_NONBLOCK is for a FIFO that gets
// in between.
func open(root *os.Root, req request) (*span, error) {
	info, err := root.Stat(req.path)
	if err != nil {
		return nil, refusal(err)
	}
	if err := regular(info); err != nil {
		return nil, err
	}
	f, err := root.OpenFile(req.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, refusal(err)
	}
	if info, err = f.Stat(); err == nil {
		err = regular(info)
	}
	if err == nil {
		err = req.fit(info.Size())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &span{f, req.off, req.size}, nil
}

func regular(info os.FileInfo) error {
	switch {
	case info.IsDir():
		return isDirectory
	case !info.Mode().IsRegular():
		return notRegular
	}
	return nil
}

// fit resolves a size of -1, and refuses a range that a file of size bytes has not.
func (r *request) fit(size int64) error {
	if r.off < 0 || r.off > size {
		return badRange
	}
	if r.size == -1 {
		r.size = size - r.off
	}
	if r.size < 0 || r.size > size-r.off {
		return badRange
	}
	return nil
}

// refusal finds the reason for an error of a file's name. What is no fault of the
// client's, a lack of descriptors for example, stays as it is.
func refusal(err error) error {
	var errno syscall.Errno
	switch {
	case !errors.As(err, &errno):
		return notAllowed // the path leads out of the root
	case errno == syscall.ENOENT || errno == syscall.ENOTDIR || errno == syscall.ENAMETOOLONG:
		return noSuchFile
	case errno == syscall.EACCES || errno == syscall.EPERM || errno == syscall.ELOOP:
		return notAllowed
	case errno == syscall.ENXIO || errno == syscall.ENODEV:
		return notRegular
	}
	return err
}
