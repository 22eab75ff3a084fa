// Package sys is the one door to the operating system: typed wrappers for the
// system calls that loops, buffers and transports need, and no policy.
//
// Each function retries EINTR. What a caller branches on without looking closer
// comes back as a sentinel that can be compared and allocates nothing: [ErrAgain]
// and [ErrInProgress]. Every other errno is wrapped once, by os.NewSyscallError.
//
// The one rule: a call that cannot sleep is raw, that is, the scheduler does not
// hear of it, and everything else is not. Raw are the calls on non-blocking
// sockets, pipes and eventfds, changes to an epoll set, and a wait without a
// timeout; they must not be given a descriptor that blocks or memory that a page
// fault would fill from a disk (a mapped file). A raw call keeps a stop of the
// world waiting while it lasts: transfers of more than [MaxRaw] bytes are not raw.
//
// Off Linux everything compiles and returns errors.ErrUnsupported.
package sys

import (
	"os"
	"syscall"
)

// ErrAgain reports that a call could not go on without waiting. It matches
// syscall.EAGAIN.
var ErrAgain error = &condition{"try again when ready", syscall.EAGAIN}

// ErrInProgress reports that a connection is being made; the socket becomes
// writable when it is known how that ended, see [SocketError]. It matches
// syscall.EINPROGRESS.
var ErrInProgress error = &condition{"connection in progress", syscall.EINPROGRESS}

// condition is an errno that stands for a state and not for a failure. It is used
// by pointer, so that a comparison is one of two words.
type condition struct {
	text  string
	errno syscall.Errno
}

func (c *condition) Error() string        { return "sys: " + c.text }
func (c *condition) Is(target error) bool { return target == c.errno }

const (
	// IOVMax is the largest number of parts that a vectored call takes; the kernel
	// refuses more.
	IOVMax = 1024

	// MaxRaw is the largest number of bytes that is moved by a raw call.
	MaxRaw = 1 << 20
)

// FeatureSet says which of the calls that not every supported kernel has, or that
// a sandbox may forbid, are there.
type FeatureSet struct {
	Openat2       bool // openat2(2), which OpenBeneath needs
	ResolveCached bool // and its RESOLVE_CACHED, without which a cached lookup always returns ErrAgain
	PreadNowait   bool // preadv2(2) with RWF_NOWAIT, without which Cached knows nothing
	EpollPwait2   bool // epoll_pwait2(2), which EpollWaitFor needs
}

// PageSize returns the size of a page of memory.
func PageSize() int { return os.Getpagesize() }

// FileInfo is what tells whether a file is still the one it was, with the content it
// had. It can be compared.
type FileInfo struct {
	Device, Inode     uint64 // together they name the file; 0 off Linux
	Size              int64
	Modified, Changed int64 // nanoseconds since 1970: the content; anything, permissions too
	Regular, Dir      bool
	Unlinked          bool // it has no name any more
}

// Kind is what a descriptor stands for.
type Kind uint8

const (
	KindOther    Kind = iota // a file, a socket of another type, ...
	KindStream               // a stream socket that does not listen
	KindListener             // one that does
	KindDatagram             // a datagram socket
	KindPipe                 // an end of a pipe or a FIFO
	KindDevice               // a terminal or another device of characters
)

// Description is what [Describe] finds out.
type Description struct {
	Kind          Kind
	Reads, Writes bool // what it was opened for
	Blocking      bool
}

// Confirmation is an entry of a socket's error queue. If Calls is set it is about the
// calls of [SendZeroCopy] with the numbers from First to Last, which may wrap: the kernel
// does not need their memory any more. If not it is about something else.
type Confirmation struct {
	Calls       bool
	First, Last uint32
	Copied      bool // the kernel has copied the bytes of one of them at least
}
