package codec

import (
	"errors"
	"fmt"
	"math"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// LengthField frames messages by a length in front of each. It is added to a
// pipeline like a handler and works in both directions: inbound bytes become one
// *buffer.Buf a frame, and outbound messages get their length prepended. Netty:
// LengthFieldBasedFrameDecoder and LengthFieldPrepender.
//
// A frame is Offset bytes, the length field, and the payload, whose size is the
// field's value plus Adjustment. A size that is negative or more than Max ends the
// stream, as [Decoding] says, before anything has been allocated for it. An
// unfinished frame at the end of the stream is dropped.
//
// Outbound, Buf, FileRegion, []byte and string messages are payloads; others pass as
// they are. The bytes of a large Buf and those of a region are not copied, and a
// frame that is sent on as it came leaves with the length it came with; the promise
// of a write goes with the payload. A payload too large for the width fails its write
// with ErrFrameTooLong; a region that fails for another reason, its length having
// left, resets the channel. With Offset or Strip set, messages in both directions are
// more than payloads, and what is written passes as it is.
type LengthField struct {
	Width        int  // bytes of the length field: 1, 2, 3, 4 or 8; 0 means 4
	Max          int  // largest payload accepted; 0 means 1 MiB
	Offset       int  // bytes in front of the length field
	Adjustment   int  // added to the field's value to get the payload's size; -Width if the value counts the field itself
	Strip        int  // bytes taken off the front of a frame; 0 means all in front of the payload, -1 none
	LittleEndian bool // byte order of the length field
}

// NewHandler implements [pipeline.Maker].
func (f LengthField) NewHandler() any {
	if f.Width == 0 {
		f.Width = 4
	}
	if f.Max == 0 {
		f.Max = 1 << 20
	}
	h := &lengthHandler{prepends: f.Offset == 0 && f.Strip == 0}
	header := f.Offset + f.Width
	switch {
	case f.Width < 0 || f.Width > 8 || f.Width > 4 && f.Width < 8:
		panic(fmt.Sprintf("codec: LengthField.cfg.Width is %d, not 1, 2, 3, 4 or 8", f.Width))
	case f.Offset < 0 || f.Strip < -1 || f.Max < 0 || header < 0 || f.Max > math.MaxInt32-header:
		panic(fmt.Sprintf("codec: LengthField with impossible sizes: %+v", f))
	}
	switch f.Strip {
	case 0:
		f.Strip = header
	case -1:
		f.Strip = 0
	}
	h.dec = lengthDecoder{cfg: f, header: header, least: int64(max(0, f.Strip-header))}
	h.d = &h.dec
	return h
}

// lengthHandler is the handler of both directions.
type lengthHandler struct {
	decoding
	dec      lengthDecoder
	prepends bool
}

// lengthDecoder is the Decoder of a LengthField with its defaults filled in.
type lengthDecoder struct {
	cfg    LengthField
	header int   // Offset + Width
	least  int64 // smallest payload: what is stripped must be there
	frame  int   // size of the frame under way; 0 until its header is there
}

func (d *lengthDecoder) size() int { return max(d.header, d.frame) }

// Decode implements [Decoder].
func (d *lengthDecoder) Decode(c *pipeline.Context, in *buffer.Buf) (any, error) {
	n := d.frame
	if n == 0 {
		if in.Len() < d.header {
			return nil, nil
		}
		var err error
		if n, err = d.measure(in); err != nil {
			return nil, err
		}
	}
	if in.Len() < n {
		d.frame = n
		return nil, nil
	}
	d.frame = 0
	return take(c, in, n, d.cfg.Strip), nil
}

// measure returns the size of the frame whose header in begins with.
func (d *lengthDecoder) measure(in *buffer.Buf) (int, error) {
	value := d.value(in, in.ReaderIndex()+d.cfg.Offset)
	payload := value + int64(d.cfg.Adjustment) // may overflow, and is negative then
	if value < 0 || payload < d.least || payload > int64(d.cfg.Max) {
		return 0, d.refused(value)
	}
	return d.header + int(payload), nil
}

// refused returns what is wrong with the value of a length field.
func (d *lengthDecoder) refused(value int64) error {
	e := &FrameError{value, int64(d.cfg.Max), ErrCorruptedFrame}
	if value < 0 {
		return e
	}
	if adjust := int64(d.cfg.Adjustment); value <= math.MaxInt64-adjust || adjust < 0 {
		e.Length += adjust
	}
	if e.Length > e.Max {
		e.Err = ErrFrameTooLong
	}
	return e
}

// value returns the value of the length field at index i.
func (d *lengthDecoder) value(in *buffer.Buf, i int) int64 {
	if d.cfg.LittleEndian {
		switch d.cfg.Width {
		case 1:
			return int64(in.Uint8At(i))
		case 2:
			return int64(in.Uint16AtLE(i))
		case 3:
			return int64(in.Uint16AtLE(i)) | int64(in.Uint8At(i+2))<<16
		case 4:
			return int64(in.Uint32AtLE(i))
		default:
			return int64(in.Uint64AtLE(i))
		}
	}
	switch d.cfg.Width {
	case 1:
		return int64(in.Uint8At(i))
	case 2:
		return int64(in.Uint16At(i))
	case 3:
		return int64(in.Uint16At(i))<<8 | int64(in.Uint8At(i+2))
	case 4:
		return int64(in.Uint32At(i))
	default:
		return int64(in.Uint64At(i))
	}
}

// copyFrame is up to how many bytes a frame is copied, when it is not alone in its
// memory: that takes no longer than to make a slice, and does not keep the memory
// of its neighbours.
const copyFrame = 512

// take returns the next n bytes of in as a message, the first skip of them read: in
// itself, a copy or a slice.
func take(c *pipeline.Context, in *buffer.Buf, n, skip int) *buffer.Buf {
	b := in
	switch {
	case in.Len() == n && (n > copyFrame || !wasteful(in.Pinned(), n)):
	case n > copyFrame:
		b = in.ReadSlice(n)
	default:
		var err error
		if b, err = c.Alloc().TryAlloc(n); err != nil {
			b = in.ReadSlice(n)
			break
		}
		b.Write(in.Next(n))
	}
	b.Skip(skip)
	return b
}

// joinBody is up to how many bytes a payload is copied to be one message with its
// length. It would be copied anyway, together with its neighbours.
const joinBody = 256

// HandleWrite implements [pipeline.WriteHandler].
func (h *lengthHandler) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	if !h.prepends {
		c.ForwardWrite(msg, p)
		return nil
	}
	switch m := msg.(type) {
	case *buffer.Buf:
		return h.writeBuf(c, m, p)
	case *buffer.FileRegion:
		return h.writeBehind(c, m, m.Remaining(), whole(c, p))
	case []byte:
		return writeFramed(h, c, m, p)
	case string:
		return writeFramed(h, c, m, p)
	}
	c.ForwardWrite(msg, p)
	return nil
}

// writeBuf writes b with its length in front.
func (h *lengthHandler) writeBuf(c *pipeline.Context, b *buffer.Buf, p *eventloop.Promise) error {
	n, width := b.Len(), h.dec.cfg.Width
	if i := b.ReaderIndex() - width; i >= 0 && b.Refs() == 1 && h.dec.value(b, i) == int64(n)-int64(h.dec.cfg.Adjustment) {
		// The length is there already: b is a frame that is sent on as it came.
		b.Unread(width)
		c.ForwardWrite(b, p)
		return nil
	}
	if n > joinBody {
		return h.writeBehind(c, b, int64(n), p)
	}
	framed, err := h.prefix(c, int64(n), n)
	if err == nil {
		framed.WriteBuf(b)
	}
	b.Release()
	if err != nil {
		return err
	}
	c.ForwardWrite(framed, p)
	return nil
}

// writeBehind writes a length of n and then msg.
func (h *lengthHandler) writeBehind(c *pipeline.Context, msg any, n int64, p *eventloop.Promise) error {
	head, err := h.prefix(c, n, 0)
	if err != nil {
		buffer.Release(msg)
		return err
	}
	c.ForwardWrite(head, nil)
	c.ForwardWrite(msg, p)
	return nil
}

// whole returns the promise of a payload that may be refused when its length has been
// written already. Then the peer would take what follows for the payload, so the
// channel is reset.
func whole(c *pipeline.Context, p *eventloop.Promise) *eventloop.Promise {
	w := eventloop.NewPromise(c.Loop())
	w.Then(func(err error) {
		switch {
		case err == nil:
			p.Complete(nil)
		case errors.Is(err, pipeline.ErrClosed), errors.Is(err, pipeline.ErrOutputShutdown):
			p.Complete(err) // as the length was
		default:
			c.Pipeline().FailWrite(p, err)
			c.Channel().Reset()
		}
	})
	return w
}

// writeFramed writes v, which would be copied anyway, together with its length.
func writeFramed[T []byte | string](h *lengthHandler, c *pipeline.Context, v T, p *eventloop.Promise) error {
	b, err := h.prefix(c, int64(len(v)), len(v))
	if err != nil {
		return err
	}
	b.WriteString(string(v))
	c.ForwardWrite(b, p)
	return nil
}

// prefix returns the length field of a payload of n bytes, in a Buf with room for
// more.
func (h *lengthHandler) prefix(c *pipeline.Context, n int64, room int) (*buffer.Buf, error) {
	f := &h.dec.cfg
	v := n - int64(f.Adjustment)
	most := int64(math.MaxInt64)
	if f.Width < 8 {
		most = 1<<(8*f.Width) - 1
	}
	if v > most {
		return nil, &FrameError{n, most + int64(f.Adjustment), ErrFrameTooLong}
	}
	if v < 0 {
		return nil, &FrameError{n, most + int64(f.Adjustment), ErrCorruptedFrame}
	}
	b, err := c.Alloc().TryAlloc(f.Width + room)
	if err != nil {
		return nil, err
	}
	switch {
	case f.Width == 1:
		b.WriteUint8(uint8(v))
	case f.Width == 2 && f.LittleEndian:
		b.WriteUint16LE(uint16(v))
	case f.Width == 2:
		b.WriteUint16(uint16(v))
	case f.Width == 3 && f.LittleEndian:
		b.WriteUint16LE(uint16(v))
		b.WriteUint8(uint8(v >> 16))
	case f.Width == 3:
		b.WriteUint16(uint16(v >> 8))
		b.WriteUint8(uint8(v))
	case f.Width == 4 && f.LittleEndian:
		b.WriteUint32LE(uint32(v))
	case f.Width == 4:
		b.WriteUint32(uint32(v))
	case f.LittleEndian:
		b.WriteUint64LE(uint64(v))
	default:
		b.WriteUint64(uint64(v))
	}
	return b, nil
}
