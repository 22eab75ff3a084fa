package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// slow is a channel on a real loop whose peer takes as many messages as it is told to.
type slow struct {
	pipeline.Base
	ended chan struct{}
	left  chan any // what the peer has taken; nil if nobody asks

	// Loop-only.
	queue   []slowEntry
	pending int64
	peak    int64 // of pending
	open    bool  // the peer takes everything
	closed  bool
}

type slowEntry struct {
	msg  any
	size int64
	p    *eventloop.Promise
}

func newSlow(t testing.TB, l *eventloop.Loop, high, low int64, handlers ...any) *slow {
	t.Helper()
	s := &slow{ended: make(chan struct{})}
	s.Setup(s, (*slowCore)(s), pipeline.BaseConfig{Loop: l, HighWater: high, LowWater: low})
	onLoop(t, l, func() {
		if err := s.Register(func(ch pipeline.Channel) error { return ch.Pipeline().Add(handlers...) }); err != nil {
			t.Error(err)
		}
		s.MarkActive()
	})
	t.Cleanup(func() {
		s.Reset()
		await(t, "the end", s.ended)
	})
	return s
}

// take has n messages leave. Loop-only.
func (s *slow) take(n int) {
	for ; n > 0 && len(s.queue) > 0 && !s.closed; n-- {
		e := s.queue[0]
		s.queue = s.queue[1:]
		s.pending -= e.size
		if s.left != nil {
			s.left <- e.msg
		}
		release(e.msg)
		e.p.Complete(nil)
		if !s.closed {
			s.SetPending(s.pending)
		}
	}
}

func release(msg any) {
	if m, ok := msg.(*countedSafe); ok {
		m.Release()
	}
}

// countedSafe is counted for any goroutine.
type countedSafe struct {
	id   int
	refs atomic.Int32
}

func newCounted(id int) *countedSafe {
	m := &countedSafe{id: id}
	m.refs.Store(1)
	return m
}

func (m *countedSafe) Retain()       { m.refs.Add(1) }
func (m *countedSafe) Release() bool { return m.refs.Add(-1) == 0 }

type slowCore slow

func (k *slowCore) DoConnect(_, _ net.Addr, p *eventloop.Promise) { p.Complete(nil) }
func (k *slowCore) DoWrite(msg any, p *eventloop.Promise) {
	if k.closed {
		release(msg)
		p.Complete(k.CloseReason())
		return
	}
	e := slowEntry{msg, pipeline.PendingSize(msg, k.HighWater()), p}
	k.queue = append(k.queue, e)
	k.pending += e.size
	k.peak = max(k.peak, k.pending)
	k.SetPending(k.pending)
}
func (k *slowCore) DoFlush() {
	if k.open {
		(*slow)(k).take(len(k.queue))
	}
}
func (k *slowCore) DoRead()                           {}
func (k *slowCore) DoReadStop()                       {}
func (k *slowCore) DoCloseWrite(p *eventloop.Promise) { p.Complete(nil) }
func (k *slowCore) DoWritability(bool)                {}
func (k *slowCore) LocalAddr() net.Addr               { return nil }
func (k *slowCore) RemoteAddr() net.Addr              { return nil }
func (k *slowCore) DoEnd()                            { close(k.ended) }
func (k *slowCore) DoClose(_ pipeline.CloseMode, r error) {
	if k.closed {
		return
	}
	k.closed = true
	k.MarkClosed(r)
	for _, e := range k.queue {
		release(e.msg)
		e.p.Complete(k.CloseReason())
	}
	k.queue = nil
}

// sendAsync starts a Send and returns where its result comes.
func sendAsync(ctx context.Context, ch pipeline.Channel, msg any) <-chan error {
	result := make(chan error, 1)
	go func() { result <- ch.Send(ctx, msg) }()
	return result
}

// inLine waits until n senders wait for room.
func inLine(t testing.TB, ch pipeline.Channel, n int) {
	t.Helper()
	for end := time.Now().Add(patience); pipeline.WaitingSenders(ch) != n; runtime.Gosched() {
		if time.Now().After(end) {
			t.Errorf("in the line: got %d, want %d", pipeline.WaitingSenders(ch), n)
			return
		}
	}
}

// entrySize is what a message without a size of its own counts.
var entrySize = pipeline.PendingSize(struct{}{}, 0)

// Send returns when the message has left, or why it has not.
func TestSend(t *testing.T) {
	l := newLoop(t)
	refuse := errors.New("refused")
	s := newSlow(t, l, 1000, 500, pipeline.OnWrite(func(_ *pipeline.Context, _ int, _ *eventloop.Promise) error { return refuse }))
	ctx := context.Background()

	if err := s.Send(ctx, 7); err != refuse {
		t.Errorf("a write that fails: got %v, want %v", err, refuse)
	}
	m := newCounted(1)
	result := sendAsync(ctx, s, m)
	for queued := 0; queued == 0; {
		onLoop(t, l, func() { queued = len(s.queue) })
	}
	select {
	case err := <-result:
		t.Errorf("before it has left: got %v", err)
	default:
	}
	onLoop(t, l, func() { s.take(1) })
	if err := await(t, "Send", result); err != nil || m.refs.Load() != 0 {
		t.Errorf("once it has left: got %v and %d references, want nil and 0", err, m.refs.Load())
	}
}

// Where waiting could be for ever, Send refuses, and the message is released.
func TestSend_Refused(t *testing.T) {
	l, other := newLoop(t), newLoop(t)
	s := newSlow(t, l, 1000, 500, new(sink))
	c := s.Pipeline().Get("sink#0")
	ended, end := context.WithCancel(context.Background())
	end()
	bg := context.Background()
	tests := []struct {
		name string
		do   func(f func())
		ctx  context.Context
		want error
	}{
		{"on its loop", func(f func()) { onLoop(t, l, f) }, bg, eventloop.ErrWouldDeadlock},
		{"on another loop", func(f func()) { onLoop(t, other, f) }, bg, eventloop.ErrWouldDeadlock},
		{"in an offloaded function", func(f func()) {
			done := make(chan struct{})
			c.Offload(func(context.Context) (any, error) { f(); return nil, nil }, func(any, error) { close(done) })
			await(t, "the function", done)
		}, bg, eventloop.ErrWouldDeadlock},
		{"with a context that has ended", func(f func()) { f() }, ended, context.Canceled},
	}
	for _, tt := range tests {
		m := newCounted(0)
		tt.do(func() {
			if err := s.Send(tt.ctx, m); err != tt.want {
				t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
			}
		})
		if got := m.refs.Load(); got != 0 {
			t.Errorf("%s: got %d references, want 0", tt.name, got)
		}
	}
	onLoop(t, l, func() {
		if len(s.queue) != 0 {
			t.Errorf("got %d messages written, want none", len(s.queue))
		}
	})
}

// Who waits for room gets it in the order of arrival, and all together pass the mark by
// one message.
func TestSend_FIFO(t *testing.T) {
	l := newLoop(t)
	const n = 50
	s := newSlow(t, l, 3*entrySize, 2*entrySize)
	s.left = make(chan any, 2*n)
	for i := range 4 { // one more than the mark
		s.Write(i)
	}
	onLoop(t, l, func() {})
	if s.Writable() {
		t.Fatal("still writable")
	}
	var results []<-chan error
	for i := range n {
		results = append(results, sendAsync(context.Background(), s, newCounted(i)))
		inLine(t, s, i+1)
	}
	for {
		var left int
		onLoop(t, l, func() { s.take(1); left = len(s.queue) })
		if left == 0 && pipeline.WaitingSenders(s) == 0 {
			break
		}
	}
	for i, r := range results {
		if err := await(t, "Send", r); err != nil {
			t.Errorf("Send %d: got %v", i, err)
		}
	}
	close(s.left)
	var got []int
	for m := range s.left {
		if m, ok := m.(*countedSafe); ok {
			got = append(got, m.id)
		}
	}
	if len(got) != n || !slices.IsSorted(got) {
		t.Errorf("order: got %v, want 0 to %d", got, n-1)
	}
	onLoop(t, l, func() {
		if s.peak > 4*entrySize {
			t.Errorf("at most pending: got %d, want no more than %d", s.peak, 4*entrySize)
		}
	})
}

// Who comes when there is room again is behind those who have waited for it.
func TestSend_NobodyOvertakes(t *testing.T) {
	l := newLoop(t)
	s := newSlow(t, l, 2*entrySize, 2*entrySize)
	s.left = make(chan any, 10)
	for i := range 3 {
		s.Write(i)
	}
	onLoop(t, l, func() {})
	first := sendAsync(context.Background(), s, "first")
	inLine(t, s, 1)
	var second <-chan error
	onLoop(t, l, func() {
		s.take(3)
		if !s.Writable() {
			t.Error("not writable")
		}
		second = sendAsync(context.Background(), s, "second")
		inLine(t, s, 2)
	})
	for queued := 0; queued < 2; {
		onLoop(t, l, func() { queued = len(s.queue) })
	}
	onLoop(t, l, func() { s.take(2) })
	if err := errors.Join(await(t, "Send", first), await(t, "Send", second)); err != nil {
		t.Error(err)
	}
	close(s.left)
	var got []any
	for m := range s.left {
		got = append(got, m)
	}
	if want := []any{0, 1, 2, "first", "second"}; !slices.Equal(got, want) {
		t.Errorf("order: got %v, want %v", got, want)
	}
}

// A context that ends takes its message out of the line, and nobody else's; one that
// ends later leaves the message to its fate.
func TestSend_ContextEnds(t *testing.T) {
	l := newLoop(t)
	s := newSlow(t, l, entrySize, entrySize)
	s.left = make(chan any, 10)
	s.Write(0)
	s.Write(0)
	onLoop(t, l, func() {})
	var msgs []*countedSafe
	var results []<-chan error
	var cancels []context.CancelFunc
	for i := range 4 {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		msgs, cancels = append(msgs, newCounted(i)), append(cancels, cancel)
		results = append(results, sendAsync(ctx, s, msgs[i]))
		inLine(t, s, i+1)
	}
	for _, i := range []int{1, 3, 0} { // in the middle, last, first
		cancels[i]()
		if err := await(t, "Send", results[i]); err != context.Canceled || msgs[i].refs.Load() != 0 {
			t.Errorf("Send %d: got %v and %d references, want %v and 0", i, err, msgs[i].refs.Load(), context.Canceled)
		}
	}
	onLoop(t, l, func() { s.take(2) })
	for queued := 0; queued == 0; {
		onLoop(t, l, func() { queued = len(s.queue) })
	}
	cancels[2]()
	if err := await(t, "Send", results[2]); err != context.Canceled || msgs[2].refs.Load() != 1 {
		t.Errorf("written, not left: got %v and %d references, want %v and 1", err, msgs[2].refs.Load(), context.Canceled)
	}
	onLoop(t, l, func() { s.take(1) })
	close(s.left)
	var left []any
	for m := range s.left {
		left = append(left, m)
	}
	if len(left) != 3 || left[2] != msgs[2] || msgs[2].refs.Load() != 0 {
		t.Errorf("left: got %v, want message 2 last", left)
	}
}

// When the channel closes everybody is sent away, those in the line and those behind.
func TestSend_Closed(t *testing.T) {
	l := newLoop(t)
	s := newSlow(t, l, entrySize, entrySize)
	s.Write(0)
	msgs := []*countedSafe{newCounted(0), newCounted(1), newCounted(2), newCounted(3)}
	written := sendAsync(context.Background(), s, msgs[0])
	for queued := 0; queued < 2; {
		onLoop(t, l, func() { queued = len(s.queue) })
	}
	results := []<-chan error{written}
	for i := 1; i < 3; i++ {
		results = append(results, sendAsync(context.Background(), s, msgs[i]))
		inLine(t, s, i)
	}
	s.Reset()
	for i, r := range results {
		if err := await(t, "Send", r); !errors.Is(err, pipeline.ErrClosed) || !errors.Is(err, pipeline.ErrReset) {
			t.Errorf("Send %d: got %v, want ErrClosed because of ErrReset", i, err)
		}
	}
	if err := s.Send(context.Background(), msgs[3]); !errors.Is(err, pipeline.ErrClosed) {
		t.Errorf("Send behind the close: got %v, want ErrClosed", err)
	}
	for i, m := range msgs {
		if got := m.refs.Load(); got != 0 {
			t.Errorf("message %d: got %d references, want 0", i, got)
		}
	}
}

// A loop ends before a channel that has no descriptor, which nobody has closed. Send is
// told, wherever it is.
func TestSend_LoopEnds(t *testing.T) {
	tests := []struct {
		name string
		send func(man *eventloop.Manual, ch *embedded.Channel, msg any) <-chan error
	}{
		{"while it waits for room", func(man *eventloop.Manual, ch *embedded.Channel, msg any) <-chan error {
			ch.WriteOutbound("as much as there is room for")
			got := sendAsync(context.Background(), ch, msg)
			inLine(t, ch, 1)
			man.Close()
			return got
		}},
		{"while it waits for the write", func(man *eventloop.Manual, ch *embedded.Channel, msg any) <-chan error {
			got := sendAsync(context.Background(), ch, msg)
			for end := time.Now().Add(patience); ch.Writable(); runtime.Gosched() {
				if time.Now().After(end) {
					t.Fatal("the message has not come")
				}
				man.Turn()
			}
			man.Close()
			return got
		}},
		{"before, without room", func(man *eventloop.Manual, ch *embedded.Channel, msg any) <-chan error {
			ch.WriteOutbound("as much as there is room for")
			man.Close()
			return sendAsync(context.Background(), ch, msg)
		}},
		{"before", func(man *eventloop.Manual, ch *embedded.Channel, msg any) <-chan error {
			man.Close()
			return sendAsync(context.Background(), ch, msg)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			man := eventloop.NewManual()
			ch := embedded.NewConfig(embedded.Config{Manual: man, HighWater: 10})
			ch.Hold(true)
			msg := buffer.FromString("more than the high water mark")
			if err := await(t, "the end of Send", tt.send(man, ch, msg)); !errors.Is(err, pipeline.ErrClosed) {
				t.Errorf("got %v, want ErrClosed", err)
			}
			if n := pipeline.WaitingSenders(ch); n != 0 {
				t.Errorf("in the line: got %d, want 0", n)
			}
			_ = ch.Finish()
			ch.ReleaseAll()
		})
	}
}

// A handler that breaks while the loop writes for a sender fails that one, and the
// close the others.
func TestSend_HandlerBreaks(t *testing.T) {
	for name, fail := range map[string]func(){"panic": func() { panic("boom") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			l := newLoop(t)
			s := newSlow(t, l, entrySize, entrySize, pipeline.OnWrite(func(*pipeline.Context, int, *eventloop.Promise) error {
				fail()
				return nil
			}))
			s.Write("x")
			s.Write("x")
			onLoop(t, l, func() {})
			var results []<-chan error
			for i := range 3 {
				results = append(results, sendAsync(context.Background(), s, i))
				inLine(t, s, i+1)
			}
			onLoop(t, l, func() { s.take(2) })
			for i, r := range results {
				if err := await(t, "Send", r); err == nil {
					t.Errorf("Send %d: got nil, want an error", i)
				}
			}
			await(t, "the end", s.ended)
		})
	}
}

// However many send at once, and give up, and whenever the channel closes: what Send
// says is what has happened, each is answered, and the mark holds.
func TestSend_Many(t *testing.T) {
	l := newLoop(t)
	const senders, each = 16, 200
	high := 10 * entrySize
	s := newSlow(t, l, high, high/2)
	onLoop(t, l, func() { s.open = true })
	var left, sent, gaveUp atomic.Int64
	s.left = make(chan any, 64)
	var drain sync.WaitGroup
	drain.Go(func() {
		for m := range s.left {
			left.Add(1)
			_ = m
		}
	})
	var wg sync.WaitGroup
	for g := range senders {
		rnd := rand.New(rand.NewPCG(1, uint64(g)))
		wg.Go(func() {
			for range each {
				ctx, cancel := context.WithCancel(context.Background())
				if rnd.IntN(4) == 0 {
					go cancel()
				}
				m := newCounted(g)
				switch err := s.Send(ctx, m); {
				case err == nil:
					sent.Add(1)
					if m.refs.Load() != 0 {
						t.Errorf("sent: got %d references, want 0", m.refs.Load())
					}
				case errors.Is(err, context.Canceled):
					gaveUp.Add(1)
				default:
					t.Errorf("Send: got %v", err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	onLoop(t, l, func() {
		s.take(len(s.queue))
		if s.peak > high+high/8+entrySize {
			t.Errorf("at most pending: got %d, want no more than %d and a message", s.peak, high+high/8)
		}
		if n := pipeline.WaitingSenders(s); n != 0 || !s.Writable() {
			t.Errorf("at the end: %d in the line, writable %v; want 0, true", n, s.Writable())
		}
	})
	close(s.left)
	drain.Wait()
	if sent.Load()+gaveUp.Load() != senders*each || left.Load() < sent.Load() || left.Load() > senders*each {
		t.Errorf("got %d sent, %d given up, %d left; want %d answers and all that were sent to leave",
			sent.Load(), gaveUp.Load(), left.Load(), senders*each)
	}
	s.left = nil
}

// A producer of its own goroutine is held back by Send to what the peer takes.
func ExampleChannel_Send() {
	ch := embedded.NewConfig(embedded.Config{HighWater: 100})
	produced := make(chan error)
	go func() {
		var err error
		for i := 0; err == nil && i < 3; i++ {
			err = ch.Send(context.Background(), fmt.Sprintf("row %d of the report", i))
		}
		produced <- err
	}()
	take := func() bool {
		row := ch.ReadOutbound() // which runs the loop
		if row != nil {
			fmt.Println(row)
		}
		return row != nil
	}
	for {
		select {
		case err := <-produced:
			for take() {
			}
			fmt.Println("produced:", err)
			_ = ch.Finish()
			return
		default:
			take()
		}
	}
	// Output:
	// row 0 of the report
	// row 1 of the report
	// row 2 of the report
	// produced: <nil>
}
