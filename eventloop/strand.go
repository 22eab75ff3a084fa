package eventloop

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/runnel-io/runnel/internal/goid"
)

const (
	// strandBatch and strandTime bound what a strand runs before the next function or
	// strand gets its worker.
	strandBatch = 64
	strandTime  = time.Millisecond

	defaultStrandMark = 256
	defaultStrandMax  = 1 << 16
)

// StrandConfig configures a [Strand]. The zero value is ready to use.
type StrandConfig struct {
	// Mark is the number of waiting tasks from which on Full is true, until half of
	// them are left. 0 means 256; less, or more than Max, is an error.
	Mark int
	// Max is the number of waiting tasks with which Submit refuses one more. 0 means
	// 65536, or Mark if that is more; less is an error.
	Max int
	// Changed is called when Full has changed, on the goroutine that has submitted the
	// task, or on a worker. Full may have changed again. nil means that nobody is told.
	Changed func()
	// Loop is where what was given to Post runs once the Offload is closed; nil for
	// none.
	Loop *Loop
}

// Strand runs tasks that block one at a time, in the order in which they were
// submitted, on whatever worker of its [Offload] is free: state that is used only by
// the tasks of one strand needs no lock, and however many strands there are, they share
// the workers. A strand holds a worker for 64 tasks or a millisecond, if one task does
// not take longer, and then lets the others go first.
//
// A strand with nothing to do costs its memory and nothing else. It has no end; the
// Offload's Close waits for what was submitted.
//
// A panic in one task is logged and harms no other one, and neither does
// runtime.Goexit. On a [Manual] the tasks run inside turns, like all offloaded
// functions.
//
// Concurrency: all methods are safe from any goroutine, and none waits.
type Strand struct {
	offload *Offload
	loop    *Loop
	mark    int
	max     int
	changed func()

	self atomic.Uintptr // identity of the goroutine that runs a task, else 0

	mu      sync.Mutex
	tasks   taskQueue
	full    bool
	running bool // somebody runs the tasks, or has been asked to
	where   strandPlace
	closed  bool // found the Offload closed
}

// strandPlace is who runs the tasks of a strand.
type strandPlace uint8

const (
	byWorker strandPlace = iota
	byLoop               // the Offload is closed
	byCaller             // the loop has ended, too: the goroutine that has found it so
)

// NewStrand returns a strand of o.
func (o *Offload) NewStrand(cfg StrandConfig) (*Strand, error) {
	s := &Strand{offload: o, loop: cfg.Loop, mark: cfg.Mark, max: cfg.Max, changed: cfg.Changed}
	if s.mark == 0 {
		s.mark = defaultStrandMark
		if s.max > 0 {
			s.mark = min(s.mark, s.max)
		}
	}
	if s.max == 0 {
		s.max = max(defaultStrandMax, s.mark)
	}
	if s.mark < 0 || s.max < s.mark {
		return nil, fmt.Errorf("eventloop: strand with Mark %d and Max %d; want 0 < Mark <= Max", cfg.Mark, cfg.Max)
	}
	return s, nil
}

// Offload returns what the strand runs on.
func (s *Strand) Offload() *Offload { return s.offload }

// Max returns the number of waiting tasks with which Submit refuses one more.
func (s *Strand) Max() int { return s.max }

// Execute has f called after everything that this goroutine has submitted before. It
// fails as Submit does, and f is not called then; otherwise f is called.
func (s *Strand) Execute(f func()) error { return s.Submit(funcTask(f)) }

// Submit is Execute for a [Task], which it does not allocate. It fails with
// [ErrOffloadFull] when Max tasks wait already, and with [ErrOffloadClosed] when the
// Offload is closed.
func (s *Strand) Submit(t Task) error {
	s.mu.Lock()
	err := s.admit()
	told := false
	if err == nil {
		told = s.push(t)
	}
	s.mu.Unlock()
	switch {
	case err == nil:
		s.offload.submitted.Add(1)
	case err == ErrOffloadFull:
		s.offload.refused.Add(1)
	}
	if told {
		s.changed()
	}
	return err
}

// admit returns why no task is taken any more, or sees to it that the next one is
// run. s.mu is held.
func (s *Strand) admit() error {
	switch {
	case s.closed:
		return ErrOffloadClosed
	case s.tasks.len() >= s.max:
		return ErrOffloadFull
	case !s.running:
		s.where = byWorker
		if err := s.offload.submit(s, false); err != nil {
			return err
		}
		s.running = true
	}
	return nil
}

// Post is Submit for what must not be lost: it takes the task also if more wait than
// Max, and when the Offload is closed. Then the strand runs on its Loop, and when that
// has ended too, on the goroutine that finds it so, perhaps inside this call: still one
// task at a time and in order.
func (s *Strand) Post(t Task) {
	s.mu.Lock()
	told := s.push(t)
	here := false
	if !s.running {
		s.running = true
		here = !s.place()
	}
	s.mu.Unlock()
	s.offload.submitted.Add(1)
	if told {
		s.changed()
	}
	if here {
		s.runHere()
	}
}

// push appends t and reports whether somebody is to be told that Full is true now.
// s.mu is held.
func (s *Strand) push(t Task) (told bool) {
	s.tasks.push(t)
	if s.full || s.tasks.len() < s.mark {
		return false
	}
	s.full = true
	return s.changed != nil
}

// place finds somebody to run the tasks, and reports false if there is nobody left but
// the caller. s.mu is held.
func (s *Strand) place() bool {
	s.where = byWorker
	if !s.closed && s.offload.submit(s, false) == nil {
		return true
	}
	s.closed = true
	s.where = byLoop
	if s.loop != nil && s.loop.take(s) {
		return true
	}
	s.where = byCaller
	return false
}

// InStrand reports whether the running goroutine runs a task of the strand.
func (s *Strand) InStrand() bool { return s.self.Load() == goid.Current() }

// Full reports whether Mark tasks have come to wait, and not half of them have begun
// since.
func (s *Strand) Full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full
}

// Waiting returns the number of tasks that have not begun.
func (s *Strand) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tasks.len()
}

// Run is for the Offload and the loop: a strand is a [Task] that runs a batch of its
// own.
func (s *Strand) Run() {
	s.self.Store(goid.Current())
	empty := false
	defer func() {
		if !empty { // the batch is over, or a task has ended it by Goexit
			s.again()
		}
	}()
	// Time would make a Manual's turns differ, and there is nobody else to go on.
	timed := s.where != byCaller && s.offload.manual == nil
	from := s.offload.clock()
	now := from
	for n := 0; n < strandBatch || s.where == byCaller; n++ {
		t := s.next()
		if t == nil {
			empty = true
			return
		}
		if now = s.offload.call(t, now); timed && now-from >= strandTime {
			return
		}
	}
}

// next takes the first task. If there is none the strand runs no more.
func (s *Strand) next() Task {
	s.mu.Lock()
	t := s.tasks.pop()
	if t == nil {
		s.self.Store(0)
		s.running = false
	}
	told := s.full && s.tasks.len() <= s.mark/2
	if told {
		s.full = false
	}
	s.mu.Unlock()
	if told && s.changed != nil {
		s.changed()
	}
	return t
}

// again has the tasks run that are left after a batch.
func (s *Strand) again() {
	s.mu.Lock()
	s.self.Store(0)
	here := false
	switch {
	case s.tasks.len() == 0:
		s.running = false
	case s.where == byWorker:
		s.closed = s.offload.isClosed()
		s.offload.again(s)
	default:
		here = !s.place()
	}
	s.mu.Unlock()
	if here {
		s.runHere()
	}
}

// runHere runs the tasks on this goroutine.
func (s *Strand) runHere() {
	id := goid.Current()
	enterIdentity(id)
	defer leaveIdentity(id)
	s.Run()
}
