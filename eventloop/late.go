package eventloop

import "sync"

// lateTasks are what is still to be called when the loop takes no more tasks: behind its last
// ones, or, when it has ended, by somebody else.
type lateTasks struct {
	mu      sync.Mutex
	tasks   []Task
	ended   bool // the loop makes no calls any more
	running bool // since then: somebody makes them
}

// Done returns a channel that is closed when the loop has ended: it makes no calls any
// more, and what was posted to it and not refused has run.
func (l *Loop) Done() <-chan struct{} { return l.done }

// Deliver is Submit for what must not be lost, such as a completion: it takes t also
// when the loop takes nothing else any more. What comes while the loop runs its last
// tasks is run behind them; what comes when it has ended runs on a goroutine that finds
// it so, this one inside the call, or the one that runs the like already, behind that.
// So calls of a loop are made one at a time also after its end. InLoop tells which of the
// two it is.
func (l *Loop) Deliver(t Task) {
	if !l.take(t) {
		l.lateTasks.add(t)
	}
}

// take has the loop run t, with its last tasks at the latest, and reports false if it has
// ended.
func (l *Loop) take(t Task) bool {
	if l.Submit(t) == nil {
		return true
	}
	q := &l.lateTasks
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.ended {
		q.tasks = append(q.tasks, t) // the loop is at work: it looks before it ends
	}
	return !q.ended
}

// takeOver returns what the loop has to run yet. If that is nothing the loop has ended,
// and runs no more. Loop only.
func (q *lateTasks) takeOver() []Task {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return nil
	}
	tasks := q.tasks
	q.tasks, q.ended = nil, len(tasks) == 0
	return tasks
}

// add has t run after the end, on this goroutine unless another one is at it.
func (q *lateTasks) add(t Task) {
	q.mu.Lock()
	q.tasks = append(q.tasks, t)
	here := !q.running
	q.running = true
	q.mu.Unlock()
	if here {
		q.run()
	}
}

// run runs what there is until there is nothing more.
func (q *lateTasks) run() {
	returned := false
	defer func() {
		if !returned { // a Goexit, or a panic that a Manual's caller is to see
			q.run()
		}
	}()
	for t := q.next(); t != nil; t = q.next() {
		t.Run()
	}
	returned = true
}

// next takes the first task. If there is none nobody runs them any more.
func (q *lateTasks) next() Task {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.tasks) == 0 {
		q.tasks, q.running = nil, false
		return nil
	}
	t := q.tasks[0]
	q.tasks[0] = nil
	q.tasks = q.tasks[1:]
	return t
}
