package eventloop

import "runtime"

// endTurns bounds the turns in which an ending loop waits for its tasks to stop
// making new ones.
const endTurns = 128

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
		for i := range l.table.used {
			if r := l.table.at(i); r != nil {
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
		r.tellClose()
	}
}

// endLoop is the task that ends a loop after its closeAll.
type endLoop struct{ l *Loop }

func (e endLoop) Run() { e.l.ending = 1 }

// mayEnd moves an ending loop on. It is called after each turn from closeAll on and
// returns true when nothing is left to do: from here on the loop makes no calls.
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
	if l.batchAt < len(l.batch) {
		return false
	}
	if l.final {
		if len(l.turnEnd) > 0 && l.ending <= 2*endTurns {
			return false
		}
		l.clear(l.batch)
		l.batch, l.batchAt = l.lateTasks.takeOver(), 0
		return len(l.batch) == 0
	}
	if l.tasks.Len() == 0 && len(l.turnEnd) == 0 || l.ending > endTurns {
		l.nextBatch(true)
		l.final = true
	}
	return false
}

// end frees what the loop holds. Nothing is posted to it any more.
func (l *Loop) end() {
	for l.wakeups.Load() != l.wakesOwed {
		runtime.Gosched() // somebody has yet to write to the poller's descriptor
	}
	l.forget()
	l.timers.clear()
	for i := range l.caches {
		l.caches[i].cache.Close()
	}
	l.caches = nil
	if err := l.poller.close(); err != nil {
		l.bug("poller cannot be closed", err)
	}
	l.publish(l.clock())
}
