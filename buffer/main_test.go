package buffer_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/runnel-io/runnel/buffer"
)

// Every test releases what it allocates: after the last one nothing is alive.
func TestMain(m *testing.M) {
	code := m.Run()
	if n := buffer.Live(); n != 0 {
		fmt.Fprintf(os.Stderr, "got %d live buffers after the tests, want 0\n", n)
		code = max(code, 1)
	}
	os.Exit(code)
}

// panicOf runs f and returns the error it panics with, nil if it returns.
func panicOf(f func()) (err error) {
	defer func() {
		if v := recover(); v != nil {
			var ok bool
			if err, ok = v.(error); !ok {
				err = fmt.Errorf("panic with %v, not an error", v)
			}
		}
	}()
	f()
	return nil
}

// wantPanic checks that f panics with an error that matches target.
func wantPanic(t *testing.T, what string, target error, f func()) {
	t.Helper()
	if err := panicOf(f); !errors.Is(err, target) {
		t.Errorf("%s: got panic %v, want %v", what, err, target)
	}
}

// usualLevel runs the test at the default level: at level all memory has pages of its
// own and is not used again.
func usualLevel(t *testing.T) {
	t.Helper()
	old := buffer.SetLeakLevel(buffer.LeakSampled)
	t.Cleanup(func() { buffer.SetLeakLevel(old) })
}
