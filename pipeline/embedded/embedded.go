// Package embedded is a channel without I/O, for testing handlers.
//
// Messages are put in at either end and taken out at the other; time is virtual;
// errors that no handler took are kept for the test. Every call that drives the
// channel runs one whole turn of its loop, so what was written is there when the
// call returns. A handler that was added as a pipeline.Offloaded takes some turns more:
// Run, and everything that reads or checks, waits for it.
//
// The one rule to keep: the loop runs only inside the calls of this package. Start
// with [New], or in a test with [NewTest], which also looks for messages, errors and
// buffers that are left at the end. Netty: EmbeddedChannel.
package embedded

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"go.uber.org/zap"
)

// Config sets how an embedded channel behaves. The zero value is ready to use.
type Config struct {
	Allocator   buffer.Allocator  // nil: buffer.Default
	Parent      pipeline.Channel  // what Parent returns
	Logger      *zap.Logger       // nil discards
	ManualRead  bool              // start with AutoRead off
	ManualFlush bool              // flush only when asked
	HighWater   int64             // pinned bytes; 0 means 64 KiB
	LowWater    int64             // pinned bytes; 0 means HighWater/2, more than HighWater panics
	Inactive    bool              // not connected until Activate or a connect
	Manual      *eventloop.Manual // the loop, for several channels on one; nil makes one
}

// Channel is a [pipeline.Channel] that is driven by its test.
//
// Ownership: what the Read methods return is the caller's to release. [Channel.Finish]
// and [Channel.ReleaseAll] at the end of a test leave nothing behind.
//
// Concurrency: the methods defined here are for one goroutine at a time, the
// test's. Those of pipeline.Channel are safe from any; outside [Channel.Do] they are
// posted to the loop, also on the test's goroutine, and take effect in the next call
// that drives the channel. Changes of the pipeline are made at once. Send waits for
// such calls, so it is for another goroutine than theirs.
type Channel struct {
	pipeline.Base
	man    *eventloop.Manual
	ownMan bool

	// Loop-only.
	state    state
	hold     bool
	noOutput bool // CloseWrite has been called
	flushed  int  // entries of queue that may leave
	flushing bool
	queue    []entry
	pending  int64
	shut     []*eventloop.Promise // of CloseWrite
	reason   error                // of a close that waits for the queue
	reads    int
	early    []any // read before the channel is active
	in, out  []any
	events   []any
	errs     []error
}

// state is where the channel stands as a transport.
type state uint8

const (
	open    state = iota
	closing       // closed by its user; the queue is held
	closed
)

// entry is a message that was written.
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
		Parent:      cfg.Parent,
		Allocator:   cfg.Allocator,
		Logger:      cfg.Logger,
		ManualRead:  cfg.ManualRead,
		ManualFlush: cfg.ManualFlush,
		HighWater:   cfg.HighWater,
		LowWater:    cfg.LowWater,
	})
	var err error
	ch.Do(func() {
		err = ch.Register(func(pipeline.Channel) error { return ch.Pipeline().Add(handlers...) })
		if err == nil && !cfg.Inactive {
			(*core)(ch).activate()
		}
	})
	if err != nil {
		_ = ch.Finish()
		ch.ReleaseAll()
		panic(err)
	}
	return ch
}

// Do runs f on the channel's loop, then the rest of the turn. In f the methods of
// the channel and of contexts run in place.
func (ch *Channel) Do(f func()) {
	ch.man.Enter(f)
	ch.man.Turn()
}

// Activate makes a channel active that was made Inactive; what has been written
// leaves.
func (ch *Channel) Activate() { ch.Do((*core)(ch).activate) }

// WriteInbound delivers messages as if they had been read in one turn, then their
// end (HandleReadComplete). Like every other, a channel that has closed or is about
// to reads nothing: the messages are released. On one that is not active yet they wait
// until it is.
func (ch *Channel) WriteInbound(msgs ...any) {
	ch.Do(func() { (*core)(ch).arrive(msgs) })
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
// false lets them go on. A Close waits for them.
func (ch *Channel) Hold(on bool) {
	ch.Do(func() {
		ch.hold = on
		(*core)(ch).send()
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

// CheckError takes the next error that no handler took, or nil.
func (ch *Channel) CheckError() error {
	ch.Run()
	if len(ch.errs) == 0 {
		return nil
	}
	err := ch.errs[0]
	ch.errs = ch.errs[1:]
	return err
}

// Finish closes the channel as if its peer had: what was written leaves first, also
// if it was held. It runs what is left to do and returns the errors that no handler
// took, joined if there are several. Messages stay to be read. A Manual that the
// channel made is closed, so that what is posted from then on fails.
func (ch *Channel) Finish() error {
	ch.Run()
	ch.Hold(false)
	ch.Do(func() { (*core)(ch).DoClose(pipeline.CloseFlushed, io.EOF) })
	ch.Run()
	if ch.ownMan {
		ch.man.Close()
		ch.ownMan = false
	}
	errs := ch.errs
	ch.errs = nil
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
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

// Enter lets the pipeline be changed from the test's goroutine.
func (k *core) Enter(f func()) { k.man.Enter(f) }

// activate connects the channel.
func (k *core) activate() {
	if k.state != open {
		return
	}
	k.MarkActive()
	k.send()
	if early := k.early; len(early) > 0 {
		k.early = nil
		k.arrive(early)
	}
}

// arrive is a turn's read.
func (k *core) arrive(msgs []any) {
	if k.state == open && !k.Active() {
		k.early = append(k.early, msgs...)
		return
	}
	for _, m := range msgs {
		if k.state != open {
			buffer.Release(m)
			continue
		}
		k.Pipeline().FireRead(m)
	}
	if k.state == open {
		k.Pipeline().FireReadComplete()
	}
}

func (k *core) DoConnect(_, _ net.Addr, p *eventloop.Promise) {
	if k.state != open {
		p.Complete(k.closedError())
		return
	}
	p.Complete(nil)
	k.activate()
}

// closedError is what fails operations that come too late.
func (k *core) closedError() error {
	if err := k.CloseReason(); err != nil {
		return err
	}
	return pipeline.ErrClosed
}

func (k *core) DoWrite(msg any, p *eventloop.Promise) {
	switch {
	case k.state != open:
		buffer.Release(msg)
		p.Complete(k.closedError())
		return
	case k.noOutput:
		buffer.Release(msg)
		k.Pipeline().FailWrite(p, pipeline.ErrOutputShutdown)
		return
	}
	e := entry{msg, pipeline.PendingSize(msg, k.HighWater()), p}
	k.queue = append(k.queue, e)
	k.pending += e.size
	k.SetPending(k.pending)
}

func (k *core) DoFlush() {
	k.flushed = len(k.queue)
	k.send()
}

// send lets leave what was flushed, and then does what had to wait for that. It
// completes promises, so user code may write, flush or close before it returns.
func (k *core) send() {
	if k.flushing {
		return
	}
	k.drain()
	if len(k.queue) > 0 && (k.hold || k.flushed > 0) {
		return
	}
	switch {
	case k.state == closing:
		k.end(k.reason)
	case k.state == open && len(k.shut) > 0 && len(k.queue) == 0:
		shut := k.shut
		k.shut = nil
		for _, p := range shut {
			p.Complete(nil)
		}
		if k.state == open {
			k.Pipeline().FireEvent(pipeline.OutputShutdown{})
		}
	}
}

func (k *core) drain() {
	k.flushing = true
	defer func() { k.flushing = false }()
	for k.Active() && !k.hold && k.flushed > 0 {
		e := k.queue[0]
		k.queue[0] = entry{}
		k.queue = k.queue[1:]
		k.flushed--
		k.out = append(k.out, e.msg)
		k.pending -= e.size
		e.p.Complete(nil)
		if k.state != closed {
			k.SetPending(k.pending)
		}
	}
}

func (k *core) DoRead()            { k.reads++ }
func (k *core) DoReadStop()        {}
func (k *core) DoWritability(bool) {}
func (k *core) DoEnd()             {}

func (k *core) DoClose(mode pipeline.CloseMode, reason error) {
	switch {
	case k.state == closed:
	case mode != pipeline.CloseFlushed || !k.Active():
		k.end(reason)
	case k.state == open:
		k.state, k.reason = closing, reason
		k.DoFlush()
	}
}

// end drops the queue and tells all who wait that the channel has closed.
func (k *core) end(reason error) {
	if k.state == closed {
		return
	}
	k.state = closed
	waiting := k.shut
	queue := k.queue
	k.queue, k.shut, k.flushed, k.pending = nil, nil, 0, 0
	for _, e := range queue {
		buffer.Release(e.msg)
		if e.p != nil {
			waiting = append(waiting, e.p)
		}
	}
	for _, m := range k.early {
		buffer.Release(m)
	}
	k.early = nil
	k.MarkClosed(reason)
	for _, p := range waiting {
		p.Complete(k.CloseReason())
	}
}

func (k *core) DoCloseWrite(p *eventloop.Promise) {
	switch {
	case k.state != open:
		p.Complete(k.closedError())
	case k.noOutput && len(k.shut) == 0:
		p.Complete(nil)
	default:
		k.noOutput = true
		k.shut = append(k.shut, p)
		k.DoFlush()
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
