package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"go.uber.org/zap"
)

// session answers the requests of one connection, one at a time and in order.
//
// While requests wait for their turn nothing is read, so that what waits is never
// more than one read has brought: a client can send as many as it likes and uses no
// memory here. All of it runs on the connection's loop, except what is offloaded.
type session struct {
	root *os.Root
	load loader
	log  *zap.Logger

	waiting bytes.Buffer // requests, each with a line feed behind it
	path    string       // of the answer under way
	busy    bool         // an answer is under way
	looping bool         // in next
	ended   bool         // the client sends no more
	tooLong bool         // the last line is too long: say so and close

	closing []*eventloop.Promise // closes that wait for the answers
}

// HandleRead takes a request.
func (s *session) HandleRead(c *pipeline.Context, msg any) error {
	line := msg.(*buffer.Buf)
	s.waiting.Write(line.Window())
	s.waiting.WriteByte('\n')
	line.Release()
	s.next(c)
	return nil
}

// HandleWritability goes on when the client has read what it was sent.
func (s *session) HandleWritability(c *pipeline.Context) error {
	s.next(c)
	return nil
}

// next answers requests, until an answer takes its time, or the client does.
func (s *session) next(c *pipeline.Context) {
	ch := c.Channel()
	if s.looping || !ch.Open() {
		return
	}
	s.looping = true
	for !s.busy && ch.Writable() && s.waiting.Len() > 0 {
		line, _ := s.waiting.ReadString('\n')
		s.answer(c, strings.TrimSuffix(line, "\n"))
	}
	s.looping = false

	if s.waiting.Len() == 0 && s.waiting.Cap() > maxLine {
		s.waiting = bytes.Buffer{}
	}
	ch.SetAutoRead(s.waiting.Len() == 0 && s.closing == nil)
	if s.busy || s.waiting.Len() > 0 {
		return
	}
	switch {
	case s.closing != nil:
		if s.tooLong {
			s.refuse(c, "line too long")
		}
		s.forwardClose(c)
	case s.ended:
		c.Close()
	}
}

// answer begins to answer a request.
func (s *session) answer(c *pipeline.Context, line string) {
	req, err := parse(line)
	if err != nil {
		s.refuse(c, err.(reason))
		return
	}
	s.busy, s.path = true, req.path
	c.Offload(func(context.Context) (any, error) {
		return open(s.root, req)
	}, func(v any, err error) {
		if err == nil {
			s.send(c, v.(*span))
			return
		}
		why, ok := err.(reason)
		if !ok {
			s.fail(c, err)
			return
		}
		s.refuse(c, why)
		s.answered(c)
	})
}

// refuse says why there is no file.
func (s *session) refuse(c *pipeline.Context, why reason) { c.Write("ERR: " + string(why) + "\r\n") }

// send sends a file, which it closes in the end.
func (s *session) send(c *pipeline.Context, f *span) {
	c.Write(fmt.Sprintf("OK: %d\r\n", f.size))
	if s.load != nil {
		s.sendPieces(c, f)
		return
	}
	c.WriteThen(buffer.NewFileRegion(f.File, f.off, f.size), func(err error) {
		if err == nil { // else the connection is over, and HandleError knows why
			s.answered(c)
		}
	})
}

// sendPieces sends a file piece by piece: each is loaded off the loop when the one
// before has left.
func (s *session) sendPieces(c *pipeline.Context, f *span) {
	if f.size == 0 {
		f.Close()
		s.answered(c)
		return
	}
	c.Offload(func(context.Context) (any, error) {
		return s.load(f, c.Alloc())
	}, func(v any, err error) {
		if err != nil {
			f.Close()
			s.fail(c, err)
			return
		}
		piece := v.(*buffer.Buf)
		f.off += int64(piece.Len())
		f.size -= int64(piece.Len())
		c.WriteThen(piece, func(err error) {
			if err != nil {
				f.Close()
				return
			}
			s.sendPieces(c, f)
		})
	})
}

// answered goes on after an answer.
func (s *session) answered(c *pipeline.Context) {
	s.busy = false
	s.next(c)
}

// fail gives up a connection on which an answer cannot be given, or not to its end:
// the client has been promised LENGTH bytes and can tell by the close.
func (s *session) fail(c *pipeline.Context, err error) {
	if c.Channel().Open() {
		s.log.Error("answer broken off", zap.Stringer("client", c.Channel().RemoteAddr()), zap.String("path", s.path), zap.Error(err))
		c.Close()
	}
}

// HandleEvent learns that the client sends no more.
func (s *session) HandleEvent(c *pipeline.Context, ev any) error {
	if _, ok := ev.(pipeline.InputShutdown); ok {
		s.ended = true
		s.next(c)
		return nil
	}
	c.FireEvent(ev)
	return nil
}

// HandleClose lets the answers that are owed go first: the server is ending, or the
// decoder gives up a client that sends too long a line.
func (s *session) HandleClose(c *pipeline.Context, p *eventloop.Promise) error {
	s.closing = append(s.closing, p)
	s.next(c)
	return nil
}

func (s *session) forwardClose(c *pipeline.Context) {
	for _, p := range s.closing {
		c.ForwardClose(p)
	}
	s.closing = nil
}

// HandleInactive has nobody wait for a close any longer.
func (s *session) HandleInactive(c *pipeline.Context) error {
	s.forwardClose(c)
	return nil
}

// HandleError logs what goes wrong. The connection is closed already, or is about to
// be.
func (s *session) HandleError(c *pipeline.Context, err error) {
	if errors.Is(err, codec.ErrFrameTooLong) {
		s.tooLong = true
		return
	}
	s.log.Error("connection failed", zap.Stringer("client", c.Channel().RemoteAddr()), zap.String("path", s.path), zap.Error(err))
}
