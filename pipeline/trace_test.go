package pipeline_test

import (
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// starter only waits to be added.
type starter struct{}

func (starter) HandleAdded(*pipeline.Context) error { return nil }

func TestString(t *testing.T) {
	ch := newChannel(t, embedded.Config{}, maker{1}, new(greeting), starter{})
	if _, err := ch.Pipeline().AddNamed("answers", pipeline.Convert(
		func(_ *pipeline.Context, s string) (int, error) { return len(s), nil },
		func(_ *pipeline.Context, n int) (string, error) { return fmt.Sprint(n), nil })); err != nil {
		t.Fatal(err)
	}
	if err := ch.Pipeline().Add(&tracer{name: "a", log: new(trace)}, new(holder)); err != nil {
		t.Fatal(err)
	}
	want := `head                          <- Connect, Write, Flush, ReadRequest, CloseWrite, Close
maker#0                       -> Read
greeting#0                    -> [Active], Read
starter#0
answers (Convert[string,int]) -> Read
                              <- Write
tracer#0                      -> Registered, Active, Read, ReadComplete, Writability, Event, Error, Inactive, Unregistered
                              <- Connect, Write, Flush, ReadRequest, CloseWrite, Close
holder#0                      -> [Registered], [Active], [ReadComplete], [Writability], [Inactive], [Unregistered]
tail                          -> Read, Event, Error
`
	if got := ch.Pipeline().String(); got != want {
		t.Errorf("off the loop: got\n%s\nwant\n%s", got, want)
	}
	ch.Do(func() {
		if got := fmt.Sprint(ch.Pipeline()); got != want {
			t.Errorf("on the loop: got\n%s\nwant\n%s", got, want)
		}
	})
	ch.Do(ch.Close)
	if got := strings.Count(ch.Pipeline().String(), "\n"); got != 2 {
		t.Errorf("at the end: got %d lines, want head and tail:\n%s", got, ch.Pipeline())
	}
}

// A handler elsewhere is drawn and counted as itself, its time as that which it takes
// there; one that is being removed is not there.
func TestTrace_Offloaded(t *testing.T) {
	ch := embedded.New()
	defer ch.Finish()
	if err := ch.Pipeline().Trace(); err != nil {
		t.Fatal(err)
	}
	if err := ch.Pipeline().Add(new(forwarder), pipeline.Offloaded{Handler: readFunc(func(c *pipeline.Context, msg any) error {
		for from := time.Now(); time.Since(from) < 10*time.Millisecond; {
			runtime.Gosched()
		}
		c.FireRead(msg)
		return nil
	})}, new(sink)); err != nil {
		t.Fatal(err)
	}
	ch.Do(func() { ch.Pipeline().FireRead(1); ch.Pipeline().FireRead(2) })
	ch.Run()
	for _, s := range ch.Pipeline().Stats() {
		switch s.Name {
		case "forwarder#0", "readFunc#0", "sink#0":
		default:
			continue
		}
		if len(s.Events) != 1 || s.Events[0].Event != "Read" || s.Events[0].Count != 2 {
			t.Errorf("%s: got %+v, want two reads", s.Name, s.Events)
			continue
		}
		if slow := s.Events[0].Total >= 20*time.Millisecond; slow != (s.Name == "readFunc#0") {
			t.Errorf("%s: got %v, want the handler's own time", s.Name, s.Events[0].Total)
		}
	}
	drawn := regexp.MustCompile(`(?m)^readFunc#0, offloaded +-> Read 2 in `)
	if got := ch.Pipeline().String(); !drawn.MatchString(got) || strings.Contains(got, "[") {
		t.Errorf("got\n%s\nwant a line like %v", got, drawn)
	}
	ch.Manual().Enter(func() {
		if err := ch.Pipeline().Remove("readFunc#0"); err != nil {
			t.Error(err)
		}
		if got := ch.Pipeline().String(); strings.Contains(got, "readFunc") {
			t.Errorf("drawn while it is being removed:\n%s", got)
		}
		for _, s := range ch.Pipeline().Stats() {
			if s.Name == "readFunc#0" {
				t.Error("counted while it is being removed")
			}
		}
	})
}

// The chain may be drawn while it changes. It is the race detector that judges this
// test.
func TestString_AnyGoroutine(t *testing.T) {
	l := newLoop(t)
	m := newMemory(t, l, new(forwarder))
	if err := m.Pipeline().Trace(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 300 {
			c, err := m.Pipeline().AddNamed("", &tracer{name: "a", log: new(trace)})
			if err != nil {
				t.Error(err)
				return
			}
			m.Pipeline().FireRead("x")
			if err := c.Remove(); err != nil {
				t.Error(err)
			}
		}
	}()
	for range 300 {
		if s := m.Pipeline().String(); !strings.HasPrefix(s, "head ") {
			t.Errorf("got %q", s)
		}
		m.Pipeline().Stats()
	}
	<-done
	m.Close()
	await(t, "the end", m.ended)
}

// busy uses up time in the middle of which it calls the next one.
type busy struct{ d time.Duration }

func (b busy) use() {
	for from := time.Now(); time.Since(from) < b.d; {
		runtime.Gosched()
	}
}

func (b busy) HandleRead(c *pipeline.Context, msg any) error {
	b.use()
	c.FireRead(msg)
	b.use()
	return nil
}

func TestTrace(t *testing.T) {
	ch := newChannel(t, embedded.Config{})
	p := ch.Pipeline()
	if p.Stats() != nil {
		t.Errorf("not traced: got %v, want nil", p.Stats())
	}
	if err := p.Trace(); err != nil {
		t.Fatal(err)
	}
	if err := p.Trace(); err != nil {
		t.Errorf("Trace once more: %v", err)
	}
	log := new(trace)
	outer, inner := busy{time.Millisecond}, busy{time.Microsecond}
	all := []any{outer, inner, &tracer{name: "a", log: log}, new(holder)}
	if err := p.Add(all...); err != nil {
		t.Fatal(err)
	}
	if pipeline.Find[*tracer](p).Handler() != all[2] || pipeline.Find[pipeline.WriteHandler](p) != pipeline.Find[*tracer](p) {
		t.Error("Find or Handler returns what counts, not the handler")
	}
	for _, m := range methods {
		switch m.name {
		case "read", "added", "removed":
			continue
		}
		ch.Do(func() { m.trigger(ch) })
		if m.name == "event" { // while the channel is open
			ch.WriteInbound("1", "2", "3")
		}
	}
	ch.ReleaseAll()
	for ch.CheckError() != nil {
	}

	// The handlers have been removed; a second channel keeps its.
	kept := newChannel(t, embedded.Config{})
	k := kept.Pipeline()
	if err := k.Trace(); err != nil {
		t.Fatal(err)
	}
	if err := k.Add(outer, inner, &tracer{name: "a", log: log}); err != nil {
		t.Fatal(err)
	}
	from := time.Now()
	kept.WriteInbound("1", "2", "3")
	kept.WriteOutbound("x")
	elapsed := time.Since(from)
	stats := make(map[string]pipeline.EventStats)
	for _, h := range k.Stats() {
		for _, e := range h.Events {
			stats[h.Name+" "+e.Event] = e
		}
	}
	for name, want := range map[string]int64{
		"head Write": 1, "head Flush": 2, "busy#0 Read": 3, "busy#1 Read": 3,
		"tracer#0 Added": 1, "tracer#0 Read": 3, "tracer#0 ReadComplete": 1, "tracer#0 Write": 1,
		"tracer#0 Flush": 2, "tracer#0 ReadRequest": 1, "head ReadRequest": 1, "tail Read": 3,
	} {
		if got := stats[name].Count; got != want {
			t.Errorf("%s: got %d, want %d", name, got, want)
		}
		delete(stats, name)
	}
	if len(stats) != 0 {
		t.Errorf("besides: got %v", stats)
	}
	var sum time.Duration
	for _, h := range k.Stats() {
		for _, e := range h.Events {
			if e.Event != "Added" {
				sum += e.Total
			}
			switch {
			case h.Name == "busy#0" && (e.Total < 6*time.Millisecond || e.Max < 2*time.Millisecond || e.Max > e.Total):
				t.Errorf("%s: got %v, want 2 ms each", h.Name, e)
			case e.Total < 0 || e.Max < 0:
				t.Errorf("%s: got %v", h.Name, e)
			}
		}
	}
	if sum > elapsed {
		t.Errorf("all together: got %v, want at most the %v that it took: some time counts twice", sum, elapsed)
	}
	if s := k.String(); !regexp.MustCompile(`(?m)^busy#0 +-> Read 3 in \S+s$`).MatchString(s) {
		t.Errorf("String: got\n%s", s)
	}
}

// A handler that breaks counts, too, and those around it are not charged with what it
// took.
func TestTrace_Broken(t *testing.T) {
	ch := newChannel(t, embedded.Config{})
	p := ch.Pipeline()
	if err := p.Trace(); err != nil {
		t.Fatal(err)
	}
	var stats []pipeline.HandlerStats
	if err := p.Add(busy{}, pipeline.On(func(*pipeline.Context, string) error {
		busy{2 * time.Millisecond}.use()
		panic("boom")
	}), pipeline.OnError(func(*pipeline.Context, error) { stats = p.Stats() })); err != nil {
		t.Fatal(err)
	}
	ch.WriteInbound("x")
	for _, h := range stats {
		for _, e := range h.Events {
			if h.Name == "On[string]#0" && (e.Count != 1 || e.Total < 2*time.Millisecond) {
				t.Errorf("%s: got %v, want one of 2 ms", h.Name, e)
			}
		}
	}
	if len(stats) != 5 {
		t.Errorf("got %v, want both ends and three handlers", stats)
	}
}

// An untraced pipeline has nothing of it; a traced one still works on every path.
func TestTrace_EveryMethod(t *testing.T) {
	for _, m := range methods {
		log, traced := new(trace), new(trace)
		for _, l := range []*trace{log, traced} {
			ch := embedded.NewConfig(embedded.Config{Inactive: m.inactive})
			if l == traced {
				if err := ch.Pipeline().Trace(); err != nil {
					t.Fatal(err)
				}
			}
			for _, n := range []string{"a", "b"} {
				if _, err := ch.Pipeline().AddNamed(n, &tracer{name: n, log: l}); err != nil {
					t.Fatal(err)
				}
			}
			ch.Do(func() { m.trigger(ch) })
			_ = ch.Finish()
			ch.ReleaseAll()
		}
		checkCalls(t, m.name, traced.take(), log.take()...)
	}
}

// What a traced pipeline costs beside one that is not.
func BenchmarkTrace(b *testing.B) {
	for _, on := range []bool{false, true} {
		b.Run(fmt.Sprintf("on=%v", on), func(b *testing.B) {
			man := eventloop.NewManual()
			defer man.Close()
			ch := newChannel(b, embedded.Config{Manual: man})
			if on {
				_ = ch.Pipeline().Trace()
			}
			_ = ch.Pipeline().Add(new(forwarder), new(forwarder), new(forwarder), new(forwarder), new(sink))
			man.Enter(func() {
				msg := any(new(int))
				for b.Loop() {
					ch.Pipeline().FireRead(msg)
				}
			})
		})
	}
}

// The chain of a channel, in a log or beside the failure of a test.
func ExamplePipeline_String() {
	ch := embedded.New(
		limit{Messages: 3},
		&greeting{},
		pipeline.OnWrite(func(c *pipeline.Context, n int, p *eventloop.Promise) error {
			c.ForwardWrite(fmt.Sprint(n), p)
			return nil
		}),
	)
	fmt.Print(ch.Pipeline())
	_ = ch.Finish()
	// Output:
	// head           <- Connect, Write, Flush, ReadRequest, CloseWrite, Close
	// limit#0        -> Read
	// greeting#0     -> [Active], Read
	// OnWrite[int]#0 <- Write
	// tail           -> Read, Event, Error
}
