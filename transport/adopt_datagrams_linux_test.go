package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// A datagram socket goes on as a channel, bound or connected as it is, by a server or a
// dialer.
func TestAdoptDatagrams(t *testing.T) {
	bound := func(network, addr string) *net.UnixConn {
		c, err := net.ListenUnixgram(network, &net.UnixAddr{Name: addr, Net: network})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	udp := func() *net.UDPConn {
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, tt := range []struct {
		name string
		make func(t *testing.T) (mine io.Closer, other net.Conn)
	}{
		{"UDP", func(t *testing.T) (io.Closer, net.Conn) {
			c := udp()
			other, err := net.Dial("udp", c.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			return c, other
		}},
		{"UDP, connected", func(t *testing.T) (io.Closer, net.Conn) {
			first := udp()
			c, err := net.DialUDP("udp", nil, first.LocalAddr().(*net.UDPAddr))
			if err != nil {
				t.Fatal(err)
			}
			first.Close()
			other, err := net.DialUDP("udp", first.LocalAddr().(*net.UDPAddr), c.LocalAddr().(*net.UDPAddr))
			if err != nil {
				t.Fatal(err)
			}
			return c, other
		}},
		{"Unix", func(t *testing.T) (io.Closer, net.Conn) {
			at := unixgramAddr(t)
			c := bound("unixgram", at.Name)
			other, err := net.DialUnix("unixgram", unixgramAddr(t), at)
			if err != nil {
				t.Fatal(err)
			}
			return c, other
		}},
		{"a pair", func(t *testing.T) (io.Closer, net.Conn) {
			fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			f := os.NewFile(uintptr(fds[1]), "other")
			defer f.Close()
			other, err := net.FileConn(f)
			if err != nil {
				t.Fatal(err)
			}
			return os.NewFile(uintptr(fds[0]), "mine"), other
		}},
	} {
		for _, server := range []bool{false, true} {
			name := tt.name + " by a dialer"
			if server {
				name = tt.name + " by a server"
			}
			t.Run(name, func(t *testing.T) {
				mine, other := tt.make(t)
				defer other.Close()
				other.SetDeadline(time.Now().Add(patience))
				init := with(pipeline.On(func(c *pipeline.Context, d *Datagram) error {
					c.Write(d)
					return nil
				}), pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
					c.Write(b)
					return nil
				}))
				var srv Server
				var ch pipeline.Channel
				var err error
				if server {
					srv.Init, srv.MaxConns = init, 1
					ch, err = srv.Adopt(mine)
				} else {
					ch, err = (&Dialer{Init: init}).Adopt(mine)
				}
				if err != nil {
					t.Fatal(err)
				}
				if _, err := mine.(io.Writer).Write([]byte("x")); err == nil {
					t.Error("what was adopted is not closed")
				}
				for _, text := range []string{"ping", "", "pong"} {
					if _, err := other.Write([]byte(text)); err != nil {
						t.Fatal(err)
					}
					var b [16]byte
					if n, err := other.Read(b[:]); err != nil || string(b[:n]) != text {
						t.Fatalf("got %q, %v; want %q", b[:n], err, text)
					}
				}
				if server {
					shutDown(t, &srv)
					if err := ch.CloseReason(); err == nil {
						t.Error("open after Shutdown")
					}
				} else {
					closeAndWait(t, ch)
				}
			})
		}
	}
}

// A datagram socket whose channel does not come to life, for whatever reason, is closed,
// once: whoever gets the number of its descriptor next keeps it. The error is told, and
// nothing is left of it in the server, the loop or the group.
func TestAdoptDatagramsThatCannotStart(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name string
		init func(pipeline.Channel) error
		want error
	}{
		{"Init fails", func(pipeline.Channel) error { return broken }, broken},
		{"Init fails late", func(ch pipeline.Channel) error {
			ch.Write(&Datagram{Content: pooled("never"), Name: "@nobody"})
			if err := ch.Pipeline().Add(make(inbox, 1)); err != nil {
				return err
			}
			return broken
		}, broken},
		{"Init panics", func(pipeline.Channel) error { panic(broken) }, nil},
		{"Init ends its goroutine", func(pipeline.Channel) error { runtime.Goexit(); return nil }, pipeline.ErrGoexit},
		{"Init closes", func(ch pipeline.Channel) error { ch.Close(); return nil }, pipeline.ErrClosed},
		{"a handler closes", with(pipeline.OnActive(func(c *pipeline.Context) error { c.Channel().Reset(); return nil })), pipeline.ErrClosed},
		{"the loops have ended", func(pipeline.Channel) error { t.Error("Init is called"); return nil }, nil},
	} {
		for _, server := range []bool{false, true} {
			t.Run(fmt.Sprint(tt.name, " by a server ", server), func(t *testing.T) {
				g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
				if err != nil {
					t.Fatal(err)
				}
				ended := tt.name == "the loops have ended"
				if ended {
					if err := g.Shutdown(context.Background()); err != nil {
						t.Fatal(err)
					}
				}
				live := buffer.Live()
				fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				other, link := fds[1], linkOf(t, uintptr(fds[0]))
				var ch pipeline.Channel
				srv := &Server{Group: g, Init: tt.init}
				mine := os.NewFile(uintptr(fds[0]), "mine")
				if server {
					ch, err = srv.Adopt(mine)
				} else {
					ch, err = (&Dialer{Group: g, Init: tt.init}).Adopt(mine)
				}
				var op *OpError
				if ch != nil || !errors.As(err, &op) || tt.want != nil && !errors.Is(err, tt.want) {
					t.Errorf("got %v, %v; want an *OpError of %v", ch, err, tt.want)
				}
				if _, err := mine.Write(nil); err == nil {
					t.Error("what was to be adopted is not closed")
				}
				// They take the numbers that are free by now.
				var next [8]int
				for i := range next {
					if next[i], err = syscall.Dup(other); err != nil {
						t.Fatal(err)
					}
				}
				if !ended {
					if err := g.Shutdown(context.Background()); err != nil {
						t.Error(err)
					}
				}
				down := make(chan error, 1)
				go func() { down <- srv.Shutdown(context.Background()) }()
				if err := await(t, down, "the end of the server"); err != nil {
					t.Error(err)
				}
				if _, err := syscall.Write(other, []byte("x")); err == nil {
					t.Error("somebody has the socket still")
				}
				for _, fd := range append(next[:], other) {
					if err := syscall.Close(fd); err != nil {
						t.Errorf("descriptor %d, which was free: %v", fd, err)
					}
				}
				if n := descriptorsOf(t, link); n != 0 {
					t.Errorf("got %d descriptors of the socket, want 0", n)
				}
				if n := buffer.Live() - live; n != 0 {
					t.Errorf("live buffers: got %d more than before", n)
				}
			})
		}
	}
}
