package buffer

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrOutOfMemory reports that a Pool has reached its limit, or that the system
	// gave it no memory. TryAlloc returns it, Alloc panics with it, each time
	// wrapped in an [Error].
	ErrOutOfMemory = errors.New("out of memory")

	// ErrTooLarge reports a Buf that would have to grow beyond its MaxCap.
	ErrTooLarge = errors.New("larger than the maximum capacity")

	// ErrReadOnly reports a change in place of memory that cannot be written, such
	// as that of a mapped file.
	ErrReadOnly = errors.New("memory is read-only")

	// ErrShort reports a read, or an index, beyond the bytes a Buf holds.
	ErrShort = errors.New("not enough bytes")

	// ErrVarint reports a varint that does not fit its type. Want and Have of the
	// [Error] are bits then: those it has at least, and those of the type.
	ErrVarint = errors.New("varint has too many bits")

	// ErrReleased reports the use of a Buf or FileRegion after its last release.
	// The panic carries it in a [MisuseError].
	ErrReleased = errors.New("used after its last release")

	// ErrTruncated reports that a mapped file is shorter than its mapping, so that
	// the bytes asked for are no longer there.
	ErrTruncated = errors.New("mapped file was truncated")

	// ErrClosed reports the use of a closed Pool.
	ErrClosed = errors.New("pool is closed")

	// ErrInUse reports that a Pool cannot be closed yet.
	ErrInUse = errors.New("pool is in use")
)

// errOwnPart is the cause of a misuse of Append and its like.
var errOwnPart = errors.New("a Buf cannot be a part of itself")

// Error is the error of an operation on a Buf or a Pool. It wraps one of the
// sentinels of this package, or the error of a system call. Operations that
// return no error panic with a *Error.
type Error struct {
	Op   string // what was tried, such as "read" or "alloc"
	Want int    // bytes asked for, or the index
	Have int    // bytes there were, or the bound that was crossed
	Err  error  // cause
}

func (e *Error) Error() string {
	return fmt.Sprintf("buffer: %s: %v (want %d, have %d)", e.Op, e.Err, e.Want, e.Have)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// MisuseError is what a Buf, FileRegion or Cache panics with when it is used
// against its ownership rules: released too often, used after its last release, or
// touched by a goroutine that does not own it. It is a mistake in the program.
type MisuseError struct {
	Op  string // the call that found it
	Err error  // cause; ErrReleased for a use after the last release

	// Known at level LeakAll, under CheckLeaks, and when assertions are on.
	Born    string   // stack of the allocation
	Died    string   // stack of the last release
	Touches []string // the handlers it was given to, the first and the last 4 of them; not with assertions alone
}

func (e *MisuseError) Error() string {
	s := fmt.Sprintf("buffer: %s: %v", e.Op, e.Err)
	if e.Born != "" {
		s += "\nallocated at:\n" + e.Born
	}
	if e.Died != "" {
		s += "\nreleased at:\n" + e.Died
	}
	if len(e.Touches) > 0 {
		s += "\ngiven to: " + strings.Join(e.Touches, ", ")
	}
	return s
}

// Unwrap returns the cause.
func (e *MisuseError) Unwrap() error { return e.Err }
