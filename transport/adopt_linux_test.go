package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// collector is a handler that passes on what it reads as strings, and what else
// happens.
type collector struct {
	read chan string
	errs chan error
	gone chan struct{}
}

func newCollector() *collector {
	return &collector{make(chan string, 1024), make(chan error, 16), make(chan struct{})}
}

func (h *collector) HandleRead(_ *pipeline.Context, msg any) error {
	b := msg.(*buffer.Buf)
	h.read <- b.ReadString(b.Len())
	b.Release()
	return nil
}

func (h *collector) HandleError(_ *pipeline.Context, err error) { h.errs <- err }

func (h *collector) HandleInactive(*pipeline.Context) error {
	close(h.gone)
	return nil
}

func (h *collector) dialer(cfg Config) *Dialer {
	return &Dialer{Config: cfg, Init: func(ch pipeline.Channel) error { return ch.Pipeline().Add(h) }}
}

func closeAndWait(t *testing.T, ch pipeline.Channel) {
	t.Helper()
	ch.Close()
	await(t, ch.Closed().Done(), "the end of the channel")
}

// socketPair returns two connected Unix sockets that block.
func socketPair(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
}

// pipe returns the ends of a pipe that blocks.
func blockingPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
}

// Connections of every kind go on as channels, and what was adopted is closed.
func TestAdoptConnection(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(t *testing.T) (mine io.Closer, other io.ReadWriteCloser)
	}{
		{"TCP", func(t *testing.T) (io.Closer, io.ReadWriteCloser) { return netPair(t, "tcp", "127.0.0.1:0") }},
		{"Unix", func(t *testing.T) (io.Closer, io.ReadWriteCloser) {
			return netPair(t, "unix", filepath.Join(t.TempDir(), "socket"))
		}},
		{"raw", func(t *testing.T) (io.Closer, io.ReadWriteCloser) { return socketPair(t) }},
	} {
		for _, server := range []bool{false, true} {
			t.Run(fmt.Sprint(tt.name, " by a server ", server), func(t *testing.T) {
				mine, other := tt.make(t)
				defer other.Close()
				var local, remote net.Addr
				if c, ok := mine.(net.Conn); ok {
					local, remote = c.LocalAddr(), c.RemoteAddr()
				}
				h := newCollector()
				var ch pipeline.Channel
				var err error
				var srv *Server
				if server {
					srv = &Server{Init: func(ch pipeline.Channel) error { return ch.Pipeline().Add(h) }}
					ch, err = srv.Adopt(mine)
				} else {
					ch, err = h.dialer(Config{}).Adopt(mine)
				}
				if err != nil {
					t.Fatal(err)
				}
				if !ch.Active() || ch.Parent() != nil {
					t.Error("the channel is not active, or has a parent")
				}
				if tt.name == "Unix" {
					local = ch.LocalAddr() // which has no name, and another one in package net
				}
				if local != nil && (ch.LocalAddr().String() != local.String() || ch.RemoteAddr().String() != remote.String()) {
					t.Errorf("got %v - %v, want %v - %v", ch.LocalAddr(), ch.RemoteAddr(), local, remote)
				}
				if _, err := mine.(io.Writer).Write([]byte("x")); err == nil {
					t.Error("what was adopted is not closed")
				}
				if _, err := other.Write([]byte("ping")); err != nil {
					t.Fatal(err)
				}
				if got := await(t, h.read, "the ping"); got != "ping" {
					t.Errorf("got %q, want ping", got)
				}
				ch.Write("pong")
				if server {
					go shutDown(t, srv)
				} else {
					ch.Close()
				}
				if got, err := io.ReadAll(other); err != nil || string(got) != "pong" {
					t.Errorf("got %q, %v; want pong and the end", got, err)
				}
				await(t, h.gone, "HandleInactive")
			})
		}
	}
}

// netPair returns both ends of a connection of package net.
func netPair(t *testing.T, network, addr string) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	if a, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	return a, await(t, accepted, "the accepted connection")
}

func TestAdoptListener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	for _, tt := range []struct{ network, addr string }{
		{"tcp", "127.0.0.1:0"},
		{"unix", path},
	} {
		for _, raw := range []bool{false, true} {
			t.Run(fmt.Sprint(tt.network, " raw ", raw), func(t *testing.T) {
				os.Remove(path)
				l, err := net.Listen(tt.network, tt.addr)
				if err != nil {
					t.Fatal(err)
				}
				addr := l.Addr().String()
				var c io.Closer = l
				if raw {
					if u, ok := l.(*net.UnixListener); ok {
						u.SetUnlinkOnClose(false)
					}
					f, err := l.(interface{ File() (*os.File, error) }).File()
					if err != nil {
						t.Fatal(err)
					}
					l.Close()
					c = f
				}
				h := newCollector()
				srv := &Server{Init: func(ch pipeline.Channel) error { return ch.Pipeline().Add(h) }}
				ch, err := srv.Adopt(c)
				if err != nil {
					t.Fatal(err)
				}
				if got := ch.LocalAddr().String(); got != addr {
					t.Errorf("got the address %v, want %v", got, addr)
				}
				conn, err := net.Dial(tt.network, addr)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := conn.Write([]byte("hello")); err != nil {
					t.Fatal(err)
				}
				if got := await(t, h.read, "the message"); got != "hello" {
					t.Errorf("got %q, want hello", got)
				}
				conn.Close()
				shutDown(t, srv)
				if _, err := os.Lstat(path); tt.network == "unix" && err != nil {
					t.Errorf("the file of a socket that was adopted: got %v, want it there", err)
				}
				if _, err := srv.Adopt(c); !errors.Is(err, ErrServerClosed) {
					t.Errorf("after Shutdown: got %v, want ErrServerClosed", err)
				}
			})
		}
	}
}

func TestAdoptReadEnd(t *testing.T) {
	r, w := blockingPipe(t)
	keep, err := sys.Dup(int(r.Fd())) // shares the flags
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close(keep)
	h := newCollector()
	ch, err := h.dialer(Config{}).Adopt(r)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := sys.Describe(keep); err != nil || d.Blocking {
		t.Errorf("got %+v, %v; want that it does not block", d, err)
	}
	if ch.LocalAddr() != nil || ch.RemoteAddr() != nil {
		t.Errorf("got addresses %v and %v of a pipe, want none", ch.LocalAddr(), ch.RemoteAddr())
	}
	if err := ch.Send(context.Background(), "no"); !errors.Is(err, pipeline.ErrOutputShutdown) {
		t.Errorf("write to a read end: got %v, want ErrOutputShutdown", err)
	}
	big := strings.Repeat("0123456789", 100<<10)
	go func() {
		if _, err := io.WriteString(w, big); err != nil {
			t.Error(err)
		}
		w.Close()
	}()
	var got strings.Builder
	for got.Len() < len(big) {
		got.WriteString(await(t, h.read, "more of the pipe"))
	}
	await(t, h.gone, "the end of the pipe")
	if got.String() != big {
		t.Error("what was read is not what was written")
	}
	if !errors.Is(ch.CloseReason(), io.EOF) {
		t.Errorf("got %v, want io.EOF as the reason", ch.CloseReason())
	}
	if d, err := sys.Describe(keep); err != nil || !d.Blocking {
		t.Errorf("got %+v, %v after the close; want that it blocks again", d, err)
	}
}

func TestAdoptWriteEnd(t *testing.T) {
	r, w := blockingPipe(t)
	defer r.Close()
	h := newCollector()
	ch, err := h.dialer(Config{}).Adopt(w)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(strings.Repeat("f", 100<<10)), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	region := buffer.NewFileRegion(f, 0, 100<<10)
	big := bytes.Repeat([]byte("0123456789"), 50<<10) // more than a pipe holds
	ch.Write(big)
	ch.Write(region)
	ch.Write("the end")
	ch.CloseWrite()
	want := string(big) + strings.Repeat("f", 100<<10) + "the end"
	if got, err := io.ReadAll(r); err != nil || string(got) != want {
		t.Errorf("got %d bytes, %v; want %d", len(got), err, len(want))
	}
	await(t, h.gone, "HandleInactive")
}

// Somebody who writes to a pipe that nobody reads any more learns it, even if he has
// nothing to write.
func TestAdoptWriteEndDeaf(t *testing.T) {
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprint("full ", full), func(t *testing.T) {
			r, w := blockingPipe(t)
			h := newCollector()
			ch, err := h.dialer(Config{}).Adopt(w)
			if err != nil {
				t.Fatal(err)
			}
			if full {
				ch.Write(make([]byte, 1<<20))
				if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}
			r.Close()
			await(t, h.gone, "the end of the channel")
			var op *OpError
			if err := await(t, h.errs, "an error"); !errors.As(err, &op) || !errors.Is(err, syscall.EPIPE) {
				t.Errorf("got %v, want an OpError that is EPIPE", err)
			}
		})
	}
}

func TestAdoptFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	h := newCollector()
	ch, err := h.dialer(Config{}).Adopt(f)
	if err != nil {
		t.Fatal(err)
	}
	ch.Write("to myself")
	if got := await(t, h.read, "the message"); got != "to myself" {
		t.Errorf("got %q, want what was written", got)
	}
	closeAndWait(t, ch)
	await(t, h.gone, "HandleInactive")
}

func TestAdoptTerminal(t *testing.T) {
	master, slave := openTerminal(t)
	hm, hs := newCollector(), newCollector()
	m, err := hm.dialer(Config{}).Adopt(master)
	if err != nil {
		t.Fatal(err)
	}
	s, err := hs.dialer(Config{}).Adopt(slave)
	if err != nil {
		t.Fatal(err)
	}
	m.Write("typed")
	if got := await(t, hs.read, "what was typed"); got != "typed" {
		t.Errorf("got %q, want typed", got)
	}
	s.Write("printed")
	if got := await(t, hm.read, "what was printed"); got != "printed" {
		t.Errorf("got %q, want printed", got)
	}
	closeAndWait(t, s)
	await(t, hm.gone, "the hangup")
	if !errors.Is(m.CloseReason(), io.EOF) {
		t.Errorf("got %v, want io.EOF as the reason", m.CloseReason())
	}
	await(t, hs.gone, "HandleInactive")
}

// What is no stream is refused, and closed.
func TestAdoptRefused(t *testing.T) {
	open := func(name string, flags int) func(*testing.T) io.Closer {
		return func(t *testing.T) io.Closer {
			f, err := os.OpenFile(name, flags, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
	for _, tt := range []struct {
		name string
		make func(t *testing.T) io.Closer
		want error
	}{
		{"a file", open(filepath.Join(t.TempDir(), "file"), os.O_RDWR|os.O_CREATE), errors.ErrUnsupported},
		{"a directory", open(t.TempDir(), os.O_RDONLY), errors.ErrUnsupported},
		{"no more than a path", open(t.TempDir(), 0x200000 /* O_PATH */), errors.ErrUnsupported},
		{"the null device", open(os.DevNull, os.O_RDWR), errors.ErrUnsupported},
		{"a socket of messages of the kernel", func(t *testing.T) io.Closer {
			fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
			if err != nil {
				t.Fatal(err)
			}
			return os.NewFile(uintptr(fd), "netlink")
		}, errors.ErrUnsupported},
		{"a socket of packets in a sequence", func(t *testing.T) io.Closer {
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			return os.NewFile(uintptr(fd), "seqpacket")
		}, errors.ErrUnsupported},
		{"a connection without a descriptor", func(t *testing.T) io.Closer {
			c, _ := net.Pipe()
			return c
		}, errors.ErrUnsupported},
		{"a listener", func(t *testing.T) io.Closer {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			return l
		}, errListens},
		{"a socket that is not connected", func(t *testing.T) io.Closer {
			fd, err := sys.Socket(&net.TCPAddr{IP: net.IPv4zero})
			if err != nil {
				t.Fatal(err)
			}
			return os.NewFile(uintptr(fd), "socket")
		}, syscall.ENOTCONN},
		{"what is closed", func(t *testing.T) io.Closer {
			a, b := socketPair(t)
			a.Close()
			b.Close()
			return a
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.make(t)
			fds := openFDs()
			_, err := (&Dialer{}).Adopt(c)
			var op *OpError
			if !errors.As(err, &op) || op.Op != "adopt" || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %v, want an OpError of adopt with %v", err, tt.want)
			}
			// Those of the loops of an earlier test may go only now.
			if n := openFDs(); tt.want != nil && tt.name != "a connection without a descriptor" && n > fds-1 {
				t.Errorf("got %d descriptors, want %d at most: one less", n, fds-1)
			}
		})
	}
}

func TestAdoptErrors(t *testing.T) {
	refuse := errors.New("not this one")
	init := func(pipeline.Channel) error { return refuse }
	a, b := netPair(t, "tcp", "127.0.0.1:0")
	if _, err := (&Dialer{Init: init}).Adopt(a); !errors.Is(err, refuse) {
		t.Errorf("Dialer: got %v, want the error of Init", err)
	}
	srv := &Server{Init: init}
	if _, err := srv.Adopt(b); !errors.Is(err, refuse) {
		t.Errorf("Server: got %v, want the error of Init", err)
	}
	shutDown(t, srv)

	a, b = netPair(t, "tcp", "127.0.0.1:0")
	if _, err := (&Dialer{Config: Config{HighWater: -1}}).Adopt(a); err == nil {
		t.Error("bad configuration: got nil, want an error")
	}
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	if err := g.Next().Execute(func() {
		_, err := (&Dialer{}).Adopt(b)
		result <- err
	}); err != nil {
		t.Fatal(err)
	}
	if err := await(t, result, "Adopt on a loop"); !errors.Is(err, eventloop.ErrWouldDeadlock) {
		t.Errorf("on a loop: got %v, want ErrWouldDeadlock", err)
	}
	if err := g.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	// On a group that has ended nothing is left behind.
	a, b = netPair(t, "tcp", "127.0.0.1:0")
	if _, err := (&Dialer{Group: g}).Adopt(a); !errors.Is(err, eventloop.ErrLoopClosed) {
		t.Errorf("Dialer after the end of the group: got %v, want ErrLoopClosed", err)
	}
	srv = &Server{Group: g}
	if _, err := srv.Adopt(b); !errors.Is(err, eventloop.ErrLoopClosed) {
		t.Errorf("Server after the end of the group: got %v, want ErrLoopClosed", err)
	}
	shutDown(t, srv)
}

// The standard streams stay open: whoever prints would print into a socket.
func TestAdoptStandardStream(t *testing.T) {
	_, err := (&Dialer{}).Adopt(os.Stdin) // whatever it is here
	if err == nil {
		t.Skip("standard input is a stream")
	}
	if _, err := sys.Describe(0); err != nil {
		t.Errorf("standard input after Adopt: got %v, want it open", err)
	}
}
