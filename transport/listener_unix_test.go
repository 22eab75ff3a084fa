package transport

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// A Unix socket can be listened on again once its server has been shut down.
func TestUnixSocketIsRemoved(t *testing.T) {
	addr := filepath.Join(t.TempDir(), "socket")
	for range 2 {
		srv := &Server{}
		if _, err := srv.Listen(context.Background(), "unix", addr); err != nil {
			t.Fatal(err)
		}
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(addr); !os.IsNotExist(err) {
			t.Errorf("got %v for the socket after Shutdown, want it gone", err)
		}
	}
}
