//go:build linux

// Command idleconns measures what a connection costs in resident memory that has said
// something once and is silent since: in Runnel with a pipeline of three handlers, in a
// loop in C, with package net and with netpoll, in one run.
//
//	go run ./idleconns
//
// The kernel's memory for the sockets is the same for all and is not counted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

func main() {
	conns := flag.Int("conns", 9000, "connections to each server")
	limit := flag.Int64("max", 1024, "exit with status 1 when Runnel takes so many `bytes` a connection more than C")
	serve := flag.String("serve", "", "be the `server`: runnel or netpoll; for this command's own use")
	addr := flag.String("addr", "127.0.0.1:0", "with -serve: `address` to listen on")
	flag.Parse()
	var err error
	if *serve != "" {
		err = serveUntilTold(*serve, *addr)
	} else {
		err = run(*conns, *limit)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "idleconns:", err)
		os.Exit(1)
	}
}

func serveUntilTold(name, addr string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	serve, ok := servers[name]
	if !ok {
		return fmt.Errorf("-serve %s: unknown", name)
	}
	return serve(ctx, addr)
}

func run(conns int, limit int64) error {
	files, err := proc.RaiseFiles()
	if err != nil {
		return err
	}
	conns = min(conns, int(files)-100)
	b, err := proc.NewBuilder()
	if err != nil {
		return err
	}
	defer b.Close()
	self, err := b.Own("idleconns")
	if err != nil {
		return err
	}
	fmt.Printf("%d connections to each, 64 B there and back on each, then silence\n", conns)
	fmt.Printf("%-24s %14s %14s\n", "server", "MiB before", "B/connection")
	per := map[string]int64{}
	for _, s := range []struct {
		name string
		bin  func() (string, error)
		args []string
	}{
		{"C epoll", func() (string, error) { return b.C("cloop") }, nil},
		{"runnel, three handlers", func() (string, error) { return self, nil }, []string{"-serve", "runnel"}},
		{"net", func() (string, error) { return b.Own("netecho") }, nil},
		{"netpoll", func() (string, error) { return self, nil }, []string{"-serve", "netpoll"}},
	} {
		bin, err := s.bin()
		if errors.Is(err, proc.ErrAbsent) {
			fmt.Printf("%s left out: %v\n", s.name, err)
			continue
		}
		if err != nil {
			return err
		}
		before, n, err := measure(conns, bin, append(s.args, "-addr", "127.0.0.1:0")...)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		per[s.name] = n
		fmt.Printf("%-24s %14.1f %14d\n", s.name, float64(before)/(1<<20), n)
	}
	ours, c := per["runnel, three handlers"], per["C epoll"]
	if c > 0 && ours > c+limit {
		return fmt.Errorf("runnel takes %d bytes a connection more than C, the limit is %d", ours-c, limit)
	}
	return nil
}

// measure returns what the server has resident without connections, and what each of n
// adds.
func measure(n int, bin string, args ...string) (before, each int64, err error) {
	s, err := proc.Start(-1, bin, args...)
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if serr := s.Stop(); err == nil {
			err = serr
		}
	}()
	target, err := proc.ParseTarget(s.Addr)
	if err != nil {
		return 0, 0, err
	}
	// What a first connection needs is there once for all.
	for range 10 {
		if err := talkOnce(target); err != nil {
			return 0, 0, err
		}
	}
	time.Sleep(500 * time.Millisecond) // for what is freed a moment later
	m, err := proc.MemoryOf(s.PID)
	if err != nil {
		return 0, 0, err
	}
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for range n {
		c, err := talk(target)
		if err != nil {
			return 0, 0, err
		}
		open = append(open, c)
	}
	time.Sleep(2 * time.Second) // until pools have given back what they do not need
	after, err := proc.MemoryOf(s.PID)
	if err != nil {
		return 0, 0, err
	}
	return m.RSS, (after.RSS - m.RSS) / int64(n), nil
}

func talkOnce(t proc.Target) error {
	c, err := talk(t)
	if err == nil {
		c.Close()
	}
	return err
}

// talk connects and has 64 bytes sent back.
func talk(t proc.Target) (net.Conn, error) {
	fd, err := t.Connect(proc.SocketOptions{})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "connection")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	p := make([]byte, 64)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err = c.Write(p); err == nil {
		_, err = io.ReadFull(c, p)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}
