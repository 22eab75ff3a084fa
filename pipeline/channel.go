package pipeline

import (
	"context"
	"net"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
)

// Channel is a connection, a listener or another source and sink of messages
// with a pipeline of its own.
//
// Concurrency: every method is safe from any goroutine. On the channel's loop an
// operation runs in place; elsewhere it is posted to the loop, in the order of the
// calling goroutine. Two goroutines, or a goroutine and the loop, have no order
// between them: if a goroutine posts a write and then tells the loop, which writes
// in place, the second may leave first.
//
// Channels are made by transports; an implementation embeds [Base].
type Channel interface {
	// ID is unique in the process, in order of creation.
	ID() uint64
	// Loop is the loop that runs this channel for life.
	Loop() *eventloop.Loop
	// Pipeline is the channel's chain of handlers.
	Pipeline() *Pipeline
	// Parent is the listener that accepted this channel, else nil.
	Parent() Channel
	// LocalAddr and RemoteAddr are nil when unknown or not yet known.
	LocalAddr() net.Addr
	RemoteAddr() net.Addr

	// Open reports that the channel has not closed; Active, that it is also
	// connected or bound. They become false, and Context ends, when the channel gives
	// up its descriptor; if an operation still uses that, Closed completes later.
	Open() bool
	Active() bool
	// Context is cancelled when the channel closes, with CloseReason as its cause.
	Context() context.Context
	// Closed completes, with nil, when the channel has closed: its descriptor is
	// gone, or is kept only by an operation that does not end or by the kernel;
	// HandleInactive is still to come.
	Closed() eventloop.Future
	// CloseReason is nil while the channel is open, then an error that matches
	// ErrClosed and wraps the reason, if there was one: io.EOF when the peer ended, a
	// transport.OpError for an error of the socket, nothing when this side closed it.
	CloseReason() error

	// Alloc makes buffers for this channel; on the loop it takes no lock.
	Alloc() buffer.Allocator

	// Write sends msg through the whole pipeline. It takes msg over, whether or not
	// it succeeds. It leaves at the end of the loop's turn, or at Flush. A failure
	// goes to HandleError, unless it is a consequence of the close. What is written
	// before the channel is active waits until it is, and fails if the connect does.
	Write(msg any)
	// WriteThen is Write; then is called once, on the loop, when msg has left or has
	// failed. Left means that the transport has taken it: a Buf that was retained may
	// be changed in place only when its Exclusive says so. then may be called before
	// WriteThen returns; a panic in it is the handler's.
	WriteThen(msg any, then func(error))
	// Send is Write for goroutines that can wait: it waits until the channel is
	// writable, then until msg has left, and returns nil or why it has not. Who comes
	// first is first; together they pass the high water mark by one message and an eighth
	// of the mark at most. It takes msg over like Write.
	//
	// If ctx ends while Send waits for room, nothing of msg is written. Later, what
	// has been written cannot be taken back: Send returns at once, but msg may still
	// leave. Either way the error is that of ctx. When the channel closes it is one
	// that matches ErrClosed, also when its loop ends and it is still open; messages that
	// still wait for room are dropped, also by Close. On a loop, or in an offloaded function, Send refuses with
	// eventloop.ErrWouldDeadlock: use WriteThen there.
	Send(ctx context.Context, msg any) error
	// Flush sends what was written, now.
	Flush()
	// Read asks for one turn of reading; needed only while AutoRead is off.
	Read()
	// Close lets what was written leave first, then closes. Once the close has passed
	// the CloseHandlers the channel reads nothing.
	Close()
	// CloseThen is Close; then is called once, on the loop, when it has closed.
	CloseThen(then func(error))
	// CloseWrite closes the sending side after what was written has left. The peer
	// sees the end of the stream; reading goes on.
	CloseWrite()
	// Reset closes at once and drops what was written. A TCP peer sees a reset.
	Reset()

	// Begin says that something is under way, the answer to a request for example, which
	// the drain of a server is to let end: it closes the channel when End has been called
	// as often as Begin, or when its time is over. Nothing else waits for it. An Offload,
	// and what waits for an [Offloaded] handler, count without being announced.
	Begin()
	// End takes back one Begin. What the same goroutine has written before leaves. End
	// without Begin panics, on the loop.
	End()

	// AutoRead reports whether the channel reads on its own.
	AutoRead() bool
	// SetAutoRead switches that. After SetAutoRead(false) on the loop no more reads
	// are made, but the message being handled may be followed by others that a
	// decoder has already found in the same buffer.
	SetAutoRead(on bool)

	// Writable is false from the time the queue passes the high water mark until it
	// falls below the low one. Bytes written by other goroutines count at once.
	Writable() bool
	// SetUserWritable says whether, for a reason of the user's, the channel is writable:
	// it is when the water marks and all 31 reasons say so, which are numbered from 1.
	// HandleWritability is told of a change in a later task. A reason is the caller's
	// own: the handlers of a pipeline agree on who uses which. Others panic. Netty:
	// ChannelOutboundBuffer.setUserDefinedWritability.
	SetUserWritable(reason int, writable bool)
	// BytesBeforeUnwritable is how much may be queued before Writable becomes false,
	// in pinned bytes; 0 if it is false. Off the loop it may be out by an eighth of
	// the high water mark.
	BytesBeforeUnwritable() int64
	// BytesBeforeWritable is how much must leave before Writable becomes true; 0 if
	// it is true, or if nothing but reasons of users keeps it from that.
	BytesBeforeWritable() int64

	base() *Base
}

// CloseMode says how a [Core] is to close.
type CloseMode uint8

const (
	// CloseFlushed lets the queue leave first, bounded by the transport's timeout.
	CloseFlushed CloseMode = iota
	// CloseNow drops the queue.
	CloseNow
	// CloseReset drops the queue and tells the peer, where the transport can.
	CloseReset
)

// Core is what a transport implements under a [Base]: the end of every outbound
// operation. Netty: Channel.Unsafe with the doXxx methods of AbstractChannel.
//
// All methods are called on the channel's loop, with messages and promises owned
// by the Core from then on. A Core may call Base's Fire and Mark methods from
// inside them.
type Core interface {
	// DoConnect connects and then completes p, if not nil, and calls
	// [Base.MarkActive], or fails p and closes.
	DoConnect(remote, local net.Addr, p *eventloop.Promise)
	// DoWrite queues msg. It releases msg and fails p when the channel cannot take it.
	DoWrite(msg any, p *eventloop.Promise)
	// DoFlush sends what is queued.
	DoFlush()
	// DoRead asks for one turn of reading.
	DoRead()
	// DoReadStop withdraws such a request: AutoRead went off.
	DoReadStop()
	// DoClose closes; a later call may be more urgent than the first. The
	// Core calls [Base.MarkClosing] when it gives up and [Base.MarkClosed] when the
	// descriptor is gone or is not waited for any longer; then it fails its queue.
	DoClose(mode CloseMode, reason error)
	// DoCloseWrite closes the sending side behind the queue, then completes p.
	DoCloseWrite(p *eventloop.Promise)
	// DoWritability is told of a change just before HandleWritability.
	DoWritability(writable bool)
	// DoEnd is the last call: the pipeline is empty.
	DoEnd()
	// LocalAddr and RemoteAddr may be called from any goroutine.
	LocalAddr() net.Addr
	RemoteAddr() net.Addr
}

// TailCore is a Core that wants what reaches the tail of the pipeline, instead of
// having it logged and released. It owns what it is given.
type TailCore interface {
	Core
	UnhandledRead(msg any)
	UnhandledEvent(ev any)
	UnhandledError(err error)
}
