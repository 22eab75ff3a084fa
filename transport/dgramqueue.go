package transport

import (
	"net/netip"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
)

// dgramBatch is the largest number of datagrams that one call receives or sends. The
// call itself is a small part of the costs of so many already.
const dgramBatch = 16

// dgramQueue is the outbound queue of a datagram channel, in the order in which the
// datagrams leave. Unlike a stream's it keeps their bounds: nothing is merged, and
// each leaves as a whole or not at all. It calls no kernel and no handler.
type dgramQueue struct {
	entries fifo[outDatagram]
	aside   asideQueue               // those whose receivers have no room
	told    fifo[*eventloop.Promise] // of those that have left, to be completed

	queued uint64 // datagrams ever added
	gone   uint64 // datagrams that have left or failed, or are aside
	charge int64  // pinned bytes, as the water marks count them, with those that are aside
}

// outDatagram is a datagram in the queue. Addr and name are empty on a channel that
// is connected.
type outDatagram struct {
	buf    *buffer.Buf
	addr   netip.AddrPort
	name   string
	p      *eventloop.Promise
	change *peerChange // instead of a datagram, which has its place in the order
	charge int64
	aside  bool // it has been set aside once, and has not left
}

// pending is what the water marks judge: what waits for the socket, not for a receiver.
func (q *dgramQueue) pending() int64 { return q.charge - q.aside.charge }

func (q *dgramQueue) empty() bool { return q.entries.n == 0 && q.aside.entries.n == 0 }

// held reports whether the first is a change of the peer that has to wait for what is
// aside.
func (q *dgramQueue) held() bool {
	first := q.entries.first()
	return first != nil && first.change != nil && q.aside.entries.n > 0
}

// add queues e, whose Buf it takes over.
func (q *dgramQueue) add(e outDatagram) {
	e.charge = entryCharge
	if e.change == nil {
		e.charge += int64(e.buf.Pinned())
	}
	if last := q.entries.last(); last != nil && last.change == nil && e.change == nil && last.buf.Parts() == 1 && last.buf.SharesMemory(e.buf) {
		// Slices of one block that follow each other are charged for it once.
		q.charge -= last.charge - entryCharge
		if last.aside {
			q.aside.charge -= last.charge - entryCharge
		}
		last.charge = entryCharge
	}
	q.charge += e.charge
	q.queued++
	q.entries.push(e)
}

// batch returns how many datagrams the next call is to send, of those before
// position limit: at least one, none after the first that has to wait behind what is
// aside, and none behind a change of the peer.
func (q *dgramQueue) batch(limit uint64) (n int) {
	n = int(min(limit-q.gone, dgramBatch))
	bytes := 0
	for i := range n {
		e := q.entries.at(i)
		if e.change != nil {
			return i
		}
		if bytes += e.buf.Len(); i > 0 && (bytes > sys.MaxRaw || q.aside.holds(e.name)) {
			return i
		}
	}
	return n
}

// left takes note that the first n datagrams have left, and returns how many bytes
// they had, and of those in mapped files. Their completions are due afterwards, see due.
func (q *dgramQueue) left(n int) (bytes, mapped int) {
	for range n {
		e := q.take()
		bytes += e.buf.Len()
		if e.buf.Mapped() {
			mapped += e.buf.Len()
		}
		q.aside.took(e.name)
		if e.p != nil {
			q.told.push(e.p)
		}
		e.buf.Release()
	}
	return bytes, mapped
}

// take takes the first datagram out; its Buf and its promise are the caller's.
func (q *dgramQueue) take() outDatagram {
	first := q.entries.first()
	e := *first
	*first = outDatagram{}
	q.entries.pop()
	q.charge -= e.charge
	if e.aside {
		q.aside.charge -= e.charge
	}
	q.gone++
	return e
}

// due returns the next completion of a datagram that has left, or nil.
func (q *dgramQueue) due() *eventloop.Promise {
	if first := q.told.first(); first != nil {
		p := *first
		*first = nil
		q.told.pop()
		return p
	}
	return nil
}

// idle gives back the memory of a queue that is empty and was long.
func (q *dgramQueue) idle() {
	q.entries.shrink()
	q.aside.entries.shrink()
	q.told.shrink()
}
