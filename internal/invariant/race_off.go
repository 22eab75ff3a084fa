//go:build !race

package invariant

// Race reports whether the program is built with the race detector, which sees
// only memory of the Go heap.
const Race = false
