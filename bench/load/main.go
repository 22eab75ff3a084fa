//go:build linux

// Command load drives an echo or framed server with a fixed number of messages
// always under way on each connection, checks every byte that comes back, and
// prints what was done. It is meant to cost little: one goroutine, one epoll,
// raw calls on non-blocking sockets, messages sent from and compared with one
// prepared pattern.
//
//	go run ./load -addr 127.0.0.1:7000 -conns 64 -size 64 -depth 16 -duration 5s
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

func main() {
	var (
		cfg     config
		cpu     = flag.Int("cpu", -1, "pin this program to one `core`; -1 leaves it free")
		addr    = flag.String("addr", "127.0.0.1:7000", "server `address`: HOST:PORT, tcp://HOST:PORT or unix:///path")
		mode    = flag.String("mode", "echo", "`echo` or framed (4-byte big-endian length before each message)")
		asJSON  = flag.Bool("json", false, "print one line of JSON")
		timeout = flag.Duration("timeout", 5*time.Second, "fail when nothing at all comes back for this long")
	)
	flag.IntVar(&cfg.conns, "conns", 64, "connections")
	flag.IntVar(&cfg.size, "size", 64, "bytes of a message, without the length field of -mode framed")
	flag.IntVar(&cfg.depth, "depth", 16, "messages under way on a connection")
	flag.Int64Var(&cfg.messages, "messages", 0, "measure this many messages; 0 measures -duration")
	flag.DurationVar(&cfg.duration, "duration", 5*time.Second, "how long to measure when -messages is 0")
	flag.Int64Var(&cfg.warm, "warm", 0, "messages before the measurement; 0 means half a second of them")
	flag.Float64Var(&cfg.rate, "rate", 0, "messages per second over all connections, sent -depth at a time; 0 means as many as possible")
	flag.Float64Var(&cfg.load, "load", 1, "part of full load: 0.5 finds the highest rate while warming up and then sends half of it")
	flag.IntVar(&cfg.pid, "pid", 0, "also read the CPU time that this server process uses during the measurement")
	flag.Parse()

	fail := func(code int, err error) {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(code)
	}
	cfg.framed = *mode == "framed"
	cfg.timeout = *timeout
	var err error
	switch cfg.target, err = proc.ParseTarget(*addr); {
	case err != nil:
	case *mode != "echo" && *mode != "framed":
		err = fmt.Errorf("-mode %s: want echo or framed", *mode)
	case flag.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flag.Arg(0))
	default:
		err = cfg.check()
	}
	if err != nil {
		fail(2, err)
	}
	debug.SetGCPercent(-1) // nothing is allocated once the connections are open
	runtime.LockOSThread()
	if *cpu >= 0 {
		if err := proc.PinSelf(*cpu); err != nil {
			fail(1, err)
		}
	}
	if _, err := proc.RaiseFiles(); err != nil {
		fail(1, err)
	}
	res, err := run(cfg)
	if err != nil {
		fail(1, err)
	}
	if *asJSON {
		json.NewEncoder(os.Stdout).Encode(res)
		return
	}
	fmt.Printf("%d messages in %.2f s: %.0f messages/s, %.1f MB/s each way; %.1f messages per read; every byte checked\n",
		res.Messages, res.Seconds, float64(res.Messages)/res.Seconds, float64(res.Bytes)/1e6/res.Seconds, float64(res.Messages)/float64(max(res.Reads, 1)))
	fmt.Printf("load generator: %.3f us of CPU per message\n", res.ClientCPU*1e6/float64(res.Messages))
	if cfg.pid != 0 {
		fmt.Printf("server process %d: %.3f us of CPU per message, %.0f%% of a core\n",
			cfg.pid, res.ServerCPU*1e6/float64(res.Messages), 100*res.ServerCPU/res.Seconds)
	}
}

func (c config) check() error {
	switch {
	case c.conns < 1 || c.size < 1 || c.depth < 1:
		return errors.New("-conns, -size and -depth must be at least 1")
	case c.size > 16<<20 || c.depth*c.size > 64<<20:
		return errors.New("-size over 16 MiB, or over 64 MiB under way on a connection")
	case c.messages < 0 || c.warm < 0 || c.rate < 0:
		return errors.New("-messages, -warm and -rate must not be negative")
	case c.messages == 0 && c.duration <= 0:
		return errors.New("either -messages or -duration must be positive")
	case c.load <= 0 || c.load > 1:
		return errors.New("-load must be over 0 and at most 1")
	case c.load < 1 && c.rate > 0:
		return errors.New("-load and -rate exclude each other")
	}
	return nil
}
