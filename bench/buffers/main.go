//go:build linux

// Command buffers measures what Runnel's buffers cost beside what else a Go program
// can use, and on request beside Netty's allocators. Everything is measured in one
// run: in each round every way of doing a thing has its turn, and ratios are taken
// within a round. It prints Markdown tables with the project's targets.
//
//	go run ./buffers
//	go run ./buffers -netty
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

type options struct {
	rounds int
	turn   time.Duration
	only   *regexp.Regexp
	netty  bool
}

func main() {
	var o options
	only := flag.String("run", "", "measure only cases whose name, such as owner/64, matches this `regexp`")
	flag.IntVar(&o.rounds, "rounds", 31, "rounds")
	flag.DurationVar(&o.turn, "turn", 10*time.Millisecond, "how long each takes in a round, about")
	flag.BoolVar(&o.netty, "netty", false, "measure Netty's allocators too, by Maven and JMH; a minute and a half more")
	flag.Parse()
	var err error
	if o.only, err = regexp.Compile(*only); err != nil || flag.NArg() > 0 || o.rounds < 1 || o.turn <= 0 {
		fmt.Fprintln(os.Stderr, "buffers: bad flag value or argument")
		flag.Usage()
		os.Exit(2)
	}
	if err := run(os.Stdout, o); err != nil {
		fmt.Fprintln(os.Stderr, "buffers:", err)
		os.Exit(1)
	}
}

// suite lists the tables in the order in which they are printed.
func suite() []group {
	return []group{ownerGroup(), remoteGroup(), sliceGroup(), accessGroup(), compositeGroup()}
}

func run(w io.Writer, o options) error {
	groups := suite()
	var keys []string
	for i := range groups {
		groups[i].cases = slices.DeleteFunc(groups[i].cases, func(c *bench) bool { return !o.only.MatchString(c.key) })
		for _, c := range groups[i].cases {
			keys = append(keys, c.key)
		}
	}
	groups = slices.DeleteFunc(groups, func(g group) bool { return len(g.cases) == 0 })
	if keys == nil {
		return fmt.Errorf("no case matches %q", o.only)
	}
	fmt.Fprintf(w, "%s\n", conditions(o))
	if busy := loadAverage(); busy > 0.3 {
		fmt.Fprintf(w, "The machine is not idle (load average %.2f): trust the ratios, not the nanoseconds.\n", busy)
	}

	// Netty runs first: a benchmark of its own does not belong between the rounds.
	var peers netty
	if o.netty {
		var err error
		var skipped string
		if peers, skipped, err = measureNetty(keys); err != nil {
			return err
		}
		if skipped != "" {
			fmt.Fprintf(w, "Netty skipped: %s.\n", skipped)
		} else {
			fmt.Fprintf(w, "Netty %s on Java %s.\n", peers.version, peers.java)
		}
	}
	if err := measure(groups, o.rounds, o.turn); err != nil {
		return err
	}
	for _, g := range groups {
		fmt.Fprintf(w, "\n%s\n\n", g.title)
		io.WriteString(w, g.table(peers))
	}
	worst, name := worstSpread(groups)
	fmt.Fprintf(w, "\nns: CPU time in the cheapest round; elapsed time, median, where two goroutines are at work. In brackets: Runnel's cost\n"+
		"as a part of the peer's, median of the rounds' ratios (Netty's figures, from a run of their own: figure to figure).\n"+
		"Half of the rounds came within %.0f %% of that median, or nearer; the widest was %s.\n", 100*worst, name)
	return nil
}

// conditions says what was measured, and with what.
func conditions(o options) string {
	s := fmt.Sprintf("%s, %s/%s, %d cores; %d rounds of %v", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), o.rounds, o.turn)
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			switch d.Path {
			case "github.com/valyala/bytebufferpool", "github.com/cloudwego/netpoll":
				s += fmt.Sprintf("; %s %s", path.Base(d.Path), d.Version)
			}
		}
	}
	return s + "."
}

func loadAverage() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), " ")
	busy, _ := strconv.ParseFloat(first, 64)
	return busy
}

// cpuTime is what this process has used on all cores.
func cpuTime() (time.Duration, error) { return proc.CPU(os.Getpid()) }
