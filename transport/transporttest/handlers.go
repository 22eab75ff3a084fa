package transporttest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// What Netty's suite has as SocketExceptionHandlingTest.
var handlerTests = []test{
	{name: "6.10 an error goes to the handlers and leaves the channel open", run: errorInRead},
	{name: "an error of the transport is told once, though it is answered", run: errorAnswered},
}

func init() {
	for _, when := range moments {
		switch when {
		case "Init", "HandleAdded", "HandleRemoved": // are told in another way
			continue
		case "a task", "a task at the end of the turn": // are the loop's
			continue
		}
		handlerTests = append(handlerTests, test{name: "a panic in " + when + " ends its channel and no other", run: func(f *fixture) { panicsIn(f, when) }})
	}
}

func errorInRead(f *fixture) {
	wrong := errors.New("wrong")
	reads := 0
	fails := pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
		defer b.Release()
		reads++
		return fmt.Errorf("read %d: %w", reads, wrong)
	})
	a, d := f.end(transport.Config{}, fails), f.end(transport.Config{})
	f.connect(a, d)
	for i := range 3 {
		d.ch.Write("x")
		a.wait("an error", func() bool { return len(a.errs) > i && a.completes > i })
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, err := range a.errs {
		if !errors.Is(err, wrong) || !strings.HasPrefix(err.Error(), fmt.Sprintf("read %d", i+1)) {
			f.Errorf("error %d: got %v", i, err)
		}
	}
	if !a.ch.Active() || len(a.errs) != 3 {
		f.Errorf("active %v after %d errors, want true after 3", a.ch.Active(), len(a.errs))
	}
}

// errorAnswered has handlers that answer an error, as those of a protocol do. If the
// channel ends by the error the answer is refused: it would fail for the same reason,
// and be answered again.
func errorAnswered(f *fixture) {
	for _, why := range []error{transport.ErrSlowPeer, nil} {
		told := 0
		w := f.expect(1)
		answer := pipeline.OnError(func(c *pipeline.Context, err error) {
			if told++; told > 10 {
				return
			}
			if told == 1 {
				c.WriteThen("sorry", w.then())
			}
			c.Write(pooled(make([]byte, 100)))
			c.Flush()
			c.FireError(err)
			c.Close()
		})
		cfg := transport.Config{}
		if why != nil {
			cfg.MaxPending = 300_000
		}
		a, d := f.end(transport.Config{ManualRead: true}), f.end(cfg, answer)
		f.connect(a, d)
		if why != nil {
			d.do(func() {
				for i := 0; i < 100_000 && d.ch.Open(); i++ {
					d.ch.Write(pooled(make([]byte, 10_000)))
				}
			})
		} else {
			a.ch.Reset()
			a.waitLog("removed")
			d.ch.Write("to nobody")
			if f.tr.NoReset { // perhaps it is no error for d that a has gone
				d.waitLog("removed")
				if d.saw("error") == 0 {
					w.then()(pipeline.ErrClosed)
				}
			}
		}
		w.wantAll(pipeline.ErrClosed)
		d.waitLog("removed")
		if n := d.saw("error"); n > 1 || why != nil && n != 1 {
			f.Errorf("errors: got %v, want one", d.errs)
		}
		if why != nil && !errors.Is(d.ch.CloseReason(), why) {
			f.Errorf("close reason: got %v, want %v", d.ch.CloseReason(), why)
		}
	}
}

// panicsIn has a handler panic at one moment of its channel's life. Another channel of
// the same loop goes on.
func panicsIn(f *fixture, at string) {
	f.settle() // makes the other
	h := &closer{at: at, do: func(pipeline.Channel) { panic("boom") }}
	a := f.end(transport.Config{}, echo())
	d := f.end(transport.Config{}, h)
	if !f.join(a, d) {
		d.waitLog("removed")
		wantPanic(f, d)
		f.settle()
		return
	}
	kept := pooled(make([]byte, 30_000))
	all := kept.Retain()
	_ = d.ch.Loop().Execute(func() {
		d.ch.WriteThen(all, func(error) {
			if at == "a completion" {
				panic("boom")
			}
		})
		switch at {
		case "HandleEvent":
			d.ch.Pipeline().FireEvent("an event")
		case "HandleError":
			d.ch.Pipeline().FireError(errors.New("an error"))
		case "HandleInactive", "HandleUnregistered":
			d.ch.Reset()
		case "HandleWritability":
			for range 1000 {
				if d.ch.Writable() {
					d.ch.Write(pooled(make([]byte, 100_000)))
				}
			}
		}
	})
	switch at {
	case "HandleWritability":
		a.ch.SetAutoRead(false)
	case "HandleRead", "HandleReadComplete":
		a.wait("the end", func() bool { return a.removed })
	}
	d.waitLog("removed")
	d.do(func() {}) // behind the write, which may have come after the end
	a.ch.Reset()    // which may have the message itself
	a.waitLog("removed")
	if f.tr.Lends {
		untilReturned()
	}
	if kept.Refs() != 1 {
		f.Errorf("references: got %d, want 1", kept.Refs())
	}
	kept.Release()
	switch at {
	case "HandleInactive", "HandleUnregistered":
		d.wait("the error", func() bool { return slices.ContainsFunc(d.errs, isPanic) || d.removed })
	case "HandleError": // is only logged: nobody is left to tell
	case "a completion": // belongs to the channel, behind its last handler
		if !isPanic(d.ch.CloseReason()) {
			f.Errorf("close reason: got %v, want the panic", d.ch.CloseReason())
		}
	default:
		wantPanic(f, d)
	}
	f.settle()
}

func isPanic(err error) bool {
	var p *pipeline.PanicError
	return errors.As(err, &p)
}

func wantPanic(f *fixture, e *end) {
	f.Helper()
	if !isPanic(e.ch.CloseReason()) {
		f.Errorf("close reason: got %v, want the panic", e.ch.CloseReason())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.ContainsFunc(e.errs, isPanic) {
		f.Errorf("errors: got %v, want the panic", e.errs)
	}
}
