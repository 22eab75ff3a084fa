package eventloop

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestManualIsTheLoopInsideOnly(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	if l.InLoop() || WouldDeadlock() {
		t.Error("got the loop's identity outside")
	}
	m.Enter(func() {
		m.Enter(func() {
			if !l.InLoop() {
				t.Error("got InLoop false two levels inside")
			}
		})
		if !l.InLoop() || !WouldDeadlock() {
			t.Error("got the loop's identity lost inside")
		}
		done := make(chan bool)
		go func() { done <- l.InLoop() }()
		if <-done {
			t.Error("got InLoop true on another goroutine")
		}
	})
	if l.InLoop() || WouldDeadlock() {
		t.Error("got the loop's identity kept")
	}
}

func TestManualInsideManual(t *testing.T) {
	a, b := newTestManual(t), newTestManual(t)
	a.Enter(func() {
		b.Enter(func() {
			if !a.Loop().InLoop() || !b.Loop().InLoop() {
				t.Error("got InLoop false inside both")
			}
		})
		if b.Loop().InLoop() || !WouldDeadlock() {
			t.Error("got the wrong identity inside the outer one")
		}
	})
}

func TestManualEnteredTwice(t *testing.T) {
	m := newTestManual(t)
	m.Enter(func() {
		got := make(chan any)
		go func() {
			defer func() { got <- recover() }()
			m.Turn()
		}()
		if v := await(t, got, "the other goroutine"); v == nil {
			t.Error("got no panic for a second goroutine inside")
		}
	})
}

func TestManualTurn(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	var got []string
	note := func(s string) func() { return func() { got = append(got, s) } }
	r := register(t, m, 5, &testHandle{io: func(Event) { note("io")() }})
	m.Enter(func() {
		_ = r.SetInterest(EventRead)
		l.AtTurnEnd(funcTask(note("turn end")))
	})
	l.Schedule(0, note("timer"))
	_ = l.Execute(note("task"))
	_ = l.Offload().Submit(func() {
		note("offloaded")()
		if l.InLoop() {
			t.Error("got InLoop true in an offloaded function")
		}
		if !WouldDeadlock() {
			t.Error("got WouldDeadlock false in an offloaded function")
		}
	})
	m.Ready(5, EventRead)
	_ = l.Execute(func() {
		if n := m.Turn(); n != 0 {
			t.Errorf("got %d calls of a turn inside a turn, want 0", n)
		}
	})
	want := []string{"offloaded", "io", "task", "timer", "turn end"}
	// The placing of the timer and the nested turn are tasks too.
	if n := m.Turn(); n != len(want)+2 {
		t.Errorf("got %d calls, want %d", n, len(want)+2)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if n := m.Turn(); n != 0 {
		t.Errorf("got %d calls in an idle turn, want 0", n)
	}
}

func TestManualPanicReachesTheCaller(t *testing.T) {
	m := newTestManual(t)
	l := m.Loop()
	ran := 0
	_ = l.Execute(func() { panic("oops") })
	_ = l.Execute(func() { ran++ })
	func() {
		defer func() {
			if v := recover(); v != "oops" {
				t.Errorf("got %v, want the panic of the task", v)
			}
		}()
		m.Turn()
	}()
	if l.InLoop() || WouldDeadlock() {
		t.Error("got the loop's identity kept after a panic")
	}
	m.RunUntilIdle()
	if ran != 1 {
		t.Errorf("got %d runs of the next task, want 1", ran)
	}
}

// Posts from other goroutines wait for the next turn.
func TestManualTakesTasksFromAnywhere(t *testing.T) {
	m := newTestManual(t)
	ran := false
	posted := make(chan struct{})
	go func() {
		defer close(posted)
		_ = m.Loop().Execute(func() { ran = true })
	}()
	await(t, posted, "the post")
	if ran {
		t.Error("got a task run without a turn")
	}
	m.Turn()
	if !ran {
		t.Error("got no task run in the turn")
	}
}

func TestManualNeverIdle(t *testing.T) {
	m := newTestManual(t)
	var again func()
	stop := false
	again = func() {
		if !stop {
			_ = m.Loop().Execute(again)
		}
	}
	again()
	defer func() {
		if recover() == nil {
			t.Error("got no panic for a loop that does not become idle")
		}
		stop = true
	}()
	m.RunUntilIdle()
}

func TestManualClose(t *testing.T) {
	pool := newTestPool(t)
	m := NewManual()
	l := m.Loop()
	var got []string
	var r *Registration
	r = register(t, m, 3, &testHandle{
		op: func(op *Op) { got = append(got, "op") },
		close: func() {
			got = append(got, "CloseIO")
			r.Close(func() { got = append(got, "closefd") })
		},
	})
	m.Enter(func() {
		l.Allocator(pool).Alloc(100).Release()
		_ = r.Submit(&Op{Run: func() (int64, error) { return 0, nil }})
	})
	l.Schedule(time.Second, func() { t.Error("got a call of a timer that was not due") })
	_ = l.Execute(func() {
		_ = l.Offload().Submit(func() {
			_ = l.Execute(func() { got = append(got, "result") })
		})
	})
	m.Close()
	slices.Sort(got)
	if want := []string{"CloseIO", "closefd", "op", "result"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	m.Close()
	if err := l.Execute(func() {}); !errors.Is(err, ErrLoopClosed) {
		t.Errorf("got %v, want ErrLoopClosed", err)
	}
	if err := l.Offload().Submit(func() {}); !errors.Is(err, ErrOffloadClosed) {
		t.Errorf("got %v, want ErrOffloadClosed", err)
	}
	m.Enter(func() {
		if _, err := l.Register(1, &testHandle{}); !errors.Is(err, ErrLoopClosed) {
			t.Errorf("got %v, want ErrLoopClosed", err)
		}
	})
	// A closed loop is idle: what its end has left can still be looked at.
	m.RunUntilIdle()
	m.Advance(time.Hour)
	if n := m.Turn(); n != 0 {
		t.Errorf("got %d calls from a turn of a closed loop, want 0", n)
	}
}

// The same calls give the same result: a random scenario run twice leaves the same
// trace.
func TestManualIsDeterministic(t *testing.T) {
	seed := rand.Uint64()
	run := func() (trace []string) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		m := NewManual()
		defer m.Close()
		l := m.Loop()
		note := func(format string, args ...any) {
			trace = append(trace, m.Now().Format("05.000 ")+fmt.Sprintf(format, args...))
		}
		regs := make([]*Registration, 10)
		for fd := range regs {
			regs[fd] = register(t, m, fd, &testHandle{
				io: func(ev Event) { note("fd %d %v", fd, ev) },
				op: func(op *Op) { note("op on %d: %d", fd, op.N) },
			})
		}
		for i := range 2000 {
			fd := rnd.IntN(len(regs))
			switch rnd.IntN(7) {
			case 0:
				_ = l.Execute(func() { note("task %d", i) })
			case 1:
				l.Schedule(time.Duration(rnd.IntN(100))*time.Millisecond, func() { note("timer %d", i) })
			case 2:
				_ = l.Offload().Submit(func() { note("offloaded %d", i); _ = l.Execute(func() { note("result %d", i) }) })
			case 3:
				m.Ready(fd, Event(rnd.IntN(32))&(EventRead|EventWrite|EventHangup))
			case 4:
				ev := Event(rnd.IntN(8)) & (EventRead | EventWrite)
				m.Enter(func() { _ = regs[fd].SetInterest(ev) })
			case 5:
				m.Enter(func() {
					_ = regs[fd].Submit(&Op{Run: func() (int64, error) { note("run %d", i); return int64(i), nil }})
				})
			case 6:
				m.Advance(time.Duration(rnd.IntN(20)) * time.Millisecond)
			}
		}
		m.RunUntilIdle()
		return trace
	}
	first, second := run(), run()
	if len(first) < 1000 || !slices.Equal(first, second) {
		t.Errorf("seed %d: got traces of %d and %d lines that differ, or too few", seed, len(first), len(second))
	}
}
