// Package sockopt has the options of a channel's socket that transport.Config has no
// field for, or that are worth changing and looking at while the channel is open.
//
//	err := sockopt.QuickAck.Set(ch, true)
//	rtt := info.RTT // of info, err := sockopt.ReadTCPInfo(ch)
//
// The one rule to keep: an option that must be there before the socket is bound or
// connected is set in transport.Config.Control, by SetRaw. An option that is not here
// is made by [Int], or set through transport.SyscallConn.
//
// Everything is safe from any goroutine. The errors are *transport.OpError; they wrap
// the kernel's, such as syscall.EPERM for what only root may do, ENOPROTOOPT for an
// option that this kernel or this kind of socket does not have, EINVAL for a value it
// does not take; or what matches pipeline.ErrClosed when the channel has closed, or
// errors.ErrUnsupported for a channel without a socket and everywhere but on Linux.
//
// Netty: EpollChannelOption, UnixChannelOption, EpollTcpInfo, PeerCredentials.
package sockopt
