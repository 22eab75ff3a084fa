package main

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
	"go.uber.org/zap"
)

// session answers the requests of one connection, in order: the next one when the
// answer before has been written and the client takes what it was sent.
//
// While requests wait for their turn nothing is read, so that what waits is never
// more than one read has brought: a client can send as many as it likes and uses no
// memory here. All of it runs on the connection's loop, except what is offloaded.
type session struct {
	files *transport.FileCache
	load  loader
	log   *zap.Logger

	waiting bytes.Buffer // requests, each with a line feed behind it
	req     request      // being answered
	busy    bool         // an answer is under way
	looping bool         // in next
	ended   bool         // the client sends no more
	tooLong bool         // the last line is too long: say so and close

	closing []*eventloop.Promise // closes that wait for the answers

	c     *pipeline.Context
	found func(*transport.CachedFile, error) // opened, made once
}

// HandleAdded keeps what every request needs.
func (s *session) HandleAdded(c *pipeline.Context) error {
	s.c, s.found = c, s.opened
	return nil
}

// HandleRead takes a request.
func (s *session) HandleRead(c *pipeline.Context, msg any) error {
	line := msg.(*buffer.Buf)
	_, err := line.WriteTo(&s.waiting)
	line.Release()
	s.waiting.WriteByte('\n')
	s.next(c)
	return err
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
	s.busy, s.req = true, req
	s.files.Open(c, req.path, s.found)
}

// opened goes on when the file of a request is there, or is not.
func (s *session) opened(f *transport.CachedFile, err error) {
	if err == nil {
		if err = s.req.fit(f.Size()); err == nil {
			s.send(s.c, span{f, s.req.off, s.req.size})
			return
		}
		f.Release()
	} else {
		err = refusal(err)
	}
	why, ok := err.(reason)
	if !ok {
		s.fail(s.c, err)
		return
	}
	s.refuse(s.c, why)
	s.answered(s.c)
}

// refuse says why there is no file.
func (s *session) refuse(c *pipeline.Context, why reason) { c.Write("ERR: " + string(why) + "\r\n") }

// send sends a file, which it releases in the end.
func (s *session) send(c *pipeline.Context, f span) {
	head := c.Alloc().Alloc(32)
	head.WriteString("OK: ")
	var digits [20]byte
	head.Write(strconv.AppendInt(digits[:0], f.size, 10))
	head.WriteString("\r\n")
	c.Write(head)
	if s.load != nil {
		s.sendPieces(c, &f)
		return
	}
	// When it cannot be sent the connection is over, and HandleError knows why.
	c.Write(f.file.Region(f.off, f.size))
	f.file.Release()
	s.answered(c)
}

// sendPieces sends a file piece by piece: each is loaded off the loop when the one
// before has left.
func (s *session) sendPieces(c *pipeline.Context, f *span) {
	if f.size == 0 {
		f.file.Release()
		s.answered(c)
		return
	}
	c.Offload(func(context.Context) (any, error) {
		return s.load(f, c.Alloc())
	}, func(v any, err error) {
		if err != nil {
			f.file.Release()
			s.fail(c, err)
			return
		}
		piece := v.(*buffer.Buf)
		f.off += int64(piece.Len())
		f.size -= int64(piece.Len())
		c.WriteThen(piece, func(err error) {
			if err != nil {
				f.file.Release()
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
		s.log.Error("answer broken off", zap.Stringer("client", c.Channel().RemoteAddr()), zap.String("path", s.req.path), zap.Error(err))
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
	s.log.Error("connection failed", zap.Stringer("client", c.Channel().RemoteAddr()), zap.String("path", s.req.path), zap.Error(err))
}
