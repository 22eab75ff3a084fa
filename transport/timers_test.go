//go:build linux

package transport

import (
	"testing"
	"time"

	"github.com/runnel-io/runnel/pipeline"
)

// The timers of an address, of another try, and of the grace in a drain end with their
// channel, which closes before they are due.
func TestTimersEndWithTheirChannel(t *testing.T) {
	for _, tt := range []struct {
		name  string
		start func(t *testing.T) (ch pipeline.Channel, end func(), armed func() int)
	}{
		{"of an address", func(t *testing.T) (pipeline.Channel, func(), func() int) {
			silent := full(t)
			r := newDialRig(t, &Dialer{}, 10*time.Minute, silent, silent)
			return r, func() { r.m.Enter(r.Reset) }, func() int { return r.m.Loop().Metrics().TimersArmed }
		}},
		{"of the grace in a drain", func(t *testing.T) (pipeline.Channel, func(), func() int) {
			r := newRig(t, rigConfig{})
			r.do((*drainTask)(r.stream).Run)
			return r, func() { r.m.Enter(r.Reset) }, func() int { return r.m.Loop().Metrics().TimersArmed }
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ch, end, armed := tt.start(t)
			if n := armed(); n != 1 || !ch.Open() {
				t.Fatalf("got %d timers, open %v; want one of an open channel", n, ch.Open())
			}
			if end(); armed() != 0 || ch.Open() {
				t.Errorf("after the end: got %d timers, open %v; want none, false", armed(), ch.Open())
			}
		})
	}
}
