// Package eventloop runs I/O, timers and tasks on a fixed set of loops.
//
// A Loop makes one call at a time, on its own goroutine, so state used only from
// loop calls needs no lock. A call that blocks stops every connection on that
// loop: hand such work to [Offload], or to a [Strand] of it what has to run one after
// the other.
//
// Start with [NewGroup], which starts the loops, or with [Acquire], which shares
// one default group in the process. [Loop.Execute] brings a function to a loop,
// [Loop.Schedule] brings it there later, and [Loop.Register] lets the loop drive a
// descriptor through an [IOHandle]. [Manual] is a loop on virtual time that its
// caller drives, for tests. The package knows no channel and no protocol: those are
// in the packages pipeline and transport.
package eventloop
