package eventloop

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/runnel-io/runnel/buffer"
)

func TestGroupConfig(t *testing.T) {
	tests := []struct {
		cfg  GroupConfig
		want string
	}{
		{GroupConfig{Loops: -1}, "number of loops"},
		{GroupConfig{Poller: "kqueue"}, "kqueue"},
		{GroupConfig{Offload: OffloadConfig{Workers: -1}}, "Workers"},
	}
	for _, tt := range tests {
		if _, err := NewGroup(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want an error about %s", err, tt.want)
		}
	}
}

func TestZeroConfigIsOneLoopPerProcessor(t *testing.T) {
	g := newTestGroup(t, GroupConfig{})
	if got, want := len(g.Loops()), runtime.GOMAXPROCS(0); got != want {
		t.Errorf("got %d loops, want %d", got, want)
	}
	l := g.Next()
	if l.Offload() != g.Offload() || l.Group() != g {
		t.Error("got another Offload or Group from the loop than the group's")
	}
}

// After Shutdown no goroutine, descriptor or buffer is left, whatever was going on.
func TestShutdownLeavesNothing(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("loops with a poller need Linux")
	}
	before := goleak.IgnoreCurrent()
	fds := openFDs()
	live := buffer.Live()
	pool := newTestPool(t)
	g, err := NewGroup(GroupConfig{Loops: 3})
	if err != nil {
		t.Fatal(err)
	}
	type held struct {
		reg *Registration
		buf *buffer.Buf
	}
	closed := make(chan struct{}, 2*len(g.Loops()))
	inOp := make(chan struct{}, len(g.Loops()))
	release := make(chan struct{})
	for _, l := range g.Loops() {
		r, w := newPipe(t)
		onLoop(t, l, func() {
			for _, fd := range []int{r, w} {
				h := &held{buf: l.Allocator(pool).Alloc(1000)}
				h.reg, err = l.Register(fd, &testHandle{close: func() {
					h.buf.Release()
					h.reg.Close(func() { mustClose(t, fd); closed <- struct{}{} })
				}})
				if err != nil {
					t.Errorf("Register: %v", err)
				}
				if err := h.reg.SetInterest(EventRead); err != nil {
					t.Errorf("SetInterest: %v", err)
				}
				if fd == r {
					_ = h.reg.Submit(&Op{Run: func() (int64, error) { inOp <- struct{}{}; <-release; return 0, nil }})
				}
			}
			l.Schedule(1<<60, func() { t.Error("got a call of a timer that was not due") })
		})
		await(t, inOp, "the Op")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v while Ops are under way, want context.Canceled", err)
	}
	// Pipe ends without an Op are closed; the others wait for it.
	for range g.Loops() {
		await(t, closed, "a descriptor that nobody uses")
	}
	select {
	case <-closed:
		t.Error("got a descriptor closed under its Op")
	default:
	}
	// Loops that are ending still take tasks, but no registrations.
	for _, l := range g.Loops() {
		onLoop(t, l, func() {
			if _, err := l.Register(0, &testHandle{}); !errors.Is(err, ErrLoopClosed) {
				t.Errorf("got %v from Register, want ErrLoopClosed", err)
			}
		})
	}
	close(release)
	shutdown(t, g)
	for range g.Loops() {
		await(t, closed, "the other descriptors")
	}
	await(t, g.Done(), "Done")
	if err := goleak.Find(before); err != nil {
		t.Errorf("goroutines left: %v", err)
	}
	if got := openFDs(); got != fds {
		t.Errorf("got %d descriptors, want %d as before", got, fds)
	}
	if got := buffer.Live(); got != live {
		t.Errorf("got %d live buffers, want %d as before", got, live)
	}
	for _, l := range g.Loops() {
		if err := l.Execute(func() {}); !errors.Is(err, ErrLoopClosed) {
			t.Errorf("got %v from Execute, want ErrLoopClosed", err)
		}
	}
	if err := g.Offload().Submit(func() {}); !errors.Is(err, ErrOffloadClosed) {
		t.Errorf("got %v from Offload.Submit, want ErrOffloadClosed", err)
	}
}

// Handles that misbehave do not keep the others open, nor the group alive.
func TestShutdownWithBadHandles(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 1})
	l := g.Next()
	closed := make(chan string, 2)
	onLoop(t, l, func() {
		for _, name := range []string{"forgets", "panics", "exits", "good"} {
			var reg *Registration
			reg, _ = l.Register(-1, &testHandle{close: func() {
				switch name {
				case "panics":
					panic("CloseIO blew up")
				case "exits":
					runtime.Goexit()
				case "good":
					reg.Close(func() { closed <- name })
				}
			}})
		}
	})
	shutdown(t, g)
	if got := await(t, closed, "the good handle"); got != "good" {
		t.Errorf("got %s", got)
	}
}

// What the last tasks make runs too, and a task that goes on for ever is cut off.
func TestShutdownRunsTasks(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 1})
	l := g.Next()
	var got []string // loop-only
	offloaded := make(chan struct{})
	var forever func()
	forever = func() {
		if err := l.Execute(forever); err != nil && !errors.Is(err, ErrLoopClosed) {
			t.Errorf("got %v, want ErrLoopClosed", err)
		}
	}
	onLoop(t, l, func() {
		_ = l.Offload().Submit(func() {
			<-offloaded
			_ = l.Execute(func() {
				got = append(got, "result")
				l.AtTurnEnd(funcTask(func() {
					got = append(got, "turn end")
					_ = l.Execute(func() { got = append(got, "task of the turn end") })
				}))
			})
		})
		forever()
	})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = g.Shutdown(ctx)
	close(offloaded)
	shutdown(t, g)
	if want := []string{"result", "turn end", "task of the turn end"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestShutdownOnItsOwnLoop(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 1})
	got := make(chan error, 1)
	_ = g.Next().Execute(func() { got <- g.Shutdown(context.Background()) })
	if err := await(t, got, "Shutdown"); !errors.Is(err, ErrWouldDeadlock) {
		t.Errorf("got %v, want ErrWouldDeadlock", err)
	}
	await(t, g.Done(), "the end of the group")
}

func TestSharedGroup(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("loops with a poller need Linux")
	}
	acquire := func() *Group {
		t.Helper()
		g, err := Acquire()
		if err != nil {
			t.Fatalf("Acquire: %v", err)
		}
		return g
	}
	first := acquire()
	if second := acquire(); second != first {
		t.Error("got two shared groups at once")
	}
	first.Hold()
	first.Release()
	first.Release()
	onLoop(t, first.Next(), func() {}) // it goes on
	_ = first.Next().Execute(first.Release)
	await(t, first.Done(), "the end of the shared group")
	again := acquire()
	if again == first {
		t.Error("got the shared group that has ended")
	}
	onLoop(t, again.Next(), func() {})
	again.Release()
	await(t, again.Done(), "the end of the second shared group")

	defer func() {
		if recover() == nil {
			t.Error("got no panic for one Release too many")
		}
	}()
	again.Release()
}

func TestReleaseOfAGroupOfOnesOwn(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 1})
	g.Hold()
	g.Release()
	g.Release()
	onLoop(t, g.Next(), func() {})
	var none *Group
	none.Hold()
	none.Release()
}
