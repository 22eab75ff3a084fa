package transport

import (
	"errors"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

func TestConfigCheck(t *testing.T) {
	for _, tt := range []struct {
		name    string
		cfg     Config
		wantErr string // part of it
	}{
		{name: "zero"},
		{name: "negative high", cfg: Config{HighWater: -1}, wantErr: "HighWater"},
		{name: "low above high", cfg: Config{HighWater: 10, LowWater: 11}, wantErr: "LowWater"},
		{name: "low above default high", cfg: Config{LowWater: minHighWater + 1}, wantErr: "LowWater"},
		{name: "negative low", cfg: Config{LowWater: -1}, wantErr: "LowWater"},
		{name: "negative pending", cfg: Config{MaxPending: -1}, wantErr: "MaxPending"},
		{name: "negative close timeout", cfg: Config{CloseTimeout: -1}, wantErr: "CloseTimeout"},
		{name: "negative option", cfg: Config{SendBuffer: -1}, wantErr: "SendBuffer"},
		{name: "huge time", cfg: Config{KeepAlive: math.MaxInt64}, wantErr: "KeepAlive"},
		{name: "interval alone", cfg: Config{KeepAliveInterval: time.Second}, wantErr: "without KeepAlive"},
		{name: "count too large", cfg: Config{KeepAlive: time.Second, KeepAliveCount: 128}, wantErr: "KeepAliveCount"},
		{name: "negative reads", cfg: Config{ReadsPerTurn: -1}, wantErr: "ReadsPerTurn"},
		{name: "huge read", cfg: Config{MinRead: 1<<20 + 1}, wantErr: "MinRead"},
		{name: "bounds the wrong way round", cfg: Config{MinRead: 2, MaxRead: 1}, wantErr: "MinRead"},
		{name: "huge timeout", cfg: Config{UserTimeout: math.MaxInt64}, wantErr: "UserTimeout"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.cfg.check()
			if tt.wantErr == "" && err != nil || tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)) {
				t.Errorf("got %v, want an error about %q", err, tt.wantErr)
			}
		})
	}
}

func TestWaterMarkDefaults(t *testing.T) {
	for _, tt := range []struct {
		cfg             Config
		recv            int
		wantLow, wantHi int64
	}{
		{Config{}, 1 << 10, 32 << 10, 64 << 10},
		{Config{}, 64 << 10, 64 << 10, 128 << 10},
		{Config{}, 1 << 20, 1 << 20, 2 << 20},
		{Config{HighWater: 1000}, 1 << 20, 500, 1000},
		{Config{LowWater: 10}, 64 << 10, 10, 128 << 10},
	} {
		if low, high := tt.cfg.waterMarks(tt.recv); low != tt.wantLow || high != tt.wantHi {
			t.Errorf("%+v with %d: got %d, %d, want %d, %d", tt.cfg, tt.recv, low, high, tt.wantLow, tt.wantHi)
		}
	}
}

func TestRecvSize(t *testing.T) {
	var r recvSize
	steps := []struct {
		read, turn int // bytes of a read or of a turn
		want       int
	}{
		{read: 100, want: 64 << 10},
		{turn: 100, want: 64 << 10},
		{read: 64 << 10, want: 256 << 10},
		{read: 64 << 10, want: 256 << 10},
		{read: 256 << 10, want: 1 << 20},
		{read: 1 << 20, want: 1 << 20},
		{turn: 64<<10 + 1, want: 1 << 20},
		{turn: 100, want: 1 << 20},
		{turn: 64<<10 + 1, want: 1 << 20}, // starts to count again
		{turn: 100, want: 1 << 20},
		{turn: 100, want: 256 << 10},
		{turn: 100, want: 256 << 10},
		{turn: 0, want: 64 << 10},
		{turn: 0, want: 64 << 10},
	}
	for i, s := range steps {
		if s.read > 0 {
			r.read(s.read, 0)
		} else {
			r.turn(s.turn, 0)
		}
		if r.size() != s.want {
			t.Fatalf("step %d: got %d, want %d", i, r.size(), s.want)
		}
	}
}

func TestGatherLimit(t *testing.T) {
	o := outbound{gather: 8 << 10}
	for i, s := range []struct{ offered, taken, want int }{
		{1000, 1000, 8 << 10},
		{8 << 10, 8 << 10, 16 << 10},
		{16 << 10, 9 << 10, 16 << 10},
		{16 << 10, 1, 8 << 10},
		{4 << 10, 1, 8 << 10},
		{1 << 20, 1 << 20, maxGather},
	} {
		if o.tried(s.offered, s.taken); int(o.gather) != s.want {
			t.Errorf("step %d: got %d, want %d", i, o.gather, s.want)
		}
	}
}

func TestFIFO(t *testing.T) {
	var q fifo[int]
	next, first := 0, 0
	for round := range 50 {
		for range round % 7 {
			q.push(next)
			next++
		}
		if q.n > 0 && (*q.last() != next-1 || *q.first() != first) {
			t.Fatalf("round %d: got %d to %d, want %d to %d", round, *q.first(), *q.last(), first, next-1)
		}
		for range min(int(q.n), round%5) {
			*q.first() = 0
			q.pop()
			first++
		}
	}
	for q.n > 0 {
		q.pop()
	}
	if q.shrink(); len(q.ring) > keepFIFO {
		t.Errorf("ring of an empty queue: got %d, want at most %d", len(q.ring), keepFIFO)
	}
}

// Who has nothing to send holds no queue, and the next who has gets it without an
// allocation, once it has grown to what is needed.
func TestQueueIsLent(t *testing.T) {
	var spare spareQueues
	loop := eventloop.NewManual()
	defer loop.Close()
	p := eventloop.NewPromise(loop.Loop())
	a, b := outbound{spare: &spare}, outbound{spare: &spare}
	a.addBuf(pooled("one"), nil, buffer.Default())
	q := a.q
	b.addBuf(pooled(""), p, nil)
	if b.q == nil || b.q == q || spare.n != 0 {
		t.Errorf("two that have something to send: got queues %p and %p and %d spare", a.q, b.q, spare.n)
	}
	a.advance(3)
	if a.q != nil || spare.first != q {
		t.Errorf("empty: got queue %p and spare %p, want none and %p", a.q, spare.first, q)
	}
	if b.due() != p || b.q != nil || spare.n != 2 {
		t.Errorf("completed: got queue %p and %d spare, want none and 2", b.q, spare.n)
	}
	if !a.addRegion(buffer.NewFileRegion(tempFile(t, "cold"), 0, 4), nil, 1<<10) || a.q == nil {
		t.Fatal("a region was not queued")
	}
	if !a.dropFirst() || a.dropFirst() || a.q != nil || spare.n != 2 {
		t.Errorf("dropped: got queue %p and %d spare, want none and 2", a.q, spare.n)
	}
	for range 2 * keepFIFO {
		a.addBuf(pooled(letters(mergeLimit+1)), nil, nil)
	}
	a.advance(2 * keepFIFO * (mergeLimit + 1))
	if n := len(spare.first.entries.ring); n != 0 {
		t.Errorf("spare: got a ring of %d, want none as long", n)
	}

	msg := pooled("again")
	defer msg.Release()
	if invariant.Enabled {
		return // checks allocate
	}
	if got := testing.AllocsPerRun(100, func() {
		msg.Retain()
		a.addBuf(msg, nil, nil)
		a.advance(0)
		a.dropFirst()
	}); got != 0 {
		t.Errorf("a message through a spare queue: got %v allocations, want 0", got)
	}
}

// A loop keeps no more queues than it can use in a turn.
func TestSpareQueuesAreBounded(t *testing.T) {
	var spare spareQueues
	for range maxSpareQueues + 1 {
		spare.give(new(queue))
	}
	if spare.n != maxSpareQueues {
		t.Errorf("got %d, want %d", spare.n, maxSpareQueues)
	}
}

// Slices of one block in a row are charged for it once.
func TestSharedBlockIsChargedOnce(t *testing.T) {
	var o outbound
	b := pooled(letters(60000))
	pinned := int64(b.Pinned())
	head := pooled("head")
	small := int64(head.Pinned())
	head.Release()
	for range 10 {
		o.addBuf(pooled("head"), nil, nil)
		o.addBuf(b.ReadSlice(6000), nil, nil)
	}
	b.Release()
	if got, want := o.charge, pinned+10*small+20*entryCharge; got != want {
		t.Errorf("charge: got %d, want %d", got, want)
	}
	o.advance(60039)
	if got, want := o.charge, pinned+entryCharge; got != want {
		t.Errorf("charge of the last slice: got %d, want %d", got, want)
	}
	o.advance(1)
	if o.charge != 0 {
		t.Errorf("charge when empty: got %d", o.charge)
	}
}

// A composite is charged for all of its parts, also when what follows shares one.
func TestCompositeIsChargedInFull(t *testing.T) {
	var o outbound
	a, b := pooled(letters(60000)), pooled(letters(60000))
	one := a.Slice(0, 6000)
	both := buffer.Compose(a, b)
	want := int64(both.Pinned()+one.Pinned()) + 2*entryCharge
	o.addBuf(both, nil, nil)
	o.addBuf(one, nil, nil)
	if o.charge != want {
		t.Errorf("charge: got %d, want %d", o.charge, want)
	}
	o.advance(126000)
	if o.charge != 0 {
		t.Errorf("charge when empty: got %d", o.charge)
	}
}

// Slices that lie side by side are one entry; a completion still comes with its own
// bytes, and what somebody else holds stays as it is.
func TestAdjacentSlicesAreOneEntry(t *testing.T) {
	text := letters(6000)
	b := pooled(text)
	var o outbound
	loop := eventloop.NewManual()
	defer loop.Close()
	first := b.ReadSlice(1500)
	o.addBuf(first, nil, nil)
	p := eventloop.NewPromise(loop.Loop())
	o.addBuf(b.ReadSlice(1500), p, nil)
	if o.len() != 1 {
		t.Errorf("got %d entries, want 1", o.len())
	}
	first.Retain()
	o.addBuf(b.ReadSlice(1500), nil, nil)
	if o.len() != 2 || first.Len() != 3000 {
		t.Errorf("held: got %d entries and %d bytes in the first, want 2 and 3000", o.len(), first.Len())
	}
	o.addBuf(b, nil, nil) // the rest, in the Buf that was received
	if o.len() != 2 {
		t.Errorf("with the rest: got %d entries, want 2", o.len())
	}
	parts, bytes, _, _ := o.parts(make([]sys.Iovec, 0, 8), o.queued)
	var got []byte
	for _, part := range parts {
		got = append(got, partBytes(part)...)
	}
	if bytes != len(text) || string(got) != text {
		t.Errorf("got %d bytes, want %d, or they differ", bytes, len(text))
	}
	o.advance(2999)
	if o.due() != nil {
		t.Error("got a completion before its last byte has left")
	}
	o.advance(1)
	if o.due() != p {
		t.Error("got no completion when its last byte has left")
	}
	o.advance(3000)
	if !o.empty() || o.charge != 0 {
		t.Errorf("got %d entries and a charge of %d at the end", o.len(), o.charge)
	}
	first.Release()
}

// A composite leaves in steps of what an iovec array holds, and gives its parts back
// as they leave.
func TestCompositeLeavesInSteps(t *testing.T) {
	var o outbound
	b := buffer.Compose()
	for range 50 {
		b.Append(buffer.Compose(pooled("abc"), pooled("de")))
	}
	before := buffer.Live()
	o.addBuf(b, nil, nil)
	steps := 0
	for ; !o.empty(); steps++ {
		_, bytes, _, _ := o.parts(make([]sys.Iovec, 0, 8), o.queued-o.sent)
		if bytes != 20 && steps < 12 {
			t.Fatalf("step %d: got %d bytes, want those of 8 parts", steps, bytes)
		}
		o.advance(int64(bytes))
		if got, want := buffer.Live(), before-8*int64(steps+1); steps < 12 && got != want {
			t.Errorf("step %d: got %d live, want %d", steps, got, want)
		}
	}
	if steps != 13 || o.charge != 0 {
		t.Errorf("got %d steps and a charge of %d, want 13 and 0", steps, o.charge)
	}
}

// scriptAccept is a listening socket that does what a test says.
type scriptAccept struct {
	steps  []error // nil is a connection
	closed int
	calls  int
}

func (s *scriptAccept) accept() (int, sys.Peer, error) {
	s.calls++
	if len(s.steps) == 0 {
		return -1, sys.Peer{}, sys.ErrAgain
	}
	err := s.steps[0]
	s.steps = s.steps[1:]
	if err != nil {
		return -1, sys.Peer{}, os.NewSyscallError("accept4", err)
	}
	fd, err := sys.Socket(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1).To4()})
	return fd, sys.Peer{Other: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}}, err
}

func (s *scriptAccept) close() { s.closed++ }

// Errors of accept do not end a listener: those of one connection are passed over,
// a lack of something pauses it, with a limited number of log lines.
func TestAcceptErrors(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	m := eventloop.NewManual()
	var srv Server
	srv.Config.Logger = zap.New(core)
	srv.setUp()
	k := &scriptAccept{}
	l := newListener(srv.s, m.Loop(), scriptFD, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	l.sock = k
	var accepted []pipeline.Channel
	hold := pipeline.On(func(_ *pipeline.Context, ch *stream) error {
		accepted = append(accepted, ch)
		return nil
	})
	m.Enter(func() {
		if err := l.start(func(ch pipeline.Channel) error { return ch.Pipeline().Add(hold) }); err != nil {
			t.Fatal(err)
		}
	})
	ready := func() { m.Ready(scriptFD, eventloop.EventRead); m.RunUntilIdle() }

	k.steps = []error{syscall.ECONNABORTED, nil, syscall.EPROTO, nil}
	ready()
	if len(accepted) != 2 {
		t.Fatalf("accepted: got %d, want 2", len(accepted))
	}
	if logs.Len() != 0 {
		t.Errorf("logged %v, want nothing", logs.All())
	}
	for i, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		k.steps = []error{errno}
		before := k.calls
		m.Ready(scriptFD, eventloop.EventRead)
		m.Advance(maxAcceptBackoff)
		ready()
		if k.calls == before {
			t.Fatalf("%v: not tried again", errno)
		}
		if logs.Len() != 1 {
			t.Errorf("after %d errors in a row: %d log lines, want 1", i+1, logs.Len())
		}
	}
	m.Advance(acceptLogEvery)
	k.steps = []error{syscall.EMFILE, nil}
	ready()
	if logs.Len() != 2 || logs.All()[1].ContextMap()["not_logged"] != int64(3) {
		t.Errorf("log: got %v, want a second line that counts 3", logs.All())
	}
	if ev := l.reg.Interest(); ev != 0 {
		t.Errorf("interest while pausing: got %v, want none", ev)
	}
	m.Advance(maxAcceptBackoff)
	ready()
	if len(accepted) != 3 {
		t.Errorf("accepted in the end: got %d, want 3", len(accepted))
	}
	m.Enter(func() { l.Close() })
	m.RunUntilIdle()
	if k.closed != 1 || l.Open() {
		t.Errorf("closed %d times, open %v", k.closed, l.Open())
	}
	for _, ch := range accepted {
		closed := ch.Closed().Done()
		ch.Close()
		await(t, closed, "the close of a channel that was never started")
	}
	m.Close()
	if err := srv.Shutdown(t.Context()); err != nil { // waits until none is left
		t.Errorf("Shutdown: %v", err)
	}
	if !slices.Equal(k.steps, nil) {
		t.Errorf("steps left: %v", k.steps)
	}
}

func TestOpError(t *testing.T) {
	addr := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7}
	err := error(&OpError{Op: "read", Addr: addr, Err: syscall.ECONNRESET})
	if got, want := err.Error(), "transport: read 127.0.0.1:7: connection reset by peer"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Error("does not match its cause")
	}
	if !errors.Is(ErrConnectTimeout, os.ErrDeadlineExceeded) {
		t.Error("ErrConnectTimeout does not match os.ErrDeadlineExceeded")
	}
	var ne net.Error
	if !errors.As(ErrConnectTimeout, &ne) || !ne.Timeout() {
		t.Error("ErrConnectTimeout is not a net.Error that timed out")
	}
}

// A channel fits the runtime's size class of 480 bytes, of which a million idle
// connections feel every byte: the next one has 512, and above that objects with pointers
// have a header of 8.
func TestChannelSize(t *testing.T) {
	if n := streamSize; wordSize == 8 && n > 480 {
		t.Errorf("size of a stream: got %d, want at most 480", n)
	}
}

// A completion that waits is charged, also that of a message that costs hardly anything
// itself: otherwise a peer that does not read could have any number of them wait.
func TestCompletionsAreCharged(t *testing.T) {
	loop := eventloop.NewManual()
	defer loop.Close()
	var o outbound
	const n = 1000
	for range n {
		o.addBuf(pooled("x"), eventloop.NewPromise(loop.Loop()), buffer.Default())
	}
	if o.charge < n*completionCharge {
		t.Errorf("got a charge of %d for %d completions, want %d at least", o.charge, n, n*completionCharge)
	}
	o.advance(n / 2)
	for p := o.due(); p != nil; p = o.due() {
		p.Complete(nil)
	}
	if got, most := o.charge, int64(n/2*completionCharge+8<<10); got > most {
		t.Errorf("got a charge of %d when half has left, want %d at most", got, most)
	}
	for _, p := range o.takeWaiting() {
		p.Complete(nil)
	}
	for o.dropFirst() {
	}
	if o.charge != 0 {
		t.Errorf("got a charge of %d for nothing", o.charge)
	}
}
