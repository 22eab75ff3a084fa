package eventloop

import (
	"runtime"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// yieldTime is how long a loop with enough to do keeps its processor from the
	// other goroutines. Once it meets some, it looks for more every nearTime, or lookTime
	// for each processor if that is longer: who asks the runtime how busy they are has
	// to look at each. That costs it 3 % of its time, and ends metTime after they have
	// become few. If they keep the processor longer than that, so does the loop the next
	// time, up to maxYieldTime: beside goroutines that compute all the time, each of
	// which the runtime gives 10 ms, a loop that always left at once would get next to
	// nothing.
	yieldTime    = int64(200 * time.Microsecond)
	nearTime     = int64(8 * time.Microsecond)
	lookTime     = int64(2 * time.Microsecond)
	metTime      = int64(20 * time.Millisecond)
	maxYieldTime = int64(10 * time.Millisecond)

	// aloneTime is more than a yield takes when nobody wants the processor, and none is
	// idle. Interrupts make some yields longer, up to a hundred a second of those that
	// look for company; so there is company if that happens metTimes in metTime.
	aloneTime = int64(500)
	metTimes  = 4

	// While it has company, a loop wakes an idle processor every pokeTime, so that
	// timers are looked at: one that waits does that to the millisecond. That may
	// take a fifth of its time, or it does so less often.
	pokeTime  = int64(30 * time.Microsecond)
	pokeShare = 5

	// lockedTime is how long a loop that is locked to its thread keeps it when it sees
	// nobody wait: to yield costs it two switches of threads, 15 us.
	lockedTime = int64(5 * time.Millisecond)

	// clockEvery is the largest number of calls between two looks at the clock. A look
	// takes 50 ns. Calls of slowCall or more are timed each by itself, and so are those
	// after one of longCall, for preciseLooks looks.
	clockEvery   = 16
	slowCall     = int64(10 * time.Microsecond)
	longCall     = int64(time.Millisecond)
	preciseLooks = 256
)

// pace is when a loop looks at the clock and when it yields.
type pace struct {
	looked  int64 // clock after the latest look
	window  int   // calls from that look to the next
	left    int   // of them, to be made
	precise int   // looks until the window may be larger than 1

	procs     int             // GOMAXPROCS, lately
	every     int64           // nearTime for so many
	lastYield int64           // clock after it
	quantum   int64           // how long after it the next one is
	met       [metTimes]int64 // lastYield of those with somebody else, latest first
	scheduled int64           // lastYield of the latest one that was not left out
	poke      int64           // how long after it an idle processor is woken
}

func newPace() pace {
	p := pace{window: clockEvery, left: clockEvery, quantum: yieldTime, poke: pokeTime}
	p.meet(-metTime, metTimes)
	p.setProcs(runtime.GOMAXPROCS(0))
	return p
}

// setProcs takes note of GOMAXPROCS, which may change.
func (p *pace) setProcs(n int) {
	p.procs, p.every = n, max(nearTime, int64(n)*lookTime)
}

// meet takes note of others; n is how often.
func (p *pace) meet(now int64, n int) {
	copy(p.met[n:], p.met[:])
	for i := range n {
		p.met[i] = now
	}
}

// near reports whether others have wanted the processor lately.
func (p *pace) near(now int64) bool { return now-p.met[metTimes-1] < metTime }

// look reads the clock between two calls, and yields if it is time to.
func (l *Loop) look() (now int64) {
	now = l.clock()
	p := &l.pace
	if n := p.window - p.left; n > 0 {
		l.measure(now-p.looked, int64(n))
	}
	p.left = p.window
	p.looked = now
	if now-p.lastYield >= p.quantum && l.manual == nil {
		return l.yield(now, l.company(now))
	}
	return now
}

// measure deals with the time that the latest n calls took together.
func (l *Loop) measure(took, n int64) {
	p := &l.pace
	if took > int64(l.m.LongestCall) || n == 1 && !l.longestExact {
		l.longest(took, n)
	}
	if l.sight != nil && took >= l.sight.dog.limit {
		l.held(took, n)
	}
	switch {
	case took >= longCall:
		p.precise, p.window = preciseLooks, 1
	case p.precise > 0:
		p.precise--
	case took >= slowCall*n:
		p.window = 1
	case p.near(p.looked):
		p.window = int(min(max(p.every*n/max(took, 1), 1), clockEvery))
	default:
		p.window = clockEvery
	}
}

// yield lets who wants it have the processor, and takes note for how long that was.
func (l *Loop) yield(now int64, who company) (after int64) {
	p := &l.pace
	after = now
	if who != nobody {
		runtime.Gosched()
		after = l.clock()
		p.scheduled = after
	}
	took := after - now
	switch {
	case who == idleProcessor:
		p.poke = min(max(p.poke+(pokeShare*min(took, yieldTime/pokeShare)-p.poke)/8, pokeTime), yieldTime)
	case who == somebody:
		p.meet(after, metTimes)
	case took >= aloneTime:
		p.meet(after, 1)
	}
	least := yieldTime
	if p.near(after) {
		least = p.every / 2 // at the next look
	}
	p.quantum = min(max(took, least), maxYieldTime)
	p.lastYield, p.looked = after, after
	l.stageFrom += took
	return after
}

// company is who may want the processor of a loop.
type company uint8

const (
	nobody        company = iota
	anybody               // it costs next to nothing to find out
	somebody              // a goroutine that is ready
	idleProcessor         // timers, of which an idle processor takes care if it is woken
)

// company finds out who may want the processor. With one processor, or if all are
// at work, only who yields sees that a timer is due, and a yield is cheap. If one is
// idle, each yield wakes a thread for it, which takes microseconds, or more where
// processors are virtual.
func (l *Loop) company(now int64) company {
	p := &l.pace
	if p.procs == 1 && !l.locked {
		return anybody
	}
	waiting, running := scheduler.look()
	switch {
	case waiting > 0:
		return somebody
	case l.locked:
		if now-p.scheduled >= lockedTime {
			return anybody
		}
	case running >= p.procs:
		return anybody
	case p.near(now) && now-p.scheduled >= p.poke:
		return idleProcessor
	}
	return nobody
}

// scheduler is what the Go runtime tells of its queues. It takes a lock that all of
// the process share, so one loop at a time asks.
var scheduler = schedulerState{samples: []metrics.Sample{
	{Name: "/sched/goroutines/runnable:goroutines"},
	{Name: "/sched/goroutines/running:goroutines"},
}}

type schedulerState struct {
	mu      sync.Mutex
	samples []metrics.Sample // guarded by mu
}

// look returns the number of goroutines that wait for a processor and of those that
// have one, 0 if somebody else is asking. If the runtime does not tell, all
// processors are at work.
func (s *schedulerState) look() (waiting, running int) {
	if !s.mu.TryLock() {
		return 0, 0
	}
	defer s.mu.Unlock()
	metrics.Read(s.samples)
	for _, sample := range s.samples {
		if sample.Value.Kind() != metrics.KindUint64 {
			return 0, 1 << 30
		}
	}
	return int(s.samples[0].Value.Uint64()), int(s.samples[1].Value.Uint64())
}
