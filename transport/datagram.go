package transport

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/invariant"
)

// Datagram is a message of a channel that is bound and not connected: its content,
// and the peer that it came from or is to go to. What was read goes back to its
// sender when it is written as it is; to answer, release Content and put another Buf
// into its place. Netty: DatagramPacket, DomainDatagramPacket.
//
// Ownership: it has one reference when it is read or made, as a composite literal,
// and owns the reference in Content. The last Release releases Content and may use
// the Datagram again for another message: it must not be touched any more then.
//
// Concurrency: Retain and Release are safe from any goroutine. Everything else
// needs exclusive use.
type Datagram struct {
	// Content is what the datagram carries; nil is an empty one.
	Content *buffer.Buf
	// Addr is the peer of a UDP channel. IPv4 addresses are such, also at a socket of
	// IPv6; the zone of one that was read is the number of the interface.
	Addr netip.AddrPort
	// Name is the peer of a Unix channel: a path, or @name. It is empty when a
	// datagram was read whose sender is bound to no name, who cannot be answered.
	Name string
	// To is the address that a datagram of UDP was sent to, if it was read and
	// Config.Destination asks for it. It has no part in sending: an answer comes from the
	// address that the system chooses.
	To netip.AddrPort

	more   atomic.Int32 // references besides the first
	pooled bool         // made by a channel
}

// released is the count of a Datagram that nobody may use.
const released = -1 << 30

var datagrams = sync.Pool{New: func() any { return new(Datagram) }}

// newDatagram returns a Datagram with one reference, which takes b over.
func newDatagram(b *buffer.Buf, addr netip.AddrPort, name string, to netip.AddrPort) *Datagram {
	d := datagrams.Get().(*Datagram)
	d.more.Store(0)
	d.Content, d.Addr, d.Name, d.To, d.pooled = b, addr, name, to, true
	return d
}

// Retain adds a reference.
func (d *Datagram) Retain() {
	if d.more.Add(1) <= 0 {
		panic("transport: Datagram retained after its last Release")
	}
}

// Release gives a reference back and reports whether it was the last one.
func (d *Datagram) Release() bool {
	switch n := d.more.Add(-1); {
	case n >= 0:
		return false
	case n < -1:
		panic("transport: Datagram released too often")
	}
	b := d.Content
	d.recycle()
	if b != nil {
		b.Release()
	}
	return true
}

// recycle gives up a Datagram that nobody uses any more. Assertions find a later use
// only in one that is not used again.
func (d *Datagram) recycle() {
	d.Content = nil
	d.more.Store(released)
	if d.pooled && !invariant.Enabled {
		datagrams.Put(d)
	}
}

// take returns Content, whose reference becomes the caller's, and gives a reference
// to d back.
func (d *Datagram) take() *buffer.Buf {
	b := d.Content
	if d.more.Load() == 0 {
		d.more.Store(-1) // as by Release
		d.recycle()
		return b
	}
	if b != nil {
		b.Retain()
	}
	d.Release()
	return b
}

// Pinned returns how many bytes of memory d keeps alive. The water marks are charged
// by it.
func (d *Datagram) Pinned() int {
	if d.Content == nil {
		return 0
	}
	return d.Content.Pinned()
}
