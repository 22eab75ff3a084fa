// Command record receives to files without copying: a sink for what instruments send.
//
//	go run ./examples/record -dir /var/tmp
//	nc -N 127.0.0.1 7040 <measurements
//
// Each connection becomes one file, conn-N.bin. Its bytes go from the socket to the file
// through a pipe in the kernel and never enter the process. While it is being written the
// file is called conn-N.part; it gets its name when the client has closed its sending
// side, which is then answered by the number of bytes.
package main

import (
	"fmt"
	"os"

	"github.com/runnel-io/runnel/examples/internal/serve"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

func main() {
	cmd := serve.New("record", "127.0.0.1:7040")
	dir := cmd.Flags.String("dir", ".", "`directory` of the files")
	sync := cmd.Flags.String("sync", "none", "`close`: a file is on the disk before the client is told; none: when the system finds time")
	cmd.Main(func() (*transport.Server, error) {
		if *sync != "none" && *sync != "close" {
			return nil, fmt.Errorf("-sync %s is neither none nor close", *sync)
		}
		last, err := lastNumber(*dir)
		if err != nil {
			return nil, err
		}
		r := &recorder{dir: *dir, sync: *sync == "close", log: cmd.Log}
		r.last.Store(last)
		return &transport.Server{
			// A client is answered after it has closed its sending side.
			Config: transport.Config{HalfClose: true},
			Init:   func(ch pipeline.Channel) error { return ch.Pipeline().Add(r) },
		}, nil
	})
}

// lastNumber returns the highest N of the files conn-N that are in dir.
func lastNumber(dir string) (last int64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		var n int64
		var kind string
		if _, err := fmt.Sscanf(e.Name(), "conn-%d.%s", &n, &kind); err == nil && (kind == "part" || kind == "bin") {
			last = max(last, n)
		}
	}
	return last, nil
}
