package pipeline_test

import (
	"context"
	"slices"
	"testing"

	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// CloseIdle waits for what has begun, and lets what was written before the last End
// leave.
func TestCloseIdle(t *testing.T) {
	tests := []struct {
		name string
		do   func(ch *embedded.Channel)
		open bool
		out  []any
	}{
		{"nothing under way", func(*embedded.Channel) {}, false, nil},
		{"begun", func(ch *embedded.Channel) { ch.Begin() }, true, nil},
		{"begun twice and ended once", func(ch *embedded.Channel) { ch.Begin(); ch.Begin(); ch.End() }, true, nil},
		{"ended before", func(ch *embedded.Channel) { ch.Begin(); ch.End() }, false, nil},
		{"an answer before the end", func(ch *embedded.Channel) {
			ch.Begin()
			ch.CloseIdle()
			ch.Write("answer")
			ch.End()
		}, false, []any{"answer"}},
		{"something new in the same turn", func(ch *embedded.Channel) {
			ch.Begin()
			ch.CloseIdle()
			ch.End()
			ch.Begin()
		}, true, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ch := embedded.NewTest(t, embedded.Config{})
			ch.Do(func() {
				tt.do(ch)
				ch.CloseIdle()
			})
			ch.Run()
			if ch.Open() != tt.open {
				t.Errorf("open: got %v, want %v", ch.Open(), tt.open)
			}
			var out []any
			for msg := ch.ReadOutbound(); msg != nil; msg = ch.ReadOutbound() {
				out = append(out, msg)
			}
			if !slices.Equal(out, tt.out) {
				t.Errorf("written: got %v, want %v", out, tt.out)
			}
		})
	}
}

// Off the loop, End comes behind what the same goroutine has written, also if the drain
// begins in between.
func TestEndElsewhere(t *testing.T) {
	for _, before := range []bool{true, false} {
		ch := embedded.NewTest(t, embedded.Config{})
		ch.Do(ch.Begin)
		if before {
			ch.Do(ch.CloseIdle)
		}
		done := make(chan struct{})
		go func() {
			ch.Write("answer")
			ch.End()
			close(done)
		}()
		<-done
		if !ch.Open() {
			t.Error("closed before the loop has come to it")
		}
		if !before {
			ch.Manual().Enter(ch.CloseIdle) // ahead of what is on its way to the loop
		}
		ch.Run()
		if ch.Open() || ch.ReadOutbound() != "answer" {
			t.Errorf("drained before %v: got open %v, want a closed channel and the answer", before, ch.Open())
		}
	}
}

func TestEndWithoutBegin(t *testing.T) {
	for _, idle := range []bool{false, true} {
		ch := embedded.NewTest(t, embedded.Config{})
		if idle {
			ch.Do(ch.CloseIdle)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("after CloseIdle %v: no panic", idle)
				}
			}()
			ch.Do(ch.End)
		}()
	}
}

// An Offload is under way until its second function has returned.
func TestCloseIdleWaitsForOffload(t *testing.T) {
	ch := embedded.NewTest(t, embedded.Config{}, pipeline.On(func(c *pipeline.Context, s string) error {
		c.Offload(func(context.Context) (any, error) { return s + "!", nil }, func(v any, err error) { c.Write(v) })
		return nil
	}))
	ch.Do(func() {
		ch.Pipeline().FireRead("request")
		ch.CloseIdle()
	})
	ch.Run()
	if got := ch.ReadOutbound(); ch.Open() || got != "request!" {
		t.Errorf("got open %v, answer %v; want false, request!", ch.Open(), got)
	}
}

// What waits for handlers on executors comes before the close, through all of them.
func TestCloseIdleWaitsForStrands(t *testing.T) {
	hop := func(s string) any {
		return pipeline.Offloaded{Handler: pipeline.On(func(c *pipeline.Context, msg string) error { c.FireRead(msg + s); return nil })}
	}
	here := pipeline.On(func(c *pipeline.Context, msg string) error { c.FireRead(msg + "-"); return nil })
	answer := pipeline.Offloaded{Handler: pipeline.On(func(c *pipeline.Context, msg string) error { c.Write(msg); return nil })}
	ch := embedded.NewTest(t, embedded.Config{}, hop("a"), here, hop("b"), answer)
	ch.Do(func() {
		ch.Pipeline().FireRead("1")
		ch.Pipeline().FireRead("2")
		ch.CloseIdle()
	})
	ch.Run()
	if a, b := ch.ReadOutbound(), ch.ReadOutbound(); ch.Open() || a != "1a-b" || b != "2a-b" {
		t.Errorf("got open %v, answers %v, %v; want false, 1a-b, 2a-b", ch.Open(), a, b)
	}
}
