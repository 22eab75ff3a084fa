package eventloop

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/panjf2000/ants/v2"
	"go.uber.org/zap"

	"github.com/runnel-io/runnel/internal/goid"
)

// OffloadConfig configures an [Offload]. The zero value is ready to use.
type OffloadConfig struct {
	Workers int         // functions that may run at once; 0 means 64 or eight per processor, whichever is more; less is an error
	Waiting int         // functions that may wait for a worker; 0 means 65536; less is an error
	Logger  *zap.Logger // for panics; nil discards
}

// Offload runs functions that block, each on a worker goroutine. They start in the
// order in which they were submitted, and run at the same time; a [Strand] runs its
// own one after the other. A panic in one is logged and harms nobody else;
// runtime.Goexit ends that function only.
//
// Concurrency: all methods are safe from any goroutine and none but Close waits.
type Offload struct {
	workers int
	limit   int
	logger  *zap.Logger
	manual  *Manual // runs the functions in its turns, instead of workers
	work    func()  // the method value, made once
	base    time.Time

	mu      sync.Mutex
	pool    *ants.Pool // made when first used: it has goroutines of its own
	waiting taskQueue
	active  int // workers
	closed  bool
	idle    chan struct{} // closed when closed and no worker is left

	// Any goroutine.
	submitted, refused, ended, panics atomic.Uint64
	longest                           atomic.Int64
}

// OffloadMetrics is what an [Offload] has done since it was made, and what it has to
// do. The tasks of a [Strand] count like functions.
type OffloadMetrics struct {
	Submitted uint64        // functions taken
	Refused   uint64        // functions refused with ErrOffloadFull
	Ended     uint64        // functions that were called and have ended, in whatever way
	Panics    uint64        // contained by a worker
	Longest   time.Duration // of all calls that have ended
	Workers   int           // at work now
	Waiting   int           // for a worker: functions, and strands that have something to run
}

// Metrics returns what has been counted. What happens meanwhile may be in one figure
// and not in another.
func (o *Offload) Metrics() OffloadMetrics {
	o.mu.Lock()
	workers, waiting := o.active, o.waiting.len()
	o.mu.Unlock()
	return OffloadMetrics{
		Submitted: o.submitted.Load(),
		Refused:   o.refused.Load(),
		Ended:     o.ended.Load(),
		Panics:    o.panics.Load(),
		Longest:   time.Duration(o.longest.Load()),
		Workers:   workers,
		Waiting:   waiting,
	}
}

// workerIdle is how long a worker waits for work before its goroutine ends.
const workerIdle = 10 * time.Second

// NewOffload returns an Offload. Every [Group] has one already.
func NewOffload(cfg OffloadConfig) (*Offload, error) {
	if cfg.Workers < 0 || cfg.Waiting < 0 {
		return nil, fmt.Errorf("eventloop: negative Workers (%d) or Waiting (%d)", cfg.Workers, cfg.Waiting)
	}
	o := &Offload{workers: cfg.Workers, limit: cfg.Waiting, logger: cfg.Logger, idle: make(chan struct{}), base: time.Now()}
	if o.workers == 0 {
		o.workers = max(64, 8*runtime.GOMAXPROCS(0))
	}
	if o.limit == 0 {
		o.limit = 1 << 16
	}
	if o.logger == nil {
		o.logger = zap.NewNop()
	}
	o.work = o.runWaiting
	return o, nil
}

// Submit has f called on a worker, as soon as one is free. It fails with
// [ErrOffloadFull] when too many wait already and with [ErrOffloadClosed] after
// Close; otherwise f is called.
func (o *Offload) Submit(f func()) error { return o.submitCounted(funcTask(f), true) }

// submitCounted is Submit for a task; bounded says whether the limit counts.
func (o *Offload) submitCounted(t Task, bounded bool) error {
	err := o.submit(t, bounded)
	switch err {
	case nil:
		o.submitted.Add(1)
	case ErrOffloadFull:
		o.refused.Add(1)
	}
	return err
}

// submit has t run on a worker. What is not bounded, an Op or a strand with however
// many tasks, is refused only after Close.
func (o *Offload) submit(t Task, bounded bool) error {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return ErrOffloadClosed
	}
	start := o.manual == nil && o.active < o.workers
	if bounded && !start && o.waiting.len() >= o.limit {
		o.mu.Unlock()
		return ErrOffloadFull
	}
	o.waiting.push(t)
	if start {
		o.active++
		if o.pool == nil {
			o.pool = o.newPool()
		}
	}
	pool := o.pool
	o.mu.Unlock()
	if start {
		o.start(pool)
	}
	return nil
}

// newPool makes the pool of the workers' goroutines. How many there may be is ours
// to count: ants frees the place of one only some time after its function has
// returned, and a function that was refused in between would have nobody left to
// start it.
func (o *Offload) newPool() *ants.Pool {
	pool, err := ants.NewPool(-1, ants.WithNonblocking(true), ants.WithExpiryDuration(workerIdle))
	if err != nil {
		return nil // cannot be: the options are good; start does without
	}
	return pool
}

// start starts a worker, which is counted as active already.
func (o *Offload) start(pool *ants.Pool) {
	if pool == nil || pool.Submit(o.work) != nil {
		go o.work()
	}
}

// runWaiting is a worker: it runs what waits until nothing does.
func (o *Offload) runWaiting() {
	id := goid.Current()
	enterIdentity(id)
	debug.SetPanicOnFault(true)
	done := false
	defer func() {
		leaveIdentity(id)
		if !done { // runtime.Goexit: somebody has to go on
			o.mu.Lock()
			pool := o.pool
			o.mu.Unlock()
			o.start(pool)
			return
		}
	}()
	for {
		t := o.take()
		if t == nil {
			done = true
			return
		}
		o.run(t)
	}
}

// take returns the task that has waited longest. If there is none it takes note
// that the worker ends, and returns nil.
func (o *Offload) take() Task {
	o.mu.Lock()
	defer o.mu.Unlock()
	if t := o.waiting.pop(); t != nil {
		return t
	}
	o.active--
	if o.closed && o.active == 0 {
		close(o.idle)
	}
	return nil
}

// again puts a task that a worker is running behind those that wait. It is not
// refused: the worker is there to take it.
func (o *Offload) again(t Task) {
	o.mu.Lock()
	o.waiting.push(t)
	o.mu.Unlock()
}

// isClosed reports whether Close has been called.
func (o *Offload) isClosed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.closed
}

// run runs what has waited for a worker.
func (o *Offload) run(t Task) {
	if s, ok := t.(*Strand); ok {
		s.Run() // calls its tasks
		return
	}
	o.call(t, o.clock())
}

// clock returns the time since the Offload was made, for less than time.Now takes.
func (o *Offload) clock() time.Duration { return time.Since(o.base) }

// call runs a function or a strand's task, which begins at from. It contains its panic,
// counts it, and returns when it has ended.
func (o *Offload) call(t Task, from time.Duration) (to time.Duration) {
	defer func() {
		if o.manual == nil { // whose caller wants to see it
			if v := recover(); v != nil {
				o.panics.Add(1)
				o.logger.Error("panic in an offloaded function",
					zap.Any("panic", v), zap.ByteString("stack", debug.Stack()))
			}
		}
		to = o.clock()
		o.ended.Add(1)
		d := int64(to - from)
		for longest := o.longest.Load(); d > longest; longest = o.longest.Load() {
			if o.longest.CompareAndSwap(longest, d) {
				return
			}
		}
	}()
	t.Run()
	return to
}

// Close refuses new functions, waits until those it has taken have ended, those of
// its strands too, and ends the workers. On the goroutine of a loop or of an offloaded function it refuses
// with [ErrWouldDeadlock] and does nothing. A second Close waits too.
func (o *Offload) Close() error {
	if WouldDeadlock() {
		return ErrWouldDeadlock
	}
	o.mu.Lock()
	if !o.closed {
		o.closed = true
		if o.active == 0 {
			close(o.idle)
		}
	}
	o.mu.Unlock()
	<-o.idle
	o.mu.Lock()
	pool := o.pool
	o.pool = nil
	o.mu.Unlock()
	if pool != nil {
		return pool.ReleaseContext(context.Background())
	}
	return nil
}
