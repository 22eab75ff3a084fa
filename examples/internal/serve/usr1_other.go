//go:build !unix

package serve

// OnUSR1 has f called on each SIGUSR1, where there is that signal.
func OnUSR1(func()) {}
