// Package serve is what the example servers have in common: their flags, the line
// that says where they listen, their log, and how they end.
//
// A server makes a [Command] of its name and default address, adds flags of its own
// to Command.Flags, and calls Command.Main with a function that makes the
// transport.Server when the flags have been read.
package serve

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Exit statuses.
const (
	statusFailed = 1 // it could not be done
	statusUsage  = 2 // it was not said right
)

// The main thread stays the main goroutine's, which never waits for a disk. Otherwise a
// worker may run on it, and the kernel gives a signal to the main thread first, even when
// that sleeps with a disk that does not answer: then nobody hears it.
func init() { runtime.LockOSThread() }

// Command is a server as a program.
type Command struct {
	Flags *flag.FlagSet // parsed by Main
	Log   *zap.Logger   // to standard error

	network, addr, poller string
	datagrams             bool
	loops, maxConns       int
	drain                 time.Duration
}

// New returns a command with the flags that all servers have.
func New(name, addr string) *Command {
	c := &Command{Flags: flag.NewFlagSet(name, flag.ContinueOnError), Log: newLog(name)}
	c.Flags.StringVar(&c.network, "network", "tcp", "`tcp` or unix")
	c.Flags.StringVar(&c.addr, "addr", addr, "`address` to listen on: host:port (port 0 picks one), or the path of a Unix socket")
	c.Flags.IntVar(&c.loops, "loops", 0, "number of event loops; 0 means one per processor that Go uses")
	c.Flags.IntVar(&c.maxConns, "max-conns", 0, "connections served at a time, while others wait; 0 means no limit")
	c.Flags.StringVar(&c.poller, "poller", "auto", "auto or epoll")
	c.Flags.DurationVar(&c.drain, "drain", 5*time.Second, "how long queued writes may take to leave when the server is told to end")
	return c
}

// Datagrams lets -network be udp, for a server whose Init has a handler for datagrams
// too.
func (c *Command) Datagrams() {
	c.datagrams = true
	c.Flags.Lookup("network").Usage = "`tcp`, unix or udp"
}

// Main runs the program and does not return. setUp makes the server, whose group,
// logger and drain Main provides; an error of setUp is one of usage.
func (c *Command) Main(setUp func() (*transport.Server, error)) {
	os.Exit(c.run(os.Args[1:], setUp))
}

func (c *Command) run(args []string, setUp func() (*transport.Server, error)) (status int) {
	if status, ok := Parse(c.Flags, args); !ok {
		return status
	}
	srv, group, err := c.server(setUp)
	if err != nil {
		return c.fail(statusUsage, err)
	}

	// The first signal ends the server, the second the process.
	ctx, end := context.WithCancel(context.Background())
	defer end()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		c.Log.Info("draining", zap.Stringer("signal", <-signals), zap.Duration("for", c.drain))
		end()
		<-signals
		os.Exit(statusFailed)
	}()

	// Whoever starts this program may listen for it: a service manager, or the one that
	// it takes the place of.
	files, err := transport.Inherited()
	if err == nil && len(files) > 0 {
		err = c.serveFiles(ctx, srv, files)
	} else if err == nil {
		err = srv.ListenAndServe(ctx, c.network, c.addr)
	}
	if err != nil {
		return c.fail(statusFailed, err)
	}
	// All channels have closed: nothing here waits for a peer.
	if err := group.Shutdown(context.Background()); err != nil {
		return c.fail(statusFailed, err)
	}
	if n := buffer.Live(); n != 0 {
		c.Log.Warn("buffers were not released", zap.Int64("count", n))
	}
	return 0
}

// serveFiles is ListenAndServe for sockets that listen, or get datagrams, already.
func (c *Command) serveFiles(ctx context.Context, srv *transport.Server, files []*os.File) error {
	ended := make(chan error, len(files))
	for _, f := range files {
		ch, err := srv.Adopt(f)
		if err != nil {
			return err
		}
		if ch.LocalAddr() != nil && ch.RemoteAddr() == nil { // else it is a connection, which may end
			ch.Closed().Then(func(error) { ended <- ch.CloseReason() })
		}
	}
	select {
	case <-ctx.Done():
	case err := <-ended: // a socket may be shut down by somebody else who has it
		if ctx.Err() == nil {
			return err
		}
	}
	drain, end := context.WithTimeout(context.Background(), c.drain)
	defer end()
	if err := srv.Shutdown(drain); err != nil {
		c.Log.Warn("drain incomplete", zap.Error(err))
	}
	return nil
}

// server makes the server and its group.
func (c *Command) server(setUp func() (*transport.Server, error)) (*transport.Server, *eventloop.Group, error) {
	stream := slices.Contains([]string{"tcp", "tcp4", "tcp6", "unix"}, c.network)
	datagram := slices.Contains([]string{"udp", "udp4", "udp6", "unixgram"}, c.network)
	switch {
	case datagram && !c.datagrams:
		return nil, nil, fmt.Errorf("-network %s has no streams, which this server needs", c.network)
	case !stream && !datagram:
		return nil, nil, fmt.Errorf("-network %s is not known", c.network)
	case c.addr == "":
		return nil, nil, errors.New("-addr is empty")
	case c.drain < 0:
		return nil, nil, fmt.Errorf("-drain %v is negative", c.drain)
	}
	srv, err := setUp()
	if err != nil {
		return nil, nil, err
	}
	group, err := eventloop.NewGroup(eventloop.GroupConfig{
		Name: c.Flags.Name(), Loops: c.loops, Poller: c.poller, Logger: c.Log,
	})
	if err != nil {
		return nil, nil, err
	}
	srv.Group = group
	srv.Config.Logger = c.Log
	srv.MaxConns = c.maxConns
	srv.DrainTimeout = c.drain
	if c.drain == 0 {
		srv.DrainTimeout = -1 // in a Server 0 is the default, here it means 0
	}
	if datagram {
		init := srv.Init
		srv.Init = func(ch pipeline.Channel) error {
			if err := announce(ch); err != nil {
				return err
			}
			return init(ch)
		}
	} else {
		srv.ListenerInit = announce
	}
	return srv, group, nil
}

// announce has a channel say where it is bound as soon as it is active: a listener is
// a channel too.
func announce(ch pipeline.Channel) error {
	return ch.Pipeline().Add(pipeline.OnActive(func(c *pipeline.Context) error {
		addr := c.Channel().LocalAddr()
		_, err := fmt.Printf("listening on %s://%s\n", addr.Network(), addr)
		return err
	}))
}

// fail says what went wrong, in one line.
func (c *Command) fail(status int, err error) int {
	return Fail(c.Flags.Name(), status, err)
}

// Fail says in one line on standard error what went wrong, and returns status.
func Fail(name string, status int, err error) int {
	fmt.Fprintf(os.Stderr, "%s: %s\n", name, strings.ReplaceAll(err.Error(), "\n", "; "))
	return status
}

// Parse reads args, which must be flags only. If it returns false the program is to
// exit with status: help was asked for, or the arguments are wrong and it has said
// so.
func Parse(flags *flag.FlagSet, args []string) (status int, ok bool) {
	flags.SetOutput(io.Discard) // it would say the error after the usage, or not at all
	usage := func(w io.Writer) {
		fmt.Fprintf(w, "usage: %s [flags]\n", flags.Name())
		flags.SetOutput(w)
		flags.PrintDefaults()
	}
	flags.Usage = func() {}
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		usage(os.Stdout)
		return 0, false
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err != nil {
		status = Fail(flags.Name(), statusUsage, err)
		usage(os.Stderr)
		return status, false
	}
	return 0, true
}

// newLog returns a log for people: one line an entry, on standard error.
func newLog(name string) *zap.Logger {
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
	cfg.EncodeLevel = zapcore.CapitalLevelEncoder
	cfg.ConsoleSeparator = " "
	core := zapcore.NewCore(zapcore.NewConsoleEncoder(cfg), zapcore.Lock(os.Stderr), zap.InfoLevel)
	return zap.New(core).Named(name)
}
