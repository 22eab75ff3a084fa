package transport

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/runnel-io/runnel/pipeline"
)

// A client of a server that never reads its answers holds up nobody else's.
func TestClientThatReadsNoAnswers(t *testing.T) {
	failed := make(chan error, 1)
	l := serve(t, &Server{Init: with(echoDatagrams(), pipeline.OnError(func(_ *pipeline.Context, err error) {
		select {
		case failed <- err:
		default:
		}
	}))}, "unixgram", unixgramAddr(t).Name)
	client := func() *net.UnixConn {
		at := unixgramAddr(t)
		c, err := net.ListenUnixgram("unixgram", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		return c
	}
	deaf, good := client(), client()
	to := l.LocalAddr().(*net.UnixAddr)
	for range 600 { // more than any kernel's net.unix.max_dgram_qlen by default
		if _, err := deaf.WriteTo([]byte("x"), to); err != nil {
			t.Fatalf("the server does not read: %v", err)
		}
	}
	for i := range 20 {
		want := fmt.Sprint(i)
		if _, err := good.WriteTo([]byte(want), to); err != nil {
			t.Fatal(err)
		}
		var b [16]byte
		if n, err := good.Read(b[:]); err != nil || string(b[:n]) != want {
			t.Fatalf("answer %d: got %q, %v", i, b[:n], err)
		}
	}
	if err := await(t, failed, "the failure of what the deaf one does not take"); !errors.Is(err, ErrSlowPeer) {
		t.Errorf("got %v, want ErrSlowPeer", err)
	}
}
