package eventloop

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/internal/sys"
)

func TestEpollDeliversReadiness(t *testing.T) {
	l := newTestLoop(t, nil)
	r, w := newPipe(t)
	got := make(chan Event, 10)
	var in, out *Registration
	onLoop(t, l, func() {
		buf := make([]byte, 16)
		in, _ = l.Register(r, &testHandle{io: func(ev Event) {
			if ev&EventRead != 0 {
				if _, err := sys.Read(r, buf); err != nil {
					t.Errorf("read: %v", err)
				}
			}
			if ev&EventHangup != 0 {
				_ = in.Suspend() // level-triggered, it would come for ever
			}
			got <- ev
		}})
		out, _ = l.Register(w, &testHandle{io: func(ev Event) { _ = out.SetInterest(0); got <- ev }})
		if err := in.SetInterest(EventRead); err != nil {
			t.Errorf("SetInterest: %v", err)
		}
		if err := out.SetInterest(EventWrite); err != nil {
			t.Errorf("SetInterest: %v", err)
		}
	})
	if ev := await(t, got, "room to write"); ev != EventWrite {
		t.Errorf("got %v, want write", ev)
	}
	if _, err := sys.Write(w, []byte("x")); err != nil {
		t.Fatalf("write: %v", err)
	}
	if ev := await(t, got, "something to read"); ev != EventRead {
		t.Errorf("got %v, want read", ev)
	}
	onLoop(t, l, func() { out.Close(func() { mustClose(t, w) }) })
	if ev := await(t, got, "the hangup"); ev != EventHangup {
		t.Errorf("got %v, want hangup", ev)
	}
	onLoop(t, l, func() { in.Close(func() { mustClose(t, r) }) })
	onLoop(t, l, func() {
		if m := l.Metrics(); m.Events != 3 || m.Registrations != 0 {
			t.Errorf("got %d events and %d registrations, want 3 and 0", m.Events, m.Registrations)
		}
	})
}

func TestSemantics5_3_InterestCostsACallOnlyWhenItChanges(t *testing.T) {
	l := newTestLoop(t, nil)
	r, w := newPipe(t)
	onLoop(t, l, func() {
		reg, err := l.Register(r, &testHandle{})
		if err != nil {
			t.Fatalf("Register: %v", err)
		}
		steps := []struct {
			name string
			do   func() error
			want uint64
		}{
			{"suspended before it began", reg.Suspend, 0},
			{"first", func() error { return reg.SetInterest(EventRead) }, 1},
			{"the same", func() error { return reg.SetInterest(EventRead) }, 0},
			{"the same with what comes anyway", func() error { return reg.SetInterest(EventRead | EventError | EventHangup) }, 0},
			{"none", func() error { return reg.SetInterest(0) }, 1},
			{"still none", func() error { return reg.SetInterest(0) }, 0},
			{"suspended", reg.Suspend, 1},
			{"still suspended", reg.Suspend, 0},
			{"none, but known", func() error { return reg.SetInterest(0) }, 1},
			{"closed", func() error { reg.Close(nil); return nil }, 1},
		}
		for _, s := range steps {
			before := l.Counters().EpollCtls
			if err := s.do(); err != nil {
				t.Errorf("%s: %v", s.name, err)
			}
			if got := l.Counters().EpollCtls - before; got != s.want {
				t.Errorf("%s: got %d calls of epoll_ctl, want %d", s.name, got, s.want)
			}
		}
	})
	mustClose(t, r)
	mustClose(t, w)
}

// A descriptor that is closed and opened again while its event is on the way: the
// new owner does not get it.
func TestSemantics5_4_DescriptorReuse(t *testing.T) {
	l := newTestLoop(t, nil)
	r1, w1 := newPipe(t)
	r2, w2 := newPipe(t)
	done := make(chan struct{})
	var regs [2]*Registration
	fds := [2]int{r1, r2}
	onLoop(t, l, func() {
		for i := range regs {
			// Whichever comes first closes the other, opens a pipe in its place, and
			// registers that.
			regs[i], _ = l.Register(fds[i], &testHandle{io: func(ev Event) {
				other := 1 - i
				regs[other].Close(func() { mustClose(t, fds[other]) })
				r, w := newPipe(t)
				if r != fds[other] {
					t.Errorf("got descriptor %d, want %d: the test needs it to be used again", r, fds[other])
				}
				fresh, _ := l.Register(r, &testHandle{io: func(ev Event) {
					t.Errorf("got %v on a pipe with nothing in it", ev)
				}})
				_ = fresh.SetInterest(EventRead)
				regs[i].Close(func() { mustClose(t, fds[i]) })
				_ = l.Execute(func() { // in the next turn
					fresh.Close(func() { mustClose(t, r); mustClose(t, w) })
					close(done)
				})
			}})
			_ = regs[i].SetInterest(EventRead)
		}
		// Both become ready before the next poll.
		for _, w := range []int{w1, w2} {
			if _, err := sys.Write(w, []byte("x")); err != nil {
				t.Errorf("write: %v", err)
			}
		}
	})
	await(t, done, "the end of the test's turns")
	onLoop(t, l, func() {
		if m := l.Metrics(); m.StaleEvents != 1 || m.Events != 1 {
			t.Errorf("got %d stale events and %d others, want 1 and 1", m.StaleEvents, m.Events)
		}
	})
	mustClose(t, w1)
	mustClose(t, w2)
}

func TestDescriptorThatCannotBePolled(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "regular"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := newTestLoop(t, nil)
	onLoop(t, l, func() {
		r, err := l.Register(int(f.Fd()), &testHandle{})
		if err != nil {
			t.Fatalf("Register: %v", err)
		}
		if err := r.SetInterest(EventRead); !errors.Is(err, os.ErrPermission) {
			t.Errorf("got %v, want a permission error", err)
		}
		r.Close(nil)
	})
}

// More events than fit into one poll are all delivered, and the next poll takes
// more of them.
func TestManyEvents(t *testing.T) {
	l := newTestLoop(t, nil)
	const n = 3 * minOutcomes
	r, w := newPipe(t)
	if _, err := sys.Write(w, []byte("x")); err != nil {
		t.Fatal(err)
	}
	left := n
	done := make(chan struct{})
	fds := make([]int, n)
	onLoop(t, l, func() {
		for i := range fds {
			fd, err := sys.Eventfd()
			if err != nil {
				t.Fatalf("eventfd: %v", err)
			}
			fds[i] = fd
			var reg *Registration
			reg, _ = l.Register(fd, &testHandle{io: func(Event) {
				reg.Close(func() { mustClose(t, fd) })
				if left--; left == 0 {
					close(done)
				}
			}})
			_ = reg.SetInterest(EventWrite)
		}
	})
	await(t, done, "the last event")
	onLoop(t, l, func() {
		if len(l.outcomes) <= minOutcomes {
			t.Errorf("got room for %d events, want more than %d", len(l.outcomes), minOutcomes)
		}
	})
	mustClose(t, r)
	mustClose(t, w)
}

// A handle that breaks harms nobody else: the other events of the same poll are
// delivered.
func TestEventsAfterAHandleThatBreaks(t *testing.T) {
	for name, breaks := range map[string]func(){
		"panic":  func() { panic("HandleIO blew up") },
		"goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			l := newTestLoop(t, nil)
			const n = 10
			got := make(chan int, n)
			onLoop(t, l, func() {
				for i := range n {
					fd, err := sys.Eventfd()
					if err != nil {
						t.Fatalf("eventfd: %v", err)
					}
					var reg *Registration
					reg, _ = l.Register(fd, &testHandle{io: func(Event) {
						reg.Close(func() { mustClose(t, fd) })
						got <- i
						if i%2 == 0 {
							breaks()
						}
					}})
					_ = reg.SetInterest(EventWrite)
				}
			})
			seen := make([]bool, n)
			for range n {
				seen[await(t, got, "an event")] = true
			}
			if slices.Contains(seen, false) {
				t.Errorf("got events %v, want each once", seen)
			}
		})
	}
}

// A mapped file that was truncated is a panic of who reads it, not the end of the
// process: on a loop and in an Op.
func TestFaultsArePanics(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "mapped"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 16); err != nil {
		t.Fatal(err)
	}
	mapped, err := sys.MapFile(int(f.Fd()), 0, 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	l := newTestLoop(t, nil)
	var sum int
	read := func() (int64, error) {
		for _, b := range mapped {
			sum += int(b)
		}
		return 0, nil
	}
	_ = l.Execute(func() { _, _ = read() })
	ended := make(chan error, 1)
	onLoop(t, l, func() {
		if got := l.Metrics().Panics; got != 1 {
			t.Errorf("got %d panics, want 1", got)
		}
		r, _ := l.Register(-1, &testHandle{op: func(op *Op) { ended <- op.Err }})
		_ = r.Submit(&Op{Run: read})
		r.Close(nil)
	})
	var fault interface{ Addr() uintptr }
	if err := await(t, ended, "the Op"); !errors.As(err, &fault) {
		t.Errorf("got %v, want a fault with an address", err)
	}
	if err := sys.Unmap(mapped); err != nil {
		t.Error(err)
	}
}

// Out of descriptors, a group is an error and leaves nothing behind.
func TestGroupWithoutDescriptors(t *testing.T) {
	r, w := newPipe(t)
	mustClose(t, w)
	defer mustClose(t, r)
	fds := openFDs()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for room := range 9 { // eight loops need sixteen
		low := limit
		low.Cur = uint64(max(r, w) + 1 + room)
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
			t.Fatal(err)
		}
		_, err := NewGroup(GroupConfig{Loops: 8})
		if err2 := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err2 != nil {
			t.Fatal(err2)
		}
		if !errors.Is(err, syscall.EMFILE) {
			t.Errorf("got %v with room for %d descriptors, want EMFILE", err, room)
		}
		if got := openFDs(); got != fds {
			t.Fatalf("got %d descriptors after the error, want %d as before", got, fds)
		}
	}
}

func TestTimeoutsRoundUp(t *testing.T) {
	tests := []struct {
		d    time.Duration
		want int
	}{
		{-1, -1},
		{0, 0},
		{1, 1},
		{time.Millisecond, 1},
		{time.Millisecond + 1, 2},
		{time.Hour, 3_600_000},
		{1<<63 - 1, 1<<31 - 1},
	}
	for _, tt := range tests {
		if got := milliseconds(tt.d); got != tt.want {
			t.Errorf("%v: got %d ms, want %d", tt.d, got, tt.want)
		}
	}
}

// A loop waits to the microsecond if it was asked to and the kernel can.
func TestFineTimers(t *testing.T) {
	for _, fine := range []bool{false, true} {
		l := newTestGroup(t, GroupConfig{Loops: 1, FineTimers: fine}).Next()
		if got, want := l.poller.(*epoll).fine, fine && sys.Features().EpollPwait2; got != want {
			t.Errorf("FineTimers %v: got a fine poller %v, want %v", fine, got, want)
		}
		fired := make(chan struct{})
		l.Schedule(300*time.Microsecond, func() { close(fired) })
		await(t, fired, "the timer")
	}
}
