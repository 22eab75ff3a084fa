//go:build linux

package main

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"
)

// group is the cases of one table.
type group struct {
	title string
	cases []*bench
}

// bench is one thing to be done, and the ways of doing it.
type bench struct {
	key  string // names the case for -run and for Netty's results
	name string
	per  int // operations in one pass

	// wall measures elapsed time in place of CPU time, for what keeps two cores
	// busy: there CPU time would count the waiting of one for the other. The figure
	// is then the median, since a round in which both shared a core, and its cache,
	// would be the cheapest.
	wall bool

	targets []target

	// setup makes what the passes need, on the goroutine that will run them, and
	// returns the contenders, Runnel's first, and how to clean up.
	setup func() ([]contender, func())

	ways   []*way  // filled by measure
	allocs float64 // Go allocations by Runnel for each operation
}

// contender is one way of doing it.
type contender struct {
	name string
	run  func(passes int)
}

// target is a bound that Runnel's figure has to keep.
type target struct {
	ns    float64 // for an operation, at most
	peer  string  // or as a part of what this peer needs,
	ratio float64 // at most
}

// way is what was measured of a contender.
type way struct {
	contender
	passes int
	ns     []float64 // for an operation, by round
	ratio  []float64 // Runnel's to this one's, by round
}

// sink takes results, so that the compiler cannot drop the work.
var sink uint64

// measure runs all cases, round by round.
func measure(groups []group, rounds int, turn time.Duration) error {
	for _, g := range groups {
		for _, c := range g.cases {
			contenders, done := c.setup()
			defer done()
			for _, x := range contenders {
				w := &way{contender: x}
				if err := c.calibrate(w, turn); err != nil {
					return err
				}
				c.ways = append(c.ways, w)
			}
			c.allocs = c.countAllocs(c.ways[0])
		}
	}
	for r := range rounds {
		for _, g := range groups {
			for _, c := range g.cases {
				if err := c.round(r); err != nil {
					return fmt.Errorf("%s: %w", c.key, err)
				}
			}
		}
	}
	return nil
}

// calibrate finds how many passes fill a turn.
func (c *bench) calibrate(w *way, turn time.Duration) error {
	for w.passes = 1; ; {
		spent := time.Duration(math.MaxInt64)
		for range 3 { // one of them may have been disturbed
			d, err := c.time(w.run, w.passes)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", c.key, w.name, err)
			}
			spent = max(min(spent, d), 1)
		}
		fit := int(float64(w.passes) * float64(turn) / float64(spent))
		if spent >= turn/2 || w.passes > math.MaxInt32 {
			w.passes = max(1, fit)
			return nil
		}
		w.passes = max(w.passes+1, min(10*w.passes, fit)) // a short time tells little
	}
}

// round gives each contender its turn; the order rotates.
func (c *bench) round(r int) error {
	for k := range c.ways {
		w := c.ways[(r+k)%len(c.ways)]
		// The garbage of the turn before is not this one's. The cycle empties
		// caches, which the passes ahead of the clock fill again.
		runtime.GC()
		w.run(w.passes/10 + 1)
		spent, err := c.time(w.run, w.passes)
		if err != nil {
			return err
		}
		w.ns = append(w.ns, float64(spent)/float64(w.passes)/float64(c.per))
	}
	for _, w := range c.ways {
		w.ratio = append(w.ratio, c.ways[0].ns[r]/w.ns[r])
	}
	return nil
}

func (c *bench) time(run func(int), passes int) (time.Duration, error) {
	if c.wall {
		start := time.Now()
		run(passes)
		return time.Since(start), nil
	}
	start, err := cpuTime()
	if err != nil {
		return 0, err
	}
	run(passes)
	end, err := cpuTime()
	return end - start, err
}

// stands returns what stands for the ns of all rounds.
func (c *bench) stands(ns []float64) float64 {
	if c.wall {
		return median(ns)
	}
	return slices.Min(ns)
}

// countAllocs returns the Go allocations for each operation in the long run: the
// least of some counts, and without what a call of run needs for itself, such as a
// goroutine.
func (c *bench) countAllocs(w *way) float64 {
	count := func(passes int) float64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		w.run(passes)
		runtime.ReadMemStats(&after)
		return float64(after.Mallocs - before.Mallocs)
	}
	least := math.Inf(1)
	for range 5 {
		once := count(1)
		least = min(least, max(0, count(w.passes+1)-once))
	}
	return least / float64(w.passes*c.per)
}

// median of an unsorted list; the mean of the middle two when there are two.
func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// spread is how far the middle half of the values lies from the median, as a part of it.
func spread(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	m := median(s)
	return max(s[len(s)*3/4]-m, m-s[len(s)/4]) / m
}

// worstSpread is the largest spread of any ratio, and whose it is.
func worstSpread(groups []group) (worst float64, name string) {
	for _, g := range groups {
		for _, c := range g.cases {
			for _, w := range c.ways[1:] {
				if s := spread(w.ratio); s >= worst {
					worst, name = s, c.key+" to "+w.name
				}
			}
		}
	}
	return worst, name
}
