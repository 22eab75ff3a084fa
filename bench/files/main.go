//go:build linux

// Command files measures what it costs to serve warm files: examples/fileregion beside
// a file server in C that opens, stats, sends and closes the file for each request. In
// every round each server is started afresh on one core, warmed up and asked from
// another core for the same number of files; the order rotates. What counts is the
// server process's CPU time, and of that the ratio to the C server within a round.
//
//	go run ./files
package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

// kind is a size of file and how it is asked for.
type kind struct {
	name     string
	size     int64
	conns    int
	requests int     // measured in a round
	limit    float64 // of the ratio
}

var kinds = []kind{
	{"4K", 4 << 10, 16, 40_000, 1.3},
	{"64K", 64 << 10, 16, 12_000, 1.1},
	{"1M", 1 << 20, 8, 2_000, 1.1},
	{"256M", 256 << 20, 2, 8, 1.1},
}

type options struct {
	rounds, depth, procs int
	serverCPU, clientCPU int
	args                 string
	check                bool
}

func main() {
	var o options
	sizes := flag.String("sizes", "4K,64K,1M,256M", "`sizes` of the files")
	flag.IntVar(&o.rounds, "rounds", 7, "rounds")
	flag.IntVar(&o.depth, "depth", 1, "requests under way on a connection")
	flag.IntVar(&o.serverCPU, "server-cpu", 0, "core of the servers; -1 leaves them free")
	flag.IntVar(&o.clientCPU, "client-cpu", 1, "core of the client; -1 leaves it free")
	flag.IntVar(&o.procs, "procs", 0, "GOMAXPROCS of the servers in Go; 0 leaves it to them, which is 1 for a pinned one")
	flag.StringVar(&o.args, "args", "", "more arguments for fileregion, separated by spaces")
	flag.BoolVar(&o.check, "check", false, "exit with status 1 when a median ratio is over the project's target")
	peer := flag.String("peer", "", "another `program` to measure, started as PROGRAM -addr ADDR -root DIR")
	flag.Parse()
	if err := run(o, *sizes, *peer); err != nil {
		fmt.Fprintln(os.Stderr, "files:", err)
		os.Exit(1)
	}
}

// contender is a server and what was measured of it, by round.
type contender struct {
	name, bin string
	args      []string

	us, ratio, busy []float64
}

func run(o options, sizes, peer string) error {
	if o.rounds < 1 || o.depth < 1 || o.procs < 0 {
		return errors.New("-rounds and -depth must be at least 1, and -procs at least 0")
	}
	if o.procs > 0 { // which children inherit; this process has its own already
		if err := os.Setenv("GOMAXPROCS", strconv.Itoa(o.procs)); err != nil {
			return err
		}
	}
	var chosen []kind
	for s := range strings.SplitSeq(sizes, ",") {
		i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == s })
		if i < 0 {
			return fmt.Errorf("-sizes %s: want some of 4K, 64K, 1M, 256M", s)
		}
		chosen = append(chosen, kinds[i])
	}
	b, err := proc.NewBuilder()
	if err != nil {
		return err
	}
	defer b.Close()
	var all []*contender
	c, err := b.C("cfile")
	switch {
	case errors.Is(err, proc.ErrAbsent):
		fmt.Printf("cfile left out: %v\n", err)
		if o.check {
			return errors.New("nothing to check against")
		}
	case err != nil:
		return err
	default:
		all = append(all, &contender{name: "cfile", bin: c})
	}
	own, err := b.Example("fileregion")
	if err != nil {
		return err
	}
	all = append(all, &contender{name: "fileregion", bin: own, args: append([]string{"-loops", "1"}, strings.Fields(o.args)...)})
	if peer != "" {
		all = append(all, &contender{name: "peer", bin: peer})
	}
	root, err := os.MkdirTemp("", "runnel-files-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if o.clientCPU >= 0 {
		if err := proc.PinSelf(o.clientCPU); err != nil {
			return err
		}
	}
	fmt.Printf("%d rounds, depth %d; servers on core %d, client on core %d\n", o.rounds, o.depth, o.serverCPU, o.clientCPU)
	fmt.Printf("%-5s %-11s %28s %10s %28s %6s %5s\n", "file", "server", "CPU us/request [min..max]", "CPU s/GiB", "ratio to "+all[0].name+" [min..max]", "best", "busy")
	var over []string
	for _, k := range chosen {
		if err := measure(o, all, root, k); err != nil {
			return err
		}
		best := slices.Min(all[0].us)
		for _, c := range all {
			us, ratio := median(c.us), median(c.ratio)
			fmt.Printf("%-5s %-11s %8.2f [%7.2f ..%7.2f] %10.3f %9.3f [%6.3f ..%6.3f] %6.3f %4.0f%%\n", k.name, c.name,
				us, slices.Min(c.us), slices.Max(c.us), us/1e6*(1<<30)/float64(k.size), ratio, slices.Min(c.ratio), slices.Max(c.ratio),
				slices.Min(c.us)/best, 100*median(c.busy))
			if o.check && c.name == "fileregion" && ratio > k.limit {
				over = append(over, fmt.Sprintf("%s costs %.3f times the C server, the limit is %.1f", k.name, ratio, k.limit))
			}
		}
	}
	if over != nil {
		return errors.New(strings.Join(over, "; "))
	}
	return nil
}

// measure fills in what the contenders cost for files of one size.
func measure(o options, all []*contender, root string, k kind) error {
	content := make([]byte, k.size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	path := filepath.Join(root, k.name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return err
	}
	for _, c := range all {
		c.us, c.ratio, c.busy = nil, nil, nil
	}
	for r := range o.rounds {
		for i := range all {
			c := all[(r+i)%len(all)]
			if err := o.round(c, root, k, content); err != nil {
				return fmt.Errorf("%s, round %d, %s: %w", k.name, r+1, c.name, err)
			}
		}
		for _, c := range all {
			c.ratio = append(c.ratio, c.us[r]/all[0].us[r])
		}
	}
	return os.Remove(path)
}

// round starts a server, asks it for the files and stops it.
func (o *options) round(c *contender, root string, k kind, content []byte) (err error) {
	s, err := proc.Start(o.serverCPU, c.bin, append(slices.Clone(c.args), "-addr", "127.0.0.1:0", "-root", root)...)
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
	cl, err := newClient(target, k.conns, []byte(k.name+"\n"), []byte("OK: "+strconv.FormatInt(k.size, 10)+"\r\n"), content)
	if err != nil {
		return err
	}
	defer cl.close()
	// Every byte of the warm-up is compared; afterwards they are only counted, so that
	// the client is not what is measured.
	if err := cl.ask(max(k.requests/4, k.conns), o.depth, true); err != nil {
		return fmt.Errorf("%w\n%s", err, s.Stderr())
	}
	before, err := proc.CPU(s.PID)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := cl.ask(k.requests, o.depth, false); err != nil {
		return fmt.Errorf("%w\n%s", err, s.Stderr())
	}
	elapsed := time.Since(start)
	after, err := proc.CPU(s.PID)
	if err != nil {
		return err
	}
	c.us = append(c.us, float64(after-before)/1e3/float64(k.requests))
	c.busy = append(c.busy, float64(after-before)/float64(elapsed))
	return nil
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}
