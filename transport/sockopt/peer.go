package sockopt

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"syscall"

	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// Credentials say which process is at the other end of a Unix socket.
type Credentials struct {
	PID int    // 0 if it is not to be seen from here: another PID namespace
	UID uint32 // effective user
	GID uint32 // effective group
}

// PeerCredentials returns who was at the other end of ch, a channel over a Unix
// socket, when the connection was made, or, for a dialed channel, when the peer began
// to listen: the kernel vouches for it. The process may have ended since, and its
// number may be another's. Other sockets have none: the error matches
// errors.ErrUnsupported. Netty: EpollDomainSocketChannel.peerCredentials.
//
// Any goroutine.
func PeerCredentials(ch pipeline.Channel) (Credentials, error) {
	return read(ch, "SO_PEERCRED", func(fd int) (c Credentials, err error) {
		c.PID, c.UID, c.GID, err = sys.PeerCredentials(fd)
		if err == nil && c == (Credentials{UID: math.MaxUint32, GID: math.MaxUint32}) {
			err = errNoPeer // what the kernel says of a socket that has no peer it knows
		}
		return c, err
	})
}

var errNoPeer = fmt.Errorf("socket has no peer credentials: %w", errors.ErrUnsupported)

// MaxMD5Key is the length that a key of [SetMD5Key] may have, in bytes.
const MaxMD5Key = sys.MaxMD5Key

// SetMD5Key has the TCP segments to all addresses of peers signed with key, and
// theirs dropped that are not signed with it: RFC 2385, for BGP. A listener has a key
// for each network of its peers, and may get new ones at any time; a connection has it before
// it connects, in transport.Config.Control. An empty key takes back that of the same
// prefix. Netty: TCP_MD5SIG.
func SetMD5Key(ch pipeline.Channel, peers netip.Prefix, key []byte) error {
	c, err := transport.SyscallConn(ch)
	if err == nil {
		err = setMD5Key(c, peers, key)
	}
	if err != nil {
		return &transport.OpError{Op: "set TCP_MD5SIG", Addr: ch.RemoteAddr(), Err: err}
	}
	return nil
}

// SetMD5KeyRaw is SetMD5Key for a socket that is not a channel's.
func SetMD5KeyRaw(c syscall.RawConn, peers netip.Prefix, key []byte) error {
	if err := setMD5Key(c, peers, key); err != nil {
		return &transport.OpError{Op: "set TCP_MD5SIG", Err: err}
	}
	return nil
}

func setMD5Key(c syscall.RawConn, peers netip.Prefix, key []byte) (err error) {
	if len(key) > MaxMD5Key || !peers.IsValid() {
		return fmt.Errorf("key of %d bytes for %v: %w", len(key), peers, os.NewSyscallError("setsockopt", syscall.EINVAL))
	}
	if e := c.Control(func(fd uintptr) { err = sys.SetMD5Key(int(fd), peers, key) }); e != nil {
		return e
	}
	return err
}
