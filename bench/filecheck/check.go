//go:build linux

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
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

type config struct {
	big          int64
	ranges       int
	conns, depth int
	seed         uint64
	timeout      time.Duration
}

// file is one of the files served.
type file struct {
	name, path string
	size       int64
}

// request is one line to send and the answer it must get.
type request struct {
	line string // without the line end
	n    int64
	sum  [sha256.Size]byte
}

// makeFiles writes the files: full ones of random bytes, and a big one of holes with
// some data, also across the 4 GiB line and at both ends.
func makeFiles(root string, big int64) ([]file, error) {
	rng := rand.NewChaCha8([32]byte{'f', 'i', 'l', 'e', 's'})
	var files []file
	for _, size := range []int64{0, 1, 4095, 64 << 10} {
		f := file{name: fmt.Sprintf("f%d.bin", size), size: size}
		f.path = filepath.Join(root, f.name)
		data := make([]byte, size)
		rng.Read(data)
		if err := os.WriteFile(f.path, data, 0o644); err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	f := file{name: "big.bin", path: filepath.Join(root, "big.bin"), size: big}
	w, err := os.Create(f.path)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if err := w.Truncate(big); err != nil {
		return nil, err
	}
	spot := make([]byte, 100_000)
	for _, off := range []int64{0, big / 3, 1<<31 - 50_000, 1<<32 - 50_000, big - int64(len(spot))} {
		rng.Read(spot)
		if off+int64(len(spot)) > big {
			continue
		}
		if _, err := w.WriteAt(spot, off); err != nil {
			return nil, err
		}
	}
	return append(files, f), w.Close()
}

// plan makes the requests: whole files in each way of asking for them, the empty
// range at the end, and random ranges, half of them around the data of the big
// file; shuffled, with the big file whole once.
func plan(cfg config, files []file) ([]request, error) {
	rng := rand.New(rand.NewPCG(cfg.seed, 1))
	var reqs []request
	add := func(f file, line string, off, n int64) error {
		r, err := os.Open(f.path)
		if err != nil {
			return err
		}
		defer r.Close()
		h := sha256.New()
		if got, err := io.Copy(h, io.NewSectionReader(r, off, n)); err != nil || got != n {
			return fmt.Errorf("%s: read %d of %d B at %d: %v", f.path, got, n, off, err)
		}
		req := request{line: line, n: n}
		h.Sum(req.sum[:0])
		reqs = append(reqs, req)
		return nil
	}
	for _, f := range files {
		lines := []string{f.name}
		if f.size < 1<<20 {
			lines = append(lines, f.name+" 0 -1", fmt.Sprintf("%s 0 %d", f.name, f.size), strings.Replace(f.name, "f", "%66", 1))
		}
		for _, line := range lines {
			if err := add(f, line, 0, f.size); err != nil {
				return nil, err
			}
		}
		for _, line := range []string{fmt.Sprintf("%s %d 0", f.name, f.size), fmt.Sprintf("%s %d -1", f.name, f.size)} {
			if err := add(f, line, f.size, 0); err != nil {
				return nil, err
			}
		}
	}
	small, big := files[:len(files)-1], files[len(files)-1]
	spots := []int64{0, big.size / 3, 1 << 31, 1 << 32, big.size}
	for i := range cfg.ranges {
		f, off := big, int64(0)
		switch {
		case i%4 == 0:
			f = small[rng.IntN(len(small))]
			off = rng.Int64N(f.size + 1)
		case i%4 == 1:
			off = rng.Int64N(f.size + 1)
		default:
			off = spots[rng.IntN(len(spots))] + rng.Int64N(200_000) - 100_000
			off = min(max(off, 0), f.size)
		}
		n := min(int64(1)<<rng.IntN(22)+rng.Int64N(4096), f.size-off)
		if err := add(f, fmt.Sprintf("%s %d %d", f.name, off, n), off, n); err != nil {
			return nil, err
		}
	}
	rng.Shuffle(len(reqs), func(i, j int) { reqs[i], reqs[j] = reqs[j], reqs[i] })
	return reqs, nil
}

// check deals the requests out to the connections and compares every answer. It
// returns how many bytes of files came.
func check(cfg config, addr string, requests []request) (int64, error) {
	var (
		wg    sync.WaitGroup
		total atomic.Int64
		errs  = make([]error, cfg.conns)
	)
	for i := range cfg.conns {
		var mine []request
		for k := i; k < len(requests); k += cfg.conns {
			mine = append(mine, requests[k])
		}
		wg.Go(func() {
			n, err := checkConn(cfg, addr, i, mine)
			total.Add(n)
			if err != nil {
				errs[i] = fmt.Errorf("connection %d: %w", i, err)
			}
		})
	}
	wg.Wait()
	return total.Load(), errors.Join(errs...)
}

// checkConn keeps cfg.depth requests under way. Every second connection ends its
// lines with LF alone.
func checkConn(cfg config, addr string, number int, requests []request) (total int64, err error) {
	c, err := net.DialTimeout("tcp", addr, cfg.timeout)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	end := []string{"\r\n", "\n"}[number%2]
	var (
		r   = bufio.NewReaderSize(patient{c, cfg.timeout}, 256<<10)
		h   = sha256.New()
		sum [sha256.Size]byte
	)
	sent := 0
	for k, req := range requests {
		var lines strings.Builder
		for ; sent < len(requests) && sent < k+cfg.depth; sent++ {
			lines.WriteString(requests[sent].line)
			lines.WriteString(end)
		}
		if lines.Len() > 0 {
			c.SetWriteDeadline(time.Now().Add(cfg.timeout))
			if _, err := io.WriteString(c, lines.String()); err != nil {
				return total, fmt.Errorf("request %d: %w", k, err)
			}
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return total, fmt.Errorf("answer to %q: %w", req.line, err)
		}
		length, ok := strings.CutPrefix(strings.TrimSuffix(line, "\r\n"), "OK: ")
		n, perr := strconv.ParseInt(length, 10, 64)
		if !ok || perr != nil || n != req.n || !strings.HasSuffix(line, "\r\n") {
			return total, fmt.Errorf("answer to %q: got %q, want %q", req.line, line, fmt.Sprintf("OK: %d\r\n", req.n))
		}
		h.Reset()
		got, err := io.CopyN(h, r, n)
		total += got
		if err != nil {
			return total, fmt.Errorf("answer to %q: %d of %d B: %w", req.line, got, n, err)
		}
		if h.Sum(sum[:0]); sum != req.sum {
			return total, fmt.Errorf("answer to %q: SHA-256 of %d B: got %x, want %x", req.line, n, sum, req.sum)
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return total, err
	}
	if extra, err := io.Copy(io.Discard, r); err != nil || extra != 0 {
		return total, fmt.Errorf("after the last answer: %d B more, %v; want the end of the stream", extra, err)
	}
	return total, nil
}

// patient gives every read the whole timeout.
type patient struct {
	c       net.Conn
	timeout time.Duration
}

func (p patient) Read(b []byte) (int, error) {
	p.c.SetReadDeadline(time.Now().Add(p.timeout))
	return p.c.Read(b)
}
