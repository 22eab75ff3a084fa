package eventloop

import (
	"fmt"
	"reflect"
	"runtime"
	"time"
)

// Counters counts system calls by kind, and bytes by the path that they took. A handle
// adds what it does to the counters of its loop, which are plain numbers of the loop.
type Counters struct {
	Reads      uint64 // read, recvmmsg and splice from sockets that brought bytes or the end
	EmptyReads uint64 // those that found nothing
	Writes     uint64 // write and splice to sockets
	Writevs    uint64 // writev and sendmmsg
	Sendfiles  uint64
	Accepts    uint64
	EpollCtls  uint64
	EpollWaits uint64

	// Bytes. Those that were sent are the sum of BytesWritten, BytesSendfile and
	// BytesSpliced.
	BytesRead     uint64 // from sockets into buffers
	BytesWritten  uint64 // from buffers to sockets
	BytesCopied   uint64 // from buffer to buffer, so that short messages leave together
	BytesMapped   uint64 // of BytesWritten, from the pages of mapped files
	BytesZeroCopy uint64 // of BytesWritten, without being copied into the kernel
	BytesSendfile uint64 // from files to sockets
	BytesSpliced  uint64 // from sockets to sockets, through pipes
	BytesTeed     uint64 // from pipe to pipe, for mirrors
	BytesFiled    uint64 // from sockets to files, through pipes
	BytesStored   uint64 // from buffers to files
}

// Metrics is what a loop has done since it was started, and what it has to do.
type Metrics struct {
	Turns       uint64        // rounds of I/O, tasks, timers and turn end
	Blocks      uint64        // polls that waited for something to do
	Busy        time.Duration // time spent otherwise than waiting, which spinning is too
	Wakeups     uint64        // times another goroutine interrupted a wait
	Tasks       uint64        // tasks run
	Events      uint64        // readiness delivered to handles
	StaleEvents uint64        // readiness of registrations that were gone
	TimersFired uint64
	TurnEnds    uint64 // tasks of [Loop.AtTurnEnd] run
	Panics      uint64 // contained by the loop
	Restarts    uint64 // after runtime.Goexit
	Held        uint64 // calls that held the loop for [GroupConfig.Watchdog] or longer; 0 without a watchdog

	// LongestCall is the longest time that the loop spent in one call, as a clock on
	// the wall sees it. Short calls are timed up to 16 together, so that a long one
	// among them makes it a little too long; LongestCallWhat says so, and otherwise
	// what was called.
	LongestCall     time.Duration
	LongestCallWhat string

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
// is exact; a loop at work publishes its numbers between two turns, at most every
// 200 microseconds.
func (l *Loop) Metrics() Metrics {
	if l.InLoop() {
		l.publish(l.clock())
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
func (l *Loop) publish(now int64) {
	l.publishedAt = now
	l.pace.setProcs(runtime.GOMAXPROCS(0))
	l.m.TasksWaiting = len(l.batch) - l.batchAt
	l.m.Registrations = l.table.n
	l.m.Ops = l.ops
	l.m.Busy = time.Duration(now - l.idle)
	l.mu.Lock()
	l.published = l.m
	l.mu.Unlock()
}

// longest takes note of n calls that took longer together than any before, and of a
// single one that explains what several together left open.
func (l *Loop) longest(took, n int64) {
	m := &l.m
	if 2*took < int64(m.LongestCall) {
		return
	}
	m.LongestCall, l.longestExact = time.Duration(took), n == 1
	m.LongestCallWhat = l.latestCalls(n)
}

// latestCalls describes the latest n calls of the loop.
func (l *Loop) latestCalls(n int64) string {
	what := l.latestCall()
	if n > 1 {
		return fmt.Sprintf("one of %d calls, the last of them %s", n, what)
	}
	return what
}

// latestCall describes the latest call of the loop, in this turn or in the one that
// has just ended.
func (l *Loop) latestCall() string {
	switch s := l.stage; {
	case (s == stagePoll || s >= stageTurnEnd) && l.turnEndAt > 0:
		return describeTask(stageTurnEnd, l.turnEndRun[l.turnEndAt-1])
	case (s == stagePoll || s >= stageTimers) && l.m.TimersFired > l.timerFrom && l.fired != nil:
		return describeTimer(l.fired)
	case (s == stagePoll || s >= stageTasks) && l.batchAt > l.batchFrom:
		return describeTask(stageTasks, l.batch[l.batchAt-1])
	case l.readyAt > l.readyFrom && l.readyAt <= len(l.outcomes):
		o := l.outcomes[l.readyAt-1]
		if o.op != nil {
			return "the end of an Op"
		}
		if r := l.table.find(o.key); r != nil {
			return describeHandle(r)
		}
		return "I/O of a registration that is closed now"
	}
	return "unknown"
}

// The describe functions run on any goroutine: they look at nothing but types.

func describeHandle(r *Registration) string { return fmt.Sprintf("I/O of %T", r.h) }

func describeTask(s stage, t Task) string {
	where := "task"
	if s == stageTurnEnd {
		where = "turn end"
	}
	if f, ok := t.(funcTask); ok {
		return where + " " + funcName(f)
	}
	return fmt.Sprintf("%s %T", where, t)
}

func describeTimer(t *Timer) string {
	if t.repeats {
		return "repeating timer"
	}
	return "timer " + funcName(t.f)
}

// funcName returns the name by which the runtime knows f.
func funcName(f func()) string {
	if fn := runtime.FuncForPC(reflect.ValueOf(f).Pointer()); fn != nil {
		return fn.Name()
	}
	return "func"
}
