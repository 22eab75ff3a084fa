package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

// scenario is a way for a stream through an example.
type scenario struct {
	example string
	by      string // the call that has to move all of it
	passes  int    // how many times: into a pipe and out of it are two
	// flags are the example's; drive sends or fetches the stream and checks it.
	flags func(dir, target string) []string
	drive func(addr, dir string, size int64, want [32]byte) error
}

var scenarios = []scenario{
	{
		example: "fileregion", by: "sendfile", passes: 1,
		flags: func(dir, _ string) []string { return []string{"-root", dir} },
		drive: fetch,
	},
	{
		example: "relay", by: "splice", passes: 4, // there and back
		flags: func(_, target string) []string { return []string{"-to", target, "-mode", "splice"} },
		drive: relay,
	},
	{
		example: "record", by: "splice", passes: 2,
		flags: func(dir, _ string) []string { return []string{"-dir", dir} },
		drive: record,
	},
}

// content is the stream of size bytes.
func content(size int64) io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{1}), size) }

// run drives the example and returns what it moved by which call.
func (s scenario) run(b *proc.Builder, strace, dir string, size int64) (moved map[string]total, err error) {
	bin, err := b.Example(s.example)
	if err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), content(size))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer target.Close()
	go echo(target)
	srv, err := proc.Start(-1, bin, append([]string{"-addr", "127.0.0.1:0"}, s.flags(dir, target.Addr().String())...)...)
	if err != nil {
		return nil, err
	}
	trace := filepath.Join(dir, "trace")
	err = traced(strace, trace, srv, func(addr string) error { return s.drive(addr, dir, size, [32]byte(h.Sum(nil))) })
	if err != nil {
		return nil, err
	}
	return count(trace)
}

// echo sends back what it gets until the listener is closed.
func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 256<<10)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				if _, err := c.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}

// fetch asks for the file.
func fetch(addr, _ string, size int64, want [32]byte) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "big\n"); err != nil {
		return err
	}
	r := bufio.NewReaderSize(c, 1<<20)
	head, err := r.ReadString('\n')
	if err != nil || head != fmt.Sprintf("OK: %d\r\n", size) {
		return fmt.Errorf("answer %q: %w", head, err)
	}
	return matches(io.LimitReader(r, size), want)
}

// relay sends the stream to an echo behind the relay, and reads it meanwhile.
func relay(addr, _ string, size int64, want [32]byte) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, content(size))
		sent <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
	}()
	if err := matches(c, want); err != nil {
		return err
	}
	return <-sent
}

// record has the stream received into a file.
func record(addr, dir string, size int64, want [32]byte) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.Copy(c, content(size)); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	said, err := io.ReadAll(c)
	if err != nil || string(said) != fmt.Sprintf("OK: %d\n", size) {
		return fmt.Errorf("answer %q: %w", said, err)
	}
	f, err := os.Open(filepath.Join(dir, "conn-1.bin"))
	if err != nil {
		return err
	}
	defer f.Close()
	return matches(f, want)
}

// matches reads to the end and compares the hash.
func matches(r io.Reader, want [32]byte) error {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return err
	}
	if got := [32]byte(h.Sum(nil)); got != want {
		return fmt.Errorf("SHA-256: got %x, want %x", got, want)
	}
	return nil
}
