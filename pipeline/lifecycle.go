package pipeline

// lifecycle is where a channel stands. It only moves forward.
type lifecycle uint8

const (
	fresh      lifecycle = iota // made, not yet on its loop
	starting                    // on its loop, Init is under way
	registered                  // HandleRegistered fired, HandleActive not
	active                      // HandleActive fired
	closed                      // the descriptor is gone
)

// owed is what the pipeline must still be told after a close.
type owed uint8

const (
	owesInactive owed = 1 << iota
	owesUnregistered
	owesEnd // the Core must be told that all is over
)

func (s lifecycle) is(o lifecycle) bool { return s == o }

// register reports whether the channel may be registered.
func (s *lifecycle) register() bool {
	if *s != fresh {
		return false
	}
	*s = starting
	return true
}

// started reports whether HandleRegistered is to be fired.
func (s *lifecycle) started() bool {
	if *s != starting {
		return false
	}
	*s = registered
	return true
}

// activate reports whether HandleActive is to be fired.
func (s *lifecycle) activate() bool {
	if *s != registered {
		return false
	}
	*s = active
	return true
}

// close reports what is owed. A second close owes nothing.
func (s *lifecycle) close() (o owed) {
	switch *s {
	case fresh, starting:
		o = owesEnd
	case registered:
		o = owesUnregistered | owesEnd
	case active:
		o = owesInactive | owesUnregistered | owesEnd
	case closed:
	}
	*s = closed
	return o
}

// Register starts the channel on its loop: init, which adds the handlers and may be
// nil, then HandleRegistered. An error or a panic of init closes the channel; Register
// returns it. Loop-only, once.
func (b *Base) Register(init func(Channel) error) error {
	b.onLoop()
	if !b.life.register() {
		return b.closeError()
	}
	b.alloc = b.loop.Allocator(b.alloc)
	if err := b.pl.runInit(init); err != nil {
		return err
	}
	if b.life.started() {
		b.pl.notifyFromHead(maskRegistered)
	}
	return nil
}

// MarkActive tells the pipeline that the channel is connected or bound, and asks
// for the first read. Loop-only; later calls do nothing.
func (b *Base) MarkActive() {
	b.onLoop()
	if !b.life.activate() {
		return
	}
	b.flags.put(flagActive, true)
	b.pl.notifyFromHead(maskActive)
	if b.flags.has(flagAutoRead) && b.life.is(active) {
		b.Read()
	}
}

// MarkClosing makes Open and Active false, sets CloseReason and cancels Context:
// the channel has given up its descriptor, which an operation may still be using.
// MarkClosed follows when it is gone. Loop-only; later calls do nothing.
func (b *Base) MarkClosing(reason error) {
	b.onLoop()
	if !b.Open() {
		return
	}
	err := ErrClosed
	if reason != nil {
		err = &closedBecause{reason}
	}
	b.flags.put(flagActive, false)
	b.closeErr.Store(&closeReason{err})
	x := b.more.Load()
	if x == nil {
		return
	}
	if l := x.ctx.Load(); l != nil {
		l.cancel(err)
	}
	x.sends.fail(err)
}

// MarkClosed tells all who wait that the channel has closed, and has the pipeline
// told in a later task: HandleInactive if it was active, HandleUnregistered, then
// the handlers are removed from the tail to the head. It does what MarkClosing does
// if that has not been called. Loop-only; later calls do nothing. The Core fails its
// queue with [Base.CloseReason] afterwards.
func (b *Base) MarkClosed(reason error) {
	b.MarkClosing(reason)
	o := b.life.close()
	if o == 0 {
		return
	}
	// Behind the callbacks, also if one of them is ended by runtime.Goexit.
	b.holdLoop()
	defer func() {
		if t := (&endTask{b, o}); b.loop.Submit(t) != nil {
			b.releaseLoop()
			b.loop.Deliver((*lateEnd)(t))
		}
	}()
	b.flags.put(flagEnded, true)
	x := b.more.Load()
	if x == nil {
		return
	}
	x.leaveGroups(b)
	if p := x.closed.Load(); p != nil {
		p.Complete(nil)
	}
}

type endTask struct {
	b *Base
	o owed
}

// lateEnd is an endTask of a loop that has perhaps ended.
type lateEnd endTask

func (t *lateEnd) Run() {
	t.b.pl.outlive()
	(*endTask)(t).Run()
}

// Run tells the pipeline. Each step is made even if a handler of an earlier one is
// ended by runtime.Goexit. The handlers are removed when the notifications have passed
// those that run on strands.
func (t *endTask) Run() {
	b := t.b
	// The first handler is looked up behind the notifications: these may add one.
	defer func() { b.pl.passEnd(b.pl.ends.next) }()
	if t.o&owesUnregistered != 0 {
		defer b.pl.notifyFromHead(maskUnregistered)
	}
	if t.o&owesInactive != 0 {
		b.pl.notifyFromHead(maskInactive)
	}
}

// closeError is CloseReason, or ErrClosed while the channel is still open.
func (b *Base) closeError() error {
	if err := b.CloseReason(); err != nil {
		return err
	}
	return ErrClosed
}
