package transport

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// wire is a connection as the kernel has it, seen from the socket of a channel: what
// has arrived, how much room there is, and so which events are reported, for as long as
// they last. A script says what is wrong with which call; the rest follows from what
// the test's peer does.
type wire struct {
	x *wireRig

	in    []byte // arrived, not read
	fin   bool   // the peer has closed its sending side
	rst   error  // the peer has reset: what the next call gets, nil behind it
	dead  bool   // it has
	room  int    // bytes that the kernel still takes
	out   []byte // taken
	acked int    // of which the peer has acknowledged so many
	shut  bool   // the sending side is closed
	cold  bool   // files are not in memory

	resets, closes, disconnects int

	lends uint32             // calls that have lent
	loans []wireLoan         // of which not acknowledged
	queue []sys.Confirmation // not read

	calls  []string                                      // names, in order
	fault  func(i int, call string) (limit int, e error) // of call i; a limit of 0 is none
	faults int                                           // that there have been
}

// call notes a call and returns what is wrong with it.
func (w *wire) call(name string) (limit int, err error) {
	w.calls = append(w.calls, name)
	if w.closes > 0 {
		w.x.t.Errorf("%s after close", name)
	}
	if w.fault != nil {
		if limit, err = w.fault(len(w.calls)-1, name); limit > 0 || err != nil {
			w.faults++
		}
	}
	if err == nil && limit <= 0 {
		limit = 1 << 30
	}
	return limit, err
}

func (w *wire) read(b *buffer.Buf, max int) (int, error) {
	limit, err := w.call("read")
	if err != nil {
		return 0, err
	}
	if err := w.takeReset(); err != nil {
		return 0, err
	}
	n := min(len(w.in), max, limit)
	if n == 0 && !w.fin && !w.dead {
		return 0, sys.ErrAgain
	}
	b.Write(w.in[:n])
	w.in = w.in[n:]
	return n, nil
}

func (w *wire) takeReset() error {
	err := w.rst
	w.rst = nil
	return err
}

// takes returns how much of n bytes the kernel takes now.
func (w *wire) takes(name string, n int) (int, error) {
	limit, err := w.call(name)
	if w.shut {
		w.x.t.Errorf("%s after shutdown", name)
	}
	if err != nil {
		return 0, err
	}
	if err := w.takeReset(); err != nil {
		return 0, err
	}
	if w.dead {
		return 0, os.NewSyscallError(name, errPipe)
	}
	if n = min(n, w.room, limit); n == 0 {
		return 0, sys.ErrAgain
	}
	w.room -= n
	return n, nil
}

func (w *wire) write(parts []sys.Iovec, _, _ bool) (int, error) {
	var all []byte
	for _, p := range parts {
		all = append(all, partBytes(p)...)
	}
	n, err := w.takes("write", len(all))
	w.take(all[:n])
	return n, err
}

func (w *wire) sendfile(file int, off int64, n int) (int, error) {
	p := make([]byte, n)
	got, err := sys.ReadFile(file, p, off)
	if err != nil || got == 0 {
		return 0, err
	}
	n, err = w.takes("sendfile", got)
	w.take(p[:n])
	return n, err
}

// wireLoan is a call that has not copied what it has taken.
type wireLoan struct {
	n     uint32
	end   int // len(out) behind it
	bytes []byte
	parts [][]byte // where they are, for as long as the peer has not acknowledged them
}

func (w *wire) enableZeroCopy() error { return nil }

func (w *wire) unacked() int { return len(w.out) - w.acked }

func (w *wire) sendZeroCopy(parts []sys.Iovec, _, _ bool) (int, error) {
	l := wireLoan{n: w.lends}
	for _, p := range parts {
		l.bytes = append(l.bytes, partBytes(p)...)
	}
	n, err := w.takes("sendmsg", len(l.bytes))
	if err != nil {
		return 0, err
	}
	l.bytes = l.bytes[:n]
	for left, i := n, 0; left > 0; i++ {
		p := partBytes(parts[i])
		p = p[:min(len(p), left)]
		l.parts = append(l.parts, p)
		left -= len(p)
	}
	w.take(l.bytes)
	l.end = len(w.out)
	w.lends++
	w.loans = append(w.loans, l)
	return n, nil
}

// confirmed is what has not been told yet of what is acknowledged: nothing is lent any more
// on a connection that has ended. Every other time it is told backwards.
func (w *wire) confirmed() []sys.Confirmation {
	done := 0
	for done < len(w.loans) && (w.dead || w.loans[done].end <= w.acked) {
		l := w.loans[done]
		if now := bytes.Join(l.parts, nil); !bytes.Equal(now, l.bytes) {
			w.x.t.Errorf("call %d: the memory has changed before it was confirmed", l.n)
		}
		c := sys.Confirmation{Calls: true, First: l.n, Last: l.n}
		if last := len(w.queue) - 1; last >= 0 && w.queue[last].Last+1 == c.First && l.n%3 != 0 {
			w.queue[last].Last = c.Last
		} else {
			w.queue = append(w.queue, c)
		}
		done++
	}
	if w.loans = w.loans[done:]; done > 1 && done%2 == 0 {
		slices.Reverse(w.queue)
	}
	return w.queue
}

func (w *wire) confirmation() (sys.Confirmation, error) {
	if w.closes > 0 {
		w.x.t.Error("error queue read after close")
	}
	queue := w.confirmed()
	if len(queue) == 0 {
		return sys.Confirmation{}, sys.ErrAgain
	}
	w.queue = queue[1:]
	return queue[0], nil
}

// take is what has left; it must be what was written, in order.
func (w *wire) take(p []byte) {
	if want := w.x.written; !bytes.HasPrefix(want[min(len(w.out), len(want)):], p) {
		w.x.t.Errorf("sent at %d: %d bytes that are not those written", len(w.out), len(p))
	}
	w.out = append(w.out, p...)
}

func (w *wire) cached(int, int64) (bool, error) { return !w.cold, nil }

func (w *wire) socketError() error {
	_, err := w.call("socketError")
	if err != nil {
		return err
	}
	return w.takeReset()
}

func (w *wire) closeSleeps() bool { return false }

func (w *wire) unread() int { return len(w.in) }

func (w *wire) unfinished() bool { return !w.dead && (len(w.in) > 0 || w.acked < len(w.out)) }

func (w *wire) shutdownWrite() error {
	if _, err := w.call("shutdown"); err != nil {
		return err
	}
	w.shut = true
	return nil
}

func (w *wire) disconnect() {
	w.disconnects++
	w.dead, w.in = true, nil
}

func (w *wire) reset() { w.resets++ }

func (w *wire) close() {
	if w.confirmed(); len(w.loans) > 0 {
		w.x.t.Errorf("closed with %d calls that are not confirmed", len(w.loans))
	}
	w.closes++
}

// level is what the kernel reports now, to whoever asks for it.
func (w *wire) level() (ev eventloop.Event) {
	if len(w.in) > 0 || w.fin || w.dead {
		ev |= eventloop.EventRead
	}
	if w.fin || w.dead {
		ev |= eventloop.EventReadHangup
	}
	if w.room > 0 || w.shut || w.dead {
		ev |= eventloop.EventWrite
	}
	if w.dead || w.fin && w.shut {
		ev |= eventloop.EventHangup
	}
	if w.rst != nil || len(w.confirmed()) > 0 {
		ev |= eventloop.EventError
	}
	return ev
}

// wireRig is a channel on a wire and a loop on virtual time, with a recorder as its
// last handler.
type wireRig struct {
	t *testing.T
	s *stream
	m *eventloop.Manual
	w *wire

	log     []string // of life: all but reads
	errs    []error
	arrived []byte // all that the peer has sent
	got     []byte // what the recorder has read of it
	written []byte // all that the channel has taken to send
	told    []error
	writes  int
	onEvent func(name string) // called by the recorder and by completions

	asked            bool // for a read that has not come
	fresh            int  // reads since the last end of a turn
	shuts, shutsTold int  // of closeWrite

	live int64
	file string
}

// newWireRig starts a channel; what it holds is looked at when the test ends.
func newWireRig(t *testing.T, cfg rigConfig) *wireRig {
	t.Helper()
	x := &wireRig{t: t, m: eventloop.NewManual(), live: buffer.Live()}
	x.w = &wire{x: x, room: 1 << 30}
	c, err := cfg.check()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.m.Close) // if the test ends early
	if cfg.ZeroCopy > 0 {
		byHand(t)
	}
	x.s = newStream(&c, x.m.Loop(), nil, scriptFD)
	if !cfg.dialed {
		var srv Server
		srv.setUp()
		x.s.srv = srv.s
		srv.s.add(x.s)
	}
	x.s.sock = x.w
	x.do(func() { x.s.start(func(ch pipeline.Channel) error { return ch.Pipeline().Add((*wireRecorder)(x)) }) })
	return x
}

// do runs f on the loop and then a turn, with what is ready by then.
func (x *wireRig) do(f func()) {
	x.m.Enter(f)
	x.turn()
}

// turn does one turn of the loop with what the kernel reports.
func (x *wireRig) turn() {
	ev := x.reported()
	if ev != 0 {
		x.m.Ready(scriptFD, ev)
	}
	x.m.Turn()
}

// reported is what the poller would report: what was asked for, and what cannot be
// masked as long as it knows the descriptor.
func (x *wireRig) reported() eventloop.Event {
	s := x.s
	if s.at == streamClosed || s.reg == nil {
		return 0
	}
	interest := s.reg.Interest()
	if interest == 0 && s.hangup {
		return 0 // suspended
	}
	return x.w.level() & (interest | eventloop.EventHangup | eventloop.EventError)
}

// settle does turns until nothing is reported and nothing is left to do. A channel that
// is told the same again and again, and does nothing about it, spins.
func (x *wireRig) settle() {
	x.t.Helper()
	same := 0
	for range 10_000 {
		if x.reported() == 0 {
			x.m.RunUntilIdle()
			if x.reported() == 0 {
				x.checkRest()
				return
			}
		}
		before := x.state()
		x.turn()
		if x.state() != before {
			same = 0
		} else if same++; same > 4 {
			x.t.Fatalf("the loop spins: %v is reported, interest %v, state %s", x.reported(), x.s.reg.Interest(), before)
		}
	}
	x.t.Fatal("the loop does not come to rest")
}

// checkRest looks whether a channel that waits has something to do.
func (x *wireRig) checkRest() {
	x.t.Helper()
	s, w := x.s, x.w
	if s.at == streamOpen && (s.AutoRead() || x.asked) && !s.paused && !s.starved && !s.inputShut && (len(w.in) > 0 || w.fin || w.dead) {
		x.t.Errorf("stalled: %d bytes to read, end %v, and interest %v", len(w.in), w.fin || w.dead, s.reg.Interest())
	}
	if (s.at == streamOpen || s.at == streamClosing) && s.flushTo > s.out.sent && w.room > 0 {
		x.t.Errorf("stalled: %d bytes to send, room for %d, and interest %v", s.flushTo-s.out.sent, w.room, s.reg.Interest())
	}
	if s.at == streamClosing && s.out.empty() {
		x.t.Error("stalled: the queue has left, and the channel is still closing")
	}
	if s.at == streamOpen && s.outputShut && !s.out.done && s.out.empty() {
		x.t.Error("stalled: the queue has left, and the sending side is not closed")
	}
}

// state sums up what progress is.
func (x *wireRig) state() string {
	s := x.s
	return fmt.Sprint(s.at, s.hangup, s.zc().unconfirmed(), s.reg.Interest(), len(x.got), len(x.w.in), len(x.w.out), len(x.log), len(x.told), x.w.faults, s.inputShut, s.out.done)
}

// peerSends has bytes arrive.
func (x *wireRig) peerSends(p string) {
	if !x.w.fin && !x.w.dead {
		x.w.in = append(x.w.in, p...)
		x.arrived = append(x.arrived, p...)
	}
}

// peerResets has the connection end without notice; what has arrived is lost.
func (x *wireRig) peerResets(err error) {
	if !x.w.dead {
		x.w.dead, x.w.rst, x.w.in = true, err, nil
	}
}

// write writes a message of n bytes, a Buf or a region, and waits for its completion.
func (x *wireRig) write(n int, region bool) {
	var p string
	var msg any
	if region {
		f, err := x.open()
		if err != nil {
			x.t.Error(err)
			return
		}
		p = letters(3000)[:n]
		msg = buffer.NewFileRegion(f, 0, int64(n))
	} else {
		p = letters(n)
		msg = pooled(p)
	}
	i, end := x.writes, len(x.written)+n
	x.writes++
	accepts := x.s.at < streamClosing && !x.s.outputShut
	if accepts {
		x.written = append(x.written, p...)
	}
	done := false
	x.s.WriteThen(msg, func(err error) {
		if done {
			x.t.Errorf("write %d was told twice", i)
		}
		done = true
		if err == nil && (!accepts || len(x.w.out) < end) {
			x.t.Errorf("write %d ends at byte %d and is complete after %d", i, end, len(x.w.out))
		}
		x.told = append(x.told, err)
		if x.onEvent != nil {
			x.onEvent("a completion")
		}
	})
}

// read asks for a turn of reading, which has to bring something.
func (x *wireRig) read() {
	x.asked = true
	x.s.Read()
}

// autoRead switches reading.
func (x *wireRig) autoRead(on bool) {
	if x.s.AutoRead() != on {
		x.asked = on
	}
	x.s.SetAutoRead(on)
}

// closeWrite closes the sending side; each call is to be told once.
func (x *wireRig) closeWrite() {
	x.shuts++
	p := eventloop.NewPromise(x.s.Loop())
	p.Then(func(error) { x.shutsTold++ })
	(*streamCore)(x.s).DoCloseWrite(p)
}

// open opens a file of 3,000 letters.
func (x *wireRig) open() (*os.File, error) {
	if x.file == "" {
		x.file = filepath.Join(x.t.TempDir(), "file")
		if err := os.WriteFile(x.file, []byte(letters(3000)), 0o600); err != nil {
			return nil, err
		}
	}
	return os.Open(x.file)
}

// finish brings the channel to its end and looks at what it has told and left.
func (x *wireRig) finish() {
	x.t.Helper()
	x.m.Close()
	x.w.acked = len(x.w.out)
	if n := quarantined.sweep(time.Now()); n > 0 {
		x.t.Errorf("in quarantine: got %d at the end, want 0", n)
	}
	if x.w.closes != 1 {
		x.t.Errorf("closes: got %d, want 1", x.w.closes)
	}
	if x.shutsTold != x.shuts {
		x.t.Errorf("closes of the sending side: got %d told, want %d", x.shutsTold, x.shuts)
	}
	if len(x.told) != x.writes {
		x.t.Errorf("completions: got %d, want %d", len(x.told), x.writes)
	}
	var life []string
	for _, s := range x.log {
		if s != "writable true" && s != "writable false" && !strings.HasPrefix(s, "error") && s != "complete" {
			life = append(life, s)
		}
	}
	life = slices.DeleteFunc(life, func(s string) bool { return s == inputShutdown || s == outputShutdown })
	if want := []string{"registered", "active", "inactive", "unregistered", "removed"}; !slices.Equal(life, want) {
		x.t.Errorf("events: got %q, want %q", life, want)
	}
	for _, s := range []string{inputShutdown, outputShutdown} {
		if n := x.count(s); n > 1 {
			x.t.Errorf("%s came %d times", s, n)
		}
	}
	if n := buffer.Live(); n > x.live { // those of an earlier test may be gone by now
		x.t.Errorf("live buffers: got %d at the end, want %d", n, x.live)
	}
	if x.s.out.charge != 0 || !x.s.out.empty() {
		x.t.Errorf("left in the queue: %d entries, charge %d", x.s.out.len(), x.s.out.charge)
	}
}

func (x *wireRig) count(event string) (n int) {
	for _, s := range x.log {
		if s == event {
			n++
		}
	}
	return n
}

const (
	inputShutdown  = "pipeline.InputShutdown"
	outputShutdown = "pipeline.OutputShutdown"
)

// wireRecorder is the last handler of a wireRig.
type wireRecorder wireRig

func (h *wireRecorder) note(s string) error {
	h.log = append(h.log, s)
	if h.onEvent != nil {
		h.onEvent(s)
	}
	return nil
}

func (h *wireRecorder) HandleRegistered(*pipeline.Context) error   { return h.note("registered") }
func (h *wireRecorder) HandleActive(*pipeline.Context) error       { return h.note("active") }
func (h *wireRecorder) HandleInactive(*pipeline.Context) error     { return h.note("inactive") }
func (h *wireRecorder) HandleUnregistered(*pipeline.Context) error { return h.note("unregistered") }

func (h *wireRecorder) HandleReadComplete(*pipeline.Context) error {
	if h.fresh > 0 {
		h.asked = false
	}
	h.fresh = 0
	return h.note("complete")
}
func (h *wireRecorder) HandleRemoved(*pipeline.Context) { _ = h.note("removed") }

func (h *wireRecorder) HandleWritability(c *pipeline.Context) error {
	return h.note(fmt.Sprintf("writable %v", c.Channel().Writable()))
}

func (h *wireRecorder) HandleError(_ *pipeline.Context, err error) {
	h.errs = append(h.errs, err)
	_ = h.note("error")
}

func (h *wireRecorder) HandleEvent(_ *pipeline.Context, ev any) error {
	if _, ok := ev.(pipeline.InputShutdown); ok && (!h.w.fin && !h.w.dead || !bytes.Equal(h.got, h.arrived) && !h.w.dead) {
		h.t.Errorf("the end of input came after %d of %d bytes", len(h.got), len(h.arrived))
	}
	return h.note(fmt.Sprintf("%T", ev))
}

func (h *wireRecorder) HandleRead(_ *pipeline.Context, msg any) error {
	b := msg.(*buffer.Buf)
	defer b.Release()
	if h.s.at == streamClosed {
		h.t.Error("read after the end")
	}
	p := b.Next(b.Len())
	if !bytes.HasPrefix(h.arrived[min(len(h.got), len(h.arrived)):], p) {
		h.t.Errorf("read at %d: %d bytes that are not those sent", len(h.got), len(p))
	}
	h.got = append(h.got, p...)
	h.fresh++
	if h.onEvent != nil {
		h.onEvent("read")
	}
	return nil
}
