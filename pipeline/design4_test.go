package pipeline_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// The tests of this file are named after section 4 of DESIGN.md, handlers and their places.

// maker is a configuration of which each pipeline makes its handler.
type maker struct{ n int }

type made struct{ n int }

func (m maker) NewHandler() any { return &made{m.n} }

func (*made) HandleRead(c *pipeline.Context, msg any) error { c.FireRead(msg); return nil }

func TestDesign4_Maker(t *testing.T) {
	cfg := maker{7}
	a, b := newChannel(t, embedded.Config{}, cfg), newChannel(t, embedded.Config{}, cfg, &made{8})
	ca, cb := pipeline.Find[maker](a.Pipeline()), pipeline.Find[maker](b.Pipeline())
	if ca == nil || cb == nil || ca.Handler() == cb.Handler() {
		t.Fatalf("Find by the Maker's type: got %v and %v, want one for each pipeline", ca, cb)
	}
	if ca.Name() != "maker#0" {
		t.Errorf("name: got %q, want maker#0", ca.Name())
	}
	if c := pipeline.Find[*made](b.Pipeline()); c != cb {
		t.Errorf("Find by the handler's type: got %v, want the first", c)
	}
	if c := pipeline.Find[*sink](b.Pipeline()); c != nil {
		t.Errorf("Find of what there is not: got %v, want nil", c)
	}
	if c := pipeline.Find[pipeline.ReadHandler](a.Pipeline()); c != ca {
		t.Errorf("Find by an interface: got %v, want the first", c)
	}
}

// Nothing is added if one of them is not a handler.
func TestDesign4_NotHandlers(t *testing.T) {
	ch := newChannel(t, embedded.Config{})
	for _, bad := range []any{nil, 1, struct{}{}, new(both), func() {}} {
		for name, add := range map[string]func(...any) error{"Add": ch.Pipeline().Add, "AddFirst": ch.Pipeline().AddFirst} {
			if err := add(new(sink), bad); !errors.Is(err, pipeline.ErrNotHandler) {
				t.Errorf("%s(%T): got %v, want ErrNotHandler", name, bad, err)
			}
		}
	}
	checkCalls(t, "names", ch.Pipeline().Names())
}

// A place is named by a name or a *Context.
func TestDesign4_Places(t *testing.T) {
	ch := newChannel(t, embedded.Config{})
	p := ch.Pipeline()
	b, err := p.AddNamed("b", new(sink))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		add  func() (*pipeline.Context, error)
	}{
		{"a", func() (*pipeline.Context, error) { return p.AddBefore("b", "a", new(sink)) }},
		{"a2", func() (*pipeline.Context, error) { return p.AddBefore(b, "a2", new(sink)) }},
		{"c", func() (*pipeline.Context, error) { return p.AddAfter("b", "c", new(sink)) }},
		{"b2", func() (*pipeline.Context, error) { return p.AddAfter(b, "b2", new(sink)) }},
	} {
		c, err := step.add()
		if err != nil || c.Name() != step.name || p.Get(step.name) != c || c.Pipeline() != p || c.Channel() != pipeline.Channel(ch) {
			t.Errorf("%s: got %v, %v", step.name, c, err)
		}
	}
	checkCalls(t, "names", p.Names(), "a", "a2", "b", "b2", "c")
	if p.Channel() != pipeline.Channel(ch) || b.Loop() != ch.Loop() || b.Alloc() == nil {
		t.Error("a context or a pipeline does not know its channel")
	}
	strange := newChannel(t, embedded.Config{}, new(sink)).Pipeline().Get("sink#0")
	for _, bad := range []any{"x", strange, (*pipeline.Context)(nil), 1, nil} {
		_, err1 := p.AddBefore(bad, "", new(sink))
		_, err2 := p.AddAfter(bad, "", new(sink))
		c, err3 := p.Replace(bad, "", new(sink))
		for _, err := range []error{err1, err2, err3, p.Remove(bad)} {
			if !errors.Is(err, pipeline.ErrNoHandler) || c != nil {
				t.Errorf("%v: got %v, want ErrNoHandler", bad, err)
			}
		}
	}
	if p.Get("x") != nil {
		t.Error("Get of what there is not: got a context")
	}
	for _, n := range []string{"head", "tail"} {
		if p.Get(n) != nil {
			t.Errorf("Get(%q): got a context, want nil: it is no handler", n)
		}
	}
}

// Handlers that remove or replace themselves or their neighbours in mid-event.
func TestDesign4_ChangesInMidEvent(t *testing.T) {
	p := func(k call) *pipeline.Pipeline { return k.c.Pipeline() }
	tests := []struct {
		name   string
		change func(k call, log *trace) error
		want   []string // who gets the read that b passes on afterwards
		again  []string // who gets the next one
	}{
		{"removes itself", func(k call, _ *trace) error { return k.c.Remove() }, []string{"c"}, []string{"a", "c"}},
		{"removes the next", func(k call, _ *trace) error { return p(k).Remove("c") }, nil, []string{"a", "b"}},
		{"removes itself and the next", func(k call, _ *trace) error {
			return errors.Join(k.c.Remove(), p(k).Remove("c"))
		}, nil, []string{"a"}},
		{"removes the next and itself", func(k call, _ *trace) error {
			return errors.Join(p(k).Remove("c"), k.c.Remove())
		}, nil, []string{"a"}},
		{"removes the one before", func(k call, _ *trace) error { return p(k).Remove("a") }, []string{"c"}, []string{"b", "c"}},
		{"replaces itself", func(k call, log *trace) error {
			_, err := p(k).Replace(k.c, "n", &tracer{name: "n", log: log})
			return err
		}, []string{"n", "c"}, []string{"a", "n", "c"}},
		{"replaces the next", func(k call, log *trace) error {
			_, err := p(k).Replace("c", "n", &tracer{name: "n", log: log})
			return err
		}, []string{"n"}, []string{"a", "b", "n"}},
		{"adds behind itself and goes", func(k call, log *trace) error {
			_, err := p(k).AddAfter(k.c, "n", &tracer{name: "n", log: log})
			return errors.Join(err, k.c.Remove())
		}, []string{"n", "c"}, []string{"a", "n", "c"}},
		{"adds at the tail", func(k call, log *trace) error {
			return p(k).Add(&tracer{name: "n", log: log})
		}, []string{"c", "n"}, []string{"a", "b", "c", "n"}},
		{"goes, then adds behind the next", func(k call, log *trace) error {
			err := k.c.Remove()
			_, err2 := p(k).AddAfter("c", "n", &tracer{name: "n", log: log})
			return errors.Join(err, err2)
		}, []string{"c", "n"}, []string{"a", "c", "n"}},
	}
	for _, tt := range tests {
		for _, bystanders := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/bystanders %v", tt.name, bystanders), func(t *testing.T) {
				ch, log, _ := tracers(t, embedded.Config{})
				once := true
				b := (&tracer{name: "b", log: log}).on("read", func(k call) error {
					if once {
						once = false
						log.take()
						if err := tt.change(k, log); err != nil {
							t.Error(err)
						}
					}
					k.c.FireRead(k.msg)
					k.c.Write("x")
					return nil
				})
				for _, h := range []*tracer{{name: "a", log: log}, b, {name: "c", log: log}} {
					if bystanders {
						if err := ch.Pipeline().Add(new(bystander)); err != nil {
							t.Fatal(err)
						}
					}
					if _, err := ch.Pipeline().AddNamed(h.name, h); err != nil {
						t.Fatal(err)
					}
				}
				for _, want := range [][]string{tt.want, tt.again} {
					log.take()
					ch.WriteInbound("x")
					var got []string
					for _, c := range log.of("read") {
						got = append(got, c[:1])
					}
					checkCalls(t, "reads", got, want...)
					if v := ch.ReadInbound(); v != "x" {
						t.Errorf("at the tail: got %v, want x", v)
					}
				}
			})
		}
	}
}

// AddFirst keeps its order also when one of them is gone at once.
func TestDesign4_AddFirstOfLeavers(t *testing.T) {
	ch, log, _ := tracers(t, embedded.Config{}, "z")
	leaver := (&tracer{name: "a", log: log}).on("added", func(k call) error { return k.c.Remove() })
	if err := ch.Pipeline().AddFirst(leaver, &tracer{name: "b", log: log}, &tracer{name: "c", log: log}); err != nil {
		t.Fatal(err)
	}
	log.take()
	ch.WriteInbound("x")
	checkCalls(t, "reads", log.of("read"), "b read", "c read", "z read")
	ch.WriteOutbound("x")
	checkCalls(t, "writes", log.of("write"), "z write", "c write", "b write")
}

// The links of reads and writes are those of the chain, whatever was done to it.
func TestDesign4_ResolvedOnce(t *testing.T) {
	ch, log, _ := tracers(t, embedded.Config{})
	p := ch.Pipeline()
	kinds := []func(name string) any{
		func(n string) any { return &tracer{name: n, log: log} },
		func(string) any { return new(bystander) },
		func(n string) any { return readOnly{n, log} },
		func(n string) any { return writeOnly{n, log} },
	}
	seed := uint32(1)
	random := func(n int) int {
		seed = seed*1664525 + 1013904223
		return int(seed>>8) % n
	}
	type place struct {
		c    *pipeline.Context
		name string
		kind int
	}
	var model []place
	for i := range 2000 {
		kind, name := random(len(kinds)), fmt.Sprint("h", i)
		at := random(len(model) + 1)
		var c *pipeline.Context
		var err error
		switch op := random(4); {
		case op == 0 && len(model) > 0 || len(model) > 12:
			at = random(len(model))
			err = model[at].c.Remove()
			model = slices.Delete(model, at, at+1)
		case op == 1 && len(model) > 0:
			at = random(len(model))
			c, err = p.Replace(model[at].c, name, kinds[kind](name))
			model[at] = place{c, name, kind}
		case at < len(model):
			c, err = p.AddBefore(model[at].c, name, kinds[kind](name))
			model = slices.Insert(model, at, place{c, name, kind})
		case at > 0:
			c, err = p.AddAfter(model[at-1].c, name, kinds[kind](name))
			model = append(model, place{c, name, kind})
		default:
			c, err = p.AddNamed(name, kinds[kind](name))
			model = append(model, place{c, name, kind})
		}
		if err != nil {
			t.Fatal(err)
		}
		log.take()
		ch.Do(func() { p.FireRead("x"); ch.Write("x") })
		var reads, writes []string
		for _, m := range model {
			if m.kind == 0 || m.kind == 2 {
				reads = append(reads, m.name+" read")
			}
			if m.kind == 0 || m.kind == 3 {
				writes = append([]string{m.name + " write"}, writes...)
			}
		}
		if !slices.Equal(log.of("read"), reads) || !slices.Equal(log.of("write"), writes) {
			t.Fatalf("step %d: got %q and %q, want %q and %q", i, log.of("read"), log.of("write"), reads, writes)
		}
		ch.ReleaseAll()
	}
}

type readOnly struct {
	name string
	log  *trace
}

func (h readOnly) HandleRead(c *pipeline.Context, msg any) error {
	h.log.add(h.name + " read")
	c.FireRead(msg)
	return nil
}

type writeOnly struct {
	name string
	log  *trace
}

func (h writeOnly) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	h.log.add(h.name + " write")
	c.ForwardWrite(msg, p)
	return nil
}

// Events may enter at any context, outside of any other event.
func TestDesign4_FireAnywhere(t *testing.T) {
	ch, log, _ := tracers(t, embedded.Config{}, "a", "b")
	c := ch.Pipeline().Get("tracer#0")
	ch.Do(func() {
		c.FireRead("x")
		c.FireEvent("x")
		c.FireError(errSome)
		c.FireReadComplete()
		c.Write("x")
		c.Read()
	})
	checkCalls(t, "calls", log.take(), "b read", "b event", "b error", "b complete", "b flush", "a flush")
	if v, ev, err := ch.ReadInbound(), ch.ReadEvent(), ch.CheckError(); v != "x" || ev != "x" || err != errSome {
		t.Errorf("at the tail: got %v, %v, %v", v, ev, err)
	}
	if ch.Parent() != nil || ch.Logger() == nil || ch.RemoteAddr() == nil {
		t.Error("parent, logger or address is not as it was made")
	}
}

// A handler that is added late asks whether the channel is active.
func TestDesign4_AddedLate(t *testing.T) {
	ch, log, _ := tracers(t, embedded.Config{}, "a")
	active := false
	late := (&tracer{name: "late", log: log}).on("added", func(k call) error {
		active = k.c.Channel().Active()
		return nil
	})
	if err := ch.Pipeline().Add(late); err != nil {
		t.Fatal(err)
	}
	checkCalls(t, "calls", log.take(), "late added")
	if !active {
		t.Error("Active in HandleAdded: got false, want true")
	}
}
