//go:build unix

package serve

import (
	"os"
	"os/signal"
	"syscall"
)

// OnUSR1 has f called on each SIGUSR1, where there is that signal.
func OnUSR1(f func()) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	go func() {
		for range asked {
			f()
		}
	}()
}
