package transport_test

import (
	"fmt"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// Both ends of a protocol, in virtual time: no socket, no goroutine, no waiting.
func ExampleLocalPair() {
	man := eventloop.NewManual()
	defer man.Close()
	double := func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, n int) error {
			c.Write(2 * n) // any message passes, as it is
			return nil
		}))
	}
	show := func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.On(func(_ *pipeline.Context, n int) error {
			fmt.Println("got", n)
			return nil
		}))
	}
	client, _, err := transport.LocalPair(
		transport.LocalEnd{Loop: man.Loop(), Init: show},
		transport.LocalEnd{Loop: man.Loop(), Init: double})
	if err != nil {
		fmt.Println(err)
		return
	}
	client.Write(21)
	man.RunUntilIdle()
	client.Close()
	man.RunUntilIdle()
	// Output: got 42
}
