package eventloop

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"syscall"

	"go.uber.org/zap"

	"github.com/runnel-io/runnel/internal/invariant"
)

// Event is a set of things that can be ready on a descriptor.
type Event uint32

// The events of a descriptor. EventHangup and EventError cannot be asked for or
// masked: a registration that is known to the poller gets them. The values are the
// kernel's, so that an event needs no translation on its way in.
const (
	EventRead       Event = 0x0001 // there is something to read, or the end of it
	EventWrite      Event = 0x0004 // there is room to write, or a connect has ended
	EventError      Event = 0x0008 // the descriptor has an error to report
	EventHangup     Event = 0x0010 // both directions are shut
	EventReadHangup Event = 0x2000 // the peer has shut its writing side
)

// unmaskable are the events that the kernel reports unasked, askable the others.
const (
	unmaskable = EventError | EventHangup
	askable    = EventRead | EventWrite | EventReadHangup
)

// String lists the events of the set, for logs.
func (ev Event) String() string {
	if ev == 0 {
		return "none"
	}
	var names []string
	for _, e := range [...]struct {
		ev   Event
		name string
	}{
		{EventRead, "read"},
		{EventWrite, "write"},
		{EventReadHangup, "readhangup"},
		{EventHangup, "hangup"},
		{EventError, "error"},
	} {
		if ev&e.ev != 0 {
			names = append(names, e.name)
			ev &^= e.ev
		}
	}
	if ev != 0 {
		names = append(names, fmt.Sprintf("%#x", uint32(ev)))
	}
	return strings.Join(names, "|")
}

// IOHandle is what a loop drives: the owner of a descriptor. All methods are called
// on the loop. A panic in one is logged and counted, and the loop goes on; a handle
// that has a better place for it recovers by itself.
//
// After a panic in HandleIO, or a runtime.Goexit, what was ready still is, and would be
// reported in every turn: CloseIO is called, and the registration closed. A [Manual] passes
// the panic on and leaves that to its caller.
type IOHandle interface {
	// HandleIO is called at most once a turn with everything that is ready and was
	// asked for. Handle EventWrite and EventError before EventRead: the end of a
	// connect has to be settled before something can be read; EventReadHangup comes
	// last. What stays ready is reported again in the next turn.
	HandleIO(ev Event)

	// HandleOp is called when op, which was submitted to the registration, has
	// ended, also after Close. The op may be used again from here on.
	HandleOp(op *Op)

	// CloseIO is called when the loop is ending, and after a panic in HandleIO: close
	// now, without draining. A handle that does not close its registration is taken out
	// of the poller all the same.
	CloseIO()
}

// Registration ties a descriptor to a loop and a handle.
//
// The descriptor is the handle's; the registration only decides when it may be
// closed: not before every [Op] that uses it has ended, because the kernel gives
// its number to the next one that is opened.
//
// Concurrency: for the loop only.
type Registration struct {
	loop    *Loop
	h       IOHandle
	closefd func() // of Close, while Ops are under way

	fd       int32
	slot     uint32 // in the loop's table, which knows the generation
	ops      int32
	interest interest
	armed    bool // known to the poller
	closing  bool
}

// interest is an Event that is asked for. There are no values above 16 bits.
type interest uint16

// Register ties fd to the loop. No event comes before the first SetInterest. It
// fails with [ErrLoopClosed] on a loop that is ending.
//
// Loop only.
func (l *Loop) Register(fd int, h IOHandle) (*Registration, error) {
	invariant.OnLoop(l)
	if l.closing {
		return nil, ErrLoopClosed
	}
	r := &Registration{loop: l, h: h, fd: int32(fd)}
	l.table.add(r)
	l.load.registrations.Store(int64(l.table.n))
	return r, nil
}

// FD returns the descriptor.
func (r *Registration) FD() int { return int(r.fd) }

// Interest returns the events asked for.
//
// Loop only.
func (r *Registration) Interest() Event { return Event(r.interest) }

// Ops returns the number of submitted Ops that have not ended.
//
// Loop only.
func (r *Registration) Ops() int { return int(r.ops) }

// key identifies the registration to the poller: an event that carries the key of
// an earlier user of the slot is dropped.
func (r *Registration) key() uint64 { return r.loop.table.key(r) }

// SetInterest asks for the events of ev from now on, and no others, besides
// EventHangup and EventError. The first call lets the poller know the descriptor,
// and so does the first after Suspend, also with 0; asking for what is asked for
// already costs nothing. It fails with [ErrClosed] after Close, and with the
// kernel's error for a descriptor that cannot be polled, if that is known at once;
// otherwise EventError comes.
//
// Loop only.
func (r *Registration) SetInterest(ev Event) error {
	invariant.OnLoop(r.loop)
	if r.closing {
		return ErrClosed
	}
	ev &= askable
	if r.armed && r.interest == interest(ev) {
		return nil
	}
	if err := r.loop.poller.arm(r, ev); err != nil {
		if errors.Is(err, syscall.EBADF) {
			r.loop.bug(fmt.Sprintf("descriptor %d was closed under its registration", r.fd), err)
		}
		return err
	}
	r.armed, r.interest = true, interest(ev)
	return nil
}

// Suspend takes the descriptor out of the poller until the next SetInterest, so
// that not even EventHangup and EventError come.
//
// Loop only.
func (r *Registration) Suspend() error {
	invariant.OnLoop(r.loop)
	if r.closing {
		return ErrClosed
	}
	if !r.armed {
		return nil
	}
	r.armed, r.interest = false, 0
	return r.loop.poller.disarm(r)
}

// Submit starts op on the descriptor. HandleOp of the registration's handle is
// called when it has ended, in a later turn or a later part of this one, never
// before Submit has returned. It fails with [ErrClosed] after Close, and with
// [ErrOffloadClosed] when the group's Offload has ended; HandleOp is not called
// then.
//
// Loop only.
func (r *Registration) Submit(op *Op) error {
	invariant.OnLoop(r.loop)
	if r.closing {
		return ErrClosed
	}
	if op.reg != nil {
		panic("eventloop: Op submitted while it is under way")
	}
	op.reg, op.N, op.Err = r, 0, nil
	if !r.loop.poller.submit(op) {
		op.run.op = op
		if err := r.loop.offload.submitCounted(&op.run, false); err != nil {
			op.reg = nil
			return err
		}
	}
	r.ops++
	r.loop.ops++
	return nil
}

// tellClose tells the handle to close, and sees to it that it does.
func (r *Registration) tellClose() {
	defer r.Close(nil)
	r.h.CloseIO()
}

// Close ends the registration: the descriptor leaves the poller now, events that
// are already on their way are dropped, and no new Op can start. Ops that are under
// way may be asked to end early; HandleOp is called for each all the same. closefd,
// which may be nil, is called on the loop once nothing uses the descriptor any more:
// perhaps inside this call, perhaps in a later turn. It closes the descriptor. A
// second Close does nothing.
//
// Loop only.
func (r *Registration) Close(closefd func()) {
	invariant.OnLoop(r.loop)
	if r.closing {
		return
	}
	r.closing = true
	if r.armed {
		r.armed, r.interest = false, 0
		if err := r.loop.poller.disarm(r); err != nil {
			r.loop.bug(fmt.Sprintf("descriptor %d cannot leave the poller", r.fd), err)
		}
	}
	r.loop.table.remove(r)
	r.loop.load.registrations.Store(int64(r.loop.table.n))
	if r.ops > 0 {
		r.closefd = closefd
	} else if closefd != nil {
		closefd()
	}
}

// opEnded takes note that an Op has ended, and tells the handle. It may close the
// descriptor before it returns.
func (r *Registration) opEnded(op *Op) {
	r.ops--
	r.loop.ops--
	if r.closing && r.ops == 0 {
		// Deferred, so that the descriptor is closed whatever the handle does.
		defer func() {
			if closefd := r.closefd; closefd != nil {
				r.closefd = nil
				closefd()
			}
		}()
	}
	op.reg = nil
	r.h.HandleOp(op)
}

// Hold keeps the loop from ending until Release, as an [Op] under way does: for what
// has to come back to the loop from elsewhere, such as the last events of a channel
// from a handler's [Strand]. It is for work that has begun before the loop ends and
// ends by itself: the group's Shutdown waits for it.
//
// Loop only.
func (l *Loop) Hold() {
	invariant.OnLoop(l)
	l.ops++
}

// Release undoes one Hold.
//
// Loop only.
func (l *Loop) Release() {
	invariant.OnLoop(l)
	l.ops--
}

// Op is one use of a descriptor that outlives the call that starts it: a sendfile
// of a cold file, a splice to disk, a close that may sleep. While it is under way the
// descriptor stays open. Today the poller knows only readiness, so Run is called on
// the group's [Offload]; a poller that takes requests will run some of them itself,
// and nothing in the handle will tell.
//
// Ownership: whatever Run uses, buffers for one, must stay valid until HandleOp.
// An Op may be submitted again from HandleOp on.
//
// Concurrency: the fields belong to the loop, except while the Op is under way:
// then only to it.
type Op struct {
	Run func() (int64, error) // the blocking call, not nil; a panic in it becomes Err

	N   int64 // what Run returned, when it has ended
	Err error

	reg *Registration // set while the Op is under way
	run opRun         // this Op as a task: for a worker,
	end opEnd         // and for the loop
}

// opRun and opEnd stand for an Op in queues of tasks. They live inside it, so that
// submitting an Op allocates nothing.
type (
	opRun struct{ op *Op }
	opEnd struct{ op *Op }
)

var errOpGoexit = errors.New("eventloop: op ended by runtime.Goexit")

// Run makes the blocking call and brings its result to the loop.
func (r *opRun) Run() {
	op, l := r.op, r.op.reg.loop
	op.Err = errOpGoexit // unless Run returns or panics
	defer func() {
		if v := recover(); v != nil {
			op.Err = panicError("op", v)
			l.logger.Error("panic in an Op", zap.String("loop", l.name),
				zap.Any("panic", v), zap.ByteString("stack", debug.Stack()))
		}
		op.end.op = op
		// A loop ends after the last of its Ops, so that it takes this task.
		err := l.Submit(&op.end)
		invariant.Check(err == nil, "loop %s ended before an Op", l.name)
	}()
	op.N, op.Err = op.Run()
}

// Run delivers the end of the Op.
func (e *opEnd) Run() { e.op.reg.opEnded(e.op) }

// panicError makes an error of a recovered value. It wraps one that is an error.
func panicError(where string, v any) error {
	if err, ok := v.(error); ok {
		return fmt.Errorf("eventloop: panic in %s: %w", where, err)
	}
	return fmt.Errorf("eventloop: panic in %s: %v", where, v)
}

// table finds a registration by the slot in the key of an event. It grows by blocks and
// copies nothing: what a slice leaves behind when it doubles is as much as it holds.
type table struct {
	blocks []*tableBlock
	used   uint32 // slots that have ever been used
	free   []uint32
	n      int
}

const blockSlots = 256

// tableBlock is a block of slots. A slot takes 12 bytes so, and 16 as a struct.
type tableBlock struct {
	regs [blockSlots]*Registration
	gens [blockSlots]uint32 // of the current or latest user
}

// block returns the block of slot i and its place in it; i is less than t.used.
func (t *table) block(i uint32) (b *tableBlock, at uint32) {
	return t.blocks[i/blockSlots], i % blockSlots
}

// at returns the registration in slot i, or nil.
func (t *table) at(i uint32) *Registration {
	b, at := t.block(i)
	return b.regs[at]
}

// key returns what identifies r, which is in the table, in events.
func (t *table) key(r *Registration) uint64 {
	b, at := t.block(r.slot)
	return uint64(b.gens[at])<<32 | uint64(r.slot)
}

func (t *table) add(r *Registration) {
	if n := len(t.free); n > 0 {
		r.slot = t.free[n-1]
		t.free = t.free[:n-1]
	} else {
		r.slot = t.used
		if t.used%blockSlots == 0 {
			t.blocks = append(t.blocks, new(tableBlock))
		}
		t.used++
	}
	b, at := t.block(r.slot)
	b.gens[at]++
	b.regs[at] = r
	t.n++
}

func (t *table) remove(r *Registration) {
	b, at := t.block(r.slot)
	b.regs[at] = nil
	t.free = append(t.free, r.slot)
	t.n--
}

// find returns the registration with the key, or nil if it is gone.
func (t *table) find(key uint64) *Registration {
	i := uint32(key)
	if i >= t.used {
		return nil
	}
	b, at := t.block(i)
	if b.gens[at] != uint32(key>>32) {
		return nil
	}
	return b.regs[at]
}
