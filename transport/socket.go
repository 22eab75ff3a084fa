package transport

import (
	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/sys"
)

// socket is what a stream channel asks of the kernel: the seam where tests put a
// scripted one. The errors are those of internal/sys: sys.ErrAgain when the socket
// is not ready, else wrapped errnos.
type socket interface {
	// read fills b with at most max bytes. 0 bytes without an error is the end.
	read(b *buffer.Buf, max int) (int, error)
	// write sends the parts, at least one. slow says that touching their memory may
	// wait for a disk; more, that a file follows at once.
	write(parts []sys.Iovec, slow, more bool) (int, error)
	// sendfile sends up to n bytes of a file.
	sendfile(file int, off int64, n int) (int, error)
	// cached reports whether the byte of a file at off is in memory.
	cached(file int, off int64) (bool, error)
	// socketError takes the pending error.
	socketError() error
	// unfinished reports whether there are bytes in the kernel, in either direction,
	// that a close would lose.
	unfinished() bool
	// unread returns how many bytes have come and were not read, 0 if that is not known.
	unread() int
	shutdownWrite() error
	// disconnect ends the connection and leaves the descriptor open: the peer is told by a
	// reset, if there is such a thing, and the kernel drops what it holds.
	disconnect()
	// closeSleeps reports whether close may sleep.
	closeSleeps() bool
	// reset makes the close that follows a reset.
	reset()
	close()
}

// fdSocket is a socket of the kernel.
type fdSocket struct{ descriptor }

func (s *fdSocket) read(b *buffer.Buf, max int) (int, error) { return b.FillFrom(int(s.fd), max) }

func (s *fdSocket) write(parts []sys.Iovec, slow, more bool) (int, error) {
	switch {
	case slow:
		return sys.WritevSlow(int(s.fd), parts)
	case more:
		return sys.Sendmsg(int(s.fd), parts, sys.MsgMore)
	}
	return sys.Writev(int(s.fd), parts)
}

func (s *fdSocket) sendfile(file int, off int64, n int) (int, error) {
	return sys.Sendfile(int(s.fd), file, off, n)
}

func (s *fdSocket) cached(file int, off int64) (bool, error) { return sys.Cached(file, off) }

func (s *fdSocket) socketError() error { return sys.SocketError(int(s.fd)) }

func (s *fdSocket) unfinished() bool {
	if s.unread() > 0 {
		return true
	}
	out, err := sys.Unsent(int(s.fd))
	return err == nil && out > 0
}

func (s *fdSocket) unread() int {
	n, err := sys.Unread(int(s.fd))
	if err != nil {
		return 0
	}
	return n
}

func (s *fdSocket) shutdownWrite() error { return sys.ShutdownWrite(int(s.fd)) }

func (s *fdSocket) disconnect() { _ = sys.Disconnect(int(s.fd)) }

func (s *fdSocket) closeSleeps() bool { return sys.CloseSleeps(int(s.fd)) }

// reset relies on SO_LINGER with a time of 0: socket(7).
func (s *fdSocket) reset() { _ = sys.SetLinger(int(s.fd), 0) }
