// Package embedded is a channel without I/O, for testing handlers.
//
// Messages are put in at either end and taken out at the other; time is virtual;
// errors that no handler took are kept for the test. Every call that drives the
// channel runs one whole turn of its loop, so what was written is there when the
// call returns. Netty: EmbeddedChannel.
package embedded

import (
	"net"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// Config sets how an embedded channel behaves. The zero value is ready to use.
type Config struct {
	Allocator           buffer.Allocator // nil: buffer.Default
	ManualRead          bool             // start with AutoRead off
	ManualFlush         bool             // flush only when asked
	HighWater, LowWater int64            // pinned bytes; 0: 64 KiB and half of HighWater
	Inactive            bool             // stay registered until Activate
	Manual              *eventloop.Manual
}

// Channel is a pipeline.Channel that is driven by its test.
//
// Ownership: what ReadInbound and ReadOutbound return is the caller's to release.
//
// Concurrency: the methods defined here are for one goroutine at a time, the
// test's. Those of pipeline.Channel are safe from any; on the test's goroutine they
// post to the loop, and take effect at the next driving call.
type Channel struct {
	pipeline.Base
	man    *eventloop.Manual
	ownMan bool

	// Loop-only.
	queue    []entry
	pending  int64
	in, out  []any
	events   []any
	errs     []error
	hold     bool
	reads    int
	noOutput bool
	done     bool
	reason   error
}

type entry struct {
	msg  any
	size int64
	p    *eventloop.Promise
}

// New makes a connected channel with handlers. It panics if they cannot be added.
func New(handlers ...any) *Channel { return NewConfig(Config{}, handlers...) }

// NewConfig is New with a configuration.
func NewConfig(cfg Config, handlers ...any) *Channel {
	ch := &Channel{man: cfg.Manual}
	if ch.man == nil {
		ch.man, ch.ownMan = eventloop.NewManual(), true
	}
	if cfg.HighWater == 0 {
		cfg.HighWater = 64 << 10
	}
	if cfg.LowWater == 0 {
		cfg.LowWater = cfg.HighWater / 2
	}
	ch.Setup(ch, (*core)(ch), pipeline.BaseConfig{
		Loop:        ch.man.Loop(),
		Allocator:   cfg.Allocator,
		ManualRead:  cfg.ManualRead,
		ManualFlush: cfg.ManualFlush,
		HighWater:   cfg.HighWater,
		LowWater:    cfg.LowWater,
	})
	var err error
	ch.Do(func() {
		err = ch.Register(func(pipeline.Channel) error { return ch.Pipeline().Add(handlers...) })
		if err == nil && !cfg.Inactive {
			ch.MarkActive()
		}
	})
	if err != nil {
		panic(err)
	}
	return ch
}

// Do runs f on the channel's loop, then the rest of the turn.
func (ch *Channel) Do(f func()) {
	ch.man.Enter(f)
	ch.man.Turn()
}

// Activate makes a channel active that was made Inactive.
func (ch *Channel) Activate() { ch.Do(ch.MarkActive) }

// WriteInbound delivers messages as if they had been read in one turn, then their
// end (HandleReadComplete).
func (ch *Channel) WriteInbound(msgs ...any) {
	ch.Do(func() {
		for _, m := range msgs {
			if ch.done {
				buffer.Release(m)
				continue
			}
			ch.Pipeline().FireRead(m)
		}
		if !ch.done {
			ch.Pipeline().FireReadComplete()
		}
	})
}

// ReadInbound takes the next message that passed all handlers, or nil.
func (ch *Channel) ReadInbound() any {
	ch.Run()
	return take(&ch.in)
}

// WriteOutbound writes messages and flushes them.
func (ch *Channel) WriteOutbound(msgs ...any) {
	ch.Do(func() {
		for _, m := range msgs {
			ch.Write(m)
		}
		ch.Flush()
	})
}

// ReadOutbound takes the next message that was flushed at the head, or nil.
func (ch *Channel) ReadOutbound() any {
	ch.Run()
	return take(&ch.out)
}

// ReadEvent takes the next user event that no handler took, or nil.
func (ch *Channel) ReadEvent() any {
	ch.Run()
	return take(&ch.events)
}

func take(q *[]any) any {
	if len(*q) == 0 {
		return nil
	}
	m := (*q)[0]
	(*q)[0] = nil
	*q = (*q)[1:]
	return m
}

// Run runs turns until there is nothing left to do at the present time.
func (ch *Channel) Run() { ch.man.RunUntilIdle() }

// Advance moves the time forward and runs what falls due.
func (ch *Channel) Advance(d time.Duration) { ch.man.Advance(d) }

// Manual returns the loop's driver.
func (ch *Channel) Manual() *eventloop.Manual { return ch.man }

// Hold stops flushed messages from leaving, as if the peer did not read, and with
// false lets them go on.
func (ch *Channel) Hold(on bool) {
	ch.Do(func() {
		ch.hold = on
		if !on {
			(*core)(ch).DoFlush()
		}
	})
}

// ReadRequests returns how often the channel was asked for a read since the last
// call.
func (ch *Channel) ReadRequests() int {
	ch.Run()
	n := ch.reads
	ch.reads = 0
	return n
}

// CheckError returns the next error that no handler took, or nil.
func (ch *Channel) CheckError() error {
	ch.Run()
	if len(ch.errs) == 0 {
		return nil
	}
	err := ch.errs[0]
	ch.errs = ch.errs[1:]
	return err
}

// Finish closes the channel as its peer would, runs what is left to do, and
// returns CheckError. Messages stay to be read. A Hold is lifted.
func (ch *Channel) Finish() error {
	ch.Hold(false)
	ch.Do(func() { (*core)(ch).DoClose(pipeline.CloseFlushed, nil) })
	ch.Run()
	err := ch.CheckError()
	if ch.ownMan {
		ch.man.Close()
		ch.ownMan = false
	}
	return err
}

// ReleaseAll releases the messages and events that were not read and returns how
// many there were.
func (ch *Channel) ReleaseAll() int {
	n := len(ch.in) + len(ch.out) + len(ch.events)
	for _, q := range []*[]any{&ch.in, &ch.out, &ch.events} {
		for _, m := range *q {
			buffer.Release(m)
		}
		*q = nil
	}
	return n
}

// core is the channel as its own Core.
type core Channel

func (k *core) DoConnect(_, _ net.Addr, p *eventloop.Promise) {
	if p != nil {
		p.Complete(nil)
	}
	k.MarkActive()
}

func (k *core) DoWrite(msg any, p *eventloop.Promise) {
	if k.done || k.noOutput {
		err := k.reason
		if !k.done {
			err = pipeline.ErrOutputShutdown
		}
		buffer.Release(msg)
		if p != nil {
			p.Complete(err)
		}
		return
	}
	e := entry{msg, pipeline.PendingSize(msg, k.HighWater()), p}
	k.queue = append(k.queue, e)
	k.pending += e.size
	k.SetPending(k.pending)
}

func (k *core) DoFlush() {
	for !k.hold && len(k.queue) > 0 {
		e := k.queue[0]
		k.queue[0] = entry{}
		k.queue = k.queue[1:]
		k.out = append(k.out, e.msg)
		k.pending -= e.size
		if e.p != nil {
			e.p.Complete(nil)
		}
		if !k.done {
			k.SetPending(k.pending)
		}
	}
}

func (k *core) DoRead()            { k.reads++ }
func (k *core) DoReadStop()        {}
func (k *core) DoWritability(bool) {}
func (k *core) DoEnd()             {}

func (k *core) DoClose(mode pipeline.CloseMode, reason error) {
	if k.done {
		return
	}
	if mode == pipeline.CloseFlushed {
		k.DoFlush()
		if k.done {
			return
		}
	}
	k.done = true
	k.MarkClosed(reason)
	k.reason = k.CloseReason()
	for _, e := range k.queue {
		buffer.Release(e.msg)
		if e.p != nil {
			e.p.Complete(k.reason)
		}
	}
	k.queue, k.pending = nil, 0
}

func (k *core) DoCloseWrite(p *eventloop.Promise) {
	if !k.done {
		k.DoFlush()
		k.noOutput = true
	}
	if p != nil {
		p.Complete(k.CloseReason())
	}
}

func (k *core) UnhandledRead(msg any)    { k.in = append(k.in, msg) }
func (k *core) UnhandledEvent(ev any)    { k.events = append(k.events, ev) }
func (k *core) UnhandledError(err error) { k.errs = append(k.errs, err) }
func (k *core) LocalAddr() net.Addr      { return addr{} }
func (k *core) RemoteAddr() net.Addr     { return addr{} }

type addr struct{}

func (addr) Network() string { return "embedded" }
func (addr) String() string  { return "embedded" }
