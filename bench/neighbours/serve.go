//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// sample is what the neighbours of one server felt in one round.
type sample struct {
	Channel []time.Duration // from a send in a handler to the receiver's running
	Timer   []time.Duration // from when a sleep was over to the sleeper's running

	rate, cores, cost float64 // messages a second, processors used, microseconds of them for each message
}

// sendEvery is the number of reads between two sends of the probe; on a saturated
// server that is about a millisecond.
const sendEvery = 256

// probes are the neighbours: goroutines that nearly always wait.
type probes struct {
	signal    chan time.Time
	reads     atomic.Uint64
	recording atomic.Bool

	channel, timer []time.Duration
}

// read is called by the server's handlers after each read.
func (p *probes) read() {
	if p.reads.Add(1)%sendEvery == 0 {
		select {
		case p.signal <- time.Now():
		default:
		}
	}
}

// awaitChannel waits for the handlers' sends.
func (p *probes) awaitChannel() {
	for at := range p.signal {
		late := time.Since(at)
		if p.recording.Load() {
			p.channel = append(p.channel, late)
		}
	}
}

// awaitTimer sleeps for one to two milliseconds, again and again.
func (p *probes) awaitTimer(stop <-chan struct{}) {
	for {
		d := time.Millisecond + time.Duration(rand.IntN(int(time.Millisecond)))
		due := time.Now().Add(d)
		time.Sleep(d)
		late := time.Since(due)
		if p.recording.Load() {
			p.timer = append(p.timer, late)
		}
		select {
		case <-stop:
			return
		default:
		}
	}
}

// serve is the program under test: an echo server and its neighbours in one process.
// It records from the first SIGUSR1 on and writes what it has to out at the second.
func serve(kind string, procs, loops int, out string) error {
	if procs > 0 {
		runtime.GOMAXPROCS(procs)
	}
	p := &probes{signal: make(chan time.Time, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var addr net.Addr
	var err error
	switch kind {
	case "runnel":
		addr, err = serveRunnel(ctx, p, loops)
	case "net":
		addr, err = serveNet(p)
	default:
		err = fmt.Errorf("unknown server %q", kind)
	}
	if err != nil {
		return err
	}
	control := make(chan os.Signal, 1)
	signal.Notify(control, syscall.SIGUSR1, syscall.SIGTERM)
	fmt.Printf("listening on tcp://%s\n", addr)

	stop := make(chan struct{})
	ended := make(chan struct{}, 2)
	go func() { p.awaitChannel(); ended <- struct{}{} }()
	go func() { p.awaitTimer(stop); ended <- struct{}{} }()
	<-control
	p.recording.Store(true)
	<-control
	p.recording.Store(false)
	close(stop)
	<-ended // the sleeper; the other one may get sends until the process ends
	b, err := json.Marshal(sample{Channel: p.channel, Timer: p.timer})
	if err != nil {
		return err
	}
	if err := os.WriteFile(out, b, 0o600); err != nil {
		return err
	}
	<-control
	return nil
}

func serveRunnel(ctx context.Context, p *probes, loops int) (net.Addr, error) {
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: loops})
	if err != nil {
		return nil, err
	}
	srv := &transport.Server{Group: g, Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
			p.read()
			c.Write(b)
			return nil
		}))
	}}
	l, err := srv.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, g.Shutdown(ctx))
	}
	return l.LocalAddr(), nil // it ends with the process
}

func serveNet(p *probes) (net.Addr, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 64<<10)
				for {
					n, err := c.Read(buf)
					p.read()
					if n > 0 {
						if _, err := c.Write(buf[:n]); err != nil {
							return
						}
					}
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	return ln.Addr(), nil
}
