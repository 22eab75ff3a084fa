package transport

import (
	"sync"
	"time"

	"go.uber.org/zap"
)

// What the kernel may still read when a channel has ended cannot go back to its pool:
// what is written there next would be sent to the peer of somebody else. Nor can the
// descriptor be closed: the kernel would go on with what it has, and nobody would ever be
// told when it is done. So both stay together, out of every loop, until the error queue
// has named the last call.
//
// That is a matter of moments once the connection has ended: a reset has the kernel drop
// what it had queued, and only what a device is reading at the time remains. There is no
// time after which memory is freed all the same, because nothing would make that safe.

const (
	// quarantineCheck is how often what is in quarantine is looked at. When something has
	// just come it is more often: most of it goes at once.
	quarantineCheck      = 50 * time.Millisecond
	firstQuarantineCheck = time.Millisecond
)

// QuarantineStats is what closed channels have left in quarantine.
type QuarantineStats struct {
	Sockets int    // with memory that the kernel may still read
	Bytes   int64  // of that memory, as channels are charged for it
	Total   uint64 // sockets that have ever been there
}

// Quarantine returns what the closed channels of the process that used Config.ZeroCopy
// have left: each a descriptor and the memory that the kernel has not confirmed to be done
// with. A channel that ends otherwise than by Close leaves its socket there for as long as
// the kernel sends what it has taken, at most for CloseTimeout without progress; then the
// connection is reset, and only what a network card is reading is waited for. Numbers that
// stay are a sign of a device that does not end what it has begun.
//
// Any goroutine.
func Quarantine() QuarantineStats { return quarantined.stats() }

// quarantined is that of the process.
var quarantined quarantine

// quarantine is the sockets of channels that have ended and whose memory is lent.
type quarantine struct {
	sweeping sync.Mutex // one sweep at a time; what is released may run user code

	mu     sync.Mutex
	list   []*detained
	timer  *time.Timer
	wait   time.Duration // until the next sweep
	manual bool          // tests sweep by themselves
	QuarantineStats
}

// detained is the socket of a channel that has ended.
type detained struct {
	sock    socket
	z       *zeroCopy
	logger  *zap.Logger
	timeout time.Duration // without progress, until it is reset
	unacked int           // bytes at the last progress
	since   time.Time     // of that; zero if it has been reset
}

func (q *quarantine) stats() QuarantineStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.QuarantineStats
}

// add takes d over.
func (q *quarantine) add(d *detained) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.list = append(q.list, d)
	q.Sockets++
	q.Total++
	q.Bytes += d.z.charge
	q.wait = firstQuarantineCheck
	q.arm()
}

// arm has the quarantine looked at later, if there is something in it: the later the
// more there is, so that a crowd costs no more than some calls a millisecond. q.mu is held.
func (q *quarantine) arm() {
	d := q.wait + time.Duration(len(q.list))*100*time.Microsecond
	switch {
	case len(q.list) == 0 || q.manual:
	case q.timer == nil:
		q.timer = time.AfterFunc(d, func() { q.sweep(time.Now()) })
	default:
		q.timer.Reset(d)
	}
}

// sweep lets go what the kernel is done with by now. It returns how many sockets are left.
func (q *quarantine) sweep(now time.Time) int {
	q.sweeping.Lock()
	defer q.sweeping.Unlock()
	q.mu.Lock()
	list := q.list
	q.list = nil
	q.mu.Unlock()
	var rest []*detained
	freed, closed := int64(0), 0
	for _, d := range list {
		held := d.z.charge
		d.look(now)
		d.z.release(d.logger)
		freed += held - d.z.charge
		if d.z.unconfirmed() > 0 {
			rest = append(rest, d)
			continue
		}
		d.sock.close()
		closed++
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.list = append(q.list, rest...)
	q.Sockets -= closed
	q.Bytes -= freed
	q.wait = min(2*q.wait, quarantineCheck)
	q.arm()
	return len(q.list)
}

// look asks the kernel what it is done with, and ends a connection whose peer takes
// nothing any more.
func (d *detained) look(now time.Time) {
	d.z.collect(d.sock)
	if d.since.IsZero() {
		return
	}
	n := d.sock.(zeroCopier).unacked()
	switch {
	case n < d.unacked:
		d.unacked, d.since = n, now
	case now.Sub(d.since) >= d.timeout:
		d.since = time.Time{}
		d.sock.disconnect()
		d.z.collect(d.sock)
	}
}

// release gives back what the kernel is done with, when nobody is left to be told of a
// buffer that cannot be released, or of a panic of its owner's function.
func (z *zeroCopy) release(logger *zap.Logger) {
	defer func() {
		if v := recover(); v != nil {
			logger.Error("lent buffer cannot be released", zap.Any("panic", v))
		}
		if z.unconfirmed() > 0 && z.calls.first().done {
			z.release(logger)
		}
	}()
	for b, _, ok := z.take(); ok; b, _, ok = z.take() {
		b.Release()
	}
}

// giveUpSocket closes the socket of a channel that has ended, and resets the connection if
// that is asked for. If the kernel may still read what it has been lent, the socket goes to
// quarantine.
func (s *stream) giveUpSocket(reset bool) {
	if s.fd.fd < 0 {
		return
	}
	if z := s.zc(); z.unconfirmed() > 0 {
		if s.leaveLent(z, reset) {
			return
		}
		defer z.release(s.Logger()) // user code: when the socket is closed
	}
	if reset {
		s.sock.reset()
	}
	s.sock.close()
}

// leaveLent leaves the socket in quarantine, if the kernel may still read what z holds. A
// close would take the error queue with it; what it would do to the peer is done without.
func (s *stream) leaveLent(z *zeroCopy, reset bool) bool {
	if z.collect(s.sock); z.settled() {
		return false
	}
	if reset {
		s.sock.disconnect()
	} else {
		_ = s.sock.shutdownWrite()
	}
	if z.collect(s.sock); z.settled() {
		return false
	}
	d := &detained{sock: s.sock, z: z, logger: s.Logger(), timeout: s.cfg.CloseTimeout}
	if !reset {
		d.since, d.unacked = time.Now(), s.sock.(zeroCopier).unacked()
	}
	quarantined.add(d)
	return true
}
