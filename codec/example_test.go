package codec_test

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

func ExampleLine() {
	ch := embedded.New(codec.Line{Max: 80})
	ch.WriteInbound(buffer.FromString("one\ntw"))
	ch.WriteInbound(buffer.FromString("o\n"))
	for range 2 {
		b := ch.ReadInbound().(*buffer.Buf)
		fmt.Println(b.ReadString(b.Len()))
		b.Release()
	}
	ch.Finish()
	// Output:
	// one
	// two
}

func ExampleLengthField() {
	ch := embedded.New(
		codec.LengthField{Width: 2, Max: 1000},
		pipeline.On(func(c *pipeline.Context, frame *buffer.Buf) error { c.Write(frame); return nil }),
	)
	ch.WriteInbound(buffer.FromString("\x00\x05hello"))
	b := ch.ReadOutbound().(*buffer.Buf)
	fmt.Printf("%q\n", b.ReadString(b.Len()))
	b.Release()
	ch.Finish()
	// Output: "\x00\x05hello"
}

// netstring decodes "5:hello," as hello.
type netstring struct{}

func (netstring) Decode(c *pipeline.Context, in *buffer.Buf) (any, error) {
	colon := in.IndexByte(':', 0)
	switch {
	case colon < 0 && in.Len() <= 5:
		return nil, nil // not all of the length yet
	case colon < 0 || colon > 5:
		return nil, errors.New("netstring: no length")
	}
	n, err := strconv.ParseUint(string(in.Peek(colon)), 10, 16)
	if err != nil {
		return nil, err
	}
	if in.Len() < colon+1+int(n)+1 {
		return nil, nil
	}
	in.Skip(colon + 1)
	s := in.ReadString(int(n))
	if in.ReadUint8() != ',' {
		return nil, errors.New("netstring: no comma")
	}
	return s, nil
}

func ExampleDecoding() {
	ch := embedded.New(
		codec.Decoding{New: func() codec.Decoder { return netstring{} }, Max: 1000},
		pipeline.On(func(c *pipeline.Context, s string) error { fmt.Println(s); return nil }),
		pipeline.OnError(func(c *pipeline.Context, err error) { fmt.Println(err) }),
	)
	ch.WriteInbound(buffer.FromString("5:hel"))
	ch.WriteInbound(buffer.FromString("lo,5:world,3:one!"))
	fmt.Println("open:", ch.Open())
	ch.Finish()
	// Output:
	// hello
	// world
	// netstring: no comma
	// open: false
}

func ExampleEncode() {
	type sample struct {
		sensor uint16
		value  uint32
	}
	ch := embedded.New(codec.Encode(func(c *pipeline.Context, s sample, out *buffer.Buf) error {
		out.WriteUint16(s.sensor)
		out.WriteUint32(s.value)
		return nil
	}))
	ch.WriteOutbound(sample{1, 0x414243})
	b := ch.ReadOutbound().(*buffer.Buf)
	fmt.Printf("%q\n", b.ReadString(b.Len()))
	b.Release()
	ch.Finish()
	// Output: "\x00\x01\x00ABC"
}
