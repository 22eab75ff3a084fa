// Package buffer holds bytes and keeps count of who owns them.
//
// A [Buf] is memory off the Go heap with a read index and a write index, and a
// count of references. The one rule: every reference is released exactly once, by
// whoever holds it last. Passing a Buf on, to the next handler or to a write,
// passes its reference on as well; who wants to keep it too calls [Buf.Retain]
// first.
//
// Memory comes from an [Allocator]: [Default] is a [Pool] with a limit, and each
// loop uses it through a [Cache] of its own without locks; [Heap] takes memory
// from the Go heap. A [FileRegion] is a range of a file that travels through a
// pipeline like a Buf, without its bytes entering the process.
//
// Reads and writes at the indices ([Buf.ReadUint32], [Buf.WriteUint32]) move them
// and panic when bytes are missing; [Buf.TryReadUint32] is for input of unknown
// length. [Buf.Peek] and [Buf.Window] show bytes without owning them,
// [Buf.ReadSlice] and [Buf.Slice] return a Buf that owns a reference to the same
// memory.
//
// There is no mark to be set and reset: [Buf.SetReaderIndex] goes back to an index
// that [Buf.ReaderIndex] returned before, and [Buf.Truncate] to one that
// [Buf.WriterIndex] returned. [Buf.Reserve] leaves room for a length that is known
// later. A Buf is also an io.Reader and io.Writer, and prints its indices, never its
// content unless asked for a dump: [Buf.Format].
// A Buf that is garbage before its last release is reported ([OnLeak]); the pprof
// profile runnel/buffers shows what is alive. RUNNEL_LEAK=all in the environment
// ([LeakAll]) finds for each where it was allocated and which handlers had it, and
// makes the use of released memory fault. A test calls [CheckLeaks].
package buffer
