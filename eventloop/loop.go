package eventloop

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/goid"
	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/internal/queue"
)

const (
	// taskBudget and timerBudget bound what a turn runs before it looks at I/O
	// again, taskTime does so for tasks that take long.
	taskBudget  = 1024
	timerBudget = 1024
	taskTime    = int64(time.Millisecond)

	// yieldTime is how long a loop with enough to do keeps its processor from the
	// other goroutines. If they keep it longer, so does the loop the next time, up to
	// maxYieldTime: beside goroutines that compute all the time, each of which the
	// runtime gives 10 ms, a loop that always left after 200 us would get a fiftieth
	// of the processor.
	yieldTime    = int64(200 * time.Microsecond)
	maxYieldTime = int64(10 * time.Millisecond)

	// clockEvery is the number of calls between two looks at the clock.
	clockEvery = 16

	// idleTime is how long a loop waits before it gives back memory it has kept for
	// the next burst.
	idleTime = int64(time.Second)

	// endTurns bounds the turns in which an ending loop waits for its tasks to stop
	// making new ones.
	endTurns = 128

	minOutcomes = 128 // of one poll; doubled when they do not suffice
	maxOutcomes = 4096
)

// Task is work for a loop. A task that is made once and submitted often costs no
// allocation, unlike most functions.
type Task interface {
	// Run does the work, on the loop.
	Run()
}

// funcTask is a function as a Task.
type funcTask func()

func (f funcTask) Run() { f() }

// lastLoop numbers the loops of the process.
var lastLoop atomic.Int64

// Loop runs I/O handlers, tasks and timers one at a time, on one goroutine. In each
// turn it delivers I/O, runs tasks and then timers up to a budget, and at the end
// what was asked for by AtTurnEnd; then it polls, and waits if there is nothing to
// do.
//
// A panic in anything the loop calls is logged and counted, and the loop goes on;
// runtime.Goexit makes it go on with a new goroutine.
//
// Ownership: a loop belongs to its [Group] or [Manual].
//
// Concurrency: all methods are safe from any goroutine but those that say "Loop
// only".
type Loop struct {
	// Fixed.
	id      int
	name    string
	logger  *zap.Logger
	offload *Offload
	base    time.Time // where the loop's clock begins
	poller  poller
	group   *Group        // nil for a Manual's loop
	manual  *Manual       // nil for a loop with a goroutine of its own
	closed  chan struct{} // closed when no registration and no Op is left, after closeAll
	done    chan struct{} // closed when the loop has ended

	// Any goroutine.
	self    atomic.Uintptr // identity of the goroutine that runs the loop, else 0
	tasks   queue.MPSC[Task]
	sleep   atomic.Uint32
	wakeups atomic.Uint64 // wakes of the poller that are over
	timers  timers        // all but timers.armed is loop-only

	mu        sync.Mutex
	published Metrics // guarded by mu

	_ [64]byte // keeps what follows off the cache lines above

	// Loop only.
	now       int64 // clock of this turn
	lastYield int64
	quantum   int64  // how long after it the next one is
	idle      int64  // time spent waiting
	wakesOwed uint64 // wakeups, once nobody is in the middle of one

	// What a turn has got to; a turn that a panic interrupts goes on from here.
	stage    stage
	outcomes []outcome
	ready    int // outcomes of this turn
	readyAt  int // next one
	batch    []Task
	batchAt  int
	taskEnd  int    // batchAt at which the budget of this turn is used up
	taskFrom int64  // clock when the tasks of this turn began
	timerSeq uint64 // timers placed later wait for the next turn
	timerEnd uint64 // TimersFired at which the budget is used up

	turnEnd     []Task // for the end of this turn
	turnEndRun  []Task // being run
	turnEndAt   int
	turnEnds    uint64 // run since the start
	notifyDepth int    // callbacks of promises on the stack

	table     table
	ops       int // under way
	caches    []poolCache
	active    int64 // clock of the last turn with I/O or tasks
	trimmed   int64 // active when the caches were trimmed last
	pollFails int   // in a row
	m         Metrics

	closing bool // takes no registrations
	ending  int  // turns since it was told to end, 0 before
	final   bool // the queue is closed; what it held is in batch
}

// stage is the part of a turn that comes next.
type stage uint8

const (
	stagePoll stage = iota
	stageIO
	stageTasks
	stageTimers
	stageTurnEnd
)

// States of Loop.sleep. The loop moves it to asleep before it waits. Whoever moves it
// back to awake, if that is not the loop itself, owes the poller one wake. One that
// comes late ends the next wait early, which does no harm; only the loop's end has
// to wait for it.
const (
	awake uint32 = iota
	asleep
)

// poolCache is the loop's cache of a pool.
type poolCache struct {
	pool  *buffer.Pool
	cache *buffer.Cache
}

func newLoop(name string, logger *zap.Logger, offload *Offload, outcomes int) *Loop {
	if logger == nil {
		logger = zap.NewNop()
	}
	return &Loop{
		id:       int(lastLoop.Add(1)),
		name:     name,
		logger:   logger,
		offload:  offload,
		closed:   make(chan struct{}),
		done:     make(chan struct{}),
		outcomes: make([]outcome, outcomes),
		quantum:  yieldTime,
	}
}

// ID returns a number that no other loop of the process has had.
func (l *Loop) ID() int { return l.id }

// Name returns the name of the loop: its group's and its number there.
func (l *Loop) Name() string { return l.name }

// Logger returns the logger of the loop's group, one that discards if it has none.
func (l *Loop) Logger() *zap.Logger { return l.logger }

// Group returns the group that the loop belongs to, nil for the loop of a [Manual].
func (l *Loop) Group() *Group { return l.group }

// Offload returns where work that blocks goes.
func (l *Loop) Offload() *Offload { return l.offload }

// InLoop reports whether the running goroutine is the loop's.
func (l *Loop) InLoop() bool { return l.self.Load() == goid.Current() }

// Execute has f called on the loop, after everything that this goroutine has
// brought there before. It returns [ErrLoopClosed], and f is not called, if the
// loop has ended; otherwise f is called.
func (l *Loop) Execute(f func()) error { return l.Submit(funcTask(f)) }

// Submit is Execute for a [Task], which it does not allocate.
func (l *Loop) Submit(t Task) error {
	if !l.tasks.TryPush(t) {
		return ErrLoopClosed
	}
	if l.sleep.Load() == asleep && l.sleep.CompareAndSwap(asleep, awake) {
		l.wake()
	}
	return nil
}

// wake interrupts the poll. The caller has moved l.sleep to awake.
func (l *Loop) wake() {
	err := l.poller.wake()
	l.wakeups.Add(1) // from here on the loop may end, and close the poller
	if err != nil {
		l.bug("loop cannot be woken", err)
	}
}

// bug reports an error that only a bug explains, such as a descriptor that was
// closed by somebody who does not own it. Builds with assertions end the process:
// any other descriptor may be the next.
func (l *Loop) bug(what string, err error) {
	l.logger.Error(what, zap.String("loop", l.name), zap.Error(err))
	if invariant.Enabled {
		stack := debug.Stack()
		go panic(fmt.Sprintf("eventloop: %s: %v\n%s", what, err, stack)) // nobody recovers it there
		select {}
	}
}

// AtTurnEnd has t run once at the end of this turn. If the end of the turn has
// begun, it runs at the end of the next one, and the poll before that does not
// wait.
//
// Loop only.
func (l *Loop) AtTurnEnd(t Task) {
	invariant.OnLoop(l)
	l.turnEnd = append(l.turnEnd, t)
}

// Now returns the time at which this turn began.
//
// Loop only.
func (l *Loop) Now() time.Time { return l.base.Add(time.Duration(l.now)) }

// clock returns the time since base, never 0.
func (l *Loop) clock() int64 {
	if l.manual != nil {
		return l.manual.nanos.Load()
	}
	return int64(time.Since(l.base)) + 1
}

// Allocator returns what a handler on this loop allocates from to use a: for a
// [buffer.Pool] the loop's cache of it, for nil that of [buffer.Default], otherwise
// a itself.
//
// Loop only.
func (l *Loop) Allocator(a buffer.Allocator) buffer.Allocator {
	invariant.OnLoop(l)
	pool, ok := a.(*buffer.Pool)
	if a == nil {
		pool, ok = buffer.Default(), true
	}
	if !ok {
		return a
	}
	for i := range l.caches {
		if l.caches[i].pool == pool {
			return l.caches[i].cache
		}
	}
	c := pool.NewCache()
	c.Bind()
	l.caches = append(l.caches, poolCache{pool, c})
	return c
}

// bind makes the running goroutine the loop's.
func (l *Loop) bind() {
	id := goid.Current()
	enterIdentity(id)
	l.self.Store(id)
	for i := range l.caches {
		l.caches[i].cache.Bind()
	}
}

// unbind undoes bind.
func (l *Loop) unbind() {
	for i := range l.caches {
		l.caches[i].cache.Unbind()
	}
	leaveIdentity(l.self.Swap(0))
}

// run is the loop's goroutine.
func (l *Loop) run() {
	ended := false
	defer func() {
		l.unbind()
		if ended {
			close(l.done)
			return
		}
		// runtime.Goexit cannot be stopped, so the loop moves on to another goroutine.
		l.m.Restarts++
		l.logger.Warn("runtime.Goexit on a loop; it goes on with a new goroutine",
			zap.String("loop", l.name))
		go l.run()
	}()
	debug.SetPanicOnFault(true)
	l.bind()
	l.notifyDepth = 0
	for !l.drive() {
	}
	l.end()
	ended = true
}

// drive runs turns until the loop is to end, and returns true, or until something
// panics. The next call goes on with the rest of the turn.
func (l *Loop) drive() (ended bool) {
	defer func() {
		if ended {
			return
		}
		if v := recover(); v != nil {
			l.panicked("loop", v)
		}
	}()
	for {
		l.turn()
		if l.closing && l.mayEnd() {
			return true
		}
	}
}

// panicked reports a recovered panic. It is called by the deferred function, so
// that the stack still shows where it came from.
func (l *Loop) panicked(where string, v any) {
	l.m.Panics++
	l.logger.Error("panic on a loop", zap.String("loop", l.name), zap.String("in", where),
		zap.Any("panic", v), zap.ByteString("stack", debug.Stack()))
}

// callback calls f, which somebody else must not suffer from.
func (l *Loop) callback(f func(error), err error) {
	if l.manual == nil {
		defer func() {
			if v := recover(); v != nil {
				l.panicked("promise callback", v)
			}
		}()
	}
	f(err)
}

// turn does the rest of the current turn. All progress is recorded before anything
// foreign is called.
func (l *Loop) turn() {
	switch l.stage {
	case stagePoll:
		l.poll()
		l.m.Turns++
		l.stage = stageIO
		fallthrough
	case stageIO:
		l.runReady()
		l.beginTasks()
		l.stage = stageTasks
		fallthrough
	case stageTasks:
		l.runTasks()
		l.timerSeq = l.timers.seq
		l.timerEnd = l.m.TimersFired + timerBudget
		l.stage = stageTimers
		fallthrough
	case stageTimers:
		l.runTimers()
		l.beginTurnEnd()
		l.stage = stageTurnEnd
		fallthrough
	case stageTurnEnd:
		l.runTurnEnd()
		l.stage = stagePoll
	}
}

// poll collects what is ready, and waits if there is nothing else to do.
func (l *Loop) poll() {
	if l.pending() {
		l.collect(0)
	} else if l.collect(0) == 0 && l.manual == nil {
		// Whoever is about to give this loop work may only need the processor for it.
		l.yield(l.clock())
		if !l.pending() && l.collect(0) == 0 {
			l.wait()
		}
	}
	before := l.lastYield
	l.now = l.breathe()
	if l.lastYield != before {
		l.publish()
	}
	if l.ready > 0 {
		l.active = l.now
	}
}

// pending reports whether there is something to do besides I/O.
func (l *Loop) pending() bool {
	if len(l.turnEnd) > 0 || l.batchAt < len(l.batch) || l.tasks.Len() > 0 || l.ending > 0 {
		return true
	}
	at := l.timers.next()
	return at != 0 && at <= l.now
}

// collect polls for up to timeout and returns how much there is.
func (l *Loop) collect(timeout time.Duration) int {
	if l.ready == len(l.outcomes) && l.ready < maxOutcomes {
		l.outcomes = make([]outcome, 2*len(l.outcomes))
	}
	n, err := l.poller.poll(l.outcomes, timeout)
	l.ready, l.readyAt = n, 0
	if err != nil {
		l.pollFailed(err)
	} else {
		l.pollFails = 0
	}
	return n
}

// pollFailed keeps a loop whose poller is broken from spinning: tasks and timers go
// on, slowly.
func (l *Loop) pollFailed(err error) {
	l.ready = 0
	l.pollFails++
	if l.pollFails == 1 {
		l.bug("poll failed", err)
	}
	time.Sleep(10 * time.Millisecond)
}

// wait polls until something happens. A loop that has had nothing to do for a while
// gives back the memory its caches hold, once, and waits on.
func (l *Loop) wait() {
	for {
		from := l.clock()
		timeout := time.Duration(-1)
		if at := l.timers.next(); at != 0 {
			if at <= from {
				return
			}
			timeout = time.Duration(at - from)
		}
		trimming := len(l.caches) > 0 && l.trimmed != l.active
		if trimming {
			left := idleTime - (from - l.active)
			if left <= 0 {
				l.trim()
				continue
			}
			if trimming = timeout < 0 || left < int64(timeout); trimming {
				timeout = time.Duration(left)
			}
		}
		l.m.Blocks++
		l.publish()
		n := 0
		l.sleep.Store(asleep)
		if l.tasks.Len() == 0 {
			n = l.collect(timeout)
		}
		if !l.sleep.CompareAndSwap(asleep, awake) {
			l.wakesOwed++
		}
		l.lastYield = l.clock()
		l.idle += l.lastYield - from
		if n > 0 || l.tasks.Len() > 0 || !trimming {
			return
		}
	}
}

// trim gives back the memory that the caches hold for a next burst.
func (l *Loop) trim() {
	for i := range l.caches {
		l.caches[i].cache.Trim()
	}
	l.trimmed = l.active
}

// breathe yields if it is time to. It is called between calls of the same stage.
func (l *Loop) breathe() (now int64) {
	now = l.clock()
	if now-l.lastYield >= l.quantum && l.manual == nil {
		l.yield(now)
		now = l.lastYield
	}
	return now
}

// yield lets other goroutines run, and takes note how long they did.
func (l *Loop) yield(now int64) {
	runtime.Gosched()
	l.lastYield = l.clock()
	l.quantum = min(max(l.lastYield-now, yieldTime), maxYieldTime)
}

func (l *Loop) runReady() {
	for l.readyAt < l.ready {
		o := l.outcomes[l.readyAt]
		l.readyAt++
		if l.readyAt%clockEvery == 0 {
			l.breathe()
		}
		if o.op != nil {
			o.op.reg.opEnded(o.op)
			continue
		}
		r := l.table.find(o.key)
		if r == nil {
			l.m.StaleEvents++
			continue
		}
		// What was ready when the poll returned may not be wanted any more.
		if ev := o.ev & (r.interest | unmaskable); ev != 0 && r.armed {
			l.m.Events++
			r.h.HandleIO(ev)
		}
	}
}

// beginTasks takes the tasks that are there now: those they make run in the next
// turn.
func (l *Loop) beginTasks() {
	if l.batchAt == len(l.batch) && !l.final {
		l.batch, l.batchAt = l.tasks.PopAll(), 0
	}
	if len(l.batch) > 0 {
		l.active = l.now
	}
	l.taskEnd = min(len(l.batch), l.batchAt+taskBudget)
	l.taskFrom = l.now
}

func (l *Loop) runTasks() {
	for l.batchAt < l.taskEnd {
		t := l.batch[l.batchAt]
		l.batch[l.batchAt] = nil
		l.batchAt++
		l.m.Tasks++
		if l.batchAt%clockEvery == 0 && l.breathe()-l.taskFrom > taskTime {
			l.taskEnd = l.batchAt
		}
		t.Run()
	}
}

func (l *Loop) runTimers() {
	for l.m.TimersFired < l.timerEnd {
		t := l.timers.due(l.now, l.timerSeq)
		if t == nil {
			return
		}
		l.m.TimersFired++
		if l.m.TimersFired%clockEvery == 0 {
			l.breathe()
		}
		t.f()
	}
}

// beginTurnEnd takes what has been asked for until now; what is asked for meanwhile
// waits for the next turn.
func (l *Loop) beginTurnEnd() {
	spare := l.turnEndRun
	if cap(spare) > 4096 && len(l.turnEnd) < cap(spare)/4 {
		spare = nil // the memory of a burst
	}
	l.turnEnd, l.turnEndRun = spare[:0], l.turnEnd
	l.turnEndAt = 0
}

func (l *Loop) runTurnEnd() {
	for l.turnEndAt < len(l.turnEndRun) {
		t := l.turnEndRun[l.turnEndAt]
		l.turnEndRun[l.turnEndAt] = nil
		l.turnEndAt++
		l.turnEnds++
		t.Run()
	}
}

// closeAll is the task that closes the handles of a loop which is to end.
type closeAll struct {
	l    *Loop
	regs []*Registration
	at   int
}

func (c *closeAll) Run() {
	l := c.l
	if !l.closing {
		l.closing = true
		for i := range l.table.slots {
			if r := l.table.slots[i].r; r != nil {
				c.regs = append(c.regs, r)
			}
		}
	}
	defer func() {
		if c.at < len(c.regs) { // a handle has panicked
			_ = l.Submit(c)
		}
	}()
	for c.at < len(c.regs) {
		r := c.regs[c.at]
		c.at++
		if r.closing {
			continue
		}
		func() {
			defer r.Close(nil)
			r.h.CloseIO()
		}()
	}
}

// endLoop is the task that ends a loop after its closeAll.
type endLoop struct{ l *Loop }

func (e endLoop) Run() { e.l.ending = 1 }

// mayEnd moves an ending loop on. It is called after each turn from closeAll on and
// returns true when nothing is left to do.
func (l *Loop) mayEnd() bool {
	quiet := l.table.n == 0 && l.ops == 0
	if quiet && l.closed != nil {
		close(l.closed)
		l.closed = nil
	}
	if l.ending == 0 || !quiet {
		return false
	}
	l.ending++
	if l.final {
		return l.batchAt == len(l.batch) && (len(l.turnEnd) == 0 || l.ending > 2*endTurns)
	}
	if l.batchAt == len(l.batch) && (l.tasks.Len() == 0 && len(l.turnEnd) == 0 || l.ending > endTurns) {
		l.batch, l.batchAt = l.tasks.Close(), 0
		l.final = true
	}
	return false
}

// end frees what the loop holds. Nothing is posted to it any more.
func (l *Loop) end() {
	for l.wakeups.Load() != l.wakesOwed {
		runtime.Gosched() // somebody has yet to write to the poller's descriptor
	}
	l.timers.clear()
	for i := range l.caches {
		l.caches[i].cache.Close()
	}
	l.caches = nil
	if err := l.poller.close(); err != nil {
		l.bug("poller cannot be closed", err)
	}
	l.publish()
}
