//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

const (
	readSize  = 64 << 10
	warmTime  = 500 * time.Millisecond // when no number of warm-up messages is given
	drainTime = 5 * time.Second        // for the last answers, after the measurement
)

type config struct {
	target   proc.Target
	conns    int
	size     int
	depth    int
	framed   bool
	messages int64
	duration time.Duration
	warm     int64
	rate     float64
	load     float64
	pid      int
	timeout  time.Duration
}

// result is what one measurement saw, warm-up and drain left out.
type result struct {
	Messages  int64   `json:"messages"`
	Bytes     int64   `json:"bytes"` // in one direction
	Reads     int64   `json:"reads"` // of this program; each found something
	Seconds   float64 `json:"seconds"`
	ServerCPU float64 `json:"server_cpu"` // seconds; 0 without a process to look at
	ClientCPU float64 `json:"client_cpu"`
}

// pattern is the endless stream that every connection sends, from a place of its
// own: whole messages of random bytes that repeat after period bytes. Bytes lost,
// doubled, reordered or given to another connection do not match.
type pattern struct {
	frame  int // bytes of a message on the wire
	period int64
	data   []byte // period bytes and as many again as one read or write may take
}

func newPattern(size int, framed bool) pattern {
	p := pattern{frame: size}
	if framed {
		p.frame += 4
	}
	n := max(16, (256<<10)/p.frame)
	p.period = int64(n * p.frame)
	p.data = make([]byte, p.period, p.period+readSize)
	rng := rand.NewChaCha8([32]byte{'r', 'u', 'n', 'n', 'e', 'l'})
	rng.Read(p.data)
	if framed {
		for i := range n {
			binary.BigEndian.PutUint32(p.data[i*p.frame:], uint32(size))
		}
	}
	for len(p.data) < cap(p.data) {
		p.data = append(p.data, p.data[:min(int(p.period), cap(p.data)-len(p.data))]...)
	}
	return p
}

// at returns up to n bytes of the stream from off on; at most readSize.
func (p *pattern) at(off, n int64) []byte {
	off %= p.period
	return p.data[off : off+min(n, readSize)]
}

type conn struct {
	fd      int
	base    int64 // where in the pattern the stream starts
	sent    int64
	got     int64
	allowed int64 // bytes that may have been sent by now
	blocked bool  // EPOLLOUT is awaited
}

type generator struct {
	config
	pattern
	ep    int
	conns []conn
	buf   []byte

	done  int64 // whole messages that came back
	reads int64

	paced bool  // messages go out by the clock
	ready []int // paced only: connections with nothing under way, first in first out
}

func run(cfg config) (result, error) {
	g := &generator{config: cfg, pattern: newPattern(cfg.size, cfg.framed), buf: make([]byte, readSize)}
	var err error
	if g.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return result{}, os.NewSyscallError("epoll_create1", err)
	}
	defer g.close()
	if err := g.connect(); err != nil {
		return result{}, err
	}
	return g.measure()
}

func (g *generator) connect() error {
	g.conns = make([]conn, 0, g.config.conns)
	messages := g.period / int64(g.frame)
	for i := range g.config.conns {
		fd, err := g.target.Connect(proc.SocketOptions{})
		if err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		// Steps of a large odd number put the connections far from each other.
		g.conns = append(g.conns, conn{fd: fd, base: int64(i) * 7919 % messages * int64(g.frame)})
		if err := g.interest(unix.EPOLL_CTL_ADD, i, unix.EPOLLIN); err != nil {
			return err
		}
	}
	return nil
}

func (g *generator) close() {
	for i := range g.conns {
		unix.Close(g.conns[i].fd)
	}
	unix.Close(g.ep)
}

func (g *generator) interest(op, i int, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(i)} // the index, not the descriptor
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(g.ep, op, g.conns[i].fd, &ev))
}

// sample is a moment of a run.
type sample struct {
	at             time.Time
	done, reads    int64
	server, client time.Duration
}

func (g *generator) sample() (s sample, err error) {
	s = sample{at: time.Now(), done: g.done, reads: g.reads}
	if g.pid != 0 {
		if s.server, err = proc.CPU(g.pid); err != nil {
			return s, err
		}
	}
	s.client, err = proc.CPU(os.Getpid())
	return s, err
}

func (g *generator) measure() (result, error) {
	batch := int64(g.depth * g.frame)
	start := time.Now()
	g.paced = g.rate > 0
	for i := range g.conns {
		if g.paced {
			g.ready = append(g.ready, i)
			continue
		}
		g.conns[i].allowed = batch
		if err := g.send(i); err != nil {
			return result{}, err
		}
	}

	// Warm up. With -load below 1 the second half of it tells the full rate.
	warmedUp := func(part float64) func() bool {
		if g.warm > 0 {
			want := int64(part * float64(g.warm))
			return func() bool { return g.done >= want }
		}
		end := start.Add(time.Duration(part * float64(warmTime)))
		return func() bool { return !time.Now().Before(end) }
	}
	if err := g.until(warmedUp(0.5)); err != nil {
		return result{}, err
	}
	half, err := g.sample()
	if err != nil {
		return result{}, err
	}
	if err := g.until(warmedUp(1)); err != nil {
		return result{}, err
	}
	if g.load < 1 {
		g.rate = g.load * float64(g.done-half.done) / time.Since(half.at).Seconds()
		g.paced = true // from here on a connection that has everything back is ready
		settle := time.Now().Add(warmTime / 2)
		if err := g.until(func() bool { return !time.Now().Before(settle) }); err != nil {
			return result{}, err
		}
	}

	before, err := g.sample()
	if err != nil {
		return result{}, err
	}
	enough := func() bool { return time.Since(before.at) >= g.duration }
	if g.messages > 0 {
		enough = func() bool { return g.done-before.done >= g.messages }
	}
	if err := g.until(enough); err != nil {
		return result{}, err
	}
	after, err := g.sample()
	if err != nil {
		return result{}, err
	}
	if err := g.drain(); err != nil {
		return result{}, err
	}
	n := after.done - before.done
	if n == 0 {
		return result{}, errors.New("no message came back during the measurement: the rate is too low for its length")
	}
	return result{
		Messages:  n,
		Bytes:     n * int64(g.frame),
		Reads:     after.reads - before.reads,
		Seconds:   after.at.Sub(before.at).Seconds(),
		ServerCPU: (after.server - before.server).Seconds(),
		ClientCPU: (after.client - before.client).Seconds(),
	}, nil
}

// until serves the connections until stop says so; it is asked once per poll.
func (g *generator) until(stop func() bool) error {
	var (
		events  [256]unix.EpollEvent
		quiet   = time.Now() // when something last came back, or nothing was due
		granted = 0.0        // paced: messages sent since the clock started
		clock   = time.Now()
		batch   = int64(g.depth * g.frame)
	)
	for !stop() {
		if g.paced {
			now := time.Now()
			due := now.Sub(clock).Seconds() * g.rate
			for len(g.ready) > 0 && granted+float64(g.depth) <= due {
				i := g.ready[0]
				g.ready = append(g.ready[:0], g.ready[1:]...)
				granted += float64(g.depth)
				g.conns[i].allowed += batch
				if err := g.send(i); err != nil {
					return err
				}
			}
			if len(g.ready) == 0 && granted+float64(g.depth) < due {
				granted = due - float64(g.depth) // the server is behind: no burst later
			}
			if len(g.ready) == len(g.conns) {
				quiet = now
			}
		}
		n, err := g.poll(events[:])
		if err != nil {
			return err
		}
		if n == 0 {
			if time.Since(quiet) > g.timeout {
				return fmt.Errorf("nothing came back for %v: %s", g.timeout, g.state())
			}
			continue
		}
		quiet = time.Now()
		for _, ev := range events[:n] {
			if err := g.serve(int(ev.Fd), ev.Events); err != nil {
				return err
			}
		}
	}
	return nil
}

// poll waits for events. Sending by the clock it never sleeps, so that messages
// leave on time; it has a core of its own.
func (g *generator) poll(events []unix.EpollEvent) (int, error) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(g.ep), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if errno == 0 && (n > 0 || g.paced) {
		return int(n), nil
	}
	m, err := unix.EpollWait(g.ep, events, 100)
	if err == unix.EINTR {
		return 0, nil
	}
	return max(m, 0), os.NewSyscallError("epoll_wait", err)
}

// serve reads once, checks, and sends as many messages as came back.
func (g *generator) serve(i int, events uint32) error {
	c := &g.conns[i]
	if events&unix.EPOLLOUT != 0 {
		if err := g.send(i); err != nil {
			return err
		}
	}
	if events&^unix.EPOLLOUT == 0 {
		return nil
	}
	n, errno := rawio(unix.SYS_READ, c.fd, g.buf)
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return nil
	case errno != 0:
		return fmt.Errorf("connection %d, after %d bytes: %w", i, c.got, os.NewSyscallError("read", errno))
	case n == 0:
		return fmt.Errorf("connection %d: closed by the server after %d bytes, %d of its messages missing", i, c.got, (c.sent-c.got+int64(g.frame)-1)/int64(g.frame))
	case c.got+int64(n) > c.sent:
		return fmt.Errorf("connection %d: %d bytes came back of %d sent", i, c.got+int64(n), c.sent)
	}
	if want := g.at(c.base+c.got, int64(n)); !bytes.Equal(g.buf[:n], want) {
		for k := range want {
			if g.buf[k] != want[k] {
				return fmt.Errorf("connection %d, byte %d: got %#02x, want %#02x", i, c.got+int64(k), g.buf[k], want[k])
			}
		}
	}
	frame := int64(g.frame)
	whole := (c.got+int64(n))/frame - c.got/frame
	c.got += int64(n)
	g.done += whole
	g.reads++
	if g.paced {
		if c.got == c.allowed {
			g.ready = append(g.ready, i)
		}
		return nil
	}
	if whole > 0 {
		c.allowed += whole * frame
		return g.send(i)
	}
	return nil
}

// send writes what the connection is allowed to send and the socket takes.
func (g *generator) send(i int) error {
	c := &g.conns[i]
	for c.sent < c.allowed {
		n, errno := rawio(unix.SYS_WRITE, c.fd, g.at(c.base+c.sent, c.allowed-c.sent))
		if errno == unix.EAGAIN {
			if !c.blocked {
				c.blocked = true
				return g.interest(unix.EPOLL_CTL_MOD, i, unix.EPOLLIN|unix.EPOLLOUT)
			}
			return nil
		}
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return fmt.Errorf("connection %d, after %d bytes: %w", i, c.sent, os.NewSyscallError("write", errno))
		}
		c.sent += int64(n)
	}
	if c.blocked {
		c.blocked = false
		return g.interest(unix.EPOLL_CTL_MOD, i, unix.EPOLLIN)
	}
	return nil
}

// drain sends nothing new and waits for all that is owed.
func (g *generator) drain() error {
	g.paced, g.rate, g.ready = true, 0, nil
	for i := range g.conns {
		c := &g.conns[i]
		// A message that was begun is finished.
		frame := int64(g.frame)
		c.allowed = (c.sent + frame - 1) / frame * frame
		if err := g.send(i); err != nil {
			return err
		}
	}
	end := time.Now().Add(drainTime)
	outstanding := func() (n int) {
		for i := range g.conns {
			if g.conns[i].got < g.conns[i].allowed {
				n++
			}
		}
		return n
	}
	left := outstanding()
	err := g.until(func() bool {
		left = outstanding()
		return left == 0 || time.Now().After(end)
	})
	if err == nil && left > 0 {
		err = fmt.Errorf("%d connections still waited for answers %v after the last message: %s", left, drainTime, g.state())
	}
	return err
}

func (g *generator) state() string {
	var waiting int
	var missing int64
	first := -1
	for i := range g.conns {
		if d := g.conns[i].sent - g.conns[i].got; d > 0 {
			if first < 0 {
				first = i
			}
			waiting++
			missing += d
		}
	}
	if first < 0 {
		return "nothing is under way"
	}
	c := &g.conns[first]
	return fmt.Sprintf("%d connections wait for %d bytes; the first, %d, sent %d and got %d", waiting, missing, first, c.sent, c.got)
}

func rawio(call uintptr, fd int, p []byte) (int, unix.Errno) {
	n, _, errno := syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return int(n), errno
}
