package transport

import (
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/runnel-io/runnel/internal/sys"
)

// addrBox holds an address that becomes known while others look.
type addrBox struct{ p atomic.Pointer[net.Addr] }

func (b *addrBox) store(a net.Addr) {
	if a != nil {
		b.p.Store(&a)
	}
}

// clear makes b hold none.
func (b *addrBox) clear() { b.p.Store(nil) }

// share makes b hold what o holds now, without a copy.
func (b *addrBox) share(o *addrBox) { b.p.Store(o.p.Load()) }

func (b *addrBox) load() net.Addr {
	if p := b.p.Load(); p != nil {
		return *p
	}
	return nil
}

// peerBox is an addrBox that can be made with the address of an accepted peer in few
// bytes: most are never asked for theirs.
type peerBox struct {
	addrBox
	v4 sys.V4 // fixed before others look
}

// init makes b hold the address of p.
func (b *peerBox) init(p sys.Peer) {
	if b.v4 = p.V4; !b.v4.Valid() {
		b.store(p.Other)
	}
}

// load returns the address, always the same one until another is stored.
func (b *peerBox) load() net.Addr {
	if a := b.addrBox.load(); a != nil || !b.v4.Valid() {
		return a
	}
	a := net.Addr(b.v4.TCPAddr())
	b.p.CompareAndSwap(nil, &a)
	return b.addrBox.load()
}

// isDatagram reports whether a network is one of datagrams.
func isDatagram(network string) bool {
	switch network {
	case "udp", "udp4", "udp6", "unixgram":
		return true
	}
	return false
}

// ipAddr returns an address of a TCP or UDP network.
func ipAddr(network string, ip netip.Addr, port int) net.Addr {
	if isDatagram(network) {
		return &net.UDPAddr{IP: ip.AsSlice(), Port: port, Zone: ip.Zone()}
	}
	return &net.TCPAddr{IP: ip.AsSlice(), Port: port, Zone: ip.Zone()}
}

// ipOf returns the IP of such an address.
func ipOf(a net.Addr) net.IP {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.IP
	case *net.UDPAddr:
		return a.IP
	}
	return nil
}
