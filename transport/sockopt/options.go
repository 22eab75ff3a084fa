package sockopt

import (
	"time"

	"github.com/runnel-io/runnel/internal/sys"
)

// Options of TCP. Times are rounded up to the unit named.
var (
	// NoDelay has small segments leave at once. transport.Config.Nagle says how a
	// channel begins. Netty: TCP_NODELAY.
	NoDelay = boolOption("TCP_NODELAY", sys.TCPNoDelay)
	// Cork holds back what does not fill a segment, for 200 ms at most, until it is
	// switched off. Netty: TCP_CORK.
	Cork = boolOption("TCP_CORK", sys.TCPCork)
	// QuickAck has what comes acknowledged at once. The kernel goes back to its own
	// judgement when it likes: tcp(7). Netty: TCP_QUICKACK.
	QuickAck = boolOption("TCP_QUICKACK", sys.TCPQuickAck)
	// KeepAliveIdle is for how long the connection is silent before the first probe, in
	// seconds from 1 to 32,767; KeepAlive switches the probes on. Netty: TCP_KEEPIDLE.
	KeepAliveIdle = timeOption("TCP_KEEPIDLE", sys.TCPKeepIdle, time.Second)
	// KeepAliveInterval is the time between probes that are not answered, in seconds
	// from 1 to 32,767. Netty: TCP_KEEPINTVL.
	KeepAliveInterval = timeOption("TCP_KEEPINTVL", sys.TCPKeepInterval, time.Second)
	// KeepAliveCount is how many of them end the connection: 1 to 127. Netty:
	// TCP_KEEPCNT.
	KeepAliveCount = intOption("TCP_KEEPCNT", sys.TCPKeepCount)
	// UserTimeout is for how long sent data may be unacknowledged before the
	// connection ends, in milliseconds; 0 is the kernel's way. Netty: TCP_USER_TIMEOUT.
	UserTimeout = timeOption("TCP_USER_TIMEOUT", sys.TCPUserTimeout, time.Millisecond)
	// UnsentLimit is above how many bytes that it holds and has not sent the kernel
	// takes no more; 0 is the system's default. Netty: TCP_NOTSENT_LOWAT.
	UnsentLimit = intOption("TCP_NOTSENT_LOWAT", sys.TCPNotSentLowAt)
	// DeferAccept, of a listener, holds a connection back until it has data, for about
	// so long; the kernel makes a number of retransmissions of the seconds. 0 is off.
	// Netty: TCP_DEFER_ACCEPT.
	DeferAccept = timeOption("TCP_DEFER_ACCEPT", sys.TCPDeferAccept, time.Second)
	// FastOpen, of a listener, is how many connections with data in their handshake may
	// be on their way. Netty: TCP_FASTOPEN.
	FastOpen = intOption("TCP_FASTOPEN", sys.TCPFastOpen)
	// FastOpenConnect, before the connect, sends the first data with the handshake; see
	// transport.Config.FastOpen. Netty: TCP_FASTOPEN_CONNECT.
	FastOpenConnect = boolOption("TCP_FASTOPEN_CONNECT", sys.TCPFastOpenConnect)
)

// Options of IP.
var (
	// TypeOfService is the byte of the IP header that says how a packet is to be
	// treated, 0 to 255, of which TCP keeps the lower two bits for itself. It works on
	// IPv4 and IPv6. Netty: IP_TOS.
	TypeOfService = Option[int]{name: "IP_TOS", get: getTypeOfService, set: setTypeOfService}
	// FreeBind, before the bind, allows an address that this machine does not have yet.
	// Netty: IP_FREEBIND.
	FreeBind = boolOption("IP_FREEBIND", sys.IPFreeBind)
	// Transparent, before the bind, allows an address that is not this machine's at all,
	// for a proxy that is not to be seen. It needs CAP_NET_ADMIN. Netty: IP_TRANSPARENT.
	Transparent = boolOption("IP_TRANSPARENT", sys.IPTransparent)
	// BindNoPort, before the bind, leaves the choice of the port to the connect. A
	// transport.Dialer does so by itself when its LocalAddr has no port. Netty:
	// IP_BIND_ADDRESS_NO_PORT.
	BindNoPort = boolOption("IP_BIND_ADDRESS_NO_PORT", sys.IPBindNoPort)
	// V6Only, before the bind, keeps IPv4 out of an IPv6 socket. A transport.Server sets
	// it as its network asks for: "tcp6" and "tcp".
	V6Only = boolOption("IPV6_V6ONLY", sys.IPv6V6Only)
)

// Options of every socket.
var (
	// KeepAlive switches the probes of a silent TCP connection. Netty: SO_KEEPALIVE.
	KeepAlive = boolOption("SO_KEEPALIVE", sys.SocketKeepAlive)
	// SendBuffer is the size of the kernel's buffer in bytes. The kernel doubles what is
	// set, up to twice net.core.wmem_max, and Get returns that. Netty: SO_SNDBUF.
	SendBuffer = intOption("SO_SNDBUF", sys.SocketSendBuffer)
	// RecvBuffer likewise, up to twice net.core.rmem_max. Netty: SO_RCVBUF.
	RecvBuffer = intOption("SO_RCVBUF", sys.SocketRecvBuffer)
	// Broadcast lets datagrams go to a network's broadcast address. Netty: SO_BROADCAST.
	Broadcast = boolOption("SO_BROADCAST", sys.SocketBroadcast)
	// ReuseAddr, before the bind, allows an address of which old connections are in
	// their last wait. A transport.Server sets it. Netty: SO_REUSEADDR.
	ReuseAddr = boolOption("SO_REUSEADDR", sys.SocketReuseAddr)
	// ReusePort, before the bind, lets several sockets share an address; see
	// transport.Server.ReusePort. Netty: SO_REUSEPORT.
	ReusePort = boolOption("SO_REUSEPORT", sys.SocketReusePort)
	// Priority is the queue of what is sent, 0 to 6; above it needs CAP_NET_ADMIN.
	Priority = intOption("SO_PRIORITY", sys.SocketPriority)
	// Mark is the number that routing and packet filters see. To set it needs
	// CAP_NET_ADMIN or CAP_NET_RAW.
	Mark = Option[uint32]{name: "SO_MARK", get: getMark, set: setMark}
	// BusyPoll is for how long the kernel polls the device when a read finds nothing, in
	// microseconds. On some kernels to raise it needs CAP_NET_ADMIN. Netty: SO_BUSY_POLL.
	BusyPoll = timeOption("SO_BUSY_POLL", sys.SocketBusyPoll, time.Microsecond)
	// IncomingCPU is the processor on which the kernel has handled the socket's latest
	// packet. Set on listeners that share an address, it says whose connections one
	// is to get.
	IncomingCPU = intOption("SO_INCOMING_CPU", sys.SocketIncomingCPU)
	// IncomingNAPI is the device queue of the latest packet, 0 if unknown, as on
	// loopback. It cannot be set.
	IncomingNAPI = intOption("SO_INCOMING_NAPI_ID", sys.SocketIncomingNAPI)
)

func getTypeOfService(fd int) (int, error) {
	v6, err := sys.IsIPv6(fd)
	if err != nil {
		return 0, err
	}
	if v6 {
		return sys.GetOption(fd, sys.IPv6TClass)
	}
	return sys.GetOption(fd, sys.IPTOS)
}

func setTypeOfService(fd, v int) error {
	if v < 0 || v > 255 {
		return outOfRange(v)
	}
	v6, err := sys.IsIPv6(fd)
	if err != nil {
		return err
	}
	if v6 {
		if err := sys.SetOption(fd, sys.IPv6TClass, v); err != nil {
			return err
		}
	}
	return sys.SetOption(fd, sys.IPTOS, v) // also of IPv6: its socket may speak IPv4
}

func getMark(fd int) (uint32, error) {
	v, err := sys.GetOption(fd, sys.SocketMark)
	return uint32(v), err
}

func setMark(fd int, v uint32) error { return sys.SetOption(fd, sys.SocketMark, int(int32(v))) }
