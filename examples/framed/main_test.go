package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/examples/internal/process"
)

func TestMain(m *testing.M) { process.Main(m) }

func frame(payload []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(payload))), payload...)
}

func random(n int, seed byte) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

// wantFrame reads one frame and wants it to be this one.
func wantFrame(t *testing.T, r io.Reader, payload []byte) {
	t.Helper()
	want := frame(payload)
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes, %v; want the frame of %d", n, err, len(payload))
	}
}

// roundTrip sends a frame and wants it back.
func roundTrip(t *testing.T, c net.Conn, payload string) {
	t.Helper()
	if _, err := c.Write(frame([]byte(payload))); err != nil {
		t.Fatal(err)
	}
	wantFrame(t, c, []byte(payload))
}

// Each frame comes back as one frame, then the close.
func TestFrames(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr := "127.0.0.1:0"
			if network == "unix" {
				addr = filepath.Join(t.TempDir(), "framed.sock")
			}
			s := process.Start(t, "-network", network, "-addr", addr)
			var all sync.WaitGroup
			for i := range 8 {
				c := s.Dial()
				var sent [][]byte
				for j, size := range []int{0, 1, 2, 300, 4096, 65535, 65536, 1 << 20, 3, 0, 100_000, 1} {
					sent = append(sent, random(size, byte(16*i+j)))
				}
				all.Go(func() {
					for _, p := range sent {
						if _, err := c.Write(frame(p)); err != nil {
							t.Error(err)
							return
						}
					}
					process.CloseWrite(t, c)
				})
				all.Go(func() {
					for _, p := range sent {
						wantFrame(t, c, p)
					}
					if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
						t.Errorf("got %d more bytes, %v; want the end", len(rest), err)
					}
				})
			}
			all.Wait()
			s.Stop()
		})
	}
}

func TestOneByteAtATime(t *testing.T) {
	s := process.Start(t, "-addr", "127.0.0.1:0")
	c := s.Dial()
	for _, b := range append(frame([]byte("hello")), frame(nil)...) {
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	wantFrame(t, c, []byte("hello"))
	wantFrame(t, c, nil)
	s.Stop()
}

// Impossible frames close their connection, after an error in the log and after the
// frames before them have come back; half a frame is none.
func TestBadFrames(t *testing.T) {
	tests := []struct {
		name   string
		stream string
		log    string
	}{
		{"2 GiB", "\x7f\xff\xff\xff", "frame too long"},
		{"negative", "\xff\xff\xff\xff", "frame too long"},
		{"the most negative", "\x80\x00\x00\x00", "frame too long"},
		{"one byte too long", "\x00\x00\x03\xe9" + strings.Repeat("x", 1001), "frame too long"},
		{"too long and much of it", "\x00\x10\x00\x00" + strings.Repeat("x", 100_000), "frame too long"},
		{"half a length", "\x00\x00", ""},
		{"half a frame", "\x00\x00\x00\x05hel", ""},
	}
	s := process.Start(t, "-addr", "127.0.0.1:0", "-max-frame", "1000")
	other := s.Dial()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := s.Dial()
			first := random(1000, 1)
			if _, err := c.Write(append(frame(first), tt.stream...)); err != nil {
				t.Fatal(err)
			}
			if tt.log == "" {
				process.CloseWrite(t, c)
			}
			wantFrame(t, c, first)
			if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
				t.Errorf("got %d more bytes, %v; want the end", len(rest), err)
			}
			if tt.log != "" {
				if line := s.WaitLog(c.LocalAddr().String()); !strings.Contains(line, "ERROR") || !strings.Contains(line, tt.log) {
					t.Errorf("got %q in the log, want an error with %q", line, tt.log)
				}
			} else if strings.Contains(s.Log(), c.LocalAddr().String()) {
				t.Errorf("got an error in the log, want none")
			}
			c.Close()
			roundTrip(t, other, "still there?")
		})
	}
	s.Stop()
}

// A peer that sends frames and reads none is held up; the others are not.
func TestPeerThatNeverReads(t *testing.T) {
	s := process.Start(t, "-addr", "127.0.0.1:0", "-loops", "1", "-drain", "10ms")
	other := s.Dial()
	c := s.Dial()
	block := bytes.Repeat(frame(random(64, 1)), 10_000)
	for sent := 0; ; {
		if err := c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Write(block)
		if sent += n; err != nil {
			break // as full as it gets
		}
		if sent > 128<<20 {
			t.Fatalf("the server took %d bytes from a peer that does not read", sent)
		}
		roundTrip(t, other, "still there?")
	}
	roundTrip(t, other, "still there?")
	s.Stop()
}

// A signal under load: the frames that were read come back whole, then a proper
// close.
func TestSignalUnderLoad(t *testing.T) {
	s := process.Start(t, "-addr", "127.0.0.1:0")
	payload := random(1000, 2)
	var all, begun sync.WaitGroup
	for range 8 {
		c := s.Dial()
		begun.Add(1)
		all.Go(func() {
			for block := bytes.Repeat(frame(payload), 16); ; {
				if _, err := c.Write(block); err != nil {
					return // the reader knows why
				}
			}
		})
		all.Go(func() {
			defer c.Close()
			wantFrame(t, c, payload)
			begun.Done()
			want := frame(payload)
			got := make([]byte, len(want))
			for {
				n, err := io.ReadFull(c, got)
				if err == io.EOF {
					return
				}
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("got %d bytes, %v; want whole frames and a proper close", n, err)
					return
				}
			}
		})
	}
	begun.Wait()
	s.Signal(syscall.SIGTERM)
	all.Wait()
	s.Ended()
}

func TestBadFlags(t *testing.T) {
	for _, value := range []string{"0", "-1", "4294967296", "x"} {
		stdout, stderr, status := process.Run(t, "-max-frame", value)
		first, _, _ := strings.Cut(stderr, "\n")
		if status != 2 || stdout != "" || !strings.HasPrefix(first, "framed: ") || !strings.Contains(first, value) {
			t.Errorf("-max-frame %s: got status %d, stdout %q, stderr %q; want 2 and a line about it", value, status, stdout, stderr)
		}
	}
}
