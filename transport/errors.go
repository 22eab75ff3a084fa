package transport

import (
	"errors"
	"net"
	"os"
)

var (
	// ErrServerClosed is returned by Listen and ListenAndServe after Shutdown.
	ErrServerClosed = errors.New("transport: server closed")
	// ErrDrainTimeout is the reason of channels that were still busy when a drain
	// came to its deadline.
	ErrDrainTimeout = errors.New("transport: still busy at the end of the drain")
	// ErrCloseTimeout is the reason of channels whose peer took nothing of what was
	// written before the close for the whole of Config.CloseTimeout.
	ErrCloseTimeout = errors.New("transport: peer took nothing while closing")
	// ErrConnectTimeout is the cause of a connect that took too long. It matches
	// os.ErrDeadlineExceeded.
	ErrConnectTimeout error = connectTimeout{}
	// ErrTruncated is the cause of the error that tells of a datagram longer than
	// Config.MaxDatagram, which was dropped.
	ErrTruncated = errors.New("transport: datagram is too long")
	// ErrSlowPeer is the reason of channels whose queue passed Config.MaxPending, or was
	// the longest when all together passed Config.Budget, and the cause of the error of a
	// datagram whose receiver, at a Unix socket that is not connected, has taken nothing for
	// a second, or has too much waiting.
	ErrSlowPeer = errors.New("transport: peer reads too slowly")
	// ErrFileShrunk fails a file region, or a mapped Buf, whose file ended before it did.
	ErrFileShrunk = errors.New("transport: file is shorter than its region")
	// ErrTooManyRegions fails a file region written to a queue that has 1,024 of
	// them.
	ErrTooManyRegions = errors.New("transport: too many file regions queued")
	// ErrUnsupportedMessage fails a write of a type that the transport cannot send.
	ErrUnsupportedMessage = errors.New("transport: unsupported message type")
	// ErrLoopEnded is the reason of channels that were open when their loop ended.
	ErrLoopEnded = errors.New("transport: loop ended")
)

// OpError is the error of a connect, accept, read, write and the like, or of a socket
// option. That of a "poll" says that the loop cannot wait for the socket, because the system
// has no memory for that, or is out of watches (/proc/sys/fs/epoll/max_user_watches).
type OpError struct {
	Op   string   // "listen", "connect", "accept", "adopt", "read", "write", "close", "poll"; of package sockopt "get " or "set " and the name
	Addr net.Addr // remote end, for listen and accept the local one; nil if unknown
	Err  error    // cause, for errors.Is and errors.As
}

func (e *OpError) Error() string {
	if e.Addr == nil || e.Addr.String() == "" { // the end of a Unix socket that has no name
		return "transport: " + e.Op + ": " + e.Err.Error()
	}
	return "transport: " + e.Op + " " + e.Addr.String() + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }

type connectTimeout struct{}

func (connectTimeout) Error() string   { return "transport: connect timed out" }
func (connectTimeout) Timeout() bool   { return true }
func (connectTimeout) Temporary() bool { return true }
func (connectTimeout) Is(target error) bool {
	return target == os.ErrDeadlineExceeded
}

var errConnected = errors.New("already connected or connecting")
