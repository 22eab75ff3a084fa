package pipeline_test

import (
	"testing"

	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// starting starts something when its channel is active, whenever it is added.
type starting struct{ starts, stops int }

func (s *starting) HandleAdded(c *pipeline.Context) error {
	if c.Active() {
		s.starts++
	}
	return nil
}

func (s *starting) HandleActive(c *pipeline.Context) error {
	s.starts++
	return nil
}

func (s *starting) HandleInactive(*pipeline.Context) error {
	s.stops++
	return nil
}

// holding holds HandleActive back.
type holding struct{ c *pipeline.Context }

func (h *holding) InterceptActive(c *pipeline.Context) error {
	h.c = c
	return nil
}

// A handler that asks Context.Active in HandleAdded starts once, and stops once, however
// far HandleActive has got.
func TestStartsOnce(t *testing.T) {
	add := func(s any) any {
		return pipeline.OnActive(func(c *pipeline.Context) error { return c.Pipeline().Add(s) })
	}
	tests := []struct {
		name string
		open func(s any) *embedded.Channel
	}{
		{"added by Init", func(s any) *embedded.Channel { return embedded.New(s) }},
		{"added when the channel is active", func(s any) *embedded.Channel {
			ch := embedded.New()
			ch.Do(func() { mustAdd(t, ch.Pipeline().Add(s)) })
			return ch
		}},
		{"added behind others when the channel is active", func(s any) *embedded.Channel {
			ch := embedded.New(new(sink))
			ch.Do(func() { mustAdd(t, ch.Pipeline().Add(s)) })
			return ch
		}},
		{"added by a HandleActive before it", func(s any) *embedded.Channel { return embedded.New(add(s)) }},
		{"added by a HandleActive before it and others", func(s any) *embedded.Channel { return embedded.New(add(s), new(sink)) }},
		{"added by a HandleActive behind it", func(s any) *embedded.Channel {
			return embedded.New(pipeline.OnActive(func(c *pipeline.Context) error { return c.Pipeline().AddFirst(s) }))
		}},
		{"in the place of its predecessor", func(s any) *embedded.Channel {
			return embedded.New(pipeline.OnActive(func(c *pipeline.Context) error {
				_, err := c.Pipeline().Replace(c, "", s)
				return err
			}))
		}},
		{"while HandleActive is held back before it", func(s any) *embedded.Channel {
			h := new(holding)
			ch := embedded.New(h)
			ch.Do(func() {
				mustAdd(t, ch.Pipeline().Add(s))
				h.c.FireActive()
			})
			return ch
		}},
		{"while HandleActive is held back behind it", func(s any) *embedded.Channel {
			h := new(holding)
			ch := embedded.New(h)
			ch.Do(func() {
				mustAdd(t, ch.Pipeline().AddFirst(s))
				h.c.FireActive()
			})
			return ch
		}},
	}
	for _, tt := range tests {
		for _, where := range []string{"loop", "executor"} {
			t.Run(tt.name+" on the "+where, func(t *testing.T) {
				s := new(starting)
				h := any(s)
				if where == "executor" {
					h = pipeline.Offloaded{Handler: s}
				}
				ch := tt.open(h)
				ch.Run()
				if s.starts != 1 {
					t.Errorf("got %d starts, want 1", s.starts)
				}
				if err := ch.Finish(); err != nil {
					t.Error(err)
				}
				if s.starts != 1 || s.stops != 1 {
					t.Errorf("at the end: got %d starts and %d stops, want one of each", s.starts, s.stops)
				}
			})
		}
	}
}

// A channel that was active and has closed is not one to start for.
func TestActiveOfAClosedChannel(t *testing.T) {
	ch := embedded.New(new(sink))
	s := new(starting)
	ch.Do(func() {
		ch.Reset()
		mustAdd(t, ch.Pipeline().Add(s))
	})
	if s.starts != 0 {
		t.Errorf("got %d starts, want none", s.starts)
	}
	if err := ch.Finish(); err != nil {
		t.Error(err)
	}
}

func mustAdd(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// What HandleInactive adds on an executor is between the channel and those behind it like
// any other: they are removed when HandleUnregistered has passed it.
func TestAddedByHandleInactive(t *testing.T) {
	log := new(trace)
	b := &tracer{name: "b", log: log}
	ch := embedded.New(b)
	a := &tracer{name: "a", log: log}
	b.on("inactive", func(k call) error {
		return k.c.Pipeline().AddFirst(pipeline.Offloaded{Handler: a})
	})
	log.take()
	if err := ch.Finish(); err != nil {
		t.Error(err)
	}
	checkCalls(t, "at the end", log.of("inactive", "unregistered", "removed"),
		"b inactive", "a unregistered", "b unregistered", "b removed", "a removed")
}
