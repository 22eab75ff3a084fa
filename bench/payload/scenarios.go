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
	"strings"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

// scenario is a way for a stream through an example.
type scenario struct {
	name    string
	example string
	by      string // the call that has to move all of it
	passes  int    // how many times: into a pipe and out of it are two
	// flags are the example's; drive sends or fetches the stream and checks it.
	flags func(p places) []string
	drive func(p places, size int64, want [32]byte) error
}

// places are where streams come from and go to.
type places struct {
	addr   string // the example
	dir    string // for files
	target string // sends back what it gets
	sink   string // tells the hash of what it gets
	sums   <-chan [32]byte
}

var scenarios = []scenario{
	{
		name: "fileregion", example: "fileregion", by: "sendfile", passes: 1,
		flags: func(p places) []string { return []string{"-root", p.dir} },
		drive: fetch,
	},
	{
		name: "relay", example: "relay", by: "splice", passes: 4, // there and back
		flags: func(p places) []string { return []string{"-to", p.target, "-mode", "splice"} },
		drive: relay,
	},
	{
		name: "mirror", example: "relay", by: "splice", passes: 5, // and to the mirror
		flags: func(p places) []string {
			return []string{"-to", p.target, "-mode", "splice", "-mirror", p.sink, "-mirror-policy", "block"}
		},
		drive: mirror,
	},
	{
		name: "record", example: "record", by: "splice", passes: 2,
		flags: func(p places) []string { return []string{"-dir", p.dir} },
		drive: record,
	},
}

// content is the stream of size bytes.
func content(size int64) io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{1}), size) }

// run drives the example twice, by itself and under strace, and returns how often its
// threads were switched the first time, and what it moved by which call the second.
func (s scenario) run(b *proc.Builder, strace, dir string, size int64) (switches int64, moved map[string]total, err error) {
	bin, err := b.Example(s.example)
	if err != nil {
		return 0, nil, err
	}
	err = s.once(bin, filepath.Join(dir, s.name), size, func(srv *proc.Server, do func() error) error {
		before, err := proc.Switches(srv.PID)
		if err == nil {
			err = do()
		}
		if err == nil {
			switches, err = proc.Switches(srv.PID)
			switches -= before
		}
		return errors.Join(err, srv.Stop())
	})
	if err != nil {
		return 0, nil, err
	}
	trace := filepath.Join(dir, s.name+".trace")
	err = s.once(bin, filepath.Join(dir, s.name+"-traced"), size, func(srv *proc.Server, do func() error) error {
		return traced(strace, trace, srv, do)
	})
	if err != nil {
		return 0, nil, err
	}
	moved, err = count(trace)
	return switches, moved, err
}

// once starts the example with dir for its files, and has by drive and stop it.
func (s scenario) once(bin, dir string, size int64, by func(srv *proc.Server, do func() error) error) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), content(size))
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer target.Close()
	go echo(target)
	sink, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer sink.Close()
	sums := make(chan [32]byte, 1)
	go hash(sink, sums)
	p := places{dir: dir, target: target.Addr().String(), sink: sink.Addr().String(), sums: sums}
	srv, err := proc.Start(-1, bin, append([]string{"-addr", "127.0.0.1:0"}, s.flags(p)...)...)
	if err != nil {
		return err
	}
	p.addr = strings.TrimPrefix(srv.Addr, "tcp://")
	err = by(srv, func() error { return s.drive(p, size, [32]byte(h.Sum(nil))) })
	return errors.Join(err, os.RemoveAll(dir))
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

// hash tells of a connection the hash of what it brings.
func hash(l net.Listener, sums chan<- [32]byte) {
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	h := sha256.New()
	if _, err := io.Copy(h, c); err == nil {
		sums <- [32]byte(h.Sum(nil))
	} else {
		close(sums)
	}
}

// fetch asks for the file.
func fetch(p places, size int64, want [32]byte) error {
	c, err := net.Dial("tcp", p.addr)
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
func relay(p places, size int64, want [32]byte) error {
	c, err := net.Dial("tcp", p.addr)
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

// mirror is relay, with a second reader of what goes there.
func mirror(p places, size int64, want [32]byte) error {
	if err := relay(p, size, want); err != nil {
		return err
	}
	if got := <-p.sums; got != want {
		return fmt.Errorf("SHA-256 of the mirror's: got %x, want %x", got, want)
	}
	return nil
}

// record has the stream received into a file.
func record(p places, size int64, want [32]byte) error {
	c, err := net.Dial("tcp", p.addr)
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
	f, err := os.Open(filepath.Join(p.dir, "conn-1.bin"))
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
