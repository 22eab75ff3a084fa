package transport

import (
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
)

// lending is a scripted socket that can send without copying. It keeps what it was lent
// and looks at it until the call is confirmed: a device may read it at any time.
type lending struct {
	scriptSocket
	refusal error // of enableZeroCopy
	enabled int
	noRoom  int // so many of the next calls fail with ENOBUFS

	next   uint32 // number of the next call
	calls  []*lentCall
	queue  []sys.Confirmation
	plain  int  // bytes that have been copied
	lent   int  // and not
	outq   int  // bytes that the peer has not acknowledged
	device bool // a device holds what a reset would free
}

type lentCall struct {
	n     uint32
	bytes string
	parts [][]byte // where they were
}

func (k *lending) enableZeroCopy() error { k.enabled++; return k.refusal }
func (k *lending) unacked() int          { return k.outq }

func (k *lending) write(parts []sys.Iovec, slow, more bool) (int, error) {
	n, err := k.scriptSocket.write(parts, slow, more)
	k.plain += n
	return n, err
}

func (k *lending) sendZeroCopy(parts []sys.Iovec, slow, more bool) (int, error) {
	if k.enabled != 1 || k.refusal != nil {
		k.t.Errorf("sent without a copy on a socket that was asked %d times, with %v", k.enabled, k.refusal)
	}
	if k.noRoom > 0 {
		k.noRoom--
		return 0, os.NewSyscallError("sendmsg", syscall.ENOBUFS)
	}
	n, err := k.scriptSocket.write(parts, slow, more)
	if err != nil {
		return 0, err
	}
	c := &lentCall{n: k.next}
	for left, i := n, 0; left > 0; i++ {
		p := partBytes(parts[i])
		p = p[:min(len(p), left)]
		c.parts = append(c.parts, p)
		c.bytes += string(p)
		left -= len(p)
	}
	k.next++
	k.calls = append(k.calls, c)
	k.lent += n
	return n, nil
}

func (k *lending) confirmation() (sys.Confirmation, error) {
	if k.closes > 0 {
		k.t.Error("error queue read after close")
	}
	if len(k.queue) == 0 {
		return sys.Confirmation{}, sys.ErrAgain
	}
	c := k.queue[0]
	k.queue = k.queue[1:]
	return c, nil
}

// look reads what has been lent, as a device would that sends it again.
func (k *lending) look() {
	k.t.Helper()
	for _, c := range k.calls {
		var now string
		for _, p := range c.parts {
			now += string(p)
		}
		if now != c.bytes {
			k.t.Errorf("the memory of call %d has changed before it was confirmed", c.n)
		}
	}
}

// confirm puts the calls from and to, by their place among those not confirmed, into the
// error queue.
func (k *lending) confirm(from, to int) {
	k.t.Helper()
	k.look()
	k.queue = append(k.queue, sys.Confirmation{Calls: true, First: k.calls[from].n, Last: k.calls[to].n})
	k.calls = append(k.calls[:from:from], k.calls[to+1:]...)
}

// confirmAll does so with all that there are.
func (k *lending) confirmAll() {
	k.t.Helper()
	if len(k.calls) > 0 {
		k.confirm(0, len(k.calls)-1)
	}
}

func (k *lending) disconnect() {
	k.scriptSocket.disconnect()
	if !k.device {
		k.confirmAll()
	}
}

func (k *lending) close() {
	if len(k.calls) > 0 {
		k.t.Errorf("closed with %d calls that are not confirmed", len(k.calls))
	}
	k.scriptSocket.close()
}

// byHand keeps the quarantine from being swept by itself.
func byHand(t *testing.T) {
	set := func(manual bool) {
		quarantined.mu.Lock()
		defer quarantined.mu.Unlock()
		quarantined.manual = manual
		quarantined.arm()
	}
	set(true)
	t.Cleanup(func() { set(false) })
}

// lendingRig is a rig whose socket can send without copying.
type lendingRig struct {
	*rig
	z *lending
}

// testThreshold is below what tests write to have it sent without a copy.
const testThreshold = 8 << 10

func newLendingRig(t *testing.T, cfg rigConfig, handlers ...any) *lendingRig {
	t.Helper()
	byHand(t)
	if cfg.ZeroCopy == 0 {
		cfg.ZeroCopy = testThreshold
	}
	r := &lendingRig{rig: newRig(t, cfg, handlers...)}
	r.z = &lending{scriptSocket: scriptSocket{r.k}}
	r.stream.sock = r.z
	r.log = nil
	t.Cleanup(func() {
		r.m.Enter(r.Reset)
		r.m.RunUntilIdle()
		r.z.confirmAll()
		if n := quarantined.sweep(time.Now()); n != 0 {
			t.Errorf("in quarantine at the end: got %d, want 0", n)
		}
	})
	return r
}

// confirmed has the loop hear of what is in the error queue.
func (r *lendingRig) hear() { r.ready(eventloop.EventError) }
