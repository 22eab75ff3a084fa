//go:build !asan

package invariant

// Asan reports whether the program is built with the address sanitizer, which
// sees only memory of the Go heap.
const Asan = false
