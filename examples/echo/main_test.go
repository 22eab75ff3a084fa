package main

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/examples/internal/process"
)

func TestMain(m *testing.M) { process.Main(m) }

// random returns n bytes that are the same in every run.
func random(n int, seed byte) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

// roundTrip sends msg and wants it back.
func roundTrip(t *testing.T, c net.Conn, msg string) {
	t.Helper()
	if _, err := io.WriteString(c, msg); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(msg))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != msg {
		t.Fatalf("got %q, %v; want %q", got[:n], err, msg)
	}
}

// A peer that closes its sending side gets all its bytes back, then the close.
func TestHalfClose(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr := "127.0.0.1:0"
			if network == "unix" {
				addr = filepath.Join(t.TempDir(), "echo.sock")
			}
			s := process.Start(t, "-network", network, "-addr", addr)
			if s.Network != network {
				t.Errorf("got network %q, want %q", s.Network, network)
			}
			for _, size := range []int{0, 1, 4096, 3 << 20} {
				want := random(size, 1)
				c := s.Dial()
				go func() {
					_, _ = c.Write(want)
					process.CloseWrite(t, c)
				}()
				got, err := io.ReadAll(c)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("got %d bytes, %v; want the %d that were sent", len(got), err, size)
				}
			}
			s.Stop()
			if network == "unix" {
				if _, err := os.Stat(addr); !os.IsNotExist(err) {
					t.Errorf("got %v for the socket after the end, want it gone", err)
				}
			}
		})
	}
}

func TestOneByteAtATime(t *testing.T) {
	s := process.Start(t, "-addr", "127.0.0.1:0", "-loops", "1")
	c := s.Dial()
	for _, b := range random(300, 2) {
		roundTrip(t, c, string([]byte{b}))
	}
	s.Stop()
}

// What a peer that never reads sends stays in the kernel; the others do not notice;
// and it is all there when the peer reads after all.
func TestPeerThatNeverReads(t *testing.T) {
	s := process.Start(t, "-addr", "127.0.0.1:0", "-loops", "1", "-high", "65536", "-low", "1000")
	slow := s.Dial()
	other := s.Dial()
	block := random(1<<20, 3)
	var sent int
	for limit := 256; ; limit-- {
		if limit == 0 {
			t.Fatalf("the server took %d bytes from a peer that does not read", sent)
		}
		if err := slow.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := slow.Write(block)
		sent += n
		if err != nil {
			break // as full as it gets
		}
		roundTrip(t, other, "still there?")
	}
	roundTrip(t, other, "still there?")
	process.CloseWrite(t, slow)
	got, err := io.ReadAll(slow)
	if err != nil || len(got) != sent {
		t.Fatalf("got %d bytes, %v; want %d", len(got), err, sent)
	}
	for i := 0; i < len(got); i += len(block) {
		if p := got[i:min(i+len(block), len(got))]; !bytes.Equal(p, block[:len(p)]) {
			t.Fatalf("got other bytes than were sent in the MiB from %d", i)
		}
	}
	s.Stop()
}

// A connection that is reset is over; nothing else is.
func TestReset(t *testing.T) {
	s := process.Start(t, "-addr", "127.0.0.1:0")
	other := s.Dial()
	roundTrip(t, other, "x")
	before := s.Descriptors()
	for range 20 {
		c := s.Dial()
		roundTrip(t, c, "hello")
		if _, err := c.Write(random(100_000, 4)); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).SetLinger(0); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	s.WaitDescriptors(before, func() { roundTrip(t, other, "still there?") })
	s.Stop()
}

// While connections are busy, a signal ends the server in good order: what it has
// read is answered, each connection ends by a proper close, the status is 0.
func TestSignalUnderLoad(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		t.Run(sig.String(), func(t *testing.T) {
			s := process.Start(t, "-addr", "127.0.0.1:0")
			idle := s.Dial()
			roundTrip(t, idle, "hello")
			var all sync.WaitGroup
			var busy sync.WaitGroup
			for i := range 8 {
				c := s.Dial()
				block := random(10_000, byte(i))
				all.Add(2)
				busy.Add(1)
				go func() {
					defer all.Done()
					for {
						if _, err := c.Write(block); err != nil {
							return // the reader below knows why
						}
					}
				}()
				go func() {
					defer all.Done()
					defer c.Close()
					got := make([]byte, len(block))
					for round := 0; ; round++ {
						if round == 3 {
							busy.Done()
						}
						n, err := io.ReadFull(c, got)
						if !bytes.Equal(got[:n], block[:n]) {
							t.Errorf("got other bytes than were sent in round %d", round)
						}
						if err != nil {
							if err != io.EOF && err != io.ErrUnexpectedEOF {
								t.Errorf("got %v in round %d, want a proper close", err, round)
							}
							if round < 3 {
								busy.Done()
							}
							return
						}
					}
				}()
			}
			busy.Wait()
			s.Signal(sig)
			all.Wait()
			if n, err := idle.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("got %d bytes, %v on an idle connection; want EOF", n, err)
			}
			s.Ended()
		})
	}
}

// stuck makes a connection on which the server has something to write that its peer
// does not take.
func stuck(t *testing.T, s *process.Server) {
	t.Helper()
	c := s.Dial()
	block := random(1<<20, 5)
	for {
		if err := c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(block); err != nil {
			return
		}
	}
}

// The drain ends when its time is over, whatever the peers do.
func TestDrainTimeout(t *testing.T) {
	for _, drain := range []string{"50ms", "0"} {
		t.Run(drain, func(t *testing.T) {
			s := process.Start(t, "-addr", "127.0.0.1:0", "-drain", drain)
			stuck(t, s)
			s.Stop()
		})
	}
}

func TestSecondSignal(t *testing.T) {
	s := process.Start(t, "-addr", "127.0.0.1:0", "-drain", "1h")
	stuck(t, s)
	s.Signal(syscall.SIGTERM)
	s.WaitLog("draining")
	s.Signal(syscall.SIGTERM)
	if status := s.Wait(); status != 1 {
		t.Errorf("got exit status %d, want 1", status)
	}
}

// At its limit of connections a server lets others wait until it is their turn.
func TestMaxConns(t *testing.T) {
	const limit = 10
	s := process.Start(t, "-addr", "127.0.0.1:0", "-max-conns", "10")
	var conns []net.Conn
	for range 2 * limit {
		conns = append(conns, s.Dial()) // the kernel takes them all
	}
	roundTrip(t, conns[0], "hello")
	s.WaitLog("as many connections as allowed")
	for _, c := range conns[:limit] {
		roundTrip(t, c, "still there?")
		c.Close()
	}
	for _, c := range conns[limit:] {
		roundTrip(t, c, "my turn")
		c.Close()
	}
	s.Stop()
}

// Datagrams of all sizes go back one by one, to whom they came from, without and with
// others in between.
func TestDatagrams(t *testing.T) {
	s := process.Start(t, "-network", "udp", "-addr", "127.0.0.1:0")
	if s.Network != "udp" {
		t.Errorf("got network %q, want udp", s.Network)
	}
	var clients []net.Conn
	for range 3 {
		clients = append(clients, s.Dial())
	}
	got := make([]byte, 1<<16)
	for _, size := range []int{1, 0, 1472, 1473, 60_000, 65_507} {
		for i, c := range clients {
			if _, err := c.Write(random(size, byte(i))); err != nil {
				t.Fatal(err)
			}
		}
		for i, c := range clients {
			n, err := c.Read(got)
			if err != nil || !bytes.Equal(got[:n], random(size, byte(i))) {
				t.Errorf("client %d: got %d bytes, %v; want the %d that were sent", i, n, err, size)
			}
		}
	}
	_, stderr, status := process.Run(t, "-network", "udp", "-addr", s.Addr)
	if status != 1 || !strings.Contains(stderr, "address already in use") {
		t.Errorf("the same address again: got status %d, %q", status, stderr)
	}
	s.Stop()
}

// A server that runs out of descriptors serves those it has, and closes those it cannot
// take, who would wait for nothing; when there are descriptors again it goes on.
func TestOutOfDescriptors(t *testing.T) {
	const limit = 24
	s := process.StartLimited(t, limit, "-addr", "127.0.0.1:0", "-loops", "1")
	var served, shed int
	var conns []net.Conn
	for range 2 * limit {
		conns = append(conns, s.Dial()) // the kernel takes them all
	}
	s.WaitLog("too many open files")
	for _, c := range conns {
		p := []byte("x")
		if _, err := c.Write(p); err == nil {
			_, err = io.ReadFull(c, p)
			if err == nil {
				served++
				continue
			}
			if err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %v, want a close or service", err)
			}
		}
		shed++
	}
	if served < 5 || shed < limit {
		t.Errorf("got %d served and %d closed of %d with %d descriptors", served, shed, len(conns), limit)
	}
	for _, c := range conns {
		c.Close()
	}
	for range 3 {
		// It may not have seen the closes yet: then it closes this one, too.
		for end := time.Now().Add(process.Patience); ; {
			c := s.Dial()
			_, err := c.Write([]byte("x"))
			if err == nil {
				_, err = io.ReadFull(c, make([]byte, 1))
			}
			c.Close()
			if err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("with descriptors free again: %v", err)
			}
		}
	}
	s.Stop()
}

func TestAddressInUse(t *testing.T) {
	s := process.Start(t, "-addr", "127.0.0.1:0")
	stdout, stderr, status := process.Run(t, "-addr", s.Addr)
	if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "address already in use") {
		t.Errorf("got status %d, stdout %q, stderr %q; want status 1 and one line that says so", status, stdout, stderr)
	}
	s.Stop()
}

func TestBadFlags(t *testing.T) {
	tests := []struct {
		args   string
		want   string // in the first line
		status int
	}{
		{"-nonsense", "-nonsense", 2},
		{"-loops x", "-loops", 2},
		{"-loops -1", "-1", 2},
		{"-poller kqueue", "kqueue", 2},
		{"-network udp -addr 192.0.2.1:7000", "192.0.2.1", 1},
		{"-network carrier-pigeon", "carrier-pigeon", 2},
		{"-drain -1s", "-drain", 2},
		{"-high -1", "HighWater", 1},
		{"-high 10 -low 11", "LowWater", 1},
		{"-addr 127.0.0.1:port", "port", 1},
		{"-addr 127.0.0.1", "missing port", 1},
		{"-addr 192.0.2.1:7000", "192.0.2.1", 1},
		{"-network unix -addr /nonexistent/echo.sock", "/nonexistent/echo.sock", 1},
		{"stray", "stray", 2},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			stdout, stderr, status := process.Run(t, strings.Fields(tt.args)...)
			first, _, _ := strings.Cut(stderr, "\n")
			if status != tt.status || stdout != "" {
				t.Errorf("got status %d, stdout %q; want %d and none", status, stdout, tt.status)
			}
			if !strings.HasPrefix(first, "echo: ") || !strings.Contains(first, tt.want) || strings.Contains(stderr, "goroutine") {
				t.Errorf("got stderr %q, want a line that says what is wrong with %s", stderr, tt.want)
			}
		})
	}
}
