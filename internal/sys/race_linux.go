//go:build race

package sys

import (
	"runtime"
	"unsafe"
)

// ioSync orders, for the race detector, what happened before a write with what
// happens after a read, as the standard library does for its own system calls.
var ioSync int64

// raceWrote announces that the kernel has filled n bytes at p.
func raceWrote(p unsafe.Pointer, n int) {
	if n > 0 {
		runtime.RaceWriteRange(p, n)
	}
}

// raceReads announces that the kernel has read, or is about to read, n bytes at p.
func raceReads(p unsafe.Pointer, n int) {
	if n > 0 {
		runtime.RaceReadRange(p, n)
	}
}

func raceAcquire() { runtime.RaceAcquire(unsafe.Pointer(&ioSync)) }
func raceRelease() { runtime.RaceReleaseMerge(unsafe.Pointer(&ioSync)) }
