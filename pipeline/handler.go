package pipeline

import (
	"net"

	"github.com/runnel-io/runnel/eventloop"
)

// A handler is any value that implements at least one of the interfaces below.
// All of their methods run on the channel's loop, or, for a handler that was added as
// an [Offloaded], one at a time on its executor.
//
// Notifications (registered, active, read complete, writability, inactive,
// unregistered) go on to the next handler by themselves when the method returns,
// also after an error or a panic. A handler that must hold one back implements
// the interceptor form and fires it itself. Reads, user events and errors stop
// where they are consumed and go on by FireRead, FireEvent and FireError.
//
// An error that a method of an inbound event returns goes to HandleError, first
// of the same handler, then of those after it. An error that an outbound method
// returns fails the operation's promise; if nobody asked for a completion, it
// goes to HandleError from the head on.

// ReadHandler consumes inbound messages. Netty: channelRead.
//
// HandleRead owns msg: it releases it, keeps it or passes it on, on every way out,
// errors and panics included. A message that is not passed on is best released by a
// defer, and input of unknown length read by the TryRead methods.
type ReadHandler interface {
	HandleRead(c *Context, msg any) error
}

// ReadCompleteHandler is told when the reads of one turn are over. Netty:
// channelReadComplete.
type ReadCompleteHandler interface {
	HandleReadComplete(c *Context) error
}

// RegisteredHandler is told that the channel has joined its loop. Netty:
// channelRegistered.
type RegisteredHandler interface {
	HandleRegistered(c *Context) error
}

// UnregisteredHandler is told, last of all, that the channel has left its loop.
// Netty: channelUnregistered.
type UnregisteredHandler interface {
	HandleUnregistered(c *Context) error
}

// ActiveHandler is told that the channel is connected or bound. Netty:
// channelActive.
type ActiveHandler interface {
	HandleActive(c *Context) error
}

// InactiveHandler is told that an active channel has closed. Netty:
// channelInactive.
type InactiveHandler interface {
	HandleInactive(c *Context) error
}

// WritabilityHandler is told that Channel.Writable has changed; it may have
// changed again by the time of the call, and then another call follows. It may be called from inside the Write that
// passed the mark, so a handler that writes in a loop is entered again. Netty: channelWritabilityChanged.
type WritabilityHandler interface {
	HandleWritability(c *Context) error
}

// EventHandler consumes user events, such as [InputShutdown]. It owns ev like a
// message. Netty: userEventTriggered.
type EventHandler interface {
	HandleEvent(c *Context, ev any) error
}

// ErrorHandler consumes the errors of the handlers before it, its own and the
// transport's. Netty: exceptionCaught. A panic in HandleError is only logged.
type ErrorHandler interface {
	HandleError(c *Context, err error)
}

// AddedHandler is called once when the handler has been added, before any event
// reaches it. An error removes it again, goes to HandleError from the head on, and is
// what Add returns. Netty: handlerAdded.
type AddedHandler interface {
	HandleAdded(c *Context) error
}

// RemovedHandler is called once after the handler has been removed, also at the
// end of the channel, and also when HandleAdded failed. It must release or pass
// on what the handler still owns. Netty: handlerRemoved.
type RemovedHandler interface {
	HandleRemoved(c *Context)
}

// WriteHandler takes part in outbound writes. Netty: write.
//
// HandleWrite owns msg. p is the completion of this write, or nil if nobody asked
// for one; the handler hands it on with [Context.ForwardWrite], with the last of
// several messages if it makes several, or completes it. When HandleWrite returns
// an error, p is failed with it.
type WriteHandler interface {
	HandleWrite(c *Context, msg any, p *eventloop.Promise) error
}

// FlushHandler takes part in flushes; it goes on with [Context.Flush]. Netty:
// flush.
type FlushHandler interface {
	HandleFlush(c *Context) error
}

// ReadRequestHandler takes part in requests for reading, which the channel makes
// by itself after it became active and after each turn's reads while AutoRead is
// on. It goes on with [Context.Read]; not to do so stops the reading. Netty: read.
type ReadRequestHandler interface {
	HandleReadRequest(c *Context) error
}

// ConnectHandler takes part in connecting; it goes on with
// [Context.ForwardConnect]. A channel of datagrams may be connected while it is active;
// remote is nil then to take that back. Netty: connect, disconnect.
type ConnectHandler interface {
	HandleConnect(c *Context, remote, local net.Addr, p *eventloop.Promise) error
}

// CloseHandler takes part in closing; it goes on with [Context.ForwardClose]. It is
// called for each Close, also while it holds an earlier one back; meanwhile the
// channel reads and writes as before.
// Closes that the transport decides on (errors, Reset, the end of a drain) do not
// pass here. Netty: close.
type CloseHandler interface {
	HandleClose(c *Context, p *eventloop.Promise) error
}

// CloseWriteHandler takes part in closing the sending side; it goes on with
// [Context.ForwardCloseWrite]. Netty: DuplexChannel.shutdownOutput, which there
// does not pass through the pipeline.
type CloseWriteHandler interface {
	HandleCloseWrite(c *Context, p *eventloop.Promise) error
}

// RegisteredInterceptor is the form of RegisteredHandler that goes on only by
// [Context.FireRegistered].
type RegisteredInterceptor interface {
	InterceptRegistered(c *Context) error
}

// ActiveInterceptor is the form of ActiveHandler that goes on only by
// [Context.FireActive]: a handler that makes a handshake first holds the event
// back from those after it.
type ActiveInterceptor interface {
	InterceptActive(c *Context) error
}

// ReadCompleteInterceptor is the form of ReadCompleteHandler that goes on only by
// [Context.FireReadComplete].
type ReadCompleteInterceptor interface {
	InterceptReadComplete(c *Context) error
}

// WritabilityInterceptor is the form of WritabilityHandler that goes on only by
// [Context.FireWritability].
type WritabilityInterceptor interface {
	InterceptWritability(c *Context) error
}

// InactiveInterceptor is the form of InactiveHandler that goes on only by
// [Context.FireInactive].
type InactiveInterceptor interface {
	InterceptInactive(c *Context) error
}

// UnregisteredInterceptor is the form of UnregisteredHandler that goes on only by
// [Context.FireUnregistered].
type UnregisteredInterceptor interface {
	InterceptUnregistered(c *Context) error
}

// Maker is a handler's configuration: a plain value of which every pipeline that
// it is added to makes its own handler, so per-channel state is never shared by
// accident. Names and lookups use the Maker's type.
type Maker interface {
	// NewHandler returns a new handler. An error in the configuration is a
	// programmer's and may panic.
	NewHandler() any
}

// Shareable is a handler that may be in several places at once, of one pipeline or of
// many: it has no state, or state that is safe from several loops. The method is never
// called. Builds with assertions, the race detector's among them, panic where a pointer
// to a struct is added that is in use already and is not Shareable; others do not look.
// Netty: Sharable.
type Shareable interface{ Shareable() }

// InputShutdown is the user event of a peer that has closed its sending side
// while half-closure is on: nothing more will be read. Netty:
// ChannelInputShutdownEvent.
type InputShutdown struct{}

// OutputShutdown is the user event of the channel's own sending side closed by
// CloseWrite. Netty: ChannelOutputShutdownEvent.
type OutputShutdown struct{}
