//go:build linux

// Command compare measures what servers cost per message, side by side. In every
// round each server is started afresh on one core, warmed up, and driven with the
// same number of messages from another core; the order rotates from round to
// round. What counts is the server process's CPU time per message, and of that the
// ratio to the first server named, taken within a round.
//
//	go run ./compare -preset echo64
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

// preset is a load and the servers it is usually put on; the first is the yardstick.
type preset struct {
	conns, size, depth int
	mode               string
	messages           int64
	servers            string
	behind             string // the server that the ones compared relay to; empty if they do not
}

var presets = map[string]preset{
	"echo64":   {conns: 64, size: 64, depth: 16, mode: "echo", messages: 2_000_000, servers: "bareloop,cloop,net,echo"},
	"echo1k":   {conns: 64, size: 1024, depth: 16, mode: "echo", messages: 1_000_000, servers: "bareloop,cloop,net,echo"},
	"echo64d1": {conns: 64, size: 64, depth: 1, mode: "echo", messages: 200_000, servers: "bareloop,cloop,net,echo"},
	// Every server gets the same framed bytes; to echo they are just bytes.
	"relay1m":  {conns: 16, size: 1 << 20, depth: 1, mode: "echo", messages: 3000, servers: "crelay,relay,haproxy,crelaycopy", behind: "cloop"},
	"mirror1m": {conns: 16, size: 1 << 20, depth: 1, mode: "echo", messages: 3000, servers: "relay,mirrored,mirroredcopy", behind: "cloop"},
	"relay64":  {conns: 64, size: 64, depth: 1, mode: "echo", messages: 200_000, servers: "crelaycopy,relay,crelay,haproxy", behind: "cloop"},
	"framed1k": {conns: 64, size: 1024, depth: 16, mode: "framed", messages: 1_000_000, servers: "echo,framed,bareloop"},
}

// pairs is a repeatable NAME=VALUE flag.
type pairs map[string]string

func (p pairs) String() string { return "" }

func (p pairs) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok || name == "" || value == "" {
		return fmt.Errorf("want NAME=VALUE, got %q", s)
	}
	p[name] = value
	return nil
}

type options struct {
	preset
	rounds               int
	serverCPU, clientCPU int
	load, rate           float64
	peers, args, limits  pairs
	behindBin            string
}

func main() {
	o := options{peers: pairs{}, args: pairs{}, limits: pairs{}}
	name := flag.String("preset", "echo64", "`name` of a load: echo64, echo1k, echo64d1, framed1k, relay64, relay1m, mirror1m")
	servers := flag.String("servers", "", "servers to compare, the yardstick first: bareloop, cloop, net, echo, framed, relay, crelay, crelaycopy, mirrored, mirroredcopy, haproxy or a name given by -peer (default: the preset's)")
	conns := flag.Int("conns", 0, "connections, instead of the preset's")
	size := flag.Int("size", 0, "bytes of a message, instead of the preset's")
	depth := flag.Int("depth", 0, "messages under way on a connection, instead of the preset's")
	messages := flag.Int64("messages", 0, "messages measured per round and server, instead of the preset's")
	flag.IntVar(&o.rounds, "rounds", 7, "rounds")
	flag.IntVar(&o.serverCPU, "server-cpu", 0, "core of the servers; -1 leaves them free")
	flag.IntVar(&o.clientCPU, "client-cpu", 1, "core of the load generator; -1 leaves it free")
	flag.Float64Var(&o.load, "load", 1, "part of full load, e.g. 0.5; each server's own full load")
	flag.Float64Var(&o.rate, "rate", 0, "messages per second, the same for all servers")
	flag.Var(o.peers, "peer", "`NAME=PROGRAM`: another server, started as PROGRAM -addr 127.0.0.1:0 (repeatable)")
	flag.Var(o.args, "args", "`NAME=ARGS`: more arguments for a server, separated by spaces (repeatable)")
	flag.Var(o.limits, "max", "`NAME=RATIO`: exit with status 1 when the median ratio of NAME is over RATIO (repeatable)")
	flag.Parse()

	var ok bool
	if o.preset, ok = presets[*name]; !ok || flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "compare: unknown preset or argument: %s\n", strings.Join(append([]string{*name}, flag.Args()...), " "))
		os.Exit(2)
	}
	override(&o.conns, *conns)
	override(&o.size, *size)
	override(&o.depth, *depth)
	override(&o.messages, *messages)
	override(&o.servers, *servers)
	if err := run(*name, o); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

func override[T comparable](dst *T, v T) {
	var zero T
	if v != zero {
		*dst = v
	}
}

// contender is one server of the comparison and what was measured of it, by round.
type contender struct {
	name, bin string
	args      []string
	mirrors   bool // what goes up to a connection that drops it, too

	us, rate, busy, ratio []float64 // CPU us per message, messages/s, share of the core, ratio to the yardstick
}

func run(name string, o options) error {
	if o.rounds < 1 {
		return errors.New("-rounds must be at least 1")
	}
	limits := map[string]float64{}
	for who, v := range o.limits {
		f, err := strconv.ParseFloat(v, 64)
		if err != nil || f <= 0 {
			return fmt.Errorf("-max %s=%s: want a ratio", who, v)
		}
		limits[who] = f
	}
	b, err := proc.NewBuilder()
	if err != nil {
		return err
	}
	defer b.Close()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)

	load, err := b.Own("load")
	if err != nil {
		return err
	}
	if o.behind != "" {
		if o.behindBin, err = b.C(o.behind); err != nil {
			return err
		}
	}
	var all []*contender
	for who := range strings.SplitSeq(o.servers, ",") {
		c, err := o.contender(b, strings.TrimSpace(who))
		if errors.Is(err, proc.ErrAbsent) {
			fmt.Printf("%s left out: %v\n", who, err)
			if _, limited := limits[who]; limited {
				return fmt.Errorf("%s has a limit and cannot be measured", who)
			}
			continue
		}
		if err != nil {
			return err
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return errors.New("no server to measure")
	}
	for who := range limits {
		if !slices.ContainsFunc(all, func(c *contender) bool { return c.name == who }) {
			return fmt.Errorf("-max %s: not among the servers", who)
		}
	}

	how := "full load"
	switch {
	case o.rate > 0:
		how = fmt.Sprintf("%.0f messages/s", o.rate)
	case o.load < 1:
		how = fmt.Sprintf("%.0f%% of full load", 100*o.load)
	}
	fmt.Printf("%s: %d connections, %d B, depth %d, %s, %s; %d rounds of %d messages; servers on core %d, load on core %d\n",
		name, o.conns, o.size, o.depth, o.mode, how, o.rounds, o.messages, o.serverCPU, o.clientCPU)
	if la, err := os.ReadFile("/proc/loadavg"); err == nil {
		if f := strings.Fields(string(la)); len(f) > 0 {
			if busy, _ := strconv.ParseFloat(f[0], 64); busy > 0.3 {
				fmt.Printf("the machine is not idle (load average %s): trust the ratios, not the microseconds\n", f[0])
			}
		}
	}
	for r := range o.rounds {
		for k := range all {
			select {
			case <-interrupted:
				return errors.New("interrupted")
			default:
			}
			c := all[(r+k)%len(all)]
			if err := o.round(load, c); err != nil {
				return fmt.Errorf("round %d, %s: %w", r+1, c.name, err)
			}
		}
		for _, c := range all {
			c.ratio = append(c.ratio, c.us[r]/all[0].us[r])
		}
	}

	best := slices.Min(all[0].us)
	fmt.Printf("%-10s %28s %28s %6s %11s %5s\n", "server", "CPU us/message [min..max]", "ratio to "+all[0].name+" [min..max]", "best", "messages/s", "busy")
	var over []string
	for _, c := range all {
		ratio := median(c.ratio)
		fmt.Printf("%-10s %8.3f [%7.3f ..%7.3f] %9.3f [%6.3f ..%6.3f] %6.3f %11.0f %4.0f%%\n", c.name,
			median(c.us), slices.Min(c.us), slices.Max(c.us), ratio, slices.Min(c.ratio), slices.Max(c.ratio), slices.Min(c.us)/best, median(c.rate), 100*median(c.busy))
		if limit, ok := limits[c.name]; ok && ratio > limit {
			over = append(over, fmt.Sprintf("%s costs %.3f times %s, the limit is %.3f", c.name, ratio, all[0].name, limit))
		}
	}
	if over != nil {
		return errors.New(strings.Join(over, "; "))
	}
	return nil
}

func (o *options) contender(b *proc.Builder, who string) (*contender, error) {
	c := &contender{name: who}
	var err error
	switch {
	case o.peers[who] != "":
		c.bin, err = filepath.Abs(o.peers[who])
	case who == "bareloop":
		c.bin, err = b.Own("bareloop")
	case who == "net":
		c.bin, err = b.Own("netecho")
	case who == "cloop":
		c.bin, err = b.C("cloop")
	case who == "crelay":
		c.bin, err = b.C("crelay")
	case who == "crelaycopy":
		c.bin, err = b.C("crelay")
		c.args = []string{"-mode", "copy"}
	case who == "relay":
		c.bin, err = b.Example("relay")
		c.args = []string{"-loops", "1"}
	case who == "mirrored" || who == "mirroredcopy":
		c.bin, err = b.Example("relay")
		c.args = []string{"-loops", "1", "-mirror-policy", "block"}
		if who == "mirroredcopy" {
			c.args = append(c.args, "-mode", "copy")
		}
		c.mirrors = true
	case who == "haproxy":
		if c.bin, err = exec.LookPath("haproxy"); err != nil {
			err = fmt.Errorf("haproxy is not installed: %w", proc.ErrAbsent)
		}
	case who == "echo" || who == "framed":
		c.bin, err = b.Example(who)
		c.args = []string{"-loops", "1"}
	default:
		err = fmt.Errorf("unknown server %q", who)
	}
	c.args = append(c.args, "-addr", "127.0.0.1:0")
	c.args = append(c.args, strings.Fields(o.args[who])...)
	return c, err
}

// round starts the server, drives it once and stops it.
func (o *options) round(load string, c *contender) (err error) {
	args := c.args
	var behind *proc.Server
	if o.behindBin != "" {
		if behind, err = proc.Start(o.clientCPU, o.behindBin, "-addr", "127.0.0.1:0"); err != nil {
			return err
		}
		defer behind.Stop()
		args = append(slices.Clone(args), "-to", strings.TrimPrefix(behind.Addr, "tcp://"))
	}
	if c.mirrors {
		sink, err := drain()
		if err != nil {
			return err
		}
		defer sink.Close()
		args = append(slices.Clone(args), "-mirror", sink.Addr().String())
	}
	var s *proc.Server
	if c.name == "haproxy" {
		s, err = startHAProxy(o.serverCPU, c.bin, behind)
	} else {
		s, err = proc.Start(o.serverCPU, c.bin, args...)
	}
	if err != nil {
		return err
	}
	defer func() {
		if serr := s.Stop(); err == nil {
			err = serr
		}
	}()
	cmd := exec.Command(load, "-json", "-addr", s.Addr, "-pid", strconv.Itoa(s.PID), "-mode", o.mode,
		"-conns", strconv.Itoa(o.conns), "-size", strconv.Itoa(o.size), "-depth", strconv.Itoa(o.depth),
		"-messages", strconv.FormatInt(o.messages, 10),
		"-load", strconv.FormatFloat(o.load, 'g', -1, 64), "-rate", strconv.FormatFloat(o.rate, 'g', -1, 64))
	if o.rate == 0 && o.load == 1 {
		cmd.Args = append(cmd.Args, "-warm", strconv.FormatInt(max(o.messages/4, 1), 10))
	}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := proc.StartPinned(cmd, o.clientCPU); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s%s", err, strings.TrimSpace(errs.String()), s.Stderr())
	}
	var res struct {
		Messages  int64   `json:"messages"`
		Seconds   float64 `json:"seconds"`
		ServerCPU float64 `json:"server_cpu"`
	}
	if err := json.Unmarshal([]byte(out.String()), &res); err != nil {
		return fmt.Errorf("the load generator's answer: %w", err)
	}
	c.us = append(c.us, res.ServerCPU*1e6/float64(res.Messages))
	c.rate = append(c.rate, float64(res.Messages)/res.Seconds)
	c.busy = append(c.busy, res.ServerCPU/res.Seconds)
	return nil
}

// median of an unsorted list; the mean of the middle two when there are two.
func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}
