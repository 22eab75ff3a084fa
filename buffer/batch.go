package buffer

import (
	"unsafe"

	"github.com/runnel-io/runnel/internal/sys"
)

// Lend has message i of a batch received into the room up to Cap, at most max bytes;
// it does not make more room. It returns an error that wraps ErrTooLarge if there is
// none. It is for transports. b must not be used until Filled.
func (b *Buf) Lend(m *sys.Messages, i, max int) error {
	b.alive("Lend")
	room := min(max, b.l-b.q)
	if room <= 0 {
		return &Error{"Lend", 1, room, ErrTooLarge}
	}
	m.Lend(i, bytesAt(b.wp, b.q, room))
	return nil
}

// Filled appends message i, which was received into the room lent for it, and returns
// how many bytes it has, which may be none. It panics if the room was not b's.
func (b *Buf) Filled(m *sys.Messages, i int) int {
	b.alive("Filled")
	p, n := m.Take(i)
	if p != unsafe.Add(b.wp, b.q) || n > b.l-b.q {
		panic(&Error{"Filled", n, 0, ErrShort})
	}
	b.q += n
	return n
}
