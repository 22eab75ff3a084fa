//go:build linux

package transport

import (
	"context"
	"errors"
	"runtime"
	"testing"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// A handler of a listener that breaks ends it, and with it the connections that it was
// about to judge: nobody else has them, and their peers are not left waiting.
func TestListenerHandlerBreaks(t *testing.T) {
	broken := errors.New("broken")
	for _, network := range []string{"tcp", "unix", "local"} {
		for _, tt := range []struct {
			name     string
			how      func()
			offload  bool
			isReason func(error) bool
		}{
			{"panic", func() { panic(broken) }, false, func(err error) bool { return errors.Is(err, broken) }},
			{"panic on an executor", func() { panic(broken) }, true, func(err error) bool { return errors.Is(err, broken) }},
			{"Goexit", runtime.Goexit, false, func(err error) bool { return errors.Is(err, pipeline.ErrGoexit) }},
		} {
			t.Run(network+" "+tt.name, func(t *testing.T) {
				g := newGroup(t, eventloop.GroupConfig{Loops: 2})
				served := make(chan pipeline.Channel, 1)
				n := 0
				var judge any = pipeline.On(func(c *pipeline.Context, ch pipeline.Channel) error {
					switch n++; n {
					case 1:
						c.FireRead(ch)
					case 2: // held back
					case 3:
						tt.how()
					}
					return nil
				})
				srv := &Server{Group: g, Init: func(ch pipeline.Channel) error { served <- ch; return nil },
					ListenerInit: func(l pipeline.Channel) error {
						if tt.offload {
							return l.Pipeline().Add(pipeline.Offloaded{Handler: judge})
						}
						return l.Pipeline().Add(judge)
					}}
				l, err := srv.Listen(context.Background(), network, anyAddr(t, network))
				if err != nil {
					t.Fatal(err)
				}
				var dialed []pipeline.Channel
				for i := range 3 {
					ch, err := (&Dialer{Group: g}).Dial(t.Context(), network, l.LocalAddr().String())
					if err == nil {
						dialed = append(dialed, ch)
					} else if i < 2 { // the reset of the last one may be quicker than its dial
						t.Fatal(err)
					}
				}
				await(t, l.Closed().Done(), "the end of the listener")
				if !tt.isReason(l.CloseReason()) {
					t.Errorf("the listener: got %v", l.CloseReason())
				}
				for _, ch := range dialed[1:] {
					await(t, ch.Closed().Done(), "the end of a connection that nobody serves")
				}
				if !dialed[0].Open() {
					t.Error("the connection that was passed on has been closed, too")
				}
				await(t, served, "the channel that was passed on").Reset()
				await(t, dialed[0].Closed().Done(), "the end of the first")
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				if err := srv.Shutdown(ctx); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
			})
		}
	}
}
