package main

import (
	"bufio"
	"bytes"
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
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/examples/internal/process"
)

func TestMain(m *testing.M) { process.Main(m) }

var allModes = []string{"auto", "sendfile", "mmap", "copy"}

// client reads answers.
type client struct {
	net.Conn
	t *testing.T
	r *bufio.Reader
}

func dial(t *testing.T, s *process.Server) *client {
	t.Helper()
	c := s.Dial()
	return &client{c, t, bufio.NewReader(c)}
}

func (c *client) send(lines string) {
	c.t.Helper()
	if _, err := io.WriteString(c, lines); err != nil {
		c.t.Error(err)
	}
}

// header reads the first line of an answer, without its end.
func (c *client) header() string {
	c.t.Helper()
	line, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Errorf("got %q, %v; want the first line of an answer", line, err)
		return ""
	}
	head, ok := strings.CutSuffix(line, "\r\n")
	if !ok {
		c.t.Errorf("got %q, want a line that ends in CR LF", line)
	}
	return head
}

// wantFile reads an answer and wants it to be OK with these bytes.
func (c *client) wantFile(what string, want []byte) {
	c.t.Helper()
	if got, want := c.header(), fmt.Sprintf("OK: %d", len(want)); got != want {
		c.t.Fatalf("%s: got %q, want %q", what, got, want)
	}
	sum := sha256.New()
	n, err := io.CopyN(sum, c.r, int64(len(want)))
	if err != nil {
		c.t.Fatalf("%s: got %d bytes, %v; want %d", what, n, err, len(want))
	}
	if w := sha256.Sum256(want); !bytes.Equal(sum.Sum(nil), w[:]) {
		c.t.Fatalf("%s: got other bytes than the file's", what)
	}
}

// wantEnd wants the stream to end here.
func (c *client) wantEnd() {
	c.t.Helper()
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
		c.t.Errorf("got %d more bytes, %v; want the end", len(rest), err)
	}
}

// ask sends one request and wants the first line of its answer.
func (c *client) ask(request, want string) {
	c.t.Helper()
	c.send(request + "\n")
	if got := c.header(); got != want {
		c.t.Errorf("%q: got %q, want %q", request, got, want)
	}
}

func random(n int, seed byte) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

func write(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// sparse makes a file of size bytes with hardly any blocks.
func sparse(t *testing.T, dir, name string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, name)
	write(t, dir, name, nil)
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// Files of all sizes, then ranges of them, pipelined 16 deep on 8 connections.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	files := map[string][]byte{}
	for _, size := range []int{0, 1, 4095, 4096, 4097, 64 << 10, 3<<20 + 7} {
		name := strconv.Itoa(size)
		files[name] = random(size, byte(size))
		write(t, dir, name, files[name])
	}
	names := []string{"0", "1", "4095", "4096", "4097", "65536", "3145735"}
	for _, mode := range allModes {
		t.Run(mode, func(t *testing.T) {
			s := process.Start(t, "-addr", "127.0.0.1:0", "-root", dir, "-mode", mode)
			other := dial(t, s)
			for _, name := range names { // they stay open
				other.ask(name+" 0 0", "OK: 0")
			}
			before := s.Descriptors()
			var all sync.WaitGroup
			for i := range 8 {
				c := dial(t, s)
				rnd := rand.New(rand.NewPCG(1, uint64(i)))
				type wanted struct {
					request string
					data    []byte
				}
				var requests []wanted
				for _, name := range names {
					requests = append(requests, wanted{name, files[name]}, wanted{name + " 0 -1", files[name]})
				}
				for range 50 {
					name := names[rnd.IntN(len(names))]
					data := files[name]
					off := rnd.IntN(len(data) + 1)
					n := rnd.IntN(len(data) - off + 1)
					requests = append(requests, wanted{fmt.Sprintf("%s %d %d", name, off, n), data[off : off+n]})
				}
				window := make(chan struct{}, 16)
				all.Go(func() {
					for _, r := range requests {
						window <- struct{}{}
						c.send(r.request + "\r\n")
					}
					process.CloseWrite(t, c.Conn)
				})
				all.Go(func() {
					for _, r := range requests {
						c.wantFile(r.request, r.data)
						<-window
						if t.Failed() {
							c.Close()
							for range window { // let the sender end
							}
						}
					}
					c.wantEnd()
					c.Close()
				})
			}
			all.Wait()
			s.WaitDescriptors(before, func() { other.ask("nothing", "ERR: no such file") })
			s.Stop()
		})
	}
}

// Offsets beyond 4 GiB, and files of more than one mapped window.
func TestLargeFile(t *testing.T) {
	const size = 5 << 30
	dir := t.TempDir()
	path := sparse(t, dir, "large", size)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mark := random(4096, 9)
	for _, at := range []int64{0, windowSize - 2048, 1<<32 - 2048, size - 4096} {
		if _, err := f.WriteAt(mark, at); err != nil {
			t.Fatal(err)
		}
	}
	around := func(zeros int, parts ...[]byte) []byte {
		return append(append(make([]byte, zeros), bytes.Join(parts, nil)...), make([]byte, zeros)...)
	}
	window := append(bytes.Clone(mark), make([]byte, windowSize+8192-4096)...)
	copy(window[windowSize-2048:], mark)
	for _, mode := range allModes {
		t.Run(mode, func(t *testing.T) {
			s := process.Start(t, "-addr", "127.0.0.1:0", "-root", dir, "-mode", mode)
			c := dial(t, s)
			c.send(fmt.Sprintf("large %d 4196\nlarge %d -1\nlarge 0 %d\nlarge %d 0\n",
				int64(1<<32-2048-50), int64(size-4096), len(window), int64(size)))
			c.wantFile("around 4 GiB", around(50, mark))
			c.wantFile("the end", mark)
			c.wantFile("more than a window", window)
			c.wantFile("nothing at the end", nil)
			s.Stop()
		})
	}
}

// What cannot be had gets its reason, and the connection stays usable.
func TestRefusals(t *testing.T) {
	process.LinuxOnly(t)
	top := t.TempDir()
	dir := filepath.Join(top, "root")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.MkdirAll(filepath.Join(dir, "sub", "deeper"), 0o755))
	write(t, top, "secret", []byte("secret"))
	write(t, dir, "file", []byte("0123456789"))
	write(t, dir, "sub/file", []byte("sub"))
	write(t, dir, "with space", []byte("space"))
	write(t, dir, "100%", []byte("percent"))
	write(t, dir, "%2e", []byte("dot"))
	check(os.Symlink("../file", filepath.Join(dir, "sub", "inside")))
	check(os.Symlink("../secret", filepath.Join(dir, "outside")))
	check(os.Symlink(filepath.Join(dir, "file"), filepath.Join(dir, "absolute")))
	check(os.Symlink("..", filepath.Join(dir, "up")))
	check(os.Symlink("loop", filepath.Join(dir, "loop")))
	check(os.Symlink("nowhere", filepath.Join(dir, "dangling")))
	check(process.Mkfifo(filepath.Join(dir, "fifo")))
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	check(err)
	defer l.Close()
	unreadable := filepath.Join(dir, "unreadable")
	check(os.WriteFile(unreadable, []byte("private"), 0))
	wantUnreadable := "ERR: not allowed"
	if f, err := os.Open(unreadable); err == nil {
		f.Close()
		wantUnreadable = "OK: 7" // root can
	}

	tests := []struct{ request, want string }{
		{"file", "OK: 10"},
		{"./file", "OK: 10"},
		{"sub/../file", "OK: 10"},
		{"sub/inside", "OK: 10"},
		{"sub%2Ffile", "OK: 3"},
		{"with%20space", "OK: 5"},
		{"100%25", "OK: 7"},
		{"%252e", "OK: 3"},
		{"file 0 10", "OK: 10"},
		{"file 3 -1", "OK: 7"},
		{"file 10 0", "OK: 0"},
		{"file 10 -1", "OK: 0"},

		{"nothing", "ERR: no such file"},
		{"nothing 5 5", "ERR: no such file"},
		{"dangling", "ERR: no such file"},
		{"file/", "ERR: no such file"},
		{"file/file", "ERR: no such file"},
		{strings.Repeat("x", 300), "ERR: no such file"},
		{strings.Repeat("y", maxLine), "ERR: no such file"},

		{".", "ERR: is a directory"},
		{"sub", "ERR: is a directory"},
		{"sub/", "ERR: is a directory"},
		{"sub/..", "ERR: is a directory"},
		{"sub 0 0", "ERR: is a directory"},

		{"..", "ERR: not allowed"},
		{"../secret", "ERR: not allowed"},
		{"../root/file", "ERR: not allowed"},
		{"sub/../../secret", "ERR: not allowed"},
		{"%2e%2e/secret", "ERR: not allowed"},
		{"%2E%2E%2Fsecret", "ERR: not allowed"},
		{"/etc/passwd", "ERR: not allowed"},
		{"//etc/passwd", "ERR: not allowed"},
		{"%2fetc%2fpasswd", "ERR: not allowed"},
		{dir + "/file", "ERR: not allowed"},
		{"outside", "ERR: not allowed"},
		{"absolute", "ERR: not allowed"},
		{"up/secret", "ERR: not allowed"},
		{"loop", "ERR: not allowed"},
		{"unreadable", wantUnreadable},

		{"fifo", "ERR: not a regular file"},
		{"socket", "ERR: not a regular file"},

		{"file 11 0", "ERR: bad range"},
		{"file 11 -1", "ERR: bad range"},
		{"file 0 11", "ERR: bad range"},
		{"file 5 6", "ERR: bad range"},
		{"file -1 1", "ERR: bad range"},
		{"file 0 -2", "ERR: bad range"},
		{"file 9223372036854775807 9223372036854775807", "ERR: bad range"},
		{"file 5 9223372036854775807", "ERR: bad range"},
		{"file 99999999999999999999 0", "ERR: bad range"},
		{"file -99999999999999999999 -1", "ERR: bad range"},

		{"", "ERR: bad request"},
		{" ", "ERR: bad request"},
		{"file ", "ERR: bad request"},
		{" file", "ERR: bad request"},
		{"file 1", "ERR: bad request"},
		{"file  1", "ERR: bad request"},
		{"file 1 2 3", "ERR: bad request"},
		{"file 0x1 2", "ERR: bad request"},
		{"file +1 2", "ERR: bad request"},
		{"file 1 2.0", "ERR: bad request"},
		{"file 1 1_0", "ERR: bad request"},
		{"file - 1", "ERR: bad request"},
		{"with space", "ERR: bad request"},
		{"100%", "ERR: bad request"},
		{"%2", "ERR: bad request"},
		{"%zz", "ERR: bad request"},
		{"file%00", "ERR: bad request"},
		{"file\x00", "ERR: bad request"},
	}
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr := "127.0.0.1:0"
			if network == "unix" {
				addr = filepath.Join(t.TempDir(), "socket")
			}
			s := process.Start(t, "-network", network, "-addr", addr, "-root", dir, "-loops", "1")
			c := dial(t, s)
			for _, tt := range tests {
				c.ask(tt.request, tt.want)
				if n, ok := strings.CutPrefix(tt.want, "OK: "); ok {
					n, _ := strconv.ParseInt(n, 10, 64)
					if _, err := io.CopyN(io.Discard, c.r, n); err != nil {
						t.Fatal(err)
					}
				}
			}
			s.Stop()
		})
	}
	t.Run("device", func(t *testing.T) {
		s := process.Start(t, "-addr", "127.0.0.1:0", "-root", "/dev")
		c := dial(t, s)
		c.ask("null", "ERR: not a regular file")
		c.ask("zero 0 10", "ERR: not a regular file")
		s.Stop()
	})
}

// A line that is too long is told so at once, however much of it has been sent, and
// what was asked before is answered first.
func TestLongLine(t *testing.T) {
	dir := t.TempDir()
	data := random(1<<20, 1)
	write(t, dir, "file", data)
	s := process.Start(t, "-addr", "127.0.0.1:0", "-root", dir)
	for _, length := range []int{maxLine + 1, 100_000, 10 << 20} {
		t.Run(strconv.Itoa(length), func(t *testing.T) {
			c := dial(t, s)
			c.send("file\nnothing\nfile 5 5\n" + strings.Repeat("x", length))
			c.wantFile("file", data)
			if got := c.header(); got != "ERR: no such file" {
				t.Errorf("got %q, want ERR: no such file", got)
			}
			c.wantFile("range", data[5:10])
			if got := c.header(); got != "ERR: line too long" {
				t.Errorf("got %q, want ERR: line too long", got)
			}
			c.wantEnd()
			c.Close()
		})
	}
	s.Stop()
}

func TestOneByteAtATime(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "file", []byte("0123456789"))
	s := process.Start(t, "-addr", "127.0.0.1:0", "-root", dir)
	c := dial(t, s)
	for _, b := range []byte("file 2 3\r\nnothing\nfile 0 1") {
		c.send(string(b))
	}
	c.wantFile("file 2 3", []byte("234"))
	if got := c.header(); got != "ERR: no such file" {
		t.Errorf("got %q, want ERR: no such file", got)
	}
	process.CloseWrite(t, c.Conn)
	c.wantEnd() // half a request is none
	c.Close()
	s.Stop()
}

// Clients that ask and do not read cost neither memory nor the others' time.
func TestPeerThatNeverReads(t *testing.T) {
	dir := t.TempDir()
	sparse(t, dir, "large", 1<<30)
	for _, mode := range allModes[1:] {
		t.Run(mode, func(t *testing.T) {
			s := process.Start(t, "-addr", "127.0.0.1:0", "-root", dir, "-mode", mode, "-loops", "1", "-drain", "10ms")
			other := dial(t, s)
			for _, request := range []string{"large\n", strings.Repeat("not a request ", 20) + "\n"} {
				c := dial(t, s)
				if err := c.Conn.(*net.TCPConn).SetReadBuffer(16 << 10); err != nil { // soon full
					t.Fatal(err)
				}
				block := strings.Repeat(request, 1<<20/len(request))
				for sent := 0; ; {
					if err := c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
						t.Fatal(err)
					}
					n, err := io.WriteString(c, block)
					if sent += n; err != nil {
						break // as full as it gets
					}
					if sent > 128<<20 {
						t.Fatalf("the server took %d bytes from a peer that does not read", sent)
					}
				}
				other.ask("nothing", "ERR: no such file")
			}
			s.Stop()
		})
	}
}

// A file that shrinks while it is sent ends the connection before LENGTH bytes, with
// an error in the log, and nothing else.
func TestTruncatedFile(t *testing.T) {
	const size = 96 << 20
	dir := t.TempDir()
	for _, mode := range allModes {
		for _, left := range []int64{1 << 20, size - 50} {
			t.Run(fmt.Sprintf("%s to %d", mode, left), func(t *testing.T) {
				s := process.Start(t, "-addr", "127.0.0.1:0", "-root", dir, "-mode", mode)
				other := dial(t, s)
				path := sparse(t, dir, "file", size)
				other.ask("file 0 0", "OK: 0") // it stays open
				before := s.Descriptors()
				c := dial(t, s)
				c.ask("file", fmt.Sprintf("OK: %d", size))
				if err := os.Truncate(path, left); err != nil {
					t.Fatal(err)
				}
				n, err := io.Copy(io.Discard, c.r)
				if n >= size || err != nil && !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("got %d of %d bytes, %v; want fewer, and the end", n, size, err)
				}
				s.WaitLog("ERROR")
				c.Close()
				s.WaitDescriptors(before, func() { other.ask("nothing", "ERR: no such file") })
				s.Stop()
			})
		}
	}
}

// A file that grows, is deleted or is replaced while it is sent leaves as it was when it
// was asked for; the next request finds what there is then.
func TestChangedFile(t *testing.T) {
	const size = 24 << 20
	data := random(size, 5)
	other := random(1000, 6)
	for _, mode := range allModes {
		t.Run(mode, func(t *testing.T) {
			dir := t.TempDir()
			socket := filepath.Join(t.TempDir(), "socket")
			s := process.Start(t, "-network", "unix", "-addr", socket, "-root", dir, "-mode", mode)
			path := filepath.Join(dir, "file")
			for _, tt := range []struct {
				name   string
				change func() error
				after  string // the answer to a range that only the new one has, or the old
			}{
				{"grown", func() error { return os.Truncate(path, size+10) }, "OK: 10"},
				{"deleted", func() error { return os.Remove(path) }, "ERR: no such file"},
				{"replaced", func() error {
					write(t, dir, "file+", other)
					return os.Rename(path+"+", path)
				}, "ERR: bad range"},
			} {
				write(t, dir, "file", data)
				c := dial(t, s)
				c.send("file\n")
				if got := c.header(); got != fmt.Sprintf("OK: %d", size) {
					t.Fatalf("%s: got %q, want OK", tt.name, got)
				}
				if err := tt.change(); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, size)
				if n, err := io.ReadFull(c.r, got); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s: got %d bytes, %v; want the file as it was", tt.name, n, err)
				}
				c.send(fmt.Sprintf("file %d 10\n", size))
				if got := c.header(); got != tt.after {
					t.Errorf("%s: got %q, want %q", tt.name, got, tt.after)
				}
				c.Close()
			}
			s.Stop()
		})
	}
}

// When the server is told to end, what it has taken on is answered in full: the file
// that is being sent, and the requests that wait behind it.
func TestSignalUnderLoad(t *testing.T) {
	dir := t.TempDir()
	data := random(2<<20, 3)
	write(t, dir, "file", data)
	for _, mode := range allModes[1:] {
		t.Run(mode, func(t *testing.T) {
			s := process.Start(t, "-addr", "127.0.0.1:0", "-root", dir, "-mode", mode, "-drain", "1m")
			var all, begun sync.WaitGroup
			for range 8 {
				c := dial(t, s)
				c.send(strings.Repeat("file\n", 16))
				begun.Add(1)
				all.Go(func() {
					head := c.header()
					begun.Done()
					for i := range 16 {
						if head != fmt.Sprintf("OK: %d", len(data)) {
							t.Errorf("got %q for request %d, want OK", head, i)
							return
						}
						got := make([]byte, len(data))
						if n, err := io.ReadFull(c.r, got); err != nil || !bytes.Equal(got, data) {
							t.Errorf("got %d bytes, %v for request %d; want the whole file", n, err, i)
							return
						}
						if i < 15 {
							head = c.header()
						}
					}
					c.wantEnd()
					c.Close()
				})
			}
			begun.Wait()
			s.Signal(syscall.SIGTERM)
			all.Wait()
			s.Ended()
		})
	}
}

// A server that has no descriptor left for a file says nothing false, and goes on
// when there are some again.
func TestOutOfDescriptors(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "file", []byte("0123456789"))
	s := process.StartLimited(t, 24, "-addr", "127.0.0.1:0", "-root", dir, "-loops", "1")
	var idle []*client
	for range 40 {
		idle = append(idle, dial(t, s))
	}
	s.WaitLog("accept failed")
	// The descriptor that the listener keeps in order to turn clients away is free for the
	// moment in which it does: one file may get it, for good.
	for i := 0; ; i++ {
		name := fmt.Sprint("file", i)
		write(t, dir, name, []byte(name))
		idle[i].send(name + "\n")
		head, err := idle[i].r.ReadString('\n')
		if err == io.EOF && head == "" {
			break
		}
		if want := fmt.Sprintf("OK: %d\r\n", len(name)); i == 2 || head != want {
			t.Fatalf("got %q, %v without descriptors; want the end", head, err)
		}
	}
	s.WaitLog("answer broken off")
	for _, c := range idle {
		c.Close()
	}
	c := dial(t, s)
	c.send("file\n")
	c.wantFile("file", []byte("0123456789"))
	s.Stop()
}

func TestBadFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, filepath.Dir(file), "file", nil)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-mode", "splice"}, "-mode splice"},
		{[]string{"-root", "/nonexistent"}, "/nonexistent"},
		{[]string{"-root", file}, "not a directory"},
		{[]string{"-root"}, "-root"},
	} {
		stdout, stderr, status := process.Run(t, tt.args...)
		first, _, _ := strings.Cut(stderr, "\n")
		if status != 2 || stdout != "" || !strings.HasPrefix(first, "fileregion: ") || !strings.Contains(first, tt.want) {
			t.Errorf("%q: got status %d, stdout %q, stderr %q; want 2 and a line about %s", tt.args, status, stdout, stderr, tt.want)
		}
	}
}
