package eventloop

import (
	"bytes"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

const (
	defaultWatchdog = time.Second

	// Stacks of all goroutines stop the world and fill logs: that many bytes of them,
	// that often in a process.
	dumpSize  = 256 << 10
	dumpEvery = time.Minute
)

// watchdog reports calls that do not return to their loop. It looks at the loops of
// its group at most once in its limit, and not at all while they all wait: the loop
// that wakes up first arms it. A call that it sees twice has lasted for its limit at
// least. The loops themselves report, and count, the calls that have returned late.
type watchdog struct {
	limit  int64
	logger *zap.Logger
	loops  []*Loop

	armed   atomic.Bool // a look is due or under way
	mu      sync.Mutex
	timer   *time.Timer
	pending sync.WaitGroup // looks that are due or under way
	closed  bool
	seen    []sighting // of each loop
}

// sighting is a call that a loop was in.
type sighting struct {
	turn     int64 // clock when its turn began; 0 if the loop was in no call
	stage    stage
	callee   any // *Registration, *Task or *Timer
	reported bool
}

// sight is what a loop shows of itself to a watchdog, at the price of a store for
// each call. Any goroutine may look.
type sight struct {
	dog       *watchdog
	goroutine atomic.Uint64 // number of the loop's goroutine in stack dumps

	turn  atomic.Int64  // clock of the turn
	stage atomic.Uint32 // of the latest call; stagePoll when the loop has nothing to do
	reg   atomic.Pointer[Registration]
	timer atomic.Pointer[Timer]

	// task points to a place in the list of the tasks that the loop is running. That
	// the place is not used again while somebody looks is what mu is for.
	task atomic.Pointer[Task]
	mu   sync.Mutex

	seen atomic.Pointer[insight] // latest that Describe's function had to say
}

// insight is what a call was found to be doing inside.
type insight struct {
	at   int64 // the loop's clock
	what string
}

// enter shows that calls of a stage follow.
func (s *sight) enter(st stage) {
	if s != nil {
		s.stage.Store(uint32(st))
	}
}

// hideTasks is called before a list of tasks is cleared, and s.mu unlocked after it.
func (s *sight) hideTasks() {
	s.mu.Lock()
	s.task.Store(nil)
}

// look returns the call that the loop is in.
func (s *sight) look() sighting {
	at := sighting{turn: s.turn.Load(), stage: stage(s.stage.Load())}
	switch at.stage {
	case stageIO:
		at.callee = s.reg.Load()
	case stageTasks, stageTurnEnd:
		at.callee = s.task.Load()
	case stageTimers:
		at.callee = s.timer.Load()
	default:
		at.turn = 0
	}
	return at
}

// describe says what kind of call at is.
func (s *sight) describe(at sighting) string {
	switch callee := at.callee.(type) {
	case *Registration:
		if callee != nil {
			return describeHandle(callee)
		}
	case *Task:
		s.mu.Lock()
		defer s.mu.Unlock()
		if callee != nil && s.task.Load() == callee {
			return describeTask(at.stage, *callee)
		}
	case *Timer:
		if callee != nil {
			return describeTimer(callee)
		}
	}
	return "a call that has just returned"
}

// Describe has f asked, by the watchdog, for what a call that may hold the loop is doing
// inside: a package that knows channels and handlers can name them. Package pipeline
// does, for a loop that has channels. f is called on any goroutine while the loop is at
// work, so it may use only what is safe there. It returns "" if it has nothing to say. A
// later Describe replaces it.
func (l *Loop) Describe(f func() string) { l.describe.Store(&f) }

func newWatchdog(limit time.Duration, logger *zap.Logger, loops []*Loop) *watchdog {
	w := &watchdog{limit: int64(limit), logger: logger, loops: loops, seen: make([]sighting, len(loops))}
	w.timer = time.AfterFunc(time.Hour, w.tick)
	w.timer.Stop()
	for _, l := range loops {
		l.sight = &sight{dog: w}
	}
	return w
}

// wake is called by a loop that goes to work.
func (w *watchdog) wake() {
	if !w.armed.Load() && w.armed.CompareAndSwap(false, true) {
		w.mu.Lock()
		w.arm()
		w.mu.Unlock()
	}
}

// arm has the loops looked at when the limit has passed. w.mu is held.
func (w *watchdog) arm() {
	if !w.closed {
		w.pending.Add(1)
		w.timer.Reset(time.Duration(w.limit))
	}
}

// tick is the timer's function.
func (w *watchdog) tick() {
	defer w.pending.Done()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	if !w.look() {
		// Either we see a loop that wakes up now, or it sees that nobody watches.
		w.armed.Store(false)
		if !w.working() || !w.armed.CompareAndSwap(false, true) {
			return
		}
	}
	w.arm()
}

// working reports whether a loop does not wait.
func (w *watchdog) working() bool {
	for _, l := range w.loops {
		if l.sleep.Load() != asleep {
			return true
		}
	}
	return false
}

// look looks at each loop and reports those that are in the same call as the last
// time. It returns whether a loop is at work. w.mu is held.
func (w *watchdog) look() (working bool) {
	for i, l := range w.loops {
		var at sighting
		if l.sleep.Load() != asleep {
			working = true
			at = l.sight.look()
		}
		if at.turn != 0 {
			l.sight.lookInside(l, at)
		}
		before := &w.seen[i]
		reported := before.reported
		before.reported = false
		if at.turn == 0 || at != *before {
			*before = at
			continue
		}
		before.reported = true
		if !reported {
			w.report(l, at)
		}
	}
	return working
}

// lastDump is when stacks were last dumped: nanoseconds of the wall clock.
var lastDump atomic.Int64

// report says that a loop is stuck in a call.
func (w *watchdog) report(l *Loop, at sighting) {
	fields := []zap.Field{
		zap.String("loop", l.name),
		zap.Duration("for", time.Duration(l.clock()-at.turn)),
		zap.String("in", l.sight.describe(at)),
	}
	if in := l.sight.seen.Load(); in != nil {
		fields = append(fields, zap.String("inside", in.what))
	}
	now, last := time.Now().UnixNano(), lastDump.Load()
	if now-last >= int64(dumpEvery) && lastDump.CompareAndSwap(last, now) {
		dump := make([]byte, dumpSize)
		dump = dump[:runtime.Stack(dump, true)]
		fields = append(fields,
			zap.ByteString("stack", stackOf(dump, l.sight.goroutine.Load())),
			zap.ByteString("goroutines", dump))
	}
	w.logger.Warn("a call holds its loop", fields...)
}

// lookInside takes note of what l is doing inside at, if it still is in that call
// afterwards.
func (s *sight) lookInside(l *Loop, at sighting) {
	var in *insight
	if what := l.inside(); what != "" && s.look() == at {
		in = &insight{l.clock(), what}
	}
	s.seen.Store(in)
}

// inside returns what the function given to Describe says.
func (l *Loop) inside() (s string) {
	f := l.describe.Load()
	if f == nil {
		return ""
	}
	defer func() {
		if v := recover(); v != nil {
			s = fmt.Sprintf("unknown: panic: %v", v)
		}
	}()
	return (*f)()
}

// stackOf finds one goroutine in a dump of all; nil if it was cut off.
func stackOf(dump []byte, goroutine uint64) []byte {
	head := fmt.Appendf(nil, "goroutine %d ", goroutine)
	for len(dump) > 0 {
		one, rest, _ := bytes.Cut(dump, []byte("\n\n"))
		if bytes.HasPrefix(one, head) {
			return one
		}
		dump = rest
	}
	return nil
}

// held reports the n calls since the latest look at the clock, which have taken longer
// than the watchdog's limit. What they did inside is known if it has looked meanwhile.
func (l *Loop) held(took, n int64) {
	l.m.Held++
	fields := []zap.Field{
		zap.String("loop", l.name),
		zap.Duration("for", time.Duration(took)),
		zap.String("in", l.latestCalls(n)),
	}
	if in := l.sight.seen.Load(); in != nil && in.at > l.pace.looked {
		fields = append(fields, zap.String("inside", in.what))
	}
	l.logger.Warn("a call held its loop", fields...)
}

// close ends the watchdog and waits for a look that is under way.
func (w *watchdog) close() {
	if w == nil {
		return
	}
	w.mu.Lock()
	w.closed = true
	if w.timer.Stop() {
		w.pending.Done()
	}
	w.mu.Unlock()
	w.pending.Wait()
}
