//go:build !race

package sys

import "unsafe"

func raceWrote(p unsafe.Pointer, n int) {}
func raceReads(p unsafe.Pointer, n int) {}
func raceAcquire()                      {}
func raceRelease()                      {}
