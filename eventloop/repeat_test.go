package eventloop

import (
	"math"
	"runtime"
	"slices"
	"testing"
	"time"
)

func TestScheduleEvery(t *testing.T) {
	const s = time.Second
	tests := []struct {
		name string
		do   func(m *Manual, n int, tm *Timer) // in the n-th call
		want []time.Duration                   // of the first 12 s
	}{
		{"every 3 s", nil, []time.Duration{3 * s, 6 * s, 9 * s, 12 * s}},
		{"a call that takes 1 s", func(m *Manual, n int, _ *Timer) {
			m.nanos.Add(int64(s))
		}, []time.Duration{3 * s, 6 * s, 9 * s, 12 * s}},
		{"a stall: one call late, none made up for", func(m *Manual, n int, _ *Timer) {
			if n == 1 {
				m.nanos.Add(int64(7 * s)) // until 10 s
			}
		}, []time.Duration{3 * s, 10 * s, 12 * s}},
		{"stopped in the second call", func(_ *Manual, n int, tm *Timer) {
			if n == 2 && tm.Stop() {
				t.Error("got Stop true while the function runs")
			}
		}, []time.Duration{3 * s, 6 * s}},
		{"reset in the second call", func(_ *Manual, n int, tm *Timer) {
			if n == 2 {
				tm.Reset(s)
			}
		}, []time.Duration{3 * s, 6 * s, 7 * s, 10 * s}},
		{"stopped and reset in the first call", func(_ *Manual, n int, tm *Timer) {
			if n == 1 {
				tm.Stop()
				tm.Reset(5 * s)
			}
		}, []time.Duration{3 * s, 8 * s, 11 * s}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newTestManual(t)
			start := m.Now()
			var got []time.Duration
			var tm *Timer
			tm = m.Loop().ScheduleEvery(3*s, func() {
				got = append(got, m.Now().Sub(start))
				if tt.do != nil {
					tt.do(m, len(got), tm)
				}
			})
			m.Advance(start.Add(12 * s).Sub(m.Now()))
			// What a call has taken was not part of the advance.
			if !slices.Equal(got, tt.want) {
				t.Errorf("got calls at %v, want %v", got, tt.want)
			}
			tm.Stop()
			if n := m.Loop().Metrics().TimersArmed; n != 0 {
				t.Errorf("got %d armed timers after Stop, want 0", n)
			}
		})
	}
}

func TestScheduleEveryWithoutInterval(t *testing.T) {
	m := newTestManual(t)
	for _, d := range []time.Duration{0, -1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%v: got no panic", d)
				}
			}()
			m.Loop().ScheduleEvery(d, func() {})
		}()
	}
}

// An interval that ends beyond the clock's end is never over.
func TestScheduleEveryForLong(t *testing.T) {
	m := newTestManual(t)
	n := 0
	m.Loop().ScheduleEvery(math.MaxInt64-10, func() { n++ })
	m.Advance(math.MaxInt64 - 10)
	m.Advance(5)
	if n != 1 {
		t.Errorf("got %d calls, want 1", n)
	}
}

func TestScheduleEveryAfterAPanic(t *testing.T) {
	l := newTestLoop(t, nil)
	called := make(chan int, 100)
	n := 0
	tm := l.ScheduleEvery(time.Microsecond, func() {
		if n++; n <= 4 {
			called <- n
		}
		switch n {
		case 1:
			panic("first call")
		case 2:
			runtime.Goexit()
		}
	})
	for want := 1; want <= 4; want++ {
		if got := await(t, called, "the next call"); got != want {
			t.Errorf("got call %d, want %d", got, want)
		}
	}
	tm.Stop()
}

// Off the loop no call begins after Stop: what a task finds later stays as it is.
func TestScheduleEveryStoppedOffTheLoop(t *testing.T) {
	l := newTestLoop(t, nil)
	for range 200 {
		n := 0 // loop-only
		first := make(chan struct{})
		tm := l.ScheduleEvery(time.Microsecond, func() {
			if n++; n == 1 {
				close(first)
			}
		})
		await(t, first, "the first call")
		tm.Stop()
		var before int
		onLoop(t, l, func() { before = n })
		onLoop(t, l, func() {})
		onLoop(t, l, func() {
			if n != before {
				t.Errorf("got %d calls, and %d more after Stop", before, n-before)
			}
			if got := l.Metrics().TimersArmed; got != 0 {
				t.Errorf("got %d armed timers after Stop, want 0", got)
			}
		})
	}
}
