package transport

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"

	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// descriptor is a descriptor that its loop owns and that other goroutines may use
// for a moment: it is closed when the last of them is done with it, so that none
// ever gets at the next one of the same number. It is never opened again.
type descriptor struct {
	fd   int32         // for the loop; for others between enter and leave
	refs atomic.Uint32 // how many others use it, and the bits below
}

const (
	fdPublished = 1 << 31 // others may use it
	fdClosed    = 1 << 30
)

// publish lets others use the descriptor, which stays the same from now on.
func (d *descriptor) publish() { d.refs.Or(fdPublished) }

// enter reports whether the caller may use the descriptor until leave. Any goroutine.
func (d *descriptor) enter() bool {
	for {
		refs := d.refs.Load()
		if refs&(fdPublished|fdClosed) != fdPublished {
			return false
		}
		if d.refs.CompareAndSwap(refs, refs+1) {
			return true
		}
	}
}

// leave ends what enter began. Any goroutine.
func (d *descriptor) leave() {
	if d.refs.Add(^uint32(0)) == fdPublished|fdClosed {
		_ = sys.Close(int(d.fd))
	}
}

// close closes the descriptor, now or when the last who uses it has left.
func (d *descriptor) close() {
	if d.refs.Or(fdClosed)&^fdPublished == 0 {
		_ = sys.Close(int(d.fd))
	}
}

// described is a channel that has a descriptor.
type described interface {
	descriptor() *descriptor
}

// SyscallConn returns the descriptor of a channel, for options that package sockopt
// does not have and for calls that leave its state alone. To read from it, to write
// to it or to close it breaks the channel; RawConn's own Read and Write fail.
//
// Control calls its function at once, on the calling goroutine; the descriptor
// stays open until it has returned. It fails with an error that matches
// pipeline.ErrClosed when the channel has closed, and with one that matches
// syscall.ENOTCONN while a dialed channel has no connection, which includes its Init:
// use Config.Control for those. Channels without a descriptor have an error that
// matches errors.ErrUnsupported.
//
// Any goroutine.
func SyscallConn(ch pipeline.Channel) (syscall.RawConn, error) {
	d, ok := ch.(described)
	if !ok {
		return nil, fmt.Errorf("transport: %T has no descriptor: %w", ch, errors.ErrUnsupported)
	}
	return &rawChannel{ch, d.descriptor()}, nil
}

type rawChannel struct {
	ch pipeline.Channel
	d  *descriptor
}

func (r *rawChannel) Control(f func(fd uintptr)) error {
	if err := r.ch.CloseReason(); err != nil {
		return err // while an Op or the kernel may still need the descriptor
	}
	if !r.d.enter() {
		if err := r.ch.CloseReason(); err != nil {
			return err
		}
		return syscall.ENOTCONN
	}
	defer r.d.leave()
	f(uintptr(r.d.fd))
	return nil
}

func (r *rawChannel) Read(func(uintptr) bool) error  { return errRawIO }
func (r *rawChannel) Write(func(uintptr) bool) error { return errRawIO }

var errRawIO = fmt.Errorf("transport: a channel's descriptor is read and written by its loop: %w", errors.ErrUnsupported)

// rawSocket is a socket that is not a channel's yet, for Config.Control.
type rawSocket int

func (r rawSocket) Control(f func(fd uintptr)) error {
	f(uintptr(r))
	return nil
}

func (r rawSocket) Read(func(uintptr) bool) error  { return errRawIO }
func (r rawSocket) Write(func(uintptr) bool) error { return errRawIO }

func (s *stream) descriptor() *descriptor   { return &s.fd.descriptor }
func (s *dgram) descriptor() *descriptor    { return &s.fd.descriptor }
func (l *listener) descriptor() *descriptor { return &l.fd }
