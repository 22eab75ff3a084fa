package pipeline_test

import (
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// writeForwarder passes every write on.
type writeForwarder struct{ n int }

func (f *writeForwarder) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	f.n++
	c.ForwardWrite(msg, p)
	return nil
}

// counter counts read completions.
type counter struct{ n int }

func (h *counter) HandleReadComplete(*pipeline.Context) error {
	h.n++
	return nil
}
