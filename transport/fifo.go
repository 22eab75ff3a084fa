package transport

// fifo is a queue in a ring that doubles when it is full. Its zero value is an
// empty queue, which holds no memory.
type fifo[T any] struct {
	ring []T // length is a power of two, or 0
	head int32
	n    int32
}

// keepFIFO is how long a ring an idle queue keeps.
const keepFIFO = 16

func (q *fifo[T]) push(v T) {
	if int(q.n) == len(q.ring) {
		q.grow()
	}
	q.ring[int(q.head+q.n)&(len(q.ring)-1)] = v
	q.n++
}

func (q *fifo[T]) grow() {
	ring := make([]T, max(4, 2*len(q.ring)))
	for i := range int(q.n) {
		ring[i] = *q.at(i)
	}
	q.ring, q.head = ring, 0
}

// at returns the element at position i, counted from the first.
func (q *fifo[T]) at(i int) *T { return &q.ring[(int(q.head)+i)&(len(q.ring)-1)] }

func (q *fifo[T]) first() *T {
	if q.n == 0 {
		return nil
	}
	return &q.ring[q.head]
}

func (q *fifo[T]) last() *T {
	if q.n == 0 {
		return nil
	}
	return q.at(int(q.n) - 1)
}

// pop removes the first element, which the caller has cleared.
func (q *fifo[T]) pop() {
	q.head = int32(int(q.head+1) & (len(q.ring) - 1))
	q.n--
}

// shrink gives back the ring of an empty queue if it is long.
func (q *fifo[T]) shrink() {
	if q.n > 0 {
		return
	}
	if len(q.ring) > keepFIFO {
		q.ring = nil
	}
	q.head = 0 // where it has been written to last is more likely to be in a cache
}
