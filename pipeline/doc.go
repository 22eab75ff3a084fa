// Package pipeline is the event model of Runnel: a [Channel] has a [Pipeline],
// a chain of handlers through which inbound events travel from the transport to
// the application and outbound operations travel back.
//
// The one rule to keep: every handler method runs on the channel's loop, one at
// a time, so a handler's own state needs no lock, and a handler that blocks stops
// every channel of that loop. Blocking work goes through [Context.Offload]; a handler
// that blocks in everything it does is added as an [Offloaded].
//
// A handler implements one or more of the small interfaces of this package, such
// as [ReadHandler] or [WriteHandler]; which ones is found once, when it is added,
// and an event goes straight to the next handler that wants it. Start with [On],
// which turns a function into a handler of one message type.
//
// An error that a method returns goes to HandleError, of the handler itself if it
// has it, else of the next one that does; the channel stays open unless somebody
// closes it. Outbound it fails the operation. A panic goes the same way, as a
// [*PanicError], and then the channel is closed.
//
// A handler with state belongs to one place in one pipeline: make it in Init, or add
// a [Maker]. Builds with the race detector find out if it is shared, see [Shareable].
//
// Messages are counted: passing one on ([Context.FireRead], [Context.Write])
// hands its reference over, whether or not that succeeds.
package pipeline
