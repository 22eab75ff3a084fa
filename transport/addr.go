package transport

import (
	"net"
	"os"
	"sync/atomic"
)

// addrBox holds an address that becomes known while others look.
type addrBox struct{ p atomic.Pointer[net.Addr] }

func (b *addrBox) store(a net.Addr) {
	if a != nil {
		b.p.Store(&a)
	}
}

// share makes b hold what o holds now, without a copy.
func (b *addrBox) share(o *addrBox) { b.p.Store(o.p.Load()) }

func (b *addrBox) load() net.Addr {
	if p := b.p.Load(); p != nil {
		return *p
	}
	return nil
}

// unlink removes the file of a Unix socket that was listened on, as the net package
// does: it would keep the next server from the address. Abstract names have none.
func unlink(local net.Addr) {
	if a, ok := local.(*net.UnixAddr); ok && a.Name != "" && a.Name[0] != '@' {
		_ = os.Remove(a.Name)
	}
}
