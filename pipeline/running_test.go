package pipeline_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/pipeline"
)

// The watchdog says which handler of which channel holds a loop, while it does so and
// when it has returned.
func TestWatchdogNamesHandlerAndChannel(t *testing.T) {
	if invariant.Race {
		t.Skip("nobody looks under the race detector")
	}
	if runtime.GOOS != "linux" {
		t.Skip("loops with a poller need Linux")
	}
	core, logs := observer.New(zap.WarnLevel)
	reported := make(chan string, 10)
	logger := zap.New(core, zap.Hooks(func(e zapcore.Entry) error {
		reported <- e.Message
		return nil
	}))
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1, Logger: logger, Watchdog: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	m := newMemory(t, g.Next(), new(forwarder))
	enough := make(chan struct{})
	_, err = m.Pipeline().AddNamed("culprit", pipeline.On(func(c *pipeline.Context, msg int) error {
		c.FireRead(msg) // the next one is called, and has returned
		<-enough
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Pipeline().Add(new(sink)); err != nil {
		t.Fatal(err)
	}
	m.Pipeline().FireRead(1)
	for await(t, "the first report", reported) != "a call holds its loop" {
	}
	close(enough)
	for await(t, "the second report", reported) != "a call held its loop" {
	}
	want := fmt.Sprintf("handler %q of %v", "culprit", m)
	for _, what := range []string{"a call holds its loop", "a call held its loop"} {
		reports := logs.FilterMessage(what).FilterField(zap.String("inside", want)).Len()
		if reports == 0 {
			t.Errorf("%s: no report that names %s: %v", what, want, logs.All())
		}
	}
}
