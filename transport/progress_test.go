package transport

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// The progress of a region is told as it leaves, in place or by an Op, and its end
// before its completion; other messages make none.
func TestProgress(t *testing.T) {
	content := letters(3 << 20)
	for _, cold := range []bool{false, true} {
		t.Run(fmt.Sprintf("cold %v", cold), func(t *testing.T) {
			r := newRig(t, rigConfig{}, new(writer))
			r.k.cold = cold
			c := pipeline.Find[*writer](r.Pipeline())
			var calls []string
			write := func(name string, msg any) {
				c.WriteProgress(msg,
					func(sent, total int64) { calls = append(calls, fmt.Sprintf("%s %d/%d", name, sent, total)) },
					func(err error) { calls = append(calls, fmt.Sprintf("%s %v", name, err)) })
			}
			r.k.take = []takeStep{{n: 4}, {n: 1000}, {err: sys.ErrAgain}}
			r.do(func() {
				write("head", pooled("head"))
				write("region", buffer.NewFileRegion(tempFile(t, content), 0, int64(len(content))))
				write("empty", buffer.NewFileRegion(tempFile(t, content), 7, 0))
				write("tail", "tail")
			})
			r.m.RunUntilIdle()
			for i := 0; i < 20 && r.k.out.Len() < len(content)+8; i++ {
				r.ready(eventloop.EventWrite)
				r.m.RunUntilIdle()
			}
			r.wantOut("head" + content + "tail")
			n := len(content)
			want := []string{"head <nil>", fmt.Sprintf("region 1000/%d", n)}
			piece := regionPiece
			if cold {
				piece = regionBudget // by one Op
			}
			for sent := 1000 + piece; sent < n; sent += piece {
				want = append(want, fmt.Sprintf("region %d/%d", sent, n))
			}
			want = append(want, fmt.Sprintf("region %d/%d", n, n), "region <nil>", "empty <nil>", "tail <nil>")
			if !slices.Equal(calls, want) {
				t.Errorf("got  %q\nwant %q", calls, want)
			}
		})
	}
	t.Run("closes", func(t *testing.T) {
		r := newRig(t, rigConfig{}, new(writer))
		c := pipeline.Find[*writer](r.Pipeline())
		calls, result := 0, error(nil)
		r.do(func() {
			c.WriteProgress(buffer.NewFileRegion(tempFile(t, content), 0, int64(len(content))),
				func(sent, total int64) { calls++; r.Reset() }, func(err error) { result = err })
		})
		r.m.RunUntilIdle()
		if calls != 1 || !errors.Is(result, pipeline.ErrClosed) {
			t.Errorf("got %d calls and %v, want 1 and %v", calls, result, pipeline.ErrClosed)
		}
	})
	t.Run("panics", func(t *testing.T) {
		r := newRig(t, rigConfig{}, new(writer))
		r.log = nil
		c := pipeline.Find[*writer](r.Pipeline())
		var result error
		r.do(func() {
			c.WriteProgress(buffer.NewFileRegion(tempFile(t, content), 0, int64(len(content))),
				func(sent, total int64) { panic("broken") }, func(err error) { result = err })
		})
		r.m.RunUntilIdle()
		var pe *pipeline.PanicError
		if !errors.As(result, &pe) || pe.Handler != "writer#0" || r.Open() {
			t.Errorf("got %v, open %v; want a panic of writer#0, closed", result, r.Open())
		}
	})
}

// Messages from memory make no progress, the empty ones behind a region neither.
func TestProgress_EmptyBehindRegion(t *testing.T) {
	for name, empty := range map[string]func() any{
		"buffer": func() any { return pooled("") },
		"string": func() any { return "" },
		"bytes":  func() any { return []byte{} },
	} {
		r := newRig(t, rigConfig{}, new(writer))
		c := pipeline.Find[*writer](r.Pipeline())
		ended := 0
		r.do(func() {
			c.Write(buffer.NewFileRegion(tempFile(t, "content"), 0, 7))
			c.WriteProgress(empty(), func(sent, total int64) {
				t.Errorf("%s: progress of %d/%d", name, sent, total)
			}, func(err error) { ended++ })
		})
		r.m.RunUntilIdle()
		if ended != 1 {
			t.Errorf("%s: ended %d times", name, ended)
		}
		r.wantOut("content")
	}
}

// writer is a handler to write as.
type writer struct{ _ int }

func (*writer) HandleRead(c *pipeline.Context, msg any) error { c.FireRead(msg); return nil }
