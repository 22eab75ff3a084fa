// Command relay is a TCP proxy that does not look at what it passes on.
//
//	go run ./examples/relay -to 127.0.0.1:7000
//
// Each connection gets one of its own to the target. Small messages are copied; a stream
// goes from socket to socket through a pipe in the kernel and never enters the process. A
// side that does not read holds up the other, and a half-close is passed on. With -mirror
// a copy of what clients send goes to another server or to a file, without being copied
// (tee(2)). On SIGUSR1 it says how many bytes went which way.
package main

import (
	"fmt"
	"net"

	"github.com/runnel-io/runnel/examples/internal/serve"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

var modes = map[string]transport.RelayMode{
	"auto":   transport.RelayAuto,
	"splice": transport.RelaySplice,
	"copy":   transport.RelayCopy,
}

func main() {
	cmd := serve.New("relay", "127.0.0.1:7030")
	to := cmd.Flags.String("to", "127.0.0.1:7000", "`address` of the target")
	mode := cmd.Flags.String("mode", "auto", "`auto` copies small messages and splices streams; splice does so from the first byte; copy never")
	mirror := cmd.Flags.String("mirror", "", "`where` a copy of what clients send goes: the address of a server, host:port, or a file that is appended to")
	policy := cmd.Flags.String("mirror-policy", "drop", "`drop` gives a mirror up that does not keep up; block waits for it")
	cmd.Main(func() (*transport.Server, error) {
		m, ok := modes[*mode]
		if !ok {
			return nil, fmt.Errorf("-mode %s is none of auto, splice and copy", *mode)
		}
		if _, _, err := net.SplitHostPort(*to); err != nil {
			return nil, fmt.Errorf("-to %s: want host:port", *to)
		}
		mirrors, err := newMirrors(*mirror, *policy)
		if err != nil {
			return nil, err
		}
		p := &proxy{to: *to, mode: m, log: cmd.Log, mirror: mirrors}
		serve.OnUSR1(func() { fmt.Println(p.totals.line()) })
		return &transport.Server{Init: func(ch pipeline.Channel) error {
			return ch.Pipeline().Add(p)
		}}, nil
	})
}
