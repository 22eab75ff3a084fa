// Package transporttest is one suite of tests that every kind of stream channel has
// to pass: how bytes are exchanged, when a channel reads, what a flush sends, when it
// is writable, how it ends, and which events its handlers get meanwhile.
//
// Start with [Run], in a test of the package that makes the channels. It compares
// the descriptors, goroutines and buffers of the process before and after each test,
// so nothing else may run beside it.
//
// Embedded channels are not among those that it can run over: they have no peer, no end of
// the peer's stream and no reset, hand messages on as they are, and their loop runs only in
// the calls of their test, where the suite waits for loops that run by themselves. What of
// it is about the pipeline and not about a transport is tested over them as well, beside
// TCP and Unix channels, in contract_test.go of package pipeline.
package transporttest

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// End is how one end of a connection is to be.
type End struct {
	Config transport.Config
	Init   func(ch pipeline.Channel) error
}

// Transport is what the suite runs over: a network of [transport.Server] and
// [transport.Dialer], or channels that are made in another way.
type Transport struct {
	// Network is that of Server.Listen; Addr returns an address for it that nobody
	// listens on.
	Network string
	Addr    func(t testing.TB) string

	// Connect, where there is no Network, returns two new channels on loops of g
	// that are connected to each other; they become active soon or are so already. One
	// that its handlers have closed by then may be nil. The tests of listeners and of
	// connecting are left out then.
	Connect func(t testing.TB, g *eventloop.Group, accepted, dialed End) (a, d pipeline.Channel)

	// SendBuffer and RecvBuffer are those of Config, on both ends.
	SendBuffer, RecvBuffer int
	// Bulk is how many bytes are sent where it should be many. 0 means 4 MiB, or 1 MiB
	// in builds with assertions.
	Bulk int

	// NoReset says that the peer of a channel that is reset sees the end of the
	// stream, as with Unix sockets, and not an error.
	NoReset bool
	// EarlyReset says that a channel is told of a reset at once, also while it does not
	// read.
	EarlyReset bool
	// BothDialed says that neither end pauses its reading because it is not writable.
	BothDialed bool
	// AnyMessage says that messages of all types are handed over as they are, files too:
	// the tests of file regions and of unknown types are left out.
	AnyMessage bool
	// Lends says that an end may leave memory, and its socket, with the kernel for a
	// moment, see transport.Quarantine.
	Lends bool
}

// test is a test of the suite.
type test struct {
	name    string // as a subtest; the numbers are those of SEMANTICS.md
	run     func(f *fixture)
	unknown bool // a message of an unknown type is written
}

// Run tests tr.
func Run(t *testing.T, tr Transport) {
	groups := []struct {
		name  string
		tests []test
	}{
		{"exchange", exchangeTests},
		{"files", fileTests},
		{"reading", readingTests},
		{"writing", writingTests},
		{"writability", writabilityTests},
		{"ends", endTests},
		{"closing", closingTests},
		{"handlers", handlerTests},
		{"connecting", connectTests},
	}
	for _, g := range groups {
		switch {
		case g.name == "files" && tr.AnyMessage:
			continue
		case g.name == "connecting" && tr.Network == "":
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			for _, tt := range g.tests {
				if tt.unknown && tr.AnyMessage {
					continue
				}
				t.Run(tt.name, func(t *testing.T) { runTest(t, &tr, tt.run) })
			}
		})
	}
}

// Networks are the stream sockets of the system: TCP over IPv4 and, if there is any,
// IPv6, and Unix sockets; each with the system's buffers and with the smallest that
// there are.
func Networks() map[string]Transport {
	loopback := func(host string) func(testing.TB) string {
		return func(testing.TB) string { return net.JoinHostPort(host, "0") }
	}
	tcp4 := Transport{Network: "tcp4", Addr: loopback("127.0.0.1")}
	tcp6 := Transport{Network: "tcp6", Addr: loopback("::1")}
	unix := Transport{Network: "unix", Addr: socketFile, NoReset: true}
	all := map[string]Transport{
		"tcp4":                           tcp4,
		"tcp4 with a small window":       tcp4.with(1, 4<<10, 16<<10),
		"tcp4 with the smallest buffers": tcp4.with(1, 1, 4<<10),
		"unix":                           unix,
		"unix with the smallest buffers": unix.with(1, 1, 256<<10),
	}
	if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
		l.Close()
		all["tcp6"] = tcp6
		all["tcp6 with the smallest buffers"] = tcp6.with(1, 1, 4<<10)
	}
	return all
}

// with returns tr with buffers of other sizes; the system makes too small ones larger.
// Where the buffers are that small TCP drops what does not fit and sends it again much
// later, so there is little to send.
func (tr Transport) with(send, recv, bulk int) Transport {
	tr.SendBuffer, tr.RecvBuffer, tr.Bulk = send, recv, bulk
	return tr
}

// Local returns the channels inside the process: those of the network "local", and
// those of [transport.LocalPair].
func Local() map[string]Transport {
	var names atomic.Int64
	return map[string]Transport{
		"local": {Network: "local", AnyMessage: true, EarlyReset: true, Addr: func(testing.TB) string {
			return fmt.Sprintf("transporttest/%d", names.Add(1))
		}},
		"local pair": {AnyMessage: true, EarlyReset: true, BothDialed: true, Connect: func(t testing.TB, g *eventloop.Group, a, d End) (pipeline.Channel, pipeline.Channel) {
			end := func(e End) transport.LocalEnd {
				return transport.LocalEnd{Init: e.Init, Config: e.Config, Loop: g.Next()}
			}
			x, y, err := transport.LocalPair(end(a), end(d))
			if err != nil {
				t.Fatal(err)
			}
			return x, y
		}},
	}
}

// socketFile returns a name for a Unix socket. Those of testing.T are too long.
func socketFile(t testing.TB) string {
	dir, err := os.MkdirTemp("", "runnel")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// patience is how long a test waits for what has to come before it fails.
const patience = 30 * time.Second

// fixture is the surroundings of one test.
type fixture struct {
	*testing.T
	tr      *Transport
	group   *eventloop.Group
	bulk    int
	ends    []*end
	witness [2]*end
}

// runTest runs a test in surroundings of its own and looks at what it leaves.
func runTest(t *testing.T, tr *Transport, run func(*fixture)) {
	before := count()
	t.Cleanup(func() { // the last one
		if tr.Lends {
			untilReturned()
		}
		// A goroutine that has done its work may take a moment to be gone.
		after := count()
		for end := time.Now().Add(patience); after.goroutines > before.goroutines && time.Now().Before(end); after = count() {
			runtime.Gosched()
		}
		// What the test before this one has left to end by itself may be gone too.
		if after.descriptors > before.descriptors || after.buffers > before.buffers || after.goroutines > before.goroutines {
			t.Errorf("left: got %+v at the end, want %+v as at the start", after, before)
		}
	})
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{T: t, tr: tr, group: g, bulk: tr.Bulk}
	if f.bulk == 0 {
		f.bulk = 4 << 20
		if invariant.Enabled { // everything takes longer
			f.bulk = 1 << 20
		}
	}
	t.Cleanup(f.finish)
	run(f)
}

// untilReturned waits until the kernel has given back what it was lent.
func untilReturned() {
	for end := time.Now().Add(patience); transport.Quarantine().Sockets > 0 && time.Now().Before(end); {
		runtime.Gosched()
	}
}

// counts is what a test must leave as it was.
type counts struct {
	descriptors, goroutines int
	buffers                 int64
}

func count() counts {
	c := counts{goroutines: runtime.NumGoroutine(), buffers: buffer.Live()}
	if entries, err := os.ReadDir("/proc/self/fd"); err == nil {
		c.descriptors = len(entries)
	}
	return c
}

// finish ends all channels, looks at the events they had, and ends the loops.
func (f *fixture) finish() {
	for _, e := range f.ends {
		if e.ch != nil {
			e.ch.Reset()
		}
	}
	for _, e := range f.ends {
		if e.ch != nil {
			e.wait("the last event", func() bool { return e.removed })
			e.checkLife()
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := f.group.Shutdown(ctx); err != nil {
		f.Errorf("end of the loops: %v", err)
	}
}

// end returns an end that is not connected yet. Its last handler records what
// happens; handlers come before it.
func (f *fixture) end(cfg transport.Config, handlers ...any) *end {
	cfg.SendBuffer, cfg.RecvBuffer = f.tr.SendBuffer, f.tr.RecvBuffer
	if cfg.SendBuffer > 0 && cfg.HighWater == 0 {
		cfg.HighWater = 8 << 10
	}
	e := &end{f: f, cfg: cfg, handlers: handlers}
	e.changed.L = &e.mu
	f.ends = append(f.ends, e)
	return e
}

// connect connects two ends and waits until both are active.
func (f *fixture) connect(accepted, dialed *end) {
	f.Helper()
	if !f.join(accepted, dialed) {
		f.Fatalf("not connected%s", f.story())
	}
	for _, e := range []*end{accepted, dialed} {
		e.wait("HandleActive", func() bool { return e.active })
	}
}

// join makes a connection of two ends, one of which may close before it is active: then
// it reports false. The accepted channel may come to its end later, or not at all.
func (f *fixture) join(accepted, dialed *end) bool {
	f.Helper()
	if connect := f.tr.Connect; connect != nil {
		_, d := connect(f.T, f.group, End{accepted.cfg, accepted.init}, End{dialed.cfg, dialed.init})
		if d == nil {
			return false
		}
	} else {
		l := f.listen(&transport.Server{Init: accepted.init, Config: accepted.cfg})
		if _, err := f.dial(l, dialed); err != nil {
			return false
		}
		accepted.wait("the accepted channel", func() bool { return accepted.ch != nil })
	}
	dialed.wait("the dialed channel", func() bool { return dialed.active || dialed.removed })
	dialed.mu.Lock()
	defer dialed.mu.Unlock()
	return dialed.active
}

// pair connects two ends that only record.
func (f *fixture) pair(accepted, dialed transport.Config) (a, d *end) {
	f.Helper()
	a, d = f.end(accepted), f.end(dialed)
	f.connect(a, d)
	return a, d
}

// listen starts srv on a new address; it ends with the test, before the loops.
func (f *fixture) listen(srv *transport.Server) pipeline.Channel {
	f.Helper()
	srv.Group = f.group
	l, err := srv.Listen(context.Background(), f.tr.Network, f.tr.Addr(f.T))
	if err != nil {
		f.Fatalf("listen: %v", err)
	}
	f.Cleanup(func() {
		// All that is accepted is of an end, which resets it, or is for this to close.
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = srv.Shutdown(ctx)
	})
	return l
}

func (f *fixture) dialer(e *end) *transport.Dialer {
	return &transport.Dialer{Group: f.group, Init: e.init, Config: e.cfg, Timeout: patience}
}

// dial connects e to a listener.
func (f *fixture) dial(l pipeline.Channel, e *end) (pipeline.Channel, error) {
	return f.dialer(e).Dial(context.Background(), f.tr.Network, l.LocalAddr().String())
}

// settle waits until what was under way between channels has arrived, as far as it
// does: a message that is sent now has come after it, on another connection and the
// same loop, and the loop has done another turn.
func (f *fixture) settle() {
	f.Helper()
	if f.witness[0] == nil {
		f.witness[0], f.witness[1] = f.pair(transport.Config{}, transport.Config{})
	}
	from, to := f.witness[0], f.witness[1]
	for range 2 {
		want := to.received() + 1
		from.ch.Write("!")
		to.wait("the witness", func() bool { return len(to.data) >= want })
		to.do(func() {})
		from, to = to, from
	}
}

// await waits for c to be closed or to get something.
func await[T any](f *fixture, c <-chan T, what string) T {
	f.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v := <-c:
		return v
	case <-timer.C:
		f.Fatalf("no sign of %s after %v%s", what, patience, f.story())
		panic("unreachable")
	}
}

// story tells what has happened to all ends.
func (f *fixture) story() string {
	s := ""
	for i, e := range f.ends {
		e.mu.Lock()
		s += fmt.Sprintf("\nend %d: %q, %d bytes in %d reads, %d turns", i, e.log[max(0, len(e.log)-20):], len(e.data), e.reads, e.completes)
		e.mu.Unlock()
		if e.ch != nil {
			s += fmt.Sprintf(", open %v, active %v, writable %v, reason %v", e.ch.Open(), e.ch.Active(), e.ch.Writable(), e.ch.CloseReason())
		}
	}
	return s
}

// pattern returns n bytes that do not repeat soon.
func pattern(n int) []byte {
	p := make([]byte, n)
	x := uint32(n)*2654435761 + 1
	for i := range p {
		x = x*1664525 + 1013904223
		p[i] = byte(x >> 24)
	}
	return p
}

// pooled returns a Buf of the default pool with the bytes of p.
func pooled(p []byte) *buffer.Buf {
	b := buffer.Default().Alloc(len(p))
	b.Write(p)
	return b
}
