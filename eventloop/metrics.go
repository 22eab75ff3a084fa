package eventloop

import "time"

// Counters counts system calls by kind. A handle adds what it calls to the counters
// of its loop, which are plain numbers of the loop.
type Counters struct {
	Reads      uint64 // read and readv that brought bytes or the end
	EmptyReads uint64 // read and readv that found nothing
	Writes     uint64
	Writevs    uint64
	Sendfiles  uint64
	Accepts    uint64
	EpollCtls  uint64
	EpollWaits uint64
}

// Metrics is what a loop has done since it was started, and what it has to do.
type Metrics struct {
	Turns       uint64        // rounds of I/O, tasks, timers and turn end
	Blocks      uint64        // polls that waited for something to do
	Busy        time.Duration // time spent otherwise than waiting
	Wakeups     uint64        // times another goroutine interrupted a wait
	Tasks       uint64        // tasks run
	Events      uint64        // readiness delivered to handles
	StaleEvents uint64        // readiness of registrations that were gone
	TimersFired uint64
	Panics      uint64 // contained by the loop
	Restarts    uint64 // after runtime.Goexit

	TasksWaiting  int
	TimersArmed   int
	Registrations int
	Ops           int // under way

	Counters
}

// Counters returns the counters of the loop, for a handle to add to.
//
// Loop only.
func (l *Loop) Counters() *Counters { return &l.m.Counters }

// Metrics returns what the loop has counted. On the loop, and while it waits, that
// is exact; a loop at work publishes its numbers when it yields, nearly always every
// 200 microseconds.
func (l *Loop) Metrics() Metrics {
	if l.InLoop() {
		l.publish()
	}
	l.mu.Lock()
	m := l.published
	l.mu.Unlock()
	m.Wakeups = l.wakeups.Load()
	m.TasksWaiting += l.tasks.Len()
	m.TimersArmed = int(l.timers.armed.Load())
	return m
}

// publish makes the loop's numbers known to other goroutines.
func (l *Loop) publish() {
	l.m.TasksWaiting = len(l.batch) - l.batchAt
	l.m.Registrations = l.table.n
	l.m.Ops = l.ops
	l.m.Busy = time.Duration(l.clock() - l.idle)
	l.mu.Lock()
	l.published = l.m
	l.mu.Unlock()
}
