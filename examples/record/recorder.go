package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
	"go.uber.org/zap"
)

// recorder is the handler of all clients.
type recorder struct {
	dir  string
	sync bool
	log  *zap.Logger
	last atomic.Int64 // number of the last connection
}

// Shareable: what it keeps of a client is in closures.
func (r *recorder) Shareable() {}

func (r *recorder) HandleActive(c *pipeline.Context) error {
	c.Channel().SetAutoRead(false) // nothing is read but what goes to the file
	part := filepath.Join(r.dir, fmt.Sprintf("conn-%d.part", r.last.Add(1)))
	c.Offload(func(context.Context) (any, error) {
		return os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	}, func(v any, err error) {
		if err != nil {
			r.answer(c, part, 0, err)
			return
		}
		file := v.(*os.File)
		receiver := &transport.FileReceiver{Sync: r.sync}
		ended := func(n int64, err error) { r.received(c, file, n, err) }
		if err := receiver.Start(c, file, -1, ended); err != nil {
			ended(0, err)
		}
	})
	return nil
}

// received closes the file, gives it its name if it is complete, and answers.
func (r *recorder) received(c *pipeline.Context, file *os.File, n int64, err error) {
	c.Offload(func(context.Context) (any, error) {
		return nil, r.keep(file, err)
	}, func(_ any, err error) { r.answer(c, file.Name(), n, err) })
}

// keep closes a file that was received, or has failed. It waits for the disk.
func (r *recorder) keep(file *os.File, err error) error {
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	part := file.Name()
	if err := os.Rename(part, part[:len(part)-len(".part")]+".bin"); err != nil || !r.sync {
		return err
	}
	// The new name, too, is to be on the disk.
	dir, err := os.Open(r.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// answer tells the client how it went, and closes.
func (r *recorder) answer(c *pipeline.Context, part string, n int64, err error) {
	if err == nil {
		c.Write(fmt.Sprintf("OK: %d\n", n))
	} else {
		r.log.Warn("not recorded", zap.String("file", part), zap.Int64("bytes", n),
			zap.Stringer("remote", c.Channel().RemoteAddr()), zap.Error(err))
		c.Write("ERR: " + reason(err) + "\n") // dropped if it is the connection that has failed
	}
	c.Close()
}

// reason is what a client is told of err: not where the files are.
func reason(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// HandleError implements pipeline.ErrorHandler: what has ended a connection is logged by
// answer.
func (r *recorder) HandleError(*pipeline.Context, error) {}
