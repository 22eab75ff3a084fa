package sockopt_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// TestMain also checks that the tests leave nothing behind.
func TestMain(m *testing.M) {
	before := goleak.IgnoreCurrent()
	if g, err := eventloop.Acquire(); err == nil { // opens the runtime's own poller
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

// patience is how long a test waits for what has to come before it fails.
const patience = 30 * time.Second

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

// connection is a connection over loopback with both its ends and its listener.
type connection struct {
	listener, accepted, dialed pipeline.Channel
}

// connect makes one, with cfg at both ends. It ends with the test.
func connect(t *testing.T, network, addr string, cfg transport.Config) connection {
	t.Helper()
	accepted := make(chan pipeline.Channel, 1)
	srv := &transport.Server{Config: cfg, Init: func(ch pipeline.Channel) error {
		select {
		case accepted <- ch: // the first
		default:
		}
		return nil
	}}
	l, err := srv.Listen(context.Background(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	ch, err := (&transport.Dialer{Config: cfg}).Dial(context.Background(), network, l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ch.Close()
		await(t, ch.Closed().Done(), "the end of the channel")
	})
	return connection{l, await(t, accepted, "the accepted channel"), ch}
}
