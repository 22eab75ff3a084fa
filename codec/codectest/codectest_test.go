package codectest_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/codec/codectest"
	"github.com/runnel-io/runnel/pipeline"
)

// TestMain also checks that the tests leave nothing behind.
func TestMain(m *testing.M) {
	before := goleak.IgnoreCurrent() // the import of ants starts two goroutines
	code := m.Run()
	if err := goleak.Find(before); err != nil {
		fmt.Println("goroutines left:", err)
		code = 1
	}
	if n := buffer.Live(); n != 0 {
		fmt.Printf("live buffers: got %d at the end, want 0\n", n)
		code = 1
	}
	os.Exit(code)
}

// recorder is a testing.TB that keeps what is reported.
type recorder struct {
	testing.TB
	failures []string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

type decoderFunc func(c *pipeline.Context, in *buffer.Buf) (any, error)

func (f decoderFunc) Decode(c *pipeline.Context, in *buffer.Buf) (any, error) { return f(c, in) }

func pairs(_ *pipeline.Context, in *buffer.Buf) (any, error) {
	if in.Len() < 2 {
		return nil, nil
	}
	return in.ReadSlice(2), nil
}

var errX = errors.New("an X")

func pairsUpToX(c *pipeline.Context, in *buffer.Buf) (any, error) {
	if in.Uint8At(in.ReaderIndex()) == 'X' {
		return nil, errX
	}
	return pairs(c, in)
}

// hoarder is a decoder of pairs that keeps a large Buf all the time.
type hoarder struct {
	in *buffer.Buf
}

func (h *hoarder) HandleRead(c *pipeline.Context, msg any) error {
	b := msg.(*buffer.Buf)
	if h.in == nil {
		h.in = c.Alloc().Alloc(8192)
	}
	h.in.WriteBuf(b)
	b.Release()
	for h.in.Len() >= 2 {
		c.FireRead(h.in.ReadString(2))
	}
	return nil
}

func (h *hoarder) Held() (bytes, pinned int) { return h.in.Len(), h.in.Pinned() }

func (h *hoarder) HandleRemoved(*pipeline.Context) {
	if h.in != nil {
		h.in.Release()
	}
}

// passive is a decoder of pairs that never asks for the rest of one.
type passive struct {
	in []byte
}

func (h *passive) HandleRead(c *pipeline.Context, msg any) error {
	b := msg.(*buffer.Buf)
	h.in = append(h.in, b.Window()...)
	b.Release()
	for len(h.in) >= 2 {
		c.FireRead(string(h.in[:2]))
		h.in = h.in[2:]
	}
	return nil
}

func TestVerify(t *testing.T) {
	with := func(f decoderFunc) func() any {
		return func() any { return codec.Decoding{New: func() codec.Decoder { return f }} }
	}
	const in = "aabbccd"
	right := []string{"aa", "bb", "cc"}
	tests := []struct {
		name       string
		newDecoder func() any
		in         string
		want       []string
		wantErr    error
		report     string // part of it; empty if there is to be none
	}{
		{name: "right", newDecoder: with(pairs), in: in, want: right},
		{name: "right with nothing", newDecoder: with(pairs)},
		{name: "right with an error", newDecoder: with(pairsUpToX), in: "aaX", want: []string{"aa"}, wantErr: errX},
		{name: "another message", newDecoder: with(pairs), in: in, want: []string{"aa", "bb", "c"}, report: "got messages"},
		{name: "a message missing", newDecoder: with(pairs), in: in, want: append(right, "dd"), report: "got messages"},
		{name: "an error that is not expected", newDecoder: with(pairsUpToX), in: "aaX", want: []string{"aa"}, report: "want none"},
		{name: "no error", newDecoder: with(pairs), in: in, want: right, wantErr: errX, report: "want an X once"},
		{name: "another error", newDecoder: with(pairsUpToX), in: "aaX", want: []string{"aa"}, wantErr: errors.ErrUnsupported, report: "got errors [an X]"},
		{
			name: "depends on the cuts",
			newDecoder: with(func(_ *pipeline.Context, in *buffer.Buf) (any, error) {
				return in.ReadString(min(2, in.Len())), nil
			}),
			in: "aabbcc", want: right, report: "1 bytes at a time",
		},
		{
			name: "leaks",
			newDecoder: func() any {
				return codec.Decoding{New: func() codec.Decoder {
					return decoderFunc(func(c *pipeline.Context, in *buffer.Buf) (any, error) {
						if in.Len() == 7 {
							leaked = append(leaked, buffer.FromString("lost"))
						}
						return pairs(c, in)
					})
				}}
			},
			in: in, want: right, report: "1 more live Buf",
		},
		{
			name: "messages change",
			newDecoder: with(func(_ *pipeline.Context, in *buffer.Buf) (any, error) {
				if in.Len() < 2 {
					return nil, nil
				}
				b := in.ReadSlice(2)
				if i := in.ReaderIndex(); in.Len() > 0 && i >= 4 {
					in.SetUint8At(i-4, 'Z')
				}
				return b, nil
			}),
			in: in, want: right, report: "became",
		},
		{name: "keeps too much", newDecoder: func() any { return &hoarder{} }, in: in, want: right, report: "memory alive"},
		{name: "does not ask", newDecoder: func() any { return &passive{} }, in: in, want: right, report: "nobody asked"},
		{name: "panics", newDecoder: with(func(*pipeline.Context, *buffer.Buf) (any, error) { panic("oops") }), in: in, report: "oops"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := &recorder{TB: t}
			codectest.Verify(r, tt.newDecoder, tt.in, tt.want, tt.wantErr)
			for _, b := range leaked {
				b.Release()
			}
			leaked = nil
			switch {
			case tt.report == "" && len(r.failures) > 0:
				t.Errorf("got %q, want no failure", r.failures)
			case tt.report != "" && (len(r.failures) != 1 || !strings.Contains(r.failures[0], tt.report)):
				t.Errorf("got %q, want one failure that says %q", r.failures, tt.report)
			}
		})
	}
}

var leaked []*buffer.Buf

// A failure with random cuts says how to repeat it.
func TestVerifyRandomCutsCanBeRepeated(t *testing.T) {
	// Wrong only after three pieces of different sizes, which the regular cuts do not
	// have.
	in := strings.Repeat("x", 40)
	var first string
	t.Setenv("CODECTEST_SEED", "7")
	for range 2 {
		r := &recorder{TB: t}
		codectest.Verify(r, func() any { return &touchy{} }, in, nil, nil)
		if len(r.failures) != 1 || !strings.Contains(r.failures[0], "CODECTEST_SEED=7") {
			t.Fatalf("got %q, want one failure with the seed", r.failures)
		}
		if first == "" {
			first = r.failures[0]
		} else if r.failures[0] != first {
			t.Errorf("got %q the second time, want %q as before", r.failures[0], first)
		}
	}
}

type touchy struct{ last, before int }

func (h *touchy) HandleRead(c *pipeline.Context, msg any) error {
	n := msg.(*buffer.Buf).Len()
	buffer.Release(msg)
	if h.before > 0 && n != h.last && n != h.before && h.last != h.before {
		c.FireRead("wrong")
	}
	h.before, h.last = h.last, n
	c.Read()
	return nil
}
