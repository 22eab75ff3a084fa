package codec_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/codec/codectest"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

func TestLine(t *testing.T) {
	long := strings.Repeat("0123456789", 80)
	tests := []struct {
		name    string
		cfg     codec.Line
		in      string
		want    []string
		wantErr error
	}{
		{name: "nothing"},
		{name: "line feeds", in: "one\ntwo\n", want: []string{"one", "two"}},
		{name: "with carriage returns", in: "one\r\ntwo\r\n", want: []string{"one", "two"}},
		{name: "mixed", in: "one\ntwo\r\nthree\n", want: []string{"one", "two", "three"}},
		{name: "empty lines", in: "\n\r\n\n", want: []string{"", "", ""}},
		{name: "unfinished line", in: "one\ntwo", want: []string{"one"}},
		{name: "unfinished line end", in: "one\ntwo\r", want: []string{"one"}},
		{name: "carriage return inside", in: "a\rb\n\rc\n", want: []string{"a\rb", "\rc"}},
		{name: "only one carriage return belongs to the end", in: "a\r\r\n", want: []string{"a\r"}},
		{name: "large lines", in: long + "\n" + long + "\r\n", want: []string{long, long}},
		{name: "ends kept", cfg: codec.Line{KeepEnd: true}, in: "one\ntwo\r\n\n", want: []string{"one\n", "two\r\n", "\n"}},
		{name: "large lines, ends kept", cfg: codec.Line{KeepEnd: true}, in: long + "\n" + long + "\r\n", want: []string{long + "\n", long + "\r\n"}},

		{name: "as long as allowed", cfg: codec.Line{Max: 3}, in: "abc\nabc\r\n", want: []string{"abc", "abc"}},
		{name: "a byte too long", cfg: codec.Line{Max: 3}, in: "abc\nabcd\nabc\n", want: []string{"abc"}, wantErr: codec.ErrFrameTooLong},
		{name: "a byte too long with a carriage return", cfg: codec.Line{Max: 3}, in: "abcd\r\n", wantErr: codec.ErrFrameTooLong},
		{name: "too long by a carriage return", cfg: codec.Line{Max: 3}, in: "abc\rd\n", wantErr: codec.ErrFrameTooLong},
		{name: "too long by two carriage returns", cfg: codec.Line{Max: 3}, in: "abc\r\r\n", wantErr: codec.ErrFrameTooLong},
		{name: "too long without an end", cfg: codec.Line{Max: 3}, in: "abcd", wantErr: codec.ErrFrameTooLong},
		{name: "may still end in time", cfg: codec.Line{Max: 3}, in: "abc\r"},
		{name: "the limit is 8 KiB", in: strings.Repeat("x", 8192) + "\r\n" + strings.Repeat("x", 8193), want: []string{strings.Repeat("x", 8192)}, wantErr: codec.ErrFrameTooLong},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			codectest.Verify(t, func() any { return tt.cfg }, tt.in, tt.want, tt.wantErr)
		})
	}
}

// A carriage return that was read before is not part of the line end, though it
// lies just in front of it.
func TestLineDoesNotStepBackOntoReadBytes(t *testing.T) {
	for _, keep := range []bool{false, true} {
		ch := embedded.New(codec.Line{KeepEnd: keep})
		b := buffer.FromString("x\r\nnext\n")
		b.Skip(2)
		ch.WriteInbound(b)
		want := []string{"", "next"}
		if keep {
			want = []string{"\n", "next\n"}
		}
		if got := inbound(ch); len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
			t.Errorf("KeepEnd %v: got %q, want %q", keep, got, want)
		}
		finish(t, ch)
	}
}

// Bytes that were searched are not searched again.
func TestLineSearchesOnlyNewBytes(t *testing.T) {
	ch := embedded.New(codec.Line{})
	// Long enough not to be copied while it waits.
	rest := strings.Repeat("b", 200)
	b := buffer.FromString("a" + rest)
	other := b.Duplicate()
	ch.WriteInbound(b)
	other.SetUint8At(0, '\n') // would be found by a second search
	ch.WriteInbound(buffer.FromString("c\nd\n"))
	if got, want := inbound(ch), []string{"\n" + rest + "c", "d"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	other.Release()
	finish(t, ch)
}

// An answer to the line that is too long leaves before the close that follows it.
func TestLineTooLongIsAnsweredBeforeTheClose(t *testing.T) {
	ch := embedded.New(
		codec.Line{Max: 10},
		pipeline.OnError(func(c *pipeline.Context, err error) {
			if !c.Channel().Open() {
				t.Error("the channel is closed when HandleError is called, want it open")
			}
			c.Write("ERR: line too long\r\n")
		}),
	)
	ch.WriteInbound(buffer.FromString("short\n0123456789X"))
	if got := inbound(ch); len(got) != 1 || got[0] != "short" {
		t.Errorf("got messages %q, want the short line", got)
	}
	if got := outbound(ch); len(got) != 1 || got[0] != "ERR: line too long\r\n" {
		t.Errorf("got %q written, want the answer", got)
	}
	if ch.Open() {
		t.Error("the channel is open after a line that is too long, want it closed")
	}
	finish(t, ch)
}

func TestLineRefusesANegativeLimit(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("got a handler, want a panic")
		}
	}()
	codec.Line{Max: -1}.NewHandler()
}

// However the stream is cut, the lines and the error are the same.
func FuzzLine(f *testing.F) {
	f.Add([]byte("one\r\ntwo\n\r\r\n"), uint8(1), uint8(9))
	f.Add([]byte("0123456789"), uint8(2), uint8(4))
	f.Fuzz(func(t *testing.T, stream []byte, step, shape uint8) {
		same(t, codec.Line{Max: int(shape>>1) + 1, KeepEnd: shape&1 == 1}, stream, int(step)+1)
	})
}
