package pipeline_test

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// aside is a configuration that makes a handler.
type aside struct{ n int }

func (a aside) NewHandler() any { return &forwarder{n: a.n} }

// byItself is one whose handlers are for an executor.
type byItself struct{}

func (byItself) NewHandler() any { return pipeline.Offloaded{Handler: new(forwarder)} }

func TestOffloadedLookup(t *testing.T) {
	ch := newChannel(t, embedded.Config{})
	p := ch.Pipeline()
	h := new(sink)
	if err := p.Add(pipeline.Offloaded{Handler: h}, pipeline.Offloaded{Handler: aside{7}}, byItself{}); err != nil {
		t.Fatal(err)
	}
	named, err := p.AddNamed("given", pipeline.Offloaded{Handler: new(counter)})
	if err != nil {
		t.Fatal(err)
	}
	checkCalls(t, "names", p.Names(), "sink#0", "aside#0", "byItself#0", "given")
	if c := pipeline.Find[*sink](p); c == nil || c.Handler() != any(h) || c.Name() != "sink#0" {
		t.Errorf("Find[*sink]: got %v", c)
	}
	if c := pipeline.Find[aside](p); c == nil || c.Handler().(*forwarder).n != 7 {
		t.Errorf("Find[aside]: got %v", c)
	}
	if c := pipeline.Find[byItself](p); c == nil || reflect.TypeOf(c.Handler()) != reflect.TypeFor[*forwarder]() {
		t.Errorf("Find[byItself]: got %v", c)
	}
	if c := pipeline.Find[pipeline.ReadCompleteHandler](p); c != named {
		t.Errorf("Find[ReadCompleteHandler]: got %v, want the only handler that is one", c)
	}
	if c := pipeline.Find[pipeline.WriteHandler](p); c != nil {
		t.Errorf("Find[WriteHandler]: got %v, want none", c.Name())
	}
	for name, bad := range map[string]any{
		"nothing":        pipeline.Offloaded{},
		"no handler":     pipeline.Offloaded{Handler: 1},
		"both forms":     pipeline.Offloaded{Handler: twice{}},
		"two deep":       pipeline.Offloaded{Handler: pipeline.Offloaded{Handler: new(sink)}},
		"two by a Maker": pipeline.Offloaded{Handler: byItself{}},
	} {
		if err := p.Add(bad); !errors.Is(err, pipeline.ErrNotHandler) {
			t.Errorf("%s: got %v, want ErrNotHandler", name, err)
		}
	}
	other := newChannel(t, embedded.Config{})
	for _, bad := range []pipeline.Offloaded{{Mark: -1}, {Max: -1}, {Mark: 2, Max: 1}} {
		bad.Handler = new(sink)
		if err := other.Pipeline().Add(bad); err == nil {
			t.Errorf("Mark %d, Max %d: got no error", bad.Mark, bad.Max)
		}
	}
	if n := len(other.Pipeline().Names()); n != 0 {
		t.Errorf("%d handlers added in spite of an error", n)
	}
}

type twice struct{}

func (twice) HandleActive(*pipeline.Context) error { return nil }

func (twice) InterceptActive(*pipeline.Context) error { return nil }

// between makes a channel with tracers a and c, and the handler b between them on an
// executor. It begins with an empty log.
func between(t *testing.T, cfg embedded.Config, log *trace, b any) (ch *embedded.Channel, a, c *tracer) {
	t.Helper()
	a, c = &tracer{name: "a", log: log}, &tracer{name: "c", log: log}
	ch = newChannel(t, cfg, a, pipeline.Offloaded{Handler: b}, c)
	ch.Run()
	log.take()
	return ch, a, c
}

// A handler that takes everything gets everything, off the loop, and what it passes on
// comes to the next one as on the loop.
func TestOffloadedTakesAll(t *testing.T) {
	run := func(offloaded bool) (calls []string, onLoop int) {
		log := new(trace)
		b := &tracer{name: "b", log: log}
		var h any = b
		if offloaded {
			h = pipeline.Offloaded{Handler: b}
		}
		a, c := &tracer{name: "a", log: log}, &tracer{name: "c", log: log}
		ch := embedded.NewConfig(embedded.Config{Inactive: true}, a, h, c)
		for _, m := range []string{"read", "event", "complete", "active", "write", "close"} {
			b.on(m, func(k call) error {
				if ch.Loop().InLoop() {
					onLoop++
				}
				switch m {
				case "read":
					k.c.FireRead(k.msg)
				case "event":
					k.c.FireEvent(k.msg)
				case "write":
					k.c.ForwardWrite(k.msg, k.p)
				case "close":
					k.c.ForwardClose(k.p)
				}
				return nil
			})
		}
		ch.Run()
		ch.Do(func() { ch.Pipeline().Connect(nil, nil, nil) })
		ch.Run()
		ch.WriteInbound(1, 2)
		ch.Run()
		ch.Do(func() { ch.Pipeline().FireEvent("event") })
		ch.Run()
		ch.Do(func() { ch.Pipeline().FireError(errSome) })
		ch.Run()
		ch.Do(func() { ch.SetPending(1 << 20); ch.SetPending(0) })
		ch.Run()
		ch.Do(func() { ch.Write("out"); ch.CloseWrite() })
		ch.Run()
		ch.Do(ch.Close)
		ch.Run()
		if got := ch.ReadOutbound(); got != "out" {
			t.Errorf("offloaded %v: got %v written, want out", offloaded, got)
		}
		if err := ch.Finish(); err != errSome {
			t.Errorf("offloaded %v: got error %v, want the one that was fired", offloaded, err)
		}
		ch.ReleaseAll()
		return log.take(), onLoop
	}
	want, n := run(false)
	if n == 0 {
		t.Fatal("not on the loop")
	}
	got, n := run(true)
	if n != 0 {
		t.Errorf("%d calls on the loop, want none", n)
	}
	// A turn's end flushes once more for each turn that a write takes to come back.
	noFlush := func(s string) bool { return strings.HasSuffix(s, " flush") || strings.HasSuffix(s, " request") }
	for _, h := range []string{"a", "b", "c"} {
		of := func(calls []string) (own []string) {
			for _, s := range calls {
				if strings.HasPrefix(s, h+" ") && !noFlush(s) {
					own = append(own, s)
				}
			}
			return own
		}
		if g, w := of(got), of(want); !slices.Equal(g, w) {
			t.Errorf("calls of %s:\n got %q\nwant %q, as on the loop", h, g, w)
		}
	}
}

// A handler that takes inbound events only is not in the way of operations, and the
// other way round.
func TestOffloadedDirections(t *testing.T) {
	log := new(trace)
	var hs []any
	for _, h := range []any{new(forwarder), new(writeForwarder), new(bystander)} {
		hs = append(hs, pipeline.Offloaded{Handler: h})
	}
	ch := newChannel(t, embedded.Config{}, append(hs, &tracer{name: "c", log: log})...)
	ch.Run()
	p := ch.Pipeline()
	log.take()
	ch.Manual().Enter(func() {
		pipeline.Find[*writeForwarder](p).FireRead(1) // past those behind the forwarder
		checkCalls(t, "inbound past an outbound handler", log.take(), "c read")
		pipeline.Find[*writeForwarder](p).Write(1)
	})
	ch.Manual().Turn()
	if got := ch.ReadOutbound(); got != 1 {
		t.Errorf("a write past an inbound handler: got %v written in the turn, want 1", got)
	}
}

// Where an error goes.
func TestOffloadedErrors(t *testing.T) {
	tests := []struct {
		name    string
		method  string // that returns the error
		own     bool   // the handler has a HandleError
		promise bool
		want    []string
	}{
		{"inbound, own", "read", true, false, []string{"b error"}},
		{"inbound, none of its own", "read", false, false, []string{"c error"}},
		{"outbound with a promise", "write", true, true, nil},
		{"outbound without", "write", false, false, []string{"a error", "c error"}},
		{"outbound without, own", "write", true, false, []string{"a error", "b error"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			log := new(trace)
			fail := func() error { return errSome }
			var b any
			switch {
			case tt.own && tt.method == "read":
				b = &struct {
					readFunc
					errorFunc
				}{func(*pipeline.Context, any) error { return fail() }, func(*pipeline.Context, error) { log.add("b error") }}
			case tt.method == "read":
				b = readFunc(func(*pipeline.Context, any) error { return fail() })
			case tt.own:
				b = &struct {
					writeFunc
					errorFunc
				}{func(*pipeline.Context, any, *eventloop.Promise) error { return fail() }, func(*pipeline.Context, error) { log.add("b error") }}
			default:
				b = writeFunc(func(*pipeline.Context, any, *eventloop.Promise) error { return fail() })
			}
			ch, _, _ := between(t, embedded.Config{}, log, b)
			var told []error
			ch.Do(func() {
				switch {
				case tt.method == "read":
					ch.Pipeline().FireRead(1)
				case tt.promise:
					ch.WriteThen(1, func(err error) { told = append(told, err) })
				default:
					ch.Write(1)
				}
			})
			ch.Run()
			checkCalls(t, "told", log.of("error"), tt.want...)
			if tt.promise && (len(told) != 1 || told[0] != errSome) {
				t.Errorf("completed with %v, want once with %v", told, errSome)
			}
			if !ch.Open() {
				t.Error("an error has closed the channel")
			}
			_ = ch.CheckError()
		})
	}
}

type (
	readFunc  func(c *pipeline.Context, msg any) error
	writeFunc func(c *pipeline.Context, msg any, p *eventloop.Promise) error
	errorFunc func(c *pipeline.Context, err error)
)

func (f readFunc) HandleRead(c *pipeline.Context, msg any) error { return f(c, msg) }

func (f writeFunc) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	return f(c, msg, p)
}

func (f errorFunc) HandleError(c *pipeline.Context, err error) { f(c, err) }

// Everything that asks for a call is called with the methods, off the loop, once.
func TestOffloadedCallbacks(t *testing.T) {
	starts := map[string]func(c *pipeline.Context, done func()){
		"WriteThen": func(c *pipeline.Context, done func()) { c.WriteThen("x", func(error) { done() }) },
		"CloseThen": func(c *pipeline.Context, done func()) { c.CloseThen(func(error) { done() }) },
		"Execute":   func(c *pipeline.Context, done func()) { _ = c.Execute(done) },
		"Schedule":  func(c *pipeline.Context, done func()) { c.Schedule(0, done) },
		"Offload":   func(c *pipeline.Context, done func()) { c.Offload(noWork, func(any, error) { done() }) },
	}
	for name, start := range starts {
		for _, from := range []string{"strand", "loop"} {
			t.Run(name+" from the "+from, func(t *testing.T) {
				var errs []error
				h := &struct {
					readFunc
					errorFunc
				}{
					func(c *pipeline.Context, msg any) error { msg.(func(*pipeline.Context))(c); return nil },
					func(_ *pipeline.Context, err error) { errs = append(errs, err) },
				}
				ch := newChannel(t, embedded.Config{}, pipeline.Offloaded{Handler: h})
				c := pipeline.Find[pipeline.ReadHandler](ch.Pipeline())
				calls := 0
				begin := func(c *pipeline.Context) {
					start(c, func() {
						if ch.Loop().InLoop() || !eventloop.WouldDeadlock() {
							t.Errorf("called on the loop %v, as one that must not wait %v", ch.Loop().InLoop(), eventloop.WouldDeadlock())
						}
						if calls++; calls == 1 {
							panic("boom")
						}
					})
				}
				ch.Do(func() {
					if from == "strand" {
						ch.Pipeline().FireRead(begin)
					} else {
						begin(c)
					}
				})
				ch.Run()
				ch.Advance(time.Millisecond)
				var pe *pipeline.PanicError
				if calls != 1 || len(errs) != 1 || !errors.As(errs[0], &pe) || pe.Handler != c.Name() {
					t.Errorf("got %d calls, HandleError %v; want one and its panic", calls, errs)
				}
				if ch.Open() {
					t.Error("a panic has not closed the channel")
				}
				// Still once each when the channel is over, and its loop too.
				_ = ch.Finish()
				if name != "Schedule" && name != "Execute" {
					start(c, func() { calls++ })
					ch.Run()
					if calls != 2 {
						t.Errorf("after the loop: got %d calls, want one more", calls-1)
					}
				}
				if err := c.Execute(func() { calls++ }); err == nil {
					t.Error("Execute after the loop: got no error")
				}
			})
		}
	}
}

// A notification that a handler holds back does not keep the channel from ending.
func TestOffloadedInterceptor(t *testing.T) {
	log := new(trace)
	var held *pipeline.Context
	ch, _, _ := between(t, embedded.Config{Inactive: true}, log, interceptor(func(c *pipeline.Context) error {
		log.add("b active")
		held = c
		return nil
	}))
	ch.Activate()
	ch.Run()
	checkCalls(t, "held", log.of("active"), "a active", "b active")
	held.FireActive()
	ch.Run()
	checkCalls(t, "let go on", log.of("active"), "a active", "b active", "c active")
	held.FireActive() // on its way when the channel ends
	ch.Do(ch.Close)
	ch.Run()
	checkCalls(t, "at the end", log.of("inactive", "removed"), "a inactive", "c inactive", "c removed", "a removed")
}

// The log names the handler that an error came from, whatever queues it has passed.
func TestOffloadedErrorOrigin(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	l := newLoop(t)
	m := &memory{ended: make(chan struct{})}
	m.Setup(m, (*memoryCore)(m), pipeline.BaseConfig{Loop: l, Logger: zap.New(core), HighWater: 1})
	from := func(want string) any {
		return pipeline.On(func(c *pipeline.Context, s string) error {
			if s == want {
				return errSome
			}
			c.FireRead(s)
			return nil
		})
	}
	onLoop(t, l, func() {
		if err := m.Register(func(ch pipeline.Channel) error {
			for _, h := range []struct {
				name string
				h    any
			}{
				{"on the loop", from("a")},
				{"elsewhere", pipeline.Offloaded{Handler: from("b")}},
				{"not interested", pipeline.Offloaded{Handler: new(counter)}},
				{"passes on", pipeline.Offloaded{Handler: pipeline.OnError(func(c *pipeline.Context, err error) { c.FireError(err) })}},
			} {
				if _, err := ch.Pipeline().AddNamed(h.name, h.h); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		m.MarkActive()
		m.Pipeline().FireRead("a")
		m.Pipeline().FireRead("b")
		m.Pipeline().FireError(errSome)
		m.Reset()
	})
	await(t, "the end", m.ended)
	var got []string
	for _, e := range logs.FilterMessage("unhandled error").All() {
		got = append(got, e.ContextMap()["handler"].(string))
	}
	checkCalls(t, "handlers named", got, "on the loop", "elsewhere", "transport")
}

// The report of a leak names a handler elsewhere among those that the message passed,
// once.
func TestOffloadedLeakNamesHandlers(t *testing.T) {
	f := new(leakT)
	buffer.CheckLeaks(f)
	k := new(keeper)
	ch := embedded.New(&passer{}, pipeline.Offloaded{Handler: &passer{}}, k)
	ch.WriteInbound(buffer.FromString("message"))
	ch.Run()
	f.end()
	if want := "given to: passer#0, passer#1, keeper#0\n"; !strings.Contains(f.error, want) {
		t.Errorf("got %q, want %q in it", f.error, want)
	}
	for _, m := range k.kept {
		buffer.Release(m)
	}
	if err := ch.Finish(); err != nil {
		t.Errorf("Finish: %v", err)
	}
}
