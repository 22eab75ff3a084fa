// Command idle counts what loops do when there is nothing to do: with channels that
// are connected and silent, and timers that are armed and not due.
//
//	go run ./idle
//	go run ./idle -states
//
// It exits with status 1 when there are more than -max turns a second, or any
// callback at all. With -states it does so for channels that wait in other ways, from
// half-closed to closing with linger, 100 in each state; there timers may fire.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/runnel-io/runnel/bench/internal/proc"
	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

func main() {
	loops := flag.Int("loops", 2, "event loops")
	conns := flag.Int("conns", 1000, "channels")
	timers := flag.Int("timers", 100_000, "timers")
	duration := flag.Duration("duration", 10*time.Second, "how long to watch")
	limit := flag.Float64("max", 20, "exit with status 1 when there are more `turns` a second in all loops together")
	inStates := flag.Bool("states", false, "watch channels in each state in which one may wait, for 2 s or -duration each")
	flag.Parse()
	if *inStates {
		set := map[string]bool{}
		flag.Visit(func(f *flag.Flag) { set[f.Name] = true })
		if !set["conns"] {
			*conns = 100
		}
		if !set["duration"] {
			*duration = 2 * time.Second
		}
		if err := runStates(*conns, *duration, *limit); err != nil {
			fmt.Fprintln(os.Stderr, "idle:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(*loops, *conns, *timers, *duration, *limit); err != nil {
		fmt.Fprintln(os.Stderr, "idle:", err)
		os.Exit(1)
	}
}

func run(loops, conns, timers int, duration time.Duration, limit float64) (err error) {
	if _, err := proc.RaiseFiles(); err != nil {
		return err
	}
	ctx := context.Background()
	logger, err := zap.NewProduction() // so that there is a watchdog
	if err != nil {
		return err
	}
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: loops, Logger: logger})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Shutdown(ctx)) }()
	var calls atomic.Int64
	srv := &transport.Server{Group: g, Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
			calls.Add(1)
			c.Write(b)
			return nil
		}))
	}}
	l, err := srv.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.Shutdown(ctx)) }()
	for range conns {
		c, err := net.Dial("tcp", l.LocalAddr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		// Each has been used once.
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			return err
		}
	}
	for i := range timers {
		loop := g.Loops()[i%loops]
		due := duration + 10*time.Second + rand.N(time.Minute)
		t := loop.Schedule(due, func() { calls.Add(1) })
		if i%2 == 0 {
			// As those of channels that were in use: each has been moved later.
			t.Stop()
			t = loop.Schedule(rand.N(duration), func() { calls.Add(1) })
			t.Reset(due)
		}
	}
	time.Sleep(3 * time.Second) // the loops give back their memory, once
	calls.Store(0)
	before, cpu, err := metrics(g)
	if err != nil {
		return err
	}
	time.Sleep(duration)
	after, cpuAfter, err := metrics(g)
	if err != nil {
		return err
	}

	turns := float64(after.Turns-before.Turns) / duration.Seconds()
	fmt.Printf("%d loops, %d registrations, %d armed timers, %v\n", loops, after.Registrations, after.TimersArmed, duration)
	fmt.Printf("turns      %8.2f a second\n", turns)
	fmt.Printf("waits      %8.2f a second\n", float64(after.Blocks-before.Blocks)/duration.Seconds())
	fmt.Printf("polls      %8.2f a second\n", float64(after.EpollWaits-before.EpollWaits)/duration.Seconds())
	callbacks := calledBack(after) - calledBack(before)
	fmt.Printf("callbacks  %8d: %d of I/O, %d tasks, %d timers, %d at the ends of turns\n", callbacks, after.Events-before.Events,
		after.Tasks-before.Tasks, after.TimersFired-before.TimersFired, after.TurnEnds-before.TurnEnds)
	fmt.Printf("process    %8.3f %% of a core\n", 100*(cpuAfter-cpu).Seconds()/duration.Seconds())
	switch {
	case after.Registrations < conns || after.TimersArmed < timers:
		return errors.New("channels or timers are missing: nothing was measured")
	case turns > limit:
		return fmt.Errorf("%.1f turns a second, the limit is %g", turns, limit)
	case callbacks > 0 || calls.Load() > 0: // the second are of handlers and timers: the loops must have seen them, too
		return errors.New("there were callbacks, there should be none")
	}
	return nil
}

// calledBack returns how many calls loops have made, of whatever kind.
func calledBack(m eventloop.Metrics) uint64 { return m.Events + m.Tasks + m.TimersFired + m.TurnEnds }

// metrics adds up what the loops have counted; a loop that waits need not be asked.
func metrics(g *eventloop.Group) (sum eventloop.Metrics, cpu time.Duration, err error) {
	for _, l := range g.Loops() {
		m := l.Metrics()
		sum.Turns += m.Turns
		sum.Blocks += m.Blocks
		sum.EpollWaits += m.EpollWaits
		sum.Events += m.Events
		sum.Tasks += m.Tasks
		sum.TimersFired += m.TimersFired
		sum.TurnEnds += m.TurnEnds
		sum.Registrations += m.Registrations
		sum.TimersArmed += m.TimersArmed
	}
	cpu, err = proc.CPU(os.Getpid())
	return sum, cpu, err
}
