package pipeline_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/pipeline"
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
// with assertions: in channels of one kind, on one loop or on two.
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
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				a, b := open(), open()
				var err error
				func() {
					defer func() { // where the test is the loop; elsewhere the panic comes back as an error
						if s, ok := recover().(string); ok {
							err = errors.New(s)
						}
					}()
					err = tt.add(a.ch.Pipeline(), b.ch.Pipeline())
				}()
				found := err != nil && strings.Contains(err.Error(), "not Shareable")
				if err != nil && !found {
					t.Error(err)
				}
				if found != (tt.found && invariant.Enabled) {
					t.Errorf("found out: got %v, want %v in a build with assertions %v", found, tt.found, invariant.Enabled)
				}
			})
		}
	})
}
