package transport

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// script is a socket that does what a test says. Reads give one step each, then
// ErrAgain; writes and sendfiles take what the next step allows, then everything.
type script struct {
	t     *testing.T
	in    []readStep
	take  []takeStep
	cold  bool // files are not in memory
	left  bool // there are bytes in the kernel when the channel closes
	calls int  // of everything
	more  []bool

	out      bytes.Buffer
	shut     bool
	resets   int
	closes   int
	pending  error // of socketError
	sendfile func()
}

type readStep struct {
	data string
	err  error
	eof  bool
}

type takeStep struct {
	n   int
	err error
}

func (k *script) read(b *buffer.Buf, max int) (int, error) {
	k.calls++
	if k.closes > 0 {
		k.t.Error("read after close")
	}
	if len(k.in) == 0 {
		return 0, sys.ErrAgain
	}
	s := k.in[0]
	if s.err != nil || s.eof {
		k.in = k.in[1:]
		return 0, s.err
	}
	n := min(len(s.data), max)
	b.WriteString(s.data[:n])
	if k.in[0].data = s.data[n:]; k.in[0].data == "" {
		k.in = k.in[1:]
	}
	return n, nil
}

// next returns how much of n bytes the next call takes.
func (k *script) next(n int) (int, error) {
	k.calls++
	if k.closes > 0 {
		k.t.Error("write after close")
	}
	if k.shut {
		k.t.Error("write after shutdown")
	}
	if len(k.take) == 0 {
		return n, nil
	}
	s := k.take[0]
	k.take = k.take[1:]
	if s.err != nil {
		return 0, s.err
	}
	return min(n, s.n), nil
}

func (k *script) write(parts []sys.Iovec, _, more bool) (int, error) {
	total := 0
	for _, p := range parts {
		total += int(p.Len)
	}
	if total == 0 {
		k.t.Error("empty write")
	}
	n, err := k.next(total)
	if err != nil {
		return 0, err
	}
	k.more = append(k.more, more)
	for left, i := n, 0; left > 0; i++ {
		p := partBytes(parts[i])
		p = p[:min(len(p), left)]
		k.out.Write(p)
		left -= len(p)
	}
	return n, nil
}

func (k *script) sendfileAt(file int, off int64, n int) (int, error) {
	if k.sendfile != nil {
		k.sendfile()
	}
	p := make([]byte, n)
	n, err := sys.ReadFile(file, p, off)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, nil
	}
	n, err = k.next(n)
	if err != nil {
		return 0, err
	}
	k.out.Write(p[:n])
	return n, nil
}

func (k *script) cached(int, int64) (bool, error) { return !k.cold, nil }
func (k *script) socketError() error              { return k.pending }
func (k *script) unfinished() bool                { return k.left }
func (k *script) shutdownWrite() error            { k.shut = true; return nil }
func (k *script) reset()                          { k.resets++ }
func (k *script) close()                          { k.closes++ }

// scriptSocket is a script with the methods of a socket.
type scriptSocket struct{ *script }

func (s scriptSocket) sendfile(file int, off int64, n int) (int, error) {
	return s.sendfileAt(file, off, n)
}

const scriptFD = 1000

// rig is a stream channel on a scripted socket and a loop on virtual time.
type rig struct {
	*stream
	k    *script
	m    *eventloop.Manual
	logs *observer.ObservedLogs
	t    *testing.T
	log  []string // of events
}

type rigConfig struct {
	Config
	dialed bool
}

// recorder is the last handler of a rig: it writes down what happens.
type recorder struct {
	r *rig
}

func (h *recorder) note(format string, args ...any) error {
	h.r.log = append(h.r.log, fmt.Sprintf(format, args...))
	return nil
}
func (h *recorder) HandleActive(*pipeline.Context) error       { return h.note("active") }
func (h *recorder) HandleInactive(*pipeline.Context) error     { return h.note("inactive") }
func (h *recorder) HandleUnregistered(*pipeline.Context) error { return h.note("unregistered") }
func (h *recorder) HandleReadComplete(*pipeline.Context) error { return h.note("complete") }
func (h *recorder) HandleWritability(c *pipeline.Context) error {
	return h.note("writable %v", c.Channel().Writable())
}
func (h *recorder) HandleError(_ *pipeline.Context, err error) { _ = h.note("error %v", err) }
func (h *recorder) HandleEvent(_ *pipeline.Context, ev any) error {
	return h.note("event %T", ev)
}
func (h *recorder) HandleRead(_ *pipeline.Context, msg any) error {
	b := msg.(*buffer.Buf)
	defer b.Release()
	if b.Len() > 40 {
		return h.note("read %d bytes", b.Len())
	}
	return h.note("read %s", b.ReadString(b.Len()))
}

// newRig starts a channel whose handlers come before a recorder.
func newRig(t *testing.T, cfg rigConfig, handlers ...any) *rig {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	cfg.Logger = zap.New(core)
	c, err := cfg.check()
	if err != nil {
		t.Fatal(err)
	}
	m := eventloop.NewManual()
	r := &rig{k: &script{t: t}, m: m, logs: logs, t: t}
	r.stream = newStream(&c, m.Loop(), nil, scriptFD)
	if !cfg.dialed {
		var srv Server
		srv.setUp()
		r.stream.srv = srv.s
		srv.s.add(r.stream)
	}
	r.stream.sock = scriptSocket{r.k}
	r.do(func() {
		r.start(func(ch pipeline.Channel) error {
			return ch.Pipeline().Add(append(handlers, &recorder{r: r})...)
		})
	})
	t.Cleanup(func() {
		before := r.k.closes
		m.Close()
		if before > 1 || r.k.closes != 1 {
			t.Errorf("socket closed %d times, want once", r.k.closes)
		}
	})
	return r
}

// do runs f on the loop, then a turn.
func (r *rig) do(f func()) {
	r.m.Enter(f)
	r.m.Turn()
}

// ready makes ev ready and runs what follows.
func (r *rig) ready(ev eventloop.Event) {
	r.m.Ready(scriptFD, ev)
	r.m.RunUntilIdle()
}

// readable gives the socket input and makes it ready.
func (r *rig) readable(steps ...readStep) {
	r.k.in = append(r.k.in, steps...)
	r.ready(eventloop.EventRead)
}

func (r *rig) wantLog(want ...string) {
	r.t.Helper()
	if !slices.Equal(r.log, want) {
		r.t.Errorf("events:\n got %s\nwant %s", strings.Join(r.log, " | "), strings.Join(want, " | "))
	}
	r.log = nil
}

func (r *rig) wantOut(want string) {
	r.t.Helper()
	if got := r.k.out.String(); got != want {
		if len(got)+len(want) > 200 {
			r.t.Errorf("sent: got %d bytes, want %d, or they differ", len(got), len(want))
		} else {
			r.t.Errorf("sent: got %q, want %q", got, want)
		}
	}
}

func (r *rig) interest() eventloop.Event { return r.reg.Interest() }

const reads = eventloop.EventRead | eventloop.EventReadHangup

func letters(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = 'a' + byte(i*7+i/251)%26
	}
	return string(b)
}

func pooled(s string) *buffer.Buf {
	b := buffer.Default().Alloc(len(s))
	b.WriteString(s)
	return b
}

// tempFile returns an open file with the content.
func tempFile(t testing.TB, content string) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Whatever the kernel takes at a time, the bytes of buffers and regions leave in
// order, once, and every completion comes when its message has left.
func TestShortWrites(t *testing.T) {
	content := letters(700)
	for step := 1; step < 120; step++ {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			r := newRig(t, rigConfig{})
			var want string
			var done []int
			r.do(func() {
				for i, n := range []int{3, 0, 90, 1100, 5, 1, 2000, 7, 0, 64} {
					s := letters(n + i)[i:]
					want += s
					r.WriteThen(pooled(s), func(err error) {
						if err != nil {
							t.Errorf("message %d: %v", i, err)
						}
						done = append(done, i)
					})
					if i%3 == 0 {
						r.Write(buffer.NewFileRegion(tempFile(t, content), int64(i), 300))
						want += content[i : i+300]
					}
				}
				for i := 0; i < len(want); i += step {
					r.k.take = append(r.k.take, takeStep{n: step})
				}
			})
			for i := 0; i < 10*len(want) && r.k.out.Len() < len(want); i++ {
				if r.interest()&eventloop.EventWrite == 0 {
					r.m.Turn()
					continue
				}
				r.ready(eventloop.EventWrite)
			}
			r.m.RunUntilIdle()
			r.wantOut(want)
			if want := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}; !slices.Equal(done, want) {
				t.Errorf("completions: got %v, want %v", done, want)
			}
			if r.out.charge != 0 || r.out.regions != 0 {
				t.Errorf("left in the queue: charge %d, %d regions", r.out.charge, r.out.regions)
			}
			if ev := r.interest(); ev != reads {
				t.Errorf("interest: got %v, want %v", ev, reads)
			}
		})
	}
}

// A completion comes when the last byte of its message has left, not before.
func TestCompletionPosition(t *testing.T) {
	r := newRig(t, rigConfig{})
	var sent []int
	r.do(func() {
		for range 4 {
			r.WriteThen(pooled("0123456789"), func(error) { sent = append(sent, r.k.out.Len()) })
		}
		r.k.take = []takeStep{{n: 9}, {n: 1}, {n: 15}, {n: 20}}
	})
	for range 4 {
		r.ready(eventloop.EventWrite)
	}
	if want := []int{10, 25, 40, 40}; !slices.Equal(sent, want) {
		t.Errorf("bytes sent at each completion: got %v, want %v", sent, want)
	}
}

func TestWriteErrors(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ECONNRESET, syscall.EPIPE, syscall.ENOBUFS, syscall.EFAULT} {
		t.Run(errno.Error(), func(t *testing.T) {
			r := newRig(t, rigConfig{})
			r.log = nil
			var errs []error
			r.do(func() {
				r.k.take = []takeStep{{n: 2}, {err: os.NewSyscallError("writev", errno)}}
				for range 3 {
					r.WriteThen(pooled("abc"), func(err error) { errs = append(errs, err) })
				}
				r.Write(buffer.NewFileRegion(tempFile(t, "content"), 0, 7))
			})
			r.ready(eventloop.EventWrite)
			r.wantLog("error transport: write: writev: "+errno.Error(), "inactive", "unregistered")
			if len(errs) != 3 {
				t.Fatalf("completions: got %d, want 3", len(errs))
			}
			for _, err := range errs {
				if !errors.Is(err, pipeline.ErrClosed) || !errors.Is(err, errno) {
					t.Errorf("completion: got %v, want ErrClosed that wraps %v", err, errno)
				}
			}
			var op *OpError
			if !errors.As(r.CloseReason(), &op) || op.Op != "write" {
				t.Errorf("close reason: got %v, want a write *OpError", r.CloseReason())
			}
		})
	}
}

func TestReadError(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	full := letters(64 << 10)
	r.readable(readStep{data: full}, readStep{err: os.NewSyscallError("read", syscall.ECONNRESET)})
	// What was read before the error is delivered, and the read is complete once.
	r.wantLog("read 65536 bytes", "complete",
		"error transport: read: read: connection reset by peer", "inactive", "unregistered")
}

// SEMANTICS 4.2, 4.3: reading ends with the first read that does not fill the
// buffer; with AutoRead off there is one read for each Read.
func TestManualRead(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{ManualRead: true}})
	r.log = nil
	r.readable(readStep{data: "one"}, readStep{data: "two"}, readStep{data: "three"})
	r.wantLog()
	if ev := r.interest(); ev != 0 {
		t.Errorf("interest before Read: got %v, want none", ev)
	}
	r.do(r.Read) // the socket is still ready
	r.wantLog("read one", "complete")
	if ev := r.interest(); ev != 0 {
		t.Errorf("interest after a read: got %v, want none", ev)
	}
	r.ready(eventloop.EventRead)
	r.wantLog()
	r.m.Enter(r.Read)
	r.do(r.Read) // two requests before the read are one
	r.ready(eventloop.EventRead)
	r.wantLog("read two", "complete")
	r.do(func() { r.SetAutoRead(true) })
	r.wantLog("read three", "complete")
	r.do(func() { r.SetAutoRead(false) })
	if ev := r.interest(); ev != 0 {
		t.Errorf("interest with AutoRead off: got %v, want none", ev)
	}
}

// A turn of reading ends after 16 reads or 1 MiB.
func TestReadTurnIsBounded(t *testing.T) {
	r := newRig(t, rigConfig{})
	for range 40 {
		r.k.in = append(r.k.in, readStep{data: letters(1 << 20)})
	}
	total := 40 << 20
	r.m.Ready(scriptFD, eventloop.EventRead)
	r.m.Turn()
	left := 0
	for _, s := range r.k.in {
		left += len(s.data)
	}
	if got := total - left; got > maxBytesPerTurn+recvSizes[len(recvSizes)-1] {
		t.Errorf("bytes read in one turn: got %d", got)
	}
}

func TestEOFCloses(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	r.do(func() {
		r.k.take = []takeStep{{n: 4}}
		r.Write(pooled("queued before"))
	})
	r.readable(readStep{data: "last"}, readStep{eof: true})
	r.ready(eventloop.EventRead | eventloop.EventReadHangup)
	r.wantLog("read last", "complete", "complete")
	if r.at != streamClosing {
		t.Fatalf("state: got %d, want closing until the queue has left", r.at)
	}
	r.ready(eventloop.EventWrite)
	r.wantOut("queued before")
	r.wantLog("inactive", "unregistered")
	if !errors.Is(r.CloseReason(), io.EOF) || !errors.Is(r.CloseReason(), pipeline.ErrClosed) {
		t.Errorf("close reason: got %v, want ErrClosed with io.EOF", r.CloseReason())
	}
}

func TestHalfClose(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{HalfClose: true}})
	r.log = nil
	r.readable(readStep{data: "a"}, readStep{eof: true})
	r.ready(eventloop.EventRead | eventloop.EventReadHangup)
	r.wantLog("read a", "complete", "complete", "event pipeline.InputShutdown")
	if ev := r.interest(); ev != 0 {
		t.Errorf("interest after the end of input: got %v, want none", ev)
	}
	calls := r.k.calls
	r.ready(eventloop.EventRead | eventloop.EventReadHangup)
	if r.k.calls != calls {
		t.Error("read after the end of input")
	}
	r.do(func() { r.Write(pooled("reply")) })
	r.do(r.CloseWrite)
	r.m.RunUntilIdle()
	r.wantOut("reply")
	r.wantLog("event pipeline.OutputShutdown", "inactive", "unregistered")
}

func TestCloseWrite(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	r.do(func() {
		r.k.take = []takeStep{{n: 1}}
		r.Write(pooled("before"))
		r.CloseWrite()
		r.WriteThen(pooled("after"), func(err error) {
			if !errors.Is(err, pipeline.ErrOutputShutdown) {
				t.Errorf("write after CloseWrite: got %v, want ErrOutputShutdown", err)
			}
		})
		r.Write(pooled("after"))
	})
	if r.k.shut {
		t.Error("sending side closed before the queue has left")
	}
	r.wantLog("error pipeline: sending side closed")
	r.ready(eventloop.EventWrite)
	r.wantOut("before")
	if !r.k.shut {
		t.Error("sending side still open")
	}
	r.wantLog("event pipeline.OutputShutdown")
	r.readable(readStep{data: "still reading"})
	r.wantLog("read still reading", "complete")
}

// Close lets the queue leave, reads nothing meanwhile, and gives up a peer that
// takes nothing, but not one that is slow.
func TestCloseLetsTheQueueLeave(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{CloseTimeout: time.Second}})
	r.log = nil
	var result []error
	r.do(func() {
		r.k.take = []takeStep{{n: 3}, {n: 3}, {n: 3}, {n: 3}}
		r.WriteThen(pooled("0123456789abcdefgh"), func(err error) { result = append(result, err) })
		r.Close()
		r.WriteThen(pooled("late"), func(err error) { result = append(result, err) })
	})
	if len(result) != 1 || !errors.Is(result[0], pipeline.ErrClosed) {
		t.Fatalf("write after Close: got %v, want ErrClosed", result)
	}
	if ev := r.interest(); ev != eventloop.EventWrite {
		t.Errorf("interest while closing: got %v, want write only", ev)
	}
	for range 3 {
		r.m.Advance(900 * time.Millisecond)
		r.ready(eventloop.EventWrite)
	}
	if r.at != streamClosing {
		t.Fatalf("state: got %d, want still closing: the peer is slow but alive", r.at)
	}
	r.m.Advance(2100 * time.Millisecond)
	r.m.RunUntilIdle()
	if !errors.Is(r.CloseReason(), ErrCloseTimeout) {
		t.Errorf("close reason: got %v, want ErrCloseTimeout", r.CloseReason())
	}
	if len(result) != 2 || !errors.Is(result[1], ErrCloseTimeout) {
		t.Errorf("queued write: got %v, want ErrCloseTimeout", result)
	}
	if r.k.resets != 1 {
		t.Errorf("resets: got %d, want 1", r.k.resets)
	}
	r.wantLog("inactive", "unregistered")
}

// A close with bytes in the kernel closes the sending side first and waits for the
// peer's end.
func TestLingeringClose(t *testing.T) {
	for _, end := range []string{"eof", "error", "timeout"} {
		t.Run(end, func(t *testing.T) {
			r := newRig(t, rigConfig{Config: Config{CloseTimeout: time.Second}})
			r.log = nil
			r.k.left = true
			r.do(func() { r.Write(pooled("bye")); r.Close() })
			r.wantOut("bye")
			if !r.k.shut || r.k.closes != 0 {
				t.Fatalf("shut %v, closes %d; want a closed sending side and an open socket", r.k.shut, r.k.closes)
			}
			r.readable(readStep{data: letters(100000)}, readStep{data: "x"})
			r.ready(eventloop.EventRead)
			r.wantLog()
			switch end {
			case "eof":
				r.readable(readStep{eof: true})
			case "error":
				r.readable(readStep{err: os.NewSyscallError("read", syscall.ECONNRESET)})
			case "timeout":
				r.m.Advance(time.Second)
				r.m.RunUntilIdle()
			}
			r.wantLog("inactive", "unregistered")
			if r.k.closes != 1 {
				t.Errorf("closes: got %d, want 1", r.k.closes)
			}
		})
	}
}

// A peer that has nothing to say is not waited for longer than it takes it to
// acknowledge what it was sent.
func TestLingeringEndsWithTheAcknowledgement(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{CloseTimeout: time.Hour}})
	r.k.left = true
	r.do(func() { r.Write(pooled("bye")); r.Close() })
	r.m.Advance(time.Minute)
	if r.k.closes != 0 {
		t.Fatalf("closes: got %d before the acknowledgement, want 0", r.k.closes)
	}
	r.k.left = false
	r.m.Advance(lingerCheck)
	if r.k.closes != 1 {
		t.Errorf("closes: got %d after it, want 1", r.k.closes)
	}
}

// Channels that linger look at the same moments, however far apart they were closed,
// and one whose peer has spoken does not look at all: it waits for the end.
func TestLingeringLooksSeldom(t *testing.T) {
	for _, heard := range []bool{false, true} {
		r := newRig(t, rigConfig{Config: Config{CloseTimeout: time.Minute}})
		r.m.Advance(lingerCheck / 4)
		r.k.left = true
		r.m.Turn() // the loop's clock is that of the turn
		r.do(r.Close)
		if heard {
			r.readable(readStep{data: "x"})
		}
		fired := func(d time.Duration) int {
			before := r.Loop().Metrics().TimersFired
			r.m.Advance(d)
			return int(r.Loop().Metrics().TimersFired - before)
		}
		if n := fired(lingerCheck*3/4 - 10); n != 0 {
			t.Errorf("heard %v: got %d looks before their time, want 0", heard, n)
		}
		if n := fired(10); n != 1 {
			t.Errorf("heard %v: got %d looks at their time, want 1", heard, n)
		}
		want := 100
		if heard {
			want = 0
		}
		if n := fired(100 * lingerCheck); n != want {
			t.Errorf("heard %v: got %d looks, want %d", heard, n, want)
		}
		r.m.Advance(time.Minute)
		if r.k.closes != 1 {
			t.Errorf("heard %v: still open after CloseTimeout", heard)
		}
	}
}

func TestReset(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	var result error
	r.do(func() {
		r.k.take = []takeStep{{n: 1}}
		r.WriteThen(pooled("dropped"), func(err error) { result = err })
		r.Flush()
		r.Reset()
	})
	r.m.RunUntilIdle()
	r.wantOut("d")
	if !errors.Is(result, pipeline.ErrReset) || r.k.resets != 1 {
		t.Errorf("got %v, %d resets; want ErrReset, 1", result, r.k.resets)
	}
	r.wantLog("inactive", "unregistered")
}

// An accepted channel that is unwritable stops reading by itself; a dialed one
// does not. A write that crosses the mark is flushed before it is judged.
func TestWaterMarks(t *testing.T) {
	for _, dialed := range []bool{false, true} {
		t.Run(fmt.Sprintf("dialed=%v", dialed), func(t *testing.T) {
			r := newRig(t, rigConfig{Config: Config{HighWater: 20000, LowWater: 8000}, dialed: dialed})
			r.log = nil
			r.do(func() { r.Write(pooled(letters(60000))) })
			r.wantLog()
			r.do(func() {
				r.k.take = []takeStep{{err: sys.ErrAgain}}
				r.Write(pooled(letters(60000)))
			})
			r.wantLog("writable false")
			want := eventloop.EventWrite
			if dialed {
				want |= reads
			}
			if ev := r.interest(); ev != want {
				t.Errorf("interest while unwritable: got %v, want %v", ev, want)
			}
			if r.BytesBeforeUnwritable() != 0 || r.BytesBeforeWritable() < 50000 {
				t.Errorf("got %d before unwritable, %d before writable", r.BytesBeforeUnwritable(), r.BytesBeforeWritable())
			}
			r.ready(eventloop.EventWrite)
			r.wantLog("writable true")
			if ev := r.interest(); ev != reads {
				t.Errorf("interest when writable: got %v, want %v", ev, reads)
			}
		})
	}
}

func TestMaxPending(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{MaxPending: 100000}})
	r.log = nil
	r.do(func() {
		r.k.take = []takeStep{{err: sys.ErrAgain}}
		for range 20 {
			r.Write(pooled(letters(9000)))
		}
	})
	r.m.RunUntilIdle()
	r.wantLog("error transport: write: transport: peer reads too slowly", "inactive", "unregistered")
	if !errors.Is(r.CloseReason(), ErrSlowPeer) {
		t.Errorf("close reason: got %v, want ErrSlowPeer", r.CloseReason())
	}
}

// What the flush's own callbacks write leaves in the next turn.
func TestWritesOfCallbacksLeaveInTheNextTurn(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.do(func() {
		r.WriteThen(pooled("first "), func(error) { r.Write(pooled("second")) })
	})
	r.wantOut("first ")
	r.m.Turn()
	r.wantOut("first second")
}

func TestManualFlush(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{ManualFlush: true}})
	r.do(func() { r.Write(pooled("a")); r.Write(pooled("b")) })
	r.m.RunUntilIdle()
	r.wantOut("")
	r.do(func() {
		r.k.take = []takeStep{{n: 1}}
		r.Flush()
		r.Write(pooled("c")) // into the same merged buffer as b
	})
	r.wantOut("a")
	r.ready(eventloop.EventWrite)
	r.wantOut("ab")
	r.do(r.Flush)
	r.wantOut("abc")
}

func TestManualFlushFromCallback(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{ManualFlush: true}})
	r.do(func() {
		r.WriteThen(pooled("a"), func(error) { r.Write(pooled("b")); r.Flush() })
		r.Flush()
	})
	r.m.RunUntilIdle()
	r.wantOut("ab")
}

func TestFileRegions(t *testing.T) {
	content := letters(3 << 20)
	r := newRig(t, rigConfig{})
	r.do(func() {
		r.Write(pooled("head"))
		r.Write(buffer.NewFileRegion(tempFile(t, content), 0, int64(len(content))))
		r.Write("tail")
	})
	// The writes themselves may use up one budget, the end of the turn another.
	if r.k.out.Len() > 2*regionBudget+4 {
		t.Errorf("sent in one turn: got %d bytes, want two budgets at most", r.k.out.Len())
	}
	r.m.RunUntilIdle()
	r.wantOut("head" + content + "tail")
	if r.k.more[0] {
		t.Error("MSG_MORE before a large body")
	}
	r.k.more = nil
	r.k.out.Reset()
	r.do(func() {
		r.Write(pooled("head"))
		r.Write(buffer.NewFileRegion(tempFile(t, content), 100, 1000))
	})
	r.wantOut("head" + content[100:1100])
	if !r.k.more[0] {
		t.Error("no MSG_MORE before a small body")
	}
}

// A region whose file ends too early closes the channel; it does not spin.
func TestFileShrinks(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	f := tempFile(t, letters(100))
	if err := f.Truncate(40); err != nil {
		t.Fatal(err)
	}
	var result error
	r.do(func() {
		r.WriteThen(buffer.NewFileRegion(f, 0, 100), func(err error) { result = err })
	})
	r.m.RunUntilIdle()
	r.ready(eventloop.EventWrite)
	r.wantOut(letters(100)[:40])
	if !errors.Is(result, ErrFileShrunk) {
		t.Errorf("completion: got %v, want ErrFileShrunk", result)
	}
	r.wantLog("error transport: write: send "+f.Name()+": transport: file is shorter than its region", "inactive", "unregistered")
}

// A file that is not in memory is sent by an Op, off the loop; meanwhile other
// writes wait, and a close keeps the descriptor until the Op has ended.
func TestColdFile(t *testing.T) {
	content := letters(5000)
	t.Run("sent", func(t *testing.T) {
		r := newRig(t, rigConfig{})
		r.k.cold = true
		onLoop := false
		r.k.sendfile = func() { onLoop = onLoop || r.Loop().InLoop() }
		r.do(func() {
			r.Write(buffer.NewFileRegion(tempFile(t, content), 0, 5000))
			r.Write(pooled("behind"))
		})
		r.wantOut("")
		r.m.RunUntilIdle()
		r.wantOut(content + "behind")
		if onLoop {
			t.Error("sendfile of a cold file on the loop")
		}
	})
	t.Run("blocked", func(t *testing.T) {
		r := newRig(t, rigConfig{})
		r.k.cold = true
		r.k.take = []takeStep{{n: 1000}, {err: sys.ErrAgain}, {n: 10}}
		r.do(func() { r.Write(buffer.NewFileRegion(tempFile(t, content), 0, 5000)) })
		r.m.RunUntilIdle()
		r.wantOut(content[:1000])
		for i := 0; i < 10 && r.k.out.Len() < 5000; i++ {
			r.ready(eventloop.EventWrite)
		}
		r.wantOut(content)
	})
	t.Run("closed meanwhile", func(t *testing.T) {
		r := newRig(t, rigConfig{})
		r.log = nil
		r.k.cold = true
		r.do(func() { r.Write(buffer.NewFileRegion(tempFile(t, content), 0, 5000)) })
		closes := -1
		r.k.sendfile = func() { closes = r.k.closes }
		r.m.Enter(r.Reset)
		if r.k.closes != 0 || r.Closed().Err() != nil || isDone(r.Closed().Done()) {
			t.Error("closed while an Op uses the descriptor")
		}
		if r.Open() || !errors.Is(r.CloseReason(), pipeline.ErrReset) {
			t.Errorf("after Reset: open %v, reason %v; want false, ErrReset", r.Open(), r.CloseReason())
		}
		r.m.RunUntilIdle()
		if closes != 0 || r.k.closes != 1 {
			t.Errorf("closes: got %d when the Op ran and %d in the end, want 0 and 1", closes, r.k.closes)
		}
		r.wantLog("inactive", "unregistered")
	})
}

func isDone(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestTooManyRegions(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	f := tempFile(t, "x")
	region := buffer.NewFileRegion(f, 0, 1)
	r.do(func() {
		r.k.take = []takeStep{{err: sys.ErrAgain}}
		for range maxRegions {
			r.Write(buffer.NewFileRegion(must(os.Open(f.Name())), 0, 1))
		}
		r.Write(region)
	})
	r.wantLog("error transport: write: transport: too many file regions queued")
	if region.Refs() != 0 {
		t.Errorf("references of the refused region: got %d, want 0", region.Refs())
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestUnsupportedMessage(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	r.do(func() { r.Write(42); r.Write([]byte("bytes ")); r.Write("string") })
	r.wantLog("error transport: write: transport: unsupported message type")
	r.wantOut("bytes string")
}

// In every paused or half-closed state a hangup that nobody can act on takes the
// descriptor out of the poller: no event comes twice.
func TestNoSpinOnHangup(t *testing.T) {
	const broken = eventloop.EventHangup | eventloop.EventError | eventloop.EventReadHangup
	for _, tt := range []struct {
		name  string
		cfg   Config
		setUp func(r *rig)
	}{
		{"paused", Config{ManualRead: true}, func(*rig) {}},
		{"half-closed by peer", Config{HalfClose: true}, func(r *rig) { r.readable(readStep{eof: true}) }},
		{"auto-read off", Config{}, func(r *rig) { r.do(func() { r.SetAutoRead(false) }) }},
		{"file under way", Config{ManualRead: true}, func(r *rig) {
			r.k.cold = true
			r.m.Enter(func() { r.Write(buffer.NewFileRegion(tempFile(r.t, "x"), 0, 1)); r.Flush() })
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, rigConfig{Config: tt.cfg})
			tt.setUp(r)
			handled := 0
			for range 5 {
				before := r.Loop().Metrics().Events
				r.m.Ready(scriptFD, broken)
				r.m.Turn()
				handled += int(r.Loop().Metrics().Events - before)
				if r.at == streamClosed {
					break
				}
			}
			if handled > 1 {
				t.Errorf("events handled: got %d, want 1 at most", handled)
			}
		})
	}
}

// A channel that left the poller because of a hangup comes back to read it.
func TestHangupWhilePausedIsReadLater(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{ManualRead: true}})
	r.log = nil
	r.k.in = []readStep{{data: "rest"}, {eof: true}}
	r.ready(eventloop.EventHangup)
	r.wantLog()
	r.do(r.Read)
	r.ready(eventloop.EventHangup)
	r.wantLog("read rest", "complete")
	r.do(r.Read)
	r.ready(eventloop.EventHangup)
	r.wantLog("complete", "inactive", "unregistered")
}

// A half-closed channel whose peer goes away altogether, or resets, has nothing left to
// wait for: nobody would read or write and so find out.
func TestGoneWhileHalfClosed(t *testing.T) {
	const gone = eventloop.EventHangup | eventloop.EventReadHangup
	for _, tt := range []struct {
		name   string
		err    error
		ev     eventloop.Event
		want   []string
		reason error
	}{
		{"closed", nil, gone, []string{"inactive", "unregistered"}, io.EOF},
		{"reset", os.NewSyscallError("connect", syscall.EPIPE), gone | eventloop.EventError,
			[]string{"error transport: write: broken pipe", "inactive", "unregistered"}, syscall.EPIPE},
		{"an error that is none", nil, eventloop.EventError, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, rigConfig{Config: Config{HalfClose: true}})
			r.readable(readStep{eof: true})
			r.log = nil
			r.k.pending = tt.err
			r.ready(tt.ev)
			r.wantLog(tt.want...)
			if got := r.CloseReason(); !errors.Is(got, tt.reason) {
				t.Errorf("close reason: got %v, want %v", got, tt.reason)
			}
		})
	}
}

// Reading pauses while the pool is close to its limit, and goes on.
func TestStarvedReads(t *testing.T) {
	pool, err := buffer.NewPool(buffer.PoolConfig{Limit: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	})
	r := newRig(t, rigConfig{Config: Config{Allocator: pool}})
	r.log = nil
	var hold []*buffer.Buf
	for {
		b, err := pool.TryAlloc(64 << 10)
		if err != nil {
			break
		}
		hold = append(hold, b)
	}
	r.readable(readStep{data: "late"})
	r.wantLog() // nine tenths are in use: it has not even tried
	if ev := r.interest(); ev != 0 {
		t.Errorf("interest under pressure: got %v, want none", ev)
	}
	if n := r.logs.FilterMessageSnippet("reading paused").Len(); n != 1 {
		t.Errorf("got %d lines in the log, want 1", n)
	}
	r.m.Advance(10 * starvedRetry)
	r.wantLog()
	for _, b := range hold {
		b.Release()
	}
	r.m.Advance(starvedRetry)
	r.ready(eventloop.EventRead)
	r.wantLog("read late", "complete")
}

// stingy is an allocator that has nothing as long as it is told so.
type stingy struct {
	buffer.Allocator
	empty bool
}

func (a *stingy) TryAlloc(n int) (*buffer.Buf, error) {
	if a.empty {
		return nil, buffer.ErrOutOfMemory
	}
	return a.Allocator.TryAlloc(n)
}

// A channel that finds no memory to read into tries again a little later.
func TestReadsWithoutMemory(t *testing.T) {
	a := &stingy{buffer.Heap, true}
	r := newRig(t, rigConfig{Config: Config{Allocator: a}})
	r.log = nil
	r.readable(readStep{data: "late"})
	r.wantLog("complete")
	if ev := r.interest(); ev != 0 {
		t.Errorf("interest while starved: got %v, want none", ev)
	}
	a.empty = false
	r.m.Advance(starvedRetry)
	r.ready(eventloop.EventRead)
	r.wantLog("read late", "complete")
}

// A panic in a handler closes its channel, whatever the transport is doing.
func TestPanicsInCallbacks(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(r *rig)
	}{
		{"write completion", func(r *rig) { r.WriteThen(pooled("x"), func(error) { panic("boom") }) }},
		{"writability", func(r *rig) {
			r.Pipeline().AddFirst(onWritability(func(*pipeline.Context) error { panic("boom") }))
			r.k.take = []takeStep{{err: sys.ErrAgain}}
			for range 3 {
				r.Write(pooled(letters(100000)))
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, rigConfig{})
			r.do(func() { tt.do(r); r.Write(pooled("dropped")) })
			r.m.RunUntilIdle()
			var p *pipeline.PanicError
			if !errors.As(r.CloseReason(), &p) || p.Value != "boom" {
				t.Errorf("close reason: got %v, want the panic", r.CloseReason())
			}
		})
	}
}

// A message that its writer released as well ends its own channel, wherever the
// transport notices, and the queue behind it is still released.
func TestMessageReleasedTwice(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.k.take = []takeStep{{n: 1}}
	region := buffer.NewFileRegion(tempFile(t, "content"), 0, 7)
	behind := pooled("behind")
	r.do(func() {
		r.Write(pooled("ab"))
		r.Write(region)
		r.Write(behind)
	})
	region.Release()
	r.ready(eventloop.EventWrite)
	if r.Open() {
		t.Error("channel still open")
	}
	if behind.Refs() != 0 {
		t.Errorf("references of the message behind: got %d, want 0", behind.Refs())
	}
}

type onWritability func(c *pipeline.Context) error

func (f onWritability) HandleWritability(c *pipeline.Context) error { return f(c) }

func TestLoopEnds(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	var result error
	r.do(func() {
		r.k.take = []takeStep{{n: 1}}
		r.WriteThen(pooled("abc"), func(err error) { result = err })
	})
	r.m.Close()
	r.wantLog("inactive", "unregistered")
	if !errors.Is(result, ErrLoopEnded) {
		t.Errorf("queued write: got %v, want ErrLoopEnded", result)
	}
	b := pooled("after")
	r.WriteThen(b, func(err error) { result = err })
	if b.Refs() != 0 || !errors.Is(result, pipeline.ErrClosed) {
		t.Errorf("write after the end: %d references, %v; want 0, ErrClosed", b.Refs(), result)
	}
}
