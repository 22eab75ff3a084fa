package transport

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
)

// Many connections on two loops ask for few places among many files, which are replaced
// all the time: each answer is one whole version of its file.
func TestFileCacheStress(t *testing.T) {
	const files, size, rounds, clients = 8, 20_000, 150, 6
	dir := t.TempDir()
	version := func(name string, v int) {
		content := strings.Repeat(string(rune('a'+v%26)), size+v%7)
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+"+", []byte(content), 0o600); err != nil {
			t.Error(err)
		}
		if err := os.Rename(path+"+", path); err != nil {
			t.Error(err)
		}
	}
	for i := range files {
		version(fmt.Sprint(i), i)
	}
	fc := must(NewFileCache(dir, FileCacheConfig{Files: 3, TTL: time.Millisecond}))
	defer fc.Close()
	srv := &Server{Config: Config{HalfClose: true}, Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
			for b.Len() > 0 {
				name := b.ReadString(1)
				fc.Open(c, name, func(f *CachedFile, err error) {
					if err != nil {
						t.Error(err)
						c.Channel().Reset()
						return
					}
					c.Write(fmt.Sprintf("%8d", f.Size()))
					c.Write(f.Region(0, f.Size()))
					f.Release()
				})
			}
			b.Release()
			return nil
		}))
	}}
	l := serve(t, srv, "tcp", "127.0.0.1:0")
	var all sync.WaitGroup
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for v := files; ; v++ {
			select {
			case <-stop:
				return
			default:
				version(fmt.Sprint(v%files), v)
			}
		}
	})
	for i := range clients {
		all.Go(func() {
			c := dialNet(t, l)
			defer c.Close()
			for k := range rounds {
				if _, err := fmt.Fprint(c, (k*7+i)%files); err != nil {
					t.Error(err)
					return
				}
				head := make([]byte, 8)
				if _, err := io.ReadFull(c, head); err != nil {
					t.Error(err)
					return
				}
				var n int
				if _, err := fmt.Sscan(string(head), &n); err != nil || n < size || n > size+7 {
					t.Errorf("got header %q", head)
					return
				}
				body := make([]byte, n)
				if _, err := io.ReadFull(c, body); err != nil {
					t.Error(err)
					return
				}
				if bytes.Count(body, body[:1]) != n {
					t.Error("got a file of two versions")
					return
				}
			}
		})
	}
	all.Wait()
	close(stop)
	writer.Wait()
	if s := fc.Stats(); s.Files > 3 {
		t.Errorf("got %d files open, want 3 at most", s.Files)
	}
}
