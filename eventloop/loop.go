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
// turn it delivers I/O, runs tasks and then timers, each up to a budget, and at the
// end what was asked for by AtTurnEnd; then it polls, and waits if there is nothing
// to do.
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
	locked  bool          // to its thread
	spin    int64         // how long to poll before waiting
	sight   *sight        // what the watchdog sees; nil without one
	closed  chan struct{} // closed when no registration and no Op is left, after closeAll
	done    chan struct{} // closed when the loop has ended

	// Any goroutine.
	self    atomic.Uintptr // identity of the goroutine that runs the loop, else 0
	tasks   queue.MPSC[Task]
	sleep   atomic.Uint32
	wakeups atomic.Uint64 // wakes of the poller that are over
	timers  timers        // all but timers.armed is loop-only
	load    load

	lateTasks lateTasks

	describe atomic.Pointer[func() string] // given to Describe

	mu        sync.Mutex
	published Metrics // guarded by mu

	_ [64]byte // keeps what follows off the cache lines above

	// Loop only.
	now         int64 // clock of this turn
	pace        pace
	idle        int64  // time spent waiting
	publishedAt int64  // clock
	wakesOwed   uint64 // wakeups, once nobody is in the middle of one

	// What a turn has got to; a turn that a panic interrupts goes on from here.
	stage     stage
	stageFrom int64 // clock when it began, and what other goroutines have taken since
	outcomes  []outcome
	ready     int // outcomes of the latest poll
	readyAt   int // next one
	readyFrom int // readyAt when the I/O of this turn began
	batch     []Task
	batchAt   int
	batchFrom int    // batchAt when the tasks of this turn began
	taskEnd   int    // batchAt at which their budget is used up
	timerSeq  uint64 // timers placed later wait for the next turn
	timerFrom uint64 // TimersFired when the timers of this turn began
	fired     *Timer // latest
	turnEnd   []Task // for the end of this turn

	turnEndRun  []Task // being run
	turnEndAt   int
	notifyDepth int // callbacks of promises on the stack

	longestExact bool // the longest call was timed by itself

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
		pace:     newPace(),

		longestExact: true,
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
	if l.sight != nil {
		l.sight.goroutine.Store(goid.Number())
	}
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
		if l.locked {
			runtime.UnlockOSThread() // or the thread would end with the goroutine
		}
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
	if l.locked {
		runtime.LockOSThread()
	}
	l.bind()
	l.notifyDepth = 0
	l.resumed(l.clock())
	l.pace.left = l.pace.window
	if l.sight != nil {
		l.sight.dog.wake()
	}
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
	l.closeBroken()
	for {
		l.turn()
		if l.closing && l.mayEnd() {
			return true
		}
	}
}

// closeBroken closes the registration whose HandleIO has been interrupted, if that is why
// the turn has to be gone on with.
func (l *Loop) closeBroken() {
	if l.stage != stageIO || l.readyAt == l.readyFrom {
		return
	}
	o := l.outcomes[l.readyAt-1]
	if o.op != nil {
		return // it has ended all the same
	}
	if r := l.table.find(o.key); r != nil {
		r.tellClose()
	}
}

// panicked reports a recovered panic. It is called by the deferred function, so
// that the stack still shows where it came from.
func (l *Loop) panicked(where string, v any) {
	if l.InLoop() {
		l.m.Panics++ // after the end the numbers stand
	}
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
