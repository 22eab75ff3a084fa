//go:build linux

package transport

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// drain begins the drain of a channel, as Shutdown does.
func (r *rig) drain() {
	if err := r.Loop().Submit((*drainTask)(r.stream)); err != nil {
		r.t.Fatal(err)
	}
	r.m.RunUntilIdle()
}

// What has come before a drain is read and answered; then the channel closes.
func TestDrainAnswersWhatHasCome(t *testing.T) {
	r := newRig(t, rigConfig{}, echo())
	r.k.in = []readStep{{data: "asked"}}
	r.drain()
	r.wantOut("asked")
	r.wantLog("active", "event transport.Draining", "complete", "inactive", "unregistered")
}

func TestDrainOfIdleChannel(t *testing.T) {
	r := newRig(t, rigConfig{}, echo())
	r.readable(readStep{data: "hello"})
	r.log = nil
	r.drain()
	r.wantLog("event transport.Draining", "complete", "inactive", "unregistered")
	r.wantOut("hello")
}

// A channel that has never heard of its peer waits for the first words, not for ever.
func TestDrainOfNewChannel(t *testing.T) {
	for _, says := range []bool{true, false} {
		r := newRig(t, rigConfig{}, echo())
		r.drain()
		r.m.Advance(drainGrace - 1)
		if !r.Open() {
			t.Fatal("closed before the peer has had its time")
		}
		if says {
			r.readable(readStep{data: "first"})
			r.wantOut("first")
		} else {
			r.m.Advance(1)
			r.m.RunUntilIdle()
		}
		if r.Open() {
			t.Errorf("peer says something %v: still open", says)
		}
		if r.CloseReason() != nil && errors.Is(r.CloseReason(), ErrDrainTimeout) {
			t.Errorf("close reason: got %v, want none", r.CloseReason())
		}
	}
}

// A channel that does not read has nothing to wait for.
func TestDrainOfChannelThatDoesNotRead(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{ManualRead: true}})
	r.k.in = []readStep{{data: "not asked for"}}
	r.drain()
	r.wantLog("active", "event transport.Draining", "inactive", "unregistered")
}

// A handler in the middle of something keeps the channel open, which reads on.
func TestDrainWaitsForBusyHandler(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.readable(readStep{data: "request"})
	r.do(r.Begin)
	r.drain()
	r.m.Advance(time.Hour)
	if !r.Open() {
		t.Fatal("closed while it was busy")
	}
	r.log = nil
	r.readable(readStep{data: "body"})
	r.wantLog("read body", "complete")
	r.do(func() { r.Write(pooled("answer")); r.End() })
	r.m.RunUntilIdle()
	r.wantOut("answer")
	r.wantLog("inactive", "unregistered")
}

// A whole Shutdown: who is busy is waited for, and counted and reset in the end.
func TestShutdownWaitsForBusyHandlers(t *testing.T) {
	for _, ends := range []bool{true, false} {
		busy := make(chan pipeline.Channel, 1)
		draining := make(chan struct{}, 1)
		reason := make(chan error, 1)
		srv := &Server{Init: with(
			pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
				b.Release()
				c.Channel().Begin()
				busy <- c.Channel()
				return nil
			}),
			pipeline.OnEvent(func(c *pipeline.Context, ev Draining) error { draining <- struct{}{}; return nil }),
			pipeline.OnInactive(func(c *pipeline.Context) error { reason <- c.Channel().CloseReason(); return nil }))}
		l := serve(t, srv, "tcp", "127.0.0.1:0")
		nc := dialNet(t, l)
		if _, err := nc.Write([]byte("request")); err != nil {
			t.Fatal(err)
		}
		ch := await(t, busy, "the request")
		ctx, cancel := context.WithCancel(context.Background())
		drained := make(chan error, 1)
		go func() { drained <- srv.Shutdown(ctx) }()
		await(t, draining, "the event")
		if ends {
			ch.Write([]byte("answer"))
			ch.End()
			p := make([]byte, 100)
			if n, _ := nc.Read(p); string(p[:n]) != "answer" {
				t.Errorf("got %q, want the answer", p[:n])
			}
			if err := await(t, drained, "the end of the drain"); err != nil {
				t.Errorf("Shutdown: got %v, want nil", err)
			}
		} else {
			cancel()
			if err := await(t, drained, "the end of the drain"); !errors.Is(err, ErrDrainTimeout) {
				t.Errorf("Shutdown: got %v, want ErrDrainTimeout", err)
			}
			if err := await(t, reason, "the close"); !errors.Is(err, ErrDrainTimeout) {
				t.Errorf("close reason: got %v, want ErrDrainTimeout", err)
			}
		}
		cancel()
	}
}

// No connection is lost that comes while the drain begins: each has its answer.
func TestDrainServesWhoComesMeanwhile(t *testing.T) {
	r := newAcceptRig(t, &Server{})
	r.srv.mu.Lock()
	r.srv.closing = true // Shutdown has begun and has not come to the listener's loop
	r.srv.mu.Unlock()
	r.come(nil, nil)
	if len(r.chs) != 2 || slices.ContainsFunc(r.chs, func(ch pipeline.Channel) bool { return !ch.Active() }) {
		t.Errorf("accepted meanwhile: got %d channels, want 2 that are active", len(r.chs))
	}
	r.srv.mu.Lock()
	r.srv.hurry = true // the time is over
	r.srv.mu.Unlock()
	r.come(nil)
	if got := r.k.ended(); len(r.chs) != 2 || got != 1 {
		t.Errorf("after the end: got %d channels, %d ended; want 2, 1", len(r.chs), got)
	}
	for _, ch := range r.chs {
		r.m.Enter(func() { ch.(*stream).Abort(pipeline.CloseNow, nil) })
	}
	r.m.RunUntilIdle()
	r.Loop().Execute(func() { r.listener.Abort(pipeline.CloseNow, nil) })
	r.m.RunUntilIdle()
	select {
	case <-r.srv.empty:
	default:
		t.Error("the drain is not over when all is gone")
	}
}

// What had come before the drain is answered also by a channel that was not reading,
// because its peer had not taken the answers so far; what comes later is not read.
func TestDrainOfUnwritableChannel(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{HighWater: 1000}}, echo())
	first, second := letters(2000), letters(3000)
	r.k.take = []takeStep{{err: sys.ErrAgain}}
	r.readable(readStep{data: first})
	if r.Writable() || r.reading() {
		t.Fatal("the channel is writable, or reads all the same")
	}
	r.k.in = []readStep{{data: second}}
	r.log = nil
	r.drain()
	if !r.Open() {
		t.Fatal("closed with something unread")
	}
	r.k.in = append(r.k.in, readStep{err: sys.ErrAgain}, readStep{data: "too late"})
	r.ready(eventloop.EventWrite)
	r.ready(eventloop.EventRead)
	r.m.RunUntilIdle()
	r.wantOut(first + second)
	if r.Open() {
		t.Error("still open")
	}
	r.wantLog("event transport.Draining", "writable true", "complete", "inactive", "unregistered")
}

// It waits for it as long as the peer takes something, and no longer.
func TestDrainOfChannelWhosePeerTakesNothing(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{HighWater: 1000}}, echo())
	r.k.take = []takeStep{{err: sys.ErrAgain}}
	r.readable(readStep{data: letters(5000)})
	r.k.in = []readStep{{data: "unread"}}
	r.drain()
	for range 5 {
		r.m.Advance(defaultCloseTimeout - 1)
		r.k.take = []takeStep{{n: 1}, {err: sys.ErrAgain}}
		r.ready(eventloop.EventWrite)
		r.m.Advance(1)
		if !r.Open() {
			t.Fatal("closed while its peer was taking what it sends")
		}
	}
	r.m.Advance(defaultCloseTimeout)
	if r.at != streamClosing {
		t.Errorf("after a time without progress it is at %v, want it closing", r.at)
	}
	r.m.Advance(defaultCloseTimeout)
	r.m.RunUntilIdle()
	if !errors.Is(r.CloseReason(), ErrCloseTimeout) {
		t.Errorf("close reason: got %v, want ErrCloseTimeout", r.CloseReason())
	}
}

// What had come and is more than a turn reads is read in the next.
func TestDrainOfChannelWithMuchUnread(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{ReadWhileUnwritable: true}}, pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
		c.Write(fmt.Sprint(b.Len(), " "))
		b.Release()
		return nil
	}))
	for range 3 * maxReadsPerTurn {
		r.k.in = append(r.k.in, readStep{data: letters(recvSizes[0])})
	}
	r.drain()
	for range 3 * maxReadsPerTurn {
		if !r.Open() {
			break
		}
		r.ready(eventloop.EventRead)
	}
	n := 0
	for s := range strings.FieldsSeq(r.k.out.String()) {
		i, _ := strconv.Atoi(s)
		n += i
	}
	if all := 3 * maxReadsPerTurn * recvSizes[0]; n != all || r.Open() {
		t.Errorf("got %d bytes read, open %v; want %d and false", n, r.Open(), all)
	}
}

// A handler that stops reading in the middle is not waited for.
func TestDrainOfChannelThatStopsReading(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{HighWater: 1000}}, echo())
	r.k.take = []takeStep{{err: sys.ErrAgain}}
	r.readable(readStep{data: letters(2000)})
	r.k.in = []readStep{{data: "unread"}}
	r.do(func() { r.SetAutoRead(false) })
	r.drain()
	if r.at != streamClosing {
		t.Errorf("it is at %v, want it closing", r.at)
	}
	r.ready(eventloop.EventWrite)
	r.wantOut(letters(2000))
}

// A peer whose stream ends in a drain has said everything, also when the channel stays open.
func TestDrainEndsWithInput(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{HalfClose: true}}, echo())
	r.drain()
	if !r.Open() {
		t.Fatal("closed before the peer has had its time")
	}
	r.readable(readStep{eof: true})
	r.m.RunUntilIdle()
	if r.Open() {
		t.Error("still open after the end of the input")
	}
}
