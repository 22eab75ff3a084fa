package transport_test

import (
	"context"
	"fmt"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// A server of datagrams has one channel for all its peers, a client one for its own.
func ExampleDatagram() {
	ctx := context.Background()
	srv := &transport.Server{Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, d *transport.Datagram) error {
			answer := c.Alloc().Alloc(d.Content.Len() + 2)
			answer.WriteString("> ")
			answer.WriteBuf(d.Content)
			d.Content.Release()
			d.Content = answer
			c.Write(d) // to whom it came from
			return nil
		}))
	}}
	bound, err := srv.Listen(ctx, "udp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}

	answers := make(chan string)
	d := &transport.Dialer{Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.On(func(_ *pipeline.Context, b *buffer.Buf) error {
			defer b.Release()
			answers <- b.ReadString(b.Len())
			return nil
		}))
	}}
	ch, err := d.Dial(ctx, "udp", bound.LocalAddr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	ch.Write("hello")
	fmt.Println(<-answers)
	ch.Close()

	fmt.Println(srv.Shutdown(ctx))
	// Output:
	// > hello
	// <nil>
}
