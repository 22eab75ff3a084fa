//go:build !race && !invariants

package invariant

// Enabled reports whether assertions are compiled in. It is a constant, so that
// the compiler drops what stands behind it when it is false.
const Enabled = false
