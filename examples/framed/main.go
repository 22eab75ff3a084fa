// Command framed sends back frames: a length of 4 bytes, big-endian, and as many
// bytes of payload.
//
//	go run ./examples/framed
//
// It is the server of the README with flags. Nothing is allocated for a frame that
// is announced and does not come, and a frame that is announced as longer than
// -max-frame closes the connection.
package main

import (
	"fmt"
	"math"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/examples/internal/serve"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
	"go.uber.org/zap"
)

func main() {
	cmd := serve.New("framed", "127.0.0.1:7020")
	maxFrame := cmd.Flags.Int("max-frame", 1<<20, "longest payload accepted, in `bytes`")
	cmd.Main(func() (*transport.Server, error) {
		if *maxFrame < 1 || *maxFrame > math.MaxInt32-4 {
			return nil, fmt.Errorf("-max-frame %d is not between 1 and %d", *maxFrame, math.MaxInt32-4)
		}
		return &transport.Server{
			Init: func(ch pipeline.Channel) error {
				return ch.Pipeline().Add(
					codec.LengthField{Width: 4, Max: *maxFrame},
					pipeline.On(func(c *pipeline.Context, frame *buffer.Buf) error { c.Write(frame); return nil }),
					pipeline.OnError(func(c *pipeline.Context, err error) {
						cmd.Log.Error("connection failed", zap.Stringer("client", c.Channel().RemoteAddr()), zap.Error(err))
					}),
				)
			},
		}, nil
	})
}
