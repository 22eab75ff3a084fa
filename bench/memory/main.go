//go:build linux

// Command memory measures what two kinds of bad peers cost a server in resident
// memory: many that hold one byte of a frame each, and many that send small
// messages and never read. Afterwards the peers behave, and every byte they are
// owed is checked, so a server cannot win by dropping them.
//
//	go run ./memory
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

const mib = 1 << 20

type options struct {
	conns, heldBytes int
	peers, size      int
	perPeer          int64
	quiet            time.Duration
	baseline         string
	heldLimit        float64
	slowLimit        float64
	abort            int64
	serverCPU        int
	rcvbuf, sndbuf   int
	mss              int
}

func main() {
	var o options
	scenario := flag.String("scenario", "both", "`which`: held, slow or both")
	framed := flag.String("framed", "framed", "server for held: framed, or a program that takes -addr")
	echo := flag.String("echo", "echo", "server for slow: echo, bareloop, net, or a program that takes -addr")
	args := flag.String("args", "", "more `arguments` for the server, separated by spaces")
	flag.IntVar(&o.conns, "conns", 10_000, "held: connections")
	flag.IntVar(&o.heldBytes, "held-bytes", 1, "held: bytes of the frame that are sent, 1 to 8: 4 of length and a part of 1,000 bytes")
	flag.IntVar(&o.peers, "peers", 1000, "slow: peers")
	flag.IntVar(&o.size, "size", 64, "slow: bytes of a message, each its own write")
	flag.Int64Var(&o.perPeer, "most", 4*mib, "slow: a peer stops after this many `bytes`; the server should have stopped it before")
	flag.DurationVar(&o.quiet, "quiet", time.Second, "slow: full when the server has taken nothing from anyone for this long")
	flag.IntVar(&o.rcvbuf, "rcvbuf", 4<<10, "slow: SO_RCVBUF of the peers: with the kernel's own it queues megabytes for each; 0 leaves it")
	flag.IntVar(&o.sndbuf, "sndbuf", 16<<10, "slow: SO_SNDBUF of the peers; 0 leaves it")
	flag.IntVar(&o.mss, "mss", 256, "slow: TCP_MAXSEG of the peers, likewise; 0 leaves it")
	flag.Float64Var(&o.heldLimit, "held-limit", 16, "held: exit with status 1 when the growth is over this many `MiB`; 0 only prints")
	flag.Float64Var(&o.slowLimit, "slow-limit", -1, "slow: the same; -1 means 128 KiB a peer, the default high water mark")
	flag.StringVar(&o.baseline, "baseline", "idle", "what the growth is counted from: `idle` (no connection yet) or connected (all connections, silent)")
	flag.Int64Var(&o.abort, "abort", 1024, "give up when the server has grown by this many `MiB`")
	flag.IntVar(&o.serverCPU, "server-cpu", -1, "core of the server; -1 leaves it free")
	flag.Parse()
	if o.slowLimit < 0 {
		o.slowLimit = float64(o.peers) * 128 / 1024
	}
	if flag.NArg() > 0 || o.heldBytes < 1 || o.heldBytes > 8 || o.size < 1 || o.size > 64<<10 || o.conns < 1 || o.peers < 1 ||
		(o.baseline != "idle" && o.baseline != "connected") || (*scenario != "held" && *scenario != "slow" && *scenario != "both") {
		fmt.Fprintln(os.Stderr, "memory: bad flag value or argument")
		flag.Usage()
		os.Exit(2)
	}
	if err := run(o, *scenario, *framed, *echo, strings.Fields(*args)); err != nil {
		fmt.Fprintln(os.Stderr, "memory:", err)
		os.Exit(1)
	}
}

func run(o options, scenario, framed, echo string, args []string) error {
	files, err := proc.RaiseFiles()
	if err != nil {
		return err
	}
	if need := uint64(max(o.conns, o.peers)) + 64; files < need {
		return fmt.Errorf("%d open files are allowed, %d needed (ulimit -n)", files, need)
	}
	b, err := proc.NewBuilder()
	if err != nil {
		return err
	}
	defer b.Close()
	var errs []error
	if scenario != "slow" {
		errs = append(errs, onServer(b, framed, args, o, held))
	}
	if scenario != "held" {
		errs = append(errs, onServer(b, echo, args, o, slow))
	}
	return errors.Join(errs...)
}

func onServer(b *proc.Builder, name string, args []string, o options, f func(*watch, options) error) (err error) {
	var bin string
	switch name {
	case "framed", "echo":
		bin, err = b.Example(name)
	case "bareloop":
		bin, err = b.Own("bareloop")
	case "net":
		bin, err = b.Own("netecho")
	default:
		bin = name
	}
	if err != nil {
		return err
	}
	s, err := proc.Start(o.serverCPU, bin, append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	if err != nil {
		return err
	}
	defer func() {
		if serr := s.Stop(); err == nil {
			err = serr
		}
	}()
	target, err := proc.ParseTarget(s.Addr)
	if err != nil {
		return err
	}
	w := &watch{server: s, target: target}
	if err := f(w, o); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// verdict prints the growth and compares it with the limit.
func (w *watch) verdict(o options, what string, n int, limit float64) error {
	base := w.idle
	if o.baseline == "connected" {
		base = w.connected
	}
	grown := float64(w.full.RSS-base.RSS) / mib
	fmt.Printf("  growth over %s: %.1f MiB", o.baseline, grown)
	if limit > 0 {
		fmt.Printf(" (limit %.1f MiB)", limit)
	}
	fmt.Println()
	if limit > 0 && grown > limit {
		return fmt.Errorf("%d %s cost %.1f MiB over %s, the limit is %.1f", n, what, grown, o.baseline, limit)
	}
	return nil
}
