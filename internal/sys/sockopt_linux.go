package sys

import (
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Option names a socket option whose value is an int.
type Option struct{ Level, Name int }

// The options, in the words of the manual.
var (
	TCPNoDelay         = Option{unix.IPPROTO_TCP, unix.TCP_NODELAY}
	TCPCork            = Option{unix.IPPROTO_TCP, unix.TCP_CORK}
	TCPQuickAck        = Option{unix.IPPROTO_TCP, unix.TCP_QUICKACK}
	TCPKeepIdle        = Option{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}
	TCPKeepInterval    = Option{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}
	TCPKeepCount       = Option{unix.IPPROTO_TCP, unix.TCP_KEEPCNT}
	TCPUserTimeout     = Option{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}
	TCPNotSentLowAt    = Option{unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT}
	TCPDeferAccept     = Option{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT}
	TCPFastOpen        = Option{unix.IPPROTO_TCP, unix.TCP_FASTOPEN}
	TCPFastOpenConnect = Option{unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT}
	IPTOS              = Option{unix.IPPROTO_IP, unix.IP_TOS}
	IPFreeBind         = Option{unix.IPPROTO_IP, unix.IP_FREEBIND}
	IPTransparent      = Option{unix.IPPROTO_IP, unix.IP_TRANSPARENT}
	IPBindNoPort       = Option{unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT}
	IPOrigDst          = Option{unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR}
	IPv6OrigDst        = Option{unix.IPPROTO_IPV6, unix.IPV6_RECVORIGDSTADDR}
	UDPGRO             = Option{unix.IPPROTO_UDP, unix.UDP_GRO}
	IPv6TClass         = Option{unix.IPPROTO_IPV6, unix.IPV6_TCLASS}
	IPv6V6Only         = Option{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY}
	SocketKeepAlive    = Option{unix.SOL_SOCKET, unix.SO_KEEPALIVE}
	SocketSendBuffer   = Option{unix.SOL_SOCKET, unix.SO_SNDBUF}
	SocketRecvBuffer   = Option{unix.SOL_SOCKET, unix.SO_RCVBUF}
	SocketBroadcast    = Option{unix.SOL_SOCKET, unix.SO_BROADCAST}
	SocketReuseAddr    = Option{unix.SOL_SOCKET, unix.SO_REUSEADDR}
	SocketReusePort    = Option{unix.SOL_SOCKET, unix.SO_REUSEPORT}
	SocketPriority     = Option{unix.SOL_SOCKET, unix.SO_PRIORITY}
	SocketMark         = Option{unix.SOL_SOCKET, unix.SO_MARK}
	SocketBusyPoll     = Option{unix.SOL_SOCKET, unix.SO_BUSY_POLL}
	SocketIncomingCPU  = Option{unix.SOL_SOCKET, unix.SO_INCOMING_CPU}
	SocketIncomingNAPI = Option{unix.SOL_SOCKET, unix.SO_INCOMING_NAPI_ID}
)

// SetOption sets an option. The kernel sees the low 32 bits of value.
func SetOption(fd int, o Option, value int) error { return setsockopt(fd, o.Level, o.Name, value) }

// GetOption returns the value of an option, as a signed number of 32 bits.
func GetOption(fd int, o Option) (int, error) { return getsockopt(fd, o.Level, o.Name) }

// IsIPv6 reports whether fd is a socket of IPv6.
func IsIPv6(fd int) (bool, error) {
	family, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return family == unix.AF_INET6, err
}

// PeerCredentials returns who connected a Unix socket, or listened for it, at that
// time.
func PeerCredentials(fd int) (pid int, uid, gid uint32, err error) {
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, 0, 0, os.NewSyscallError("getsockopt", err)
	}
	return int(c.Pid), c.Uid, c.Gid, nil
}

// TCPInfo is what the kernel knows of a TCP connection. Fields that it does not have
// yet are 0.
type TCPInfo = unix.TCPInfo

// GetTCPInfo asks for it.
func GetTCPInfo(fd int) (TCPInfo, error) {
	var info TCPInfo
	size := uint32(unsafe.Sizeof(info))
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if e != 0 {
		return TCPInfo{}, os.NewSyscallError("getsockopt", e)
	}
	return info, nil
}

// MaxMD5Key is the largest number of bytes of a key for [SetMD5Key].
const MaxMD5Key = 80

// SetMD5Key has a TCP socket sign its segments to the peers of a network, and drop
// theirs that are not signed with key: RFC 2385. An empty key takes that back.
func SetMD5Key(fd int, peers netip.Prefix, key []byte) error {
	v6, err := IsIPv6(fd)
	if err != nil {
		return err
	}
	ip := peers.Addr()
	if len(key) > MaxMD5Key || !peers.IsValid() || ip.Is6() && !v6 {
		return os.NewSyscallError("setsockopt", unix.EINVAL)
	}
	sig := unix.TCPMD5Sig{Keylen: uint16(len(key)), Prefixlen: uint8(peers.Bits()), Flags: unix.TCP_MD5SIG_FLAG_PREFIX}
	copy(sig.Key[:], key)
	if v6 {
		sa := (*unix.RawSockaddrInet6)(unsafe.Pointer(&sig.Addr))
		sa.Family, sa.Addr = unix.AF_INET6, ip.As16() // the length stays one of IPv4
	} else {
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sig.Addr))
		sa.Family, sa.Addr = unix.AF_INET, ip.As4()
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG_EXT, &sig))
}
