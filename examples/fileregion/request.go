package main

import (
	"errors"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	"github.com/runnel-io/runnel/transport"
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
	req := request{size: -1}
	path, rng, ranged := strings.Cut(line, " ")
	if ranged {
		off, size, ok := strings.Cut(rng, " ")
		if !ok {
			return request{}, badRequest
		}
		var err error
		if req.off, err = decimal(off); err != nil {
			return request{}, err
		}
		if req.size, err = decimal(size); err != nil {
			return request{}, err
		}
	}
	var err error
	req.path, err = url.PathUnescape(path)
	if err != nil || req.path == "" || strings.IndexByte(req.path, 0) >= 0 {
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
	file      *transport.CachedFile
	off, size int64
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
	case errors.Is(err, transport.ErrPathEscapes):
		return notAllowed
	case errors.Is(err, transport.ErrIsDirectory):
		return isDirectory
	case errors.Is(err, transport.ErrNotRegular):
		return notRegular
	case !errors.As(err, &errno):
		return err
	case errno == syscall.ENOENT || errno == syscall.ENOTDIR || errno == syscall.ENAMETOOLONG:
		return noSuchFile
	case errno == syscall.EACCES || errno == syscall.EPERM || errno == syscall.ELOOP:
		return notAllowed
	}
	return err
}
