//go:build unix

package main

import (
	"bytes"
	"fmt"
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

// listener accepts for a target or a mirror.
func listener(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(process.Patience)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// send writes p and closes the sending side.
func send(t *testing.T, c net.Conn, p []byte) {
	if _, err := c.Write(p); err != nil {
		t.Error(err)
	}
	process.CloseWrite(t, c)
}

func wantAll(t *testing.T, what string, c net.Conn, want []byte) {
	t.Helper()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: got %d bytes, %v; want %d", what, len(got), err, len(want))
	}
}

// Bytes pass both ways in every mode, with their half-closes, and are counted.
func TestModes(t *testing.T) {
	for _, mode := range []string{"auto", "splice", "copy"} {
		t.Run(mode, func(t *testing.T) {
			target := listener(t)
			s := process.Start(t, "-addr", "127.0.0.1:0", "-to", target.Addr().String(), "-mode", mode)
			up, down := random(5<<20, 1), random(3<<20, 2)
			client := s.Dial()
			server := accept(t, target)
			var wg sync.WaitGroup
			wg.Go(func() { send(t, client, up) })
			wg.Go(func() { send(t, server, down) })
			wg.Go(func() { wantAll(t, "server", server, up) })
			wg.Go(func() { wantAll(t, "client", client, down) })
			wg.Wait()
			s.Signal(syscall.SIGUSR1)
			var splice, copied int
			line := s.Line()
			want := fmt.Sprintf("relayed up=%d down=%d mirrored=0 dropped=0 ", len(up), len(down))
			rest, ok := strings.CutPrefix(line, want)
			if _, err := fmt.Sscanf(rest, "splice=%d copy=%d", &splice, &copied); !ok || err != nil || splice+copied != len(up)+len(down) {
				t.Errorf("got %q, want %qsplice=N copy=N", line, want)
			}
			if mode == "copy" && splice > 0 || mode == "splice" && copied > 0 {
				t.Errorf("got %d spliced, %d copied", splice, copied)
			}
			s.Stop()
		})
	}
}

// A target that refuses ends the client and is logged.
func TestTargetRefuses(t *testing.T) {
	target := listener(t)
	target.Close()
	s := process.Start(t, "-addr", "127.0.0.1:0", "-to", target.Addr().String())
	c := s.Dial()
	if n, err := io.Copy(io.Discard, c); n > 0 || err != nil {
		t.Errorf("got %d bytes, %v; want the end", n, err)
	}
	s.WaitLog("connection refused")
	s.Stop()
}

// What clients send also goes to a mirror, which sends nothing back and is closed after
// the last byte.
func TestMirrorServer(t *testing.T) {
	for _, mode := range []string{"auto", "splice", "copy"} {
		t.Run(mode, func(t *testing.T) {
			target, mirror := listener(t), listener(t)
			s := process.Start(t, "-addr", "127.0.0.1:0", "-to", target.Addr().String(), "-mode", mode,
				"-mirror", mirror.Addr().String(), "-mirror-policy", "block")
			up, down := random(5<<20, 3), random(1<<20, 4)
			client := s.Dial()
			sink := accept(t, mirror)
			server := accept(t, target)
			var wg sync.WaitGroup
			wg.Go(func() { send(t, client, up) })
			wg.Go(func() { send(t, server, down) })
			wg.Go(func() { wantAll(t, "server", server, up) })
			wg.Go(func() { wantAll(t, "mirror", sink, up) })
			wg.Go(func() { wantAll(t, "client", client, down) })
			wg.Wait()
			s.Stop()
		})
	}
}

// A mirror that does not read is given up, and the relay goes on.
func TestMirrorDropped(t *testing.T) {
	target, mirror := listener(t), listener(t)
	s := process.Start(t, "-addr", "127.0.0.1:0", "-to", target.Addr().String(), "-mirror", mirror.Addr().String())
	up := random(64<<20, 5)
	client := s.Dial()
	accept(t, mirror) // and does not read
	server := accept(t, target)
	go send(t, client, up)
	wantAll(t, "server", server, up)
	s.WaitLog("mirror detached")
	s.Signal(syscall.SIGUSR1)
	var moved, mirrored, dropped int
	if _, err := fmt.Sscanf(s.Line(), "relayed up=%d down=0 mirrored=%d dropped=%d", &moved, &mirrored, &dropped); err != nil ||
		moved != len(up) || mirrored+dropped != len(up) || dropped == 0 {
		t.Errorf("got up=%d mirrored=%d dropped=%d, %v; want %d in all", moved, mirrored, dropped, err, len(up))
	}
	server.Close()
	client.Close()
	s.Stop()
}

// A mirror that is not there, or cannot be written, has missed all that went up, while the
// relay is there and afterwards.
func TestMirrorMisses(t *testing.T) {
	gone := listener(t)
	gone.Close()
	for _, test := range []struct{ mirror, log string }{{gone.Addr().String(), "no mirror"}, {"/dev/full", "mirror detached"}} {
		if test.mirror == "/dev/full" {
			if _, err := os.Stat(test.mirror); err != nil {
				continue
			}
		}
		target := listener(t)
		s := process.Start(t, "-addr", "127.0.0.1:0", "-to", target.Addr().String(), "-mirror", test.mirror, "-mirror-policy", "block")
		up := random(1<<20, 9)
		client := s.Dial()
		server := accept(t, target)
		go send(t, client, up)
		wantAll(t, "server", server, up)
		s.WaitLog(test.log)
		want := fmt.Sprintf("relayed up=%d down=0 mirrored=0 dropped=%[1]d ", len(up))
		s.Signal(syscall.SIGUSR1)
		if line := s.Line(); !strings.HasPrefix(line, want) {
			t.Errorf("%s: got %q, want %q", test.mirror, line, want)
		}
		server.Close()
		if n, err := io.Copy(io.Discard, client); n > 0 || err != nil {
			t.Errorf("client: got %d bytes, %v", n, err)
		}
		s.Signal(syscall.SIGUSR1)
		if line := s.Line(); !strings.HasPrefix(line, want) {
			t.Errorf("%s, after its end: got %q, want %q", test.mirror, line, want)
		}
		s.Stop()
	}
}

// Nothing that a relay waits for, a target or a mirror that does not read, keeps the server
// from ending with its drain.
func TestDrainStuck(t *testing.T) {
	for _, stuck := range []string{"target", "mirror", "both"} {
		for _, mode := range []string{"splice", "copy"} {
			t.Run(stuck+", "+mode, func(t *testing.T) {
				target, mirror := listener(t), listener(t)
				s := process.Start(t, "-addr", "127.0.0.1:0", "-to", target.Addr().String(), "-mode", mode,
					"-mirror", mirror.Addr().String(), "-mirror-policy", "block", "-drain", "100ms")
				client := s.Dial()
				sink := accept(t, mirror)
				server := accept(t, target)
				up := random(64<<20, 10)
				go client.Write(up) // which cannot leave
				first := make([]byte, 1)
				if stuck == "mirror" {
					go io.Copy(io.Discard, server)
				} else {
					io.ReadFull(server, first)
				}
				if stuck == "target" {
					go io.Copy(io.Discard, sink)
				} else if _, err := io.ReadFull(sink, first); err != nil || first[0] != up[0] {
					t.Errorf("mirror: got %q, %v", first, err)
				}
				s.Stop()
			})
		}
	}
}

// waitSize waits until a file has so many bytes.
func waitSize(t *testing.T, s *process.Server, name string, size int64) {
	t.Helper()
	for end := time.Now().Add(process.Patience); ; {
		info, err := os.Stat(name)
		if err != nil || time.Now().After(end) {
			t.Fatalf("%s has not got %d bytes: %v", name, size, err)
		}
		if info.Size() >= size {
			return
		}
		s.Signal(syscall.SIGUSR1) // a round trip
		s.Line()
	}
}

// Connections append to a file, behind what is there.
func TestMirrorFile(t *testing.T) {
	for _, mode := range []string{"auto", "splice", "copy"} {
		t.Run(mode, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "mirror")
			if err := os.WriteFile(name, []byte("before"), 0o644); err != nil {
				t.Fatal(err)
			}
			target := listener(t)
			s := process.Start(t, "-addr", "127.0.0.1:0", "-to", target.Addr().String(), "-mode", mode, "-mirror", name, "-mirror-policy", "block")
			want := []byte("before")
			for i := range 3 {
				up := random(1<<20+i, byte(6+i))
				client := s.Dial()
				server := accept(t, target)
				go send(t, client, up)
				wantAll(t, "server", server, up)
				server.Close()
				if n, err := io.Copy(io.Discard, client); n > 0 || err != nil {
					t.Errorf("client: got %d bytes, %v", n, err)
				}
				want = append(want, up...)
				waitSize(t, s, name, int64(len(want))) // or the next one's pieces come between
			}
			s.Stop() // which waits for what is being written
			if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %d bytes, %v; want %d", len(got), err, len(want))
			}
		})
	}
}

func TestBadFlags(t *testing.T) {
	for _, args := range [][]string{
		{"-mode", "fast"}, {"-to", "nowhere"}, {"-mirror-policy", "wait"}, {"-mirror", "/no/such/place"},
	} {
		_, stderr, status := process.Run(t, args...)
		if status != 2 || !strings.HasPrefix(stderr, "relay: ") || strings.Contains(stderr, "goroutine") {
			t.Errorf("%v: got status %d, %q; want 2 and one line", args, status, stderr)
		}
	}
}
