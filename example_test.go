package runnel_test

import (
	"context"
	"fmt"
	"io"
	"net"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// A server that sends back frames: a length of 4 bytes, then the payload.
func Example() {
	ctx, addr := someClient()

	srv := transport.Server{Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(
			codec.LengthField{Width: 4, Max: 1 << 20}, // a value; Add makes the per-channel state
			pipeline.On(func(c *pipeline.Context, frame *buffer.Buf) error { c.Write(frame); return nil }),
		)
	}}
	err := srv.ListenAndServe(ctx, "tcp", addr) // returns when ctx ends and the drain is over

	fmt.Println("served:", err)
	// Output:
	// hello, once
	// served: <nil>
}

// someClient returns an address and has a client talk to the server that will listen
// there. ctx ends when it is done.
func someClient() (ctx context.Context, addr string) {
	ctx, done := context.WithCancel(context.Background())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	addr = l.Addr().String()
	l.Close()
	go func() {
		defer done()
		conn, err := net.Dial("tcp", addr)
		for err != nil { // not listening yet
			conn, err = net.Dial("tcp", addr)
		}
		defer conn.Close()
		const frame = "\x00\x00\x00\x0bhello, once"
		if _, err := io.WriteString(conn, frame); err != nil {
			panic(err)
		}
		answer := make([]byte, len(frame))
		if _, err := io.ReadFull(conn, answer); err != nil {
			panic(err)
		}
		fmt.Println(string(answer[4:]))
	}()
	return ctx, addr
}
