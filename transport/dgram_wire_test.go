package transport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// dgramKind is how a channel of a dgramWire has its peers.
type dgramKind string

const (
	boundDgram     dgramKind = "bound"     // a Unix socket, whose receivers have queues of their own
	connectedDgram dgramKind = "connected" // a Unix socket with one peer
	udpDgram       dgramKind = "udp"       // connected: answers of its peer's machine are errors of the socket
)

var dgramKinds = []dgramKind{boundDgram, connectedDgram, udpDgram}

// dgramWire is a datagram socket as the kernel has it: what has arrived, what it takes, and
// so which events are reported, for as long as they last. As wire is for streams.
type dgramWire struct {
	x *dgramWireRig

	in       []int          // numbers of the datagrams that have arrived and are not read
	pending  error          // what the next call gets
	reports  bool           // the socket reports an error that is none: its queue of errors has something
	shutRead bool           // somebody has shut it down for reading,
	shut     bool           // or both ways
	room     int            // datagrams that it takes
	queues   map[string]int // room of the receivers that have an end of it
	out      []int          // numbers of those taken
	closes   int

	calls  []string
	fault  func(i int, call string) (limit int, err error) // of call i; a limit of 0 is none
	faults int
}

var (
	wirePeer     = netip.MustParseAddrPort("192.0.2.7:7")
	wireStranger = netip.MustParseAddrPort("192.0.2.8:8")
)

// call notes a call and returns what is wrong with it.
func (w *dgramWire) call(name string) (limit int, err error) {
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
	if err == nil {
		err, w.pending = w.pending, nil
	}
	return limit, err
}

func (w *dgramWire) receive(in *dgramSlots, n, max int) (int, error) {
	limit, err := w.call("recvmmsg")
	if err != nil {
		return 0, err
	}
	if n = min(n, limit, len(w.in)); n == 0 {
		return 0, sys.ErrAgain
	}
	for i, id := range w.in[:n] {
		s := &in.slots[i]
		text := dgramText(id)
		s.buf.WriteString(text[:min(len(text), max)])
		s.addr, s.name, s.truncated = netip.AddrPort{}, "", len(text) > max
		switch {
		case w.x.kind == boundDgram:
			s.name = "peer"
		case w.x.kind == udpDgram && w.x.strange(id):
			s.addr = wireStranger // it had come before the socket was connected
		case w.x.kind == udpDgram:
			s.addr = wirePeer
		}
	}
	w.in = w.in[n:]
	return n, nil
}

func (w *dgramWire) send(q *dgramQueue, n int, _ *dgramParts) (int, error) {
	limit, err := w.call("sendmmsg")
	if n < 1 || n > dgramBatch {
		w.x.t.Errorf("%d datagrams in a call", n)
	}
	if err != nil {
		return 0, err
	}
	if w.shut {
		return 0, os.NewSyscallError("sendmmsg", syscall.EPIPE)
	}
	for i := range min(n, limit) {
		e := q.entries.at(i)
		room, bounded := w.queues[e.name]
		if w.room == 0 || bounded && room == 0 {
			if i == 0 {
				return 0, sys.ErrAgain
			}
			return i, nil
		}
		w.room--
		if bounded {
			w.queues[e.name]--
		}
		var text strings.Builder
		for p := range e.buf.Segments {
			text.Write(p)
		}
		id, err := strconv.Atoi(text.String()[:6])
		if err != nil || text.String() != dgramText(id) {
			w.x.t.Errorf("sent: %d bytes that are not those written", text.Len())
		}
		if want := w.x.names[id]; e.name != want {
			w.x.t.Errorf("datagram %d is sent to %q, want %q", id, e.name, want)
		}
		w.out = append(w.out, id)
	}
	return min(n, limit), nil
}

func (w *dgramWire) connect(net.Addr) error {
	_, err := w.call("connect")
	return err
}

func (w *dgramWire) disconnect() error {
	_, err := w.call("disconnect")
	return err
}

func (w *dgramWire) addresses(bool) (local, remote net.Addr) { return nil, nil }

// socketError takes what makes the socket report an error.
func (w *dgramWire) socketError() error {
	if _, err := w.call("socketError"); err != nil {
		return err
	}
	w.reports = false
	return nil
}

func (w *dgramWire) close() { w.closes++ }

// level is what the kernel reports now.
func (w *dgramWire) level() (ev eventloop.Event) {
	if len(w.in) > 0 {
		ev |= eventloop.EventRead
	}
	if w.shutRead || w.shut {
		ev |= eventloop.EventRead | eventloop.EventReadHangup
	}
	if w.shut {
		ev |= eventloop.EventHangup
	}
	if w.room > 0 || w.shut {
		ev |= eventloop.EventWrite
	}
	if w.pending != nil || w.reports {
		ev |= eventloop.EventError
	}
	return ev
}

// dgramText is the content of datagram id.
func dgramText(id int) string { return fmt.Sprintf("%06d", id) + letters(id*37%300) }

// dgramWireRig is a channel on a dgramWire and a loop on virtual time, with a recorder as its
// last handler.
type dgramWireRig struct {
	t    *testing.T
	kind dgramKind
	s    *dgram
	m    *eventloop.Manual
	w    *dgramWire

	log     []string // of life: all but reads
	errs    []error
	arrived int      // datagrams
	lost    bool     // what has arrived may be lost
	got     []int    // those that the recorder has read
	names   []string // of the receivers of those written
	told    []error  // of those written, in the order of the writes
	tolds   int
	onEvent func(name string) // called by the recorder and by completions

	asked bool // for a read that has not come
	fresh int  // reads since the last end of a turn

	live int64
}

func newDgramWireRig(t *testing.T, kind dgramKind, cfg Config) *dgramWireRig {
	t.Helper()
	if cfg.CloseTimeout == 0 {
		cfg.CloseTimeout = 2 * time.Second // which steps of time have to get through
	}
	c, err := cfg.check()
	if err != nil {
		t.Fatal(err)
	}
	x := &dgramWireRig{t: t, kind: kind, m: eventloop.NewManual(), live: buffer.Live()}
	x.w = &dgramWire{x: x, room: 1 << 30, queues: make(map[string]int)}
	t.Cleanup(x.m.Close) // if the test ends early
	x.s = newDgram(&c, x.m.Loop(), scriptFD, nil)
	x.s.unix, x.s.connected = kind != udpDgram, kind != boundDgram
	if kind == udpDgram {
		x.s.peer = dgramPeer{addr: wirePeer}
	}
	if kind == boundDgram {
		var srv Server
		srv.setUp()
		x.s.srv = srv.s
		srv.s.addDgram(x.s)
	}
	x.s.sock = x.w
	x.do(func() {
		x.s.start(func(ch pipeline.Channel) error { return ch.Pipeline().Add((*dgramWireRecorder)(x)) })
	})
	return x
}

// strange reports whether datagram id comes from somebody else than the peer.
func (x *dgramWireRig) strange(id int) bool { return x.kind == udpDgram && id%11 == 5 }

// do runs f on the loop and then a turn, with what is ready by then.
func (x *dgramWireRig) do(f func()) {
	x.m.Enter(f)
	x.turn()
}

func (x *dgramWireRig) turn() {
	if ev := x.reported(); ev != 0 {
		x.m.Ready(scriptFD, ev)
	}
	x.m.Turn()
}

// reported is what the poller would report.
func (x *dgramWireRig) reported() eventloop.Event {
	s := x.s
	if s.at == dgramClosed || s.reg == nil {
		return 0
	}
	interest := s.reg.Interest()
	if interest == 0 && s.hangup {
		return 0 // suspended
	}
	return x.w.level() & (interest | eventloop.EventHangup | eventloop.EventError)
}

// settle does turns until nothing is reported and nothing is left to do. A channel that is
// told the same again and again, and does nothing about it, spins.
func (x *dgramWireRig) settle() {
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

// pass lets d pass, with what is reported meanwhile.
func (x *dgramWireRig) pass(d time.Duration) {
	x.t.Helper()
	const step = 20 * time.Millisecond
	for ; d > 0; d -= step {
		x.m.Advance(min(d, step))
		x.settle()
	}
}

// checkRest looks whether a channel that waits has something to do.
func (x *dgramWireRig) checkRest() {
	x.t.Helper()
	s, w := x.s, x.w
	if s.at == dgramOpen && (s.AutoRead() || x.asked) && !s.paused && !s.starved && (len(w.in) > 0 || w.shutRead || w.shut) {
		x.t.Errorf("stalled: %d datagrams to read, shut %v, and interest %v", len(w.in), w.shutRead || w.shut, s.reg.Interest())
	}
	if (s.at == dgramOpen || s.at == dgramClosing) && s.flushTo > s.out.gone && w.room > 0 && s.resting == nil && s.asideTimer == nil {
		x.t.Errorf("stalled: %d datagrams to send, room for %d, and interest %v", s.flushTo-s.out.gone, w.room, s.reg.Interest())
	}
	if s.out.aside.entries.n > 0 && s.asideTimer == nil {
		x.t.Errorf("stalled: %d datagrams are aside, and nobody tries them again", s.out.aside.entries.n)
	}
	if s.at == dgramClosing && s.out.empty() {
		x.t.Error("stalled: the queue has left, and the channel is still closing")
	}
}

// state sums up what progress is.
func (x *dgramWireRig) state() string {
	s := x.s
	return fmt.Sprint(s.at, s.hangup, s.reg.Interest(), len(x.got), len(x.w.in), len(x.w.out), len(x.log), x.tolds,
		x.w.faults, x.w.pending, x.w.reports, s.out.gone, s.out.aside.entries.n)
}

// peerSends has n datagrams arrive.
func (x *dgramWireRig) peerSends(n int) {
	for range n {
		x.w.in = append(x.w.in, x.arrived)
		x.arrived++
	}
}

// write writes a datagram, to name if the channel has no peer, and waits for its completion.
func (x *dgramWireRig) write(name string) {
	id := len(x.names)
	var msg any
	if x.kind == boundDgram {
		msg = to(name, dgramText(id))
	} else {
		msg, name = pooled(dgramText(id)), ""
	}
	x.names, x.told = append(x.names, name), append(x.told, errUntold)
	x.s.WriteThen(msg, func(err error) {
		left := slices.Contains(x.w.out, id)
		var op *OpError
		switch {
		case x.told[id] != errUntold:
			x.t.Errorf("datagram %d was told twice: %v, then %v", id, x.told[id], err)
		case err == nil && !left:
			x.t.Errorf("datagram %d is complete and has not left", id)
		case err == nil, errors.Is(err, pipeline.ErrClosed):
		case left:
			x.t.Errorf("datagram %d has left and failed: %v", id, err)
		case !errors.As(err, &op) || op.Op != "write" || op.Addr != nil && op.Addr.String() != name:
			x.t.Errorf("datagram %d to %q: got %v, want a write *OpError", id, name, err)
		}
		x.told[id] = err
		x.tolds++
		if x.onEvent != nil {
			x.onEvent("a completion")
		}
	})
}

var errUntold = errors.New("not told")

// read asks for a turn of reading, which has to bring something.
func (x *dgramWireRig) read() {
	x.asked = true
	x.s.Read()
}

// autoRead switches reading.
func (x *dgramWireRig) autoRead(on bool) {
	if x.s.AutoRead() != on {
		x.asked = on
	}
	x.s.SetAutoRead(on)
}

// failed returns how many writes have failed, by an error of their own.
func (x *dgramWireRig) failed() (n int) {
	for _, err := range x.told {
		if err != nil && err != errUntold && !errors.Is(err, pipeline.ErrClosed) {
			n++
		}
	}
	return n
}

// finish brings the channel to its end and looks at what it has told and left.
func (x *dgramWireRig) finish() {
	x.t.Helper()
	wantNoTimers(x.t, x.m, x.s.CloseIO)
	if n := x.m.Loop().Metrics().Registrations; n != 0 {
		x.t.Errorf("registrations: got %d at the end, want none", n)
	}
	x.m.Close()
	if x.w.closes != 1 {
		x.t.Errorf("closes: got %d, want 1", x.w.closes)
	}
	if x.tolds != len(x.told) {
		x.t.Errorf("completions: got %d of %d", x.tolds, len(x.told))
	}
	life := slices.DeleteFunc(slices.Clone(x.log), func(s string) bool {
		return s == "writable true" || s == "writable false" || s == "error" || s == "complete"
	})
	if want := []string{"registered", "active", "inactive", "unregistered", "removed"}; !slices.Equal(life, want) {
		x.t.Errorf("events: got %q, want %q", life, want)
	}
	// In order, to each receiver, and once.
	last := make(map[string]int)
	for _, id := range x.w.out {
		name := x.names[id]
		if before, ok := last[name]; ok && before >= id {
			x.t.Errorf("datagram %d to %q has left behind %d", id, name, before)
		}
		last[name] = id
	}
	if !slices.IsSorted(x.got) {
		x.t.Errorf("read: got %v, want them in order", x.got)
	}
	if n := buffer.Live(); n > x.live { // those of an earlier test may be gone by now
		x.t.Errorf("live buffers: got %d at the end, want %d", n, x.live)
	}
	if x.s.out.charge != 0 || x.s.out.aside.charge != 0 || !x.s.out.empty() {
		x.t.Errorf("left in the queue: charge %d, %d of it aside, empty %v", x.s.out.charge, x.s.out.aside.charge, x.s.out.empty())
	}
}

// end has the peers take everything, and looks whether the channel, if it is open, has read
// and sent all, and closes.
func (x *dgramWireRig) end() {
	x.t.Helper()
	x.onEvent, x.w.fault = nil, nil
	x.w.room = 1 << 30
	clear(x.w.queues)
	x.do(func() { x.s.SetAutoRead(true); x.s.Flush() })
	x.pass(3 * time.Second) // whatever rests, starves or is aside
	if x.s.at == dgramOpen {
		if !x.s.Writable() || x.s.out.charge != 0 {
			x.t.Errorf("the queue is empty: got writable %v, charge %d", x.s.Writable(), x.s.out.charge)
		}
		if n := len(x.w.out) + x.failed(); n != len(x.told) {
			x.t.Errorf("of %d datagrams %d have left and %d failed", len(x.told), len(x.w.out), x.failed())
		}
		want := 0
		for id := range x.arrived {
			if !x.strange(id) && len(dgramText(id)) <= x.s.cfg.MaxDatagram {
				want++
			}
		}
		if len(x.got) != want && !x.lost {
			x.t.Errorf("read: got %d datagrams, want %d", len(x.got), want)
		}
		x.do(x.s.Close)
		x.settle()
	}
	x.pass(x.s.cfg.CloseTimeout)
	if x.s.at != dgramClosed {
		x.t.Errorf("at the end the channel is in state %d", x.s.at)
	}
	x.finish()
}

// dgramWireRecorder is the last handler of a dgramWireRig.
type dgramWireRecorder dgramWireRig

func (h *dgramWireRecorder) note(s string) error {
	h.log = append(h.log, s)
	if h.onEvent != nil {
		h.onEvent(s)
	}
	return nil
}

func (h *dgramWireRecorder) HandleRegistered(*pipeline.Context) error { return h.note("registered") }
func (h *dgramWireRecorder) HandleActive(*pipeline.Context) error     { return h.note("active") }
func (h *dgramWireRecorder) HandleInactive(*pipeline.Context) error   { return h.note("inactive") }
func (h *dgramWireRecorder) HandleUnregistered(*pipeline.Context) error {
	return h.note("unregistered")
}
func (h *dgramWireRecorder) HandleReadComplete(*pipeline.Context) error {
	if h.fresh > 0 {
		h.asked = false
	}
	h.fresh = 0
	return h.note("complete")
}
func (h *dgramWireRecorder) HandleRemoved(*pipeline.Context) { _ = h.note("removed") }

func (h *dgramWireRecorder) HandleWritability(c *pipeline.Context) error {
	return h.note(fmt.Sprintf("writable %v", c.Channel().Writable()))
}

func (h *dgramWireRecorder) HandleError(_ *pipeline.Context, err error) {
	h.errs = append(h.errs, err)
	_ = h.note("error")
}

func (h *dgramWireRecorder) HandleRead(_ *pipeline.Context, msg any) error {
	defer buffer.Release(msg)
	if h.s.at == dgramClosed {
		h.t.Error("read after the end")
	}
	b, ok := msg.(*buffer.Buf)
	if !ok {
		d := msg.(*Datagram)
		if b = d.Content; d.Name != "peer" {
			h.t.Errorf("read from %q", d.Name)
		}
	}
	text := b.ReadString(b.Len())
	id, err := strconv.Atoi(text[:6])
	if err != nil || text != dgramText(id) || (*dgramWireRig)(h).strange(id) {
		h.t.Errorf("read: %q, which is not what was sent", text)
	}
	h.got = append(h.got, id)
	h.fresh++
	if h.onEvent != nil {
		h.onEvent("read")
	}
	return nil
}
