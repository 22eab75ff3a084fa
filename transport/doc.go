// Package transport has the channels that move bytes: TCP, UDP and Unix sockets, on
// Linux, driven by the loops of package eventloop.
//
// Start with [Server] to accept connections and [Dialer] to make them; both are
// structs whose zero value works, like http.Server and net.Dialer. What a
// connection does is up to the handlers that Init adds to its pipeline. What exists
// already, a net.Conn or a pipe for example, becomes a channel by their Adopt methods.
//
// The one rule to keep: Init and every handler run on the connection's loop and
// must not block. Writes leave at the end of the loop's turn; nothing needs to be
// flushed by hand.
//
// Messages at the head of the pipeline are *buffer.Buf, *buffer.FileRegion, []byte
// and string; an outbound handler turns other types into one of them. Inbound
// messages are *buffer.Buf.
//
// Datagrams keep their bounds: a message is one datagram. On a channel that is bound,
// by Server.Listen, it is a [*Datagram], which has the address of its peer; on one that
// is connected, by Dialer.Dial or by [Connect], it is as above, without file regions.
//
// The network "local" stays in the process: a Server and a Dialer meet by a name, or
// [LocalPair] makes both ends. Messages of any type are handed to the other end as they
// are, and are its own from then on, also on another loop: file regions and structs
// too. Only []byte and string become a *buffer.Buf, and a Buf that somebody else holds
// as well becomes another one over the same memory; empty ones are dropped. So what
// works over a socket works here. What the other end has not read counts as sent up to
// 64 KiB, then the queue grows and the water marks count. It works on every system;
// sockets return errors.ErrUnsupported off Linux.
//
// Netty: epoll transport, LocalChannel, ServerBootstrap, Bootstrap.
package transport
