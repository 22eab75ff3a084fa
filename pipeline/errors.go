package pipeline

import (
	"errors"
	"fmt"
	"net"
)

// ErrClosed reports use of a closed channel. It matches net.ErrClosed. A channel
// makes one error that wraps it and the reason when it closes; every later
// operation returns that one.
var ErrClosed error = closedError{}

var (
	// ErrGoexit reports a handler that ended its goroutine by runtime.Goexit. The
	// channel is closed; the loop goes on.
	ErrGoexit = errors.New("pipeline: handler called runtime.Goexit")
	// ErrReset is the reason of a channel closed by Reset.
	ErrReset = errors.New("pipeline: channel reset")
	// ErrOutputShutdown fails a write after CloseWrite.
	ErrOutputShutdown = errors.New("pipeline: sending side closed")
	// ErrNoHandler reports a handler that a pipeline does not have.
	ErrNoHandler = errors.New("pipeline: no such handler")
	// ErrDuplicateName reports a handler's name that is in use.
	ErrDuplicateName = errors.New("pipeline: duplicate handler name")
	// ErrNotHandler reports a value that implements no handler interface, or both
	// forms of one notification.
	ErrNotHandler = errors.New("pipeline: not a handler")
)

type closedError struct{}

func (closedError) Error() string        { return "pipeline: channel closed" }
func (closedError) Is(target error) bool { return target == net.ErrClosed }

// closedBecause is ErrClosed with the reason why.
type closedBecause struct{ reason error }

func (e *closedBecause) Error() string   { return "pipeline: channel closed: " + e.reason.Error() }
func (e *closedBecause) Unwrap() []error { return []error{ErrClosed, e.reason} }

// PanicError is the error of a handler, a callback or an offloaded function that
// panicked.
type PanicError struct {
	Value   any    // what was passed to panic
	Handler string // name of the handler; empty if none was running
	Stack   []byte // of the panicking goroutine, as runtime/debug.Stack
}

func (e *PanicError) Error() string {
	if e.Handler == "" {
		return fmt.Sprintf("pipeline: panic: %v", e.Value)
	}
	return fmt.Sprintf("pipeline: panic in handler %q: %v", e.Handler, e.Value)
}

// Unwrap returns the panic's value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}
