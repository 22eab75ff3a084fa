package pipeline_test

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// methods are the methods of a handler, what makes each be called, and whether it is
// a notification.
var methods = []struct {
	name         string
	trigger      func(ch *embedded.Channel)
	notification bool
	inactive     bool // needs a channel that is not active yet
}{
	{name: "read", trigger: func(ch *embedded.Channel) { ch.Pipeline().FireRead(1) }},
	{name: "event", trigger: func(ch *embedded.Channel) { ch.Pipeline().FireEvent(1) }},
	{name: "error", trigger: func(ch *embedded.Channel) { ch.Pipeline().FireError(errors.New("some error")) }},
	{name: "complete", trigger: func(ch *embedded.Channel) { ch.Pipeline().FireReadComplete() }, notification: true},
	{name: "active", trigger: func(ch *embedded.Channel) { ch.MarkActive() }, notification: true, inactive: true},
	{name: "inactive", trigger: func(ch *embedded.Channel) { ch.Close() }, notification: true},
	{name: "unregistered", trigger: func(ch *embedded.Channel) { ch.Close() }, notification: true},
	{name: "writability", trigger: func(ch *embedded.Channel) { ch.SetPending(1 << 20) }, notification: true},
	{name: "write", trigger: func(ch *embedded.Channel) { ch.Write(1) }},
	{name: "flush", trigger: func(ch *embedded.Channel) { ch.Flush() }},
	{name: "request", trigger: func(ch *embedded.Channel) { ch.Read() }},
	{name: "connect", trigger: func(ch *embedded.Channel) { ch.Pipeline().Connect(nil, nil, nil) }},
	{name: "close", trigger: func(ch *embedded.Channel) { ch.Close() }},
	{name: "closewrite", trigger: func(ch *embedded.Channel) { ch.CloseWrite() }},
	{name: "removed", trigger: func(ch *embedded.Channel) { _ = ch.Pipeline().Remove("b") }},
	{name: "added", trigger: func(ch *embedded.Channel) {
		_, _ = ch.Pipeline().AddNamed("late", ch.Pipeline().Get("b").Handler())
	}},
}

// A panic or a Goexit in a handler becomes HandleError, first its own, then closes
// the channel; notifications go on behind it; nobody else is harmed. Whatever the
// method, and however deep in the stack the pipeline was entered.
func TestDesign1_BrokenHandler(t *testing.T) {
	failures := []struct {
		name string
		fail func()
		is   func(err error) bool
	}{
		{"panic", func() { panic("boom") }, func(err error) bool {
			var pe *pipeline.PanicError
			return errors.As(err, &pe) && pe.Value == "boom" &&
				strings.Contains(string(pe.Stack), "guard_test.go")
		}},
		{"goexit", runtime.Goexit, func(err error) bool { return errors.Is(err, pipeline.ErrGoexit) }},
	}
	nestings := []string{"entry", "in own read", "in own notification", "in another channel's read", "there and back"}
	for _, m := range methods {
		for _, fail := range failures {
			for _, nesting := range nestings {
				if m.inactive && nesting != "entry" && nesting != "in another channel's read" {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%s", m.name, fail.name, nesting), func(t *testing.T) {
					man := eventloop.NewManual()
					defer man.Close()
					log := new(trace)
					var errs []error
					armed := false
					a, b, c := &tracer{name: "a", log: log}, &tracer{name: "b", log: log}, &tracer{name: "c", log: log}
					fired := 0
					b.on(m.name, func(k call) error {
						if m.name == "error" {
							errs = append(errs, k.msg.(error))
						}
						if armed {
							armed = false
							fired++
							fail.fail()
						}
						return nil
					})
					if m.name != "error" {
						b.on("error", func(k call) error {
							errs = append(errs, k.msg.(error))
							return nil
						})
					}
					c.on("error", func(k call) error {
						errs = append(errs, k.msg.(error))
						return nil
					})
					ch := embedded.NewConfig(embedded.Config{Manual: man, Inactive: m.inactive}, a)
					for _, h := range []*tracer{b, c} {
						if _, err := ch.Pipeline().AddNamed(h.name, h); err != nil {
							t.Fatal(err)
						}
					}
					other := embedded.NewConfig(embedded.Config{Manual: man},
						pipeline.On(func(_ *pipeline.Context, f func()) error { f(); return nil }))
					trigger := func() { m.trigger(ch) }
					switch nesting {
					case "entry":
					case "in own read":
						a.on("read", func(k call) error {
							if f, ok := k.msg.(func()); ok {
								f()
								return nil
							}
							k.c.FireRead(k.msg)
							return nil
						})
						trigger = func() { ch.Pipeline().FireRead(func() { m.trigger(ch) }) }
					case "in own notification":
						once := true
						a.on("registered", func(k call) error {
							if once {
								once = false
								m.trigger(ch)
							}
							return nil
						})
						trigger = func() {
							// Registered comes once by itself; it is fired once more here.
							a.on("event", func(k call) error {
								_, _ = ch.Pipeline().AddBefore(ch.Pipeline().Names()[0], "first", pipeline.OnEvent(
									func(k *pipeline.Context, _ string) error { k.FireRegistered(); return nil }))
								return nil
							})
							ch.Pipeline().FireEvent("prepare")
							a.do["event"] = nil
							ch.Pipeline().FireEvent("fire")
						}
					case "in another channel's read":
						trigger = func() { other.Pipeline().FireRead(func() { m.trigger(ch) }) }
					case "there and back":
						a.on("read", func(k call) error {
							if f, ok := k.msg.(func()); ok {
								f()
								return nil
							}
							k.c.FireRead(k.msg)
							return nil
						})
						trigger = func() {
							ch.Pipeline().FireRead(func() {
								other.Pipeline().FireRead(func() { m.trigger(ch) })
							})
						}
					}
					log.take()
					armed = true
					elsewhere(func() { ch.Do(trigger) })
					man.RunUntilIdle()

					if fired != 1 {
						t.Fatalf("the handler failed %d times, want once", fired)
					}
					if !ch.Open() != true || !fail.is(ch.CloseReason()) && m.name != "close" && m.name != "inactive" && m.name != "unregistered" {
						t.Errorf("closed %v because of %v, want because of the handler", !ch.Open(), ch.CloseReason())
					}
					if fail.name == "panic" && !other.Open() {
						t.Errorf("the other channel is closed: %v", other.CloseReason())
					}
					told := 0
					for _, err := range errs {
						if fail.is(err) {
							told++
						}
					}
					want := 1
					if m.name == "error" {
						want = 0 // a panic in HandleError is only logged
					}
					if told != want {
						t.Errorf("HandleError told %d times, want %d: %v", told, want, errs)
					}
					if m.notification && log.count("c "+m.name) != 1 {
						t.Errorf("the handler behind got the notification %d times, want once: %q", log.count("c "+m.name), log.calls)
					}
					if m.notification {
						err, next := slices.Index(log.calls, "b error"), slices.Index(log.calls, "c "+m.name)
						if err > next {
							t.Errorf("HandleError after the notification went on: %q", log.calls)
						}
					}
					wantRemoved := map[string]int{"a": 1, "b": 1, "c": 1}
					if m.name == "added" {
						wantRemoved["b"] = 2 // it was added twice
					}
					for n, want := range wantRemoved {
						if got := log.count(n + " removed"); got != want {
							t.Errorf("%s removed %d times, want %d", n, got, want)
						}
					}
					for _, n := range []string{"a", "b", "c"} {
						for _, ev := range []string{"inactive", "unregistered"} {
							if got := log.count(n + " " + ev); got > 1 {
								t.Errorf("%s %s %d times: %q", n, ev, got, log.calls)
							}
						}
					}
					if names := ch.Pipeline().Names(); len(names) != 0 {
						t.Errorf("left in the pipeline: %q", names)
					}
					// The guards are in order again: nobody is taken for nested.
					if fail.name == "panic" {
						other.Do(func() { other.Pipeline().FireRead(func() { panic("again") }) })
						if other.Open() {
							t.Error("a later panic did not close the other channel")
						}
					}
					_ = ch.Finish()
					_ = other.Finish()
				})
			}
		}
	}
}

// A handler that is called by another one and panics is not recovered by the latter's
// pipeline: the error is its own.
func TestDesign1_PanicBelongsToItsChannel(t *testing.T) {
	man := eventloop.NewManual()
	defer man.Close()
	to := embedded.NewConfig(embedded.Config{Manual: man},
		pipeline.OnWrite(func(*pipeline.Context, string, *eventloop.Promise) error { panic("in to") }))
	after := false
	from := embedded.NewConfig(embedded.Config{Manual: man},
		pipeline.On(func(c *pipeline.Context, s string) error {
			to.Write(s)
			after = true
			return nil
		}))
	from.WriteInbound("x")
	if to.Open() || !from.Open() || !after {
		t.Errorf("got to open %v, from open %v, handler went on %v; want false, true, true", to.Open(), from.Open(), after)
	}
	var pe *pipeline.PanicError
	if err := to.CheckError(); !errors.As(err, &pe) || pe.Handler != "OnWrite[string]#0" {
		t.Errorf("got %v, want a panic in OnWrite[string]#0", err)
	}
	_ = from.Finish()
}

func TestDesign1_PanicFailsPromise(t *testing.T) {
	for _, m := range []string{"write", "close", "closewrite", "connect"} {
		t.Run(m, func(t *testing.T) {
			ch, _, hs := tracers(t, embedded.Config{Inactive: m == "connect"}, "a")
			hs[0].on(m, func(call) error { panic("boom") })
			var got []error
			p := func() *eventloop.Promise {
				p := eventloop.NewPromise(ch.Loop())
				p.Then(func(err error) { got = append(got, err) })
				return p
			}
			ch.Do(func() {
				switch m {
				case "write":
					ch.WriteThen("x", func(err error) { got = append(got, err) })
				case "close":
					ch.CloseThen(func(err error) { got = append(got, err) })
				case "closewrite":
					c, _ := ch.Pipeline().AddNamed("last", new(sink))
					c.ForwardCloseWrite(p())
				case "connect":
					ch.Pipeline().Connect(nil, nil, p())
				}
			})
			var pe *pipeline.PanicError
			if len(got) != 1 || !errors.As(got[0], &pe) {
				t.Errorf("completed with %v, want once with the panic", got)
			}
		})
	}
}

func TestDesign1_PanicInErrorKeepsNotification(t *testing.T) {
	ch, log, hs := tracers(t, embedded.Config{}, "a", "b")
	hs[0].on("complete", func(call) error { return errors.New("some error") })
	hs[0].on("error", func(call) error { panic("boom") })
	ch.Do(ch.Pipeline().FireReadComplete)
	checkCalls(t, "calls", log.of("complete", "error"), "a complete", "a error", "b complete")
	if ch.Open() {
		t.Error("the channel is open, want closed by the panic")
	}
}

// A held notification stays held.
func TestDesign1_PanicInInterceptor(t *testing.T) {
	log := new(trace)
	ch := newChannel(t, embedded.Config{}, interceptor(func(*pipeline.Context) error { panic("boom") }),
		&tracer{name: "b", log: log})
	if n := log.count("b active"); n != 0 {
		t.Errorf("active came %d times, want it held", n)
	}
	if ch.Open() {
		t.Error("the channel is open, want closed by the panic")
	}
}

type interceptor func(c *pipeline.Context) error

func (f interceptor) InterceptActive(c *pipeline.Context) error { return f(c) }

// Callbacks, tasks, timers and offloaded results run as their handler.
func TestDesign1_PanicInCallback(t *testing.T) {
	for name, start := range map[string]func(c *pipeline.Context){
		"WriteThen": func(c *pipeline.Context) { c.WriteThen("x", func(error) { panic("boom") }) },
		"Execute":   func(c *pipeline.Context) { _ = c.Execute(func() { panic("boom") }) },
		"Schedule":  func(c *pipeline.Context) { c.Schedule(0, func() { panic("boom") }) },
		"Offload": func(c *pipeline.Context) {
			c.Offload(noWork, func(any, error) { panic("boom") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			ch, _, hs := tracers(t, embedded.Config{}, "a")
			var got error
			hs[0].on("error", func(k call) error { got = k.msg.(error); return nil })
			ch.Do(func() { start(ch.Pipeline().Get("tracer#0")) })
			ch.Run()
			var pe *pipeline.PanicError
			if !errors.As(got, &pe) || pe.Handler != "tracer#0" {
				t.Errorf("HandleError got %v, want the panic of tracer#0", got)
			}
			if ch.Open() {
				t.Error("the channel is open, want closed by the panic")
			}
		})
	}
}

// The panic of a HandleError, and an error that nobody handles, are logged with the
// stack, the channel and the handler.
func TestDesign1_Logged(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	l := newLoop(t)
	boom := false
	m := &memory{ended: make(chan struct{})}
	m.Setup(m, (*memoryCore)(m), pipeline.BaseConfig{Loop: l, Logger: zap.New(core), HighWater: 1})
	onLoop(t, l, func() {
		_ = m.Register(func(ch pipeline.Channel) error {
			return ch.Pipeline().Add(
				pipeline.On(func(*pipeline.Context, int) error { return errors.New("from read") }),
				pipeline.OnError(func(c *pipeline.Context, err error) {
					if boom {
						panic("in error")
					}
					c.FireError(err)
				}))
		})
		m.MarkActive()
		m.Pipeline().FireRead(1)
		m.Pipeline().FireRead("nobody's")
		m.Pipeline().FireError(errors.New("from transport"))
		boom = true
		m.Pipeline().FireRead(1)
	})
	await(t, "the end", m.ended)
	want := []struct{ msg, handler, err string }{
		{"unhandled error", "On[int]#0", "from read"},
		{"unhandled message", "", ""},
		{"unhandled error", "transport", "from transport"},
		{"panic in HandleError", "OnError#0", `pipeline: panic in handler "OnError#0": in error`},
	}
	got := logs.All()
	if len(got) != len(want) {
		t.Fatalf("got %d lines, want %d: %v", len(got), len(want), got)
	}
	for i, w := range want {
		f := got[i].ContextMap()
		if got[i].Message != w.msg || w.handler != "" && (f["handler"] != w.handler || f["error"] != w.err) {
			t.Errorf("line %d: got %q %v, want %v", i, got[i].Message, f, w)
		}
		if f["channel"] == nil {
			t.Errorf("line %d names no channel", i)
		}
	}
	if stack, _ := got[3].ContextMap()["stack"].(string); !strings.Contains(stack, "guard_test.go") {
		t.Errorf("stack of the panic: got %q, want one that shows this file", stack)
	}
}

// Goexit does not kill the loop: the channel closes, others go on.
func TestDesign1_GoexitOnLoop(t *testing.T) {
	l := newLoop(t)
	var told error
	bad := newMemory(t, l,
		pipeline.On(func(*pipeline.Context, int) error { runtime.Goexit(); return nil }),
		pipeline.OnError(func(_ *pipeline.Context, err error) { told = err }))
	got := make(chan int, 1)
	good := newMemory(t, l, pipeline.On(func(_ *pipeline.Context, n int) error { got <- n; return nil }))
	bad.Pipeline().FireRead(1)
	await(t, "the end of the channel", bad.ended)
	good.Pipeline().FireRead(2)
	if n := await(t, "a read on another channel", got); n != 2 {
		t.Errorf("got %d, want 2", n)
	}
	onLoop(t, l, func() {
		if !errors.Is(told, pipeline.ErrGoexit) {
			t.Errorf("HandleError got %v, want ErrGoexit", told)
		}
	})
	good.Close()
	await(t, "the end of the other", good.ended)
}

// A Goexit in a HandleAdded that Init has caused is over with Init: a later one, of another
// handler, is told as any other.
func TestGoexitInHandleAddedOfInit(t *testing.T) {
	log := new(trace)
	var ch *embedded.Channel
	a := &tracer{name: "a", log: log}
	a.on("removed", func(call) error { runtime.Goexit(); return nil })
	b := &tracer{name: "b", log: log}
	b.on("added", func(k call) error {
		ch = k.c.Channel().(*embedded.Channel)
		runtime.Goexit()
		return nil
	})
	elsewhere(func() { embedded.New(a, b) })
	elsewhere(func() { ch.Run() }) // the channel's end, with a's Goexit in it
	checkCalls(t, "handlers", log.take(), "a added", "b added", "b removed", "a error", "a removed")
	for _, where := range []string{"HandleAdded", "HandleRemoved"} {
		if err := ch.CheckError(); !errors.Is(err, pipeline.ErrGoexit) {
			t.Errorf("%s: got %v at the tail, want ErrGoexit", where, err)
		}
	}
	if err := ch.Finish(); err != nil {
		t.Error(err)
	}
}

// Goexit in a method that is called while the channel ends does not keep the rest
// from being called.
func TestDesign1_GoexitAtEnd(t *testing.T) {
	for _, method := range []string{"inactive", "unregistered", "removed"} {
		t.Run(method, func(t *testing.T) {
			l := newLoop(t)
			log := new(trace)
			a, b := &tracer{name: "a", log: log}, &tracer{name: "b", log: log}
			b.on(method, func(call) error { runtime.Goexit(); return nil })
			a.on(method, func(call) error { runtime.Goexit(); return nil })
			b.on("error", func(call) error { return nil })
			m := newMemory(t, l, a, b)
			onLoop(t, l, func() { log.take() })
			m.Close()
			await(t, "the end", m.ended)
			onLoop(t, l, func() {
				for _, n := range []string{"a", "b"} {
					for _, ev := range []string{"inactive", "unregistered", "removed"} {
						if got := log.count(n + " " + ev); got != 1 {
							t.Errorf("%s %s: got %d calls, want 1 in %q", n, ev, got, log.calls)
						}
					}
				}
			})
		})
	}
}

func TestDesign1_BrokenInit(t *testing.T) {
	l := newLoop(t)
	for name, init := range map[string]func(pipeline.Channel) error{
		"error":  func(pipeline.Channel) error { return errors.New("some error") },
		"panic":  func(pipeline.Channel) error { panic("boom") },
		"goexit": func(pipeline.Channel) error { runtime.Goexit(); return nil },
		"promise": func(ch pipeline.Channel) error {
			ch.WriteThen("x", func(err error) {
				if err == nil {
					t.Error("a write failed by a panic: got nil")
				}
			})
			panic("boom")
		},
	} {
		t.Run(name, func(t *testing.T) {
			log := new(trace)
			m := &memory{ended: make(chan struct{})}
			m.Setup(m, (*memoryCore)(m), pipeline.BaseConfig{Loop: l, HighWater: 1})
			got := make(chan error, 1)
			h := &tracer{name: "a", log: log}
			h.on("write", func(call) error { panic("in write") })
			_ = l.Execute(func() {
				err := errors.New("did not return")
				defer func() { got <- err }()
				err = m.Register(func(ch pipeline.Channel) error {
					if err := ch.Pipeline().Add(h); err != nil {
						t.Error(err)
					}
					return init(ch)
				})
			})
			if err := await(t, "Register", got); err == nil {
				t.Error("Register: got nil, want an error")
			}
			await(t, "the end", m.ended)
			if m.Open() {
				t.Error("the channel is open")
			}
			onLoop(t, l, func() {
				if n := log.count("a removed"); n != 1 {
					t.Errorf("HandleRemoved: got %d calls, want 1", n)
				}
				if n := len(log.of("registered", "active", "inactive")); n != 0 {
					t.Errorf("events of a channel that never was: %q", log.calls)
				}
			})
		})
	}
}
