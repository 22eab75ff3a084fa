package transport

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// fileSizes are around what a page, the pipe inside of sendfile, a call, a turn's budget and a
// few turns hold.
var fileSizes = []int{
	0, 1, 4095, 4096, 4097,
	65535, 65536, 65537,
	regionPiece, regionPiece + 1,
	regionBudget - 1, regionBudget, regionBudget + 1,
	3 << 20,
}

// fileWays are the ways in which a file becomes messages.
var fileWays = map[string]func(t *testing.T, c *pipeline.Context, path string, write func(any)){
	"region": func(t *testing.T, _ *pipeline.Context, path string, write func(any)) {
		f := must(os.Open(path))
		write(buffer.NewFileRegion(f, 0, must(f.Stat()).Size()))
	},
	"ranges": func(t *testing.T, _ *pipeline.Context, path string, write func(any)) {
		size := must(os.Stat(path)).Size()
		for off := int64(0); ; {
			n := min(size-off, 700_001)
			write(buffer.NewFileRegion(must(os.Open(path)), off, n))
			if off += n; off == size {
				return
			}
		}
	},
	"mapped": func(t *testing.T, _ *pipeline.Context, path string, write func(any)) {
		f := must(os.Open(path))
		defer f.Close()
		size := int(must(f.Stat()).Size())
		first := size / 3 // not on a page
		write(must(buffer.MapFile(f, 0, first)))
		write(must(buffer.MapFile(f, int64(first), size-first)))
	},
	"copied": func(t *testing.T, c *pipeline.Context, path string, write func(any)) {
		content := must(os.ReadFile(path))
		for p := range chunks(content, 50_000) {
			write(p)
		}
	},
}

func chunks(p []byte, n int) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for ; len(p) > 0; p = p[min(n, len(p)):] {
			if !yield(p[:min(n, len(p))]) {
				return
			}
		}
	}
}

// layouts are the ways in which the bytes of a buffer may lie.
var layouts = []func(t *testing.T, p []byte) any{
	func(_ *testing.T, p []byte) any { return pooled(string(p)) },
	func(_ *testing.T, p []byte) any { return string(p) },
	func(_ *testing.T, p []byte) any { return p },
	func(_ *testing.T, p []byte) any { return buffer.Wrap(nil, p) },
	func(_ *testing.T, p []byte) any { // of pieces, one of them empty
		k := len(p) / 3
		return buffer.Compose(pooled(string(p[:k])), buffer.Wrap(nil, p[k:2*k], p[2*k:]), pooled(""))
	},
	func(_ *testing.T, p []byte) any { // a slice of something larger
		b := pooled("before" + string(p) + "behind")
		defer b.Release()
		b.Skip(6)
		return b.ReadSlice(len(p))
	},
	func(t *testing.T, p []byte) any { // with a mapped file in it
		f := tempFile(t, "xx"+string(p))
		defer f.Close()
		return buffer.Compose(must(buffer.MapFile(f, 2, len(p))), pooled(""))
	},
}

// Files of every size, in every way, between buffers of every layout, arrive as they
// are, and each is completed once, in order.
func TestFilesBetweenBuffers(t *testing.T) {
	dir := t.TempDir()
	rnd := rand.NewChaCha8([32]byte{7})
	contents := make([][]byte, len(fileSizes))
	for i, n := range fileSizes {
		contents[i] = make([]byte, n)
		_, _ = rnd.Read(contents[i])
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(n)), contents[i], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fc := must(NewFileCache(dir, FileCacheConfig{}))
	defer fc.Close()
	for way, add := range fileWays {
		t.Run(way, func(t *testing.T) { testFiles(t, dir, contents, way == "region", add) })
	}
	t.Run("cached", func(t *testing.T) {
		testFiles(t, dir, contents, false, func(t *testing.T, c *pipeline.Context, path string, write func(any)) {
			told := false
			fc.Open(c, filepath.Base(path), func(f *CachedFile, err error) {
				told = true
				if err != nil {
					t.Error(err)
					return
				}
				write(f.Region(0, f.Size()))
				f.Release()
			})
			if !told { // the first time a worker may have to look: then it goes as it is
				f := must(os.Open(path))
				write(buffer.NewFileRegion(f, 0, must(f.Stat()).Size()))
			}
		})
	})
}

func testFiles(t *testing.T, dir string, contents [][]byte, long bool, add func(*testing.T, *pipeline.Context, string, func(any))) {
	eachNetwork(t, func(t *testing.T, network, addr string) {
		for _, sndbuf := range []int{0, 1} { // the system's choice, and its minimum
			t.Run(fmt.Sprintf("sndbuf %d", sndbuf), func(t *testing.T) {
				if network == "unix" {
					addr = anyAddr(t, network)
				}
				var want bytes.Buffer
				asked, told := 0, 0
				ended := make(chan struct{})
				srv := &Server{Config: Config{SendBuffer: sndbuf}, Init: with(pipeline.OnInactive(func(*pipeline.Context) error { close(ended); return nil }), pipeline.OnActive(func(c *pipeline.Context) error {
					rnd := rand.New(rand.NewPCG(3, 4))
					write := func(msg any) {
						i := asked
						asked++
						c.WriteThen(msg, func(err error) {
							if err != nil || told != i {
								t.Errorf("completion %d came as number %d: %v", i, told, err)
							}
							told++
						})
					}
					text := func() {
						p := make([]byte, 1+rnd.IntN(2000))
						for i := range p {
							p[i] = byte(rnd.Uint32())
						}
						want.Write(p)
						write(layouts[asked%len(layouts)](t, p))
					}
					for i, content := range contents {
						if sndbuf > 0 && len(content) > 70_000 && (network == "tcp" && !long || len(content) > regionBudget+1) {
							continue // a few KiB at a time take long, over TCP above all
						}
						for range rnd.IntN(3) {
							text()
						}
						want.Write(content)
						add(t, c, filepath.Join(dir, fmt.Sprint(fileSizes[i])), write)
					}
					text()
					c.Close()
					return nil
				}))}
				l := serve(t, srv, network, addr)
				nc := dialNet(t, l)
				sum := sha256.New()
				n, err := io.Copy(sum, nc)
				await(t, ended, "the end of the channel")
				if err != nil || n != int64(want.Len()) {
					t.Fatalf("got %d bytes, %v; want %d", n, err, want.Len())
				}
				if w := sha256.Sum256(want.Bytes()); !bytes.Equal(sum.Sum(nil), w[:]) {
					t.Error("got other bytes than were sent")
				}
				if told != asked {
					t.Errorf("told of %d messages, want %d", told, asked)
				}
			})
		}
	})
}

// A file may change while it is sent. The range that was asked for leaves from what it
// is by then; where that is not there any more, the channel ends with ErrFileShrunk,
// and others do not notice.
func TestFileChangesWhileSent(t *testing.T) {
	const size = 24 << 20 // more than sockets hold
	tests := []struct {
		name   string
		change func(path string) error
		err    error
	}{
		{"nothing", func(string) error { return nil }, nil},
		{"grown", func(path string) error { return os.Truncate(path, 2*size) }, nil},
		{"deleted", os.Remove, nil},
		{"replaced", func(path string) error {
			if err := os.WriteFile(path+"+", []byte("another"), 0o600); err != nil {
				return err
			}
			return os.Rename(path+"+", path)
		}, nil},
		{"truncated", func(path string) error { return os.Truncate(path, 1<<20) }, ErrFileShrunk},
		{"emptied", func(path string) error { return os.Truncate(path, 0) }, ErrFileShrunk},
	}
	ways := map[string]func(f *os.File) any{
		"region": func(f *os.File) any { return buffer.NewFileRegion(f, 0, size) },
		"shared": func(f *os.File) any {
			return buffer.NewSharedRegion(f, 0, size, func() { f.Close() })
		},
		"mapped": func(f *os.File) any { defer f.Close(); return must(buffer.MapFile(f, 0, size)) },
		"mapped and more": func(f *os.File) any {
			defer f.Close()
			return buffer.Compose(pooled("head"), must(buffer.MapFile(f, 4, size-4)))
		},
	}
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	copy(content, "head")
	for way, open := range ways {
		for _, tt := range tests {
			t.Run(way+" "+tt.name, func(t *testing.T) {
				eachNetwork(t, func(t *testing.T, network, addr string) {
					path := filepath.Join(t.TempDir(), "file")
					if err := os.WriteFile(path, content, 0o600); err != nil {
						t.Fatal(err)
					}
					failure := make(chan error, 1)
					srv := &Server{Init: with(
						pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error { // the other channel's
							c.Write(b)
							return nil
						}),
						pipeline.OnEvent(func(c *pipeline.Context, _ sendIt) error {
							c.WriteThen(open(must(os.Open(path))), func(err error) {
								failure <- err
								c.Close()
							})
							return nil
						}),
						pipeline.OnError(func(*pipeline.Context, error) {}),
					)}
					accepted := make(chan pipeline.Channel, 2)
					init := srv.Init
					srv.Init = func(ch pipeline.Channel) error { accepted <- ch; return init(ch) }
					l := serve(t, srv, network, addr)
					nc := dialNet(t, l)
					await(t, accepted, "the channel").Pipeline().FireEvent(sendIt{})
					head := make([]byte, 4)
					if _, err := io.ReadFull(nc, head); err != nil || string(head) != "head" {
						t.Fatalf("got %q, %v", head, err)
					}
					if err := tt.change(path); err != nil {
						t.Fatal(err)
					}
					sum := sha256.New()
					sum.Write(head)
					n, err := io.Copy(sum, nc)
					if got := await(t, failure, "the completion"); !errors.Is(got, tt.err) {
						t.Errorf("got %v, want %v", got, tt.err)
					}
					want := sha256.Sum256(content)
					if same := bytes.Equal(sum.Sum(nil), want[:]); same != (tt.err == nil) || tt.err == nil && err != nil {
						t.Errorf("got %d bytes, %v, the same: %v", n+4, err, same)
					}
					other := dialNet(t, l)
					if _, err := io.WriteString(other, "ping"); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(other, head); err != nil || string(head) != "ping" {
						t.Errorf("another channel: got %q, %v", head, err)
					}
				})
			})
		}
	}
}

// sendIt has a channel send its file.
type sendIt struct{}

// A handler that reads a mapped file which has been truncated ends its channel, and no
// other.
func TestTruncatedMapInHandler(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	reasons := make(chan error, 3)
	srv := &Server{Init: with(pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
		how := b.ReadString(4)
		b.Release()
		if how == "ping" {
			c.Write("pong")
			return nil
		}
		f := must(os.Open(path))
		m := must(buffer.MapFile(f, 0, 1<<20))
		f.Close()
		defer m.Release()
		if err := os.Truncate(path, 0); err != nil {
			return err
		}
		defer func() { must(0, os.Truncate(path, 1<<20)) }()
		switch how {
		case "byte":
			c.Write([]byte{m.ReadUint8()})
		case "view":
			sum := byte(0)
			for _, x := range m.Window() {
				sum += x
			}
			c.Write([]byte{sum})
		case "copy":
			m.ReadBytes(make([]byte, 100))
		}
		return nil
	}), pipeline.OnError(func(_ *pipeline.Context, err error) { reasons <- err }))}
	l := serve(t, srv, "tcp", "127.0.0.1:0")
	for _, how := range []string{"byte", "view", "copy"} {
		nc := dialNet(t, l)
		if _, err := io.WriteString(nc, how); err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(nc); len(got) > 0 {
			t.Errorf("%s: got %q, want the end", how, got)
		}
		var pe *pipeline.PanicError
		if err := await(t, reasons, "the error"); !errors.As(err, &pe) {
			t.Errorf("%s: got %v, want a panic", how, err)
		}
		other := dialNet(t, l)
		if _, err := io.WriteString(other, "ping"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4)
		if _, err := io.ReadFull(other, got); err != nil || string(got) != "pong" {
			t.Errorf("%s: another channel: got %q, %v", how, got, err)
		}
	}
}

// A region of more than 2 GiB, at an offset beyond 4 GiB, leaves whole.
func TestLongRegion(t *testing.T) {
	if testing.Short() {
		t.Skip("moves 2 GiB")
	}
	const off, n = int64(4<<30 - 7), int64(2<<30 + 5)
	dir, err := os.MkdirTemp("/dev/shm", "runnel") // where holes cost no memory
	if err != nil {
		dir = t.TempDir()
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "file")
	f := must(os.Create(path))
	defer f.Close()
	for _, at := range []int64{off, off + n - 4} {
		must(f.WriteAt([]byte("mark"), at))
	}
	told := make(chan error, 1)
	srv := &Server{Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
		c.WriteThen(buffer.NewFileRegion(must(os.Open(path)), off, n), func(err error) { told <- err; c.Close() })
		return nil
	}))}
	l := serve(t, srv, "unix", anyAddr(t, "unix"))
	nc := dialNet(t, l)
	ends := make([]byte, 8)
	if _, err := io.ReadFull(nc, ends[:4]); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<20)
	total := int64(4)
	for {
		k, err := nc.Read(buf)
		if k >= 4 {
			copy(ends[4:], buf[k-4:k])
		}
		if total += int64(k); err != nil {
			break
		}
	}
	if err := await(t, told, "the completion"); err != nil || total != n || string(ends) != "markmark" {
		t.Errorf("got %d bytes between %q, %v; want %d", total, ends, err, n)
	}
}

// heldSocket is a socket to which nothing is in memory, and whose files come when the
// test says so.
type heldSocket struct {
	*fdSocket
	begun chan<- struct{}
	goOn  <-chan struct{}
}

func (s *heldSocket) cached(int, int64) (bool, error) { return false, nil }

func (s *heldSocket) sendfile(file int, off int64, n int) (int, error) {
	s.begun <- struct{}{}
	<-s.goOn
	return s.fdSocket.sendfile(file, off, n)
}

// While a disk keeps a file to itself the loop goes on: other channels get their answers,
// and the channel itself reads.
func TestDiskThatBlocks(t *testing.T) {
	g := must(eventloop.NewGroup(eventloop.GroupConfig{Loops: 1}))
	t.Cleanup(func() { _ = g.Shutdown(context.Background()) })
	content := letters(100_000)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	begun, goOn := make(chan struct{}, 8), make(chan struct{})
	heard := make(chan string, 8)
	srv := &Server{Group: g, Init: with(pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
		switch text := b.ReadString(b.Len()); text {
		case "file":
			s := c.Channel().(*stream)
			s.sock = &heldSocket{&s.fd, begun, goOn}
			c.Write("head")
			c.Write(buffer.NewFileRegion(must(os.Open(path)), 0, int64(len(content))))
			c.Write("tail")
		case "hello":
			heard <- text
		default:
			c.Write(text)
		}
		b.Release()
		return nil
	}))}
	l := serve(t, srv, "tcp", "127.0.0.1:0")
	nc, other := dialNet(t, l), dialNet(t, l)
	if _, err := io.WriteString(nc, "file"); err != nil {
		t.Fatal(err)
	}
	await(t, begun, "the Op")
	metrics := func() (m eventloop.Metrics) {
		done := make(chan struct{})
		if err := l.Loop().Execute(func() { m = l.Loop().Metrics(); close(done) }); err != nil {
			t.Fatal(err)
		}
		await(t, done, "a task of the loop")
		return m
	}
	before := metrics()
	if before.Ops != 1 {
		t.Errorf("got %d Ops under way, want 1", before.Ops)
	}
	const rounds = 500
	for range rounds {
		got := make([]byte, 4)
		if _, err := io.WriteString(other, "ping"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(other, got); err != nil || string(got) != "ping" {
			t.Fatalf("another channel: got %q, %v", got, err)
		}
	}
	if _, err := io.WriteString(nc, "hello"); err != nil {
		t.Fatal(err)
	}
	await(t, heard, "what the channel reads meanwhile")
	if after := metrics(); after.Ops != 1 || after.Turns < before.Turns+rounds {
		t.Errorf("got %d Ops, %d turns after %d; want the same Op, %d turns more", after.Ops, after.Turns, before.Turns, rounds)
	}
	// The header was to wait for the file, but not for a disk.
	head := make([]byte, 4)
	if _, err := io.ReadFull(nc, head); err != nil || string(head) != "head" {
		t.Errorf("before the disk has answered: got %q, %v", head, err)
	}
	close(goOn)
	got := make([]byte, len(content)+len("tail"))
	if _, err := io.ReadFull(nc, got); err != nil || string(got) != content+"tail" {
		t.Errorf("got %d bytes that differ, %v", len(got), err)
	}
}

// A datagram of a mapped file is counted as one, and fails alone when the file has been cut.
func TestMappedDatagram(t *testing.T) {
	peer := must(net.ListenPacket("udp", "127.0.0.1:0"))
	defer peer.Close()
	ctx := t.Context()
	ch := must((&Dialer{}).Dial(ctx, "udp", peer.LocalAddr().String()))
	defer func() { ch.Close(); <-ch.Closed().Done() }()
	metrics := func() (c eventloop.Counters) {
		done := make(chan struct{})
		if err := ch.Loop().Execute(func() { c = *ch.Loop().Counters(); close(done) }); err != nil {
			t.Fatal(err)
		}
		await(t, done, "a task of the loop")
		return c
	}
	content := letters(9000)
	f := tempFile(t, content)
	defer f.Close()
	mapped, cut := must(buffer.MapFile(f, 0, 9000)), must(buffer.MapFile(f, 0, 9000))
	before := metrics()
	if err := ch.Send(ctx, mapped); err != nil {
		t.Error(err)
	}
	got := make([]byte, 10_000)
	if n, _, err := peer.ReadFrom(got); err != nil || string(got[:n]) != content {
		t.Errorf("got %d bytes, %v", n, err)
	}
	must1(t, os.Truncate(f.Name(), 0))
	if err := ch.Send(ctx, cut); !errors.Is(err, ErrFileShrunk) {
		t.Errorf("cut: got %v, want %v", err, ErrFileShrunk)
	}
	if err := ch.Send(ctx, "next"); err != nil {
		t.Errorf("the next one: %v", err)
	}
	after := metrics()
	if n, m := after.BytesWritten-before.BytesWritten, after.BytesMapped-before.BytesMapped; n != 9004 || m != 9000 {
		t.Errorf("got %d bytes written, %d of them mapped; want 9004 and 9000", n, m)
	}
}
