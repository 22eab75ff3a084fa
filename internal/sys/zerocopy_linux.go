package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/runnel-io/runnel/internal/invariant"
)

// EnableZeroCopy lets a socket send without copying (SO_ZEROCOPY), see [SendZeroCopy].
// It fails with EBUSY if that is on already: then somebody else has sent, and the
// numbers of what is sent from now on are not known.
func EnableZeroCopy(fd int) error {
	on, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY)
	switch {
	case err != nil:
		return err
	case on != 0:
		return fail("setsockopt", unix.EBUSY)
	}
	return setsockopt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1)
}

// SendZeroCopy is [Sendmsg] on a socket of [EnableZeroCopy], without copying what it
// takes: until a [Confirmation] names the call, the kernel and the network card may read
// the memory, again and again. Calls that have taken something are numbered from 0, with
// 32 bits; others are not counted. slow says that touching the memory may wait for a
// disk.
//
// It fails with ENOBUFS when too many calls are not confirmed yet (net.core.optmem_max)
// or the user has locked too much memory (RLIMIT_MEMLOCK).
func SendZeroCopy(fd int, parts []Iovec, slow, more bool) (int, error) {
	msg := unix.Msghdr{Iov: unsafe.SliceData(parts)}
	msg.SetIovlen(len(parts))
	flags := uintptr(unix.MSG_ZEROCOPY | unix.MSG_NOSIGNAL)
	if more {
		flags |= unix.MSG_MORE
	}
	raw := !slow && rawSized(parts)
	raceRelease()
	for {
		var n uintptr
		var e unix.Errno
		if raw {
			n, _, e = unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), flags)
		} else {
			n, _, e = unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), flags)
		}
		switch e {
		case 0:
			if invariant.Race {
				announce(parts, int(n), raceReads)
			}
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, fail("sendmsg", e)
		}
	}
}

// extendedErr is struct sock_extended_err of linux/errqueue.h.
type extendedErr struct {
	errno  uint32
	origin uint8
	typ    uint8
	code   uint8
	pad    uint8
	info   uint32
	data   uint32
}

// The control message of an error is followed by the address that it came from, the
// longer one of which is that of IPv6. What else users have asked for comes behind.
const errorSpace = 256

// ReadConfirmation takes the next entry of the socket's error queue. It returns ErrAgain
// when that is empty; the queue is not the socket's error, which stays as it is.
func ReadConfirmation(fd int) (Confirmation, error) {
	var space [errorSpace / 8]uint64 // aligned
	control := unsafe.Slice((*byte)(unsafe.Pointer(&space)), errorSpace)
	var msg unix.Msghdr
	for {
		msg.Control = unsafe.SliceData(control)
		msg.SetControllen(errorSpace)
		_, _, e := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)),
			unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		switch e {
		case 0:
			raceAcquire()
			return confirmationIn(control[:msg.Controllen]), nil
		case unix.EINTR:
		default:
			return Confirmation{}, fail("recvmsg", e)
		}
	}
}

// confirmationIn finds the error among the control messages of an entry. Anything else
// than a confirmation has none.
func confirmationIn(control []byte) Confirmation {
	for len(control) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(control)))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(control) {
			break
		}
		err := h.Level == unix.SOL_IP && h.Type == unix.IP_RECVERR || h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_RECVERR
		if at := unix.CmsgLen(0); err && size >= at+int(unsafe.Sizeof(extendedErr{})) {
			x := (*extendedErr)(unsafe.Pointer(&control[at]))
			if x.origin == unix.SO_EE_ORIGIN_ZEROCOPY && x.errno == 0 {
				return Confirmation{Calls: true, First: x.info, Last: x.data, Copied: x.code&unix.SO_EE_CODE_ZEROCOPY_COPIED != 0}
			}
		}
		control = control[min(unix.CmsgSpace(size-unix.SizeofCmsghdr), len(control)):]
	}
	return Confirmation{}
}

// Disconnect ends a connection and leaves its descriptor open: a peer of TCP is sent a
// reset, and what the kernel holds in either direction is dropped (connect(2) with
// AF_UNSPEC, tcp_disconnect in the kernel's words). Sockets that cannot do that are shut
// in both directions.
func Disconnect(fd int) error {
	if Unconnect(fd) == nil {
		return nil
	}
	return failed("shutdown", unix.Shutdown(fd, unix.SHUT_RDWR))
}

// Unconnect takes a connect back, where the socket can: one of datagrams exchanges them
// with everybody then, and loses its port if the kernel has chosen that.
func Unconnect(fd int) error {
	sa := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	return failed("connect", retry(func() error {
		// Not raw: another thread may be in a call on the socket.
		if _, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4); e != 0 {
			return e
		}
		return nil
	}))
}
