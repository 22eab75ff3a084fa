package sys

import (
	"net/netip"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/runnel-io/runnel/internal/invariant"
)

// Messages is a batch of datagrams that one call receives or sends.
//
// Ownership: the memory that it is lent and the parts that it is given are the
// caller's, and must stay valid until the call has returned.
type Messages struct {
	hdrs  []unix.Mmsghdr
	names []unix.RawSockaddrAny
	rooms []Iovec    // to be received into
	notes []noteRoom // for what the kernel says of those received; nil until asked for
	noted int        // the room for it in the next call: that of notes, or none
	n     int        // to be sent
	bytes uint64     // to be sent
}

// noteRoom is room for the control messages of a datagram. Those that [Messages.Notes]
// reads take 72 bytes; others that the socket was told to send along may come first.
type noteRoom [32]uint64

// NewMessages returns an empty batch that takes up to n messages.
func NewMessages(n int) *Messages {
	return &Messages{
		hdrs:  make([]unix.Mmsghdr, n),
		names: make([]unix.RawSockaddrAny, n),
		rooms: make([]Iovec, n),
	}
}

// Lend has message i received into p.
func (m *Messages) Lend(i int, p []byte) {
	m.rooms[i] = MakeIovec(p)
	h := &m.hdrs[i].Hdr
	h.Name = (*byte)(unsafe.Pointer(&m.names[i]))
	h.Iov = &m.rooms[i]
	h.SetIovlen(1)
}

// WantNotes says whether the next calls of Recvmmsg receive what [Messages.Notes]
// returns. Without it there is no room for control messages, and the kernel drops them,
// with the descriptors that they carry, if a peer has sent any.
func (m *Messages) WantNotes(on bool) {
	if on == (m.noted > 0) {
		return
	}
	if on && m.notes == nil {
		m.notes = make([]noteRoom, len(m.hdrs))
	}
	m.noted = 0
	for i := range m.hdrs {
		h := &m.hdrs[i].Hdr
		if h.Control = nil; on {
			h.Control = (*byte)(unsafe.Pointer(&m.notes[i]))
			m.noted = len(noteRoom{}) * 8
		}
	}
}

// Recvmmsg receives up to n messages into the memory that was lent for the first n
// of m, and returns how many have come. Those behind are as they were. It takes what
// waits and does not wait for more.
//
// An error that follows a message is kept by the kernel for the next call.
func Recvmmsg(fd int, m *Messages, n int) (int, error) {
	var room uint64
	for i := range n {
		m.hdrs[i].Hdr.Namelen = unix.SizeofSockaddrAny
		m.hdrs[i].Hdr.Flags = 0
		m.hdrs[i].Hdr.SetControllen(m.noted)
		room += uint64(m.rooms[i].Len)
	}
	for {
		var got uintptr
		var e unix.Errno
		if base := unsafe.Pointer(unsafe.SliceData(m.hdrs)); room <= MaxRaw {
			got, _, e = unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(base), uintptr(n), 0, 0, 0)
		} else {
			got, _, e = unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(base), uintptr(n), 0, 0, 0)
		}
		switch e {
		case 0:
			for i := range int(got) {
				raceWrote(unsafe.Pointer(m.rooms[i].Base), int(m.hdrs[i].Len))
			}
			raceAcquire()
			return int(got), nil
		case unix.EINTR:
		default:
			return 0, fail("recvmmsg", e)
		}
	}
}

// Take returns where message i was received and how many bytes it has, once: the
// memory is not lent any more.
func (m *Messages) Take(i int) (unsafe.Pointer, int) {
	p, n := unsafe.Pointer(m.rooms[i].Base), int(m.hdrs[i].Len)
	m.rooms[i], m.hdrs[i].Len = Iovec{}, 0
	return p, n
}

// Truncated reports whether message i was longer than the memory lent for it.
func (m *Messages) Truncated(i int) bool { return m.hdrs[i].Hdr.Flags&unix.MSG_TRUNC != 0 }

// From returns the IP address from which message i came, an IPv4 address as such;
// zones are numbers. It is not valid for other kinds of socket.
func (m *Messages) From(i int) netip.AddrPort {
	if m.hdrs[i].Hdr.Namelen == 0 {
		return netip.AddrPort{}
	}
	return addrPort(unsafe.Pointer(&m.names[i]), unix.SizeofSockaddrAny)
}

// addrPort returns the IP address of the kernel's that is at p, in size bytes.
func addrPort(p unsafe.Pointer, size int) netip.AddrPort {
	switch family := *(*uint16)(p); {
	case family == unix.AF_INET && size >= unix.SizeofSockaddrInet4:
		sa := (*unix.RawSockaddrInet4)(p)
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), swap16(sa.Port))
	case family == unix.AF_INET6 && size >= unix.SizeofSockaddrInet6:
		sa := (*unix.RawSockaddrInet6)(p)
		ip := netip.AddrFrom16(sa.Addr).Unmap()
		if sa.Scope_id != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(sa.Scope_id), 10))
		}
		return netip.AddrPortFrom(ip, swap16(sa.Port))
	}
	return netip.AddrPort{}
}

// Notes returns what the kernel says of message i, if the socket was told to have it
// said and there was room for it (WantNotes): to which IP address it was sent (IPOrigDst,
// IPv6OrigDst), and how long the datagrams are of which the message consists, all but
// the last, if there are several (UDPGRO). cut says that there was more than there was
// room for, so that what is missing may be so for want of it.
func (m *Messages) Notes(i int) (to netip.AddrPort, segment int, cut bool) {
	h := &m.hdrs[i].Hdr
	at, left := unsafe.Pointer(&m.notes[i]), int(h.Controllen)
	for left >= unix.SizeofCmsghdr {
		c := (*unix.Cmsghdr)(at)
		head, size := unix.CmsgLen(0), int(c.Len)
		if size < head || size > left {
			break
		}
		data := unsafe.Add(at, head)
		size -= head
		switch {
		case c.Level == unix.IPPROTO_IP && c.Type == unix.IP_ORIGDSTADDR && size >= unix.SizeofSockaddrInet4,
			c.Level == unix.IPPROTO_IPV6 && c.Type == unix.IPV6_ORIGDSTADDR && size >= unix.SizeofSockaddrInet4:
			to = addrPort(data, size)
		case c.Level == unix.IPPROTO_UDP && c.Type == unix.UDP_GRO && size >= 4:
			segment = int(*(*int32)(data))
		}
		next := unix.CmsgSpace(size)
		if next >= left {
			break
		}
		at, left = unsafe.Add(at, next), left-next
	}
	return to, segment, h.Flags&unix.MSG_CTRUNC != 0
}

// FromName returns the name of the Unix socket from which message i came, empty if
// it has none. It returns known if that is the name, which saves making it.
func (m *Messages) FromName(i int, known string) string {
	size := m.hdrs[i].Hdr.Namelen
	if size == 0 || m.names[i].Addr.Family != unix.AF_UNIX {
		return ""
	}
	if name := unixName(&m.names[i], size); string(name) != known {
		return string(name)
	}
	return known
}

// Reset takes out what was to be sent.
func (m *Messages) Reset() {
	for i := range m.n {
		m.hdrs[i].Hdr.Iov = nil
	}
	m.n, m.bytes = 0, 0
}

// Add adds a message of the parts, which may be none, for a socket that is
// connected. There must be room for it.
func (m *Messages) Add(parts []Iovec) { m.add(parts, 0) }

func (m *Messages) add(parts []Iovec, name uint32) {
	h := &m.hdrs[m.n].Hdr
	*h = unix.Msghdr{Iov: unsafe.SliceData(parts)}
	h.SetIovlen(len(parts))
	if name > 0 {
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&m.names[m.n])), name
	}
	for i := range parts {
		m.bytes += uint64(parts[i].Len)
	}
	m.n++
}

// AddTo is Add with the address to send to; v6 says that the socket is one of IPv6,
// which also sends to IPv4 addresses. It fails, and adds nothing, if the socket cannot
// send there.
func (m *Messages) AddTo(parts []Iovec, to netip.AddrPort, v6 bool) error {
	ip, rsa := to.Addr().Unmap(), &m.names[m.n]
	switch {
	case v6:
		zone, err := zoneID(ip.Zone())
		if err != nil {
			return os.NewSyscallError("sendmmsg", err)
		}
		sa := (*unix.RawSockaddrInet6)(unsafe.Pointer(rsa))
		*sa = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: swap16(to.Port()), Addr: ip.As16(), Scope_id: zone}
		m.add(parts, unix.SizeofSockaddrInet6)
	case ip.Is4():
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(rsa))
		*sa = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: swap16(to.Port()), Addr: ip.As4()}
		m.add(parts, unix.SizeofSockaddrInet4)
	default:
		return os.NewSyscallError("sendmmsg", unix.EAFNOSUPPORT)
	}
	return nil
}

// AddToName is Add with the name of the Unix socket to send to: a path, or @name.
func (m *Messages) AddToName(parts []Iovec, name string) error {
	sa := (*unix.RawSockaddrUnix)(unsafe.Pointer(&m.names[m.n]))
	abstract := len(name) > 0 && name[0] == '@'
	size := len(name)
	if !abstract {
		size++ // its end is a zero byte
	}
	if name == "" || size > len(sa.Path) {
		return os.NewSyscallError("sendmmsg", unix.EINVAL)
	}
	*sa = unix.RawSockaddrUnix{Family: unix.AF_UNIX}
	for i := range len(name) {
		c := name[i]
		if c == 0 && !abstract {
			return os.NewSyscallError("sendmmsg", unix.EINVAL) // the kernel would cut the path short
		}
		sa.Path[i] = int8(c)
	}
	if abstract {
		sa.Path[0] = 0
	}
	m.add(parts, uint32(unsafe.Offsetof(sa.Path))+uint32(size))
	return nil
}

// Sendmmsg sends the messages that were added and returns how many have left. slow
// says that touching their memory may wait for a disk. It never raises SIGPIPE.
//
// An error behind the first message is not told: the call returns short, and the
// next one, which begins with the message that failed, meets the error again, unless
// it was one left over from an earlier datagram.
func Sendmmsg(fd int, m *Messages, slow bool) (int, error) {
	raceRelease()
	for {
		var sent uintptr
		var e unix.Errno
		if base := unsafe.Pointer(unsafe.SliceData(m.hdrs)); !slow && m.bytes <= MaxRaw {
			sent, _, e = unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(base), uintptr(m.n), unix.MSG_NOSIGNAL, 0, 0)
		} else {
			sent, _, e = unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(base), uintptr(m.n), unix.MSG_NOSIGNAL, 0, 0)
		}
		switch e {
		case 0:
			if invariant.Race {
				for i := range int(sent) {
					h := &m.hdrs[i].Hdr
					announce(unsafe.Slice(h.Iov, h.Iovlen), int(m.hdrs[i].Len), raceReads)
				}
			}
			return int(sent), nil
		case unix.EINTR:
		default:
			return 0, fail("sendmmsg", e)
		}
	}
}

// DropErrors empties the queue in which the kernel keeps what became of datagrams,
// if a socket was told to keep it: until then the socket reports an error.
func DropErrors(fd int) {
	var msg unix.Msghdr
	for range 64 { // it fills while it is emptied, perhaps
		if _, _, e := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)),
			unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT); e != 0 && e != unix.EINTR {
			return
		}
	}
}
