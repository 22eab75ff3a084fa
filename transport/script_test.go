package transport

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

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

	before func() // each call, if there is something to do

	out         bytes.Buffer
	shut        bool
	resets      int
	closes      int
	disconnects int
	pending     error // of socketError
	sleeps      bool  // close
	sendfile    func()
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

// call notes a call that reads or writes.
func (k *script) call() {
	k.calls++
	if k.before != nil {
		k.before()
	}
}

func (k *script) read(b *buffer.Buf, max int) (int, error) {
	k.call()
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
	k.call()
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
func (k *script) unread() int {
	n := 0
	for _, s := range k.in {
		n += len(s.data)
	}
	return n
}
func (k *script) shutdownWrite() error { k.shut = true; return nil }
func (k *script) disconnect()          { k.disconnects++ }
func (k *script) closeSleeps() bool    { return k.sleeps }
func (k *script) reset()               { k.resets++ }
func (k *script) close()               { k.closes++ }

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
		wantNoTimers(t, m, r.CloseIO)
		before := r.k.closes
		m.Close()
		if before > 1 || r.k.closes != 1 {
			t.Errorf("socket closed %d times, want once", r.k.closes)
		}
	})
	return r
}

// wantNoTimers ends a channel by its CloseIO and checks that it has left no timer armed: one
// that nobody stops keeps a channel, with all that it has, for as long as it runs.
func wantNoTimers(t *testing.T, m *eventloop.Manual, closeIO func()) {
	t.Helper()
	m.Enter(closeIO)
	m.Advance(starvedRetry) // that one is of all channels of a loop, and not worth stopping
	if n := m.Loop().Metrics().TimersArmed; n != 0 {
		t.Errorf("timers: got %d armed after the end of the channel, want none", n)
	}
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

// letters returns the first n bytes of a text that does not repeat itself soon. All of them
// are of one, which is made once: with the race detector that takes long.
func letters(n int) string {
	alphabet.Lock()
	defer alphabet.Unlock()
	if n > len(alphabet.text) {
		b := make([]byte, 2*n)
		for i := range b {
			b[i] = 'a' + byte(i*7+i/251)%26
		}
		alphabet.text = string(b)
	}
	return alphabet.text[:n]
}

var alphabet struct {
	sync.Mutex
	text string
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
