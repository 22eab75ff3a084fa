package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/runnel-io/runnel/eventloop"
)

// load is what all connections share.
type load struct {
	options
	stream []byte // what is sent, over and over
	stats  map[*eventloop.Loop]*stats
	epoch  time.Time
	all    sync.WaitGroup // of the connections

	mu     sync.Mutex
	failed int
	err    error // the first failure
}

func newLoad(o options, loops []*eventloop.Loop) *load {
	l := &load{options: o, stats: make(map[*eventloop.Loop]*stats), epoch: time.Now()}
	l.stream = make([]byte, 65521) // a prime, so that messages of no size repeat soon
	_, _ = rand.NewChaCha8([32]byte{}).Read(l.stream)
	for _, loop := range loops {
		l.stats[loop] = new(stats)
	}
	return l
}

// at returns up to n bytes of the stream from *pos, and moves that on.
func (l *load) at(pos *int, n int) []byte {
	p := l.stream[*pos:min(*pos+n, len(l.stream))]
	*pos = (*pos + len(p)) % len(l.stream)
	return p
}

// now returns the time since the epoch in ns.
func (l *load) now() int64 { return int64(time.Since(l.epoch)) }

// fail takes note of a failure. Any goroutine.
func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed++
	if l.err == nil {
		l.err = err
	}
}

func (l *load) messages() (n int64) {
	for _, s := range l.stats {
		n += s.messages.Load()
	}
	return n
}

// watch waits for the end of ctx. On a terminal it says each second how it goes.
func (l *load) watch(ctx context.Context) {
	tick := make(<-chan time.Time) // never
	if info, err := os.Stdout.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		tick = t.C
	}
	done := make(chan struct{})
	go func() {
		l.all.Wait() // all have failed, if that comes first
		close(done)
	}()
	last, lastAt := int64(0), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-done:
			return
		case now := <-tick:
			n := l.messages()
			rate := float64(n-last) / now.Sub(lastAt).Seconds()
			fmt.Printf("%.0f messages/s, %.1f MB/s\n", rate, rate*float64(l.size)/1e6)
			last, lastAt = n, now
		}
	}
}

// wait waits for the end of all connections.
func (l *load) wait(limit time.Duration) bool {
	done := make(chan struct{})
	go func() {
		l.all.Wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-time.After(limit):
		return false
	}
}

// report prints what was measured, and returns what went wrong.
func (l *load) report(w io.Writer, elapsed time.Duration) error {
	var sum stats
	for _, s := range l.stats {
		sum.merge(s)
	}
	n := l.messages()
	rate := float64(n) / elapsed.Seconds()
	fmt.Fprintf(w, "%d messages in %.2f s: %.0f messages/s, %.1f MB/s, latency p50 %v p99 %v p99.9 %v max %v\n",
		n, elapsed.Seconds(), rate, rate*float64(l.size)/1e6,
		sum.quantile(0.5), sum.quantile(0.99), sum.quantile(0.999), sum.quantile(1))
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil && l.failed > 1:
		return fmt.Errorf("%w (and %d more failures)", l.err, l.failed-1)
	case l.err == nil && n == 0:
		return errors.New("no message came back")
	}
	return l.err
}

// stats is what the connections of one loop have measured: a histogram of latencies
// with 32 steps for each power of two. All but messages is the loop's own until it
// has ended.
type stats struct {
	messages atomic.Int64
	counts   [1920]int64
	total    int64
	max      time.Duration
}

func (s *stats) add(d time.Duration) {
	s.messages.Add(1)
	s.counts[step(d)]++
	s.total++
	s.max = max(s.max, d)
}

func (s *stats) merge(o *stats) {
	for i, n := range o.counts {
		s.counts[i] += n
	}
	s.total += o.total
	s.max = max(s.max, o.max)
}

// quantile returns a time that a share q of the messages did not exceed.
func (s *stats) quantile(q float64) time.Duration {
	left := int64(q * float64(s.total))
	for i, n := range s.counts {
		if left -= n; left < 0 {
			return min(limit(i), s.max).Round(time.Microsecond)
		}
	}
	return s.max.Round(time.Microsecond)
}

// step returns the step of the histogram that d belongs to, and limit the longest
// time that belongs to step i.
func step(d time.Duration) int {
	v := uint64(max(d, 0))
	e := max(bits.Len64(v)-6, 0)
	return e*32 + int(v>>e)
}

func limit(i int) time.Duration {
	e := max(i/32-1, 0)
	return time.Duration((i-e*32+1)<<e - 1)
}
