package main

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
)

// User events, by which main talks to the connections.
type (
	begin struct{} // send
	end   struct{} // send no more, and close when everything is back
)

// conn is the handler of one connection. What it sends is one long stream of known
// bytes, which begins at another place for each connection; so it can check what
// comes back without keeping it, and would notice the bytes of another one.
//
// Everything runs on the connection's loop.
type conn struct {
	load  *load
	stats *stats // of the loop

	out, in int     // where in the stream
	part    int     // bytes of the next message that are back
	sent    []int64 // when the messages under way were sent, in a ring; in ns since load.epoch
	first   int     // the oldest of them
	n       int     // how many

	sending bool
	ended   bool // has been told to end
	failed  bool
}

func (l *load) newConn(ch pipeline.Channel) *conn {
	at := int(ch.ID() * 7919 % uint64(len(l.stream)))
	return &conn{load: l, stats: l.stats[ch.Loop()], out: at, in: at, sent: make([]int64, l.depth)}
}

// HandleEvent begins and ends the sending.
func (h *conn) HandleEvent(c *pipeline.Context, ev any) error {
	switch ev.(type) {
	case begin:
		h.sending = true
		h.send(c, h.load.now())
	case end:
		h.sending, h.ended = false, true
		if h.n == 0 {
			c.Close()
		}
	default:
		c.FireEvent(ev)
	}
	return nil
}

// send sends messages until depth of them are under way.
func (h *conn) send(c *pipeline.Context, now int64) {
	for ; h.sending && h.n < len(h.sent); h.n++ {
		msg := c.Alloc().Alloc(h.load.size)
		for left := h.load.size; left > 0; {
			p := h.load.at(&h.out, left)
			msg.Write(p)
			left -= len(p)
		}
		h.sent[(h.first+h.n)%len(h.sent)] = now
		c.Write(msg)
	}
}

// HandleRead checks what comes back: with -framed a whole message, else any part of
// the stream.
func (h *conn) HandleRead(c *pipeline.Context, msg any) error {
	b := msg.(*buffer.Buf)
	defer b.Release()
	if h.load.framed && b.Len() != h.load.size {
		return fmt.Errorf("mismatch: got a frame of %d bytes, want %d", b.Len(), h.load.size)
	}
	if h.part+b.Len() > h.n*h.load.size {
		return errors.New("mismatch: more came back than was sent")
	}
	for got := range b.Segments {
		for len(got) > 0 {
			want := h.load.at(&h.in, len(got))
			if !bytes.Equal(got[:len(want)], want) {
				return errors.New("mismatch: other bytes came back than were sent")
			}
			got = got[len(want):]
		}
	}
	h.part += b.Len()
	now := h.load.now()
	for ; h.part >= h.load.size; h.part -= h.load.size {
		h.stats.add(time.Duration(now - h.sent[h.first]))
		h.first = (h.first + 1) % len(h.sent)
		h.n--
	}
	h.send(c, now)
	if h.n == 0 {
		c.Close() // the end has been told
	}
	return nil
}

// HandleError gives the connection up.
func (h *conn) HandleError(c *pipeline.Context, err error) {
	h.failed = true
	h.load.fail(err)
	c.Channel().Reset()
}

// HandleInactive is the end, in any case.
func (h *conn) HandleInactive(*pipeline.Context) error {
	if !h.failed && (!h.ended || h.n > 0) {
		h.load.fail(fmt.Errorf("connection closed by the server, %d messages are lost", h.n))
	}
	h.load.all.Done()
	return nil
}
