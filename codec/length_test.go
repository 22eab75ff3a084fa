package codec_test

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/codec/codectest"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

func TestLengthField(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 64) // 1 KiB
	tests := []struct {
		name    string
		cfg     codec.LengthField
		in      string
		want    []string
		wantErr error
	}{
		{name: "nothing", cfg: codec.LengthField{Width: 2}},
		{name: "empty frame", cfg: codec.LengthField{Width: 2}, in: "\x00\x00", want: []string{""}},
		{name: "empty frames", cfg: codec.LengthField{Width: 1}, in: "\x00\x00\x00", want: []string{"", "", ""}},
		{name: "two frames in one read", cfg: codec.LengthField{Width: 2}, in: "\x00\x01a\x00\x02bc", want: []string{"a", "bc"}},
		{name: "large frames", cfg: codec.LengthField{Width: 2}, in: "\x04\x00" + long + "\x00\x01x\x04\x00" + long, want: []string{long, "x", long}},
		{name: "unfinished header", cfg: codec.LengthField{Width: 4}, in: "\x00\x00\x00\x01a\x00\x00", want: []string{"a"}},
		{name: "unfinished frame", cfg: codec.LengthField{Width: 1}, in: "\x01a\x02b", want: []string{"a"}},
		{name: "zero configuration", in: "\x00\x00\x00\x03abc", want: []string{"abc"}},

		{name: "width 1", cfg: codec.LengthField{Width: 1}, in: "\x03abc", want: []string{"abc"}},
		{name: "width 3", cfg: codec.LengthField{Width: 3}, in: "\x00\x00\x03abc", want: []string{"abc"}},
		{name: "width 8", cfg: codec.LengthField{Width: 8}, in: "\x00\x00\x00\x00\x00\x00\x00\x03abc", want: []string{"abc"}},
		{name: "width 1 little endian", cfg: codec.LengthField{Width: 1, LittleEndian: true}, in: "\x03abc", want: []string{"abc"}},
		{name: "width 2 little endian", cfg: codec.LengthField{Width: 2, LittleEndian: true}, in: "\x03\x00abc", want: []string{"abc"}},
		{name: "width 3 little endian", cfg: codec.LengthField{Width: 3, LittleEndian: true}, in: "\x00\x04\x00" + long, want: []string{long}},
		{name: "width 4 little endian", cfg: codec.LengthField{Width: 4, LittleEndian: true}, in: "\x03\x00\x00\x00abc", want: []string{"abc"}},
		{name: "width 8 little endian", cfg: codec.LengthField{Width: 8, LittleEndian: true}, in: "\x03\x00\x00\x00\x00\x00\x00\x00abc", want: []string{"abc"}},

		{name: "length counts itself", cfg: codec.LengthField{Width: 2, Adjustment: -2}, in: "\x00\x05abc\x00\x02", want: []string{"abc", ""}},
		{name: "offset", cfg: codec.LengthField{Width: 1, Offset: 2}, in: "hh\x03abchh\x01d", want: []string{"abc", "d"}},
		{name: "offset kept", cfg: codec.LengthField{Width: 1, Offset: 2, Strip: -1}, in: "hh\x03abchh\x01d", want: []string{"hh\x03abc", "hh\x01d"}},
		{name: "strip part of the header", cfg: codec.LengthField{Width: 1, Offset: 2, Strip: 2}, in: "hh\x03abc", want: []string{"\x03abc"}},
		{name: "strip part of the payload", cfg: codec.LengthField{Width: 1, Strip: 3}, in: "\x03abc\x02de", want: []string{"c", ""}},
		{name: "adjustment for a trailer", cfg: codec.LengthField{Width: 1, Adjustment: 2}, in: "\x01acc\x00cc", want: []string{"acc", "cc"}},
		{name: "length of everything", cfg: codec.LengthField{Width: 1, Offset: 1, Adjustment: -2, Strip: -1}, in: "h\x05abch\x02", want: []string{"h\x05abc", "h\x02"}},

		{name: "the limit counts the payload", cfg: codec.LengthField{Width: 2, Max: 3}, in: "\x00\x03abc\x00\x04abcd\x00\x01a", want: []string{"abc"}, wantErr: codec.ErrFrameTooLong},
		{name: "length over the limit", cfg: codec.LengthField{Width: 2, Max: 100}, in: "\xff\xff", wantErr: codec.ErrFrameTooLong},
		{name: "the limit counts the adjusted payload", cfg: codec.LengthField{Width: 1, Max: 3, Adjustment: 2}, in: "\x01abc\x02abcd", want: []string{"abc"}, wantErr: codec.ErrFrameTooLong},
		{name: "negative in 4 bytes", cfg: codec.LengthField{Width: 4}, in: "\xff\xff\xff\xff", wantErr: codec.ErrFrameTooLong},
		{name: "2 GiB announced", cfg: codec.LengthField{Width: 4}, in: "\x80\x00\x00\x00aaaa", wantErr: codec.ErrFrameTooLong},
		{name: "negative in 8 bytes", cfg: codec.LengthField{Width: 8}, in: "\xff\xff\xff\xff\xff\xff\xff\xff", wantErr: codec.ErrCorruptedFrame},
		{name: "8 bytes near the largest", cfg: codec.LengthField{Width: 8, Adjustment: 8}, in: "\x7f\xff\xff\xff\xff\xff\xff\xf8abc", wantErr: codec.ErrFrameTooLong},
		{name: "8 bytes near the largest, little endian", cfg: codec.LengthField{Width: 8, Adjustment: 1, LittleEndian: true}, in: "\xff\xff\xff\xff\xff\xff\xff\x7fabc", wantErr: codec.ErrFrameTooLong},
		{name: "shorter than its header", cfg: codec.LengthField{Width: 2, Adjustment: -2}, in: "\x00\x03a\x00\x01b", want: []string{"a"}, wantErr: codec.ErrCorruptedFrame},
		{name: "shorter than what is stripped", cfg: codec.LengthField{Width: 1, Strip: 3}, in: "\x03abc\x01a\x03abc", want: []string{"c"}, wantErr: codec.ErrCorruptedFrame},
		{name: "nothing after an error", cfg: codec.LengthField{Width: 1, Max: 2}, in: "\x01a\x05\x01b\x01c", want: []string{"a"}, wantErr: codec.ErrFrameTooLong},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			codectest.Verify(t, func() any { return tt.cfg }, tt.in, tt.want, tt.wantErr)
		})
	}
}

func TestLengthFieldRefusesImpossibleConfigurations(t *testing.T) {
	for _, cfg := range []codec.LengthField{
		{Width: 5}, {Width: 6}, {Width: 9}, {Width: -1}, {Offset: -1}, {Max: -1}, {Strip: -2},
		{Max: math.MaxInt32}, {Offset: math.MaxInt32},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v: got a handler, want a panic", cfg)
				}
			}()
			cfg.NewHandler()
		}()
	}
}

// What is wrong with a frame is said, and nothing is allocated for it.
func TestFrameErrorSaysTheLength(t *testing.T) {
	pool, err := buffer.NewPool(buffer.PoolConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var got error
	ch := embedded.NewConfig(embedded.Config{Allocator: pool}, codec.LengthField{Width: 4, Max: 1000}, pipeline.OnError(func(_ *pipeline.Context, err error) { got = err }))
	before := pool.Stats().InUse
	ch.WriteInbound(buffer.FromString("\x80\x00\x00\x00 and so on"))
	if n := pool.Stats().InUse; n != before {
		t.Errorf("got %d bytes of the pool in use, want %d as before the frame", n, before)
	}
	var fe *codec.FrameError
	if !errors.As(got, &fe) || fe.Length != 1<<31 || fe.Max != 1000 || !errors.Is(got, codec.ErrFrameTooLong) {
		t.Errorf("got error %v, want a FrameError with length %d, maximum 1000", got, int64(1)<<31)
	}
	if ch.Open() {
		t.Error("the channel is open after a frame that is too long, want it closed")
	}
	ch.Finish()
	if err := pool.Close(); err != nil {
		t.Error(err)
	}
}

func TestLengthFieldPrepends(t *testing.T) {
	tests := []struct {
		name string
		cfg  codec.LengthField
		msg  any      // a function makes the message
		want []string // messages at the head
	}{
		{"a small Buf", codec.LengthField{Width: 4}, func() any { return buffer.FromString("abc") }, []string{"\x00\x00\x00\x03abc"}},
		{"a large Buf", codec.LengthField{Width: 4}, func() any { return buffer.FromString(strings.Repeat("x", 1000)) }, []string{"\x00\x00\x03\xe8", strings.Repeat("x", 1000)}},
		{"an empty Buf", codec.LengthField{Width: 2}, func() any { return buffer.FromString("") }, []string{"\x00\x00"}},
		{"bytes", codec.LengthField{Width: 2}, []byte("abc"), []string{"\x00\x03abc"}},
		{"a string", codec.LengthField{Width: 2}, "abc", []string{"\x00\x03abc"}},
		{"width 1", codec.LengthField{Width: 1}, "abc", []string{"\x03abc"}},
		{"width 3", codec.LengthField{Width: 3}, strings.Repeat("a", 0x10203), []string{"\x01\x02\x03" + strings.Repeat("a", 0x10203)}},
		{"width 8", codec.LengthField{Width: 8}, "abc", []string{"\x00\x00\x00\x00\x00\x00\x00\x03abc"}},
		{"width 1 little endian", codec.LengthField{Width: 1, LittleEndian: true}, "abc", []string{"\x03abc"}},
		{"width 2 little endian", codec.LengthField{Width: 2, LittleEndian: true}, "abc", []string{"\x03\x00abc"}},
		{"width 3 little endian", codec.LengthField{Width: 3, LittleEndian: true}, strings.Repeat("a", 0x10203), []string{"\x03\x02\x01" + strings.Repeat("a", 0x10203)}},
		{"width 4 little endian", codec.LengthField{Width: 4, LittleEndian: true}, "abc", []string{"\x03\x00\x00\x00abc"}},
		{"width 8 little endian", codec.LengthField{Width: 8, LittleEndian: true}, "abc", []string{"\x03\x00\x00\x00\x00\x00\x00\x00abc"}},
		{"length counts itself", codec.LengthField{Width: 2, Adjustment: -2}, "abc", []string{"\x00\x05abc"}},
		{"whole frames are left alone", codec.LengthField{Width: 2, Strip: -1}, "\x00\x03abc", []string{"\x00\x03abc"}},
		{"frames with an offset are left alone", codec.LengthField{Width: 2, Offset: 1}, "h\x00\x03abc", []string{"h\x00\x03abc"}},
		{"other messages pass", codec.LengthField{Width: 2}, 42, []string{"42"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ch := embedded.New(tt.cfg)
			msg := tt.msg
			if f, ok := msg.(func() any); ok {
				msg = f()
			}
			ch.WriteOutbound(msg)
			if got := outbound(ch); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			finish(t, ch)
		})
	}
}

// The body of a frame leaves as the Buf that was written.
func TestLengthFieldDoesNotCopyTheBody(t *testing.T) {
	ch := embedded.New(codec.LengthField{Width: 4})
	body := buffer.FromString(strings.Repeat("x", 4096))
	ch.WriteOutbound(body)
	buffer.Release(ch.ReadOutbound())
	if got := ch.ReadOutbound(); got != body {
		t.Errorf("got %v as the body, want the Buf that was written", got)
	}
	body.Release()
	finish(t, ch)
}

// A frame that is sent on as it came leaves with the length it came with, without a
// copy; one that was changed gets its own.
func TestLengthFieldSendsOnWhatCame(t *testing.T) {
	payload := strings.Repeat("x", 1000)
	frame := "\x03\xe8" + payload
	tests := []struct {
		name string
		in   string
		with func(b *buffer.Buf)
		want []string
	}{
		{"as it came", frame, func(*buffer.Buf) {}, []string{frame}},
		{"one of several", frame + frame, func(*buffer.Buf) {}, []string{frame, frame}},
		{"small", "\x00\x01a\x00\x00", func(*buffer.Buf) {}, []string{"\x00\x01a", "\x00\x00"}},
		{"shorter", frame, func(b *buffer.Buf) { b.Skip(10) }, []string{"\x03\xde", payload[10:]}},
		{"longer", frame, func(b *buffer.Buf) { b.WriteUint8('y') }, []string{"\x03\xe9", payload + "y"}},
		{"read and as long", frame, func(b *buffer.Buf) { b.Skip(2); b.WriteUint16(0x7a7a) }, []string{"\x03\xe8", payload[2:] + "zz"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ch := embedded.New(codec.LengthField{Width: 2}, pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
				tt.with(b)
				c.Write(b)
				return nil
			}))
			ch.WriteInbound(buffer.FromString(tt.in))
			if got := outbound(ch); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			finish(t, ch)
		})
	}
}

// Who has kept a reference to a frame finds it as it was after writing it.
func TestLengthFieldLeavesAFrameThatIsKept(t *testing.T) {
	payload := strings.Repeat("x", 1000)
	ch := embedded.New(codec.LengthField{Width: 2}, pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
		c.Write(b.Retain())
		if got := text(b); got != payload {
			t.Errorf("got %q after the write, want the payload as before", got)
		}
		b.Release()
		return nil
	}))
	ch.WriteInbound(buffer.FromString("\x03\xe8" + payload))
	if got, want := outbound(ch), []string{"\x03\xe8", payload}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	finish(t, ch)
}

func TestLengthFieldPrependsToARegion(t *testing.T) {
	ch := embedded.New(codec.LengthField{Width: 2})
	region := newRegion(t)
	done := 0
	ch.Do(func() {
		ch.WriteThen(region, func(err error) {
			if done++; err != nil {
				t.Errorf("got completion %v, want nil", err)
			}
		})
	})
	head := ch.ReadOutbound().(*buffer.Buf)
	if got, want := text(head), "\x00\x05"; got != want {
		t.Errorf("got header %q, want %q", got, want)
	}
	head.Release()
	if got := ch.ReadOutbound(); got != region {
		t.Errorf("got %v as the body, want the region that was written", got)
	}
	region.Release()
	if done != 1 {
		t.Errorf("got %d completions, want 1", done)
	}
	finish(t, ch)
}

// A payload that is refused when its length has been written leaves the stream out of
// step: the channel is reset.
func TestLengthFieldResetsWhenARegionIsRefused(t *testing.T) {
	refuse := pipeline.OnWrite(func(_ *pipeline.Context, r *buffer.FileRegion, _ *completion) error {
		r.Release()
		return errOdd
	})
	for _, asked := range []bool{false, true} {
		ch := embedded.New(refuse, codec.LengthField{Width: 2})
		var got error
		ch.Do(func() {
			if asked {
				ch.WriteThen(newRegion(t), func(err error) { got = err })
			} else {
				ch.Write(newRegion(t))
			}
		})
		if !asked {
			got = ch.CheckError()
		}
		if got != errOdd || ch.Open() {
			t.Errorf("asked %v: got error %v, open %v; want %v, false", asked, got, ch.Open(), errOdd)
		}
		if err := ch.CloseReason(); !errors.Is(err, pipeline.ErrReset) {
			t.Errorf("asked %v: got close reason %v, want a reset", asked, err)
		}
		// On a closed channel nothing more is reported.
		ch.WriteOutbound(newRegion(t))
		finish(t, ch)
	}
}

// newRegion returns a region of 5 bytes.
func newRegion(t *testing.T) *buffer.FileRegion {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return buffer.NewFileRegion(f, 2, 5)
}

// The completion of a write is that of its last message.
func TestLengthFieldCompletesWithTheBody(t *testing.T) {
	for _, msg := range []func() any{
		func() any { return buffer.FromString("abc") },
		func() any { return buffer.FromString(strings.Repeat("x", 1000) + "abc") },
		func() any { return "abc" },
		func() any { return []byte("abc") },
	} {
		var before, after []string
		ch := embedded.New(
			pipeline.OnWrite(func(c *pipeline.Context, b *buffer.Buf, p *completion) error {
				if p != nil {
					before = append(before, text(b))
				}
				c.ForwardWrite(b, p)
				return nil
			}),
			codec.LengthField{Width: 2},
		)
		ch.Hold(true)
		ch.Do(func() {
			ch.WriteThen(msg(), func(err error) {
				if err != nil {
					t.Errorf("got completion %v, want nil", err)
				}
				after = append(after, "done")
			})
		})
		if len(after) != 0 {
			t.Error("the write completed before its messages left")
		}
		ch.Hold(false)
		if len(before) != 1 || !strings.HasSuffix(before[0], "abc") || len(after) != 1 {
			t.Errorf("got the promise with %q and %d completions, want it with the body alone and 1", before, len(after))
		}
		outbound(ch)
		finish(t, ch)
	}
}

// A payload that the width cannot express fails its write, and only that.
func TestLengthFieldOverflowFailsTheWrite(t *testing.T) {
	tests := []struct {
		name string
		cfg  codec.LengthField
		msg  func() any
		want error
	}{
		{"a Buf", codec.LengthField{Width: 1}, func() any { return buffer.FromString(strings.Repeat("x", 256)) }, codec.ErrFrameTooLong},
		{"a string", codec.LengthField{Width: 1}, func() any { return strings.Repeat("x", 256) }, codec.ErrFrameTooLong},
		{"bytes", codec.LengthField{Width: 2}, func() any { return make([]byte, 1<<16) }, codec.ErrFrameTooLong},
		{"the field counts itself", codec.LengthField{Width: 1, Adjustment: -1}, func() any { return strings.Repeat("x", 255) }, codec.ErrFrameTooLong},
		{"less than the adjustment", codec.LengthField{Width: 1, Adjustment: 2}, func() any { return "x" }, codec.ErrCorruptedFrame},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ch := embedded.New(tt.cfg)
			var got error
			ch.Do(func() { ch.WriteThen(tt.msg(), func(err error) { got = err }) })
			if !errors.Is(got, tt.want) {
				t.Errorf("got completion %v, want %v", got, tt.want)
			}
			ch.WriteOutbound(tt.msg()) // nobody asks for this one
			if err := ch.CheckError(); !errors.Is(err, tt.want) {
				t.Errorf("got error %v, want %v", err, tt.want)
			}
			if got := outbound(ch); len(got) != 0 {
				t.Errorf("got %q written, want nothing", got)
			}
			ch.WriteOutbound("ok")
			if got := outbound(ch); len(got) != 1 {
				t.Errorf("got %q written after the failure, want one frame", got)
			}
			finish(t, ch)
		})
	}
}

// What one side writes the other reads.
func TestLengthFieldBothWays(t *testing.T) {
	for _, width := range []int{1, 2, 3, 4, 8} {
		for _, little := range []bool{false, true} {
			for _, adjust := range []int{0, -width} {
				cfg := codec.LengthField{Width: width, LittleEndian: little, Adjustment: adjust}
				a, b := embedded.New(cfg), embedded.New(cfg)
				want := []string{"", "x", strings.Repeat("y", 200)}
				for _, s := range want {
					a.WriteOutbound(s)
				}
				for m := a.ReadOutbound(); m != nil; m = a.ReadOutbound() {
					b.WriteInbound(m)
				}
				if got := inbound(b); !slices.Equal(got, want) {
					t.Errorf("%+v: got %q, want %q", cfg, got, want)
				}
				finish(t, a)
				finish(t, b)
			}
		}
	}
}

// A frame that is kept does not keep a receive buffer alive for a few bytes, and a
// large one is not copied.
func TestFramesPinWhatTheyNeed(t *testing.T) {
	ch := embedded.New(codec.LengthField{Width: 2})
	in := ch.Alloc().Alloc(64 << 10)
	in.WriteString("\x00\x05small\x20\x00")
	in.WriteString(strings.Repeat("L", 0x2000))
	in.WriteString("\x00\x05again")
	whole := in.Duplicate()
	ch.WriteInbound(in)
	small, large, again := ch.ReadInbound().(*buffer.Buf), ch.ReadInbound().(*buffer.Buf), ch.ReadInbound().(*buffer.Buf)
	for _, b := range []*buffer.Buf{small, again} {
		if b.SharesMemory(whole) || b.Pinned() > 512 {
			t.Errorf("a frame of %d bytes pins %d, want a copy", b.Len(), b.Pinned())
		}
	}
	if !large.SharesMemory(whole) {
		t.Errorf("a frame of %d bytes was copied, want a slice", large.Len())
	}
	for _, b := range []*buffer.Buf{small, large, again, whole} {
		b.Release()
	}
	finish(t, ch)
}

// However the stream is cut, the frames and the error are the same.
func FuzzLengthField(f *testing.F) {
	f.Add([]byte("\x00\x03abc\x00\x00"), uint8(1), uint8(1))
	f.Add([]byte("\x00\x03abc\xff\xff"), uint8(3), uint8(0x41))
	f.Add([]byte("\x7f\xff\xff\xff\xff\xff\xff\xff"), uint8(7), uint8(0x94))
	f.Fuzz(func(t *testing.T, stream []byte, step, shape uint8) {
		cfg := codec.LengthField{
			Width:        []int{1, 2, 3, 4, 8}[shape%5],
			Max:          300,
			Offset:       int(shape >> 3 & 3),
			Adjustment:   int(shape>>5&3) * 2,
			LittleEndian: shape>>7 == 1,
		}
		if shape>>4&1 == 1 {
			cfg.Adjustment, cfg.Strip = -cfg.Adjustment, 5-int(shape>>5&3)*2
		}
		same(t, cfg, stream, int(step)+1)
	})
}

// same checks that a framing makes the same of a stream fed whole and in steps, down
// to the kind of the error.
func same(t *testing.T, cfg any, stream []byte, step int) {
	t.Helper()
	err, wantErr := sameMessages(t, cfg, stream, step)
	for _, kind := range []error{codec.ErrFrameTooLong, codec.ErrCorruptedFrame} {
		if errors.Is(err, kind) != errors.Is(wantErr, kind) {
			t.Fatalf("%+v, step %d: got %v, want %v", cfg, step, err, wantErr)
		}
	}
}

// sameMessages checks that a decoder does, with an error or without, and returns the
// errors. Which error it is depends on the cuts when there are two reasons for one.
func sameMessages(t *testing.T, cfg any, stream []byte, step int) (err, wantErr error) {
	t.Helper()
	want, wantErr := decode(cfg, stream, len(stream)+1)
	got, err := decode(cfg, stream, step)
	if !slices.Equal(got, want) || (err == nil) != (wantErr == nil) {
		t.Fatalf("%+v, step %d: got %q, %v; want %q, %v", cfg, step, got, err, want, wantErr)
	}
	if n := buffer.Live(); n != 0 {
		t.Fatalf("%+v, step %d: got %d live Bufs, want none", cfg, step, n)
	}
	return err, wantErr
}

// decode feeds stream to a new decoder in steps and returns what came of it.
func decode(cfg any, stream []byte, step int) ([]string, error) {
	ch := embedded.New(cfg)
	for p := range slices.Chunk(stream, step) {
		ch.WriteInbound(buffer.FromBytes(p))
	}
	err := ch.Finish()
	return inbound(ch), err
}
