package codec_test

import (
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// A few bytes of a message wait without a Buf, whatever comes next.
func TestFewBytesWaitWithoutABuf(t *testing.T) {
	newChannel := func() (*embedded.Channel, int64) {
		before := buffer.Live()
		ch := embedded.New(codec.LengthField{Width: 4})
		ch.WriteInbound(buffer.FromString("\x00\x00\x00\x03a"))
		if n := buffer.Live() - before; n != 0 {
			t.Errorf("live buffers while 5 bytes wait: got %d, want 0", n)
		}
		return ch, before
	}
	end := func(ch *embedded.Channel, before int64) {
		t.Helper()
		if err := ch.Finish(); err != nil {
			t.Errorf("Finish: %v", err)
		}
		if n := buffer.Live() - before; n != 0 {
			t.Errorf("live buffers at the end: got %d, want 0", n)
		}
	}
	t.Run("the rest", func(t *testing.T) {
		ch, before := newChannel()
		ch.WriteInbound(buffer.FromString("bc\x00\x00\x00\x01d\x00"))
		for _, want := range []string{"abc", "d"} {
			b, ok := ch.ReadInbound().(*buffer.Buf)
			if !ok {
				t.Fatalf("no frame, want %q", want)
			}
			if got := b.ReadString(b.Len()); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			b.Release()
		}
		end(ch, before)
	})
	t.Run("the end", func(t *testing.T) { end(newChannel()) })
	t.Run("removal", func(t *testing.T) {
		ch, before := newChannel()
		if err := ch.Pipeline().Remove("LengthField#0"); err != nil {
			t.Fatal(err)
		}
		b, ok := ch.ReadInbound().(*buffer.Buf)
		if !ok {
			t.Fatal("what waited was not passed on")
		}
		if got, want := b.ReadString(b.Len()), "\x00\x00\x00\x03a"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		b.Release()
		end(ch, before)
	})
}
