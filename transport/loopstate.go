package transport

import (
	"errors"
	"sync"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"go.uber.org/zap"
)

// loopState is what the channels of one loop with one allocator share: the receive
// buffers, one of each size, that every read goes into, and the parts of the
// writev under way, and queues. A channel that waits holds no buffer.
//
// Loop-only, except the table of them all.
type loopState struct {
	key    loopKey
	alloc  buffer.Allocator
	hot    [len(recvSizes)]*buffer.Buf
	iov    []sys.Iovec
	queues spareQueues
	pipes  pipePool
	disk   sharedPipes // of the Ops that write to files
	users  int

	in  map[int]*dgramSlots // by size; nil if no datagrams are read
	out *dgramParts         // nil if none are sent

	pool *buffer.Pool // of alloc; nil if that has none
	held []holdable   // not reading because there is no memory, or the pool is close to its limit
}

// holdable is a channel that can be kept from reading.
type holdable interface {
	Logger() *zap.Logger
	setStarved(on bool) (news bool)
	updateInterest()
}

type loopKey struct {
	loop  *eventloop.Loop
	alloc buffer.Allocator
}

var loopStates sync.Map // loopKey to *loopState

// acquireState returns the state of the running loop; releaseState gives it back.
func acquireState(l *eventloop.Loop, alloc buffer.Allocator) *loopState {
	key := loopKey{l, alloc}
	if v, ok := loopStates.Load(key); ok {
		s := v.(*loopState)
		s.users++
		return s
	}
	s := &loopState{key: key, alloc: alloc, iov: make([]sys.Iovec, 0, sys.IOVMax), users: 1}
	switch a := alloc.(type) {
	case *buffer.Cache:
		s.pool = a.Pool()
	case *buffer.Pool:
		s.pool = a
	}
	loopStates.Store(key, s)
	return s
}

func (s *loopState) release() {
	if s.users--; s.users > 0 {
		return
	}
	loopStates.Delete(s.key)
	s.pipes.end()
	s.disk.end()
	for i, b := range s.hot {
		if b != nil {
			b.Release()
			s.hot[i] = nil
		}
	}
	for _, in := range s.in {
		in.release()
	}
	s.in = nil
}

// slots returns what datagrams are received into, in slots of the size.
func (s *loopState) slots(size int) *dgramSlots {
	in := s.in[size]
	if in == nil {
		if s.in == nil {
			s.in = make(map[int]*dgramSlots)
		}
		in = newDgramSlots(size)
		s.in[size] = in
	}
	return in
}

// outgoing returns what a call that sends datagrams is made of.
func (s *loopState) outgoing() *dgramParts {
	if s.out == nil {
		s.out = &dgramParts{iov: s.iov, batch: sys.NewMessages(dgramBatch)}
	}
	return s.out
}

// pressed reports whether the pool is so close to its limit that nothing is to be
// read: what is left is for sending what there is.
func (s *loopState) pressed() bool { return s.pool != nil && s.pool.Pressure() }

// hold keeps a channel from reading while there is pressure.
func (s *loopState) hold(ch holdable) {
	s.starve(ch, errPressure)
}

var errPressure = errors.New("buffers are close to their limit")

// starve keeps a channel from reading for a while, because of err. All channels of a loop
// that have no memory wait for one timer and fill one line of the log: there may be a
// million of them.
func (s *loopState) starve(ch holdable, err error) {
	if !ch.setStarved(true) {
		return
	}
	s.held = append(s.held, ch)
	if len(s.held) == 1 {
		ch.Logger().Warn("reading paused: " + err.Error())
		s.key.loop.Schedule(starvedRetry, s.unhold)
	}
}

// unhold lets the channels go on that were held, if there is no more pressure. It
// looks from time to time and is not told, because pressure that was over at once
// is told to nobody.
func (s *loopState) unhold() {
	if s.users > 0 && s.pressed() {
		s.key.loop.Schedule(starvedRetry, s.unhold)
		return
	}
	held := s.held
	s.held = nil
	for _, ch := range held {
		ch.setStarved(false)
		ch.updateInterest()
	}
}

// receive returns the empty receive buffer of size recvSizes[i].
func (s *loopState) receive(i uint8) (*buffer.Buf, error) {
	if b := s.hot[i]; b != nil {
		return b, nil
	}
	b, err := s.alloc.TryAlloc(recvSizes[i])
	if err != nil {
		return nil, err
	}
	s.hot[i] = b
	return b, nil
}

// message makes a message of what has just been read into the receive buffer of
// size recvSizes[i]: a copy of the right size if it is short, else the buffer.
func (s *loopState) message(i uint8) *buffer.Buf {
	hot := s.hot[i]
	if n := hot.Len(); n <= copyLimit {
		if b, err := s.alloc.TryAlloc(n); err == nil {
			b.WriteBuf(hot)
			hot.Clear()
			return b
		}
	}
	s.hot[i] = nil
	return hot
}
