package eventloop

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
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
// order in which they were submitted. A panic in one is logged and harms nobody
// else; runtime.Goexit ends that function only.
//
// Concurrency: all methods are safe from any goroutine and none but Close waits.
type Offload struct {
	workers int
	limit   int
	logger  *zap.Logger
	manual  *Manual // runs the functions in its turns, instead of workers
	work    func()  // the method value, made once

	mu      sync.Mutex
	pool    *ants.Pool // made when first used: it has goroutines of its own
	waiting []Task     // waiting[:head] are taken
	head    int
	active  int // workers
	closed  bool
	idle    chan struct{} // closed when closed and no worker is left
}

// workerIdle is how long a worker waits for work before its goroutine ends.
const workerIdle = 10 * time.Second

// NewOffload returns an Offload. Every [Group] has one already.
func NewOffload(cfg OffloadConfig) (*Offload, error) {
	if cfg.Workers < 0 || cfg.Waiting < 0 {
		return nil, fmt.Errorf("eventloop: negative Workers (%d) or Waiting (%d)", cfg.Workers, cfg.Waiting)
	}
	o := &Offload{workers: cfg.Workers, limit: cfg.Waiting, logger: cfg.Logger, idle: make(chan struct{})}
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
func (o *Offload) Submit(f func()) error { return o.submit(funcTask(f), true) }

// submit is Submit for a task; bounded says whether the limit counts.
func (o *Offload) submit(t Task, bounded bool) error {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return ErrOffloadClosed
	}
	start := o.manual == nil && o.active < o.workers
	if bounded && !start && len(o.waiting)-o.head >= o.limit {
		o.mu.Unlock()
		return ErrOffloadFull
	}
	o.waiting = append(o.waiting, t)
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
		o.call(t)
	}
}

// take returns the task that has waited longest. If there is none it takes note
// that the worker ends, and returns nil.
func (o *Offload) take() Task {
	o.mu.Lock()
	defer o.mu.Unlock()
	if t := o.pop(); t != nil {
		return t
	}
	o.active--
	if o.closed && o.active == 0 {
		close(o.idle)
	}
	return nil
}

// pop removes the first waiting task; nil if there is none. o.mu is held.
func (o *Offload) pop() Task {
	if o.head == len(o.waiting) {
		return nil
	}
	t := o.waiting[o.head]
	o.waiting[o.head] = nil
	o.head++
	switch {
	case o.head == len(o.waiting):
		if cap(o.waiting) > 1024 {
			o.waiting = nil
		}
		o.waiting, o.head = o.waiting[:0], 0
	case o.head >= 1024 && o.head >= len(o.waiting)/2:
		n := copy(o.waiting, o.waiting[o.head:])
		clear(o.waiting[n:])
		o.waiting, o.head = o.waiting[:n], 0
	}
	return t
}

// call runs one task.
func (o *Offload) call(t Task) {
	defer func() {
		if v := recover(); v != nil {
			o.logger.Error("panic in an offloaded function",
				zap.Any("panic", v), zap.ByteString("stack", debug.Stack()))
		}
	}()
	t.Run()
}

// Close refuses new functions, waits until those it has taken have ended, and ends
// the workers. On the goroutine of a loop or of an offloaded function it refuses
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
