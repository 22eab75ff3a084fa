package eventloop

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
)

// testHandle is an IOHandle made of functions; those that are nil do nothing.
type testHandle struct {
	io    func(Event)
	op    func(*Op)
	close func()
}

func (h *testHandle) HandleIO(ev Event) {
	if h.io != nil {
		h.io(ev)
	}
}

func (h *testHandle) HandleOp(op *Op) {
	if h.op != nil {
		h.op(op)
	}
}

func (h *testHandle) CloseIO() {
	if h.close != nil {
		h.close()
	}
}

// register registers h on a Manual.
func register(t *testing.T, m *Manual, fd int, h IOHandle) *Registration {
	t.Helper()
	var r *Registration
	m.Enter(func() {
		var err error
		if r, err = m.Loop().Register(fd, h); err != nil {
			t.Fatalf("Register: %v", err)
		}
	})
	return r
}

func TestEventString(t *testing.T) {
	tests := []struct {
		ev   Event
		want string
	}{
		{0, "none"},
		{EventRead, "read"},
		{EventRead | EventWrite | EventReadHangup, "read|write|readhangup"},
		{EventError | EventHangup, "hangup|error"},
		{EventWrite | 0x8000, "write|0x8000"},
	}
	for _, tt := range tests {
		if got := tt.ev.String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// All that is ready comes in one call, and only what was asked for.
func TestEventsFollowInterest(t *testing.T) {
	m := newTestManual(t)
	var got []Event
	r := register(t, m, 7, &testHandle{io: func(ev Event) { got = append(got, ev) }})
	steps := []struct {
		name string
		do   func()
		want []Event
	}{
		{"no interest yet", func() { m.Ready(7, EventRead|EventWrite) }, nil},
		{"interest in reading", func() { _ = r.SetInterest(EventRead) }, []Event{EventRead}},
		{"and in writing", func() { _ = r.SetInterest(EventRead | EventWrite) }, []Event{EventWrite}},
		{"both at once", func() { m.Ready(7, EventRead); m.Ready(7, EventWrite) }, []Event{EventRead | EventWrite}},
		{"errors unasked", func() { _ = r.SetInterest(0); m.Ready(7, EventError|EventRead) }, []Event{EventError}},
		{"nothing while suspended", func() { _ = r.Suspend(); m.Ready(7, EventHangup) }, nil},
		{"all after that", func() { _ = r.SetInterest(EventRead) }, []Event{EventHangup | EventRead}},
		{"another descriptor", func() { m.Ready(8, EventRead) }, nil},
	}
	for _, s := range steps {
		got = nil
		m.Enter(s.do)
		m.RunUntilIdle()
		if !slices.Equal(got, s.want) {
			t.Errorf("%s: got %v, want %v", s.name, got, s.want)
		}
	}
}

// An event that was on its way when interest in it ended is dropped.
func TestEventsOfTheSameTurnFollowInterest(t *testing.T) {
	m := newTestManual(t)
	var second *Registration
	first := register(t, m, 1, &testHandle{io: func(Event) { _ = second.SetInterest(EventWrite) }})
	second = register(t, m, 2, &testHandle{io: func(ev Event) { t.Errorf("got %v, want nothing", ev) }})
	m.Enter(func() {
		_ = first.SetInterest(EventRead)
		_ = second.SetInterest(EventRead)
	})
	m.Ready(1, EventRead)
	m.Ready(2, EventRead)
	m.RunUntilIdle()
}

// An event of a registration that was closed in the same turn does not reach the
// next one with that descriptor.
func TestStaleEventIsDropped(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	var old *Registration
	first := register(t, m, 1, &testHandle{io: func(Event) {
		old.Close(nil)
		r, err := l.Register(2, &testHandle{io: func(ev Event) { t.Errorf("got %v of the registration before", ev) }})
		if err != nil {
			t.Errorf("Register: %v", err)
		}
		if r.slot != old.slot {
			t.Errorf("got slot %d, want %d: the test needs it to be used again", r.slot, old.slot)
		}
		_ = r.SetInterest(EventRead)
	}})
	old = register(t, m, 2, &testHandle{io: func(ev Event) { t.Errorf("got %v after Close", ev) }})
	m.Enter(func() {
		_ = first.SetInterest(EventRead)
		_ = old.SetInterest(EventRead)
	})
	m.Ready(1, EventRead)
	m.Ready(2, EventRead)
	m.Turn()
	if got := l.Metrics().StaleEvents; got != 1 {
		t.Errorf("got %d stale events, want 1", got)
	}
}

func TestRegistrationAfterClose(t *testing.T) {
	m := newTestManual(t)
	r := register(t, m, 1, &testHandle{})
	m.Enter(func() {
		closed := 0
		r.Close(func() { closed++ })
		r.Close(func() { closed++ })
		if closed != 1 {
			t.Errorf("got %d calls of closefd, want 1", closed)
		}
		for name, err := range map[string]error{
			"SetInterest": r.SetInterest(EventRead),
			"Suspend":     r.Suspend(),
			"Submit":      r.Submit(&Op{Run: func() (int64, error) { return 0, nil }}),
		} {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("%s: got %v, want ErrClosed", name, err)
			}
		}
	})
	if got := m.Loop().Metrics().Registrations; got != 0 {
		t.Errorf("got %d registrations, want 0", got)
	}
}

func TestOp(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	failure := errors.New("no space")
	var ended []*Op
	r := register(t, m, 1, &testHandle{op: func(op *Op) {
		if !l.InLoop() {
			t.Error("got HandleOp off the loop")
		}
		ended = append(ended, op)
	}})
	op := &Op{Run: func() (int64, error) {
		if l.InLoop() {
			t.Error("got Run on the loop")
		}
		return 42, failure
	}}
	for range 2 { // an Op may be used again
		ended = nil
		m.Enter(func() {
			if err := r.Submit(op); err != nil {
				t.Fatalf("Submit: %v", err)
			}
			if r.Ops() != 1 || len(ended) != 0 {
				t.Errorf("got %d Ops and %d ended after Submit, want 1 and 0", r.Ops(), len(ended))
			}
		})
		m.RunUntilIdle()
		if len(ended) != 1 || ended[0] != op || op.N != 42 || op.Err != failure {
			t.Errorf("got %d ended, N %d, Err %v; want 1, 42, %v", len(ended), op.N, op.Err, failure)
		}
		if r.Ops() != 0 {
			t.Errorf("got %d Ops, want 0", r.Ops())
		}
	}
}

// The descriptor is closed when the last Op has ended, not before, and no new Op
// starts meanwhile.
func TestCloseWaitsForOps(t *testing.T) {
	l := newTestLoop(t, nil)
	var got []string // loop-only
	release := make(chan struct{})
	closed := make(chan struct{})
	op := func(name string) *Op {
		return &Op{Run: func() (int64, error) { <-release; return 0, errors.New(name) }}
	}
	onLoop(t, l, func() {
		r, err := l.Register(-1, &testHandle{op: func(op *Op) { got = append(got, "op") }})
		if err != nil {
			t.Fatalf("Register: %v", err)
		}
		for _, name := range []string{"a", "b"} {
			if err := r.Submit(op(name)); err != nil {
				t.Errorf("Submit: %v", err)
			}
		}
		r.Close(func() { got = append(got, "closefd"); close(closed) })
		if err := r.Submit(op("c")); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v for an Op after Close, want ErrClosed", err)
		}
		if len(got) != 0 || r.Ops() != 2 {
			t.Errorf("got %v and %d Ops after Close, want nothing and 2", got, r.Ops())
		}
	})
	close(release)
	await(t, closed, "closefd")
	onLoop(t, l, func() {
		if want := []string{"op", "op", "closefd"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if m := l.Metrics(); m.Ops != 0 || m.Registrations != 0 {
			t.Errorf("got %d Ops and %d registrations, want none", m.Ops, m.Registrations)
		}
	})
}

func TestOpThatBreaks(t *testing.T) {
	cause := errors.New("page fault")
	tests := []struct {
		name string
		run  func() (int64, error)
		want func(error) bool
	}{
		{"panic with an error", func() (int64, error) { panic(cause) }, func(err error) bool { return errors.Is(err, cause) }},
		{"panic with a string", func() (int64, error) { panic("oops") }, func(err error) bool { return err != nil }},
		{"goexit", func() (int64, error) { runtime.Goexit(); return 0, nil }, func(err error) bool { return errors.Is(err, errOpGoexit) }},
	}
	l := newTestLoop(t, nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ended := make(chan error, 1)
			closed := make(chan struct{})
			onLoop(t, l, func() {
				r, err := l.Register(-1, &testHandle{op: func(op *Op) {
					ended <- op.Err
					panic("and the handle breaks too")
				}})
				if err != nil {
					t.Fatalf("Register: %v", err)
				}
				if err := r.Submit(&Op{Run: tt.run}); err != nil {
					t.Errorf("Submit: %v", err)
				}
				r.Close(func() { close(closed) })
			})
			if err := await(t, ended, "the end of the Op"); !tt.want(err) {
				t.Errorf("got %v", err)
			}
			await(t, closed, "closefd")
		})
	}
}

func TestOpSubmittedTwice(t *testing.T) {
	m := newTestManual(t)
	r := register(t, m, 1, &testHandle{})
	op := &Op{Run: func() (int64, error) { return 0, nil }}
	m.Enter(func() {
		_ = r.Submit(op)
		defer func() {
			if v := recover(); v == nil {
				t.Error("got no panic for an Op that is under way")
			}
		}()
		_ = r.Submit(op)
	})
}

// A poller that takes requests itself delivers their end as it delivers readiness.
func TestOpThatThePollerRuns(t *testing.T) {
	l, p := newScripted(t)
	p.takesOps = make(chan *Op, 1)
	await(t, p.waits, "the first wait")
	ended := make(chan string, 1)
	_ = l.Execute(func() {
		r, err := l.Register(3, &testHandle{op: func(op *Op) { ended <- fmt.Sprint(op.N, op.Err) }})
		if err != nil {
			t.Errorf("Register: %v", err)
			return
		}
		if err := r.Submit(&Op{}); err != nil {
			t.Errorf("Submit: %v", err)
		}
		r.Close(nil)
	})
	p.resume <- nil
	op := await(t, p.takesOps, "the request")
	await(t, p.waits, "the next wait")
	op.N = 9
	p.resume <- []outcome{{op: op}}
	if got, want := await(t, ended, "the end of the Op"), "9 <nil>"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	await(t, p.waits, "the last wait")
}

// A handle that breaks while its descriptor stays ready is told to close, and its
// registration is closed, whatever comes of that. The others get what is theirs.
func TestBrokenHandle(t *testing.T) {
	tests := []struct {
		name             string
		io, closeIO      func()
		panics, restarts uint64
	}{
		{"panic", func() { panic("bug") }, func() {}, 1, 0},
		{"panic in both", func() { panic("bug") }, func() { panic("another one") }, 2, 0},
		{"Goexit", runtime.Goexit, func() {}, 0, 1},
		{"Goexit in both", runtime.Goexit, runtime.Goexit, 0, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r1, broken := newPipe(t)
			r2, other := newPipe(t)
			t.Cleanup(func() { // after the loop
				for _, fd := range []int{r1, broken, r2, other} {
					mustClose(t, fd)
				}
			})
			l := newTestGroup(t, GroupConfig{Loops: 1}).Next()
			ios, closes := 0, 0
			turns := make(chan struct{})
			var reg *Registration
			onLoop(t, l, func() {
				reg, _ = l.Register(broken, &testHandle{
					io:    func(Event) { ios++; tt.io() },
					close: func() { closes++; tt.closeIO() },
				})
				r, _ := l.Register(other, &testHandle{io: func(Event) {
					select {
					case turns <- struct{}{}:
					default:
					}
				}})
				for _, r := range []*Registration{reg, r} {
					if err := r.SetInterest(EventWrite); err != nil { // ready all the time
						t.Error(err)
					}
				}
			})
			for range 3 {
				await(t, turns, "I/O of the other handle")
			}
			onLoop(t, l, func() {
				if ios != 1 || closes != 1 {
					t.Errorf("got %d calls of HandleIO and %d of CloseIO, want 1 and 1", ios, closes)
				}
				if err := reg.SetInterest(EventWrite); err != ErrClosed {
					t.Errorf("SetInterest: got %v, want ErrClosed", err)
				}
				if m := l.Metrics(); m.Panics != tt.panics || m.Restarts != tt.restarts {
					t.Errorf("got %d panics and %d restarts, want %d and %d", m.Panics, m.Restarts, tt.panics, tt.restarts)
				}
			})
		})
	}
}
