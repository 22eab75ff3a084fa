package sockopt

import (
	"fmt"
	"math"
	"os"
	"syscall"
	"time"

	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// Option is a socket option with a value of type T.
//
// Concurrency: the methods are safe from any goroutine.
type Option[T any] struct {
	name string
	get  func(fd int) (T, error)
	set  func(fd int, v T) error
}

// String returns the name that the manual has for the option.
func (o Option[T]) String() string { return o.name }

// Get returns the value of the option of ch's socket, as the kernel tells it.
func (o Option[T]) Get(ch pipeline.Channel) (T, error) {
	return read(ch, o.name, o.get)
}

// Set changes the option of ch's socket.
func (o Option[T]) Set(ch pipeline.Channel, v T) error {
	c, err := transport.SyscallConn(ch)
	if err == nil {
		err = o.setOn(c, v)
	}
	if err != nil {
		return &transport.OpError{Op: "set " + o.name, Addr: ch.RemoteAddr(), Err: err}
	}
	return nil
}

// SetRaw changes the option of a socket that is not a channel's, in
// transport.Config.Control for one.
func (o Option[T]) SetRaw(c syscall.RawConn, v T) error {
	if err := o.setOn(c, v); err != nil {
		return &transport.OpError{Op: "set " + o.name, Err: err}
	}
	return nil
}

func (o Option[T]) setOn(c syscall.RawConn, v T) (err error) {
	if e := c.Control(func(fd uintptr) { err = o.set(int(fd), v) }); e != nil {
		return e
	}
	return err
}

// read asks the socket of ch for something that is called name.
func read[T any](ch pipeline.Channel, name string, get func(fd int) (T, error)) (v T, err error) {
	c, err := transport.SyscallConn(ch)
	if err == nil {
		if e := c.Control(func(fd uintptr) { v, err = get(int(fd)) }); e != nil {
			err = e
		}
	}
	if err != nil {
		var none T
		return none, &transport.OpError{Op: "get " + name, Addr: ch.RemoteAddr(), Err: err}
	}
	return v, nil
}

// Int returns an option that this package does not have, with a value that is an int
// for the kernel: -1<<31 to 1<<31-1. The name is for errors; level and option are the
// kernel's numbers.
func Int(name string, level, option int) Option[int] {
	return intOption(name, sys.Option{Level: level, Name: option})
}

func intOption(name string, o sys.Option) Option[int] {
	return Option[int]{
		name: name,
		get:  func(fd int) (int, error) { return sys.GetOption(fd, o) },
		set: func(fd, v int) error {
			if int64(v) < math.MinInt32 || int64(v) > math.MaxInt32 {
				return outOfRange(v)
			}
			return sys.SetOption(fd, o, v)
		},
	}
}

func boolOption(name string, o sys.Option) Option[bool] {
	return Option[bool]{
		name: name,
		get: func(fd int) (bool, error) {
			v, err := sys.GetOption(fd, o)
			return v != 0, err
		},
		set: func(fd int, v bool) error {
			n := 0
			if v {
				n = 1
			}
			return sys.SetOption(fd, o, n)
		},
	}
}

// timeOption is an option that counts units, up to the whole of an int.
func timeOption(name string, o sys.Option, unit time.Duration) Option[time.Duration] {
	return Option[time.Duration]{
		name: name,
		get: func(fd int) (time.Duration, error) {
			v, err := sys.GetOption(fd, o)
			return time.Duration(v) * unit, err
		},
		set: func(fd int, v time.Duration) error {
			n := int64(0)
			if v > 0 {
				n = int64((v-1)/unit) + 1
			}
			if v < 0 || n > math.MaxInt32 {
				return outOfRange(v)
			}
			return sys.SetOption(fd, o, int(n))
		},
	}
}

// outOfRange is the error of a value that the kernel cannot even be told.
func outOfRange(v any) error {
	return fmt.Errorf("value %v: %w", v, os.NewSyscallError("setsockopt", syscall.EINVAL))
}
