//go:build linux

// Command filecheck compares what a file-region server sends with the files, by
// SHA-256: whole files of 0 B to 5 GiB and random ranges, 16 requests pipelined on
// each of 8 connections, in each mode of the server.
//
//	go run ./filecheck
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

func main() {
	cfg := config{}
	modes := flag.String("modes", "auto,sendfile,mmap,copy", "modes of the server, each started afresh")
	server := flag.String("server", "", "`program` to check instead of examples/fileregion; it takes -addr, -root and -mode")
	dir := flag.String("dir", os.TempDir(), "where a temporary directory for the files is made; its file system should know holes")
	flag.Int64Var(&cfg.big, "big", 5<<30, "`bytes` of the big, sparse file")
	flag.IntVar(&cfg.ranges, "ranges", 200, "random ranges")
	flag.IntVar(&cfg.conns, "conns", 8, "connections")
	flag.IntVar(&cfg.depth, "depth", 16, "requests under way on a connection")
	flag.Uint64Var(&cfg.seed, "seed", 0, "`seed` of the ranges; 0 takes one from the clock")
	flag.DurationVar(&cfg.timeout, "timeout", 20*time.Second, "fail when a connection gets nothing for this long")
	flag.Parse()
	if flag.NArg() > 0 || cfg.conns < 1 || cfg.depth < 1 || cfg.ranges < 0 || cfg.big < 1<<20 {
		fmt.Fprintln(os.Stderr, "filecheck: bad flag value or argument (-big is at least 1 MiB)")
		os.Exit(2)
	}
	if cfg.seed == 0 {
		cfg.seed = uint64(time.Now().UnixNano())
	}
	if err := run(cfg, *dir, *server, strings.Split(*modes, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "filecheck:", err)
		os.Exit(1)
	}
}

func run(cfg config, dir, server string, modes []string) error {
	b, err := proc.NewBuilder()
	if err != nil {
		return err
	}
	defer b.Close()
	if server == "" {
		if server, err = b.Example("fileregion"); err != nil {
			return err
		}
	}
	root, err := os.MkdirTemp(dir, "runnel-filecheck-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	files, err := makeFiles(root, cfg.big)
	if err != nil {
		return err
	}
	requests, err := plan(cfg, files)
	if err != nil {
		return err
	}
	fmt.Printf("%d requests in %d modes, %d connections, %d deep, seed %d\n", len(requests), len(modes), cfg.conns, cfg.depth, cfg.seed)
	var errs []error
	for _, mode := range modes {
		if err := checkMode(cfg, server, root, mode, requests); err != nil {
			fmt.Printf("%-9s FAILED\n", mode)
			errs = append(errs, fmt.Errorf("-mode %s: %w", mode, err))
		}
	}
	return errors.Join(errs...)
}

func checkMode(cfg config, server, root, mode string, requests []request) (err error) {
	s, err := proc.Start(-1, server, "-addr", "127.0.0.1:0", "-root", root, "-mode", mode)
	if err != nil {
		return err
	}
	defer func() {
		if serr := s.Stop(); err == nil {
			err = serr
		}
	}()
	start := time.Now()
	n, err := check(cfg, strings.TrimPrefix(s.Addr, "tcp://"), requests)
	if err != nil {
		if log := s.Stderr(); log != "" {
			err = fmt.Errorf("%w\nthe server's log:\n%s", err, log)
		}
		return err
	}
	d := time.Since(start)
	fmt.Printf("%-9s ok: %d answers, %.1f MiB in %.1f s\n", mode, len(requests), float64(n)/(1<<20), d.Seconds())
	return nil
}
