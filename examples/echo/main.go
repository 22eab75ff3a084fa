// Command echo sends back what it gets.
//
//	go run ./examples/echo
//
// It never holds more than a few messages of a peer: while the peer does not read,
// what it sends stays in the kernel, because a channel that cannot be written stops
// reading by itself. A peer that has sent everything and says so by closing its
// sending side gets all of it back first, then the close.
//
// With -network udp each datagram goes back to whom it came from.
package main

import (
	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/examples/internal/serve"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

func main() {
	cmd := serve.New("echo", "127.0.0.1:7000")
	cmd.Datagrams()
	high := cmd.Flags.Int("high", 0, "high water mark: `bytes` queued for a peer at which reading from it pauses; 0 means 64 KiB, or twice the receive buffer if that is more")
	low := cmd.Flags.Int("low", 0, "low water mark: `bytes` at which reading goes on; 0 means half of -high")
	cmd.Main(func() (*transport.Server, error) {
		return &transport.Server{
			Config: transport.Config{HighWater: *high, LowWater: *low},
			Init: func(ch pipeline.Channel) error {
				return ch.Pipeline().Add(pipeline.On(echo), pipeline.On(echoDatagram))
			},
		}, nil
	})
}

// echo sends a message back: the very buffer that it was read into.
func echo(c *pipeline.Context, msg *buffer.Buf) error {
	c.Write(msg)
	return nil
}

// echoDatagram sends a datagram back: it knows who its peer is.
func echoDatagram(c *pipeline.Context, msg *transport.Datagram) error {
	c.Write(msg)
	return nil
}
