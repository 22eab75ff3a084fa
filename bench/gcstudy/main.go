//go:build linux

// Command gcstudy measures what live buffers mean for the garbage collector of an
// application that makes garbage: collections, their CPU time and resident memory,
// for buffers off the Go heap and on it, under several settings of GOGC and
// GOMEMLIMIT. Each case is a process of its own. It prints a Markdown table.
//
//	go run ./gcstudy
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

const (
	mib = 1 << 20
	gib = 1 << 30

	bufferSize  = 16 << 10
	garbageSize = 512
)

type options struct {
	live, garbage int64 // bytes
	rounds        int
	child         string
}

func main() {
	var o options
	live := flag.Int64("live", 0, "`MiB` in live buffers; 0 means 1024, or a quarter of the memory there is if that is less")
	garbage := flag.Int64("garbage", 8<<10, "`MiB` of garbage")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds")
	flag.StringVar(&o.child, "child", "", "used by the command itself: be the case with buffers of this `kind`")
	flag.Parse()
	o.live, o.garbage = *live*mib, *garbage*mib
	if flag.NArg() > 0 || *live < 0 || *garbage < 1 || o.rounds < 1 {
		fmt.Fprintln(os.Stderr, "gcstudy: bad flag value or argument")
		flag.Usage()
		os.Exit(2)
	}
	var err error
	if o.child != "" {
		err = study(os.Stdout, o)
	} else {
		err = run(os.Stdout, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gcstudy:", err)
		os.Exit(1)
	}
}

// setting is one case.
type setting struct {
	kind    string // offHeap or onHeap
	name    string
	gogc    string // the environment variable
	limit   int64  // GOMEMLIMIT in bytes; 0 sets none
	atMost  int64  // bytes of memory it may come to need
	results []figures
	skipped string
}

const (
	offHeap = "off the heap"
	onHeap  = "Heap"
)

// settings lists the cases. The first three of each kind are the same question put to
// both; the last shows what GOMEMLIMIT does not see.
func settings(o options) []*setting {
	budget := o.live / 2 // of memory beyond the buffers
	all := []*setting{
		{kind: offHeap, name: "default", gogc: "100", atMost: o.live * 5 / 4},
		{kind: offHeap, name: "GOGC=800", gogc: "800", atMost: o.live * 2},
		{kind: offHeap, gogc: "off", limit: budget, atMost: o.live + budget},
		{kind: onHeap, name: "default", gogc: "100", atMost: o.live * 9 / 4},
		{kind: onHeap, name: "GOGC=800", gogc: "800", atMost: min(o.live*9, o.live+o.garbage)},
		{kind: onHeap, gogc: "off", limit: o.live + budget, atMost: o.live + budget},
		{kind: offHeap, gogc: "off", limit: o.live + budget, atMost: o.live*2 + budget},
	}
	for _, s := range all {
		if s.limit > 0 {
			s.name = fmt.Sprintf("GOGC=off GOMEMLIMIT=%dMiB", s.limit/mib)
		}
	}
	return all
}

func run(w io.Writer, o options) error {
	memory, err := proc.AvailableMemory()
	if err != nil {
		return err
	}
	if o.live == 0 {
		o.live = min(gib, memory/4) / bufferSize * bufferSize
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	fmt.Fprintf(w, "%d MiB live in buffers of %d KiB, %d MiB of garbage in objects of %d B; %s, %d cores; medians, %d rounds.\n\n",
		o.live/mib, bufferSize>>10, o.garbage/mib, garbageSize, runtime.Version(), runtime.GOMAXPROCS(0), o.rounds)
	all := settings(o)
	for range o.rounds {
		for _, s := range all {
			select {
			case <-interrupted:
				return errors.New("interrupted")
			default:
			}
			if s.atMost > memory/10*9 {
				s.skipped = fmt.Sprintf("needs %d MiB of memory, there are %d", s.atMost/mib, memory/mib)
				continue
			}
			f, err := s.measure(o)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", s.kind, s.name, err)
			}
			s.results = append(s.results, f)
		}
	}
	_, err = io.WriteString(w, table(all))
	return err
}

// measure runs the case once, in a process of its own.
func (s *setting) measure(o options) (f figures, err error) {
	self, err := os.Executable()
	if err != nil {
		return f, err
	}
	cmd := exec.Command(self, "-child", s.kind, "-live", fmt.Sprint(o.live/mib), "-garbage", fmt.Sprint(o.garbage/mib))
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "GOGC=") && !strings.HasPrefix(v, "GOMEMLIMIT=") && !strings.HasPrefix(v, "GODEBUG=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "GOGC="+s.gogc)
	if s.limit > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("GOMEMLIMIT=%d", s.limit))
	}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := proc.StartPinned(cmd, -1); err != nil {
		return f, err
	}
	if err := cmd.Wait(); err != nil {
		return f, fmt.Errorf("%w: %s", err, strings.TrimSpace(errs.String()))
	}
	return f, json.Unmarshal([]byte(out.String()), &f)
}

// table renders the medians as Markdown.
func table(all []*setting) string {
	var s strings.Builder
	s.WriteString("| buffers | setting | GC cycles | GC CPU s | all CPU s | peak RSS MiB |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, c := range all {
		if len(c.results) == 0 {
			fmt.Fprintf(&s, "| %s | %s | skipped: %s | | | |\n", c.kind, c.name, c.skipped)
			continue
		}
		middle := func(get func(figures) float64) float64 {
			v := make([]float64, 0, len(c.results))
			for _, f := range c.results {
				v = append(v, get(f))
			}
			slices.Sort(v)
			return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
		}
		fmt.Fprintf(&s, "| %s | %s | %.0f | %.2f | %.2f | %.0f |\n", c.kind, c.name,
			middle(func(f figures) float64 { return float64(f.Cycles) }),
			middle(func(f figures) float64 { return f.GCSeconds }),
			middle(func(f figures) float64 { return f.CPUSeconds }),
			middle(func(f figures) float64 { return float64(f.PeakRSS) / mib }))
	}
	return s.String()
}
