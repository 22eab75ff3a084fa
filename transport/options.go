package transport

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/runnel-io/runnel/internal/sys"
)

// apply sets the options of a connected or connecting socket.
func (c *Config) apply(fd int, addr net.Addr) error {
	if c.SendBuffer > 0 {
		if err := sys.SetSendBuffer(fd, c.SendBuffer); err != nil {
			return err
		}
	}
	if c.RecvBuffer > 0 {
		if err := sys.SetRecvBuffer(fd, c.RecvBuffer); err != nil {
			return err
		}
	}
	switch addr.(type) {
	case *net.UDPAddr:
		return c.applyDatagrams(fd)
	case *net.TCPAddr:
	default:
		return nil
	}
	if !c.Nagle {
		if err := sys.SetNoDelay(fd, true); err != nil {
			return err
		}
	}
	if c.KeepAlive > 0 {
		interval := c.KeepAliveInterval
		if interval == 0 {
			interval = c.KeepAlive
		}
		if err := sys.SetKeepAlive(fd, true, c.KeepAlive, interval, c.KeepAliveCount); err != nil {
			return err
		}
	}
	if c.UserTimeout > 0 {
		if err := sys.SetUserTimeout(fd, c.UserTimeout); err != nil {
			return err
		}
	}
	if c.UnsentLimit > 0 {
		return sys.SetOption(fd, sys.TCPNotSentLowAt, c.UnsentLimit)
	}
	return nil
}

// applyDatagrams sets the options of a UDP socket that say what comes with a datagram.
func (c *Config) applyDatagrams(fd int) error {
	if c.Destination {
		if err := sys.SetOption(fd, sys.IPOrigDst, 1); err != nil {
			return err // also of IPv6: its socket may speak IPv4
		}
		v6, err := sys.IsIPv6(fd)
		if err == nil && v6 {
			err = sys.SetOption(fd, sys.IPv6OrigDst, 1)
		}
		if err != nil {
			return err
		}
	}
	if c.GRO {
		return sys.SetOption(fd, sys.UDPGRO, 1)
	}
	return nil
}

// prepare sets the options of a socket that is to connect from local, which may be
// nil, to addr.
func (c *Config) prepare(fd int, addr, local net.Addr) error {
	if err := c.apply(fd, addr); err != nil {
		return err
	}
	if _, ok := addr.(*net.TCPAddr); ok {
		if a, ok := local.(*net.TCPAddr); ok && a.Port == 0 {
			// The port is chosen by the connect, so that it has to differ only from those
			// of connections to the same peer. It is no more than a help.
			_ = sys.SetOption(fd, sys.IPBindNoPort, 1)
		}
		if c.FastOpen > 0 {
			if err := sys.SetOption(fd, sys.TCPFastOpenConnect, 1); err != nil {
				return err
			}
		}
	}
	return c.control(fd, addr)
}

// prepareListener sets the options of a socket that is to listen at addr.
func (c *Config) prepareListener(fd int, addr net.Addr) error {
	if c.RecvBuffer > 0 {
		// Inherited by what is accepted: set there it is too late for the window to be
		// scaled for it, tcp(7).
		if err := sys.SetRecvBuffer(fd, c.RecvBuffer); err != nil {
			return err
		}
	}
	if _, ok := addr.(*net.TCPAddr); ok {
		if c.FastOpen > 0 {
			if err := sys.SetOption(fd, sys.TCPFastOpen, c.FastOpen); err != nil {
				return err
			}
		}
		if c.DeferAccept > 0 {
			seconds := int((c.DeferAccept-1)/time.Second) + 1
			if err := sys.SetOption(fd, sys.TCPDeferAccept, seconds); err != nil {
				return err
			}
		}
	}
	return c.control(fd, addr)
}

// control calls the user's hook.
func (c *Config) control(fd int, addr net.Addr) error {
	if c.Control == nil {
		return nil
	}
	network := addr.Network()
	if ip := ipOf(addr); ip.To4() != nil {
		network += "4"
	} else if _, unix := addr.(*net.UnixAddr); !unix {
		network += "6"
	}
	return c.Control(network, addr.String(), rawSocket(fd))
}

const longest = 32767 * time.Second // the kernel's limit for keep-alive times

// checkOptions says what is wrong with the socket options.
func (c *Config) checkOptions() error {
	for _, o := range []struct {
		name  string
		value int64
		max   int64
	}{
		{"KeepAlive", int64(c.KeepAlive), int64(longest)},
		{"KeepAliveInterval", int64(c.KeepAliveInterval), int64(longest)},
		{"KeepAliveCount", int64(c.KeepAliveCount), 127},
		{"UserTimeout", int64(c.UserTimeout), int64(maxInt32 * time.Millisecond)},
		{"UnsentLimit", int64(c.UnsentLimit), maxInt32},
		{"ZeroCopy", int64(c.ZeroCopy), maxInt32},
		{"FastOpen", int64(c.FastOpen), maxInt32},
		{"DeferAccept", int64(c.DeferAccept), int64(longest)},
		{"SendBuffer", int64(c.SendBuffer), maxInt32},
		{"RecvBuffer", int64(c.RecvBuffer), maxInt32},
		{"ReadsPerTurn", int64(c.ReadsPerTurn), maxInt32},
		{"MinRead", int64(c.MinRead), int64(recvSizes[len(recvSizes)-1])},
		{"MaxRead", int64(c.MaxRead), int64(recvSizes[len(recvSizes)-1])},
	} {
		if o.value < 0 || o.value > o.max {
			return fmt.Errorf("transport: %s is %d, want 0 to %d", o.name, o.value, o.max)
		}
	}
	if c.KeepAlive == 0 && (c.KeepAliveInterval != 0 || c.KeepAliveCount != 0) {
		return errors.New("transport: KeepAliveInterval or KeepAliveCount without KeepAlive")
	}
	if c.MaxRead != 0 && c.MinRead > c.MaxRead {
		return fmt.Errorf("transport: MinRead %d is more than MaxRead %d", c.MinRead, c.MaxRead)
	}
	return nil
}

const maxInt32 = 1<<31 - 1
