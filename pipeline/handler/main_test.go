package handler_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
)

// TestMain also checks that the tests leave no goroutine, descriptor or buffer behind.
func TestMain(m *testing.M) {
	// The import of ants starts two goroutines, for its default pool.
	before := goleak.IgnoreCurrent()
	g, err := eventloop.Acquire() // opens the runtime's own poller
	if err == nil {
		g.Release()
		<-g.Done()
	}
	fds := openFDs()
	code := m.Run()
	if err := goleak.Find(before); err != nil {
		fmt.Println("goroutines left:", err)
		code = 1
	}
	if n := openFDs(); n != fds {
		fmt.Printf("descriptors: got %d at the end, want %d as at the start\n", n, fds)
		code = 1
	}
	if n := buffer.Live(); n != 0 {
		fmt.Printf("live buffers: got %d at the end, want 0\n", n)
		code = 1
	}
	os.Exit(code)
}

// openFDs returns the number of open descriptors, 0 where that cannot be told.
func openFDs() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}
