package transporttest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// end is one end of a connection and what its last handler has seen.
type end struct {
	f        *fixture
	cfg      transport.Config
	handlers []any
	setUp    func(ch pipeline.Channel) error // called by Init when the handlers are in; may be nil
	strict   bool                            // all is written on the loop, so writability has not changed back when it is told

	mu      sync.Mutex
	changed sync.Cond
	ch      pipeline.Channel

	// Guarded by mu.
	log       []string // all but reads
	data      []byte
	reads     int
	completes int
	turns     [][2]int // of each turn of reading: reads, bytes
	errs      []error
	active    bool
	inactive  bool
	removed   bool
}

// init adds the handlers to ch, and the recorder behind them.
func (e *end) init(ch pipeline.Channel) error {
	e.mu.Lock()
	e.ch = ch
	e.mu.Unlock()
	if err := ch.Pipeline().Add(append(e.handlers[:len(e.handlers):len(e.handlers)], (*recorder)(e))...); err != nil {
		return err
	}
	if e.setUp != nil {
		return e.setUp(ch)
	}
	return nil
}

// recorder is an end as the last handler of its channel.
type recorder end

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, fmt.Sprintf(format, args...))
	r.changed.Broadcast()
}

func (r *recorder) HandleRegistered(*pipeline.Context) error { r.note("registered"); return nil }

func (r *recorder) HandleActive(*pipeline.Context) error {
	r.mu.Lock()
	r.active = true
	r.mu.Unlock()
	r.note("active")
	return nil
}

func (r *recorder) HandleRead(_ *pipeline.Context, msg any) error {
	b, ok := msg.(*buffer.Buf)
	if !ok {
		r.f.Errorf("read a %T, want a *buffer.Buf", msg)
		buffer.Release(msg)
		return nil
	}
	defer b.Release()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.inactive {
		r.f.Errorf("%d bytes read after HandleInactive", b.Len())
	}
	if len(r.turns) == r.completes {
		r.turns = append(r.turns, [2]int{})
	}
	t := &r.turns[r.completes]
	t[0]++
	t[1] += b.Len()
	r.reads++
	r.data = append(r.data, b.Next(b.Len())...)
	r.changed.Broadcast()
	return nil
}

func (r *recorder) HandleReadComplete(*pipeline.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.turns) == r.completes {
		r.turns = append(r.turns, [2]int{})
	}
	r.completes++
	r.changed.Broadcast()
	return nil
}

func (r *recorder) HandleWritability(c *pipeline.Context) error {
	r.note("writable %v", c.Channel().Writable())
	return nil
}

func (r *recorder) HandleEvent(_ *pipeline.Context, ev any) error {
	r.note("%T", ev)
	return nil
}

func (r *recorder) HandleError(_ *pipeline.Context, err error) {
	r.mu.Lock()
	r.errs = append(r.errs, err)
	r.mu.Unlock()
	r.note("error")
}

func (r *recorder) HandleInactive(c *pipeline.Context) error {
	r.mu.Lock()
	r.inactive = true
	r.mu.Unlock()
	if c.Channel().Active() || c.Channel().Open() {
		r.f.Error("active or open in HandleInactive")
	}
	r.note("inactive")
	return nil
}

func (r *recorder) HandleUnregistered(*pipeline.Context) error { r.note("unregistered"); return nil }

func (r *recorder) HandleRemoved(*pipeline.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removed = true // together: who waits for the one looks at the other
	r.log = append(r.log, "removed")
	r.changed.Broadcast()
}

// checkLife looks at the order of the events of a channel that has ended.
func (e *end) checkLife() {
	e.mu.Lock()
	defer e.mu.Unlock()
	var life []string
	writable := true
	for i, s := range e.log {
		switch s {
		case "registered", "active", "inactive", "unregistered", "removed":
			life = append(life, s)
		case "writable true", "writable false":
			if now := s == "writable true"; now != writable {
				writable = now
			} else if e.strict {
				e.f.Errorf("event %d is %q, and so was the last of its kind", i, s)
			}
		}
	}
	want := []string{"registered", "active", "inactive", "unregistered", "removed"}
	if !e.active {
		want = []string{"registered", "unregistered", "removed"}
		if !slices.Contains(e.log, "registered") {
			want = want[2:]
		}
	}
	if !slices.Equal(life, want) {
		e.f.Errorf("events: got %q, want %q", life, want)
	}
}

// wait waits until cond, called with e.mu held after every event, is true.
func (e *end) wait(what string, cond func() bool) {
	e.f.Helper()
	late := false
	timer := time.AfterFunc(patience, func() {
		e.mu.Lock()
		late = true
		e.mu.Unlock()
		e.changed.Broadcast()
	})
	defer timer.Stop()
	e.mu.Lock()
	for !cond() && !late {
		e.changed.Wait()
	}
	ok := cond()
	e.mu.Unlock()
	if !ok {
		e.f.Fatalf("no sign of %s after %v%s", what, patience, e.f.story())
	}
}

// waitLog waits until what is in the log.
func (e *end) waitLog(what string) {
	e.f.Helper()
	e.wait(what, func() bool { return slices.Contains(e.log, what) })
}

// saw reports how often what is in the log.
func (e *end) saw(what string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.log {
		if s == what {
			n++
		}
	}
	return n
}

// received returns the number of bytes received.
func (e *end) received() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.data)
}

// wantData waits for the bytes of want, all that was ever received.
func (e *end) wantData(want []byte) {
	e.f.Helper()
	e.wait(fmt.Sprintf("%d bytes", len(want)), func() bool { return len(e.data) >= len(want) })
	e.mu.Lock()
	defer e.mu.Unlock()
	if !bytes.Equal(e.data, want) {
		at := 0
		for at < min(len(want), len(e.data)) && e.data[at] == want[at] {
			at++
		}
		e.f.Errorf("received %d bytes that differ at %d, want %d", len(e.data), at, len(want))
	}
}

// wantEnd waits for the end of the channel and looks for its reason.
func (e *end) wantEnd(want error) {
	e.f.Helper()
	e.waitLog("removed")
	reason := e.ch.CloseReason()
	if !errors.Is(reason, pipeline.ErrClosed) || !errors.Is(reason, want) {
		e.f.Errorf("close reason: got %v, want ErrClosed of %v", reason, want)
	}
}

// do runs f on the loop and waits for it.
func (e *end) do(f func()) {
	e.f.Helper()
	done := make(chan struct{})
	if err := e.ch.Loop().Execute(func() { defer close(done); f() }); err != nil {
		e.f.Fatal(err)
	}
	await(e.f, done, "a task")
}

// fill writes until the channel is not writable because the peer reads nothing, and
// returns what has been written. It must not run on a loop.
func (e *end) fill() (all []byte) {
	e.f.Helper()
	size := 16 << 10
	if e.cfg.SendBuffer > 0 {
		size = 1 << 10
	}
	for full := false; !full; {
		e.do(func() {
			for range 16 {
				if full = !e.ch.Writable(); full {
					return
				}
				p := pattern(size + len(all)%97)
				all = append(all, p...)
				e.ch.Write(pooled(p))
				e.ch.Flush()
			}
		})
		if len(all) > 256<<20 {
			e.f.Fatal("256 MiB have been written and the channel is still writable")
		}
	}
	return all
}

// completions are told of the ends of writes and look whether each comes once and in
// order.
type completions struct {
	f    *fixture
	mu   sync.Mutex
	next int // to be made
	told []error
	seen []bool
	all  chan struct{}
	want int

	anyOrder bool
}

// expect returns completions for n writes.
func (f *fixture) expect(n int) *completions {
	return &completions{f: f, want: n, all: make(chan struct{}), seen: make([]bool, n)}
}

// then returns the completion of the next write.
func (w *completions) then() func(error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.next
	w.next++
	return func(err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		switch {
		case w.seen[i]:
			w.f.Errorf("completion %d came twice", i)
			return
		case len(w.told) != i && !w.anyOrder:
			w.f.Errorf("completion %d came as number %d", i, len(w.told))
		}
		w.seen[i] = true
		if w.told = append(w.told, err); len(w.told) == w.want {
			close(w.all)
		}
	}
}

// wait waits for all and returns their errors.
func (w *completions) wait() []error {
	w.f.Helper()
	await(w.f, w.all, fmt.Sprintf("%d completions", w.want))
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.told
}

// count returns how many have come.
func (w *completions) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.told)
}

// wantNone waits for all, none of which should be an error.
func (w *completions) wantNone() {
	w.f.Helper()
	for i, err := range w.wait() {
		if err != nil {
			w.f.Errorf("completion %d: %v", i, err)
		}
	}
}

// echo writes back what it reads.
func echo() any {
	return pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error { c.Write(b); return nil })
}

// errEnd is the reason of a channel whose peer has ended.
var errEnd = io.EOF

// wantAll waits for all, each of which should fail with an error that is want.
func (w *completions) wantAll(want error) {
	w.f.Helper()
	for i, err := range w.wait() {
		if !errors.Is(err, want) {
			w.f.Errorf("completion %d: got %v, want %v", i, err, want)
		}
	}
}
