// Command syscalls runs an echo server in this process under load, and prints the
// system calls that its loop counts for each read that brought bytes.
//
//	go run ./syscalls
//
// It exits with status 1 when full load needs more than -max.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"github.com/runnel-io/runnel/bench/internal/proc"
	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

func main() {
	conns := flag.Int("conns", 64, "connections")
	size := flag.Int("size", 64, "bytes of a message")
	depth := flag.Int("depth", 16, "messages under way on a connection")
	messages := flag.Int("messages", 2_000_000, "messages of each run")
	limit := flag.Float64("max", 2.2, "exit with status 1 when full load needs more `calls` a read; 0 only prints")
	flag.Parse()
	if err := run(*conns, *size, *depth, *messages, *limit); err != nil {
		fmt.Fprintln(os.Stderr, "syscalls:", err)
		os.Exit(1)
	}
}

func run(conns, size, depth, messages int, limit float64) (err error) {
	b, err := proc.NewBuilder()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	load, err := b.Own("load")
	if err != nil {
		return err
	}
	runtime.GOMAXPROCS(1)
	if err := proc.PinSelf(0); err != nil {
		return err
	}
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Shutdown(context.Background())) }()
	srv := &transport.Server{Group: g, Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
			c.Write(b)
			return nil
		}))
	}}
	l, err := srv.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.Shutdown(context.Background())) }()

	fmt.Printf("%d connections, %d B, depth %d, %d messages; calls for each read that brought bytes\n", conns, size, depth, messages)
	fmt.Printf("%-10s %8s %8s %8s %8s %8s %8s\n", "load", "all", "read", "empty", "write", "epoll", "ctl")
	loop := g.Loops()[0]
	for _, part := range []float64{1, 0.5} {
		before, err := counters(loop)
		if err != nil {
			return err
		}
		cmd := exec.Command(load, "-addr", l.LocalAddr().String(), "-cpu", "1", "-load", fmt.Sprint(part),
			"-conns", strconv.Itoa(conns), "-size", strconv.Itoa(size), "-depth", strconv.Itoa(depth), "-messages", strconv.Itoa(messages))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("load: %w\n%s", err, out)
		}
		after, err := counters(loop)
		if err != nil {
			return err
		}
		reads := float64(after.Reads - before.Reads)
		per := func(n uint64) float64 { return float64(n) / reads }
		empty := per(after.EmptyReads - before.EmptyReads)
		writes := per(after.Writes + after.Writevs - before.Writes - before.Writevs)
		waits, ctls := per(after.EpollWaits-before.EpollWaits), per(after.EpollCtls-before.EpollCtls)
		all := 1 + empty + writes + waits + ctls
		fmt.Printf("%-10s %8.3f %8.3f %8.3f %8.3f %8.3f %8.3f\n", fmt.Sprintf("%.0f%%", 100*part), all, 1.0, empty, writes, waits, ctls)
		if part == 1 && limit > 0 && all > limit {
			err := fmt.Errorf("%.3f calls a read at full load, the limit is %.3f", all, limit)
			return err
		}
	}
	return nil
}

// counters reads what the loop has counted, on the loop, where it is exact.
func counters(l *eventloop.Loop) (eventloop.Counters, error) {
	c := make(chan eventloop.Counters, 1)
	if err := l.Execute(func() { c <- *l.Counters() }); err != nil {
		return eventloop.Counters{}, err
	}
	return <-c, nil
}
