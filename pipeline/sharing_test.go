package pipeline_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// stateful has state and does not say that it may be shared.
type stateful struct{ n int }

func (h *stateful) HandleRead(c *pipeline.Context, msg any) error {
	h.n++
	c.FireRead(msg)
	return nil
}

// sharer says so.
type sharer struct{ stateful }

func (*sharer) Shareable() {}

// sameMaker makes the same handler each time.
type sameMaker struct{ h *stateful }

func (m *sameMaker) NewHandler() any { return m.h }

// A handler with state that is added where it is in use already is found out in builds
// with assertions.
func TestSemantics6_6_Sharing(t *testing.T) {
	tests := []struct {
		name  string
		add   func(a, b *pipeline.Pipeline) error
		found bool
	}{
		{"two pipelines", func(a, b *pipeline.Pipeline) error {
			h := new(stateful)
			return errors.Join(a.Add(h), b.Add(h))
		}, true},
		{"twice in one", func(a, _ *pipeline.Pipeline) error {
			h := new(stateful)
			return a.Add(h, h)
		}, true},
		{"a Maker that does not make one", func(a, b *pipeline.Pipeline) error {
			m := &sameMaker{new(stateful)}
			return errors.Join(a.Add(m), b.Add(m))
		}, true},
		{"traced", func(a, b *pipeline.Pipeline) error {
			h := new(stateful)
			return errors.Join(a.Trace(), a.Add(h), b.Add(h))
		}, true},
		{"one after the other", func(a, b *pipeline.Pipeline) error {
			h := new(stateful)
			return errors.Join(a.Add(h), pipeline.Find[*stateful](a).Remove(), b.Add(h))
		}, false},
		{"said to be shareable", func(a, b *pipeline.Pipeline) error {
			h := new(sharer)
			return errors.Join(a.Add(h, h), b.Add(h))
		}, false},
		{"without state", func(a, b *pipeline.Pipeline) error {
			h := new(starter)
			return errors.Join(a.Add(h), b.Add(h))
		}, false},
		{"a function", func(a, b *pipeline.Pipeline) error {
			h := pipeline.On(func(*pipeline.Context, int) error { return nil })
			return errors.Join(a.Add(h), b.Add(h))
		}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := newChannel(t, embedded.Config{}), newChannel(t, embedded.Config{})
			var found bool
			func() {
				defer func() {
					s, _ := recover().(string)
					found = strings.Contains(s, "not Shareable")
				}()
				if err := tt.add(a.Pipeline(), b.Pipeline()); err != nil {
					t.Error(err)
				}
			}()
			if found != (tt.found && invariant.Enabled) {
				t.Errorf("found out: got %v, want %v in a build with assertions %v", found, tt.found, invariant.Enabled)
			}
		})
	}
}
