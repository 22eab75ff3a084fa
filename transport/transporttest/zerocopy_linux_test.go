package transporttest_test

import (
	"net"
	"testing"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
	"github.com/runnel-io/runnel/transport/transporttest"
)

// A channel that lends its memory to the kernel is one like any other. On loopback it does
// so until the first report of a copy.
func TestZeroCopyConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("the whole suite")
	}
	transporttest.Run(t, transporttest.Transport{
		Lends: true,
		Connect: func(t testing.TB, g *eventloop.Group, accepted, dialed transporttest.End) (a, d pipeline.Channel) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			out, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			in, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			accepted.Config.ZeroCopy, dialed.Config.ZeroCopy = 1, 1
			srv := &transport.Server{Group: g, Init: accepted.Init, Config: accepted.Config}
			if a, err = srv.Adopt(in); !mayClose(err) {
				t.Fatal(err)
			}
			dialer := &transport.Dialer{Group: g, Init: dialed.Init, Config: dialed.Config}
			if d, err = dialer.Adopt(out); !mayClose(err) {
				t.Fatal(err)
			}
			return a, d
		},
	})
}
