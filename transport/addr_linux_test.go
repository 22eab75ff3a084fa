package transport

import (
	"net"
	"testing"

	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// The address of a peer is made when it is asked for, and is the same for all who ask.
func TestPeerAddressIsMadeOnce(t *testing.T) {
	accepted := make(chan *stream, 1)
	l := serve(t, &Server{Init: func(ch pipeline.Channel) error {
		accepted <- ch.(*stream)
		return nil
	}}, "tcp", "127.0.0.1:0")
	c, err := net.Dial("tcp", l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := <-accepted
	if s.remote.p.Load() != nil {
		t.Error("made before anybody has asked")
	}
	got := s.RemoteAddr()
	if got == nil || got.String() != c.LocalAddr().String() {
		t.Errorf("got %v, want %v", got, c.LocalAddr())
	}
	if again := s.RemoteAddr(); again != got {
		t.Errorf("got another one, %v", again)
	}

	var b peerBox
	if a := b.load(); a != nil {
		t.Errorf("of nobody: got %v", a)
	}
	unix := net.Addr(&net.UnixAddr{Net: "unix", Name: "@x"})
	if b.init(sys.Peer{Other: unix}); b.load() != unix {
		t.Errorf("of a Unix peer: got %v, want %v", b.load(), unix)
	}
}
