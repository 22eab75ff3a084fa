package codec

import (
	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// Decoder takes messages out of a stream of bytes. It is run by the handler that
// [Decoding] makes, which keeps what cannot be decoded yet. Netty:
// ByteToMessageDecoder; here one call makes at most one message.
//
// A Decoder must make the same messages however the stream was cut into reads.
// codectest.Verify finds out whether it does.
type Decoder interface {
	// Decode reads the next message from in and returns it, or returns nil when in
	// does not hold all of it yet.
	//
	// The call is repeated as long as it returns a message or reads bytes, so it may
	// take a message in several steps, or skip bytes. Returning nil without having
	// read anything means: not before there are more bytes. A message made without
	// reading is an error, ErrNoProgress.
	//
	// in stays the handler's: Decode must not release, keep or write to it. A message
	// is a copy of bytes, or a Buf with a reference of its own ([buffer.Buf.ReadSlice]),
	// or in itself, when the message is all that is left in it; then in is passed
	// on with its reference.
	//
	// An error ends the decoding, after the message, if there is one with it.
	Decode(c *pipeline.Context, in *buffer.Buf) (msg any, err error)
}

// LastDecoder is a Decoder that wants to know of the end of the stream.
type LastDecoder interface {
	Decoder

	// DecodeLast is called once when the stream has ended, with the bytes that are
	// left, if any, and returns a last message or nil. Otherwise it is like Decode.
	// It is not called after an error, or after the channel was closed from this
	// side.
	DecodeLast(c *pipeline.Context, in *buffer.Buf) (msg any, err error)
}

// Decoding is the configuration of the handler that runs a [Decoder] for a
// channel. It is added to a pipeline like a handler.
//
// The handler decodes *buffer.Buf messages; others pass. Each message is fired
// before the next is decoded, so what a handler does on it, such as removing or
// replacing the decoder, takes effect before the next; once a close has passed
// the decoder it fires no more messages. When the decoder is removed, the bytes
// that are left go on to the next handler as one Buf.
//
// A Decoder's error goes to HandleError of the handlers after it, and then the
// channel is closed; the bytes not decoded are dropped. The close goes through the
// whole pipeline and lets what was written before it leave first: an answer written
// by HandleError reaches the peer. A handler that still has answers to come
// implements [pipeline.CloseHandler] and goes on with the close later.
//
// A message of more than Max bytes is such an error, a FrameError that wraps
// ErrFrameTooLong, whether or not the Decoder has a limit of its own.
//
// A Decoder that holds on to anything implements [pipeline.RemovedHandler] as
// well, and lets go of it there.
type Decoding struct {
	New func() Decoder // makes the decoder of one channel; required
	Max int            // bytes that one message may take, and that are kept for it; 0 means 64 KiB
}

// NewHandler implements [pipeline.Maker].
func (d Decoding) NewHandler() any {
	if d.New == nil || d.Max < 0 {
		panic("codec: Decoding needs New, and no negative Max")
	}
	h := &decoding{d: d.New(), max: d.Max}
	if h.max == 0 {
		h.max = 64 << 10
	}
	return h
}

// slack is by how much the memory held for undecoded bytes may exceed twice their
// number: a small block and its handle.
const slack = 288

// wasteful reports whether n bytes are too few to keep pinned bytes alive for them.
func wasteful(pinned, n int) bool { return pinned > 2*n+slack }

// chunk is how many bytes of a read are copied at least to complete a message that
// began in an earlier one and whose length is not known.
const chunk = 512

// sized is a Decoder of this package that knows how long its messages are.
type sized interface {
	// size returns how many bytes the message under way takes, from ReaderIndex on,
	// as far as is known.
	size() int
}

// phase is where a decoding stands. It only moves forward.
type phase uint8

const (
	decodes phase = iota
	ended         // the stream has ended
	closing       // a close has passed
	failed        // after an error or a panic
)

// decoding is the handler that runs a Decoder.
//
// Bytes that wait for the rest of a message are in. When the rest comes, only as
// much of it is copied to in as that message needs; then the new Buf takes in's
// place. So while two Bufs are at hand, the last ahead bytes of in are also the
// first of next.
//
// Between the reads of two turns a few bytes wait in stash, without a Buf: many
// thousands of connections may have stopped in the middle of a header.
type decoding struct {
	d   Decoder
	max int // bytes for one message; 0 if d sees to that

	in    *buffer.Buf // not yet decoded; nil if there is nothing
	next  *buffer.Buf // what follows; nil except while decoding
	ahead int

	stash   [stashSize]byte
	stashed uint8 // bytes in stash; then in is nil

	queue    []any // came in while decoding: messages and InputShutdown
	phase    phase
	busy     bool // decoding
	normal   bool // the stretch of decoding has come to its end
	received bool // bytes, in this turn
	fired    bool // a message, in this turn
}

// stashSize is up to how many bytes wait without a Buf.
const stashSize = 15

// keep takes a few bytes that wait out of their Buf.
func (h *decoding) keep() {
	in := h.in
	h.stashed = uint8(in.Len())
	in.ReadBytes(h.stash[:h.stashed])
	h.in = nil
	in.Release()
}

// unkeep gives them a Buf again. It reports false, and has failed, if there is no
// memory for it.
func (h *decoding) unkeep(c *pipeline.Context) bool {
	if h.stashed == 0 {
		return true
	}
	b, err := c.Alloc().TryAlloc(int(h.stashed))
	if err != nil {
		h.fail(c, err)
		return false
	}
	b.Write(h.stash[:h.stashed])
	h.in, h.stashed = b, 0
	return true
}

// Held returns how many bytes wait for the rest of their message, and how much
// memory is kept for them. Verify looks at it.
func (h *decoding) Held() (bytes, pinned int) {
	if h.in == nil {
		return int(h.stashed), 0
	}
	return h.in.Len(), h.in.Pinned()
}

// HandleRead implements [pipeline.ReadHandler].
func (h *decoding) HandleRead(c *pipeline.Context, msg any) error {
	if h.busy {
		h.queue = append(h.queue, msg)
		return nil
	}
	h.busy = true
	defer h.leave(c)
	h.unkeep(c)
	h.feed(c, msg)
	h.drain(c)
	h.normal = true
	return nil
}

// leave ends a stretch of decoding. After a panic nothing more is decoded.
func (h *decoding) leave(c *pipeline.Context) {
	h.busy = false
	if !h.normal {
		h.phase = failed
		if c.Removed() {
			h.handOver(c)
		}
	}
	h.normal = false
	if h.phase != decodes {
		h.drop()
	}
}

// drop releases all bytes.
func (h *decoding) drop() {
	h.stashed = 0
	if h.in != nil {
		h.in.Release()
		h.in = nil
	}
	if h.next != nil {
		h.next.Release()
		h.next, h.ahead = nil, 0
	}
	for _, m := range h.queue {
		buffer.Release(m)
	}
	h.queue = nil
}

// feed takes a message, or the end of the input, into account.
func (h *decoding) feed(c *pipeline.Context, msg any) {
	b, ok := msg.(*buffer.Buf)
	switch {
	case !ok:
		if ev, ok := msg.(inputShutdown); ok {
			h.end(c)
			c.FireEvent(pipeline.InputShutdown(ev))
			return
		}
		h.fired = true
		c.FireRead(msg)
	case h.phase != decodes:
		b.Release()
	case h.in == nil:
		h.received = true
		h.in = b
		h.decode(c)
	default:
		h.received = true
		h.next = b
		h.join(c)
	}
}

// inputShutdown is pipeline.InputShutdown in the queue.
type inputShutdown pipeline.InputShutdown

// drain takes up what came in meanwhile, and hands over if the handler was removed.
func (h *decoding) drain(c *pipeline.Context) {
	for len(h.queue) > 0 && !c.Removed() {
		m := h.queue[0]
		h.queue[0] = nil
		h.queue = h.queue[1:]
		h.feed(c, m)
	}
	if len(h.queue) == 0 {
		h.queue = nil
	}
	if c.Removed() {
		h.handOver(c)
	}
}

// decode fires the messages that are in h.in.
//
// Every FireRead runs user code, which may have removed the handler or closed the
// channel when it returns.
func (h *decoding) decode(c *pipeline.Context) {
	for h.in != nil {
		in := h.in
		before := in.Len()
		if before == 0 {
			h.in = nil
			in.Release()
			return
		}
		msg, err := h.d.Decode(c, in)
		took := before - in.Len()
		switch {
		case msg == nil && took == 0 && err == nil:
			if h.max > 0 && before > h.max {
				h.fail(c, &FrameError{int64(before), int64(h.max), ErrFrameTooLong})
			}
			return
		case msg == any(in):
			h.in = nil
			took = before
		}
		if h.next != nil {
			h.advance()
		}
		if msg != nil {
			if took == 0 || h.max > 0 && took > h.max {
				buffer.Release(msg)
				h.fail(c, h.refused(took))
				return
			}
			h.fired = true
			c.FireRead(msg)
			if !c.Channel().Open() && h.phase == decodes {
				h.phase = closing
			}
		}
		if h.phase != decodes {
			return
		}
		if err != nil {
			h.fail(c, err)
			return
		}
		if c.Removed() {
			return
		}
	}
}

// refused returns why a message for which took bytes were read is not accepted.
func (h *decoding) refused(took int) error {
	if took == 0 {
		return ErrNoProgress
	}
	return &FrameError{int64(took), int64(h.max), ErrFrameTooLong}
}

// advance lets next take in's place once what in held before it has been read.
func (h *decoding) advance() {
	left := 0
	if h.in != nil {
		left = h.in.Len()
	}
	if left > h.ahead {
		return
	}
	if h.in != nil {
		h.in.Release()
	}
	h.next.Skip(h.ahead - left)
	h.in, h.next, h.ahead = h.next, nil, 0
}

// join decodes what is in h.in followed by h.next.
func (h *decoding) join(c *pipeline.Context) {
	for h.next != nil {
		have := h.in.Len()
		n := max(have, chunk)
		if d, ok := h.d.(sized); ok {
			n = max(d.size()-have, 1)
		}
		if err := h.copyAhead(c, min(n, h.next.Len()-h.ahead)); err != nil {
			h.fail(c, err)
			return
		}
		h.decode(c)
		if h.phase != decodes || c.Removed() {
			return
		}
	}
}

// copyAhead appends n more bytes of next to in. With the last of them next is done
// with.
func (h *decoding) copyAhead(c *pipeline.Context, n int) error {
	if err := h.room(c, n); err != nil {
		return err
	}
	if w := h.next.Window(); len(w) >= h.ahead+n {
		h.in.Write(w[h.ahead : h.ahead+n])
	} else {
		part := h.next.Slice(h.next.ReaderIndex()+h.ahead, n)
		h.in.WriteBuf(part)
		part.Release()
	}
	if h.ahead += n; h.ahead == h.next.Len() {
		h.next.Release()
		h.next, h.ahead = nil, 0
	}
	return nil
}

// room makes room for n more bytes in h.in: in place if h.in is the only user of
// its memory and does not waste it, else in a new one.
func (h *decoding) room(c *pipeline.Context, n int) error {
	in := h.in
	need := in.Len() + n
	if in.Exclusive() && !wasteful(in.Pinned(), need) {
		if in.Cap()-in.WriterIndex() >= n {
			return nil
		}
		if in.Cap() >= need {
			in.DiscardRead()
			return nil
		}
	}
	return h.move(c, need)
}

// move moves the bytes of h.in to a Buf with room for need, and for half as many
// more if the message is that long: so the cost of a byte stays constant, and the
// memory is not wasted.
func (h *decoding) move(c *pipeline.Context, need int) error {
	size := need + need/2
	if d, ok := h.d.(sized); ok {
		size = max(need, min(size, d.size()))
	}
	b, err := c.Alloc().TryAlloc(size)
	if err != nil {
		return err
	}
	b.WriteBuf(h.in)
	h.in.Release()
	h.in = b
	return nil
}

// fail ends the decoding: the error is told, then the channel closed.
func (h *decoding) fail(c *pipeline.Context, err error) {
	h.phase = failed
	c.FireError(err)
	if ch := c.Channel(); ch.Open() {
		ch.Close()
	}
}

// HandleReadComplete implements [pipeline.ReadCompleteHandler].
func (h *decoding) HandleReadComplete(c *pipeline.Context) error {
	if h.busy {
		return nil
	}
	switch in := h.in; {
	case in == nil:
	case in.Len() <= stashSize:
		h.keep()
	case wasteful(in.Pinned(), in.Len()):
		// Without memory for a copy the bytes stay where they are.
		_ = h.move(c, in.Len())
	}
	again := h.received && !h.fired && h.phase == decodes
	h.received, h.fired = false, false
	if again && !c.Channel().AutoRead() {
		// Who reads by hand waits for a message, and has none: the rest of it has to
		// be asked for.
		c.Read()
	}
	return nil
}

// HandleEvent implements [pipeline.EventHandler].
func (h *decoding) HandleEvent(c *pipeline.Context, ev any) error {
	shut, ok := ev.(pipeline.InputShutdown)
	switch {
	case !ok:
		c.FireEvent(ev)
	case h.busy:
		h.queue = append(h.queue, inputShutdown(shut))
	default:
		h.busy = true
		defer h.leave(c)
		h.unkeep(c)
		h.feed(c, inputShutdown(shut))
		h.drain(c)
		h.normal = true
	}
	return nil
}

// HandleInactive implements [pipeline.InactiveHandler].
func (h *decoding) HandleInactive(c *pipeline.Context) error {
	if h.busy {
		// Only a handler that plays the transport can do that.
		h.phase = max(h.phase, ended)
		return nil
	}
	h.busy = true
	defer h.leave(c)
	h.unkeep(c)
	h.end(c)
	h.drain(c)
	h.normal = true
	return nil
}

// end deals with the end of the stream: what could be decoded has been.
func (h *decoding) end(c *pipeline.Context) {
	if h.phase != decodes {
		return
	}
	h.phase = ended
	d, ok := h.d.(LastDecoder)
	if !ok {
		return
	}
	in := h.in
	if in == nil {
		in = c.Alloc().Alloc(0)
		h.in = in
	}
	msg, err := d.DecodeLast(c, in)
	if msg != nil {
		if msg == any(in) {
			h.in = nil
		}
		c.FireRead(msg)
		c.FireReadComplete()
	}
	if err != nil {
		h.fail(c, err)
	}
}

// HandleClose implements [pipeline.CloseHandler].
func (h *decoding) HandleClose(c *pipeline.Context, p *eventloop.Promise) error {
	if h.phase == decodes {
		h.phase = closing
		if !h.busy {
			h.drop()
		}
	}
	c.ForwardClose(p)
	return nil
}

// HandleRemoved implements [pipeline.RemovedHandler].
func (h *decoding) HandleRemoved(c *pipeline.Context) {
	if !h.busy {
		h.handOver(c)
	}
}

// handOver passes the bytes that are left, and what came in meanwhile, on to the
// next handler: this one has been removed.
func (h *decoding) handOver(c *pipeline.Context) {
	if r, ok := h.d.(pipeline.RemovedHandler); ok {
		r.HandleRemoved(c)
	}
	if h.phase != decodes || !c.Channel().Open() {
		h.phase = max(h.phase, closing)
		h.drop()
		return
	}
	if !h.unkeep(c) {
		return
	}
	if h.next != nil {
		if n := h.next.Len() - h.ahead; n > 0 {
			if err := h.copyAhead(c, n); err != nil {
				h.fail(c, err)
				return
			}
		}
	}
	left, queue := h.in, h.queue
	h.in, h.queue = nil, nil
	passed := false
	if left != nil {
		if left.Len() > 0 {
			c.FireRead(left)
			passed = true
		} else {
			left.Release()
		}
	}
	for _, m := range queue {
		if ev, ok := m.(inputShutdown); ok {
			c.FireEvent(pipeline.InputShutdown(ev))
			continue
		}
		c.FireRead(m)
		passed = true
	}
	if passed {
		c.FireReadComplete()
	}
}
