package pipeline_test

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// What is in the queue of a handler that is removed still reaches it; then it is
// removed, and what came meanwhile follows.
func TestOffloadedRemoval(t *testing.T) {
	changes := map[string]func(p *pipeline.Pipeline, log *trace) error{
		"Remove":         func(p *pipeline.Pipeline, _ *trace) error { return p.Remove("b") },
		"Context.Remove": func(p *pipeline.Pipeline, _ *trace) error { return p.Get("b").Remove() },
		"Replace": func(p *pipeline.Pipeline, log *trace) error {
			_, err := p.Replace("b", "b", &tracer{name: "n", log: log})
			return err
		},
		"Replace by one elsewhere": func(p *pipeline.Pipeline, log *trace) error {
			_, err := p.Replace("b", "b", pipeline.Offloaded{Handler: &tracer{name: "n", log: log}})
			return err
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			log := new(trace)
			numbered := func(n string) *tracer {
				h := &tracer{name: n, log: log}
				h.on("read", func(k call) error {
					log.add(fmt.Sprintf("%s read %v", n, k.msg))
					k.c.FireRead(k.msg)
					return nil
				})
				h.on("write", func(k call) error {
					log.add(fmt.Sprintf("%s write %v", n, k.msg))
					k.c.ForwardWrite(k.msg, k.p)
					return nil
				})
				return h
			}
			a, b, c := numbered("a"), numbered("b"), numbered("c")
			ch := newChannel(t, embedded.Config{}, a)
			if _, err := ch.Pipeline().AddNamed("b", pipeline.Offloaded{Handler: b}); err != nil {
				t.Fatal(err)
			}
			if _, err := ch.Pipeline().AddNamed("c", c); err != nil {
				t.Fatal(err)
			}
			ch.Run()
			log.take()
			ch.ReadRequests()
			p := ch.Pipeline()
			old := p.Get("b")
			var told []string
			ch.Manual().Enter(func() {
				p.FireRead(1)
				ch.WriteThen(1, func(err error) { told = append(told, fmt.Sprint("1 ", err)) })
				if err := change(p, log); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if err := p.Remove(old); !errors.Is(err, pipeline.ErrNoHandler) || !old.Removed() {
					t.Errorf("a second removal: got %v, Removed %v; want ErrNoHandler", err, old.Removed())
				}
				if _, err := p.AddAfter(old, "x", new(sink)); !errors.Is(err, pipeline.ErrNoHandler) {
					t.Errorf("AddAfter: got %v, want ErrNoHandler", err)
				}
				p.FireRead(2)
				ch.WriteThen(2, func(err error) { told = append(told, fmt.Sprint("2 ", err)) })
				p.FireReadComplete()
				if n := readsOf(ch); n != 0 {
					t.Errorf("got %d reads asked for while a handler leaves, want none", n)
				}
			})
			ch.Run()
			calls := slices.DeleteFunc(slices.Clone(log.calls), func(s string) bool {
				return strings.HasSuffix(s, "flush") || strings.HasSuffix(s, "request") || strings.HasSuffix(s, " read") || strings.HasSuffix(s, " write") || s[0] == 'n'
			})
			of := func(h byte) (own []string) {
				for _, s := range calls {
					if s[0] == h {
						own = append(own, s)
					}
				}
				return own
			}
			checkCalls(t, "calls of b", of('b'), "b read 1", "b write 1", "b removed")
			checkCalls(t, "calls of c", of('c'), "c write 1", "c write 2", "c read 1", "c read 2", "c complete")
			checkCalls(t, "calls of a", of('a'), "a read 1", "a read 2", "a complete", "a write 1", "a write 2")
			checkCalls(t, "completions", told, "1 <nil>", "2 <nil>")
			if ch.ReadRequests() == 0 {
				t.Error("no read asked for at the end")
			}
			if strings.HasPrefix(name, "Replace") {
				checkCalls(t, "names", p.Names(), "tracer#0", "b", "c")
				if i, j := slices.Index(log.calls, "n added"), slices.Index(log.calls, "b removed"); i < 0 || i > j {
					t.Errorf("the new handler was not added first: %q", log.calls)
				}
			} else {
				checkCalls(t, "names", p.Names(), "tracer#0", "c")
			}
			for range 2 {
				ch.ReadInbound()
				ch.ReadOutbound()
			}
		})
	}
}

// What waits for a handler that leaves is bounded, and so is what waits for it.
func TestOffloadedRemovalIsBounded(t *testing.T) {
	man := eventloop.NewManual()
	defer man.Close()
	ch := newChannel(t, embedded.Config{Manual: man}, pipeline.Offloaded{Handler: new(forwarder), Max: 3})
	ch.Run()
	var msgs []*counted
	man.Enter(func() {
		if err := pipeline.Find[*forwarder](ch.Pipeline()).Remove(); err != nil {
			t.Error(err)
		}
		for range 5 {
			m := &counted{refs: 1}
			msgs = append(msgs, m)
			ch.Pipeline().FireRead(m)
		}
	})
	if ch.Open() || !errors.Is(ch.CloseReason(), eventloop.ErrOffloadFull) {
		t.Errorf("got open %v because of %v, want closed because of ErrOffloadFull", ch.Open(), ch.CloseReason())
	}
	if err := ch.CheckError(); !errors.Is(err, eventloop.ErrOffloadFull) {
		t.Errorf("HandleError got %v, want ErrOffloadFull", err)
	}
	if n := ch.ReleaseAll(); n != 3 {
		t.Errorf("%d messages have gone on, want 3", n)
	}
	for i, m := range msgs {
		if m.refs != 0 {
			t.Errorf("message %d: %d references, want none", i, m.refs)
		}
	}
}

// A channel that ends lets the handlers behind know before it removes them, from the
// tail to the head, and nothing is removed before what is queued has been delivered.
func TestOffloadedEnd(t *testing.T) {
	log := new(trace)
	a, b, c, d := &tracer{name: "a", log: log}, &tracer{name: "b", log: log}, &tracer{name: "c", log: log}, &tracer{name: "d", log: log}
	ch := newChannel(t, embedded.Config{}, a, pipeline.Offloaded{Handler: b}, c, pipeline.Offloaded{Handler: d})
	ch.Run()
	log.take()
	ch.Manual().Enter(func() {
		ch.Pipeline().FireRead(1)
		ch.Reset()
	})
	ch.Run()
	for _, h := range []string{"a", "b", "c", "d"} {
		got := slices.DeleteFunc(slices.Clone(log.calls), func(s string) bool { return s[:1] != h || strings.HasSuffix(s, "flush") })
		checkCalls(t, "calls", got, h+" read", h+" inactive", h+" unregistered", h+" removed")
	}
	checkCalls(t, "the last calls", log.calls[len(log.calls)-5:], "d unregistered", "d removed", "c removed", "b removed", "a removed")
	if err := ch.Pipeline().Add(new(sink)); !errors.Is(err, pipeline.ErrClosed) {
		t.Errorf("Add at the end: got %v, want ErrClosed", err)
	}
}

// Without a loop, and without workers, everything is still told.
func TestOffloadedAfterItsLoop(t *testing.T) {
	man := eventloop.NewManual()
	log := new(trace)
	a, b, c := &tracer{name: "a", log: log}, &tracer{name: "b", log: log}, &tracer{name: "c", log: log}
	ch := embedded.NewConfig(embedded.Config{Manual: man}, a, pipeline.Offloaded{Handler: b}, c)
	ch.Run()
	log.take()
	man.Close()
	msg := &counted{refs: 1}
	var told []error
	ch.Pipeline().Get("tracer#1").WriteThen(msg, func(err error) { told = append(told, err) })
	if err := ch.Finish(); err != nil {
		t.Errorf("Finish: %v", err)
	}
	got := slices.DeleteFunc(log.calls, func(s string) bool { return strings.HasSuffix(s, "flush") })
	checkCalls(t, "calls", got, "a inactive", "b inactive", "c inactive", "a unregistered", "b unregistered", "c unregistered",
		"c removed", "b removed", "a removed")
	if msg.refs != 0 || len(told) != 1 || !errors.Is(told[0], pipeline.ErrClosed) {
		t.Errorf("a write: %d references, completed with %v", msg.refs, told)
	}
}

// A handler behind that leaves by Goexit, over a message that was held while another
// one was being removed, keeps nothing else from going on.
func TestOffloadedRemovalAndGoexit(t *testing.T) {
	var got []any
	ch := embedded.New(pipeline.Offloaded{Handler: new(forwarder)}, readFunc(func(_ *pipeline.Context, msg any) error {
		got = append(got, msg)
		if msg == 2 {
			runtime.Goexit()
		}
		return nil
	}))
	ch.Run()
	ch.Manual().Enter(func() {
		p := ch.Pipeline()
		p.FireRead(1)
		if err := p.Remove("forwarder#0"); err != nil {
			t.Error(err)
		}
		p.FireRead(2)
		p.FireRead(3)
	})
	drive(ch.Manual())
	if !slices.Equal(got, []any{1, 2, 3}) || !errors.Is(ch.CloseReason(), pipeline.ErrGoexit) {
		t.Errorf("got %v, closed because of %v; want 1, 2, 3 and ErrGoexit", got, ch.CloseReason())
	}
	if n := ch.Pipeline().Names(); len(n) != 0 {
		t.Errorf("left in the pipeline: %q", n)
	}
	_ = ch.Finish()
}

// A loop that ends while a handler is being removed elsewhere: the removal is finished
// where the end is found, and nothing is leaked.
func TestOffloadedRemovalOutlivesItsLoop(t *testing.T) {
	man := eventloop.NewManual()
	o, err := eventloop.NewOffload(eventloop.OffloadConfig{})
	if err != nil {
		t.Fatal(err)
	}
	begun, release := make(chan struct{}), make(chan struct{})
	log := new(trace)
	b := (&tracer{name: "b", log: log}).on("read", func(k call) error {
		close(begun)
		<-release
		buffer.Release(k.msg)
		return nil
	})
	m := &memory{ended: make(chan struct{})}
	m.Setup(m, (*memoryCore)(m), pipeline.BaseConfig{Loop: man.Loop(), HighWater: 1 << 16})
	msgs := []*counted{{refs: 1}, {refs: 1}}
	man.Enter(func() {
		if err := m.Register(nil); err != nil {
			t.Error(err)
		}
		m.MarkActive()
		p := m.Pipeline()
		if _, err := p.AddNamed("b", pipeline.Offloaded{Handler: b, Executor: o}); err != nil {
			t.Error(err)
		}
		p.FireRead(msgs[0])
		if err := p.Remove("b"); err != nil {
			t.Error(err)
		}
		p.FireRead(msgs[1])
	})
	await(t, "the handler", begun)
	man.Close()
	close(release)
	if err := o.Close(); err != nil {
		t.Error(err)
	}
	if n := log.count("b removed"); n != 1 {
		t.Errorf("HandleRemoved: got %d calls, want 1", n)
	}
	for i, msg := range msgs {
		if msg.refs != 0 {
			t.Errorf("message %d: %d references, want none", i, msg.refs)
		}
	}
}

// What a handler passes on while it is removed comes before what waits for its place.
func TestOffloadedPassesOnAtRemoval(t *testing.T) {
	var got []any
	ch := newChannel(t, embedded.Config{}, pipeline.Offloaded{Handler: &hoarder{}},
		readFunc(func(_ *pipeline.Context, msg any) error { got = append(got, msg); return nil }))
	ch.Run()
	ch.Manual().Enter(func() {
		ch.Pipeline().FireRead(1)
		ch.Pipeline().FireRead(2)
		if _, err := ch.Pipeline().Replace("hoarder#0", "", new(forwarder)); err != nil {
			t.Error(err)
		}
		ch.Pipeline().FireRead(3)
	})
	ch.Run()
	if !slices.Equal(got, []any{1, 2, 3}) {
		t.Errorf("got %v, want what was kept before what came later", got)
	}
	if n := pipeline.Find[*forwarder](ch.Pipeline()).Handler().(*forwarder).n; n != 3 {
		t.Errorf("the new handler got %d messages, want all 3", n)
	}
}

// hoarder keeps what it reads until it is removed.
type hoarder struct{ kept []any }

func (k *hoarder) HandleRead(_ *pipeline.Context, msg any) error {
	k.kept = append(k.kept, msg)
	return nil
}

func (k *hoarder) HandleRemoved(c *pipeline.Context) {
	for _, m := range k.kept {
		c.FireRead(m)
	}
}
