//go:build !linux

package sys

import "net/netip"

// Option names a socket option whose value is an int.
type Option struct{ Level, Name int }

// The options are described in the file for Linux.
var (
	TCPNoDelay, TCPCork, TCPQuickAck, TCPKeepIdle, TCPKeepInterval, TCPKeepCount,
	TCPUserTimeout, TCPNotSentLowAt, TCPDeferAccept, TCPFastOpen, TCPFastOpenConnect,
	IPTOS, IPFreeBind, IPTransparent, IPBindNoPort, IPOrigDst, IPv6OrigDst, UDPGRO, IPv6TClass, IPv6V6Only,
	SocketKeepAlive, SocketSendBuffer, SocketRecvBuffer, SocketBroadcast, SocketReuseAddr, SocketReusePort,
	SocketPriority, SocketMark, SocketBusyPoll, SocketIncomingCPU, SocketIncomingNAPI Option
)

// TCPInfo is empty where there is no such thing.
type TCPInfo struct{}

// MaxMD5Key is described in the file for Linux, as are the functions below.
const MaxMD5Key = 80

func SetOption(fd int, o Option, value int) error                { return errUnsupported }
func GetOption(fd int, o Option) (int, error)                    { return 0, errUnsupported }
func IsIPv6(fd int) (bool, error)                                { return false, errUnsupported }
func PeerCredentials(fd int) (pid int, uid, gid uint32, _ error) { return 0, 0, 0, errUnsupported }
func GetTCPInfo(fd int) (TCPInfo, error)                         { return TCPInfo{}, errUnsupported }
func SetMD5Key(fd int, peers netip.Prefix, key []byte) error     { return errUnsupported }
