package pipeline

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/invariant"
	"go.uber.org/zap"
)

// Base is the part that all channels share: the pipeline, the lifecycle, water
// marks and the way from other goroutines to the loop. A transport's channel
// embeds it, calls Setup once, and implements [Core].
//
// Concurrency: the methods of [Channel] are safe from any goroutine. Setup comes
// before all others; the Mark, Fire and Set methods are for the transport, on the
// loop only, except SetWaterMarks before Register.
type Base struct {
	id     uint64
	loop   *eventloop.Loop
	self   Channel
	core   Core
	parent *Base // nil if there is none
	alloc  buffer.Allocator
	logger *zap.Logger
	pl     Pipeline

	// Loop-only.
	pending     int64 // as the Core last reported
	life        lifecycle
	flushQueued bool
	manualFlush bool
	heldLoop    bool // the loop may not end yet: the handlers have still to be told of the end

	// Any goroutine.
	flags      flags
	unwritable atomic.Uint32 // bit 0: the water mark; others: users', see SetUserWritable
	busy       atomic.Int32  // see Begin
	shown      atomic.Int64  // pending, as others see it: to an eighth of high, exact when it is 0 or crosses a mark
	foreign    atomic.Int64  // written by other goroutines, not yet seen by the loop
	high, low  atomic.Int64
	closeErr   atomic.Pointer[closeReason]
	more       atomic.Pointer[extras] // see extra
}

type closeReason struct{ err error }

// flags are what others than the loop may ask of a channel as well.
type flags struct{ set atomic.Uint32 }

const (
	flagActive   = 1 << iota // see Channel.Active
	flagAutoRead             // see Channel.AutoRead
	flagEnded                // the descriptor is gone
)

func (f *flags) has(flag uint32) bool { return f.set.Load()&flag != 0 }

// put sets or clears a flag and reports whether it was set.
func (f *flags) put(flag uint32, on bool) (was bool) {
	if on {
		return f.set.Or(flag)&flag != 0
	}
	return f.set.And(^flag)&flag != 0
}

// BaseConfig is what a transport tells its Base.
type BaseConfig struct {
	Loop        *eventloop.Loop
	Parent      Channel          // the listener; nil if there is none
	Allocator   buffer.Allocator // nil: buffer.Default; a Pool is used through the loop's cache of it
	Logger      *zap.Logger      // nil discards
	ManualRead  bool             // start with AutoRead off
	ManualFlush bool             // do not flush at the end of the turn
	HighWater   int64            // pinned bytes; must be positive
	LowWater    int64            // pinned bytes; at most HighWater
}

var lastID atomic.Uint64

var nop = zap.NewNop()

// Setup prepares b, which is embedded in self, on top of core.
func (b *Base) Setup(self Channel, core Core, cfg BaseConfig) {
	b.id = lastID.Add(1)
	b.loop = cfg.Loop
	b.self = self
	b.core = core
	if cfg.Parent != nil {
		b.parent = cfg.Parent.base()
	}
	b.alloc = cfg.Allocator
	if b.alloc == nil {
		b.alloc = buffer.Default()
	}
	b.logger = cfg.Logger
	if b.logger == nil {
		b.logger = nop
	}
	b.manualFlush = cfg.ManualFlush
	b.flags.put(flagAutoRead, !cfg.ManualRead)
	b.SetWaterMarks(cfg.LowWater, cfg.HighWater)
	b.pl.init(b)
}

// ID implements [Channel].
func (b *Base) ID() uint64 { return b.id }

// Loop implements [Channel].
func (b *Base) Loop() *eventloop.Loop { return b.loop }

// Pipeline implements [Channel].
func (b *Base) Pipeline() *Pipeline { return &b.pl }

// Parent implements [Channel].
func (b *Base) Parent() Channel {
	if b.parent == nil {
		return nil
	}
	return b.parent.self
}

// LocalAddr implements [Channel].
func (b *Base) LocalAddr() net.Addr { return b.core.LocalAddr() }

// RemoteAddr implements [Channel].
func (b *Base) RemoteAddr() net.Addr { return b.core.RemoteAddr() }

// Logger is the channel's logger, never nil.
func (b *Base) Logger() *zap.Logger { return b.logger }

// Open implements [Channel].
func (b *Base) Open() bool { return b.closeErr.Load() == nil }

// Active implements [Channel].
func (b *Base) Active() bool { return b.flags.has(flagActive) }

// Context implements [Channel].
func (b *Base) Context() context.Context {
	x := b.extra()
	l := x.ctx.Load()
	if l == nil {
		l = new(lazyContext)
		l.Context, l.cancel = context.WithCancelCause(context.Background())
		if !x.ctx.CompareAndSwap(nil, l) {
			l.cancel(nil)
			l = x.ctx.Load()
		}
	}
	if err := b.CloseReason(); err != nil {
		l.cancel(err)
	}
	return l.Context
}

// Closed implements [Channel].
func (b *Base) Closed() eventloop.Future { return b.closing().Future() }

// closing returns the promise behind Closed.
func (b *Base) closing() *eventloop.Promise {
	x := b.extra()
	p := x.closed.Load()
	if p == nil {
		x.closed.CompareAndSwap(nil, eventloop.NewPromise(b.loop))
		p = x.closed.Load()
	}
	if b.flags.has(flagEnded) {
		p.Complete(nil)
	}
	return p
}

// CloseReason implements [Channel].
func (b *Base) CloseReason() error {
	if r := b.closeErr.Load(); r != nil {
		return r.err
	}
	return nil
}

// Alloc implements [Channel].
func (b *Base) Alloc() buffer.Allocator { return b.alloc }

// String names the channel and its ends.
func (b *Base) String() string {
	return fmt.Sprintf("channel %d [%v - %v]", b.id, b.core.LocalAddr(), b.core.RemoteAddr())
}

func (b *Base) base() *Base { return b }

// Write implements [Channel].
func (b *Base) Write(msg any) { b.pl.ends.Write(msg) }

// WriteThen implements [Channel].
func (b *Base) WriteThen(msg any, then func(error)) { b.pl.ends.WriteThen(msg, then) }

// Flush implements [Channel].
func (b *Base) Flush() { b.pl.ends.Flush() }

// Read implements [Channel].
func (b *Base) Read() { b.pl.ends.Read() }

// Close implements [Channel].
func (b *Base) Close() { b.pl.ends.Close() }

// CloseThen implements [Channel].
func (b *Base) CloseThen(then func(error)) { b.pl.ends.CloseThen(then) }

// CloseWrite implements [Channel].
func (b *Base) CloseWrite() { b.pl.ends.CloseWrite() }

// Reset implements [Channel].
func (b *Base) Reset() { b.Abort(CloseReset, ErrReset) }

// Abort closes without asking the pipeline's handlers: what the transport itself
// does on errors and at the end of a drain. It is safe from any goroutine.
func (b *Base) Abort(mode CloseMode, reason error) {
	if !b.loop.InLoop() {
		b.post(op{kind: opAbort, mode: mode, err: reason})
		return
	}
	b.core.DoClose(mode, reason)
}

// AutoRead implements [Channel].
func (b *Base) AutoRead() bool { return b.flags.has(flagAutoRead) }

// SetAutoRead implements [Channel].
func (b *Base) SetAutoRead(on bool) {
	if b.flags.put(flagAutoRead, on) == on {
		return
	}
	if !b.loop.InLoop() {
		b.post(op{kind: opAutoRead})
		return
	}
	b.applyAutoRead()
}

// applyAutoRead tells the Core what AutoRead is now. Loop-only.
func (b *Base) applyAutoRead() {
	switch {
	case !b.life.is(active):
	case b.flags.has(flagAutoRead):
		b.Read()
	default:
		b.stopReading()
	}
}

// touch has the pipeline flushed at the end of the turn. Loop-only.
func (b *Base) touch() {
	if !b.flushQueued && !b.manualFlush {
		b.flushQueued = true
		b.loop.AtTurnEnd((*turnFlush)(b))
	}
}

// turnFlush is the Base as the task that flushes it.
type turnFlush Base

func (t *turnFlush) Run() {
	b := (*Base)(t)
	b.flushQueued = false
	b.pl.guardedFlush(b.pl.ends.prev)
}

// onLoop asserts, in builds with invariants, that the caller is the loop.
func (b *Base) onLoop() {
	if invariant.Enabled {
		invariant.OnLoop(b.loop)
	}
}
