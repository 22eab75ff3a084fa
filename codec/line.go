package codec

import (
	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
)

// Line frames messages by line ends, "\n" or "\r\n". It is added to a pipeline like
// a handler; inbound bytes become one *buffer.Buf a line, without its end. Netty:
// LineBasedFrameDecoder.
//
// A line of more than Max bytes ends the stream with ErrFrameTooLong, as [Decoding]
// says, as soon as the byte too many is there. A last line without an end is
// dropped.
type Line struct {
	Max     int  // longest line accepted, without its end; 0 means 8 KiB
	KeepEnd bool // leave the line end on the line
}

// NewHandler implements [pipeline.Maker].
func (l Line) NewHandler() any {
	if l.Max < 0 {
		panic("codec: Line with a negative Max")
	}
	if l.Max == 0 {
		l.Max = 8 << 10
	}
	return &decoding{d: &lineDecoder{cfg: l}}
}

// lineDecoder is the Decoder of a Line.
type lineDecoder struct {
	cfg  Line
	seen int // bytes from ReaderIndex on that hold no line feed
}

// Decode implements [Decoder].
func (d *lineDecoder) Decode(c *pipeline.Context, in *buffer.Buf) (any, error) {
	end := in.IndexByte('\n', d.seen)
	found := end >= 0
	if !found {
		end = in.Len()
	}
	n := end
	// A carriage return in front belongs to the line end, or may turn out to. It is
	// looked for only in the bytes of this line.
	if n > 0 && in.Uint8At(in.ReaderIndex()+n-1) == '\r' {
		n--
	}
	if n > d.cfg.Max {
		return nil, &FrameError{int64(n), int64(d.cfg.Max), ErrFrameTooLong}
	}
	if !found {
		d.seen = end
		return nil, nil
	}
	d.seen = 0
	if d.cfg.KeepEnd {
		return take(c, in, end+1, 0), nil
	}
	line := take(c, in, n, 0)
	in.Skip(end + 1 - n)
	return line, nil
}
