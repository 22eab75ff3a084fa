package transport

import (
	"net"

	"github.com/runnel-io/runnel/internal/sys"
)

// connector is what a channel that connects asks of the kernel to get a connected socket:
// the seam where tests put a scripted one. From there on its socket or dgramSocket is asked,
// and so is a stream's for the outcome of a connect that was waited for. The errors are those
// of internal/sys.
type connector interface {
	// socket makes a socket for addr.
	socket(addr net.Addr) (fd int, err error)
	// prepare sets the options of one that is to connect from local, which may be nil, to addr.
	prepare(c *Config, fd int, addr, local net.Addr) error
	bind(fd int, local net.Addr) error
	// connect connects the socket. sys.ErrInProgress says that the outcome has to be waited
	// for, sys.ErrAgain, of a Unix socket, that there is no room for it now.
	connect(fd int, addr net.Addr) error
	localAddr(fd int, network string) (net.Addr, error)
	remoteAddr(fd int, network string) (net.Addr, error)
	// close closes a socket that has not connected.
	close(fd int)
}

// sysConnector is the kernel as a connector.
type sysConnector struct{}

func (sysConnector) socket(addr net.Addr) (int, error) { return sys.Socket(addr) }

func (sysConnector) prepare(c *Config, fd int, addr, local net.Addr) error {
	return c.prepare(fd, addr, local)
}

func (sysConnector) bind(fd int, local net.Addr) error { return sys.Bind(fd, local) }

func (sysConnector) connect(fd int, addr net.Addr) error { return sys.Connect(fd, addr) }

func (sysConnector) localAddr(fd int, network string) (net.Addr, error) {
	return sys.LocalAddr(fd, network)
}

func (sysConnector) remoteAddr(fd int, network string) (net.Addr, error) {
	return sys.RemoteAddr(fd, network)
}

func (sysConnector) close(fd int) { _ = sys.Close(fd) }
