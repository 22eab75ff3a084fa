package pipeline

// drained is the bit of Base.busy that says that the channel is to close as soon as
// nothing is under way; the rest counts what is.
const drained = 1 << 30

// Begin implements [Channel].
func (b *Base) Begin() { b.busy.Add(1) }

// End implements [Channel]. Elsewhere than on the loop it takes the way of the writes
// before it, or a drain that begins just then would close the channel ahead of them.
func (b *Base) End() {
	if b.loop.InLoop() || b.loop.Submit((*endOne)(b)) != nil {
		(*endOne)(b).Run()
	}
}

// endOne is the Base as the task that takes back one Begin.
type endOne Base

func (t *endOne) Run() {
	b := (*Base)(t)
	switch n := b.busy.Add(-1); {
	case n&(drained-1) == drained-1:
		panic("pipeline: End without Begin")
	case n == drained:
		// In a later task: what has been read already may begin something more. A loop
		// that has ended has closed the channel.
		_ = b.loop.Submit((*idleTask)(b))
	}
}

// idleTask is the Base as the task that closes it if nothing is under way.
type idleTask Base

func (t *idleTask) Run() {
	if b := (*Base)(t); b.busy.Load() == drained {
		b.Close()
	}
}

// CloseIdle closes the channel as soon as nothing is under way that was announced by
// Begin: what a transport does at the end of a drain's first part. What waits for
// handlers on executors comes first. Loop-only.
func (b *Base) CloseIdle() {
	b.onLoop()
	b.passStrands(b.pl.ends.next)
}

// passStrands follows the events that are on their way through handlers on executors
// from c on, one handler after the other, and closes the channel behind them. Loop-only.
func (b *Base) passStrands(c *Context) {
	for ; c != &b.pl.ends; c = c.next {
		if h := c.typ.offloaded; h != nil && c.mask != 0 {
			h.s.Post(&strandPass{b, c})
			return
		}
	}
	if b.busy.Or(drained) == 0 {
		b.Close()
	}
}

// strandPass comes behind what the strand of a handler has to do: as a task of the
// strand, then of the loop.
type strandPass struct {
	b *Base
	c *Context
}

func (t *strandPass) Run() {
	if t.b.loop.InLoop() { // also when the executor has ended
		t.b.passStrands(t.c.next)
		return
	}
	_ = t.b.loop.Submit(t) // a loop that has ended has closed the channel
}
