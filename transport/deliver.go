package transport

import (
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// outcome is what a user has to be told exactly once, as a task.
type outcome func()

func (f outcome) Run() { f() }

// deliver has f called as c's handler, later. When nothing is called that way any more, f
// is called with the last of its loop's calls, or behind them; see [eventloop.Loop.Deliver].
func deliver(c *pipeline.Context, f func()) {
	if c.Execute(f) != nil {
		c.Loop().Deliver(outcome(f))
	}
}

// deliverTo is deliver for what no handler has asked for.
func deliverTo(l *eventloop.Loop, f func()) { l.Deliver(outcome(f)) }
