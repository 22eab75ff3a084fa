// Command sendfile serves a file by examples/fileregion under strace, checks what
// arrives, and adds up by which system calls the content left.
//
//	go run ./sendfile
//
// It exits with status 1 when sendfile moved less than the file, or when the server
// read more than -slack bytes. Without strace it says so and does nothing.
package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

func main() {
	size := flag.Int64("size", 256<<20, "bytes of the file")
	slack := flag.Int64("slack", 1<<20, "bytes that the server may read for other reasons: its start, requests")
	flag.Parse()
	if err := run(*size, *slack); err != nil {
		fmt.Fprintln(os.Stderr, "sendfile:", err)
		os.Exit(1)
	}
}

func run(size, slack int64) (err error) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		fmt.Println("sendfile: strace is not installed, nothing measured")
		return nil
	}
	b, err := proc.NewBuilder()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	bin, err := b.Example("fileregion")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "runnel-sendfile-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	want, err := makeFile(filepath.Join(dir, "big"), size)
	if err != nil {
		return err
	}
	trace := filepath.Join(dir, "trace")
	srv, err := proc.Start(-1, bin, "-addr", "127.0.0.1:0", "-root", dir)
	if err != nil {
		return err
	}
	got, err := traced(strace, trace, srv, size)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("SHA-256 of what arrived: got %x, want %x", got, want)
	}
	moved, err := count(trace)
	if err != nil {
		return err
	}
	fmt.Printf("%d bytes, SHA-256 right; bytes by system call (one-byte probes by preadv2 apart):\n", size)
	var read int64
	for _, call := range []string{"sendfile", "splice", "read", "readv", "pread64", "preadv", "preadv2", "write", "writev", "sendmsg"} {
		if m := moved[call]; m.calls > 0 {
			fmt.Printf("%-10s %10d calls %12d bytes\n", call, m.calls, m.bytes)
		}
		if strings.Contains(call, "read") {
			read += moved[call].bytes
		}
	}
	if moved["sendfile"].bytes != size || read > slack {
		return fmt.Errorf("sendfile moved %d of %d bytes and %d were read, want at most %d", moved["sendfile"].bytes, size, read, slack)
	}
	return nil
}

// traced fetches the file while strace looks on, and stops the server, with which
// strace ends.
func traced(strace, trace string, srv *proc.Server, size int64) (sum [32]byte, err error) {
	cmd := exec.Command(strace, "-f", "-p", strconv.Itoa(srv.PID), "-o", trace,
		"-e", "trace=read,readv,pread64,preadv,preadv2,sendfile,splice,write,writev,sendmsg")
	said, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return sum, errors.Join(err, srv.Stop())
	}
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil || !strings.Contains(line, "attached") {
		err = fmt.Errorf("strace: %q, %v", line, err)
	} else {
		sum, err = fetch(strings.TrimPrefix(srv.Addr, "tcp://"), size)
	}
	return sum, errors.Join(err, srv.Stop(), cmd.Wait())
}

// makeFile writes size random bytes and returns their hash.
func makeFile(name string, size int64) (sum [32]byte, err error) {
	f, err := os.Create(name)
	if err != nil {
		return sum, err
	}
	h := sha256.New()
	_, err = io.CopyN(io.MultiWriter(f, h), rand.NewChaCha8([32]byte{1}), size)
	return [32]byte(h.Sum(nil)), errors.Join(err, f.Close())
}

// fetch asks for the file and returns the hash of the answer.
func fetch(addr string, size int64) (sum [32]byte, err error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return sum, err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "big\n"); err != nil {
		return sum, err
	}
	r := bufio.NewReaderSize(c, 1<<20)
	head, err := r.ReadString('\n')
	if err != nil || head != fmt.Sprintf("OK: %d\r\n", size) {
		return sum, fmt.Errorf("answer %q: %w", head, err)
	}
	h := sha256.New()
	_, err = io.CopyN(h, r, size)
	return [32]byte(h.Sum(nil)), err
}

type total struct{ calls, bytes int64 }

// ended matches a call that has ended, also one that another thread interrupted.
var ended = regexp.MustCompile(`^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed).* = (\d+)(?: |$)`)

// count adds up a trace.
func count(name string) (map[string]total, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := make(map[string]total)
	for s := bufio.NewScanner(f); s.Scan(); {
		m := ended.FindStringSubmatch(s.Text())
		if m == nil {
			continue
		}
		n, err := strconv.ParseInt(m[2], 10, 64)
		if err != nil {
			return nil, err
		}
		t := sum[m[1]]
		t.calls++
		t.bytes += n
		sum[m[1]] = t
	}
	return sum, nil
}
