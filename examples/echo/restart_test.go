package main

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/examples/internal/process"
)

// A new server takes the place of an old one, again and again, while clients come and
// go: all of them are served, by the one or the other. Who has been there for long, and has
// an answer under way when the old one is told to end, gets the whole of it, then the end.
func TestRestartUnderLoad(t *testing.T) {
	process.LinuxOnly(t)
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr := "127.0.0.1:0"
			if network == "unix" {
				addr = filepath.Join(t.TempDir(), "echo.sock")
			}
			l, err := net.Listen(network, addr)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			f, err := l.(interface{ File() (*os.File, error) }).File()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			s := process.StartOn(t, f)
			if s.Network != network || s.Addr != l.Addr().String() {
				t.Fatalf("listening on %s://%s, want what was inherited, %s", s.Network, s.Addr, l.Addr())
			}

			stop := make(chan struct{})
			var clients sync.WaitGroup
			var served atomic.Int64
			for id := range 8 {
				r := rand.New(rand.NewPCG(1, uint64(id)))
				clients.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						if err := visit(l.Addr(), random(1+r.IntN(2000), byte(id))); err != nil {
							t.Errorf("client %d, after %d visits of all: %v", id, served.Load(), err)
							return
						}
						served.Add(1)
					}
				})
			}
			for range 5 {
				before := served.Load()
				var stay []net.Conn
				for range 3 {
					c := dialSlow(t, l.Addr())
					roundTrip(t, c, "hello")
					stay = append(stay, c)
				}
				next := process.StartOn(t, f)
				asked := random(32<<10, 7) // one write, which arrives as one
				for _, c := range stay {
					roundTrip(t, c, "still there?")
					if _, err := c.Write(asked); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
						t.Fatal(err)
					}
				}
				s.Signal(syscall.SIGTERM) // and a good end: that is all
				s.WaitLog("draining")
				for _, c := range stay {
					if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, asked[1:]) {
						t.Errorf("an answer that was under way: got %d bytes more, %v; want %d and the end", len(got), err, len(asked)-1)
					}
				}
				s.Ended()
				s = next
				for end := time.Now().Add(process.Patience); served.Load() < before+100; {
					if t.Failed() || time.Now().After(end) {
						t.Fatalf("got %d visits since the last restart, want 100", served.Load()-before)
					}
					if err := visit(l.Addr(), []byte("hello")); err != nil {
						t.Fatal(err)
					}
				}
			}
			close(stop)
			clients.Wait()
			s.Stop()
			if strings.Contains(s.Log(), "drain incomplete") {
				t.Error("the last drain was not complete")
			}
			if network == "unix" {
				if _, err := os.Stat(addr); err != nil {
					t.Errorf("the socket that was only lent to it is gone: %v", err)
				}
			}
		})
	}
}

// dialSlow connects to a server that has more to send soon than its peer has room for.
func dialSlow(t *testing.T, addr net.Addr) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: process.Patience, Control: process.SmallReceiveBuffer}
	c, err := d.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(process.Patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// visit connects, says something, hears it, and leaves.
func visit(addr net.Addr, msg []byte) error {
	c, err := net.DialTimeout(addr.Network(), addr.String(), process.Patience)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(process.Patience)); err != nil {
		return err
	}
	if _, err := c.Write(msg); err != nil {
		return err
	}
	got := make([]byte, len(msg))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, msg) {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// A server that is killed does not take its listening socket with it: those who wait are
// served by the next one.
func TestRestartAfterKill(t *testing.T) {
	process.LinuxOnly(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := process.StartOn(t, f)
	connected := s.Dial()
	roundTrip(t, connected, "hello")
	s.Signal(syscall.SIGKILL)
	s.Wait()
	if n, err := connected.Read(make([]byte, 1)); err == nil {
		t.Errorf("got %d bytes from a server that was killed", n)
	}
	waiting := s.Dial()
	s = process.StartOn(t, f)
	roundTrip(t, waiting, "hello")
	s.Stop()
}

// A server of datagrams is replaced while a client asks: each question has an answer.
func TestRestartOfDatagrams(t *testing.T) {
	process.LinuxOnly(t)
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := process.StartOn(t, f, "-network", "udp")
	if s.Network != "udp" || s.Addr != l.LocalAddr().String() {
		t.Fatalf("listening on %s://%s, want what was inherited, %s", s.Network, s.Addr, l.LocalAddr())
	}
	c := s.Dial()
	for i := range 4 {
		for j := range 20 {
			roundTrip(t, c, strings.Repeat("x", 1+20*i+j))
		}
		next := process.StartOn(t, f, "-network", "udp")
		s.Stop()
		s = next
	}
	roundTrip(t, c, "hello")
	s.Stop()
}
