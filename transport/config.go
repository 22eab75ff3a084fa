package transport

import (
	"fmt"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"go.uber.org/zap"
)

// Config sets how a channel reads, writes and closes. The zero value is ready to
// use. Server and Dialer copy it when they start; later changes have no effect.
type Config struct {
	// HighWater is how many pinned bytes may be queued before the channel is no
	// longer writable. 0 means 64 KiB or twice the receive buffer in use, whichever
	// is more. Negative is an error.
	HighWater int
	// LowWater is below how many it is writable again. 0 means HighWater/2; more
	// than HighWater is an error.
	LowWater int
	// MaxPending is how many pinned bytes may be queued before the channel is closed
	// with ErrSlowPeer. 0 means no limit.
	MaxPending int

	// Budget bounds what many channels have queued together. nil means the one that the
	// process's channels share, of half of what buffer.Default may hold.
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
	// KeepAlive is the idle time, and the interval, of TCP keep-alive probes, in
	// whole seconds. 0 leaves them off.
	KeepAlive time.Duration
	// UserTimeout is TCP_USER_TIMEOUT, in milliseconds: how long sent data may
	// remain unacknowledged. 0 leaves the system's default.
	UserTimeout time.Duration
	// SendBuffer and RecvBuffer are SO_SNDBUF and SO_RCVBUF in bytes, of which the
	// kernel doubles. 0 leaves the system's automatic sizes.
	SendBuffer, RecvBuffer int

	// Allocator makes the buffers. nil means buffer.Default, through the loop's cache.
	Allocator buffer.Allocator
	// Logger gets what nobody handles. nil discards.
	Logger *zap.Logger
}

const (
	minHighWater        = 64 << 10
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
	if c.KeepAlive < 0 || c.UserTimeout < 0 || c.SendBuffer < 0 || c.RecvBuffer < 0 {
		return c, fmt.Errorf("transport: negative socket option in %+v", struct {
			KeepAlive, UserTimeout time.Duration
			SendBuffer, RecvBuffer int
		}{c.KeepAlive, c.UserTimeout, c.SendBuffer, c.RecvBuffer})
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
	}
	low = int64(c.LowWater)
	if low == 0 {
		low = high / 2
	}
	return low, high
}
