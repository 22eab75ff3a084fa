package eventloop

import "time"

const (
	// taskBudget and timerBudget bound what a turn runs before it looks at I/O again,
	// stageTime does so for the I/O, the tasks or the timers of a turn that take long.
	taskBudget  = 1024
	timerBudget = 1024
	stageTime   = int64(time.Millisecond)
)

// stage is the part of a turn that comes next.
type stage uint8

const (
	stagePoll stage = iota
	stageIO
	stageTasks
	stageTimers
	stageTurnEnd
)

// turn does the rest of the current turn. All progress is recorded before anything
// foreign is called.
func (l *Loop) turn() {
	switch l.stage {
	case stagePoll:
		l.poll()
		l.m.Turns++
		if l.sight != nil {
			l.sight.turn.Store(l.now)
		}
		l.readyFrom = l.readyAt
		l.begin(stageIO, l.ready-l.readyAt)
		fallthrough
	case stageIO:
		l.runReady()
		l.beginTasks()
		l.begin(stageTasks, l.taskEnd-l.batchAt)
		fallthrough
	case stageTasks:
		l.runTasks()
		l.timerSeq = l.timers.seq
		l.timerFrom = l.m.TimersFired
		l.begin(stageTimers, 0)
		fallthrough
	case stageTimers:
		l.runTimers()
		l.beginTurnEnd()
		l.begin(stageTurnEnd, len(l.turnEndRun))
		fallthrough
	case stageTurnEnd:
		l.runTurnEnd()
		l.stage = stagePoll
	}
}

// begin moves the turn on to s, in which there are calls to make.
func (l *Loop) begin(s stage, calls int) {
	l.stage = s
	if calls > 4 && l.pace.quantum < yieldTime {
		l.pickUp()
	}
	l.stageFrom = l.pace.looked
}

// pickUp begins a stage of many calls with a look at the clock, for there is company
// and they may take longer than those before.
func (l *Loop) pickUp() {
	l.look()
	l.pace.window = min(l.pace.window, 2)
	l.pace.left = l.pace.window
}

// late looks at the clock and reports whether the stage has had its time. A stage
// that is late makes one more call, so that it gets on in every turn.
func (l *Loop) late() bool { return l.look()-l.stageFrom > stageTime }

// runReady delivers what the latest poll has found. What this turn has no time for
// comes in the next one, which then does not poll.
func (l *Loop) runReady() {
	if l.readyAt < l.ready {
		l.sight.enter(stageIO)
	}
	for last := false; l.readyAt < l.ready && !last; {
		if l.pace.left == 0 {
			last = l.late()
		}
		l.pace.left--
		o := l.outcomes[l.readyAt]
		l.readyAt++
		if o.op != nil {
			if l.sight != nil {
				l.sight.reg.Store(o.op.reg)
			}
			o.op.reg.opEnded(o.op)
			continue
		}
		r := l.table.find(o.key)
		if r == nil {
			l.m.StaleEvents++
			continue
		}
		// What was ready when the poll returned may not be wanted any more.
		if ev := o.ev & (Event(r.interest) | unmaskable); ev != 0 && r.armed {
			l.m.Events++
			if l.sight != nil {
				l.sight.reg.Store(r)
			}
			r.h.HandleIO(ev)
		}
	}
}

// beginTasks takes the tasks that are there now: those they make run in the next
// turn.
func (l *Loop) beginTasks() {
	if l.batchAt == len(l.batch) && !l.final {
		l.load.expect()
		l.nextBatch(false)
	}
	if len(l.batch) > 0 {
		l.active = l.now
	}
	l.batchFrom = l.batchAt
	l.taskEnd = min(len(l.batch), l.batchAt+taskBudget)
}

// nextBatch replaces the batch, which has been run, by what waits in the queue. The
// queue clears the old one. After the last batch it takes no more.
func (l *Loop) nextBatch(last bool) {
	seen := l.sight != nil && len(l.batch) > 0
	if seen {
		l.sight.hideTasks()
	}
	l.batchAt = 0
	if last {
		l.batch = l.tasks.Close()
	} else {
		l.batch = l.tasks.PopAll()
	}
	if seen {
		l.sight.mu.Unlock()
	}
}

func (l *Loop) runTasks() {
	if l.batchAt < l.taskEnd {
		l.sight.enter(stageTasks)
	}
	for l.batchAt < l.taskEnd {
		if l.pace.left == 0 && l.late() {
			l.taskEnd = l.batchAt + 1
		}
		l.pace.left--
		t := &l.batch[l.batchAt]
		l.batchAt++
		l.m.Tasks++
		if l.sight != nil {
			l.sight.task.Store(t)
		}
		(*t).Run()
	}
	if l.batchAt == len(l.batch) {
		l.load.settle()
	}
}

func (l *Loop) runTimers() {
	for last := false; l.m.TimersFired < l.timerFrom+timerBudget && !last; {
		t := l.timers.due(l.now, l.timerSeq)
		if t == nil {
			return
		}
		if l.pace.left == 0 {
			last = l.late()
		}
		l.pace.left--
		l.m.TimersFired++
		l.fired = t
		if l.sight != nil {
			l.sight.timer.Store(t)
			l.sight.enter(stageTimers)
		}
		t.f()
	}
}

// beginTurnEnd takes what has been asked for until now; what is asked for meanwhile
// waits for the next turn.
func (l *Loop) beginTurnEnd() {
	spare := l.turnEndRun
	if len(spare) > 0 {
		l.clear(spare)
	}
	if cap(spare) > 4096 && len(l.turnEnd) < cap(spare)/4 {
		spare = nil // the memory of a burst
	}
	l.turnEnd, l.turnEndRun = spare[:0], l.turnEnd
	l.turnEndAt = 0
}

// clear clears a list of tasks that have been run.
func (l *Loop) clear(tasks []Task) {
	if l.sight != nil {
		l.sight.hideTasks()
		defer l.sight.mu.Unlock()
	}
	clear(tasks)
}

// runTurnEnd has no budget: what was written in this turn leaves in this turn.
func (l *Loop) runTurnEnd() {
	if l.turnEndAt < len(l.turnEndRun) {
		l.sight.enter(stageTurnEnd)
	}
	for l.turnEndAt < len(l.turnEndRun) {
		if l.pace.left == 0 {
			l.look()
		}
		l.pace.left--
		t := &l.turnEndRun[l.turnEndAt]
		l.turnEndAt++
		l.m.TurnEnds++
		if l.sight != nil {
			l.sight.task.Store(t)
		}
		(*t).Run()
	}
}

// forget drops what the latest turn has run, so that a loop which waits keeps none
// of it alive.
func (l *Loop) forget() {
	l.fired = nil
	if l.sight != nil {
		l.sight.reg.Store(nil)
		l.sight.timer.Store(nil)
	}
	if n := len(l.batch); n > 0 && l.batchAt == n {
		l.clear(l.batch)
		l.batch, l.batchAt, l.batchFrom = nil, 0, 0
	}
	if n := len(l.turnEndRun); n > 0 && l.turnEndAt == n {
		l.clear(l.turnEndRun)
		l.turnEndRun, l.turnEndAt = l.turnEndRun[:0], 0
	}
}
