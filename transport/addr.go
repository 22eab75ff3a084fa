package transport

import (
	"net"
	"sync/atomic"
)

// addrBox holds an address that becomes known while others look.
type addrBox struct{ p atomic.Pointer[net.Addr] }

func (b *addrBox) store(a net.Addr) {
	if a != nil {
		b.p.Store(&a)
	}
}

func (b *addrBox) load() net.Addr {
	if p := b.p.Load(); p != nil {
		return *p
	}
	return nil
}
