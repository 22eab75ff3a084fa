package codec_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/codec/codectest"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// decoderFunc is a Decoder without state.
type decoderFunc func(c *pipeline.Context, in *buffer.Buf) (any, error)

func (f decoderFunc) Decode(c *pipeline.Context, in *buffer.Buf) (any, error) { return f(c, in) }

// lastDecoder is one with an end.
type lastDecoder struct {
	decoderFunc
	last    decoderFunc
	removed func()
}

func (d lastDecoder) DecodeLast(c *pipeline.Context, in *buffer.Buf) (any, error) {
	return d.last(c, in)
}

func (d lastDecoder) HandleRemoved(*pipeline.Context) {
	if d.removed != nil {
		d.removed()
	}
}

func decoding(d codec.Decoder) codec.Decoding {
	return codec.Decoding{New: func() codec.Decoder { return d }}
}

// pairs makes a string of every two bytes.
func pairs(_ *pipeline.Context, in *buffer.Buf) (any, error) {
	if in.Len() < 2 {
		return nil, nil
	}
	return in.ReadString(2), nil
}

// trace is a handler that records what reaches it, and does what it is told on it.
type trace struct {
	got []string
	on  map[string]func(c *pipeline.Context)
}

func (h *trace) note(c *pipeline.Context, s string) {
	h.got = append(h.got, s)
	if f := h.on[s]; f != nil {
		f(c)
	}
}

func (h *trace) HandleRead(c *pipeline.Context, msg any) error {
	s := text(msg)
	buffer.Release(msg)
	h.note(c, s)
	return nil
}

func (h *trace) HandleReadComplete(c *pipeline.Context) error { h.note(c, "complete"); return nil }
func (h *trace) HandleInactive(c *pipeline.Context) error     { h.note(c, "inactive"); return nil }
func (h *trace) HandleError(c *pipeline.Context, err error)   { h.note(c, "error: "+err.Error()) }

func (h *trace) HandleEvent(c *pipeline.Context, ev any) error {
	h.note(c, fmt.Sprintf("%T", ev))
	return nil
}

func (h *trace) check(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(h.got, want) {
		t.Errorf("got %q, want %q", h.got, want)
	}
}

func TestDecodingVerified(t *testing.T) {
	tests := []struct {
		name    string
		d       func() codec.Decoder
		max     int
		in      string
		want    []string
		wantErr error
	}{
		{name: "strings", d: func() codec.Decoder { return decoderFunc(pairs) }, in: "aabbc", want: []string{"aa", "bb"}},
		{name: "netstrings", d: func() codec.Decoder { return netstring{} }, in: "0:,3:abc,12:hello, world,", want: []string{"", "abc", "hello, world"}},
		{name: "bytes are skipped", d: func() codec.Decoder { return decoderFunc(skipping) }, in: "..a...b.", want: []string{"a", "b"}},
		{name: "in steps", d: func() codec.Decoder { return &stepping{} }, in: "2ab0" + "9123456789", want: []string{"ab", "", "123456789"}},
		{name: "with an end", d: func() codec.Decoder { return lastDecoder{decoderFunc: pairs, last: rest} }, in: "aabbc", want: []string{"aa", "bb", "rest c"}},
		{name: "with an empty end", d: func() codec.Decoder { return lastDecoder{decoderFunc: pairs, last: rest} }, in: "aabb", want: []string{"aa", "bb", "rest "}},
		{name: "an error at the end", d: func() codec.Decoder {
			return lastDecoder{decoderFunc: pairs, last: func(*pipeline.Context, *buffer.Buf) (any, error) { return "last", errOdd }}
		}, in: "aabbc", want: []string{"aa", "bb", "last"}, wantErr: errOdd},
		{name: "a long message", d: func() codec.Decoder { return netstring{} }, in: "5000:" + strings.Repeat("x", 5000) + ",1:y,", want: []string{strings.Repeat("x", 5000), "y"}},
		{name: "as long as allowed", max: 6, d: func() codec.Decoder { return netstring{} }, in: "3:abc,3:def,", want: []string{"abc", "def"}},
		{name: "a byte too long", max: 6, d: func() codec.Decoder { return netstring{} }, in: "3:abc,4:defg,", want: []string{"abc"}, wantErr: codec.ErrFrameTooLong},
		{name: "a byte too long without an end", max: 6, d: func() codec.Decoder { return netstring{} }, in: "3:abc,9:defgh", want: []string{"abc"}, wantErr: codec.ErrFrameTooLong},
		{name: "no progress", d: func() codec.Decoder {
			return decoderFunc(func(*pipeline.Context, *buffer.Buf) (any, error) { return buffer.FromString("made up"), nil })
		}, in: "abc", wantErr: codec.ErrNoProgress},
		{name: "an error", d: func() codec.Decoder { return decoderFunc(pairsUpToX) }, in: "aaXbbb", want: []string{"aa"}, wantErr: errOdd},
		{name: "a message with an error", d: func() codec.Decoder {
			return decoderFunc(func(c *pipeline.Context, in *buffer.Buf) (any, error) {
				if in.Len() < 4 {
					return nil, nil
				}
				return in.ReadString(4), errOdd
			})
		}, in: "aaaabbbb", want: []string{"aaaa"}, wantErr: errOdd},
		{name: "all that is left", d: func() codec.Decoder { return decoderFunc(allAtSix) }, in: "abcdefghijklm", want: []string{"abcdef", "ghijkl"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			codectest.Verify(t, func() any { return codec.Decoding{New: tt.d, Max: tt.max} }, tt.in, tt.want, tt.wantErr)
		})
	}
}

func skipping(_ *pipeline.Context, in *buffer.Buf) (any, error) {
	if b := in.ReadUint8(); b != '.' {
		return string(b), nil
	}
	return nil, nil
}

// stepping reads a digit, and then as many bytes.
type stepping struct{ want int }

func (d *stepping) Decode(_ *pipeline.Context, in *buffer.Buf) (any, error) {
	if d.want == 0 {
		d.want = int(in.ReadUint8()-'0') + 1
		if d.want == 1 {
			d.want = 0
			return "", nil
		}
		return nil, nil
	}
	if in.Len() < d.want-1 {
		return nil, nil
	}
	n := d.want - 1
	d.want = 0
	return in.ReadString(n), nil
}

func rest(_ *pipeline.Context, in *buffer.Buf) (any, error) {
	return "rest " + in.ReadString(in.Len()), nil
}

func pairsUpToX(c *pipeline.Context, in *buffer.Buf) (any, error) {
	if in.Uint8At(in.ReaderIndex()) == 'X' {
		return nil, errOdd
	}
	return pairs(c, in)
}

// allAtSix makes messages of six bytes, of in itself where it can.
func allAtSix(_ *pipeline.Context, in *buffer.Buf) (any, error) {
	switch {
	case in.Len() < 6:
		return nil, nil
	case in.Len() == 6:
		return in, nil
	}
	return in.ReadSlice(6), nil
}

// 7.1: the first Buf is adopted.
func TestDecodingAdoptsTheFirstBuf(t *testing.T) {
	var seen *buffer.Buf
	ch := embedded.New(decoding(decoderFunc(func(_ *pipeline.Context, in *buffer.Buf) (any, error) {
		seen = in
		if in.Len() < 6 {
			return nil, nil
		}
		return in, nil
	})))
	b := buffer.FromString("abcdef")
	ch.WriteInbound(b)
	if seen != b {
		t.Error("the decoder was given another Buf than the one that was read")
	}
	if got := ch.ReadInbound(); got != b {
		t.Errorf("got message %v, want the Buf that was read", got)
	}
	b.Release()
	finish(t, ch)
}

// 7.1: what follows is appended while the Buf is exclusive and has room.
func TestDecodingAppendsInPlace(t *testing.T) {
	var seen []*buffer.Buf
	ch := embedded.New(decoding(decoderFunc(func(_ *pipeline.Context, in *buffer.Buf) (any, error) {
		seen = append(seen, in)
		if in.Len() < 200 {
			return nil, nil
		}
		return in.ReadString(200), nil
	})))
	b := ch.Alloc().Alloc(200)
	b.WriteString(strings.Repeat("a", 50))
	ch.WriteInbound(b)
	for range 3 {
		ch.WriteInbound(buffer.FromString(strings.Repeat("a", 50)))
	}
	for i, in := range seen {
		if in != b {
			t.Errorf("decode %d was given another Buf than the first", i)
		}
	}
	if got := inbound(ch); len(got) != 1 || len(got[0]) != 200 {
		t.Errorf("got %q, want one message of 200 bytes", got)
	}
	finish(t, ch)
}

// 7.1: a Buf that is shared is not appended to.
func TestDecodingDoesNotWriteToSharedMemory(t *testing.T) {
	ch := embedded.New(codec.Line{})
	b := ch.Alloc().Alloc(1000)
	b.WriteString("one, two")
	other := b.Duplicate()
	ch.WriteInbound(b)
	ch.WriteInbound(buffer.FromString(", three\n"))
	other.WriteString(" is what the owner of the other Buf wrote")
	line := ch.ReadInbound().(*buffer.Buf)
	if got, want := text(line), "one, two, three"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if line.SharesMemory(other) {
		t.Error("the line lies in memory that is not the decoder's")
	}
	line.Release()
	other.Release()
	finish(t, ch)
}

// Of a read that completes a message only that message's bytes are copied.
func TestDecodingCopiesOnlyWhatCompletesTheMessage(t *testing.T) {
	frame := func(n int) string { return string([]byte{byte(n >> 8), byte(n)}) + strings.Repeat("f", n) }
	for _, cfg := range []any{
		codec.LengthField{Width: 2},
		codec.Decoding{New: func() codec.Decoder {
			return decoderFunc(func(_ *pipeline.Context, in *buffer.Buf) (any, error) {
				if in.Len() < 1002 {
					return nil, nil
				}
				in.Skip(2)
				return in.ReadSlice(1000), nil
			})
		}},
	} {
		ch := embedded.New(cfg)
		stream := strings.Repeat(frame(1000), 20)
		first := ch.Alloc().Alloc(700)
		first.WriteString(stream[:700])
		second := ch.Alloc().Alloc(len(stream) - 700)
		second.WriteString(stream[700:])
		other := second.Duplicate()
		ch.WriteInbound(first)
		ch.WriteInbound(second)
		n, slices := 0, 0
		for m := ch.ReadInbound(); m != nil; m = ch.ReadInbound() {
			b := m.(*buffer.Buf)
			if n++; b.SharesMemory(other) {
				slices++
			}
			if b.Len() != 1000 {
				t.Errorf("%T: got a frame of %d bytes, want 1000", cfg, b.Len())
			}
			b.Release()
		}
		if n != 20 || slices != 19 {
			t.Errorf("%T: got %d frames, %d of them slices of the second read; want 20 and 19", cfg, n, slices)
		}
		other.Release()
		finish(t, ch)
	}
}

// A message that needs many reads costs a constant per byte.
func TestDecodingGrowsByFactors(t *testing.T) {
	var seen []*buffer.Buf
	ch := embedded.New(codec.Decoding{Max: 1 << 20, New: func() codec.Decoder {
		return decoderFunc(func(_ *pipeline.Context, in *buffer.Buf) (any, error) {
			if len(seen) == 0 || seen[len(seen)-1] != in {
				seen = append(seen, in)
			}
			if in.Len() < 1<<20 {
				return nil, nil
			}
			in.Skip(1 << 20)
			return "done", nil
		})
	}})
	for range 1 << 10 {
		ch.WriteInbound(buffer.FromString(strings.Repeat("x", 1<<10)))
	}
	if got := inbound(ch); !slices.Equal(got, []string{"done"}) {
		t.Errorf("got %q, want done", got)
	}
	if len(seen) > 40 {
		t.Errorf("the bytes of a message were moved %d times for 1,024 reads, want at most 40", len(seen))
	}
	finish(t, ch)
}

// 7.2: each message is fired before the next is decoded.
func TestDecodingFiresEachMessageBeforeTheNext(t *testing.T) {
	tr := &trace{}
	ch := embedded.New(decoding(decoderFunc(func(c *pipeline.Context, in *buffer.Buf) (any, error) {
		tr.got = append(tr.got, fmt.Sprintf("decode %d", in.Len()))
		return pairs(c, in)
	})), tr)
	ch.WriteInbound(buffer.FromString("aabbc"))
	tr.check(t, "decode 5", "aa", "decode 3", "bb", "decode 1", "complete")
	finish(t, ch)
}

// 7.2: nothing is decoded from nothing.
func TestDecodingIsNotCalledWithoutBytes(t *testing.T) {
	ch := embedded.New(decoding(decoderFunc(func(c *pipeline.Context, in *buffer.Buf) (any, error) {
		if in.Len() == 0 {
			t.Error("Decode was called without bytes")
		}
		return pairs(c, in)
	})))
	ch.WriteInbound(buffer.FromString(""), buffer.FromString("aa"), buffer.FromString(""))
	ch.WriteInbound(buffer.FromString("b"), buffer.FromString(""))
	if got := inbound(ch); !slices.Equal(got, []string{"aa"}) {
		t.Errorf("got %q, want aa", got)
	}
	finish(t, ch)
}

// 7.2: a removal takes effect between messages; 7.6: what is left goes on as one
// Buf, followed by a read complete.
func TestDecodingRemovedBetweenMessages(t *testing.T) {
	tr := &trace{}
	tr.on = map[string]func(*pipeline.Context){"aa": func(c *pipeline.Context) {
		if err := pipeline.Find[codec.Decoding](c.Pipeline()).Remove(); err != nil {
			t.Error(err)
		}
		tr.got = append(tr.got, "removed")
	}}
	removed := 0
	ch := embedded.New(decoding(lastDecoder{decoderFunc: pairs, last: rest, removed: func() { removed++ }}), tr)
	ch.WriteInbound(buffer.FromString("aabbc"))
	ch.WriteInbound(buffer.FromString("plain"))
	tr.check(t, "aa", "removed", "bbc", "complete", "complete", "plain", "complete")
	if removed != 1 {
		t.Errorf("the decoder's HandleRemoved was called %d times, want 1", removed)
	}
	finish(t, ch)
}

// 7.6: leftovers that lie in two reads go on as one Buf.
func TestDecodingRemovedInMidRead(t *testing.T) {
	tr := &trace{}
	tr.on = map[string]func(*pipeline.Context){"xyz": func(c *pipeline.Context) {
		pipeline.Find[codec.Decoding](c.Pipeline()).Remove()
	}}
	three := decoderFunc(func(_ *pipeline.Context, in *buffer.Buf) (any, error) {
		if in.Len() < 700 {
			return nil, nil
		}
		return in.ReadString(3), nil
	})
	ch := embedded.New(decoding(three), tr)
	first, second := "xyz"+strings.Repeat("1", 600), strings.Repeat("2", 2000)
	ch.WriteInbound(buffer.FromString(first))
	ch.WriteInbound(buffer.FromString(second))
	tr.check(t, "complete", "xyz", first[3:]+second, "complete", "complete")
	finish(t, ch)
}

// 7.6: a decoder that removes itself in Decode is let finish first.
func TestDecodingRemovesItself(t *testing.T) {
	tr := &trace{}
	var removed string
	ch := embedded.New(decoding(lastDecoder{
		decoderFunc: func(c *pipeline.Context, in *buffer.Buf) (any, error) {
			if err := c.Remove(); err != nil {
				t.Error(err)
			}
			return in.ReadString(2), nil
		},
		removed: func() { removed = strings.Join(tr.got, " ") },
	}), tr)
	ch.WriteInbound(buffer.FromString("aabbc"))
	tr.check(t, "aa", "bbc", "complete", "complete")
	if removed != "aa" {
		t.Errorf("the decoder's HandleRemoved was called after %q, want after aa", removed)
	}
	finish(t, ch)
}

// 7.6: a decoder that waits for bytes passes on what it has when it is removed.
func TestDecodingRemovedWhileWaiting(t *testing.T) {
	tr := &trace{}
	ch := embedded.New(codec.LengthField{Width: 2}, tr)
	ch.WriteInbound(buffer.FromString("\x00\x05ab"))
	ch.Do(func() { pipeline.Find[codec.LengthField](ch.Pipeline()).Remove() })
	tr.check(t, "complete", "\x00\x05ab", "complete")
	finish(t, ch)

	tr = &trace{}
	ch = embedded.New(codec.LengthField{Width: 2}, tr)
	ch.Do(func() { pipeline.Find[codec.LengthField](ch.Pipeline()).Remove() })
	tr.check(t)
	finish(t, ch)
}

// 7.6: a protocol upgrade: the next decoder gets what the first has not read, also
// what came in by re-entrant reads meanwhile.
func TestDecodingReplacedByAnother(t *testing.T) {
	tr := &trace{}
	tr.on = map[string]func(*pipeline.Context){"upgrade": func(c *pipeline.Context) {
		c.Pipeline().FireRead(buffer.FromString("3\x00\x01"))
		if _, err := c.Pipeline().Replace(pipeline.Find[codec.Line](c.Pipeline()), "", codec.LengthField{Width: 2}); err != nil {
			t.Error(err)
		}
		tr.got = append(tr.got, "replaced")
	}}
	ch := embedded.New(codec.Line{}, tr)
	ch.WriteInbound(buffer.FromString("hello\nupgrade\n\x00\x02ab\x00\x03\n2"))
	ch.WriteInbound(buffer.FromString("4"))
	tr.check(t, "hello", "upgrade", "replaced", "ab", "\n23", "complete", "complete", "4", "complete")
	finish(t, ch)
}

// 7.2: AutoRead switched off on a message stops the reading; what was read already
// is still delivered.
func TestDecodingAutoReadOffBetweenMessages(t *testing.T) {
	tr := &trace{on: map[string]func(*pipeline.Context){"aa": func(c *pipeline.Context) { c.Channel().SetAutoRead(false) }}}
	ch := embedded.New(decoding(decoderFunc(pairs)), tr)
	ch.ReadRequests()
	ch.WriteInbound(buffer.FromString("aabb"))
	tr.check(t, "aa", "bb", "complete")
	if n := ch.ReadRequests(); n != 0 {
		t.Errorf("got %d requests for reading after AutoRead went off, want none", n)
	}
	finish(t, ch)
}

// 7.2: no message is fired after a close.
func TestDecodingClosedBetweenMessages(t *testing.T) {
	for name, shut := range map[string]func(*pipeline.Context){
		"Context.Close": func(c *pipeline.Context) { c.Close() },
		"Channel.Close": func(c *pipeline.Context) { c.Channel().Close() },
		"Channel.Reset": func(c *pipeline.Context) { c.Channel().Reset() },
	} {
		t.Run(name, func(t *testing.T) {
			tr := &trace{on: map[string]func(*pipeline.Context){"aa": shut}}
			ch := embedded.New(decoding(lastDecoder{decoderFunc: pairs, last: rest}), tr)
			ch.WriteInbound(buffer.FromString("aabbc"))
			tr.check(t, "aa", "inactive")
			finish(t, ch)
		})
	}
}

// A close that has passed the decoder ends it also while the channel is still open
// for what was written to leave.
func TestDecodingEndsWithAGracefulClose(t *testing.T) {
	tr := &trace{}
	ch := embedded.New(holdClose{}, decoding(lastDecoder{decoderFunc: pairs, last: rest}), tr)
	ch.WriteInbound(buffer.FromString("aab"))
	ch.Do(ch.Close)
	ch.WriteInbound(buffer.FromString("bcc"))
	tr.check(t, "aa", "complete", "complete")
	if n := buffer.Live(); n != 0 {
		t.Errorf("got %d live Bufs after the close, want none", n)
	}
	finish(t, ch)
}

// holdClose is a handler that keeps the channel from closing.
type holdClose struct{}

func (holdClose) HandleClose(*pipeline.Context, *eventloop.Promise) error { return nil }

// 7.3: a receive buffer is not kept for a few bytes.
func TestDecodingKeepsNoLargeBufForFewBytes(t *testing.T) {
	for _, cfg := range []any{codec.LengthField{Width: 2}, codec.Line{}, decoding(decoderFunc(pairs))} {
		pool, err := buffer.NewPool(buffer.PoolConfig{})
		if err != nil {
			t.Fatal(err)
		}
		man := eventloop.NewManual()
		var channels []*embedded.Channel
		for range 1000 {
			ch := embedded.NewConfig(embedded.Config{Allocator: pool, Manual: man}, cfg)
			b := ch.Alloc().Alloc(64 << 10)
			b.WriteString("\x00")
			ch.WriteInbound(b)
			channels = append(channels, ch)
		}
		if got, most := pool.Stats().InUse, int64(2<<20); got > most {
			t.Errorf("%T: got %d bytes in use for a byte each on 1,000 channels, want at most %d", cfg, got, most)
		}
		for _, ch := range channels {
			finishOne(t, ch)
		}
		man.Close()
		if err := pool.Close(); err != nil {
			t.Errorf("%T: %v", cfg, err)
		}
	}
}

// finishOne ends one of several channels.
func finishOne(t *testing.T, ch *embedded.Channel) {
	t.Helper()
	if err := ch.Finish(); err != nil {
		t.Errorf("got error %v at the end, want none", err)
	}
}

// 7.4: a read that comes in while decoding is taken up after the one under way.
func TestDecodingQueuesReentrantReads(t *testing.T) {
	tr := &trace{}
	tr.on = map[string]func(*pipeline.Context){"aa": func(c *pipeline.Context) {
		c.Pipeline().FireRead(buffer.FromString("ccdd"))
		c.Pipeline().FireRead(42)
		c.Pipeline().FireRead(buffer.FromString("e"))
		c.Pipeline().FireReadComplete()
		tr.got = append(tr.got, "fired")
	}, "cc": func(c *pipeline.Context) {
		c.Pipeline().FireRead(buffer.FromString("eff"))
	}}
	ch := embedded.New(decoding(decoderFunc(pairs)), tr)
	ch.WriteInbound(buffer.FromString("aabb"))
	tr.check(t, "aa", "complete", "fired", "bb", "cc", "dd", "42", "ee", "ff", "complete")
	finish(t, ch)
}

// 7.4: so is the end of the input.
func TestDecodingQueuesTheEndOfTheInput(t *testing.T) {
	tr := &trace{}
	tr.on = map[string]func(*pipeline.Context){"aa": func(c *pipeline.Context) {
		c.Pipeline().FireEvent(pipeline.InputShutdown{})
		c.Pipeline().FireRead(buffer.FromString("too late"))
	}}
	ch := embedded.New(decoding(lastDecoder{decoderFunc: pairs, last: rest}), tr)
	ch.WriteInbound(buffer.FromString("aabbc"))
	tr.check(t, "aa", "bb", "rest c", "complete", "pipeline.InputShutdown", "complete")
	finish(t, ch)
}

// 7.5: reading by hand does not stall on part of a message.
func TestDecodingAsksForTheRestWhenReadingByHand(t *testing.T) {
	ch := embedded.NewConfig(embedded.Config{ManualRead: true}, codec.Line{})
	for i, step := range []struct {
		in   string
		want int
	}{
		{"on", 1},      // nothing came of it
		{"e", 1},       // still nothing
		{"\ntwo\n", 0}, // messages: it is the reader's turn
		{"thr", 1},
		{"ee\nfo", 0},
		{"", 1},
	} {
		ch.WriteInbound(buffer.FromString(step.in))
		if got := ch.ReadRequests(); got != step.want {
			t.Errorf("step %d: got %d requests for reading, want %d", i, got, step.want)
		}
	}
	ch.Do(func() { ch.Pipeline().FireReadComplete() })
	if got := ch.ReadRequests(); got != 0 {
		t.Errorf("got %d requests for reading after a turn without reads, want none", got)
	}
	ch.WriteInbound(buffer.FromString("r"), 42)
	if got := ch.ReadRequests(); got != 0 {
		t.Errorf("got %d requests for reading after another message, want none", got)
	}
	if got, want := inbound(ch), []string{"one", "two", "three", "42"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	finish(t, ch)
}

// 7.7: at the end of the input what is left is decoded, once, and released; then
// the end goes on.
func TestDecodingAtTheEndOfTheInput(t *testing.T) {
	tr := &trace{}
	calls := 0
	last := func(c *pipeline.Context, in *buffer.Buf) (any, error) {
		calls++
		return rest(c, in)
	}
	d := decoding(lastDecoder{decoderFunc: pairs, last: last})

	ch := embedded.New(d, tr)
	ch.WriteInbound(buffer.FromString("aab"))
	finish(t, ch)
	tr.check(t, "aa", "complete", "rest b", "complete", "inactive")

	tr.got = nil
	ch = embedded.New(d, tr)
	ch.WriteInbound(buffer.FromString("aab"))
	ch.Do(func() { ch.Pipeline().FireEvent(pipeline.InputShutdown{}) })
	if n := buffer.Live(); n != 0 {
		t.Errorf("got %d live Bufs after the end of the input, want none", n)
	}
	ch.Do(func() { ch.Pipeline().FireEvent("another event") })
	finish(t, ch)
	tr.check(t, "aa", "complete", "rest b", "complete", "pipeline.InputShutdown", "string", "inactive")

	tr.got = nil
	ch = embedded.New(d, tr)
	finish(t, ch)
	tr.check(t, "rest ", "complete", "inactive")

	if calls != 3 {
		t.Errorf("DecodeLast was called %d times on three channels, want 3", calls)
	}
}

// 7.7: DecodeLast may pass on what is left itself.
func TestDecodingPassesOnTheLastBuf(t *testing.T) {
	ch := embedded.New(decoding(lastDecoder{decoderFunc: pairs, last: func(_ *pipeline.Context, in *buffer.Buf) (any, error) { return in, nil }}))
	b := buffer.FromString("aab")
	ch.WriteInbound(b)
	ch.Do(func() { ch.Pipeline().FireEvent(pipeline.InputShutdown{}) })
	if got, want := inbound(ch), []string{"aa", "b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	ch.ReleaseAll()
	finish(t, ch)
}

// 7.7: not after a removal, and not after an error.
func TestDecodingHasNoEndAfterItsOwn(t *testing.T) {
	tr := &trace{}
	last := func(*pipeline.Context, *buffer.Buf) (any, error) {
		t.Error("DecodeLast was called")
		return nil, nil
	}
	ch := embedded.New(decoding(lastDecoder{decoderFunc: pairsUpToX, last: last}), tr)
	ch.WriteInbound(buffer.FromString("aaX"))
	tr.check(t, "aa", "error: odd", "inactive")
	finish(t, ch)

	tr = &trace{}
	ch = embedded.New(decoding(lastDecoder{decoderFunc: pairs, last: last}), tr)
	ch.WriteInbound(buffer.FromString("a"))
	ch.Do(func() { pipeline.Find[codec.Decoding](ch.Pipeline()).Remove() })
	finish(t, ch)
	tr.check(t, "complete", "a", "complete", "inactive")
}

// A removal by the handler of the last message is in time.
func TestDecodingRemovedByTheLastMessage(t *testing.T) {
	removed := 0
	tr := &trace{on: map[string]func(*pipeline.Context){"rest b": func(c *pipeline.Context) {
		pipeline.Find[codec.Decoding](c.Pipeline()).Remove()
	}}}
	ch := embedded.New(decoding(lastDecoder{decoderFunc: pairs, last: rest, removed: func() { removed++ }}), tr)
	ch.WriteInbound(buffer.FromString("aab"))
	finish(t, ch)
	tr.check(t, "aa", "complete", "rest b", "complete", "inactive")
	if removed != 1 {
		t.Errorf("the decoder's HandleRemoved was called %d times, want 1", removed)
	}
}

// 7.8: messages made before an error are delivered; the error is told before the
// channel closes, and the rest is dropped.
func TestDecodingTellsAnErrorAfterTheMessagesBeforeIt(t *testing.T) {
	tr := &trace{}
	tr.on = map[string]func(*pipeline.Context){"error: odd": func(c *pipeline.Context) {
		tr.got = append(tr.got, fmt.Sprint("open: ", c.Channel().Open()))
		c.Pipeline().FireRead(buffer.FromString("aa"))
	}}
	ch := embedded.New(decoding(decoderFunc(pairsUpToX)), tr)
	ch.WriteInbound(buffer.FromString("aabbXccdd"), buffer.FromString("ee"))
	tr.check(t, "aa", "bb", "error: odd", "open: true", "inactive")
	finish(t, ch)
}

// The close after an error goes through the pipeline: a handler that has more to
// write first holds it up.
func TestDecodingCloseAfterAnErrorCanWait(t *testing.T) {
	h := &finisher{}
	ch := embedded.New(codec.Line{Max: 3}, h)
	ch.WriteInbound(buffer.FromString("abc\nabcd"))
	if !ch.Open() {
		t.Fatal("the channel is closed, want it open until the handler goes on with the close")
	}
	ch.WriteInbound(buffer.FromString("\nabc\n"))
	if got := inbound(ch); !slices.Equal(got, []string{"abc"}) {
		t.Errorf("got %q, want the line before the error alone", got)
	}
	ch.Do(func() {
		h.c.Write("ERR: line too long\r\n")
		h.c.ForwardClose(h.p)
	})
	if got := outbound(ch); len(got) != 1 || ch.Open() {
		t.Errorf("got %q written and open %v, want the answer and closed", got, ch.Open())
	}
	finish(t, ch)
}

// finisher is a handler that closes when it wants to.
type finisher struct {
	c *pipeline.Context
	p *eventloop.Promise
}

func (h *finisher) HandleError(*pipeline.Context, error) {}

func (h *finisher) HandleClose(c *pipeline.Context, p *eventloop.Promise) error {
	h.c, h.p = c, p
	return nil
}

// A panic closes the channel and leaves no Buf of the decoder behind.
func TestDecodingPanics(t *testing.T) {
	removed := 0
	in := func(f func(c *pipeline.Context)) codec.Decoding {
		return decoding(lastDecoder{
			decoderFunc: func(c *pipeline.Context, in *buffer.Buf) (any, error) {
				m, err := pairs(c, in)
				if m == "XX" {
					f(c)
				}
				return m, err
			},
			last:    rest,
			removed: func() { removed++ },
		})
	}
	for name, handlers := range map[string][]any{
		"in Decode":               {in(func(*pipeline.Context) { panic("oops") })},
		"in Decode after removal": {in(func(c *pipeline.Context) { c.Remove(); panic("oops") })},
		"in the next handler": {in(func(*pipeline.Context) {}), pipeline.On(func(c *pipeline.Context, s string) error {
			if s == "XX" {
				c.Pipeline().FireRead(buffer.FromString("queued"))
				panic("oops")
			}
			c.FireRead(s)
			return nil
		})},
	} {
		t.Run(name, func(t *testing.T) {
			removed = 0
			ch := embedded.New(handlers...)
			ch.WriteInbound(buffer.FromString("aaXXbbc"), buffer.FromString("dd"))
			var pe *pipeline.PanicError
			if err := ch.CheckError(); !errors.As(err, &pe) || pe.Value != "oops" {
				t.Errorf("got error %v, want the panic", err)
			}
			if ch.Open() {
				t.Error("the channel is open after a panic, want it closed")
			}
			if got := inbound(ch); !slices.Equal(got, []string{"aa"}) {
				t.Errorf("got %q, want aa", got)
			}
			if removed != 1 {
				t.Errorf("the decoder's HandleRemoved was called %d times, want 1", removed)
			}
			finish(t, ch)
		})
	}
}

// Without memory the bytes that wait for their message fail the stream.
func TestDecodingWithoutMemory(t *testing.T) {
	ch := embedded.NewConfig(embedded.Config{Allocator: noMemory{}}, codec.LengthField{Width: 2})
	ch.WriteInbound(buffer.FromString("\x01\x00abc"))
	ch.WriteInbound(buffer.FromString(strings.Repeat("x", 200)))
	if err := ch.CheckError(); !errors.Is(err, buffer.ErrOutOfMemory) {
		t.Errorf("got error %v, want %v", err, buffer.ErrOutOfMemory)
	}
	ch.WriteOutbound("abc")
	finish(t, ch)

	ch = embedded.NewConfig(embedded.Config{Allocator: noMemory{}}, codec.LengthField{Width: 2})
	ch.WriteInbound(buffer.FromString("\x00\x03abc\x00\x02de")) // slices in place of copies
	if got := inbound(ch); !slices.Equal(got, []string{"abc", "de"}) {
		t.Errorf("got %q, want abc and de", got)
	}
	for _, msg := range []any{"abc", []byte("abc"), buffer.FromString("abc")} {
		ch.WriteOutbound(msg)
		if err := ch.CheckError(); !errors.Is(err, buffer.ErrOutOfMemory) {
			t.Errorf("%T: got error %v, want %v", msg, err, buffer.ErrOutOfMemory)
		}
	}
	finish(t, ch)
}

// noMemory is an allocator that has none.
type noMemory struct{}

func (noMemory) Alloc(int) *buffer.Buf { panic(buffer.ErrOutOfMemory) }

func (noMemory) TryAlloc(int) (*buffer.Buf, error) { return nil, buffer.ErrOutOfMemory }

// Every pipeline has a decoder of its own.
func TestDecodingIsMadePerChannel(t *testing.T) {
	made := 0
	cfg := codec.Decoding{New: func() codec.Decoder { made++; return &stepping{} }}
	a, b := embedded.New(cfg), embedded.New(cfg)
	a.WriteInbound(buffer.FromString("3ab"))
	b.WriteInbound(buffer.FromString("1xy"))
	a.WriteInbound(buffer.FromString("c"))
	if got, want := append(inbound(a), inbound(b)...), []string{"abc", "x"}; !slices.Equal(got, want) || made != 2 {
		t.Errorf("got %q of %d decoders, want %q of 2", got, made, want)
	}
	finishOne(t, a)
	finishOne(t, b)
}

func TestDecodingRefusesImpossibleConfigurations(t *testing.T) {
	for _, cfg := range []codec.Decoding{{}, {New: func() codec.Decoder { return netstring{} }, Max: -1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v: got a handler, want a panic", cfg.Max)
				}
			}()
			cfg.NewHandler()
		}()
	}
}

// However the stream is cut, the messages are the same, and whether there is an error.
func FuzzDecoding(f *testing.F) {
	f.Add([]byte("0:,3:abc,12:hello, world,"), uint8(1), uint8(40))
	f.Add([]byte("9:123456789,"), uint8(2), uint8(5))
	f.Fuzz(func(t *testing.T, stream []byte, step, most uint8) {
		sameMessages(t, codec.Decoding{New: func() codec.Decoder { return netstring{} }, Max: int(most) + 8}, stream, int(step)+1)
	})
}
