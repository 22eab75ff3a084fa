// Command client puts load on echo or framed, and checks every byte that comes back.
//
//	go run ./examples/client -conns 64 -size 1024 -depth 16 -duration 5s
//	go run ./examples/client -framed
//
// Each connection keeps -depth messages under way: when one has come back, the next
// is sent. At the end it prints how many came back a second and how long they took.
// It is itself a program on pipelines; see conn.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/examples/internal/serve"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// grace is how long the last messages may take to come back.
const grace = 10 * time.Second

type options struct {
	network, addr             string
	conns, size, depth, loops int
	duration                  time.Duration
	framed                    bool
}

func main() {
	var o options
	flags := flag.NewFlagSet("client", flag.ContinueOnError)
	flags.StringVar(&o.network, "network", "tcp", "`tcp` or unix")
	flags.StringVar(&o.addr, "addr", "", "`address` of the server; by default 127.0.0.1:7000, with -framed 127.0.0.1:7020")
	flags.IntVar(&o.conns, "conns", 64, "number of connections")
	flags.IntVar(&o.size, "size", 1024, "`bytes` of a message")
	flags.IntVar(&o.depth, "depth", 16, "messages under way on each connection")
	flags.DurationVar(&o.duration, "duration", 5*time.Second, "for how long messages are sent")
	flags.BoolVar(&o.framed, "framed", false, "each message is a frame, as the example framed wants it")
	flags.IntVar(&o.loops, "loops", 0, "number of event loops; 0 means one per processor that Go uses")
	if status, ok := serve.Parse(flags, os.Args[1:]); !ok {
		os.Exit(status)
	}
	if err := o.check(); err != nil {
		os.Exit(serve.Fail("client", 2, err))
	}
	// A signal ends the load early, and what was measured is printed.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		os.Exit(serve.Fail("client", 1, err))
	}
}

// check refuses what makes no sense and fills in what depends on other flags.
func (o *options) check() error {
	switch {
	case o.network != "tcp" && o.network != "unix":
		return fmt.Errorf("-network %s is neither tcp nor unix", o.network)
	case o.conns < 1 || o.size < 1 || o.depth < 1:
		return errors.New("-conns, -size and -depth must be at least 1")
	case o.duration <= 0:
		return errors.New("-duration must be more than 0")
	case o.loops < 0:
		return errors.New("-loops must not be negative")
	}
	if o.addr == "" {
		o.addr = "127.0.0.1:7000"
		if o.framed {
			o.addr = "127.0.0.1:7020"
		}
	}
	return nil
}

func run(ctx context.Context, o options) error {
	group, err := eventloop.NewGroup(eventloop.GroupConfig{Name: "client", Loops: o.loops})
	if err != nil {
		return err
	}
	l := newLoad(o, group.Loops())
	dialer := transport.Dialer{Group: group, Init: l.init}
	channels := make([]pipeline.Channel, o.conns)
	for i := range channels {
		l.all.Add(1)
		if channels[i], err = dialer.Dial(ctx, o.network, o.addr); err != nil {
			return err
		}
	}
	tell := func(ev any) {
		for _, ch := range channels {
			ch.Pipeline().FireEvent(ev)
		}
	}

	began := time.Now()
	tell(begin{})
	wait, cancel := context.WithTimeout(ctx, o.duration)
	defer cancel()
	l.watch(wait)
	tell(end{})
	if !l.wait(grace) {
		l.fail(fmt.Errorf("messages did not come back within %v", grace))
	}
	elapsed := time.Since(began)

	// With its loops ended, all that a loop has counted can be read.
	if err := group.Shutdown(context.Background()); err != nil {
		return err
	}
	return l.report(os.Stdout, elapsed)
}

// init makes the pipeline of a connection.
func (l *load) init(ch pipeline.Channel) error {
	if l.framed {
		if err := ch.Pipeline().Add(codec.LengthField{Width: 4, Max: l.size}); err != nil {
			return err
		}
	}
	return ch.Pipeline().Add(l.newConn(ch))
}
