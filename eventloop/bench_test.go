package eventloop

import (
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/zap"
)

// BenchmarkSubmit brings a task to a loop that is at work, from another goroutine.
// The channel beside it is what a program without a loop would use.
func BenchmarkSubmit(b *testing.B) {
	b.Run("loop", func(b *testing.B) {
		l := newTestLoop(b, nil)
		var task countTask
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			_ = l.Submit(&task)
			if i%1024 == 0 { // lets the loop keep up
				onLoop(b, l, func() {})
			}
		}
	})
	b.Run("channel", func(b *testing.B) {
		c := make(chan Task, 1024)
		go func() {
			for t := range c {
				t.Run()
			}
		}()
		var task countTask
		b.ReportAllocs()
		for b.Loop() {
			c <- &task
		}
		close(c)
	})
}

// BenchmarkRoundTrip wakes a loop that waits and waits for its answer, by turns with a
// goroutine that is asked over one unbuffered channel and answers over another. It
// reports the first as a multiple of the second.
func BenchmarkRoundTrip(b *testing.B) {
	const turn = 100 // of either kind, so that changing from one to the other weighs little
	l := newTestLoop(b, nil)
	task := &signalTask{make(chan struct{}, 1)}
	there, back := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(back)
		for range there {
			back <- struct{}{}
		}
	}()
	var loop, channel time.Duration
	for b.Loop() {
		start := time.Now()
		for range turn {
			_ = l.Submit(task)
			<-task.c
		}
		half := time.Now()
		for range turn {
			there <- struct{}{}
			<-back
		}
		loop += half.Sub(start)
		channel += time.Since(half)
	}
	close(there)
	<-back
	b.ReportMetric(float64(loop)/float64(b.N*turn), "ns/loop")
	b.ReportMetric(float64(channel)/float64(b.N*turn), "ns/channel")
	b.ReportMetric(float64(loop)/float64(channel), "of-channel")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkTurn is what a turn costs beside what it calls, and what an event adds.
func BenchmarkTurn(b *testing.B) {
	for _, bench := range []struct {
		name    string
		events  int
		watched bool
	}{
		{"empty", 0, false}, {"events=1", 1, false}, {"events=64", 64, false},
		{"empty/watched", 0, true}, {"events=1/watched", 1, true}, {"events=64/watched", 64, true},
	} {
		b.Run(bench.name, func(b *testing.B) {
			m := newTestManual(b)
			m.Enter(func() {
				l := m.Loop()
				if bench.watched {
					newWatchdog(time.Hour, zap.NewNop(), []*Loop{l})
				}
				p := &readyPoller{}
				l.poller = p
				for fd := range bench.events {
					r, err := l.Register(fd, &testHandle{io: func(Event) {}})
					if err != nil {
						b.Fatal(err)
					}
					_ = r.SetInterest(EventRead)
					p.set = append(p.set, outcome{key: r.key(), ev: EventRead})
				}
				b.ReportAllocs()
				for b.Loop() {
					l.turn()
				}
				l.poller = &manualPoller{loop: l}
			})
		})
	}
}

// readyPoller always finds the same.
type readyPoller struct {
	manualPoller
	set []outcome
}

func (p *readyPoller) poll(out []outcome, _ time.Duration) (int, error) {
	return copy(out, p.set), nil
}

// BenchmarkTimers works on one timer among many that are armed.
func BenchmarkTimers(b *testing.B) {
	for _, bench := range []struct {
		name string
		do   func(l *Loop, tm *Timer)
	}{
		{"postpone", func(l *Loop, tm *Timer) { tm.Reset(3 * time.Hour) }},
		{"arm and cancel", func(l *Loop, _ *Timer) { l.Schedule(time.Hour, func() {}).Stop() }},
		{"cancel and arm again", func(l *Loop, tm *Timer) { tm.Stop(); tm.Reset(time.Hour) }},
		{"earlier and later", func(l *Loop, tm *Timer) { tm.Reset(time.Minute); tm.Reset(time.Hour) }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			m := newTestManual(b)
			m.Enter(func() {
				l := m.Loop()
				timers := make([]*Timer, 500_000)
				for i := range timers {
					timers[i] = l.Schedule(time.Hour+time.Duration(rand.IntN(1e9)), func() {})
				}
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					bench.do(l, timers[i*7919%len(timers)])
				}
			})
		})
	}
}

// BenchmarkPromise completes a promise that somebody asks for.
func BenchmarkPromise(b *testing.B) {
	m := newTestManual(b)
	m.Enter(func() {
		f := func(error) {}
		b.ReportAllocs()
		for b.Loop() {
			p := NewPromise(m.Loop())
			p.Then(f)
			p.Complete(nil)
		}
	})
}

// BenchmarkInLoop is the check that every public method begins with.
func BenchmarkInLoop(b *testing.B) {
	l := newTestLoop(b, nil)
	for b.Loop() {
		if l.InLoop() {
			b.Fatal("got InLoop on another goroutine")
		}
	}
}

// BenchmarkStrand hands tasks to one owner at a time, from another goroutine. The
// goroutine with a channel beside it is what a program without strands would use, one
// for each owner.
func BenchmarkStrand(b *testing.B) {
	b.Run("strand", func(b *testing.B) {
		o := newTestOffload(b, OffloadConfig{})
		s := newTestStrand(b, o, StrandConfig{})
		var task countTask
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			_ = s.Submit(&task)
			if i%1024 == 0 { // lets the strand keep up
				done := make(chan struct{})
				_ = s.Execute(func() { close(done) })
				<-done
			}
		}
	})
	b.Run("channel", func(b *testing.B) {
		c := make(chan Task, 1024)
		go func() {
			for t := range c {
				t.Run()
			}
		}()
		var task countTask
		b.ReportAllocs()
		for b.Loop() {
			c <- &task
		}
		close(c)
	})
}
