package transport

import (
	"fmt"
	"syscall"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"go.uber.org/zap"
)

// Config sets how a channel reads, writes and closes. The zero value is ready to
// use. Server and Dialer copy it when they start; later changes have no effect.
type Config struct {
	// HighWater is how many pinned bytes may be queued before the channel is no
	// longer writable. 0 means 64 KiB or twice the receive buffer in use, whichever
	// is more, and 4 MiB at least with ZeroCopy. Negative is an error.
	HighWater int
	// LowWater is below how many it is writable again. 0 means HighWater/2; more
	// than HighWater is an error.
	LowWater int
	// MaxPending is how many pinned bytes may be queued before the channel is closed
	// with ErrSlowPeer. 0 means no limit.
	MaxPending int

	// Budget bounds what many channels have queued together. nil means the one that the
	// process's channels share, of half of what buffer.Default may hold. Local channels
	// are in none: what they have queued is bounded by their own marks only.
	Budget *Budget

	// ManualRead makes the channel read only when asked; by default it reads on its
	// own.
	ManualRead bool
	// ManualFlush makes the channel send only when asked, which is Netty's rule; by
	// default what a turn of the loop has written leaves at its end.
	ManualFlush bool
	// ReadWhileUnwritable makes a channel of a Server go on reading while it is not
	// writable. By default it pauses, so that a peer that sends and does not read
	// cannot fill the memory. A dialed channel never pauses by itself: if both sides
	// of a connection did, two full pipes would wait for each other for ever. A proxy
	// sets it, and couples its two ends by pipeline.Couple.
	ReadWhileUnwritable bool

	// MaxDatagram is the longest datagram that is read, in bytes; a longer one is
	// dropped, and HandleError gets ErrTruncated. 0 means 64 KiB, more than UDP
	// carries; at most 1 MiB. A loop receives into up to 16 slots of this size, rounded
	// up to a power of two, that its channels share. It does not bound what is sent.
	MaxDatagram int
	// Destination has every Datagram that a UDP channel reads say in To which address it
	// was sent to (IP_RECVORIGDSTADDR), which on a socket that is bound to no address of
	// its own, or stands in for others, nothing else tells. It has no effect on a channel
	// that is connected, whose LocalAddr says it.
	Destination bool
	// GRO has the kernel hand over datagrams that one peer has sent to a UDP channel one
	// after the other, all of one length but the last, as one, where it can (UDP_GRO).
	// Handlers get them one by one as ever, in order; they are slices of one buffer, and
	// each keeps all of it alive. A request to read brings all that were handed over
	// together, which may be 64 KiB. MaxDatagram is the bound of each.
	GRO bool

	// HalfClose keeps the channel open when the peer has closed its sending side;
	// handlers get the user event pipeline.InputShutdown. By default the channel
	// closes then, after what was written before has left; an answer that is made later
	// is lost. When both directions have ended the channel closes by itself.
	HalfClose bool
	// CloseTimeout bounds a Close that waits: for how long the peer may take nothing
	// of what was written before. 0 means 10 s; negative is an error.
	CloseTimeout time.Duration

	// Nagle leaves TCP_NODELAY off. By default it is on.
	Nagle bool
	// KeepAlive is for how long a TCP connection is silent before the peer is probed,
	// in whole seconds, rounded up, up to 32,767. 0 leaves the probes off.
	KeepAlive time.Duration
	// KeepAliveInterval is the time between probes that are not answered, likewise. 0
	// means KeepAlive.
	KeepAliveInterval time.Duration
	// KeepAliveCount is how many of them, up to 127, end the connection. 0 leaves the
	// system's default.
	KeepAliveCount int
	// UserTimeout is TCP_USER_TIMEOUT, in milliseconds, rounded up: how long sent data
	// may remain unacknowledged. 0 leaves the system's default.
	UserTimeout time.Duration
	// UnsentLimit is TCP_NOTSENT_LOWAT: above how many bytes that the kernel holds and
	// has not sent yet it takes no more, so that what is written last is not behind a
	// full buffer. 0 leaves the system's default, no limit as a rule.
	UnsentLimit int
	// ZeroCopy has what is written to a TCP channel sent without copying it
	// (MSG_ZEROCOPY), from so many bytes a system call on. 0 is off. It pays from about
	// 32 KiB on and on fast networks, and costs more than a copy below 10 KiB, see
	// docs/zero-copy.md. A channel goes on without it when the kernel refuses it, or
	// reports that it has copied all the same, as it always does on loopback.
	//
	// A write is complete when the kernel has taken it, as ever, and not when the peer has
	// acknowledged it; but its memory is the kernel's until then. It must not be changed
	// (Buf.Exclusive tells), the function of buffer.Wrap is called no earlier, and it
	// counts in the water marks, MaxPending and Budget. So HighWater bounds what is sent in
	// a round trip, and the default is 4 MiB at least.
	//
	// Close waits for what is not acknowledged; after CloseTimeout without progress it
	// resets. Where a channel ends at once, by an error or by Reset, its memory and its
	// descriptor are kept until the kernel is done with them, see [Quarantine].
	ZeroCopy int
	// SendBuffer and RecvBuffer are SO_SNDBUF and SO_RCVBUF in bytes, of which the
	// kernel doubles. 0 leaves the system's automatic sizes.
	SendBuffer, RecvBuffer int
	// FastOpen lets data travel with the handshake of TCP. For a Server it is how many
	// such connections may be on their way; for a Dialer anything but 0 switches it on:
	// the channel may then be active before the peer has answered, nothing is sent before
	// the first write, and a refused connection is an error of that. It saves a round trip from the second
	// connection on, if both systems allow it (net.ipv4.tcp_fastopen). Data may arrive
	// twice: not for requests that must not be repeated.
	FastOpen int
	// DeferAccept has a Server's kernel hold a TCP connection back until its first
	// data have come, for about so long, in whole seconds, up to 32,767. 0 does not.
	DeferAccept time.Duration
	// Control is called for every socket that a Server or a Dialer makes, and not for
	// accepted ones, when its other options are set and before it is bound or connected.
	// An error of it is that of the Listen or the Dial. It has the form of the hooks of
	// net.ListenConfig and net.Dialer: network is "tcp4", "udp6" or "unix" for example; c
	// works only during the call. It may run on a loop and must not block. Package sockopt has the options.
	Control func(network, address string, c syscall.RawConn) error

	// ReadsPerTurn is how many times a channel may read before the others of its loop
	// get their turn, if each read fills its buffer. 0 means 16; a turn ends after 1 MiB all
	// the same.
	ReadsPerTurn int
	// MinRead and MaxRead bound the receive buffer, in bytes: there are three sizes, of
	// 64 KiB, 256 KiB and 1 MiB, and these are rounded up to one. The size follows what
	// the reads of the channel bring, from MinRead on. A loop holds one buffer of each
	// size in use, whatever the number of its channels. 0 means 64 KiB and 1 MiB; more than
	// 1 MiB is an error.
	MinRead, MaxRead int

	// Allocator makes the buffers. nil means buffer.Default, through the loop's cache.
	Allocator buffer.Allocator
	// Logger gets what nobody handles. nil discards.
	Logger *zap.Logger
}

const (
	minHighWater        = 64 << 10
	zeroCopyHighWater   = 4 << 20 // what the system has a send buffer grow to (tcp_wmem in tcp(7))
	defaultCloseTimeout = 10 * time.Second
	defaultMaxDatagram  = 64 << 10
	maxMaxDatagram      = 1 << 20
)

// check returns c with defaults filled in, or says what is wrong with it. A
// HighWater of 0 stays: it follows the receive buffer.
func (c Config) check() (Config, error) {
	if c.HighWater < 0 {
		return c, fmt.Errorf("transport: HighWater %d is negative", c.HighWater)
	}
	if c.LowWater < 0 || c.HighWater != 0 && c.LowWater > c.HighWater || c.HighWater == 0 && c.LowWater > minHighWater {
		return c, fmt.Errorf("transport: LowWater %d is negative or more than HighWater %d", c.LowWater, c.HighWater)
	}
	if c.MaxPending < 0 {
		return c, fmt.Errorf("transport: MaxPending %d is negative", c.MaxPending)
	}
	if c.MaxDatagram < 0 || c.MaxDatagram > maxMaxDatagram {
		return c, fmt.Errorf("transport: MaxDatagram %d is negative or more than %d", c.MaxDatagram, maxMaxDatagram)
	}
	if c.MaxDatagram == 0 {
		c.MaxDatagram = defaultMaxDatagram
	}
	if c.CloseTimeout < 0 {
		return c, fmt.Errorf("transport: CloseTimeout %v is negative", c.CloseTimeout)
	}
	if err := c.checkOptions(); err != nil {
		return c, err
	}
	if c.CloseTimeout == 0 {
		c.CloseTimeout = defaultCloseTimeout
	}
	if c.Budget == nil {
		c.Budget = &sharedBudget
	}
	return c, nil
}

// waterMarks returns the marks for a channel whose receive buffer is recv bytes.
func (c *Config) waterMarks(recv int) (low, high int64) {
	high = int64(c.HighWater)
	if high == 0 {
		high = int64(max(minHighWater, 2*recv))
		if c.ZeroCopy > 0 {
			high = max(high, zeroCopyHighWater)
		}
	}
	low = int64(c.LowWater)
	if low == 0 {
		low = high / 2
	}
	return low, high
}
