package transport

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
)

// TestMain also checks that the tests leave nothing behind.
func TestMain(m *testing.M) {
	// The import of ants starts two goroutines, for its default pool.
	before := goleak.IgnoreCurrent()
	g, err := eventloop.Acquire() // opens the runtime's own poller
	if err == nil {
		g.Release()
		<-g.Done()
	}
	fds := openFDs()
	if n, err := strconv.Atoi(os.Getenv("LISTEN_FDS")); err == nil {
		fds -= n // TestSuccessor, in a process of its own, closes them
	}
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
	n := 0
	loopStates.Range(func(any, any) bool { n++; return true })
	if n != 0 {
		fmt.Printf("loop states: got %d at the end, want 0\n", n)
		code = 1
	}
	if n := piped.Load(); n != 0 {
		fmt.Printf("bytes in pipes: got %d at the end, want 0\n", n)
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

// patience is how long a test waits for what has to come before it fails.
const patience = 30 * time.Second

// await waits for c to be closed or to get something.
func await[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("no sign of %s after %v", what, patience)
		panic("unreachable")
	}
}
