//go:build gc && (amd64 || arm64)

package goid

import "runtime"

// Current returns the identity of the running goroutine: a number that is not 0,
// stays the same while the goroutine lives, and differs from that of every other
// goroutine alive at the same time. It costs little more than a function call.
func Current() uintptr

// useSlow sends Current to the slow way. It is read by the assembly stub and
// written only before init ends.
var useSlow bool

func init() {
	useSlow = !verify(Current)
}

// verify reports whether identity behaves as Current has to, as far as a few
// goroutines can tell: stable over a switch and a grown stack, and different on
// goroutines that are alive together.
func verify(identity func() uintptr) bool {
	const others = 4
	mine := identity()
	ids := make(chan uintptr, others)
	release := make(chan struct{})
	for range others {
		go func() {
			id := identity()
			grow(64)
			runtime.Gosched()
			if identity() != id {
				id = 0
			}
			ids <- id
			<-release // stay alive, so that no descriptor is reused meanwhile
		}()
	}
	seen := map[uintptr]bool{0: true, mine: true}
	ok := mine != 0
	for range others {
		id := <-ids
		ok = ok && !seen[id]
		seen[id] = true
	}
	close(release)
	return ok && identity() == mine
}

// grow makes the stack of the running goroutine move.
//
//go:noinline
func grow(depth int) byte {
	var frame [256]byte
	frame[depth] = byte(depth)
	if depth == 0 {
		return frame[0]
	}
	return grow(depth-1) + frame[depth]
}
