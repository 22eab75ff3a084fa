package codec_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

func TestStringDecoder(t *testing.T) {
	ch := embedded.New(codec.Line{}, codec.StringDecoder{})
	ch.WriteInbound(buffer.FromString("one\n\ntwo\n"), 42)
	var got []any
	for m := ch.ReadInbound(); m != nil; m = ch.ReadInbound() {
		got = append(got, m)
	}
	if want := []any{"one", "", "two", 42}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	finish(t, ch)
}

func TestStringEncoder(t *testing.T) {
	ch := embedded.New(codec.StringEncoder{})
	var done []error
	ch.Do(func() { ch.WriteThen("hello", func(err error) { done = append(done, err) }) })
	b, ok := ch.ReadOutbound().(*buffer.Buf)
	if !ok || text(b) != "hello" {
		t.Fatalf("got %v, want a Buf with hello", b)
	}
	b.Release()
	if len(done) != 1 || done[0] != nil {
		t.Errorf("got completions %v, want nil once", done)
	}
	ch.WriteOutbound(42)
	if got := ch.ReadOutbound(); got != 42 {
		t.Errorf("got %v, want 42 as it was written", got)
	}
	finish(t, ch)
}

type point struct{ x, y uint16 }

var errOdd = errors.New("odd")

func encodePoint(_ *pipeline.Context, p point, out *buffer.Buf) error {
	out.WriteUint16(p.x)
	if p.x%2 == 1 {
		return errOdd
	}
	out.WriteUint16(p.y)
	return nil
}

func TestEncode(t *testing.T) {
	ch := embedded.New(codec.Encode(encodePoint))
	var done []error
	note := func(err error) { done = append(done, err) }
	ch.Do(func() {
		ch.WriteThen(point{0x4142, 0x4344}, note)
		ch.WriteThen(point{1, 2}, note)
		ch.Write("passes")
	})
	if got, want := outbound(ch), []string{"ABCD", "passes"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	slices.SortFunc(done, func(a, b error) int { return map[bool]int{true: 1, false: -1}[a != nil] })
	if len(done) != 2 || done[0] != nil || done[1] != errOdd {
		t.Errorf("got completions %v, want nil and %v", done, errOdd)
	}
	finish(t, ch)
}

// The message is released after it was encoded, also when that fails, and nothing
// of a failed one is written.
func TestEncodeReleasesTheMessage(t *testing.T) {
	ch := embedded.New(codec.Encode(func(_ *pipeline.Context, b *buffer.Buf, out *buffer.Buf) error {
		if b.Len() == 0 {
			return errOdd
		}
		for b.Len() > 0 {
			out.WriteUint8(b.ReadUint8() ^ 1)
		}
		return nil
	}))
	ch.WriteOutbound(buffer.FromString("A@C"), buffer.FromString(""))
	if got := outbound(ch); len(got) != 1 || got[0] != "@AB" {
		t.Errorf("got %q, want @AB", got)
	}
	if err := ch.CheckError(); err != errOdd {
		t.Errorf("got error %v, want %v", err, errOdd)
	}
	finish(t, ch)
}

// An Encode whose function panics leaves nothing behind.
func TestEncodePanics(t *testing.T) {
	before := buffer.Live()
	ch := embedded.New(codec.Encode(func(*pipeline.Context, *buffer.Buf, *buffer.Buf) error { panic("no") }))
	ch.WriteOutbound(buffer.FromString("x"))
	if err := ch.CheckError(); err == nil {
		t.Error("got no error, want the panic")
	}
	_ = ch.Finish()
	if n := buffer.Live() - before; n != 0 {
		t.Errorf("live buffers: got %d, want 0", n)
	}
}
