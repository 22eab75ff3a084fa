package transporttest_test

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
	"github.com/runnel-io/runnel/transport/transporttest"
)

// A connection that was adopted is one like any other.
func TestAdoptedConformance(t *testing.T) {
	transporttest.Run(t, transporttest.Transport{
		NoReset: true,
		Connect: func(t testing.TB, g *eventloop.Group, accepted, dialed transporttest.End) (a, d pipeline.Channel) {
			fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			srv := &transport.Server{Group: g, Init: accepted.Init, Config: accepted.Config}
			if a, err = srv.Adopt(os.NewFile(uintptr(fds[0]), "a")); !mayClose(err) {
				t.Fatal(err)
			}
			dialer := &transport.Dialer{Group: g, Init: dialed.Init, Config: dialed.Config}
			if d, err = dialer.Adopt(os.NewFile(uintptr(fds[1]), "d")); !mayClose(err) {
				t.Fatal(err)
			}
			return a, d
		},
	})
}

// mayClose reports whether err is of a channel that its handlers have closed already.
func mayClose(err error) bool { return err == nil || errors.Is(err, pipeline.ErrClosed) }
