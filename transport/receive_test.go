//go:build linux

package transport

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// filer is a handler that receives its channel into a file, and answers with how it went.
type filer struct {
	*FileReceiver
	path   string
	flags  int // besides O_WRONLY
	length int64
	wrap   func(storage) storage // nil for the file itself
	ended  func(n int64, err error)
}

func (h *filer) HandleActive(c *pipeline.Context) error {
	c.Channel().SetAutoRead(false)
	c.Offload(func(context.Context) (any, error) {
		return os.OpenFile(h.path, os.O_WRONLY|h.flags, 0o600)
	}, func(v any, err error) {
		if err != nil {
			c.FireError(err)
			return
		}
		file := v.(*os.File)
		then := func(n int64, err error) {
			file.Close()
			if h.ended != nil {
				h.ended(n, err)
			}
			c.Write(fmt.Sprint(n, " ", err))
			c.Close()
		}
		var to storage
		if to, err = newDiskFile(file); err == nil {
			if h.wrap != nil {
				to = h.wrap(to)
			}
			err = h.start(c, to, h.length, then)
		}
		if err != nil {
			then(0, err)
		}
	})
	return nil
}

func (h *filer) HandleError(*pipeline.Context, error) {}

// serveFiler serves connections that are received into path.
func serveFiler(t *testing.T, network string, cfg Config, make func() *filer) pipeline.Channel {
	t.Helper()
	cfg.HalfClose = true
	return serve(t, &Server{Config: cfg, Init: func(ch pipeline.Channel) error { return ch.Pipeline().Add(make()) }},
		network, anyAddr(t, network))
}

// upload sends content, half-closes and returns the answer.
func upload(t *testing.T, nc net.Conn, content []byte) string {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := nc.Write(content)
		if err == nil {
			err = nc.(closeWriter).CloseWrite()
		}
		if err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
	})
	answer, err := io.ReadAll(nc)
	wg.Wait()
	if err != nil {
		t.Errorf("answer: got %q, %v", answer, err)
	}
	return string(answer)
}

// Files of sizes around the limits of pipes, pieces and Ops are what was sent, and no byte
// has been in the process.
func TestFileReceiver(t *testing.T) {
	sizes := []int{0, 1, 4095, 4096, 4097, 64<<10 - 1, 64 << 10, 64<<10 + 1, longSplice - 1, longSplice, longSplice + 1,
		filingBudget - 1, filingBudget, filingBudget + 1, 3*filingBudget + 12345}
	eachNetwork(t, func(t *testing.T, network, _ string) {
		for _, mode := range []string{"splice", "copy", "small buffer"} {
			for _, size := range sizes {
				t.Run(fmt.Sprintf("%s, %d bytes", mode, size), func(t *testing.T) {
					var cfg Config
					if mode == "small buffer" {
						cfg.RecvBuffer = 1
						size /= 16
					}
					path := filepath.Join(t.TempDir(), "file")
					r := &FileReceiver{copies: mode == "copy"}
					l := serveFiler(t, network, cfg, func() *filer {
						return &filer{FileReceiver: r, path: path, flags: os.O_CREATE, length: -1}
					})
					content := []byte(letters(size))
					if got, want := upload(t, dialNet(t, l), content), fmt.Sprint(size, " <nil>"); got != want {
						t.Fatalf("got %s, want %s", got, want)
					}
					file, err := os.ReadFile(path)
					if err != nil || sha256.Sum256(file) != sha256.Sum256(content) {
						t.Errorf("got %d bytes, %v; want %d, or they differ", len(file), err, size)
					}
					want := WayStats{Spliced: int64(size)}
					if mode == "copy" {
						want = WayStats{Copied: int64(size)}
					}
					if got := r.Stats().WayStats; got != want {
						t.Errorf("got %+v, want %+v", got, want)
					}
				})
			}
		}
	})
}

// A stream of messages with files among them: each file gets its bytes, what was read
// with the header before it among them, and the handlers get all that is between.
func TestFileReceiver_AmongMessages(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network, addr string) {
		dir := t.TempDir()
		lengths := []int{0, 1, 100, 70_000, 1 << 20, 5}
		var stream, messages strings.Builder
		for i, n := range lengths {
			fmt.Fprintf(&stream, "message %d\nfile %d\n%s", i, n, letters(n + i)[i:])
			fmt.Fprintf(&messages, "message %d\n", i)
		}
		stream.WriteString("end\n")
		l := serve(t, &Server{Config: Config{HalfClose: true}, Init: func(ch pipeline.Channel) error {
			return ch.Pipeline().Add(&announced{dir: dir})
		}}, network, addr)
		for range 4 {
			nc := dialNet(t, l)
			r := rand.New(rand.NewPCG(1, 2))
			var wg sync.WaitGroup
			wg.Go(func() {
				for rest := stream.String(); rest != ""; {
					n := min(len(rest), 1+r.IntN(60_000))
					if _, err := io.WriteString(nc, rest[:n]); err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
			})
			got, err := io.ReadAll(nc)
			wg.Wait()
			if err != nil || string(got) != messages.String() {
				t.Fatalf("messages: got %q, %v; want %q", got, err, messages.String())
			}
			for i, n := range lengths {
				file, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i)))
				if err != nil || string(file) != letters(n + i)[i:] {
					t.Errorf("file %d: got %d bytes, %v; want %d", i, len(file), err, n)
				}
			}
		}
	})
}

// announced is a protocol of lines, some of which announce a file.
type announced struct {
	dir   string
	files int
	rest  []byte
}

func (h *announced) HandleRead(c *pipeline.Context, msg any) error {
	b := msg.(*buffer.Buf)
	h.rest = append(h.rest, b.ReadString(b.Len())...)
	b.Release()
	return h.lines(c)
}

func (h *announced) lines(c *pipeline.Context) error {
	for {
		line, rest, ok := strings.Cut(string(h.rest), "\n")
		if !ok {
			return nil
		}
		h.rest = []byte(rest)
		var n int
		switch {
		case line == "end":
			c.Close()
			return nil
		case !strings.HasPrefix(line, "file "):
			c.Write(line + "\n")
			continue
		}
		fmt.Sscanf(line, "file %d", &n)
		file, err := os.Create(filepath.Join(h.dir, fmt.Sprint(h.files)))
		if err != nil {
			return err
		}
		h.files++
		had := min(n, len(h.rest))
		r := &FileReceiver{First: c.Alloc().Alloc(had), Preallocate: int64(n)}
		r.First.Write(h.rest[:had])
		h.rest = h.rest[had:]
		return r.Start(c, file, int64(n), func(int64, error) {
			file.Close()
			if err := h.lines(c); err != nil {
				c.FireError(err)
			}
		})
	}
}

// A peer that resets: what had come by then is in the file.
func TestFileReceiver_Reset(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	type end struct {
		n   int64
		err error
	}
	ended := make(chan end, 1)
	l := serveFiler(t, "tcp", Config{}, func() *filer {
		return &filer{FileReceiver: new(FileReceiver), path: path, flags: os.O_CREATE, length: -1,
			ended: func(n int64, err error) { ended <- end{n, err} }}
	})
	content := letters(3 << 20)
	nc := dialNet(t, l)
	if _, err := io.WriteString(nc, content); err != nil {
		t.Fatal(err)
	}
	nc.(*net.TCPConn).SetLinger(0)
	nc.Close()
	e := await(t, ended, "the end")
	file, err := os.ReadFile(path)
	if err != nil || int64(len(file)) != e.n || !strings.HasPrefix(content, string(file)) {
		t.Errorf("got %d bytes, %v, told of %d; want a beginning of what was sent", len(file), err, e.n)
	}
	if !errors.Is(e.err, syscall.ECONNRESET) || !errors.Is(e.err, pipeline.ErrClosed) {
		t.Errorf("got %v, want the reset", e.err)
	}
}

// gatedSocket is a socket whose bytes are asked for when the test says so.
type gatedSocket struct {
	*fdSocket
	begun chan<- struct{}
	goOn  <-chan struct{}
}

func (s *gatedSocket) spliceIn(pipe, n int) (int, error) {
	s.begun <- struct{}{}
	<-s.goOn
	return s.fdSocket.spliceIn(pipe, n)
}

// What a reset makes of the socket while the Op is about to read is not the end of the
// stream.
func TestFileReceiver_ResetIsNoEnd(t *testing.T) {
	for _, network := range networks {
		begun, goOn := make(chan struct{}, 1), make(chan struct{})
		ended, chs := make(chan error, 1), make(chan *stream, 1)
		path := filepath.Join(t.TempDir(), "file")
		l := serve(t, &Server{Init: func(ch pipeline.Channel) error {
			s := ch.(*stream)
			s.sock = &gatedSocket{&s.fd, begun, goOn}
			chs <- s
			return ch.Pipeline().Add(&filer{FileReceiver: new(FileReceiver), path: path, flags: os.O_CREATE, length: -1,
				ended: func(_ int64, err error) { ended <- err }})
		}}, network, anyAddr(t, network))
		dialNet(t, l)
		s := await(t, chs, "the channel")
		await(t, begun, "the Op")
		reset := make(chan struct{})
		must1(t, s.Loop().Execute(func() { s.Reset(); close(reset) }))
		await(t, reset, "the reset")
		close(goOn)
		if err := await(t, ended, "the end"); !errors.Is(err, pipeline.ErrReset) {
			t.Errorf("%s: got %v, want %v", network, err, pipeline.ErrReset)
		}
	}
}

// slowFile is a file whose first write waits for the test.
type slowFile struct {
	storage
	held     *atomic.Int32
	entered  chan struct{}
	released chan struct{}
}

func (f *slowFile) wait() {
	if f.held.Add(1) == 1 {
		close(f.entered)
		<-f.released
	}
}

func (f *slowFile) splice(pipe int, off int64, n int) (int, error) {
	f.wait()
	return f.storage.splice(pipe, off, n)
}

func (f *slowFile) write(p []byte, off int64) (int, error) {
	f.wait()
	return f.storage.write(p, off)
}

// While a disk is slow its peer is held up, and nobody else on the loop notices; a channel
// that closes meanwhile waits with its descriptor.
func TestFileReceiver_SlowDisk(t *testing.T) {
	for _, how := range []string{"", "Reset", "Close"} {
		t.Run("then "+how, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			slow := &slowFile{held: new(atomic.Int32), entered: make(chan struct{}), released: make(chan struct{})}
			g := newGroup(t, eventloop.GroupConfig{Loops: 1})
			ended := make(chan int64, 1)
			channels := make(chan pipeline.Channel, 1)
			cfg := Config{HalfClose: true, RecvBuffer: 1 << 16, CloseTimeout: time.Hour}
			l := serve(t, &Server{Group: g, Config: cfg, Init: func(ch pipeline.Channel) error {
				channels <- ch
				return ch.Pipeline().Add(&filer{FileReceiver: new(FileReceiver), path: path, flags: os.O_CREATE, length: -1,
					wrap:  func(s storage) storage { slow.storage = s; return slow },
					ended: func(n int64, _ error) { ended <- n }})
			}}, "tcp", anyAddr(t, "tcp"))
			others := serve(t, &Server{Group: g, Init: with(echo())}, "tcp", anyAddr(t, "tcp"))
			nc := dialNet(t, l)
			content := letters(8 << 20)
			var wg sync.WaitGroup
			wg.Go(func() {
				io.WriteString(nc, content)
				nc.(closeWriter).CloseWrite()
			})
			await(t, slow.entered, "the first write")
			other := dialNet(t, others)
			for range 20 {
				roundTrip(t, other)
			}
			ch := await(t, channels, "the channel")
			if how != "" {
				want := streamClosed
				if how == "Reset" {
					ch.Reset()
				} else {
					ch.Close()
					want = streamClosing // nobody else may read while the Op does
				}
				at := make(chan streamState, 1)
				_ = ch.Loop().Execute(func() { at <- ch.(*stream).at })
				if got := await(t, at, "the state"); got != want {
					t.Errorf("after %s: got state %d, want %d", how, got, want)
				}
				select {
				case <-ch.Closed().Done():
					t.Error("closed while its Op was under way")
				case <-ended:
					t.Error("ended while its Op was under way")
				default:
				}
			}
			close(slow.released)
			n := await(t, ended, "the end")
			if how == "" && n != int64(len(content)) || n == 0 || n > int64(len(content)) {
				t.Errorf("got %d bytes of %d", n, len(content))
			}
			await(t, ch.Closed().Done(), "the close")
			wg.Wait()
			file, err := os.ReadFile(path)
			if err != nil || int64(len(file)) != n || !strings.HasPrefix(content, string(file)) {
				t.Errorf("got %d bytes, %v; want %d", len(file), err, n)
			}
		})
	}
}

// A disk that is full, one that cannot be spliced to, and a file that may not grow: the
// error is told with how many bytes are in the file.
func TestFileReceiver_Full(t *testing.T) {
	full := func(t *testing.T, path string, want error) {
		t.Helper()
		ended := make(chan error, 1)
		var in atomic.Int64
		l := serveFiler(t, "tcp", Config{}, func() *filer {
			return &filer{FileReceiver: new(FileReceiver), path: path, flags: os.O_CREATE, length: -1,
				ended: func(n int64, err error) { in.Store(n); ended <- err }}
		})
		content := letters(4 << 20)
		answer := upload(t, dialNet(t, l), []byte(content))
		if err := await(t, ended, "the end"); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
		if !strings.Contains(answer, want.Error()) {
			t.Errorf("got the answer %q, want one with %q", answer, want)
		}
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() {
			return
		}
		file, err := os.ReadFile(path)
		if err != nil || int64(len(file)) != in.Load() || !strings.HasPrefix(content, string(file)) {
			t.Errorf("got %d bytes, %v; want the %d that were told", len(file), err, in.Load())
		}
	}
	t.Run("device", func(t *testing.T) { full(t, "/dev/full", syscall.ENOSPC) })
	t.Run("tmpfs", func(t *testing.T) {
		dir := t.TempDir()
		if err := syscall.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
			t.Skip("cannot mount a small file system:", err)
		}
		defer func() { must1(t, syscall.Unmount(dir, 0)) }()
		full(t, filepath.Join(dir, "file"), syscall.ENOSPC)
	})
	const limited = "RUNNEL_TEST_FILE_LIMIT" // in a process of its own: the limit is one of the process
	if path := os.Getenv(limited); path != "" {
		t.Run("limit", func(t *testing.T) {
			max := uint64(100_000)
			must1(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: max, Max: max}))
			full(t, path, syscall.EFBIG)
			info, err := os.Stat(path)
			if err != nil || info.Size() != int64(max) {
				t.Errorf("got a file of %d bytes, %v; want %d", info.Size(), err, max)
			}
		})
		return
	}
	t.Run("limit in a process of its own", func(t *testing.T) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFileReceiver_Full$/^limit$")
		cmd.Env = append(os.Environ(), limited+"="+filepath.Join(t.TempDir(), "file"))
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// Without pipes, or with none that is of use, bytes are copied.
func TestFileReceiver_NoPipes(t *testing.T) {
	piped.Add(mostPiped)
	defer piped.Add(-mostPiped)
	path := filepath.Join(t.TempDir(), "file")
	r := new(FileReceiver)
	l := serveFiler(t, "tcp", Config{}, func() *filer {
		return &filer{FileReceiver: r, path: path, flags: os.O_CREATE, length: -1}
	})
	content := letters(1 << 20)
	if got, want := upload(t, dialNet(t, l), []byte(content)), fmt.Sprint(len(content), " <nil>"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if s := r.Stats(); s.Copied != int64(len(content)) {
		t.Errorf("got %+v, want all copied", s)
	}
}

// Peers, and their channels, end at any moment in any way: each is told once, of what is
// in its file, and nothing is left.
func TestFileReceiver_Endings(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network, _ string) {
		dir := t.TempDir()
		const conns = 60
		content := letters(2 << 20)
		var next, told atomic.Int32
		var wg, ends sync.WaitGroup
		channels := make(chan pipeline.Channel, conns)
		receivers := make(chan *FileReceiver, conns)
		l := serve(t, &Server{Config: Config{HalfClose: true}, Init: func(ch pipeline.Channel) error {
			i := int(next.Add(1))
			path := filepath.Join(dir, fmt.Sprint(i))
			r := &FileReceiver{copies: i%3 == 0, Sync: i%5 == 0}
			h := &filer{FileReceiver: r, path: path, flags: os.O_CREATE, length: -1, ended: func(n int64, err error) {
				defer ends.Done()
				told.Add(1)
				if info, serr := os.Stat(path); serr != nil || info.Size() != n {
					t.Errorf("conn %d: told of %d bytes, %v; the file has %v", i, n, err, info)
				}
			}}
			channels <- ch
			receivers <- r
			return ch.Pipeline().Add(h)
		}}, network, anyAddr(t, network))
		ends.Add(conns)
		for i := range conns {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			nc := dialNet(t, l)
			ch, receiver := <-channels, <-receivers
			wg.Go(func() {
				io.WriteString(nc, content[:r.IntN(len(content))])
				switch r.IntN(6) {
				case 0:
					if tc, ok := nc.(*net.TCPConn); ok {
						tc.SetLinger(0)
					}
					nc.Close()
				case 1:
					ch.Close()
				case 2:
					ch.Reset()
				case 3:
					_ = ch.Loop().Execute(receiver.Stop) // perhaps before its Start, when it does nothing
					nc.(closeWriter).CloseWrite()
				case 4:
					nc.Close()
				default:
					nc.(closeWriter).CloseWrite()
				}
				io.Copy(io.Discard, nc)
				nc.Close()
			})
		}
		wg.Wait()
		done := make(chan struct{})
		go func() { ends.Wait(); close(done) }()
		await(t, done, "all ends")
		if told.Load() != conns {
			t.Errorf("told %d times, want %d", told.Load(), conns)
		}
	})
}

// A drain lets a reception end.
func TestFileReceiver_Drain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	entered := make(chan struct{}, 100)
	srv := &Server{Config: Config{HalfClose: true}, Init: func(ch pipeline.Channel) error {
		r := &FileReceiver{Progress: func(int64) { entered <- struct{}{} }}
		return ch.Pipeline().Add(&filer{FileReceiver: r, path: path, flags: os.O_CREATE, length: -1})
	}}
	l, err := srv.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nc := dialNet(t, l)
	io.WriteString(nc, "first")
	await(t, entered, "the first bytes")
	down := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		down <- srv.Shutdown(ctx)
	}()
	await(t, l.Closed().Done(), "the listener's end")
	if got, want := upload(t, nc, []byte(", last")), "11 <nil>"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if err := await(t, down, "the end of the drain"); err != nil {
		t.Error(err)
	}
}
