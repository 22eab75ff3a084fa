package pipeline_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// tag is a mapper of both ways that adds its name to each string. do, if set, is called
// first and says how it ends.
type tag struct {
	name string
	do   func(c *pipeline.Context, msg string) (any, error)
	errs *[]string
}

func (h *tag) MapRead(c *pipeline.Context, msg any) (any, error)  { return h.apply(c, msg) }
func (h *tag) MapWrite(c *pipeline.Context, msg any) (any, error) { return h.apply(c, msg) }

func (h *tag) apply(c *pipeline.Context, msg any) (any, error) {
	if h.do != nil {
		return h.do(c, msg.(string))
	}
	return msg.(string) + h.name, nil
}

func (h *tag) HandleError(c *pipeline.Context, err error) {
	if h.errs != nil {
		*h.errs = append(*h.errs, h.name)
	}
	c.FireError(err)
}

// handle is the same as a handler that passes messages on itself.
type handle struct{ name string }

func (h handle) HandleRead(c *pipeline.Context, msg any) error {
	c.FireRead(msg.(string) + h.name)
	return nil
}

func (h handle) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	c.ForwardWrite(msg.(string)+h.name, p)
	return nil
}

// checkMapped sends a message each way and says what came out.
func checkMapped(t *testing.T, ch *embedded.Channel, read, written any) {
	t.Helper()
	ch.WriteInbound("r")
	if got := ch.ReadInbound(); got != read {
		t.Errorf("read: got %v, want %v", got, read)
	}
	ch.WriteOutbound("w")
	if got := ch.ReadOutbound(); got != written {
		t.Errorf("written: got %v, want %v", got, written)
	}
	var outcome []error
	ch.Do(func() { ch.WriteThen("p", func(err error) { outcome = append(outcome, err) }) })
	want := any(nil)
	if written != nil {
		want = "p" + strings.TrimPrefix(written.(string), "w")
	}
	if got := ch.ReadOutbound(); got != want || len(outcome) != 1 || outcome[0] != nil {
		t.Errorf("written with a completion: got %v, completed with %v; want %v, completed once without error", got, outcome, want)
	}
}

func TestMapper(t *testing.T) {
	nothing := func(*pipeline.Context, string) (any, error) { return nil, nil }
	removes := func(c *pipeline.Context, msg string) (any, error) { return msg + "!", c.Remove() }
	flushes := func(c *pipeline.Context, msg string) (any, error) {
		c.Flush()
		return msg + "f", nil
	}
	for _, tt := range []struct {
		name     string
		handlers []any
		read     any
		written  any
	}{
		{"one", []any{&tag{name: "a"}}, "ra", "wa"},
		{"a row", []any{&tag{name: "a"}, &tag{name: "b"}, &tag{name: "c"}}, "rabc", "wcba"},
		{"between others", []any{handle{"a"}, &tag{name: "b"}, &bystander{}, &tag{name: "c"}, handle{"d"}, &tag{name: "e"}}, "rabcde", "wedcba"},
		{"nothing", []any{&tag{name: "a"}, &tag{do: nothing}, &tag{name: "c"}}, nil, nil},
		{"nothing at once", []any{&tag{do: nothing}, handle{"c"}}, nil, nil},
		{"removes itself", []any{&tag{name: "a"}, &tag{do: removes}, &tag{name: "c"}}, "ra!c", "wca"},
		{"removes itself at once", []any{&tag{do: removes}, &bystander{}, &tag{name: "c"}}, "r!c", "wc"},
		{"flushes", []any{&tag{name: "a"}, &tag{do: flushes}, &tag{name: "c"}}, "rafc", "wcfa"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checkMapped(t, newChannel(t, embedded.Config{}, tt.handlers...), tt.read, tt.written)
		})
		t.Run(tt.name+", traced", func(t *testing.T) {
			for i, h := range tt.handlers {
				if h, ok := h.(*tag); ok { // a handler is in one pipeline at a time
					tt.handlers[i] = &tag{name: h.name, do: h.do}
				}
			}
			ch := newChannel(t, embedded.Config{})
			ch.Do(func() {
				if err := ch.Pipeline().Trace(); err != nil {
					t.Fatal(err)
				}
				if err := ch.Pipeline().Add(tt.handlers...); err != nil {
					t.Fatal(err)
				}
			})
			checkMapped(t, ch, tt.read, tt.written)
		})
	}
}

// An error is the mapper's own, wherever in a row it is: its HandleError comes first.
func TestMapper_Error(t *testing.T) {
	some := errors.New("some error")
	fails := func(*pipeline.Context, string) (any, error) { return "lost", some }
	panics := func(*pipeline.Context, string) (any, error) { panic("broken") }
	for _, tt := range []struct {
		name string
		at   int
		do   func(*pipeline.Context, string) (any, error)
		want []string // of the handlers 0 1 2, HandleError
	}{
		{"the first", 0, fails, []string{"0", "1", "2"}},
		{"one in the row", 1, fails, []string{"1", "2"}},
		{"the last", 2, fails, []string{"2"}},
		{"a panic in the first", 0, panics, []string{"0", "1", "2"}},
		{"a panic in the row", 1, panics, []string{"1", "2"}},
	} {
		make := func(t *testing.T, errs *[]string) *embedded.Channel {
			var hs []any
			for i := range 3 {
				h := &tag{name: fmt.Sprint(i), errs: errs}
				if i == tt.at {
					h.do = tt.do
				}
				hs = append(hs, h)
			}
			return newChannel(t, embedded.Config{}, hs...)
		}
		check := func(t *testing.T, ch *embedded.Channel, err error) {
			t.Helper()
			var pe *pipeline.PanicError
			if !errors.Is(err, some) && !(errors.As(err, &pe) && pe.Handler == fmt.Sprintf("tag#%d", tt.at)) {
				t.Errorf("got error %v, want %v or a panic of tag#%d", err, some, tt.at)
			}
			if msg := ch.ReadInbound(); msg != nil {
				t.Errorf("got %v at the end, want nothing", msg)
			}
			if msg := ch.ReadOutbound(); msg != nil {
				t.Errorf("got %v written, want nothing", msg)
			}
		}
		t.Run(tt.name+", reading", func(t *testing.T) {
			var errs []string
			ch := make(t, &errs)
			ch.WriteInbound("r")
			check(t, ch, ch.CheckError())
			if !slices.Equal(errs, tt.want) {
				t.Errorf("HandleError: got %v, want %v", errs, tt.want)
			}
		})
		t.Run(tt.name+", writing", func(t *testing.T) {
			var errs []string
			ch := make(t, &errs)
			ch.Do(func() { ch.Write("w") })
			check(t, ch, ch.CheckError())
		})
		t.Run(tt.name+", writing with a completion", func(t *testing.T) {
			var errs []string
			ch := make(t, &errs)
			var outcome []error
			ch.Do(func() { ch.WriteThen("w", func(err error) { outcome = append(outcome, err) }) })
			if len(outcome) != 1 {
				t.Fatalf("got %d completions, want 1", len(outcome))
			}
			check(t, ch, outcome[0])
			_ = ch.CheckError()
		})
	}
}

// both is a handler that cannot be told how to call.
type readsTwice struct{ handle }

func (readsTwice) MapRead(_ *pipeline.Context, msg any) (any, error) { return msg, nil }

type writesTwice struct{ handle }

func (writesTwice) MapWrite(_ *pipeline.Context, msg any) (any, error) { return msg, nil }

func TestMapper_BothForms(t *testing.T) {
	ch := newChannel(t, embedded.Config{})
	for _, h := range []any{readsTwice{}, writesTwice{}} {
		if err := ch.Pipeline().Add(h); !errors.Is(err, pipeline.ErrNotHandler) {
			t.Errorf("%T: got %v, want %v", h, err, pipeline.ErrNotHandler)
		}
	}
}
