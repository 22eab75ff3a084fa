package transport

import (
	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
)

// zeroCopyUse says whether bytes go by MSG_ZEROCOPY, or why not.
type zeroCopyUse uint8

const (
	zeroCopyUntried   zeroCopyUse = iota // the socket has not been asked yet
	zeroCopyUsed                         // they do
	zeroCopyOff                          // Config.ZeroCopy is 0
	zeroCopyShort                        // the write is below the threshold
	zeroCopyScattered                    // its parts are shorter than a page, on average
	zeroCopyNotTCP                       // the channel is not one of TCP
	zeroCopyRefused                      // the kernel does not let the socket do it
	zeroCopyCopied                       // the kernel has copied what was sent before
	zeroCopyNoRoom                       // ENOBUFS: too much is not confirmed, for this write
)

// String gives the reason in the words of an explanation.
func (u zeroCopyUse) String() string {
	switch u {
	case zeroCopyUntried:
		return "not tried yet"
	case zeroCopyUsed:
		return "used"
	case zeroCopyOff:
		return "off"
	case zeroCopyShort:
		return "below the threshold"
	case zeroCopyScattered:
		return "parts shorter than a page"
	case zeroCopyNotTCP:
		return "not TCP"
	case zeroCopyRefused:
		return "refused by the kernel"
	case zeroCopyCopied:
		return "switched off: the kernel copies"
	case zeroCopyNoRoom:
		return "too much unconfirmed"
	}
	return "unknown"
}

// zeroCopy is what a channel has sent by MSG_ZEROCOPY and what has become of it: which
// buffers the kernel may still read. It calls no kernel; the owner tells it of every
// call and of every confirmation, and takes back what is free.
//
// The kernel numbers the calls of a socket from 0 with 32 bits, and confirms ranges of
// numbers in any order. Buffers come back in the order of the calls: one that waits for
// an older call holds little for a moment, and a queue is all that has to be kept.
//
// Loop-only, and in quarantine for whoever sweeps.
type zeroCopy struct {
	able  zeroCopyUse // untried, used, refused or copied
	first uint32      // number of the oldest call that has not been taken back
	calls fifo[zeroCopyCall]
	held  fifo[lentBuf] // of the calls, in their order

	charge int64 // of what is held, as the water marks count it
	free   bool  // which is not charged to the channel any more

	read    bool             // confirmations, since the last error event
	unacked int              // bytes, when lingering began or was extended
	watch   *eventloop.Timer // looks for confirmations while the poller does not tell
}

// zeroCopyCall is a call that has not been taken back.
type zeroCopyCall struct {
	bufs int32 // in held
	done bool  // confirmed
}

// lentBuf is a buffer that the kernel may read, and what it is charged.
type lentBuf struct {
	buf    *buffer.Buf
	charge int64
}

// unconfirmed returns how many calls there are whose buffers are held.
func (z *zeroCopy) unconfirmed() int {
	if z == nil {
		return 0
	}
	return int(z.calls.n)
}

// settled reports whether all calls are confirmed, whether or not their buffers have been
// taken back.
func (z *zeroCopy) settled() bool {
	for i := range z.calls.n {
		if !z.calls.at(int(i)).done {
			return false
		}
	}
	return true
}

// sent takes note of a call that has taken something. What it has taken is held next.
func (z *zeroCopy) sent() { z.calls.push(zeroCopyCall{}) }

// hold adds a buffer, which it takes over, to the latest call.
func (z *zeroCopy) hold(b *buffer.Buf, charge int64) {
	z.held.push(lentBuf{b, charge})
	z.calls.last().bufs++
	z.charge += charge
}

// confirm takes note of an entry of the error queue. Numbers of calls that are not known,
// or known to be confirmed, do nothing.
func (z *zeroCopy) confirm(c sys.Confirmation) {
	if !c.Calls {
		return
	}
	if c.Copied && z.able == zeroCopyUsed {
		z.able = zeroCopyCopied
	}
	span := c.Last - c.First
	for i := range z.calls.n {
		if z.first+uint32(i)-c.First <= span {
			z.calls.at(int(i)).done = true
		}
	}
}

// take returns the next buffer that the kernel has done with and what it was charged,
// and false if there is none.
func (z *zeroCopy) take() (b *buffer.Buf, charge int64, ok bool) {
	for z.calls.n > 0 && z.calls.first().done {
		c := z.calls.first()
		if c.bufs > 0 {
			c.bufs--
			l := *z.held.first()
			*z.held.first() = lentBuf{}
			z.held.pop()
			z.charge -= l.charge
			return l.buf, l.charge, true
		}
		*c = zeroCopyCall{}
		z.calls.pop()
		z.first++
	}
	z.calls.shrink()
	z.held.shrink()
	return nil, 0, false
}

// lend is advance for n bytes that the kernel has taken without copying them: z holds
// their buffers from now on, and they stay charged until it gives them back. Of a buffer
// of which only a part has left z holds that part: the rest stays in the queue, and may be
// written to behind what has left.
func (o *outbound) lend(n int64, z *zeroCopy) {
	z.sent()
	o.sent += uint64(n)
	for n > 0 {
		e := o.q.entries.first()
		left := int64(e.buf.Len())
		if n < left {
			z.hold(e.buf.ReadSlice(int(n)), 0) // the entry is charged for it
			e.buf.DiscardReadParts()
			return
		}
		n -= left
		b, charge := e.buf, e.charge
		e.charge = 0
		o.drop(e)
		z.hold(b, charge)
	}
}
