//go:build linux

// Command neighbours measures what the other goroutines of a process feel while an
// echo server in it is saturated: how long after a send on a channel the receiver
// runs, and how long after its time a sleeper does. The same is measured beside a
// server with package net, in interleaved rounds.
//
//	go run ./neighbours
//
// It exits with status 1 when a ratio at p50 or p99 is over -max.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

type options struct {
	rounds             int
	procs              []int
	duration           time.Duration
	loops              int
	conns, size, depth int
	limit              float64
	csv, svg           string
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 10, "rounds")
	procs := flag.String("procs", "1,2", "values of GOMAXPROCS, with commas")
	flag.IntVar(&o.loops, "loops", 1, "loops of the runnel server; 0 means what it has by default, one for each processor of GOMAXPROCS")
	flag.DurationVar(&o.duration, "duration", 2*time.Second, "how long each server is measured in a round")
	flag.IntVar(&o.conns, "conns", 64, "connections")
	flag.IntVar(&o.size, "size", 64, "bytes of a message")
	flag.IntVar(&o.depth, "depth", 16, "messages under way on a connection")
	flag.Float64Var(&o.limit, "max", 2, "exit with status 1 when a median `ratio` at p50 or p99 is over this; 0 only prints")
	flag.StringVar(&o.csv, "csv", "", "also write the distributions to this `file`")
	flag.StringVar(&o.svg, "svg", "", "also draw them into this `file`")
	kind := flag.String("serve", "", "be the `server` of a round: runnel or net; for this command's own use")
	out := flag.String("out", "", "with -serve: the `file` for what was measured")
	flag.Parse()

	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "neighbours:", err)
			os.Exit(1)
		}
	}
	for s := range strings.SplitSeq(*procs, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			fail(fmt.Errorf("-procs %s: want numbers from 1 on", *procs))
		}
		o.procs = append(o.procs, n)
	}
	if *kind != "" {
		fail(serve(*kind, o.procs[0], o.loops, *out))
		return
	}
	if o.rounds < 1 || o.loops < 0 || flag.NArg() > 0 {
		fail(errors.New("-rounds must be at least 1, -loops at least 0, and there are no arguments"))
	}
	fail(run(o))
}

var kinds = []string{"runnel", "net"}

// series is one probe beside both servers, with one value of GOMAXPROCS.
type series struct {
	name   string
	procs  int
	rounds map[string][][]time.Duration // by kind, each round sorted
}

func run(o options) (err error) {
	b, err := proc.NewBuilder()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	load, err := b.Own("load")
	if err != nil {
		return err
	}
	self, err := b.Own("neighbours")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "runnel-neighbours-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	fmt.Printf("%d connections, %d B, depth %d, full load; loops: %d (0: by default); %d rounds of %v\n", o.conns, o.size, o.depth, o.loops, o.rounds, o.duration)
	if la, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Printf("load average before: %s\n", strings.Join(strings.Fields(string(la))[:3], " "))
	}
	var all []*series
	for _, procs := range o.procs {
		for _, name := range []string{"channel", "timer"} {
			all = append(all, &series{name, procs, map[string][][]time.Duration{}})
		}
	}
	loads := make([]loadOf, len(o.procs))
	for r := range o.rounds {
		for i, procs := range o.procs {
			for k := range kinds {
				kind := kinds[(r+k)%len(kinds)]
				s, err := o.round(load, self, filepath.Join(dir, "sample"), kind, procs)
				if err != nil {
					return fmt.Errorf("round %d, %s, GOMAXPROCS %d: %w", r+1, kind, procs, err)
				}
				all[2*i].add(kind, s.Channel)
				all[2*i+1].add(kind, s.Timer)
				loads[i].add(kind, s)
			}
		}
	}
	over := report(all, o.limit)
	for i, procs := range o.procs {
		loads[i].print(procs)
	}
	for _, s := range all {
		s.plot(os.Stdout)
	}
	if o.csv != "" {
		err = errors.Join(err, writeCSV(o.csv, all))
	}
	if o.svg != "" {
		err = errors.Join(err, writeSVG(o.svg, all))
	}
	if over != nil {
		err = errors.Join(err, errors.New(strings.Join(over, "; ")))
	}
	return err
}

// loadOf is what the servers did meanwhile, by kind and round.
type loadOf struct{ rate, cores, cost map[string][]float64 }

func (l *loadOf) add(kind string, s sample) {
	if l.rate == nil {
		l.rate, l.cores, l.cost = map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	}
	l.rate[kind] = append(l.rate[kind], s.rate)
	l.cores[kind] = append(l.cores[kind], s.cores)
	l.cost[kind] = append(l.cost[kind], s.cost)
}

func (l *loadOf) print(procs int) {
	fmt.Printf("GOMAXPROCS %d:", procs)
	for _, kind := range kinds {
		mid := func(v []float64) float64 { return quantile(slices.Sorted(slices.Values(v)), 0.5) }
		fmt.Printf("  %s %.0f messages/s on %.2f cores, %.3f us of CPU each", kind, mid(l.rate[kind]), mid(l.cores[kind]), mid(l.cost[kind]))
	}
	fmt.Println()
}

func (s *series) add(kind string, v []time.Duration) {
	slices.Sort(v)
	s.rounds[kind] = append(s.rounds[kind], v)
}

// all returns what was measured in all rounds, sorted.
func (s *series) all(kind string) []time.Duration {
	v := slices.Concat(s.rounds[kind]...)
	slices.Sort(v)
	return v
}

// round starts a server, puts it under full load from the other core, has it record
// for a while and stops it. With GOMAXPROCS 1 it has a core of its own; with more it
// may use all.
func (o *options) round(load, self, out, kind string, procs int) (s sample, err error) {
	cpu := 0
	if procs > 1 {
		cpu = -1
	}
	srv, err := proc.Start(cpu, self, "-serve", kind, "-procs", strconv.Itoa(procs), "-loops", strconv.Itoa(o.loops), "-out", out)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, srv.Stop()) }()
	const warm, cool = 500 * time.Millisecond, 300 * time.Millisecond
	var answer, msgs strings.Builder
	cmd := exec.Command(load, "-json", "-pid", strconv.Itoa(srv.PID), "-addr", srv.Addr, "-cpu", "1", "-conns", strconv.Itoa(o.conns), "-size", strconv.Itoa(o.size),
		"-depth", strconv.Itoa(o.depth), "-duration", (o.duration + warm + cool).String())
	cmd.Stdout, cmd.Stderr = &answer, &msgs
	if err := proc.StartPinned(cmd, -1); err != nil {
		return s, err
	}
	// The load generator warms up for half a second by itself.
	for _, d := range []time.Duration{500*time.Millisecond + warm, o.duration} {
		time.Sleep(d)
		if err := syscall.Kill(srv.PID, syscall.SIGUSR1); err != nil {
			return s, errors.Join(os.NewSyscallError("kill", err), cmd.Wait())
		}
	}
	if err := cmd.Wait(); err != nil {
		return s, fmt.Errorf("load: %w\n%s", err, msgs.String())
	}
	var res struct {
		Messages  int64   `json:"messages"`
		Seconds   float64 `json:"seconds"`
		ServerCPU float64 `json:"server_cpu"`
	}
	if err := json.Unmarshal([]byte(answer.String()), &res); err != nil {
		return s, fmt.Errorf("the load generator's answer: %w", err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, err
	}
	s.rate, s.cores = float64(res.Messages)/res.Seconds, res.ServerCPU/res.Seconds
	s.cost = res.ServerCPU / float64(res.Messages) * 1e6
	const few = 100
	if len(s.Channel) < few || len(s.Timer) < few {
		return s, fmt.Errorf("only %d sends and %d sleeps: too few to say anything", len(s.Channel), len(s.Timer))
	}
	return s, os.Remove(out)
}

// quantile returns the q-quantile of sorted values.
func quantile[T any](v []T, q float64) T { return v[int(q*float64(len(v)-1)+0.5)] }

var quantiles = []struct {
	q     float64
	name  string
	judge bool
}{{0.5, "p50", true}, {0.9, "p90", false}, {0.99, "p99", true}, {0.999, "p99.9", false}}

// report prints the table and returns the ratios that are over the limit.
func report(all []*series, limit float64) (over []string) {
	fmt.Printf("\nlateness in us, median over the rounds; ratios within the rounds [min..max]\n")
	fmt.Printf("%-10s %-8s %-6s %10s %10s %24s\n", "GOMAXPROCS", "probe", "", "runnel", "net", "ratio")
	for _, s := range all {
		for _, q := range quantiles {
			var ours, theirs, ratios []float64
			for i, v := range s.rounds["runnel"] {
				a, b := us(quantile(v, q.q)), us(quantile(s.rounds["net"][i], q.q))
				ours, theirs, ratios = append(ours, a), append(theirs, b), append(ratios, a/b)
			}
			slices.Sort(ours)
			slices.Sort(theirs)
			slices.Sort(ratios)
			ratio := quantile(ratios, 0.5)
			fmt.Printf("%-10d %-8s %-6s %10.1f %10.1f %8.2f [%6.2f ..%6.2f]\n", s.procs, s.name, q.name,
				quantile(ours, 0.5), quantile(theirs, 0.5), ratio, ratios[0], ratios[len(ratios)-1])
			if limit > 0 && q.judge && ratio > limit {
				over = append(over, fmt.Sprintf("GOMAXPROCS %d, %s, %s: %.2f times net, the limit is %g", s.procs, s.name, q.name, ratio, limit))
			}
		}
	}
	return over
}

func us(d time.Duration) float64 { return float64(d) / 1e3 }
