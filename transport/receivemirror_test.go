//go:build linux

package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// copyRig is a server that receives one connection into a file, with mirrors.
type copyRig struct {
	t      *testing.T
	r      *FileReceiver
	path   string
	client net.Conn
	ch     pipeline.Channel // of the reception
	sinks  []*copySink
	ended  chan mirrorEnd
}

// copySink is a mirror of it: 'c' a channel of its loop, 'e' one of another loop, 'f' a
// file, 's' the channel itself, whose client gets back what it sends.
type copySink struct {
	kind byte
	nc   net.Conn // that reads what a channel gets
	ch   pipeline.Channel
	path string
	end  chan mirrorEnd
}

func newCopyRig(t *testing.T, network string, cfg Config, r *FileReceiver, block bool, kinds string) *copyRig {
	t.Helper()
	x := &copyRig{t: t, r: r, path: filepath.Join(t.TempDir(), "file"), ended: make(chan mirrorEnd, 2)}
	g, other := newGroup(t, eventloop.GroupConfig{Loops: 1}), newGroup(t, eventloop.GroupConfig{Loops: 1})
	l := must(net.Listen(network, anyAddr(t, network)))
	defer l.Close()
	for _, kind := range []byte(kinds) {
		s := &copySink{kind: kind, end: make(chan mirrorEnd, 2)}
		m := Mirror{Block: block, Ended: func(n int64, err error) {
			s.end <- mirrorEnd{n, err}
			if s.ch != nil && kind != 's' {
				s.ch.Close()
			}
		}}
		switch kind {
		case 'c', 'e':
			d := &Dialer{Group: g, Config: cfg, Init: with(new(sinkErrors))}
			if kind == 'e' {
				d.Group = other
			}
			s.ch = must(d.Dial(context.Background(), network, l.Addr().String()))
			s.nc = must(l.Accept())
			s.nc.SetDeadline(time.Now().Add(patience))
			t.Cleanup(func() { s.nc.Close() })
			m.Channel = s.ch
		case 'f':
			m.File = must(os.Create(filepath.Join(t.TempDir(), "mirror")))
			s.path = m.File.Name()
			t.Cleanup(func() { m.File.Close() })
		}
		x.sinks, r.Mirrors = append(x.sinks, s), append(r.Mirrors, m)
	}
	channels := make(chan pipeline.Channel, 1)
	cfg.HalfClose = true
	srv := &Server{Group: g, Config: cfg, Init: func(ch pipeline.Channel) error {
		for i, s := range x.sinks {
			if s.kind == 's' {
				r.Mirrors[i].Channel = ch
			}
		}
		channels <- ch
		return ch.Pipeline().Add(&filer{FileReceiver: r, path: x.path, flags: os.O_CREATE, length: -1,
			ended: func(n int64, err error) { x.ended <- mirrorEnd{n, err} }})
	}}
	x.client = dialNet(t, serve(t, srv, network, anyAddr(t, network)))
	x.ch = await(t, channels, "the channel")
	return x
}

// until waits until f, which is called on the loop, reports true.
func (x *copyRig) until(what string, f func() bool) {
	x.t.Helper()
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		is := make(chan bool, 1)
		if err := x.ch.Loop().Execute(func() { is <- f() }); err != nil {
			x.t.Fatal(err)
		}
		if await(x.t, is, "a turn of the loop") {
			return
		}
		if time.Now().After(end) {
			x.t.Fatalf("no sign of %s", what)
		}
	}
}

// What goes into the file goes to each mirror, too, wherever that is, alone or with
// others, by splice and by copying, through large and through small buffers.
func TestFileReceiver_Mirror(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network, _ string) {
		for _, copies := range []bool{false, true} {
			for _, cfg := range []Config{{}, {SendBuffer: 1, RecvBuffer: 1}} {
				for _, kinds := range []string{"c", "f", "e", "s", "ccff", "cfes"} {
					for _, size := range []int{0, 1, 64<<10 - 1, 64<<10 + 1, 3 << 20} {
						if cfg.SendBuffer > 0 {
							size = min(size, 300<<10)
						}
						if size > 1 && raceEnabled {
							size = min(size, 100<<10)
						}
						t.Run(fmt.Sprintf("%s, copies %v, %d bytes, buffers of %d", kinds, copies, size, cfg.SendBuffer), func(t *testing.T) {
							testReceiveMirror(t, network, cfg, copies, kinds, size)
						})
					}
				}
			}
		}
	})
}

func testReceiveMirror(t *testing.T, network string, cfg Config, copies bool, kinds string, size int) {
	first := "first words, "
	r := &FileReceiver{First: pooled(first), copies: copies, Sync: true, Preallocate: 100}
	x := newCopyRig(t, network, cfg, r, true, kinds)
	content := letters(size)
	want := first + content
	var wg sync.WaitGroup
	for i, s := range x.sinks {
		if s.nc != nil {
			wg.Go(func() {
				if got, err := io.ReadAll(s.nc); err != nil || string(got) != want {
					t.Errorf("mirror %d: got %d bytes, %v; want %d", i, len(got), err, len(want))
				}
			})
		}
	}
	answer := fmt.Sprint(len(want), " <nil>")
	if strings.Contains(kinds, "s") {
		answer = want + answer
	}
	if got := upload(t, x.client, []byte(content)); got != answer {
		t.Errorf("client: got %d bytes, want %d", len(got), len(answer))
	}
	if e := await(t, x.ended, "the end"); e.err != nil || e.bytes != int64(len(want)) {
		t.Errorf("end: got %d bytes, %v; want %d", e.bytes, e.err, len(want))
	}
	for i, s := range x.sinks {
		if e := await(t, s.end, "the mirror's end"); e.err != nil || e.bytes != int64(len(want)) {
			t.Errorf("end of mirror %d: got %d bytes, %v; want %d", i, e.bytes, e.err, len(want))
		}
		if s.path != "" {
			if got := must(os.ReadFile(s.path)); string(got) != want {
				t.Errorf("mirror %d: got %d bytes, want %d", i, len(got), len(want))
			}
		}
	}
	wg.Wait()
	// Behind the room that was asked for the file has what was sent, and no more.
	if got := must(os.ReadFile(x.path)); string(bytes.TrimRight(got, "\x00")) != want {
		t.Errorf("file: got %d bytes, want %d", len(got), len(want))
	}
	st := r.Stats()
	if n := int64(len(kinds) * len(want)); st.Mirrored != n || st.Dropped != 0 {
		t.Errorf("got %+v, want %d mirrored", st, n)
	}
	if spliced := !copies && !strings.Contains(kinds, "e"); spliced && st.Spliced != int64(size) || !spliced && st.Spliced != 0 {
		t.Errorf("got %+v, of %d bytes", st, size)
	}
}

// A mirror that takes nothing is given up at the first byte that it cannot take, and the
// file gets all of it.
func TestFileReceiver_MirrorBehind(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network, _ string) {
		for _, kind := range []string{"c", "e"} {
			r := new(FileReceiver)
			x := newCopyRig(t, network, Config{SendBuffer: 1}, r, false, kind)
			content := letters(8 << 20)
			if got, want := upload(t, x.client, []byte(content)), fmt.Sprint(len(content), " <nil>"); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			e := await(t, x.sinks[0].end, "the mirror's end")
			if !errors.Is(e.err, ErrMirrorBehind) {
				t.Errorf("got %v, want %v", e.err, ErrMirrorBehind)
			}
			got, err := io.ReadAll(x.sinks[0].nc)
			if err != nil || int64(len(got)) != e.bytes || !strings.HasPrefix(content, string(got)) {
				t.Errorf("mirror: got %d bytes, %v; want the first %d", len(got), err, e.bytes)
			}
			if st := r.Stats(); st.Mirrored != e.bytes || st.Mirrored+st.Dropped != int64(len(content)) {
				t.Errorf("got %+v, want %d mirrored and the rest dropped", st, e.bytes)
			}
			if got := must(os.ReadFile(x.path)); string(got) != content {
				t.Errorf("file: got %d bytes, want %d", len(got), len(content))
			}
		}
	})
}

// A mirror that blocks holds the reception up until it is read or closes; or until the
// channel is closed, which waits for Config.CloseTimeout, or reset, which does not. The
// file then has what it has been told of.
func TestFileReceiver_MirrorBlocks(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network, _ string) {
		for _, kind := range []string{"c", "e"} {
			for _, how := range []string{"read", "closed", "Stop, then read", "Reset", "Close"} {
				t.Run(kind+", "+how, func(t *testing.T) {
					r := new(FileReceiver)
					cfg := Config{SendBuffer: 1, RecvBuffer: 1 << 16, CloseTimeout: 200 * time.Millisecond}
					x := newCopyRig(t, network, cfg, r, true, kind)
					content := letters(2 << 20)
					var wg sync.WaitGroup
					wg.Go(func() {
						io.WriteString(x.client, content)
						x.client.(closeWriter).CloseWrite()
						io.Copy(io.Discard, x.client)
					})
					s := x.sinks[0]
					x.until("a reception that is held up", func() bool {
						return r.s != nil && !r.busy && r.written() > 0 && (r.held > 0 || !r.mirrors.take())
					})
					before := r.written()
					whole := true
					switch how {
					case "Stop, then read":
						_ = x.ch.Loop().Execute(r.Stop)
						whole = false
					case "closed":
						s.nc.Close()
					case "Reset":
						x.ch.Reset()
						whole = false
					case "Close":
						x.ch.Close()
						whole = false
					}
					if how != "closed" && how != "Close" {
						wg.Go(func() {
							got, err := io.ReadAll(s.nc)
							if whole != (string(got) == content) || !strings.HasPrefix(content, string(got)) || err != nil {
								t.Errorf("mirror: got %d bytes, %v", len(got), err)
							}
						})
					}
					e := await(t, x.ended, "the end")
					file := must(os.ReadFile(x.path))
					if int64(len(file)) != e.bytes || e.bytes < before || !strings.HasPrefix(content, string(file)) || whole != (string(file) == content) {
						t.Errorf("file: got %d bytes, told of %d, %d before", len(file), e.bytes, before)
					}
					if closes := how == "Reset" || how == "Close"; closes != errors.Is(e.err, pipeline.ErrClosed) || !closes && e.err != nil {
						t.Errorf("got %v", e.err)
					}
					if m := await(t, s.end, "the mirror's end"); (m.err != nil) != (how == "closed") {
						t.Errorf("mirror: got %v", m.err)
					}
					x.client.Close()
					wg.Wait()
				})
			}
		}
	})
}

// A mirror's file that is full, or cannot be written at all, ends its mirror, and the
// reception does not notice; a file that is full ends the reception, and its mirrors
// without an error.
func TestFileReceiver_MirrorFileFails(t *testing.T) {
	content := letters(3 << 20)
	for name, flags := range map[string]int{"full": os.O_WRONLY, "for reading": os.O_RDONLY, "for appending": os.O_WRONLY | os.O_APPEND} {
		t.Run(name, func(t *testing.T) {
			path := "/dev/full"
			if flags != os.O_WRONLY {
				f := tempFile(t, "")
				f.Close()
				path = f.Name()
			}
			bad := must(os.OpenFile(path, flags, 0))
			defer bad.Close()
			end := make(chan mirrorEnd, 2)
			r := &FileReceiver{Mirrors: []Mirror{{File: bad, Block: true, Ended: func(n int64, err error) { end <- mirrorEnd{n, err} }}}}
			x := newCopyRig(t, "tcp", Config{}, r, true, "")
			if got, want := upload(t, x.client, []byte(content)), fmt.Sprint(len(content), " <nil>"); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if e := await(t, end, "the mirror's end"); e.err == nil || e.bytes != 0 {
				t.Errorf("mirror: got %d bytes, %v; want none and an error", e.bytes, e.err)
			}
			if got := must(os.ReadFile(x.path)); string(got) != content {
				t.Errorf("file: got %d bytes, want %d", len(got), len(content))
			}
		})
	}
	t.Run("the file itself", func(t *testing.T) {
		r := new(FileReceiver)
		end := make(chan mirrorEnd, 2)
		path := filepath.Join(t.TempDir(), "mirror")
		file := must(os.Create(path))
		defer file.Close()
		r.Mirrors = []Mirror{{File: file, Block: true, Ended: func(n int64, err error) { end <- mirrorEnd{n, err} }}}
		l := serveFiler(t, "tcp", Config{}, func() *filer { return &filer{FileReceiver: r, path: "/dev/full", length: -1} })
		if answer := upload(t, dialNet(t, l), []byte(content)); !strings.Contains(answer, syscall.ENOSPC.Error()) {
			t.Errorf("got %q, want %v", answer, syscall.ENOSPC)
		}
		e := await(t, end, "the mirror's end")
		got := must(os.ReadFile(path))
		if e.err != nil || int64(len(got)) != e.bytes || !strings.HasPrefix(content, string(got)) {
			t.Errorf("mirror: got %d bytes, told of %d, %v", len(got), e.bytes, e.err)
		}
	})
}

// While a mirror's disk is slow nobody else on the loop notices.
func TestFileReceiver_MirrorSlowDisk(t *testing.T) {
	for _, block := range []bool{false, true} {
		t.Run(fmt.Sprintf("blocks %v", block), func(t *testing.T) {
			file := must(os.Create(filepath.Join(t.TempDir(), "mirror")))
			defer file.Close()
			slow := &slowFile{storage: must(newDiskFile(file)), held: new(atomic.Int32), entered: make(chan struct{}), released: make(chan struct{})}
			end := make(chan mirrorEnd, 2)
			r := &FileReceiver{Mirrors: []Mirror{{storage: slow, Block: block, Ended: func(n int64, err error) { end <- mirrorEnd{n, err} }}}}
			x := newCopyRig(t, "tcp", Config{RecvBuffer: 1 << 16}, r, true, "")
			others := serve(t, &Server{Group: x.ch.Loop().Group(), Init: with(echo())}, "tcp", anyAddr(t, "tcp"))
			content := letters(8 << 20)
			answer := make(chan string, 1)
			go func() { answer <- upload(t, x.client, []byte(content)) }()
			await(t, slow.entered, "the first write")
			other := dialNet(t, others)
			for range 20 {
				roundTrip(t, other)
			}
			if !block { // the file does not wait
				await(t, x.ended, "the end")
			} else {
				x.until("a reception that is held up", func() bool { return !r.busy && (r.held > 0 || !r.mirrors.take()) })
			}
			close(slow.released)
			if got, want := await(t, answer, "the answer"), fmt.Sprint(len(content), " <nil>"); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			e := await(t, end, "the mirror's end")
			got := must(os.ReadFile(file.Name()))
			if errors.Is(e.err, ErrMirrorBehind) == block || int64(len(got)) != e.bytes || block && string(got) != content || !strings.HasPrefix(content, string(got)) {
				t.Errorf("mirror: got %d bytes, told of %d, %v", len(got), e.bytes, e.err)
			}
		})
	}
}
