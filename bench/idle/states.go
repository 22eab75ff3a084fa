package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// state is one in which a channel waits.
type state struct {
	name string
	cfg  transport.Config
	// enter brings an accepted channel into it, with what its peer does.
	enter func(ch pipeline.Channel, peer *net.TCPConn) error
}

var states = []state{
	{name: "idle", enter: func(pipeline.Channel, *net.TCPConn) error { return nil }},
	{name: "half-closed by the peer", cfg: transport.Config{HalfClose: true},
		enter: func(_ pipeline.Channel, peer *net.TCPConn) error { return peer.CloseWrite() }},
	{name: "half-closed by itself",
		enter: func(ch pipeline.Channel, _ *net.TCPConn) error { ch.CloseWrite(); return nil }},
	{name: "paused, data waiting", cfg: transport.Config{ManualRead: true},
		enter: func(_ pipeline.Channel, peer *net.TCPConn) error { return say(peer) }},
	{name: "paused, data and the end waiting", cfg: transport.Config{ManualRead: true},
		enter: func(_ pipeline.Channel, peer *net.TCPConn) error { return errors.Join(say(peer), peer.Close()) }},
	{name: "paused after a reset", cfg: transport.Config{ManualRead: true},
		enter: func(_ pipeline.Channel, peer *net.TCPConn) error {
			return errors.Join(say(peer), peer.SetLinger(0), peer.Close())
		}},
	{name: "not writable, data waiting", cfg: transport.Config{SendBuffer: 4 << 10},
		enter: func(ch pipeline.Channel, peer *net.TCPConn) error {
			ch.Write(make([]byte, 1<<20))
			return say(peer)
		}},
	{name: "closing, nothing taken", cfg: transport.Config{SendBuffer: 4 << 10, CloseTimeout: time.Hour},
		enter: func(ch pipeline.Channel, peer *net.TCPConn) error {
			ch.Write(make([]byte, 1<<20))
			ch.Close()
			return say(peer)
		}},
	{name: "closing with linger", cfg: transport.Config{ManualRead: true, CloseTimeout: time.Hour},
		enter: func(ch pipeline.Channel, peer *net.TCPConn) error {
			err := say(peer)
			ch.Close()
			return err
		}},
	{name: "closing with linger, nothing taken", cfg: transport.Config{SendBuffer: 1 << 20, CloseTimeout: time.Hour},
		enter: func(ch pipeline.Channel, _ *net.TCPConn) error {
			ch.Write(make([]byte, 200<<10)) // into the system's buffers, and no further
			ch.Close()
			return nil
		}},
	{name: "connecting to a black hole"}, // see blackHole
}

func say(peer *net.TCPConn) error {
	_, err := peer.Write([]byte("data"))
	return err
}

// runStates counts the turns of a loop with channels in each state.
func runStates(conns int, duration time.Duration, limit float64) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%d channels in each state, %v\t turns/s\t events/s\t timers/s\t\n", conns, duration)
	var failure error
	for _, st := range states {
		m, err := watch(st, conns, duration)
		if err != nil {
			return fmt.Errorf("%s: %w", st.name, err)
		}
		perSecond := func(n uint64) float64 { return float64(n) / duration.Seconds() }
		fmt.Fprintf(w, "%s\t %.1f\t %.1f\t %.1f\t\n", st.name, perSecond(m.Turns), perSecond(m.Events), perSecond(m.TimersFired))
		if perSecond(m.Turns) > limit {
			failure = errors.Join(failure, fmt.Errorf("%s: %.1f turns a second, the limit is %g", st.name, perSecond(m.Turns), limit))
		}
	}
	return errors.Join(w.Flush(), failure)
}

// watch returns what a loop did with channels in a state.
func watch(st state, conns int, duration time.Duration) (m eventloop.Metrics, err error) {
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, g.Shutdown(context.Background())) }()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	accepted := make(chan pipeline.Channel, conns)
	srv := &transport.Server{Group: g, Config: st.cfg, Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.OnActive(func(c *pipeline.Context) error {
			accepted <- c.Channel()
			return nil
		}))
	}}
	l, err := srv.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return m, err
	}
	var channels []pipeline.Channel
	if st.enter == nil {
		var closeHole func()
		if channels, closeHole, err = blackHole(ctx, g, conns); err != nil {
			return m, err
		}
		defer closeHole()
	}
	for range conns - len(channels) {
		peer, err := net.Dial("tcp4", l.LocalAddr().String())
		if err != nil {
			return m, err
		}
		defer peer.Close()
		ch := <-accepted
		if err := st.enter(ch, peer.(*net.TCPConn)); err != nil {
			return m, err
		}
		channels = append(channels, ch)
	}
	time.Sleep(time.Second) // what leads to the state is over, and the loop has given back its memory
	loop := g.Loops()[0]
	before := loop.Metrics()
	time.Sleep(duration)
	after := loop.Metrics()
	for _, ch := range channels {
		if !ch.Open() {
			return m, fmt.Errorf("a channel has closed, nothing was measured: %w", ch.CloseReason())
		}
		defer ch.Reset()
	}
	m.Turns = after.Turns - before.Turns
	m.Events = after.Events - before.Events
	m.TimersFired = after.TimersFired - before.TimersFired
	return m, nil
}

// blackHole returns channels that connect to a listener whose queue is full.
func blackHole(ctx context.Context, g *eventloop.Group, conns int) (channels []pipeline.Channel, end func(), err error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	end = func() { _ = syscall.Close(fd) }
	err = errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0))
	if err != nil {
		return nil, end, err
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		return nil, end, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)
	first, err := net.Dial("tcp4", addr) // takes the only place
	if err != nil {
		return nil, end, err
	}
	end = func() { _ = first.Close(); _ = syscall.Close(fd) }
	made := make(chan pipeline.Channel, conns)
	d := &transport.Dialer{Group: g, Timeout: -1, Init: func(ch pipeline.Channel) error { made <- ch; return nil }}
	for range conns {
		go func() { _, _ = d.Dial(ctx, "tcp4", addr) }() // until ctx ends
		channels = append(channels, <-made)
	}
	return channels, end, nil
}
