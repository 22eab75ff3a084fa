package main

import (
	"io"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/runnel-io/runnel/examples/internal/process"
)

func TestMain(m *testing.M) { process.Main(m) }

// listen runs handle on each connection of a listener, until the test ends, and
// returns the listener's address.
func listen(t *testing.T, network, addr string, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return l.Addr().String()
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

// The last line has all that was measured. A plain echo serves for frames as well.
func TestLoad(t *testing.T) {
	result := regexp.MustCompile(`^[1-9]\d* messages in [\d.]+ s: [1-9]\d* messages/s, [\d.]+ MB/s, latency p50 \S+s p99 \S+s p99.9 \S+s max \S+s\n$`)
	for _, args := range []string{
		"",
		"-framed",
		"-conns 1 -depth 1 -size 1",
		"-conns 3 -depth 2 -size 300000",
		"-conns 3 -depth 2 -size 300000 -framed -loops 1",
		"-network unix -conns 4",
	} {
		t.Run(args, func(t *testing.T) {
			network, addr := "tcp", "127.0.0.1:0"
			if strings.Contains(args, "unix") {
				network, addr = "unix", filepath.Join(t.TempDir(), "socket")
			}
			addr = listen(t, network, addr, echo)
			stdout, stderr, status := process.Run(t, append(strings.Fields(args), "-addr", addr, "-duration", "100ms")...)
			if status != 0 || stderr != "" || !result.MatchString(stdout) {
				t.Errorf("got status %d, stdout %q, stderr %q; want 0 and one line with the result", status, stdout, stderr)
			}
		})
	}
}

// What is wrong with a server is found, and makes the status 1.
func TestBadServers(t *testing.T) {
	changed := func(c net.Conn) {
		p := make([]byte, 1<<16)
		for total := 0; ; {
			n, err := c.Read(p)
			if err != nil {
				return
			}
			if at := 50_000 - total; at >= 0 && at < n {
				p[at] ^= 1
			}
			total += n
			if _, err := c.Write(p[:n]); err != nil {
				return
			}
		}
	}
	more := func(c net.Conn) {
		go echo(c)
		_, _ = c.Write(make([]byte, 1<<20))
		_, _ = io.Copy(io.Discard, c)
	}
	none := func(c net.Conn) { _, _ = io.ReadFull(c, make([]byte, 100)) }
	tests := []struct {
		name   string
		handle func(net.Conn)
		args   string
		want   string
	}{
		{"a byte is another", changed, "", "mismatch"},
		{"a byte of a frame is another", changed, "-framed -size 3000", "mismatch"},
		{"bytes that were not sent", more, "-depth 1 -conns 1", "mismatch"},
		{"frames that were not sent", more, "-depth 1 -conns 1 -framed", "mismatch"},
		{"closes", none, "-size 100 -depth 1", "closed by the server"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := listen(t, "tcp", "127.0.0.1:0", tt.handle)
			args := append(strings.Fields(tt.args), "-addr", addr, "-duration", "20s")
			_, stderr, status := process.Run(t, args...)
			if status != 1 || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "client: ") || !strings.Contains(stderr, tt.want) {
				t.Errorf("got status %d, stderr %q; want 1 and a line with %q", status, stderr, tt.want)
			}
		})
	}
}

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	stdout, stderr, status := process.Run(t, "-addr", addr)
	if status != 1 || stdout != "" || !strings.Contains(stderr, "connection refused") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("got status %d, stdout %q, stderr %q; want 1 and one line", status, stdout, stderr)
	}
	stdout, stderr, status = process.Run(t, "-addr", "no-such-host.invalid:1")
	if status != 1 || stdout != "" || !strings.Contains(stderr, "no-such-host.invalid") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("got status %d, stdout %q, stderr %q; want 1 and one line", status, stdout, stderr)
	}
}

func TestBadFlags(t *testing.T) {
	for _, args := range []string{"-nonsense", "-conns 0", "-size 0", "-depth -1", "-duration 0", "-duration soon", "-network udp", "-loops -1", "stray"} {
		stdout, stderr, status := process.Run(t, strings.Fields(args)...)
		if status != 2 || stdout != "" || !strings.HasPrefix(stderr, "client: ") || strings.Contains(stderr, "goroutine") {
			t.Errorf("%s: got status %d, stdout %q, stderr %q; want 2 and a line that says why", args, status, stdout, stderr)
		}
	}
}

// The steps of the histogram follow each other without a gap and are narrow.
func TestSteps(t *testing.T) {
	for i := range 1919 {
		if i >= step(1<<63-1) {
			break
		}
		d := limit(i)
		if got := step(d); got != i {
			t.Fatalf("step %d ends at %d, which is in step %d", i, d, got)
		}
		if got := step(d + 1); got != i+1 {
			t.Fatalf("step %d ends at %d, and %d is in step %d", i, d, d+1, got)
		}
		if i > 0 && float64(d-limit(i-1)) > 1+float64(d)/32 {
			t.Errorf("step %d goes from %d to %d", i, limit(i-1), d)
		}
	}
}

func TestQuantiles(t *testing.T) {
	var a, b stats
	for i := 1; i <= 1000; i++ {
		s := &a
		if i%2 == 0 {
			s = &b
		}
		s.add(time.Duration(i) * time.Millisecond)
	}
	a.merge(&b)
	for _, tt := range []struct {
		q    float64
		want time.Duration
	}{{0, time.Millisecond}, {0.5, 500 * time.Millisecond}, {0.99, 990 * time.Millisecond}, {1, time.Second}} {
		if got := a.quantile(tt.q); got < tt.want || got > tt.want+tt.want/16 {
			t.Errorf("quantile %v: got %v, want about %v", tt.q, got, tt.want)
		}
	}
}
