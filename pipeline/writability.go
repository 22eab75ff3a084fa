package pipeline

import (
	"fmt"

	"github.com/runnel-io/runnel/buffer"
)

// entryOverhead is charged for each message that waits, for its place in a queue.
// Netty charges 96.
const entryOverhead = 64

// waterBit is the bit of Base.unwritable that the water marks own.
const waterBit = 1

// PendingSize is what msg counts against the water marks while it waits: the
// memory that it keeps alive, at most high for a file region, which keeps none,
// and something for the place in the queue. A message of another type says how much
// it keeps alive by a method Pinned, which returns an int, as that of a Buf.
func PendingSize(msg any, high int64) int64 {
	switch m := msg.(type) {
	case *buffer.Buf:
		return int64(m.Pinned()) + entryOverhead
	case *buffer.FileRegion:
		return min(m.Remaining(), high) + entryOverhead
	case []byte:
		return int64(len(m)) + entryOverhead
	case string:
		return int64(len(m)) + entryOverhead
	case interface{ Pinned() int }:
		return int64(m.Pinned()) + entryOverhead
	}
	return entryOverhead
}

// SetWaterMarks sets the marks, in pinned bytes: 0 <= low <= high. Loop-only once
// the channel is registered.
func (b *Base) SetWaterMarks(low, high int64) {
	if low < 0 || low > high {
		panic(fmt.Sprintf("pipeline: low water mark %d is not between 0 and the high one, %d", low, high))
	}
	b.low.Store(low)
	b.high.Store(high)
}

// HighWater returns the high water mark in pinned bytes.
func (b *Base) HighWater() int64 { return b.high.Load() }

// SetPending tells how many bytes the Core's queue pins, and judges whether the
// channel is writable; a change reaches the handlers before SetPending returns.
// Loop-only. After MarkClosed it does nothing.
func (b *Base) SetPending(n int64) {
	b.onLoop()
	b.pending = n
	// A store that others see costs more than all the rest, and they are content with
	// an eighth of the mark.
	if d := n - b.shown.Load(); d != 0 && (n == 0 || max(d, -d) > b.high.Load()/8) {
		b.shown.Store(n)
	}
	b.judge()
}

// judge compares what is pending with the marks. Loop-only.
func (b *Base) judge() {
	total := b.pending
	if f := b.foreign.Load(); f != 0 {
		total += f
	}
	if b.unwritable.Load()&waterBit == 0 {
		if total > b.high.Load() && b.life != closed {
			b.shown.Store(b.pending)
			b.setUnwritable(waterBit)
		}
	} else if (total < b.low.Load() || total == 0) && b.life != closed {
		b.shown.Store(b.pending)
		b.clearUnwritable(waterBit)
	}
}

func (b *Base) setUnwritable(bit uint32) {
	if b.unwritable.Or(bit) == 0 {
		b.fireWritability()
	}
}

func (b *Base) clearUnwritable(bit uint32) {
	if b.unwritable.And(^bit) == bit {
		b.fireWritability()
		b.admitSenders()
	}
}

// fireWritability tells the Core and the handlers what is so now. Every change is
// followed by it, also one that another goroutine has made and that has been undone
// before the loop saw it: somebody may have looked in between. Loop-only.
func (b *Base) fireWritability() {
	if b.life == closed {
		return
	}
	b.core.DoWritability(b.Writable())
	b.pl.notifyFromHead(maskWritability)
}

// addForeign counts n bytes that another goroutine has just written, before the
// loop has seen them. Any goroutine.
func (b *Base) addForeign(n int64) {
	total := b.foreign.Add(n) + b.shown.Load()
	if total > b.high.Load() && b.unwritable.Or(waterBit) == 0 {
		// If the loop has ended there is nobody left to tell.
		_ = b.loop.Submit((*writabilityTask)(b))
	}
}

// writabilityTask is the Base as the task that tells of a change made by another
// goroutine, or by a user.
type writabilityTask Base

func (t *writabilityTask) Run() {
	b := (*Base)(t)
	b.fireWritability()
	b.admitSenders()
}

// SetUserWritable implements [Channel].
func (b *Base) SetUserWritable(reason int, writable bool) {
	if reason < 1 || reason > 31 {
		panic(fmt.Sprintf("pipeline: reason %d for writability is not between 1 and 31", reason))
	}
	bit := uint32(1) << reason
	var changed bool
	if writable {
		changed = b.unwritable.And(^bit) == bit
	} else {
		changed = b.unwritable.Or(bit) == 0
	}
	if changed {
		_ = b.loop.Submit((*writabilityTask)(b)) // in a loop that has ended there is nobody to tell
	}
}

// Writable implements [Channel].
func (b *Base) Writable() bool { return b.unwritable.Load() == 0 }

// total is what counts against the marks, to the loop exactly, to others nearly.
func (b *Base) total() int64 {
	if b.loop.InLoop() {
		return b.pending + b.foreign.Load()
	}
	return b.shown.Load() + b.foreign.Load()
}

// BytesBeforeUnwritable implements [Channel].
func (b *Base) BytesBeforeUnwritable() int64 {
	if !b.Writable() {
		return 0
	}
	return max(0, b.high.Load()-b.total()+1)
}

// BytesBeforeWritable implements [Channel].
func (b *Base) BytesBeforeWritable() int64 {
	if b.Writable() {
		return 0
	}
	total := b.total()
	return max(0, min(total, total-b.low.Load()+1))
}
