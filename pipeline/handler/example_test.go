package handler_test

import (
	"fmt"
	"os"
	"strings"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
	"github.com/runnel-io/runnel/pipeline/handler"
)

// A handler that encodes what is written gets the bytes of a file as well.
func ExampleChunkedWrite() {
	shout := pipeline.OnWrite(func(c *pipeline.Context, b *buffer.Buf, p *eventloop.Promise) error {
		c.ForwardWrite(strings.ToUpper(b.ReadString(b.Len())), p)
		b.Release()
		return nil
	})
	ch := embedded.New(shout, handler.ChunkedWrite{})
	f, err := os.Open("testdata/greeting.txt")
	if err != nil {
		fmt.Println(err)
		return
	}
	left := false
	ch.Do(func() {
		ch.WriteThen(buffer.NewFileRegion(f, 0, 5), func(error) { left = true })
	})
	for !left {
		ch.Run() // a worker reads
	}
	fmt.Println(ch.ReadOutbound())
	_ = ch.Finish()
	// Output: HELLO
}
