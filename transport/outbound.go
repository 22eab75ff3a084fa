package transport

import (
	"math"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
)

const (
	// mergeLimit is up to how many bytes a message is copied together with its
	// neighbours. Larger ones go out as parts of a writev.
	mergeLimit = 1 << 10
	// The buffers into which small messages are merged start small and double, so
	// that a channel with little to say pins little.
	minMerge = 1 << 10
	maxMerge = 32 << 10

	// entryCharge is charged for the place of a message in the queue.
	entryCharge = 64
	// completionCharge is for one that waits: a promise, its function and a place. Of
	// short messages that are merged it may be more than their bytes.
	completionCharge = 128

	maxRegions = 1024

	// Gather limits in bytes, see SEMANTICS 2.5: what one writev is given grows while
	// the socket takes everything and shrinks when it takes less than half.
	minGather   = 4 << 10
	startGather = 256 << 10
	maxGather   = sys.MaxRaw
)

// outbound is the queue of a channel: buffers and file regions in the order in
// which they leave, and the completions that wait for them. It calls no kernel and
// no handler; the channel asks what is first, sends it and reports how many bytes
// have left.
//
// Completions are kept apart from the messages, by their position in the stream of
// bytes, so that messages can be merged and only who asks for a completion pays.
//
// A channel that has nothing to send holds no queue: it has one from its loop when
// something comes, and gives it back with the last of it.
type outbound struct {
	q     *queue       // nil if nothing waits
	spare *spareQueues // the loop's; nil until the channel has started

	queued uint64 // bytes ever added
	sent   uint64 // bytes that have left

	charge int64 // pinned bytes, as the water marks count them

	gather int32 // bytes for the next writev
	merge  int32 // size of the next merge buffer
	piped  int32 // bytes in a pipe at the head, which leave before the entries
	done   bool  // the sending side of the socket has been closed
}

// entry is a message in the queue: a Buf or a region.
type entry struct {
	buf    *buffer.Buf
	region *buffer.FileRegion
	charge int64
}

// fileKiB is how much of the charge of a region is for its file.
func (e *entry) fileKiB() int32 {
	return int32(min((e.charge-entryCharge)>>10, math.MaxInt32/maxRegions))
}

// completion is a promise for the byte position at which its message ends.
type completion struct {
	at uint64
	p  *eventloop.Promise
}

func (o *outbound) empty() bool { return o.len() == 0 && o.piped == 0 }

// len returns the number of messages that wait, not counting a pipe.
func (o *outbound) len() int {
	if o.q == nil {
		return 0
	}
	return int(o.q.entries.n)
}

// open returns the queue, which it takes from the loop if there is none.
func (o *outbound) open() *queue {
	if o.q == nil {
		o.q = o.spare.take()
	}
	return o.q
}

// settle gives the queue back if nothing waits any more.
func (o *outbound) settle() {
	if q := o.q; q.entries.n == 0 && q.waiting.n == 0 {
		o.q = nil
		o.spare.give(q)
	}
}

// pipe puts n bytes more in a pipe at the head of the queue, which is empty but for the
// pipe.
func (o *outbound) pipe(n int) {
	o.piped += int32(n)
	o.queued += uint64(n)
}

// unpipe takes note that n bytes of the pipe have left.
func (o *outbound) unpipe(n int) {
	o.piped -= int32(n)
	o.sent += uint64(n)
}

// passed takes note of n bytes that have left without having been in the queue, which is
// empty.
func (o *outbound) passed(n int) {
	o.queued += uint64(n)
	o.sent += uint64(n)
}

// memory is how many bytes the queue pins, to a KiB for each region.
func (o *outbound) memory() int64 {
	if o.q == nil {
		return o.charge
	}
	return o.charge - int64(o.q.files)<<10
}

// addBuf queues b, which it takes over, and returns how many bytes it has copied for
// that. p may be nil.
func (o *outbound) addBuf(b *buffer.Buf, p *eventloop.Promise, alloc buffer.Allocator) (copied int) {
	n := b.Len()
	o.queued += uint64(n)
	if p != nil {
		o.await(p)
	}
	if n == 0 {
		if p != nil {
			p.OnProgress(nil) // not to get that of a region that ends here
		}
		b.Release()
		return 0
	}
	q := o.open()
	if last := o.joinable(); last != nil && last.Join(b) {
		return 0 // frames that are sent on as they came lie side by side
	}
	if o.route(b).path != PathCopy {
		o.push(entry{buf: b})
		return 0
	}
	last := q.entries.last()
	if !q.merging {
		return o.mergeWith(last, b, alloc)
	}
	if last.buf.Cap()-last.buf.WriterIndex() >= n {
		o.append(last.buf, b)
		return n
	}
	merged, err := alloc.TryAlloc(o.nextMerge(n))
	if err != nil {
		o.push(entry{buf: b})
		return 0
	}
	o.append(merged, b)
	o.push(entry{buf: merged})
	q.merging = true
	return n
}

// last returns the last message, nil if none waits.
func (o *outbound) last() *entry {
	if o.q == nil {
		return nil
	}
	return o.q.entries.last()
}

// joinable returns the last buffer if what is queued may become a part of it.
func (o *outbound) joinable() *buffer.Buf {
	if last := o.last(); last != nil && !o.q.merging {
		return last.buf
	}
	return nil
}

// mergeWith copies last, a buffer in the queue, and b behind it into a new merge buffer,
// and returns how many bytes it has copied.
func (o *outbound) mergeWith(last *entry, b *buffer.Buf, alloc buffer.Allocator) int {
	n := last.buf.Len() + b.Len()
	merged, err := alloc.TryAlloc(o.nextMerge(n))
	if err != nil {
		o.push(entry{buf: b})
		return 0
	}
	o.append(merged, last.buf)
	o.append(merged, b)
	o.charge -= last.charge
	last.buf, last.charge = merged, int64(merged.Pinned())+entryCharge
	o.charge += last.charge
	o.q.merging = true
	return n
}

// await adds the completion of what has been added last.
func (o *outbound) await(p *eventloop.Promise) {
	o.open().waiting.push(completion{o.queued, p})
	o.charge += completionCharge
}

// append moves the bytes of b to the end of merged.
func (o *outbound) append(merged, b *buffer.Buf) {
	merged.WriteBuf(b)
	b.Release()
}

// nextMerge returns the size of a merge buffer that has to take n bytes at least.
func (o *outbound) nextMerge(n int) int {
	size := max(int(o.merge), minMerge)
	for size < n {
		size *= 2
	}
	o.merge = int32(min(2*size, max(maxMerge, size)))
	return size
}

// push appends an entry and charges it. Slices of one block that follow each other,
// with small messages such as their headers in between, are charged for it once, by
// the last of them.
func (o *outbound) push(e entry) {
	q := o.q
	e.charge = entryCharge + int64(e.buf.Pinned())
	q.behind++
	if e.buf.Len() > mergeLimit {
		if i := q.entries.n - q.behind; i >= 0 {
			// Of a composite only some of the memory might be shared.
			if c := q.entries.at(int(i)); c.buf != nil && c.buf.Parts() == 1 && c.buf.SharesMemory(e.buf) {
				o.charge -= c.charge - entryCharge
				c.charge = entryCharge
			}
		}
		q.behind = 0
	}
	o.charge += e.charge
	q.merging = false
	q.entries.push(e)
}

// addRegion queues r, which it takes over; it is charged at most high. It reports
// false, and does not take r over, if there are too many.
func (o *outbound) addRegion(r *buffer.FileRegion, p *eventloop.Promise, high int64) bool {
	if o.fullOfRegions() {
		return false
	}
	n := r.Remaining()
	o.queued += uint64(n)
	if p != nil {
		o.await(p)
	}
	if n == 0 {
		if p != nil {
			p.OnProgress(nil) // not to get that of what ends where this begins
		}
		r.Release()
		return true
	}
	q := o.open()
	q.regions++
	q.behind++
	q.merging = false
	e := entry{region: r, charge: min(n, high) + entryCharge}
	o.charge += e.charge
	q.files += e.fileKiB()
	q.entries.push(e)
	return true
}

// fullOfRegions reports whether no more of them are taken.
func (o *outbound) fullOfRegions() bool { return o.q != nil && o.q.regions >= maxRegions }

// region returns the region that is next to leave, or nil if a buffer is.
func (o *outbound) region() *buffer.FileRegion {
	if q := o.q; q != nil {
		if e := q.entries.first(); e != nil {
			return e.region
		}
	}
	return nil
}

// parts collects the run of buffers at the head into iov, up to limit bytes and up
// to the gather limit but at least one buffer, and says how many bytes that is,
// whether one of the buffers is a mapped file, and which region follows the run, if
// all of it is in.
func (o *outbound) parts(iov []sys.Iovec, limit uint64) (parts []sys.Iovec, bytes int, mapped bool, then *buffer.FileRegion) {
	if o.gather == 0 {
		o.gather = startGather
	}
	parts = iov[:0]
	for i := range o.len() {
		e := o.q.entries.at(i)
		if len(parts) == cap(iov) {
			return parts, bytes, mapped, nil // of the one before there may be more
		}
		if e.region != nil {
			return parts, bytes, mapped, e.region
		}
		if len(parts) > 0 && bytes+e.buf.Len() > int(o.gather) {
			return parts, bytes, mapped, nil
		}
		before := len(parts)
		parts = e.buf.AppendIovecs(parts, cap(iov)-before)
		mapped = mapped || e.buf.Mapped()
		for i := before; i < len(parts); i++ {
			n := uint64(parts[i].Len)
			if left := limit - uint64(bytes); n >= left {
				// A merge buffer may hold more than was flushed.
				parts[i].SetLen(int(left))
				parts = parts[:i+1]
				bytes += int(left)
				return parts, bytes, mapped, nil
			}
			bytes += int(n)
		}
	}
	return parts, bytes, mapped, nil
}

// mappedIn returns how many of the n bytes at the head are of mapped files.
func (o *outbound) mappedIn(n int) (mapped uint64) {
	for i := 0; n > 0; i++ {
		b := o.q.entries.at(i).buf
		k := min(n, b.Len())
		if b.Mapped() {
			mapped += uint64(k)
		}
		n -= k
	}
	return mapped
}

// tried adjusts the gather limit to what a write of offered bytes achieved.
func (o *outbound) tried(offered, taken int) {
	switch {
	case taken == offered:
		if 2*offered > int(o.gather) {
			o.gather = int32(min(2*offered, maxGather))
		}
	case offered > minGather && taken < offered/2:
		o.gather = int32(max(min(offered/2, maxGather), minGather))
	}
}

// advance takes note that n bytes have left, and releases the messages that they
// were the rest of. Completions are due afterwards, see due.
func (o *outbound) advance(n int64) {
	o.sent += uint64(n)
	for n > 0 {
		e := o.q.entries.first()
		if r := e.region; r != nil {
			left := r.Remaining()
			r.Advance(min(n, left))
			if n < left {
				return
			}
			n -= left
			o.q.regions--
			o.drop(e)
			r.Release()
			continue
		}
		left := int64(e.buf.Len())
		if n < left {
			e.buf.Skip(int(n))
			e.buf.DiscardReadParts() // a long one gives back what has left
			return
		}
		n -= left
		b := e.buf
		o.drop(e)
		b.Release()
	}
}

// drop takes the first entry out; its message is the caller's.
func (o *outbound) drop(e *entry) {
	q := o.q
	o.charge -= e.charge
	if e.region != nil {
		q.files -= e.fileKiB()
	}
	*e = entry{}
	q.entries.pop()
	if q.entries.n == 0 {
		q.merging, q.behind = false, 0
		if o.merge > minMerge {
			o.merge /= 2
		}
		o.settle()
	}
}

// regionPromise returns the promise of the region at the head of the queue, nil if
// nobody asked. All before it have been completed.
func (o *outbound) regionPromise() *eventloop.Promise {
	if c := o.q.waiting.first(); c != nil && c.at == o.sent+uint64(o.region().Remaining()) {
		return c.p
	}
	return nil
}

// due returns the next completion whose message has left, or nil.
func (o *outbound) due() *eventloop.Promise {
	if o.q == nil {
		return nil
	}
	c := o.q.waiting.first()
	if c == nil || c.at > o.sent {
		return nil
	}
	p := c.p
	*c = completion{}
	o.q.waiting.pop()
	o.charge -= completionCharge
	o.settle()
	return p
}

// dropFirst releases the first message, and reports false if there is none.
func (o *outbound) dropFirst() bool {
	if o.len() == 0 {
		return false
	}
	e := o.q.entries.first()
	b, r := e.buf, e.region
	if r != nil {
		o.q.regions--
	}
	o.drop(e)
	if b != nil {
		b.Release()
	} else {
		r.Release()
	}
	return true
}

// takeWaiting empties the list of completions, which are the caller's to fail.
func (o *outbound) takeWaiting() (waiting []*eventloop.Promise) {
	for o.q != nil && o.q.waiting.n > 0 {
		c := o.q.waiting.first()
		waiting = append(waiting, c.p)
		*c = completion{}
		o.q.waiting.pop()
		o.charge -= completionCharge
		o.settle()
	}
	return waiting
}
