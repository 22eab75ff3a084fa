package transport

import (
	"net"
	"net/netip"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/sys"
)

// dgramSocket is what a datagram channel asks of the kernel: the seam where tests
// put a scripted one. The errors are those of internal/sys.
type dgramSocket interface {
	// receive fills the first n slots of in with a datagram each, of max bytes at
	// most, and returns how many have come. It need not say to whom they were sent, and
	// whether they are many in one, if nobody has asked for it.
	receive(in *dgramSlots, n, max int) (int, error)
	// send sends the first n datagrams of q, at least one, and returns how many have
	// left. An error is one of the first.
	send(q *dgramQueue, n int, out *dgramParts) (int, error)
	// connect has the socket, which is not connected, exchange datagrams with peer only.
	connect(peer net.Addr) error
	// disconnect takes that back. The port stays; an error means that it may be lost.
	disconnect() error
	// addresses returns the local and the remote address, nil where there is none.
	addresses(unix bool) (local, remote net.Addr)
	// socketError takes the pending error, or what else makes the socket report one.
	socketError() error
	close()
}

// dgramSlots is what the datagrams of one call are received into, shared by the
// channels of a loop that want slots of one size. The slots of datagrams that are
// shorter than they may be cost address space only: memory that was never touched
// does not exist.
type dgramSlots struct {
	size  int
	slots []dgramSlot
	batch *sys.Messages
	name  string // of the last peer that had one
}

// dgramSlot is room for a datagram, then the datagram. buf is nil when it has been
// handed on.
type dgramSlot struct {
	buf       *buffer.Buf
	addr      netip.AddrPort
	name      string
	truncated bool

	// Of a socket that has notes only:
	to      netip.AddrPort
	segment int // the length of the datagrams that came as one, all but the last; 0 if it is one
}

const minDgramSlot = 2 << 10

func newDgramSlots(size int) *dgramSlots {
	n := min(max(sys.MaxRaw/size, 1), dgramBatch)
	return &dgramSlots{size: size, slots: make([]dgramSlot, n), batch: sys.NewMessages(n)}
}

// dgramSlotSize returns the size of slots for datagrams of up to max bytes: a power
// of two.
func dgramSlotSize(max int) int {
	size := minDgramSlot
	for size < max {
		size *= 2
	}
	return size
}

// ready makes up to n slots ready to be filled, and returns how many are. An error
// means that there is memory for none.
func (in *dgramSlots) ready(n int, alloc buffer.Allocator) (int, error) {
	n = min(n, len(in.slots))
	for i := range n {
		s := &in.slots[i]
		if s.buf != nil {
			s.buf.Clear()
			continue
		}
		b, err := alloc.TryAlloc(in.size)
		if err != nil {
			if i > 0 {
				err = nil
			}
			return i, err
		}
		s.buf = b
	}
	return n, nil
}

// message makes a message of the datagram in slot i: a copy of the right size, so that
// a short one does not pin a slot, or the slot if it is well filled.
func (in *dgramSlots) message(i int, alloc buffer.Allocator) *buffer.Buf {
	s := &in.slots[i]
	if n := s.buf.Len(); n <= in.size/4 {
		if b, err := alloc.TryAlloc(n); err == nil {
			b.WriteBuf(s.buf)
			return b
		}
	}
	b := s.buf
	s.buf = nil
	return b
}

func (in *dgramSlots) release() {
	for i := range in.slots {
		if b := in.slots[i].buf; b != nil {
			b.Release()
			in.slots[i].buf = nil
		}
	}
}

// dgramParts is what a call that sends datagrams is made of, shared by the channels of
// a loop.
type dgramParts struct {
	iov   []sys.Iovec
	batch *sys.Messages
}

// fdDgramSocket is a datagram socket of the kernel.
type fdDgramSocket struct {
	descriptor
	v6    bool
	notes bool // it says more of a datagram than where it came from
	gro   bool // a datagram may be many
}

func (s *fdDgramSocket) receive(in *dgramSlots, n, max int) (int, error) {
	for i := range n {
		if err := in.slots[i].buf.Lend(in.batch, i, max); err != nil {
			return 0, err
		}
	}
	in.batch.WantNotes(s.notes)
	n, err := sys.Recvmmsg(int(s.fd), in.batch, n)
	for i := range n {
		d := &in.slots[i]
		d.buf.Filled(in.batch, i)
		d.truncated = in.batch.Truncated(i)
		d.addr = in.batch.From(i)
		if d.name = in.batch.FromName(i, in.name); d.name != "" {
			in.name = d.name
		}
		if s.notes {
			var cut bool
			d.to, d.segment, cut = in.batch.Notes(i)
			if s.gro && cut && d.segment == 0 {
				d.truncated = true // perhaps it is many, and where each ends is not known
			}
		}
	}
	return n, err
}

func (s *fdDgramSocket) send(q *dgramQueue, n int, out *dgramParts) (int, error) {
	parts, slow := out.iov[:0], false
	out.batch.Reset()
	defer func() { clear(parts) }()
	for i := range n {
		e := q.entries.at(i)
		if e.buf.Parts() > cap(parts)-len(parts) {
			n = i
			break
		}
		before := len(parts)
		parts = e.buf.AppendIovecs(parts, cap(parts)-before)
		if err := s.address(e, parts[before:], out.batch); err != nil {
			if i == 0 {
				return 0, err
			}
			break // it will be the first of the next call
		}
		slow = slow || e.buf.Mapped()
	}
	return sys.Sendmmsg(int(s.fd), out.batch, slow)
}

// address adds a datagram to the batch.
func (s *fdDgramSocket) address(e *outDatagram, parts []sys.Iovec, batch *sys.Messages) error {
	switch {
	case e.name != "":
		return batch.AddToName(parts, e.name)
	case e.addr.IsValid():
		return batch.AddTo(parts, e.addr, s.v6)
	}
	batch.Add(parts)
	return nil
}

func (s *fdDgramSocket) connect(peer net.Addr) error { return sys.Connect(int(s.fd), peer) }

func (s *fdDgramSocket) disconnect() error {
	fd := int(s.fd)
	before, err := sys.LocalAddr(fd, "udp")
	if err != nil {
		return err
	}
	if err := sys.Unconnect(fd); err != nil {
		return err
	}
	was, ok := before.(*net.UDPAddr)
	if !ok {
		return nil
	}
	after, err := sys.LocalAddr(fd, "udp")
	if err != nil {
		return err
	}
	if now := after.(*net.UDPAddr); now.Port != was.Port {
		// The kernel has taken back the port, which it had chosen itself.
		now.Port = was.Port
		return sys.Bind(fd, now)
	}
	return nil
}

func (s *fdDgramSocket) addresses(unix bool) (local, remote net.Addr) {
	network := "udp"
	if unix {
		network = "unixgram"
	}
	local, _ = sys.LocalAddr(int(s.fd), network)
	remote, _ = sys.RemoteAddr(int(s.fd), network)
	return local, remote
}

func (s *fdDgramSocket) socketError() error {
	err := sys.SocketError(int(s.fd))
	if err == nil {
		sys.DropErrors(int(s.fd))
	}
	return err
}
