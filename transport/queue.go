package transport

// queue is what waits in an outbound.
type queue struct {
	entries fifo[entry]
	waiting fifo[completion]

	behind  int32 // entries behind the one that was last charged for its block, if that waits
	files   int32 // KiB of charge that are for regions, which pin no memory
	regions int16 // at most maxRegions
	merging bool  // the last entry is a merge buffer of ours

	next *queue // of spareQueues
}

// maxSpareQueues is how many queues a loop keeps, some 200 bytes each. All channels that
// are ready in a turn may write before the first of them flushes; when they are more than
// this, the others make queues of their own.
const maxSpareQueues = 1024

// spareQueues are the queues that the channels of a loop share. Loop-only.
type spareQueues struct {
	first *queue
	n     int
}

// take returns an empty queue.
func (s *spareQueues) take() *queue {
	if s == nil || s.first == nil {
		return new(queue)
	}
	q := s.first
	s.first, q.next = q.next, nil
	s.n--
	return q
}

// give takes back a queue, which is empty.
func (s *spareQueues) give(q *queue) {
	if s == nil || s.n == maxSpareQueues {
		return
	}
	q.entries.shrink()
	q.waiting.shrink()
	q.next, s.first = s.first, q
	s.n++
}
