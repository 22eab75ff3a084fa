package eventloop

import (
	"runtime"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// yieldTime is how long a loop with enough to do keeps its processor from the
	// other goroutines. For metTime after it has met one, it looks for more every
	// nearTime, or lookTime for each processor if that is longer: who asks the runtime
	// how busy they are has to look at each. That costs it 2 to 3 % of its time. If they
	// keep the processor longer than that, so does the loop the next time, up to
	// maxYieldTime: beside goroutines that compute all the time, each of which the
	// runtime gives 10 ms, a loop that always left at once would get next to nothing.
	yieldTime    = int64(200 * time.Microsecond)
	nearTime     = int64(8 * time.Microsecond)
	lookTime     = int64(2 * time.Microsecond)
	metTime      = int64(20 * time.Millisecond)
	maxYieldTime = int64(10 * time.Millisecond)

	// aloneTime is more than a yield takes when nobody wants the processor, and none is
	// idle.
	aloneTime = int64(500)

	// While it has company, a loop wakes an idle processor every pokeTime, so that
	// timers are looked at: one that waits does that to the millisecond. That may
	// take a twelfth of its time, or it does so less often.
	pokeTime  = int64(40 * time.Microsecond)
	pokeShare = 12

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

	procs     int   // GOMAXPROCS, lately
	near      int64 // nearTime for so many
	lastYield int64 // clock after it
	quantum   int64 // how long after it the next one is
	met       int64 // lastYield when there was somebody else
	scheduled int64 // lastYield of the latest one that was not left out
	poke      int64 // how long after it an idle processor is woken
}

func newPace() pace {
	p := pace{window: clockEvery, left: clockEvery, quantum: yieldTime, met: -metTime, poke: pokeTime}
	p.setProcs(runtime.GOMAXPROCS(0))
	return p
}

// setProcs takes note of GOMAXPROCS, which may change.
func (p *pace) setProcs(n int) {
	p.procs, p.near = n, max(nearTime, int64(n)*lookTime)
}

// shorten has the next look come after two calls.
func (p *pace) shorten() { p.window = min(p.window, 2); p.left = p.window }

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
		return l.yield(now)
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
	case p.looked-p.met < metTime:
		p.window = int(min(max(p.near*n/max(took, 1), 1), clockEvery))
	default:
		p.window = clockEvery
	}
}

// yield lets other goroutines run, if there may be some, and takes note how long
// they did.
func (l *Loop) yield(now int64) (after int64) {
	p := &l.pace
	after = now
	who := l.company(now)
	if who != nobody {
		runtime.Gosched()
		after = l.clock()
		p.scheduled = after
	}
	took := after - now
	switch {
	case who == idleProcessor:
		p.poke = min(max(p.poke+(pokeShare*min(took, yieldTime/pokeShare)-p.poke)/8, pokeTime), yieldTime)
	case who == somebody || took >= aloneTime:
		p.met = after
	}
	least := yieldTime
	if after-p.met < metTime {
		least = p.near / 2 // at the next look
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
	case now-p.met < metTime && now-p.scheduled >= p.poke:
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
