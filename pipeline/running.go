package pipeline

import (
	"fmt"

	"github.com/runnel-io/runnel/internal/invariant"
)

// running says which handler of which channel runs on the loop, for its watchdog: "" if
// none does. Any goroutine.
//
// What it looks at are the loop's own variables. For these to be atomic would cost a
// hop from handler to handler more than all the rest of it; as they are, a look may find
// the handler that was called a moment before, or one that has returned. The variables
// are a word each, so it finds nothing that was not there: contexts, and pipelines, say
// what they are called on any goroutine, as long as somebody knows them. The watchdog
// asks about calls that last, of which the variables do not change. The race detector
// would report the look, so its builds do without.
func (s *scope) running() string {
	if invariant.Race {
		return ""
	}
	p := s.inner
	if p == nil {
		return ""
	}
	c := p.cur
	switch c {
	case nil, &p.ends: // between the handlers and the transport
		return p.base.String()
	}
	return fmt.Sprintf("handler %q of %v", c.Name(), p.base)
}
