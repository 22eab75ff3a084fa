//go:build linux

// Command record sends files to examples/record and to receivers in C, in turns, and says
// what each costs: CPU time of the receiver's process, user and system, for each GiB.
//
//	go run ./record                          # 256 MiB a connection, one at a time
//	go run ./record -size 65536 -conns 1024  # short ones
//	go run ./record -dir /var/tmp            # on a disk; by default in memory
//
// Every answer, and the size of every file, is checked. The files are removed after each.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

type options struct {
	size   int64
	conns  int
	rounds int
	cpu    int
	dir    string
}

func main() {
	var o options
	flag.Int64Var(&o.size, "size", 256<<20, "bytes of each connection")
	flag.IntVar(&o.conns, "conns", 4, "connections a round, one after the other")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds, each with all receivers")
	flag.IntVar(&o.cpu, "cpu", 0, "core of the receivers; this process uses another one. -1 pins nothing")
	flag.StringVar(&o.dir, "dir", "/dev/shm", "where the files are made")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

// receiver is a program under test.
type receiver struct {
	name string
	bin  string
	args []string
	cost []float64 // ms of CPU for each GiB, a figure a round
	rate []float64 // GiB/s
}

func run(o options) (err error) {
	b, err := proc.NewBuilder()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	example, err := b.Example("record")
	if err != nil {
		return err
	}
	receivers := []*receiver{{name: "record", bin: example}}
	if c, err := b.C("crecord"); err == nil {
		receivers = append(receivers,
			&receiver{name: "C, splice", bin: c, args: []string{"-mode", "splice"}},
			&receiver{name: "C, read and write", bin: c, args: []string{"-mode", "copy"}})
	} else if !errors.Is(err, proc.ErrAbsent) {
		return err
	}
	if o.cpu >= 0 && runtime.NumCPU() > 1 {
		if err := proc.PinSelf((o.cpu + 1) % runtime.NumCPU()); err != nil {
			return err
		}
	}
	for round := range o.rounds {
		for i := range receivers {
			r := receivers[(i+round)%len(receivers)]
			if err := r.round(o); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
	}
	fmt.Printf("%d connections of %d bytes a round, %d rounds; medians\n", o.conns, o.size, o.rounds)
	fmt.Printf("%-20s %14s %10s %8s\n", "", "CPU ms/GiB", "to record", "GiB/s")
	base := median(receivers[0].cost)
	for _, r := range receivers {
		fmt.Printf("%-20s %14.1f %10.2f %8.2f\n", r.name, median(r.cost), median(r.cost)/base, median(r.rate))
	}
	return nil
}

func (r *receiver) round(o options) (err error) {
	dir, err := os.MkdirTemp(o.dir, "runnel-record-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	srv, err := proc.Start(o.cpu, r.bin, append([]string{"-addr", "127.0.0.1:0", "-dir", dir}, r.args...)...)
	if err != nil {
		return err
	}
	defer srv.Stop() // the one in C dies of it, which is its way to end
	addr := strings.TrimPrefix(srv.Addr, "tcp://")
	chunk := make([]byte, min(o.size, 1<<20))
	if err := send(addr, dir, 1<<20, chunk); err != nil { // to warm it up
		return err
	}
	before, err := proc.CPU(srv.PID)
	if err != nil {
		return err
	}
	var took time.Duration
	for range o.conns {
		begin := time.Now()
		if err := send(addr, dir, o.size, chunk); err != nil {
			return err
		}
		took += time.Since(begin)
	}
	after, err := proc.CPU(srv.PID)
	if err != nil {
		return err
	}
	gib := float64(o.size) * float64(o.conns) / (1 << 30)
	r.cost = append(r.cost, float64(after-before)/1e6/gib)
	r.rate = append(r.rate, gib/took.Seconds())
	return nil
}

// send sends size bytes on a connection of its own, and checks what became of them.
func send(addr, dir string, size int64, chunk []byte) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	for left := size; left > 0; {
		n, err := c.Write(chunk[:min(left, int64(len(chunk)))])
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	if want := fmt.Sprintf("OK: %d\n", size); err != nil || string(answer) != want {
		return fmt.Errorf("got the answer %q, %v; want %q", answer, err, want)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 || filepath.Ext(files[0]) != ".bin" {
		return fmt.Errorf("got the files %v, %v; want one .bin", files, err)
	}
	info, err := os.Stat(files[0])
	if err != nil || info.Size() != size {
		return fmt.Errorf("file of %d bytes, %v; want %d", info.Size(), err, size)
	}
	return os.Remove(files[0])
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
