// Command fileregion serves ranges of the files below a directory.
//
//	go run ./examples/fileregion -root /usr/share
//	printf 'dict/words 100 20\n' | nc -N 127.0.0.1 7010
//
// A request is a line, PATH or PATH OFFSET LENGTH, where a LENGTH of -1 means to the
// end and PATH is percent-encoded and relative to the root. The answer is
// "OK: LENGTH\r\n" and the bytes, or "ERR: reason\r\n". Many requests may be sent
// without waiting; the answers come in their order.
//
// By default the bytes go from the file to the socket without entering the process
// (sendfile); -mode shows the other ways. Nothing that may wait for a disk happens
// on an event loop.
package main

import (
	"fmt"

	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/examples/internal/serve"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// maxLine is how long a request may be, without the line end.
const maxLine = 8192

func main() {
	cmd := serve.New("fileregion", "127.0.0.1:7010")
	dir := cmd.Flags.String("root", ".", "`directory` whose files are served")
	mode := cmd.Flags.String("mode", "auto", "how bytes travel: auto, sendfile, mmap or copy; auto means sendfile")
	cmd.Main(func() (*transport.Server, error) {
		load, ok := modes[*mode]
		if !ok {
			return nil, fmt.Errorf("-mode %s is none of auto, sendfile, mmap and copy", *mode)
		}
		files, err := transport.NewFileCache(*dir, transport.FileCacheConfig{Verify: true})
		if err != nil {
			return nil, fmt.Errorf("-root: %w", err)
		}
		return &transport.Server{
			// A client may close its sending side behind its last request.
			Config: transport.Config{HalfClose: true},
			Init: func(ch pipeline.Channel) error {
				return ch.Pipeline().Add(
					codec.Line{Max: maxLine},
					&session{files: files, load: load, log: cmd.Log},
				)
			},
		}, nil
	})
}
