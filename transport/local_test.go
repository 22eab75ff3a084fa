package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
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

// localEnd is an end of a pair in virtual time, and what its handler has seen.
type localEnd struct {
	ch     pipeline.Channel
	got    []any
	events []string
	errs   []error
}

func (e *localEnd) HandleRead(_ *pipeline.Context, msg any) error {
	e.got = append(e.got, msg)
	return nil
}

func (e *localEnd) note(s string) error {
	e.events = append(e.events, s)
	return nil
}

func (e *localEnd) HandleActive(*pipeline.Context) error { return e.note("active") }
func (e *localEnd) HandleWritability(c *pipeline.Context) error {
	return e.note(fmt.Sprint("writable ", c.Channel().Writable()))
}
func (e *localEnd) HandleEvent(_ *pipeline.Context, ev any) error {
	return e.note(fmt.Sprintf("%T", ev))
}
func (e *localEnd) HandleError(_ *pipeline.Context, err error) { e.errs = append(e.errs, err) }
func (e *localEnd) HandleInactive(*pipeline.Context) error     { return e.note("inactive") }

// text takes what was read as a string, of Bufs.
func (e *localEnd) text(t *testing.T) string {
	t.Helper()
	var s strings.Builder
	for _, m := range e.got {
		b, ok := m.(*buffer.Buf)
		if !ok {
			t.Fatalf("got a %T, want a *buffer.Buf", m)
		}
		s.WriteString(b.ReadString(b.Len()))
		b.Release()
	}
	e.got = nil
	return s.String()
}

func (e *localEnd) wantEvents(t *testing.T, want ...string) {
	t.Helper()
	if got, want := strings.Join(e.events, ", "), strings.Join(want, ", "); got != want {
		t.Errorf("events: got %s; want %s", got, want)
	}
}

// localPair is a pair on one loop in virtual time.
type localPair struct {
	man  *eventloop.Manual
	a, b localEnd
}

func newLocalPair(t *testing.T, a, b Config) *localPair {
	t.Helper()
	p := &localPair{man: eventloop.NewManual()}
	end := func(e *localEnd, cfg Config) LocalEnd {
		return LocalEnd{Config: cfg, Loop: p.man.Loop(), Init: func(ch pipeline.Channel) error { return ch.Pipeline().Add(e) }}
	}
	var err error
	p.a.ch, p.b.ch, err = LocalPair(end(&p.a, a), end(&p.b, b))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, e := range []*localEnd{&p.a, &p.b} {
			e.ch.Reset()
		}
		p.run()
		for _, e := range []*localEnd{&p.a, &p.b} {
			for _, m := range e.got {
				buffer.Release(m)
			}
			if e.ch.Open() {
				t.Errorf("%v is still open", e.ch)
			}
		}
		p.man.Close()
	})
	p.run()
	return p
}

func (p *localPair) run() { p.man.RunUntilIdle() }

// Any message is handed over as it is; only bytes without an owner become a Buf.
func TestLocalMessages(t *testing.T) {
	p := newLocalPair(t, Config{}, Config{})
	p.a.wantEvents(t, "active")
	if a, b := p.a.ch, p.b.ch; a.RemoteAddr() != b.LocalAddr() || a.LocalAddr() != b.RemoteAddr() || a.LocalAddr().Network() != "local" {
		t.Errorf("got addresses %v - %v and %v - %v", a.LocalAddr(), a.RemoteAddr(), b.LocalAddr(), b.RemoteAddr())
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	own := buffer.FromString("own")
	kept := buffer.FromString("kept")
	kept.Retain()
	region := buffer.NewFileRegion(f, 0, 7)
	record := &struct{ n int }{42}
	bytes := []byte("bytes")
	var order []int
	for i, m := range []any{own, kept, region, record, 42, bytes, "string", "", buffer.FromString("")} {
		p.a.ch.WriteThen(m, func(err error) {
			if err != nil {
				t.Errorf("write %d: %v", i, err)
			}
			order = append(order, i)
		})
	}
	p.man.Turn()
	bytes[0] = 'X' // it was copied
	p.run()
	if len(order) != 9 || fmt.Sprint(order) != "[0 1 2 3 4 5 6 7 8]" {
		t.Errorf("completions: got %v, want all in order", order)
	}
	got := p.b.got
	if len(got) != 7 {
		t.Fatalf("got %d messages, want 7: empty ones are none", len(got))
	}
	if got[0] != own || got[2] != region || got[3] != record || got[4] != 42 {
		t.Errorf("got %v, want the same messages", got)
	}
	if got[1] == kept || kept.Refs() != 1 {
		t.Errorf("a Buf that somebody keeps: got the same one, with %d references, want another", kept.Refs())
	}
	if s := got[1].(*buffer.Buf).String(); s == "" || got[1].(*buffer.Buf).Len() != 4 {
		t.Errorf("got %v, want the content of what is kept", got[1])
	}
	for i, want := range map[int]string{5: "bytes", 6: "string"} {
		b, ok := got[i].(*buffer.Buf)
		if !ok || b.Len() != len(want) || b.Duplicate().Release() && false {
			t.Errorf("message %d: got %v, want a Buf of %q", i, got[i], want)
		}
	}
	kept.Release()
	var failed error
	p.a.ch.WriteThen(nil, func(err error) { failed = err })
	p.run()
	if !errors.Is(failed, ErrUnsupportedMessage) {
		t.Errorf("nil: got %v, want ErrUnsupportedMessage", failed)
	}
}

// A sender is not writable when its peer does not read, and goes on when it does.
func TestLocalBackpressure(t *testing.T) {
	p := newLocalPair(t, Config{HighWater: 32 << 10}, Config{ManualRead: true})
	msg := strings.Repeat("x", 8<<10)
	n := 0
	p.man.Enter(func() {
		for p.a.ch.Writable() {
			p.a.ch.Write(msg)
			n++
		}
	})
	p.run()
	if total := n * len(msg); total < 64<<10 || total > 64<<10+64<<10 {
		t.Errorf("got %d bytes until it was not writable, want those on the way and the mark", total)
	}
	p.a.wantEvents(t, "active", "writable false")
	if len(p.b.got) != 0 {
		t.Errorf("got %d messages without a request, want 0", len(p.b.got))
	}
	p.b.ch.Read()
	p.run()
	if len(p.b.got) != 1 {
		t.Errorf("got %d messages after a request, want 1", len(p.b.got))
	}
	p.b.ch.SetAutoRead(true)
	p.run()
	if got := p.b.text(t); len(got) != n*len(msg) {
		t.Errorf("got %d bytes, want %d", len(got), n*len(msg))
	}
	p.a.wantEvents(t, "active", "writable false", "writable true")
}

// MaxPending ends a channel whose peer does not read.
func TestLocalMaxPending(t *testing.T) {
	p := newLocalPair(t, Config{MaxPending: 100 << 10}, Config{ManualRead: true})
	for range 40 {
		p.a.ch.Write(make([]byte, 8<<10))
	}
	p.run()
	if !errors.Is(p.a.ch.CloseReason(), ErrSlowPeer) || len(p.a.errs) != 1 {
		t.Errorf("got %v, errors %v; want ErrSlowPeer", p.a.ch.CloseReason(), p.a.errs)
	}
}

// One turn of reading is 16 messages, or what Config says.
func TestLocalReadsPerTurn(t *testing.T) {
	for _, tt := range []struct{ config, want int }{{0, 16}, {3, 3}} {
		p := newLocalPair(t, Config{}, Config{ReadsPerTurn: tt.config, ManualRead: true})
		turns := readCounter{}
		p.man.Enter(func() {
			if err := p.b.ch.Pipeline().Add(&turns); err != nil {
				t.Fatal(err)
			}
			for range 40 {
				p.a.ch.Write("x")
			}
		})
		p.b.ch.SetAutoRead(true)
		p.run()
		if got := len(p.b.text(t)); got != 40 || turns.n != (40+tt.want-1)/tt.want {
			t.Errorf("got %d messages in %d turns, want 40 in turns of %d", got, turns.n, tt.want)
		}
	}
}

type readCounter struct{ n int }

func (r *readCounter) HandleReadComplete(*pipeline.Context) error { r.n++; return nil }

// What was written leaves before the end, however the two ends close.
func TestLocalClose(t *testing.T) {
	for _, tt := range []struct {
		name         string
		half         bool
		close        func(p *localPair)
		aWant, bWant []string
		aEnd, bEnd   error
	}{
		{"close", false, func(p *localPair) { p.a.ch.Close() },
			[]string{"active", "inactive"}, []string{"active", "inactive"}, pipeline.ErrClosed, io.EOF},
		{"half-close", true, func(p *localPair) { p.a.ch.CloseWrite() },
			[]string{"active", "pipeline.OutputShutdown"}, []string{"active", "pipeline.InputShutdown"}, nil, nil},
		{"half-close of both", true, func(p *localPair) { p.a.ch.CloseWrite(); p.b.ch.CloseWrite() },
			[]string{"active", "pipeline.InputShutdown", "pipeline.OutputShutdown", "inactive"},
			[]string{"active", "pipeline.OutputShutdown", "pipeline.InputShutdown", "inactive"}, io.EOF, io.EOF},
		{"half-close that is answered by a close", false, func(p *localPair) { p.a.ch.CloseWrite() },
			[]string{"active", "pipeline.OutputShutdown", "inactive"}, []string{"active", "inactive"}, io.EOF, io.EOF},
		{"reset", false, func(p *localPair) { p.run(); p.a.ch.Reset() },
			[]string{"active", "inactive"}, []string{"active", "inactive"}, pipeline.ErrReset, syscall.ECONNRESET},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newLocalPair(t, Config{HalfClose: tt.half, HighWater: 1 << 20}, Config{HalfClose: tt.half})
			for range 50 {
				p.a.ch.Write(strings.Repeat("x", 8<<10)) // more than the way takes
			}
			tt.close(p)
			p.run()
			if got := len(p.b.text(t)); got != 50*8<<10 {
				t.Errorf("got %d bytes, want %d", got, 50*8<<10)
			}
			p.a.wantEvents(t, tt.aWant...)
			p.b.wantEvents(t, tt.bWant...)
			for _, e := range []struct {
				ch   pipeline.Channel
				want error
			}{{p.a.ch, tt.aEnd}, {p.b.ch, tt.bEnd}} {
				if reason := e.ch.CloseReason(); e.want == nil && reason != nil || !errors.Is(reason, e.want) {
					t.Errorf("reason: got %v, want %v", reason, e.want)
				}
			}
			if tt.half && p.a.ch.Open() {
				p.a.ch.WriteThen("late", func(err error) {
					if !errors.Is(err, pipeline.ErrOutputShutdown) {
						t.Errorf("write after CloseWrite: got %v, want ErrOutputShutdown", err)
					}
				})
				p.b.ch.Write("answer")
				p.run()
				if got := p.a.text(t); got != "answer" {
					t.Errorf("got %q on the way that is open, want answer", got)
				}
			}
		})
	}
}

// A reset drops what has not been read, at both ends, and fails what has not left.
func TestLocalResetDrops(t *testing.T) {
	p := newLocalPair(t, Config{}, Config{ManualRead: true})
	var errs []error
	for range 50 {
		p.a.ch.WriteThen(make([]byte, 8<<10), func(err error) { errs = append(errs, err) })
		p.b.ch.Write("x")
	}
	p.run()
	left := len(errs)
	if left == 0 || left == 50 {
		t.Fatalf("got %d messages that have left, want some", left)
	}
	p.b.ch.Reset()
	p.run()
	if len(errs) != 50 {
		t.Fatalf("got %d completions, want 50", len(errs))
	}
	for i, err := range errs {
		if i < left && err != nil || i >= left && !errors.Is(err, pipeline.ErrClosed) {
			t.Errorf("completion %d of %d that left before: %v", i, left, err)
		}
	}
	var op *OpError
	if len(p.a.errs) != 1 || !errors.As(p.a.errs[0], &op) || !errors.Is(op, syscall.ECONNRESET) {
		t.Errorf("got errors %v, want one ECONNRESET", p.a.errs)
	}
	if len(p.b.got) != 0 {
		t.Errorf("got %d messages at the end that did not read, want 0", len(p.b.got))
	}
}

// A write to an end that has closed is an error.
func TestLocalWriteToClosed(t *testing.T) {
	p := newLocalPair(t, Config{HalfClose: true}, Config{})
	p.b.ch.Close()
	p.run()
	p.a.wantEvents(t, "active", "pipeline.InputShutdown")
	p.a.ch.Write("anybody?")
	p.run()
	if !errors.Is(p.a.ch.CloseReason(), syscall.EPIPE) || len(p.a.errs) != 1 {
		t.Errorf("got %v, want EPIPE", p.a.ch.CloseReason())
	}
}

// A close waits for a peer that takes nothing, and not for ever.
func TestLocalCloseTimeout(t *testing.T) {
	p := newLocalPair(t, Config{CloseTimeout: time.Second}, Config{ManualRead: true})
	for range 50 {
		p.a.ch.Write(make([]byte, 8<<10))
	}
	p.a.ch.Close()
	p.run()
	p.man.Advance(900 * time.Millisecond)
	for range 10 { // progress: there is room for more when half of it has been read
		p.b.ch.Read()
		p.run()
	}
	p.man.Advance(900 * time.Millisecond)
	p.run()
	if !p.a.ch.Open() {
		t.Fatalf("closed though the peer reads: %v", p.a.ch.CloseReason())
	}
	p.man.Advance(2 * time.Second)
	p.run()
	if !errors.Is(p.a.ch.CloseReason(), ErrCloseTimeout) {
		t.Errorf("got %v, want ErrCloseTimeout", p.a.ch.CloseReason())
	}
	p.run()
	if p.b.ch.Open() {
		t.Error("the peer does not know")
	}
}

// What is written before the channel is active leaves first.
func TestLocalEarlyWrites(t *testing.T) {
	man := eventloop.NewManual()
	defer man.Close()
	var b localEnd
	early := func(ch pipeline.Channel) error { ch.Write("early"); ch.Flush(); return nil }
	s, r, err := LocalPair(LocalEnd{Loop: man.Loop(), Init: early},
		LocalEnd{Loop: man.Loop(), Init: func(ch pipeline.Channel) error { return ch.Pipeline().Add(&b) }})
	if err != nil {
		t.Fatal(err)
	}
	man.RunUntilIdle()
	if got := b.text(t); got != "early" {
		t.Errorf("got %q, want early", got)
	}
	s.Close()
	man.RunUntilIdle()
	if r.Open() {
		t.Error("the peer is still open")
	}
}

func TestLocalPairErrors(t *testing.T) {
	if _, _, err := LocalPair(LocalEnd{Config: Config{HighWater: -1}}, LocalEnd{}); err == nil {
		t.Error("bad configuration: got nil, want an error")
	}
	good, ended := eventloop.NewManual(), eventloop.NewManual()
	ended.Close()
	for _, pair := range [][2]*eventloop.Manual{{good, ended}, {ended, good}} {
		if _, _, err := LocalPair(LocalEnd{Loop: pair[0].Loop()}, LocalEnd{Loop: pair[1].Loop()}); !errors.Is(err, eventloop.ErrLoopClosed) {
			t.Errorf("a loop that has ended: got %v, want ErrLoopClosed", err)
		}
		good.RunUntilIdle()
	}
	refuse := errors.New("no")
	var b localEnd
	x, y, err := LocalPair(LocalEnd{Loop: good.Loop(), Init: func(pipeline.Channel) error { return refuse }},
		LocalEnd{Loop: good.Loop(), Init: func(ch pipeline.Channel) error { return ch.Pipeline().Add(&b) }})
	if err != nil {
		t.Fatal(err)
	}
	good.RunUntilIdle()
	if !errors.Is(x.CloseReason(), refuse) || y.Open() {
		t.Errorf("an Init that fails: got %v and %v, want its error and the end of the peer", x.CloseReason(), y.CloseReason())
	}
	good.Close()
}

// The end of a loop is the end of its channels, and their peers see it.
func TestLocalLoopEnds(t *testing.T) {
	one, two := eventloop.NewManual(), eventloop.NewManual()
	var b localEnd
	x, y, err := LocalPair(LocalEnd{Loop: one.Loop()},
		LocalEnd{Loop: two.Loop(), Init: func(ch pipeline.Channel) error { return ch.Pipeline().Add(&b) }})
	if err != nil {
		t.Fatal(err)
	}
	one.RunUntilIdle()
	two.RunUntilIdle()
	one.Close()
	two.RunUntilIdle()
	if !errors.Is(x.CloseReason(), ErrLoopEnded) || !errors.Is(y.CloseReason(), io.EOF) {
		t.Errorf("got %v and %v, want ErrLoopEnded and io.EOF", x.CloseReason(), y.CloseReason())
	}
	two.Close()
}

// A panic in the transport ends one channel. A message that was released too early is
// such a one.
func TestLocalReleasedMessage(t *testing.T) {
	p := newLocalPair(t, Config{ManualFlush: true}, Config{})
	b := buffer.FromString("gone")
	p.a.ch.Write(b)
	p.run()
	b.Release()
	p.a.ch.Reset()
	p.run()
	if p.a.ch.Open() || p.b.ch.Open() {
		t.Error("the channels are still open")
	}
}

// Many channels on several loops do anything at any time: nothing is lost on ways that
// end in order, nothing is left anywhere.
func TestLocalStress(t *testing.T) {
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 3})
	if err != nil {
		t.Fatal(err)
	}
	var sent, got atomic.Int64
	count := func(orderly bool) func(ch pipeline.Channel) error {
		return func(ch pipeline.Channel) error {
			return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
				if orderly {
					got.Add(int64(b.Len()))
				}
				b.Release()
				return nil
			}))
		}
	}
	var ends []pipeline.Channel
	loops := g.Loops()
	var wg sync.WaitGroup
	for i := range 60 {
		rnd := rand.New(rand.NewPCG(uint64(i), 1))
		orderly := i%2 == 0
		end := LocalEnd{Loop: loops[i%3], Init: count(orderly), Config: Config{HalfClose: true}}
		other := end
		other.Loop = loops[rnd.IntN(3)]
		a, b, err := LocalPair(end, other)
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, a, b)
		for _, ch := range []pipeline.Channel{a, b} {
			rnd := rand.New(rand.NewPCG(uint64(i), ch.ID()))
			wg.Go(func() {
				for range 300 {
					switch n := rnd.IntN(100); {
					case n < 60:
						n := rnd.IntN(5000)
						ch.WriteThen(make([]byte, n), func(err error) {
							if err == nil && orderly {
								sent.Add(int64(n))
							}
						})
					case n < 70:
						ch.SetAutoRead(!ch.AutoRead())
					case n < 80:
						ch.Flush()
					case n < 99 || orderly:
						ch.SetAutoRead(true) // or both might wait for each other
						_ = ch.Send(context.Background(), "x")
						if orderly {
							sent.Add(1)
						}
					default:
						ch.Reset()
					}
					if !ch.AutoRead() && rnd.IntN(3) == 0 {
						ch.SetAutoRead(true)
					}
				}
				ch.SetAutoRead(true)
				if orderly {
					ch.CloseWrite()
				} else {
					ch.Close()
				}
			})
		}
		if orderly {
			continue
		}
		wg.Go(func() {
			if rnd.IntN(2) == 0 {
				a.Reset()
			}
		})
	}
	wg.Wait()
	for _, ch := range ends {
		await(t, ch.Closed().Done(), "the end of a channel")
	}
	if sent.Load() != got.Load() || sent.Load() == 0 {
		t.Errorf("got %d bytes where nothing was reset, want %d", got.Load(), sent.Load())
	}
	if err := g.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if n := buffer.Live(); n != 0 {
		t.Errorf("got %d live buffers, want 0", n)
	}
}

// Local channels need no descriptors, so loops without a poller will do.
func TestLocalWithoutPoller(t *testing.T) {
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 2, Poller: "none"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	srv := &Server{Group: g, Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, n int) error {
			c.Write(n + 1)
			return nil
		}))
	}}
	l, err := srv.Listen(ctx, "local", "")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan int, 1)
	d := &Dialer{Group: g, Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.On(func(_ *pipeline.Context, n int) error {
			got <- n
			return nil
		}))
	}}
	ch, err := d.Dial(ctx, "local", l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := ch.Send(ctx, i); err != nil {
			t.Fatal(err)
		}
		if n := await(t, got, "an answer"); n != i+1 {
			t.Errorf("got %d, want %d", n, i+1)
		}
	}
	if err := srv.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	await(t, ch.Closed().Done(), "the end of the channel")
	if err := g.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

// What a peer had sent before a drain is read, however many turns that takes; when it is not
// because the channel cannot read, the drain goes on after a time without progress.
func TestLocalDrainReadsWhatHasCome(t *testing.T) {
	for _, paused := range []bool{false, true} {
		p := newLocalPair(t, Config{}, Config{ReadsPerTurn: 3})
		s := p.b.ch.(*localChannel)
		p.man.Enter(func() {
			for range 40 {
				p.a.ch.Write("x")
			}
			p.a.ch.Flush()
			s.paused = paused // as one of a server's that is not writable
			if err := s.Loop().Submit((*localDrain)(s)); err != nil {
				t.Fatal(err)
			}
		})
		p.run()
		want := 40
		if paused {
			if want = 0; !s.Open() {
				t.Error("closed at once with something unread")
			}
			p.man.Advance(s.cfg.CloseTimeout)
			p.run()
		}
		if got := len(p.b.text(t)); got != want || s.Open() {
			t.Errorf("paused %v: got %d messages, open %v; want %d and false", paused, got, s.Open(), want)
		}
	}
}
