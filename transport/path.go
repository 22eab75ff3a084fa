package transport

import (
	"fmt"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/pipeline"
)

// Path is how bytes travel between a channel's pipeline, or a file, or another channel,
// and the peer.
type Path uint8

const (
	// PathNone: they do not.
	PathNone Path = iota
	// PathCopy: they are copied once in the process, into a buffer that they share with
	// their neighbours, and leave from there; or they are read and written.
	PathCopy
	// PathWrite: they leave from where they lie, many parts in one call (write(2),
	// writev(2), sendmmsg(2)).
	PathWrite
	// PathMapped: as PathWrite, from the pages of a mapped file.
	PathMapped
	// PathZeroCopy: the network card reads them where they lie (MSG_ZEROCOPY).
	PathZeroCopy
	// PathSendfile: from the page cache to the socket (sendfile(2)).
	PathSendfile
	// PathSplice: from the socket through a pipe to a socket or a file (splice(2)).
	PathSplice
	// PathHandOver: the message itself is handed to the other end, in the process.
	PathHandOver
)

func (p Path) String() string {
	names := [...]string{"none", "copy", "write", "mapped", "zero-copy", "sendfile", "splice", "hand over"}
	if int(p) < len(names) {
		return names[p]
	}
	return fmt.Sprintf("Path(%d)", uint8(p))
}

// Explanation is a path and why it is taken, in words.
type Explanation struct {
	Path   Path
	Reason string
}

func (e Explanation) String() string { return e.Path.String() + ": " + e.Reason }

// why is a reason for a path.
type why uint8

const (
	whyUnsupported why = iota
	whyClosed
	whyForeign
	whyEmpty
	whyAlone
	whyBeside
	whyJoined
	whyLarge
	whyLargeBefore
	whyMappedBefore
	whyMerging
	whyMapped
	whyUnowned
	whyCached
	whyCold
	whyTooManyRegions
	whyDatagram
	whyInProcess
	whyNotStarted
	whyAsked
	whyNoPipes
	whyMirror
	whyCrossing
	whyFullReads
	whyShortReads
	whySmallPipes
	whyPipesFull
	whyBothPipes
	whys int = iota
)

var reasons = [whys]string{
	whyUnsupported:    "the channel cannot send such a message",
	whyClosed:         "the channel sends nothing any more",
	whyForeign:        "the channel is not one of this package",
	whyEmpty:          "there is nothing in it",
	whyAlone:          "no buffer is before it in the queue",
	whyBeside:         "it and the one before it are short, which is cheaper to copy than to gather",
	whyJoined:         "its memory continues that of the buffer before it, and both leave as one",
	whyLarge:          "it is long, which is cheaper to gather than to copy",
	whyLargeBefore:    "the one before it is long and stays where it is",
	whyMappedBefore:   "the one before it is a mapped file and stays where it is",
	whyMerging:        "it is short, and those before it have been copied together already",
	whyMapped:         "it is a mapped file, whose pages are not read before the kernel does",
	whyUnowned:        "it belongs to the caller, and is copied before Write returns",
	whyCached:         "its next page is in memory",
	whyCold:           "its next page is not in memory, or the file system does not tell: a worker sends it",
	whyTooManyRegions: "there are too many file regions in the queue",
	whyDatagram:       "a datagram leaves from where it lies, with others in one call",
	whyInProcess:      "both ends are in this process",
	whyNotStarted:     "it has not been started, or is over",
	whyAsked:          "this is the mode that was asked for",
	whyNoPipes:        "the socket or the file has nothing to do with pipes",
	whyMirror:         "a mirror's channel is no stream on the same loop",
	whyCrossing:       "the channels are not two streams on one loop",
	whyFullReads:      "reads have come back full: it is a stream",
	whyShortReads:     "reads do not come back full: it is short messages",
	whySmallPipes:     "the system gives no pipe, or only small ones",
	whyPipesFull:      "the pipes of the process hold as much as they may",
	whyBothPipes:      "socket and file have to do with pipes",
}

// route is the decision which way a message goes.
type route struct {
	path Path
	why  why
}

func (r route) explain() Explanation { return Explanation{r.path, reasons[r.why]} }

// Explain says how msg would travel if it was written to ch now and got to the head of its
// pipeline as it is, with nothing behind it, and why. It is the decision that the channel makes for what is
// written, asked beforehand; ch and msg stay as they are. How many bytes have taken which
// way is in the counters of each loop ([eventloop.Counters]). [Relay.Explain] and
// [FileReceiver.Explain] say it of what does not pass a pipeline.
//
// A region is asked for its next page, which costs a system call.
//
// Loop only: that of ch.
func Explain(ch pipeline.Channel, msg any) Explanation {
	invariant.OnLoop(ch.Loop())
	switch s := ch.(type) {
	case *stream:
		return s.explain(msg)
	case *dgram:
		return s.route(msg).explain()
	case *localChannel:
		return s.route(msg).explain()
	}
	return route{PathNone, whyForeign}.explain()
}

// explain says how msg would be sent.
func (s *stream) explain(msg any) Explanation {
	r := s.route(msg)
	e := r.explain()
	b, ok := msg.(*buffer.Buf)
	if !ok || s.cfg.ZeroCopy == 0 || r.path != PathWrite && r.path != PathMapped {
		return e
	}
	switch use := s.zeroCopyFor(b.Len(), b.Parts()); use {
	case zeroCopyUsed, zeroCopyUntried:
		return Explanation{PathZeroCopy, "it is so long that the kernel is lent its memory"}
	default:
		e.Reason += "; without MSG_ZEROCOPY: " + use.String()
		return e
	}
}

// route decides how msg would be sent, but for MSG_ZEROCOPY, which is decided for what
// leaves together.
func (s *stream) route(msg any) route {
	if s.at >= streamClosing || s.outputShut {
		return route{PathNone, whyClosed}
	}
	switch m := msg.(type) {
	case *buffer.Buf:
		if last := s.out.joinable(); last != nil && last.Joins(m) {
			return route{PathWrite, whyJoined}
		}
		return s.out.route(m)
	case *buffer.FileRegion:
		if s.out.fullOfRegions() {
			return route{PathNone, whyTooManyRegions}
		}
		return s.routeRegion(m)
	}
	return routeUnowned(msg)
}

// routeUnowned decides how a message that is no Buf would be sent by a socket.
func routeUnowned(msg any) route {
	n := 0
	switch m := msg.(type) {
	case []byte:
		n = len(m)
	case string:
		n = len(m)
	default:
		return route{PathNone, whyUnsupported}
	}
	if n == 0 {
		return route{PathNone, whyEmpty}
	}
	return route{PathCopy, whyUnowned}
}

// route decides whether b, which does not lie behind the last buffer of the queue, is
// copied together with that or leaves from where it lies.
func (o *outbound) route(b *buffer.Buf) route {
	last := o.last()
	switch n := b.Len(); {
	case n == 0:
		return route{PathNone, whyEmpty}
	case n > mergeLimit:
		if b.Mapped() {
			return route{PathMapped, whyMapped}
		}
		return route{PathWrite, whyLarge}
	case b.Mapped():
		return route{PathMapped, whyMapped}
	case last == nil || last.buf == nil:
		return route{PathWrite, whyAlone}
	case o.q.merging:
		return route{PathCopy, whyMerging}
	case last.buf.Len() > mergeLimit:
		return route{PathWrite, whyLargeBefore}
	case last.buf.Mapped():
		return route{PathWrite, whyMappedBefore}
	}
	return route{PathCopy, whyBeside}
}

// routeRegion decides whether the loop may send the next piece of r itself.
func (s *stream) routeRegion(r *buffer.FileRegion) route {
	if r.Remaining() == 0 {
		return route{PathNone, whyEmpty}
	}
	if cached, err := s.sock.cached(r.Fd(), r.Offset()+r.Sent()); err == nil && !cached {
		return route{PathSendfile, whyCold}
	}
	return route{PathSendfile, whyCached}
}

// route decides how msg would be sent.
func (s *dgram) route(msg any) route {
	if s.at >= dgramClosing {
		return route{PathNone, whyClosed}
	}
	switch m := msg.(type) {
	case *Datagram:
		return route{PathWrite, whyDatagram}
	case *buffer.Buf:
		if m.Mapped() {
			return route{PathMapped, whyMapped}
		}
		return route{PathWrite, whyDatagram}
	case []byte, string:
		return route{PathCopy, whyUnowned} // an empty datagram is one, too
	}
	return route{PathNone, whyUnsupported}
}

// route decides how msg would be sent.
func (s *localChannel) route(msg any) route {
	if s.at >= streamClosing || s.outputShut {
		return route{PathNone, whyClosed}
	}
	switch m := msg.(type) {
	case nil, []byte, string:
		return routeUnowned(msg)
	case *buffer.Buf:
		if m.Len() == 0 {
			return route{PathNone, whyEmpty}
		}
	}
	return route{PathHandOver, whyInProcess}
}

// Explain says how the relay moves what comes next in each direction, from the channel that
// it was started on to the target and back, and why.
//
// Loop only: that of the channels.
func (r *Relay) Explain() (up, down Explanation) {
	switch {
	case r.crossing != nil && !r.crossing.over.Load():
		e := route{PathCopy, whyCrossing}.explain()
		return e, e
	case r.ways[0].src == nil || !r.ways[0].src.relayed:
		e := route{PathNone, whyNotStarted}.explain()
		return e, e
	}
	invariant.OnLoop(r.ways[0].src.Loop())
	return r.ways[0].route().explain(), r.ways[1].route().explain()
}

// route decides how what comes next is moved.
func (w *way) route() route {
	switch {
	case !w.splicing:
		return route{PathCopy, w.why}
	case spliceSize() == 0:
		return route{PathCopy, whyPipesFull}
	}
	return route{PathSplice, w.why}
}

// Explain says how the latest bytes went into the file, and why. It may be called on any
// goroutine.
func (r *FileReceiver) Explain() Explanation {
	v := r.latest.Load()
	if v == 0 {
		return route{PathNone, whyNotStarted}.explain()
	}
	return route{Path(v >> 8), why(v)}.explain()
}

// route decides how what comes next goes into the file.
func (r *FileReceiver) route() (to route) {
	_, ok := r.sock.(splicer)
	switch {
	case !ok || r.copying:
		to = route{PathCopy, whyNoPipes}
	case r.mirrors != nil && r.mirrors.copies:
		to = route{PathCopy, whyMirror}
	case spliceSize() == 0:
		to = route{PathCopy, whyPipesFull}
	default:
		to = route{PathSplice, whyBothPipes}
	}
	r.took(to)
	return to
}

// took has Explain tell of the way that is taken.
func (r *FileReceiver) took(to route) { r.latest.Store(uint32(to.path)<<8 | uint32(to.why)) }
