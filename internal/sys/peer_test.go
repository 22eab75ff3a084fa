package sys

import (
	"net"
	"reflect"
	"testing"
)

func TestPeerAddr(t *testing.T) {
	unix := &net.UnixAddr{Net: "unix", Name: "@a"}
	for _, tt := range []struct {
		name string
		peer Peer
		want net.Addr
	}{
		{"none", Peer{}, nil},
		{"IPv4", Peer{V4: V4{[4]byte{10, 0, 0, 255}, 65535, v4Plain}}, &net.TCPAddr{IP: net.IP{10, 0, 0, 255}, Port: 65535}},
		{"IPv4 on IPv6", Peer{V4: V4{[4]byte{10, 0, 0, 1}, 1, v4Mapped}}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}},
		{"Unix", Peer{Other: unix}, unix},
	} {
		if got := tt.peer.Addr(); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %#v, want %#v", tt.name, got, tt.want)
		}
	}
	if n := reflect.TypeFor[V4]().Size(); n != 8 {
		t.Errorf("size of a V4: got %d, want 8", n)
	}
}
