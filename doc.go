// Package runnel is Netty's model for Go on Linux: event loops drive the pipelines
// of channels over counted buffers off the heap, and bytes travel by writev and
// sendfile instead of being copied through user space.
//
// There is no code here. Start with [github.com/runnel-io/runnel/transport]: its
// Server and Dialer make channels. What a channel does is up to the handlers in its
// [github.com/runnel-io/runnel/pipeline]. The example of this page is a whole server.
//
// The packages, each of which imports only those above it (codec and transport do not
// know each other):
//
//	buffer              bytes, and who owns them: Buf, Pool, FileRegion, mapped files
//	eventloop           loops, tasks, timers, promises, and Offload for what blocks
//	pipeline            the event model: handlers, Context, Pipeline, Channel
//	pipeline/handler    handlers that many pipelines need: ChunkedWrite
//	pipeline/embedded   a channel without I/O on virtual time, to test handlers with
//	transport           channels over TCP, UDP and Unix sockets: Server, Dialer, Config
//	transport/sockopt   the options of a live socket, TCP_INFO, peer credentials
//	codec               bytes to messages and back: Line, LengthField, your own Decoder
//	codec/codectest     Verify: the same messages however the stream is cut
//
// The rule behind all of it: a channel belongs to one loop for life, its handlers run
// there one at a time and must not block, and every message is released exactly once,
// by whoever holds it last.
package runnel
