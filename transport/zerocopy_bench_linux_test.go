package transport

import (
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// BenchmarkZeroCopy sends messages of a size that are in memory already, with and without
// a copy, and says how much processor time the sender's thread takes for each MiB. A veth's
// thread also does the work of the interface: it copies each packet once, in the place of a
// card, and brings it to the receiver's socket.
func BenchmarkZeroCopy(b *testing.B) {
	for _, conn := range connections() {
		if conn.use == zeroCopyNotTCP {
			continue
		}
		for _, kib := range []int{4, 10, 16, 32, 64, 128, 256, 1024} {
			for _, threshold := range []int{0, 1} {
				name := "copied"
				if threshold > 0 {
					name = "lent"
				}
				b.Run(fmt.Sprintf("%s/%dKiB/%s", conn.name, kib, name), func(b *testing.B) {
					benchmarkSend(b, conn, kib<<10, threshold)
				})
			}
		}
	}
}

func benchmarkSend(b *testing.B, conn connection, size, threshold int) {
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1, LockThread: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = g.Shutdown(context.Background()) })
	accepted := make(chan pipeline.Channel, 1)
	more := func(*pipeline.Context) error { return nil }
	srv := &Server{Group: g, Config: Config{ZeroCopy: threshold, HighWater: 4 << 20}, Init: with(
		pipeline.OnActive(func(c *pipeline.Context) error { accepted <- c.Channel(); return nil }),
		onWritability(func(c *pipeline.Context) error { return more(c) }))}
	nc := conn.join(b, srv)()
	ch := <-accepted
	msg := buffer.FromBytes(make([]byte, size))
	left := b.N
	done := make(chan int64, 1)
	b.SetBytes(int64(size))
	b.ResetTimer()
	err = ch.Loop().Execute(func() {
		from := threadTime()
		more = func(c *pipeline.Context) error {
			for left > 0 && c.Channel().Writable() {
				if left--; left == 0 {
					c.WriteThen(msg.Duplicate(), func(error) { done <- threadTime() - from })
				} else {
					c.Write(msg.Duplicate())
				}
				c.Flush() // each by itself
			}
			return nil
		}
		_ = more(pipeline.Find[onWritability](ch.Pipeline()))
	})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, onlyReader{r: nc}, int64(size)*int64(b.N)); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(<-done)/1e3/(float64(size)*float64(b.N)/(1<<20)), "cpu-us/MiB")
	b.StopTimer()
	ch.Reset()
	<-ch.Closed().Done()
	noQuarantine(b)
	msg.Release()
	nc.Close()
}
