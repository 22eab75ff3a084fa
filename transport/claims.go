package transport

import (
	"sync"

	"github.com/runnel-io/runnel/pipeline"
)

// claims is who has the input of a channel to himself, and who its output: a relay has
// both, a FileReceiver the input, a mirror the output. A relay across loops asks for a
// channel of another loop, so they are there for every goroutine.
type claims struct {
	mu            sync.Mutex
	input, output claim
}

// claim is that of by. Whoever comes next is told err.
type claim struct {
	by  any // nil if it is free
	err error
}

// claimed is the claims of the channels that have been claimed before.
var claimed = pipeline.NewAttr[*claims]("transport: claims")

// claimInput takes what ch receives for by.
func claimInput(ch pipeline.Channel, by any, err error) error {
	return claimBoth(ch, by, err, true, false)
}

// claimOutput takes what ch sends for by.
func claimOutput(ch pipeline.Channel, by any, err error) error {
	return claimBoth(ch, by, err, false, true)
}

// claimBoth takes what it is asked for, or nothing: then it returns what those who have
// it want others to be told.
func claimBoth(ch pipeline.Channel, by any, err error, input, output bool) error {
	c, ok := claimed.Get(ch)
	if !ok {
		c, _ = claimed.SetIfAbsent(ch, new(claims))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case input && c.input.by != nil:
		return c.input.err
	case output && c.output.by != nil:
		return c.output.err
	}
	if input {
		c.input = claim{by, err}
	}
	if output {
		c.output = claim{by, err}
	}
	return nil
}

// disclaimInput gives back what ch receives, if by has it.
func disclaimInput(ch pipeline.Channel, by any) {
	if c, ok := claimed.Get(ch); ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.input.release(by)
	}
}

// disclaimOutput gives back what ch sends, if by has it.
func disclaimOutput(ch pipeline.Channel, by any) {
	if c, ok := claimed.Get(ch); ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.output.release(by)
	}
}

func (c *claim) release(by any) {
	if c.by == by {
		*c = claim{}
	}
}

// claimRelay takes all of both channels, or nothing.
func claimRelay(a, b pipeline.Channel, by any) error {
	if err := claimBoth(a, by, ErrRelayed, true, true); err != nil {
		return err
	}
	err := claimBoth(b, by, ErrRelayed, true, true)
	if err != nil {
		disclaim(a, by)
	}
	return err
}

// disclaim gives back all of ch that by has.
func disclaim(ch pipeline.Channel, by any) {
	disclaimInput(ch, by)
	disclaimOutput(ch, by)
}

// claimMirrors takes the outputs of the channels among the sinks, or nothing.
func claimMirrors(mirrors []Mirror, by any) error {
	for i, m := range mirrors {
		if m.Channel == nil {
			continue
		}
		if err := claimOutput(m.Channel, by, ErrRelayed); err != nil {
			for _, o := range mirrors[:i] {
				if o.Channel != nil {
					disclaimOutput(o.Channel, by)
				}
			}
			return err
		}
	}
	return nil
}
