package eventloop

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/sys"
)

// TestMain also checks that the tests leave nothing behind.
func TestMain(m *testing.M) {
	// The import of ants starts two goroutines, for its default pool.
	before := goleak.IgnoreCurrent()
	if err := startRuntimePoller(); err != nil && runtime.GOOS == "linux" {
		fmt.Println(err)
		os.Exit(1)
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

// patience is how long a test waits for what has to come before it fails.
const patience = 30 * time.Second

// newTestGroup starts a group that ends with the test.
func newTestGroup(t testing.TB, cfg GroupConfig) *Group {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("loops with a poller need Linux")
	}
	g, err := NewGroup(cfg)
	if err != nil {
		t.Fatalf("NewGroup: %v", err)
	}
	t.Cleanup(func() { shutdown(t, g) })
	return g
}

func shutdown(t testing.TB, g *Group) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := g.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// newTestLoop starts a group of one loop.
func newTestLoop(t testing.TB, logger *zap.Logger) *Loop {
	t.Helper()
	return newTestGroup(t, GroupConfig{Loops: 1, Logger: logger}).Next()
}

// newTestManual returns a Manual that ends with the test.
func newTestManual(t testing.TB) *Manual {
	m := NewManual()
	t.Cleanup(m.Close)
	return m
}

// newTestPool returns a pool. Make it before the loops that use it: it is closed
// after they have ended, which fails while they hold some of it.
func newTestPool(t testing.TB) *buffer.Pool {
	t.Helper()
	pool, err := buffer.NewPool(buffer.PoolConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			t.Errorf("closing the pool: %v", err)
		}
	})
	return pool
}

// newPipe returns a pipe whose ends the test closes.
func newPipe(t testing.TB) (r, w int) {
	t.Helper()
	r, w, err := sys.Pipe()
	if err != nil {
		t.Fatalf("pipe: %v", err)
	}
	return r, w
}

func mustClose(t testing.TB, fd int) {
	t.Helper()
	if err := sys.Close(fd); err != nil {
		t.Errorf("close: %v", err)
	}
}

// onLoop runs f on l and waits for it.
func onLoop(t testing.TB, l *Loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if err := l.Execute(func() { defer close(done); f() }); err != nil {
		t.Fatalf("Execute: %v", err)
	}
	await(t, done, "the loop")
}

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

func newTestLogger() (*zap.Logger, *observer.ObservedLogs) {
	core, logs := observer.New(zap.DebugLevel)
	return zap.New(core), logs
}

// countTask counts its runs.
type countTask struct{ n int }

func (c *countTask) Run() { c.n++ }
