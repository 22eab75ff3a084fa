package eventloop

import "sync"

// taskQueue is a first-in first-out list of tasks. It is made of blocks that all
// queues share, so that one with nothing in it holds no memory, and one at work
// allocates nothing.
type taskQueue struct {
	first, last *taskBlock
	from, to    int // the first task in first, behind the last one in last
	n           int
}

// taskBlock is a part of a list, 512 bytes.
type taskBlock struct {
	tasks [31]Task
	next  *taskBlock
}

var taskBlocks = sync.Pool{New: func() any { return new(taskBlock) }}

func (q *taskQueue) len() int { return q.n }

func (q *taskQueue) push(t Task) {
	switch {
	case q.last == nil:
		q.last = taskBlocks.Get().(*taskBlock)
		q.first = q.last
	case q.to == len(q.last.tasks):
		q.last.next = taskBlocks.Get().(*taskBlock)
		q.last, q.to = q.last.next, 0
	}
	q.last.tasks[q.to] = t
	q.to++
	q.n++
}

// pop removes the first task; nil if there is none.
func (q *taskQueue) pop() Task {
	b := q.first
	if b == nil {
		return nil
	}
	t := b.tasks[q.from]
	b.tasks[q.from] = nil
	q.from++
	q.n--
	switch {
	case q.n == 0:
		*q = taskQueue{}
		taskBlocks.Put(b)
	case q.from == len(b.tasks):
		q.first, q.from = b.next, 0
		b.next = nil
		taskBlocks.Put(b)
	}
	return t
}
