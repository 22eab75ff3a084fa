package transport

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// layoutSizes are around what is copied together, what one buffer for that takes, what a
// page, a read and a writev take.
var layoutSizes = []int{
	0, 1,
	mergeLimit - 1, mergeLimit, mergeLimit + 1,
	4095, 4096, 4097,
	maxMerge - 1, maxMerge, maxMerge + 1,
	64<<10 - 1, 64 << 10, 64<<10 + 1,
	startGather - 1, startGather, startGather + 1,
	maxGather - 1, maxGather, maxGather + 1,
}

// longLayouts are, besides those of layouts, for messages of any length.
var longLayouts = map[string]func(t *testing.T, p []byte) []any{
	"more parts than a writev takes": func(_ *testing.T, p []byte) []any {
		b := buffer.Compose()
		n := max(1, len(p)/(2*sys.IOVMax+3))
		for q := range chunks(p, n) {
			b.Append(buffer.Wrap(nil, q))
		}
		return []any{b}
	},
	"a composite of composites": func(_ *testing.T, p []byte) []any {
		k := len(p) / 2
		return []any{buffer.Compose(buffer.Compose(pooled(string(p[:k]))), buffer.Compose(), buffer.Compose(buffer.Wrap(nil, p[k:])))}
	},
	"slices of one block": func(_ *testing.T, p []byte) (msgs []any) {
		b := pooled(string(p))
		defer b.Release()
		for b.Len() > 0 {
			msgs = append(msgs, b.ReadSlice(min(b.Len(), 20_000)))
		}
		return append(msgs, b.ReadSlice(0))
	},
	"mapped": func(t *testing.T, p []byte) []any {
		f := tempFile(t, "xyz"+string(p))
		defer f.Close()
		return []any{must(buffer.MapFile(f, 3, len(p)))}
	},
	"many small ones": func(_ *testing.T, p []byte) (msgs []any) {
		for q := range chunks(p, max(700, len(p)/300)) {
			msgs = append(msgs, pooled(string(q)), "")
		}
		return msgs
	},
}

// Buffers of every layout, of sizes around every limit, between files of every size,
// arrive as they are, and each is completed once, in order; also if the socket takes only
// a little at a time.
func TestLayoutsBetweenFiles(t *testing.T) {
	all := maps.Clone(longLayouts)
	for i, f := range layouts {
		all[fmt.Sprint("short layout ", i)] = func(t *testing.T, p []byte) []any { return []any{f(t, p)} }
	}
	dir := t.TempDir()
	rnd := rand.NewChaCha8([32]byte{8})
	content := make([]byte, 4<<20)
	_, _ = rnd.Read(content)
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	eachNetwork(t, func(t *testing.T, network, _ string) {
		for _, sndbuf := range []int{0, 1} { // the system's choice, and its minimum
			for name, layout := range all {
				t.Run(fmt.Sprintf("%s, sndbuf %d", name, sndbuf), func(t *testing.T) {
					most := len(content)
					if sndbuf > 0 {
						most = 10_000 // a few KiB at a time take long
						if network == "unix" {
							most = 70_000
						}
					}
					testLayout(t, network, Config{SendBuffer: sndbuf}, layout, content, path, most)
				})
			}
		}
	})
}

// testLayout sends messages of each size in one layout, with a range of the file behind
// each, as far as they are no longer than most.
func testLayout(t *testing.T, network string, cfg Config, layout func(*testing.T, []byte) []any, all []byte, path string, most int) {
	want := sha256.New()
	length := 0
	asked, told := 0, 0
	ended := make(chan struct{})
	srv := &Server{Config: cfg, Init: with(pipeline.OnInactive(func(*pipeline.Context) error { close(ended); return nil }), pipeline.OnActive(func(c *pipeline.Context) error {
		r := rand.New(rand.NewPCG(1, uint64(most)))
		write := func(msg any) {
			i := asked
			asked++
			c.WriteThen(msg, func(err error) {
				if err != nil || told != i {
					t.Errorf("completion %d came as number %d: %v", i, told, err)
				}
				told++
			})
		}
		for i, n := range layoutSizes {
			if n > most {
				break
			}
			off := r.IntN(len(all) - n)
			p := bytes.Clone(all[off : off+n])
			want.Write(p)
			length += n
			for _, msg := range layout(t, p) {
				write(msg)
			}
			if n = fileSizes[i%len(fileSizes)]; n > most || n == len(all) {
				continue
			}
			off = r.IntN(len(all) - n)
			want.Write(all[off : off+n])
			length += n
			write(buffer.NewFileRegion(must(os.Open(path)), int64(off), int64(n)))
		}
		c.Close()
		return nil
	}))}
	nc := dialNet(t, serve(t, srv, network, anyAddr(t, network)))
	got := sha256.New()
	n, err := io.Copy(got, nc)
	await(t, ended, "the end of the channel")
	if err != nil || n != int64(length) || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Errorf("got %d bytes, %v; want %d, or they differ", n, err, length)
	}
	if told != asked {
		t.Errorf("told of %d messages, want %d", told, asked)
	}
}
