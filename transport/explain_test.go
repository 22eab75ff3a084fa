package transport_test

import (
	"testing"

	"github.com/runnel-io/runnel/pipeline/embedded"
	"github.com/runnel-io/runnel/transport"
)

// A channel of another package has no path that this one could know of.
func TestExplainForeign(t *testing.T) {
	ch := embedded.New()
	defer ch.Finish()
	ch.Do(func() {
		if got := transport.Explain(ch, "text"); got.Path != transport.PathNone || got.Reason == "" {
			t.Errorf("got %v, want %v and why", got, transport.PathNone)
		}
	})
}
