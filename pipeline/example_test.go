package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// An echo for strings: the function gets messages of its type, others go past it.
func ExampleOn() {
	ch := embedded.New(pipeline.On(func(c *pipeline.Context, s string) error {
		c.Write("you said " + s)
		return nil
	}))
	ch.WriteInbound("hello", 42)
	fmt.Println(ch.ReadOutbound())
	fmt.Println(ch.ReadInbound())
	_ = ch.Finish()
	// Output:
	// you said hello
	// 42
}

// The message is the function's: it releases what it does not pass on.
func ExampleOn_ownership() {
	ch := embedded.New(pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
		defer b.Release()
		c.FireRead(strings.ToUpper(b.ReadString(b.Len())))
		return nil
	}))
	ch.WriteInbound(buffer.FromString("hello"))
	fmt.Println(ch.ReadInbound())
	_ = ch.Finish()
	// Output: HELLO
}

// Errors that handlers return come by here, and so do those of the transport.
func ExampleOnError() {
	ch := embedded.New(
		pipeline.On(func(*pipeline.Context, string) error { return errors.New("cannot stand strings") }),
		pipeline.OnError(func(c *pipeline.Context, err error) {
			fmt.Println("closing:", err)
			c.Close()
		}),
	)
	ch.WriteInbound("hello")
	fmt.Println("open:", ch.Open())
	_ = ch.Finish()
	// Output:
	// closing: cannot stand strings
	// open: false
}

// An encoder: numbers become strings on their way out.
func ExampleOnWrite() {
	ch := embedded.New(pipeline.OnWrite(func(c *pipeline.Context, n int, p *eventloop.Promise) error {
		c.ForwardWrite(fmt.Sprintf("%04d", n), p)
		return nil
	}))
	ch.WriteOutbound(7)
	fmt.Println(ch.ReadOutbound())
	_ = ch.Finish()
	// Output: 0007
}

// Numbers for the application, text on the wire.
func ExampleConvert() {
	ch := embedded.New(
		pipeline.Convert(
			func(_ *pipeline.Context, text string) (n int, err error) {
				_, err = fmt.Sscan(text, &n)
				return n, err
			},
			func(_ *pipeline.Context, n int) (string, error) { return fmt.Sprint(n), nil },
		),
		pipeline.On(func(c *pipeline.Context, n int) error {
			c.Write(n * n)
			return nil
		}),
	)
	ch.WriteInbound("12", "a dozen")
	fmt.Println(ch.ReadOutbound())
	fmt.Println(ch.Finish())
	// Output:
	// 144
	// expected integer
}

// pinger writes a ping every second while the channel is active. Its state needs no
// lock: all its methods, and its timer, run on the channel's loop.
type pinger struct {
	Every time.Duration

	sent  int
	timer *eventloop.Timer
}

func (h *pinger) HandleActive(c *pipeline.Context) error {
	h.timer = c.Schedule(h.Every, func() { h.ping(c) })
	return nil
}

func (h *pinger) ping(c *pipeline.Context) {
	h.sent++
	c.Write(fmt.Sprint("ping ", h.sent))
	h.timer.Reset(h.Every)
}

func (h *pinger) HandleRemoved(*pipeline.Context) {
	if h.timer != nil {
		h.timer.Stop()
	}
}

// A handler with state implements the small interfaces that it needs; there is
// nothing to embed. Time is the test's.
func ExampleActiveHandler() {
	ch := embedded.New(&pinger{Every: time.Second})
	ch.Advance(2 * time.Second)
	fmt.Println(ch.ReadOutbound(), ch.ReadOutbound(), ch.ReadOutbound())
	_ = ch.Finish()
	// Output: ping 1 ping 2 <nil>
}

// greeting holds the news that the channel is active back from the handlers behind
// it, until the peer has greeted.
type greeting struct{ done bool }

func (h *greeting) InterceptActive(c *pipeline.Context) error {
	c.Write("hello?")
	return nil // and do not fire: that is what makes it an interceptor
}

func (h *greeting) HandleRead(c *pipeline.Context, msg any) error {
	if h.done {
		c.FireRead(msg)
		return nil
	}
	h.done = true
	buffer.Release(msg)
	c.FireActive()
	return nil
}

// Handlers of a notification pass it on by returning; an interceptor decides itself
// when it goes on.
func ExampleActiveInterceptor() {
	ch := embedded.New(
		&greeting{},
		pipeline.OnActive(func(*pipeline.Context) error {
			fmt.Println("active")
			return nil
		}),
	)
	fmt.Println(ch.ReadOutbound())
	ch.WriteInbound("hello!")
	ch.WriteInbound("and now to business")
	fmt.Println(ch.ReadInbound())
	_ = ch.Finish()
	// Output:
	// hello?
	// active
	// and now to business
}

// limit is a configuration: a plain value.
type limit struct{ Messages int }

// NewHandler makes the state of one channel.
func (l limit) NewHandler() any { return &limiter{left: l.Messages} }

type limiter struct{ left int }

func (h *limiter) HandleRead(c *pipeline.Context, msg any) error {
	if h.left == 0 {
		buffer.Release(msg)
		return errors.New("too many messages")
	}
	h.left--
	c.FireRead(msg)
	return nil
}

// A value that is added to many pipelines makes a handler for each of them, so state
// is not shared by accident.
func ExampleMaker() {
	setup := limit{Messages: 1}
	for range 2 {
		ch := embedded.New(setup)
		ch.WriteInbound("a", "b")
		fmt.Println(ch.ReadInbound(), ch.ReadInbound(), ch.Pipeline().Names())
		fmt.Println(ch.Finish())
	}
	// Output:
	// a <nil> [limit#0]
	// too many messages
	// a <nil> [limit#0]
	// too many messages
}

// What blocks runs on a worker; the second function is back on the loop.
func ExampleContext_Offload() {
	ch := embedded.New(pipeline.On(func(c *pipeline.Context, name string) error {
		c.Offload(func(ctx context.Context) (any, error) {
			return "contents of " + name, nil // os.Open, a query, a name to look up
		}, func(v any, err error) {
			if err != nil {
				c.FireError(err)
				return
			}
			c.Write(v)
		})
		return nil
	}))
	ch.WriteInbound("motd")
	fmt.Println(ch.ReadOutbound())
	_ = ch.Finish()
	// Output: contents of motd
}

// accounts looks things up in a way that takes its time.
type accounts struct {
	asked int // its methods run one at a time, off the loop too
}

func (a *accounts) HandleRead(c *pipeline.Context, msg any) error {
	a.asked++
	balance := 7 * len(msg.(string)) // a query that blocks
	c.Write(fmt.Sprintf("%v has %d, answer %d", msg, balance, a.asked))
	return nil
}

// A handler that blocks in what it does runs on a worker, and the loop does not.
func ExampleOffloaded() {
	ch := embedded.New(pipeline.Offloaded{Handler: new(accounts)})
	ch.WriteInbound("ann", "bob")
	fmt.Println(ch.ReadOutbound())
	fmt.Println(ch.ReadOutbound())
	_ = ch.Finish()
	// Output:
	// ann has 21, answer 1
	// bob has 21, answer 2
}

// A handler that changes the protocol puts its successor in its place.
func ExamplePipeline_Replace() {
	ch := embedded.New(pipeline.On(func(c *pipeline.Context, s string) error {
		_, err := c.Pipeline().Replace(c, "upper", pipeline.On(func(c *pipeline.Context, s string) error {
			c.FireRead(strings.ToUpper(s))
			return nil
		}))
		return err
	}))
	ch.WriteInbound("upgrade", "hello")
	fmt.Println(ch.ReadInbound(), ch.Pipeline().Names())
	_ = ch.Finish()
	// Output: HELLO [upper]
}
