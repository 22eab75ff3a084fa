package transport

import (
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
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
