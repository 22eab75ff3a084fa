//go:build linux

package transport

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// While the disk of a relay's mirror is slow, the relay goes on if the mirror does not
// block, and in either case nobody else on the loop notices.
func TestMirror_SlowDisk(t *testing.T) {
	eachRelay(t, func(t *testing.T, network string, mode RelayMode) {
		for _, block := range []bool{false, true} {
			t.Run(fmt.Sprintf("blocks %v", block), func(t *testing.T) {
				file := must(os.Create(filepath.Join(t.TempDir(), "mirror")))
				defer file.Close()
				slow := &slowFile{storage: must(newDiskFile(file)), held: new(atomic.Int32), entered: make(chan struct{}), released: make(chan struct{})}
				r := newMirrorRig(t, network, Config{RecvBuffer: 1 << 16}, mode, Mirror{storage: slow, Block: block})
				out := letters(8 << 20)
				go func() {
					io.WriteString(r.client, out)
					r.client.(closeWriter).CloseWrite()
				}()
				await(t, slow.entered, "the first write")
				// The other way is one of the loop.
				for range 20 {
					if _, err := io.WriteString(r.server, "x"); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(r.client, make([]byte, 1)); err != nil {
						t.Fatal(err)
					}
				}
				if block {
					if s := r.relay.Stats(); s.Up.Copied+s.Up.Spliced == int64(len(out)) {
						t.Error("all has been relayed while the mirror blocked")
					}
					close(slow.released)
				}
				if got, err := io.ReadAll(r.server); err != nil || string(got) != out {
					t.Errorf("server: got %d bytes, %v; want %d", len(got), err, len(out))
				}
				if !block {
					close(slow.released)
				}
				e := await(t, r.ends[0], "the mirror's end")
				got := must(os.ReadFile(file.Name()))
				if errors.Is(e.err, ErrMirrorBehind) == block || int64(len(got)) != e.bytes || block && string(got) != out || !strings.HasPrefix(out, string(got)) {
					t.Errorf("mirror: got %d bytes, told of %d, %v", len(got), e.bytes, e.err)
				}
			})
		}
	})
}
