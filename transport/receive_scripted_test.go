//go:build linux

package transport

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// spliceSocket is a scriptSocket whose bytes can go through a pipe, into which they come
// as reads would bring them.
type spliceSocket struct{ scriptSocket }

func (s spliceSocket) spliceIn(pipe, n int) (int, error) {
	k := s.script
	k.calls++
	if k.closes > 0 {
		k.t.Error("splice after close")
	}
	if len(k.in) == 0 {
		return 0, sys.ErrAgain
	}
	step := &k.in[0]
	if step.err != nil || step.eof {
		err := step.err
		k.in = k.in[1:]
		return 0, err
	}
	n, err := sys.Write(pipe, []byte(step.data[:min(len(step.data), n)]))
	if step.data = step.data[n:]; step.data == "" {
		k.in = k.in[1:]
	}
	return n, err
}

func (s spliceSocket) spliceOut(int, int) (int, error) { panic("not sent") }

// scriptFile is a file that does what a test says: each splice and each write takes what
// the next step allows, then everything.
type scriptFile struct {
	content   []byte
	at        int64 // of content in the file
	take      []takeStep
	before    func() // each splice and write
	noSplice  bool
	allocated int64
	allocErr  error
	useErr    error
	syncErr   error
	synced    []int // length of content at each sync
}

func (f *scriptFile) use(g func()) error {
	if f.useErr != nil {
		return f.useErr
	}
	g()
	return nil
}

func (f *scriptFile) name() string { return "the file" }

func (f *scriptFile) next(off int64, n int) (int, error) {
	if f.before != nil {
		f.before()
	}
	if want := f.at + int64(len(f.content)); off != want {
		return 0, fmt.Errorf("written at %d, want %d", off, want)
	}
	if len(f.take) == 0 {
		return n, nil
	}
	s := f.take[0]
	f.take = f.take[1:]
	return min(n, s.n), s.err
}

func (f *scriptFile) splice(pipe int, off int64, n int) (int, error) {
	if f.noSplice {
		return 0, os.NewSyscallError("splice", syscall.EINVAL)
	}
	n, err := f.next(off, n)
	if err != nil {
		return 0, err
	}
	p := make([]byte, n)
	n, err = sys.Read(pipe, p)
	f.content = append(f.content, p[:n]...)
	return n, err
}

func (f *scriptFile) write(p []byte, off int64) (int, error) {
	n, err := f.next(off, len(p))
	if err != nil {
		return 0, err
	}
	f.content = append(f.content, p[:n]...)
	return n, nil
}

func (f *scriptFile) allocate(off, n int64) error {
	f.allocated = n
	return f.allocErr
}

func (f *scriptFile) sync() error {
	f.synced = append(f.synced, len(f.content))
	return f.syncErr
}

// receiveWay is one of the ways in which bytes can go.
type receiveWay struct {
	name             string
	socket, file, by bool // can splice; is told to copy
}

var receiveWays = []receiveWay{
	{name: "splice", socket: true, file: true},
	{name: "told to copy", socket: true, file: true, by: true},
	{name: "socket without splice", file: true},
	{name: "file without splice", socket: true},
}

// fileRig is a rig that receives into a scripted file.
type fileRig struct {
	*rig
	file  *scriptFile
	r     FileReceiver
	told  int
	n     int64
	err   error
	first *pipeline.Context
}

func newFileRig(t *testing.T, way receiveWay, cfg rigConfig) *fileRig {
	t.Helper()
	r := &fileRig{rig: newRig(t, cfg, new(writer)), file: &scriptFile{noSplice: !way.file}}
	if way.socket {
		r.sock = spliceSocket{scriptSocket{r.k}}
	}
	r.r.copies = way.by
	r.first = pipeline.Find[*writer](r.Pipeline())
	r.log = nil
	t.Cleanup(func() {
		if r.r.s != nil && (r.told != 1 || r.n != int64(len(r.file.content))) {
			t.Errorf("then: called %d times, with %d bytes; want once, with %d", r.told, r.n, len(r.file.content))
		}
		if n := piped.Load(); n != 0 {
			t.Errorf("got %d bytes in pipes, want 0", n)
		}
	})
	return r
}

// start starts the receiver.
func (r *fileRig) start(length int64) error {
	var err error
	r.do(func() {
		err = r.r.start(r.first, r.file, length, func(n int64, err error) {
			r.told++
			r.n, r.err = n, err
			r.log = append(r.log, "then")
		})
	})
	return err
}

func (r *fileRig) want(content string, target error) {
	r.t.Helper()
	r.m.RunUntilIdle()
	if got := string(r.file.content); got != content {
		r.t.Errorf("file: got %d bytes, want %d, or they differ", len(got), len(content))
	}
	if r.told != 1 || !errors.Is(r.err, target) || target == nil && r.err != nil {
		r.t.Errorf("then: called %d times, with %v; want once, with %v", r.told, r.err, target)
	}
}

func eachWay(t *testing.T, f func(t *testing.T, way receiveWay)) {
	for _, way := range receiveWays {
		t.Run(way.name, func(t *testing.T) { f(t, way) })
	}
}

// However little the file takes at a time, and whatever pieces the bytes come in, all of
// them are in it, in order.
func TestFileReceiver_ShortWrites(t *testing.T) {
	content := letters(700)
	eachWay(t, func(t *testing.T, way receiveWay) {
		for step := 1; step < len(content); step += 1 + step/20 {
			r := newFileRig(t, way, rigConfig{})
			r.r.Offset, r.file.at = 77, 77
			r.r.First = pooled(content[:13])
			for range len(content)/step + 20 {
				r.file.take = append(r.file.take, takeStep{n: step})
			}
			if err := r.start(-1); err != nil {
				t.Fatal(err)
			}
			for rest := content[13:]; rest != ""; {
				n := min(len(rest), 3*step)
				r.readable(readStep{data: rest[:n]})
				rest = rest[n:]
			}
			r.readable(readStep{eof: true})
			r.want(content, nil)
			if s, c := r.r.Stats(), r.m.Loop().Counters(); int64(c.BytesFiled) != s.Spliced || int64(c.BytesStored) != s.Copied {
				t.Errorf("step %d: got %d bytes filed and %d stored in the counters, want %d and %d", step, c.BytesFiled, c.BytesStored, s.Spliced, s.Copied)
			}
			want := route{PathSplice, whyBothPipes}
			if way.by || !way.socket || !way.file {
				want = route{PathCopy, whyNoPipes}
			}
			if got := r.r.Explain(); got != want.explain() {
				t.Errorf("step %d: got %v, want %v", step, got, want.explain())
			}
			s := r.r.Stats()
			if s.Copied+s.Spliced != int64(len(content)) || (s.Copied == 13) != (way.socket && way.file && !way.by) {
				t.Errorf("step %d: got %+v of %d bytes", step, s, len(content))
			}
		}
	})
}

// When the file fails after any number of bytes, those are counted and no others; the
// channel goes on.
func TestFileReceiver_FileFails(t *testing.T) {
	content := letters(60)
	eachWay(t, func(t *testing.T, way receiveWay) {
		for full := range len(content) {
			for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EFBIG} {
				r := newFileRig(t, way, rigConfig{})
				r.r.First = pooled(content[:7])
				r.file.take = []takeStep{{n: full}}
				if full < 7 {
					r.file.take = []takeStep{{n: full + 1}}
				}
				r.file.take = append(r.file.take, takeStep{err: os.NewSyscallError("write", errno)})
				if err := r.start(-1); err != nil {
					t.Fatal(err)
				}
				r.readable(readStep{data: content[7:]})
				r.want(content[:min(len(r.file.content), len(content)-1)], errno)
				var path *os.PathError
				if !errors.As(r.err, &path) || path.Path != "the file" {
					t.Errorf("got %v, want a *os.PathError of the file", r.err)
				}
				if r.at != streamOpen {
					t.Error("the channel has closed")
				}
				r.log = nil
				r.readable(readStep{data: "to the handlers"})
				r.wantLog("read to the handlers", "complete")
				var again scriptFile
				r.do(func() {
					must1(t, new(FileReceiver).start(r.first, &again, 5, func(int64, error) {}))
				})
				r.readable(readStep{data: "again"})
				if got := string(again.content); got != "again" {
					t.Errorf("next file: got %q, want again", got)
				}
			}
		}
	})
}

// What comes behind the length, or after Stop, goes to the handlers, and nothing is lost.
func TestFileReceiver_Length(t *testing.T) {
	eachWay(t, func(t *testing.T, way receiveWay) {
		for length := range 12 {
			r := newFileRig(t, way, rigConfig{})
			r.k.in = []readStep{{data: "0123"}, {data: "4567"}, {data: "89abcdef"}}
			if err := r.start(int64(length)); err != nil {
				t.Fatal(err)
			}
			r.ready(eventloop.EventRead)
			r.want("0123456789abcdef"[:length], nil)
			for range 3 {
				r.ready(eventloop.EventRead)
			}
			got := strings.ReplaceAll(strings.Join(r.log, ""), "complete", "")
			if want := "then" + strings.ReplaceAll("read 0123read 4567read 89abcdef", "read ", ""); strings.ReplaceAll(got, "read ", "") != want[:4]+want[4+length:] {
				t.Errorf("length %d: got %s", length, got)
			}
		}
	})
}

// The end of the stream ends for the handlers when then has returned, which may still
// write; too early an end is an error.
func TestFileReceiver_End(t *testing.T) {
	for _, half := range []bool{false, true} {
		for _, length := range []int64{-1, 3, 10} {
			t.Run(fmt.Sprintf("half-close %v, length %d", half, length), func(t *testing.T) {
				r := newFileRig(t, receiveWays[0], rigConfig{Config: Config{HalfClose: half}})
				r.r.Sync = true
				r.do(func() {
					if err := r.r.start(r.first, r.file, length, func(n int64, err error) {
						r.told, r.n, r.err = r.told+1, n, err
						r.log = append(r.log, "then")
						r.first.Write("OK")
					}); err != nil {
						t.Fatal(err)
					}
				})
				r.readable(readStep{data: "abc"}, readStep{eof: true})
				var want error
				if length == 10 {
					want = io.ErrUnexpectedEOF
				}
				r.want("abc", want)
				r.ready(eventloop.EventRead)
				r.wantOut("OK")
				if !slices.Equal(r.file.synced, []int{3}) {
					t.Errorf("syncs: got %v, want one at 3", r.file.synced)
				}
				end := []string{"then", "inactive", "unregistered"}
				if half {
					end = []string{"then", "event pipeline.InputShutdown"}
				}
				if length == 3 { // the end is read by the channel
					end = slices.Insert(end, 1, "complete")
				}
				r.wantLog(end...)
				if half {
					r.do(r.first.Close)
					r.m.RunUntilIdle()
				}
			})
		}
	}
}

// Another file can be begun by the then of the one before, also at the end of the stream.
func TestFileReceiver_OneAfterAnother(t *testing.T) {
	r := newFileRig(t, receiveWays[0], rigConfig{Config: Config{HalfClose: true}})
	r.k.in = []readStep{{data: "0123456789"}, {eof: true}}
	var second, third FileReceiver
	var files [2]scriptFile
	r.do(func() {
		must1(t, r.r.start(r.first, r.file, 4, func(n int64, err error) {
			r.told, r.n, r.err = r.told+1, n, err
			must1(t, second.start(r.first, &files[0], -1, func(int64, error) {
				must1(t, third.start(r.first, &files[1], -1, func(n int64, err error) {
					r.log = append(r.log, fmt.Sprint("third ", n, err))
				}))
			}))
		}))
	})
	r.ready(eventloop.EventRead)
	r.want("0123", nil)
	if got := string(files[0].content) + "|" + string(files[1].content); got != "456789|" {
		t.Errorf("got %s, want 456789|", got)
	}
	r.wantLog("third 0 <nil>", "event pipeline.InputShutdown")
}

func must1(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// Whenever the channel is closed, in whatever way, or the reception stopped: what was
// taken from the socket is in the file, then is called once, before HandleInactive, and
// nobody else reads meanwhile.
func TestFileReceiver_ClosedAnywhere(t *testing.T) {
	content := letters(40)
	how := map[string]func(r *fileRig){
		"Close":     func(r *fileRig) { r.stream.Close() },
		"Reset":     func(r *fileRig) { r.stream.Reset() },
		"Stop":      func(r *fileRig) { _ = r.Loop().Execute(r.r.Stop) },
		"drain":     func(r *fileRig) { _ = r.Loop().Execute(func() { (*drainTask)(r.stream).Run() }) },
		"broken":    func(r *fileRig) { r.k.in = []readStep{{err: os.NewSyscallError("read", syscall.ECONNRESET)}} },
		"loop ends": func(r *fileRig) { r.file.before = nil; _ = r.Loop().Execute(r.stream.CloseIO) },
	}
	for name, f := range how {
		t.Run(name, func(t *testing.T) {
			eachWay(t, func(t *testing.T, way receiveWay) {
				for at := range 12 {
					r := newFileRig(t, way, rigConfig{})
					r.k.left = at%2 == 0
					for i := 0; i < len(content); i += 8 {
						r.k.in = append(r.k.in, readStep{data: content[i : i+8]})
					}
					for range 10 {
						r.file.take = append(r.file.take, takeStep{n: 5})
					}
					calls := 0
					r.file.before = func() {
						if calls++; calls == at {
							f(r)
							if name != "drain" && name != "broken" {
								r.r.halt.Store(true) // as the loop does, which is not elsewhere here
							}
						}
					}
					if at == 0 {
						f(r)
					}
					var err error
					if err = r.start(-1); err == nil {
						for range 3 {
							r.ready(eventloop.EventRead)
						}
						if calls < at { // it was over before
							f(r)
						}
						r.readable(readStep{eof: true})
						r.m.Advance(2 * defaultCloseTimeout)
					} else if at > 0 || !errors.Is(err, pipeline.ErrClosed) {
						t.Fatalf("at %d: %v", at, err)
					}
					if err == nil {
						if !strings.HasPrefix(content, string(r.file.content)) || len(r.file.content)%8 != 0 {
							t.Errorf("at %d: got %q, want whole pieces of %q", at, r.file.content, content)
						}
						if r.told != 1 {
							t.Errorf("at %d: then called %d times, want once", at, r.told)
						}
						if i, j := slices.Index(r.log, "then"), slices.Index(r.log, "inactive"); j >= 0 && i > j {
							t.Errorf("at %d: %v", at, r.log)
						}
						wantErr := name != "Stop" && name != "drain"
						if wantErr != (r.err != nil) || wantErr && !errors.Is(r.err, pipeline.ErrClosed) {
							t.Errorf("at %d: got %v after %d bytes", at, r.err, r.n)
						}
					}
				}
			})
		})
	}
}

// What is to be on the disk is so when then is called, and then only.
func TestFileReceiver_Sync(t *testing.T) {
	r := newFileRig(t, receiveWays[0], rigConfig{})
	r.r.Sync = true
	must1(t, r.start(-1))
	r.readable(readStep{data: "abc"})
	if len(r.file.synced) > 0 {
		t.Error("synced before the end")
	}
	r.do(r.r.Stop)
	r.want("abc", nil)
	r.do(r.r.Stop)
	if !slices.Equal(r.file.synced, []int{3}) {
		t.Errorf("syncs: got %v, want one at 3", r.file.synced)
	}

	r = newFileRig(t, receiveWays[0], rigConfig{})
	r.r.Sync, r.file.syncErr = true, os.NewSyscallError("fdatasync", syscall.EIO)
	must1(t, r.start(0))
	r.want("", syscall.EIO)
}

// Room that there is not is known before anything is received.
func TestFileReceiver_Preallocate(t *testing.T) {
	r := newFileRig(t, receiveWays[0], rigConfig{})
	r.r.Preallocate, r.file.allocErr = 1000, os.NewSyscallError("fallocate", syscall.ENOSPC)
	r.k.in = []readStep{{data: "abc"}}
	must1(t, r.start(-1))
	r.want("", syscall.ENOSPC)
	r.ready(eventloop.EventRead)
	r.wantLog("then", "read abc", "complete")

	r = newFileRig(t, receiveWays[0], rigConfig{})
	r.r.Preallocate = 1000
	must1(t, r.start(3))
	r.readable(readStep{data: "abc"})
	r.want("abc", nil)
	if r.file.allocated != 1000 {
		t.Errorf("allocated: got %d, want 1000", r.file.allocated)
	}
}

// A file that its owner has closed too early is an error.
func TestFileReceiver_FileClosed(t *testing.T) {
	r := newFileRig(t, receiveWays[0], rigConfig{})
	must1(t, r.start(-1))
	r.file.useErr = os.ErrClosed
	r.readable(readStep{data: "abc"})
	r.want("", os.ErrClosed)
}

// Progress is told after each piece, and before then.
func TestFileReceiver_Progress(t *testing.T) {
	r := newFileRig(t, receiveWays[0], rigConfig{})
	r.r.Progress = func(n int64) { r.log = append(r.log, fmt.Sprint("progress ", n)) }
	must1(t, r.start(6))
	r.readable(readStep{data: "abc"})
	r.readable(readStep{data: "defghi"})
	r.want("abcdef", nil)
	r.ready(eventloop.EventRead)
	r.wantLog("progress 3", "progress 6", "then", "read ghi", "complete")
}

// A handler that panics in then loses its channel, as anywhere else.
func TestFileReceiver_ThenPanics(t *testing.T) {
	r := newFileRig(t, receiveWays[0], rigConfig{})
	r.do(func() {
		must1(t, r.r.start(r.first, r.file, 0, func(int64, error) { r.told++; panic("in then") }))
	})
	r.m.RunUntilIdle()
	if r.at != streamClosed || len(r.log) != 3 || !strings.Contains(r.log[0], "in then") {
		t.Errorf("got %v", r.log)
	}
}

// A file that panics is an error, and the channel goes on.
func TestFileReceiver_FilePanics(t *testing.T) {
	r := newFileRig(t, receiveWays[0], rigConfig{})
	must1(t, r.start(-1))
	r.file.before = func() { panic("disk on fire") }
	r.m.Enter(func() { r.k.in = []readStep{{data: "abc"}} })
	r.ready(eventloop.EventRead)
	if r.told != 1 || r.err == nil || !strings.Contains(r.err.Error(), "disk on fire") {
		t.Errorf("got %v", r.err)
	}
}

// Memory that is short pauses a reception that needs it.
func TestFileReceiver_Starved(t *testing.T) {
	pool, err := buffer.NewPool(buffer.PoolConfig{Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must1(t, pool.Close()) })
	r := newFileRig(t, receiveWays[1], rigConfig{Config: Config{Allocator: pool}})
	all := []*buffer.Buf{}
	for b, err := pool.TryAlloc(100 << 10); err == nil; b, err = pool.TryAlloc(100 << 10) {
		all = append(all, b)
	}
	must1(t, r.start(-1))
	r.readable(readStep{data: "abc"})
	if len(r.file.content) > 0 || r.interest() != 0 {
		t.Errorf("got %d bytes, waiting for %v; want none, for nothing", len(r.file.content), r.interest())
	}
	for _, b := range all {
		b.Release()
	}
	r.m.Advance(starvedRetry)
	r.readable(readStep{eof: true})
	r.want("abc", nil)
}

func TestFileReceiver_Refused(t *testing.T) {
	file := tempFile(t, "content")
	defer file.Close()
	open := func(flags int) *os.File {
		f, err := os.OpenFile(file.Name(), flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	closed := open(os.O_WRONLY)
	closed.Close()
	tests := []struct {
		name   string
		file   *os.File
		r      *FileReceiver
		length int64
		want   error
		says   string
	}{
		{"for reading", open(os.O_RDONLY), &FileReceiver{}, -1, ErrCannotReceive, "not opened for writing"},
		{"for appending", open(os.O_WRONLY | os.O_APPEND), &FileReceiver{}, -1, ErrCannotReceive, "O_APPEND"},
		{"closed", closed, &FileReceiver{}, -1, os.ErrClosed, "closed"},
		{"no file", nil, &FileReceiver{}, -1, os.ErrInvalid, "invalid"},
		{"negative offset", file, &FileReceiver{Offset: -1}, -1, ErrCannotReceive, "Offset -1"},
		{"negative room", file, &FileReceiver{Preallocate: -1}, -1, ErrCannotReceive, "Preallocate -1"},
		{"too long", file, &FileReceiver{Offset: 2}, 1<<63 - 2, ErrCannotReceive, "largest offset"},
		{"too much already", file, &FileReceiver{First: pooled("abc")}, 2, ErrCannotReceive, "First"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newFileRig(t, receiveWays[0], rigConfig{})
			r.do(func() {
				err := tt.r.Start(r.first, tt.file, tt.length, func(int64, error) { t.Error("then called") })
				if !errors.Is(err, tt.want) || err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("got %v, want %v that says %q", err, tt.want, tt.says)
				}
			})
			tt.r.Stop()
			r.readable(readStep{data: "abc"})
			r.wantLog("read abc", "complete")
		})
	}
	r := newFileRig(t, receiveWays[0], rigConfig{})
	must1(t, r.start(-1))
	r.do(func() {
		if err := new(FileReceiver).Start(r.first, file, -1, nil); !errors.Is(err, ErrReceiving) {
			t.Errorf("second: got %v, want %v", err, ErrReceiving)
		}
		if err := new(Relay).Start(r.first, r.stream); !errors.Is(err, ErrReceiving) && !errors.Is(err, ErrCannotRelay) {
			t.Errorf("relay: got %v", err)
		}
	})
	r.do(func() { r.stream.Reset() })
	r.m.RunUntilIdle()
	r.do(func() {
		if err := (&FileReceiver{First: pooled("x")}).Start(r.first, file, -1, nil); !errors.Is(err, pipeline.ErrClosed) {
			t.Errorf("closed: got %v, want %v", err, pipeline.ErrClosed)
		}
	})
}
