package pipeline_test

import (
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// drive runs what is left to do on a Manual whose turns may be ended by Goexit.
func drive(man *eventloop.Manual) {
	for range 20 {
		elsewhere(man.RunUntilIdle)
	}
}

// A panic or a Goexit in any method: HandleError is told, its own first; notifications
// go on behind that; promises fail; the channel is closed; all that is owed comes.
func TestOffloadedBroken(t *testing.T) {
	failures := []struct {
		name string
		fail func()
		is   func(err error) bool
	}{
		{"panic", func() { panic("boom") }, func(err error) bool {
			var pe *pipeline.PanicError
			return errors.As(err, &pe) && pe.Value == "boom" && strings.Contains(string(pe.Stack), "offloaded_broken_test.go")
		}},
		{"goexit", runtime.Goexit, func(err error) bool { return errors.Is(err, pipeline.ErrGoexit) }},
	}
	for _, m := range methods {
		if m.name == "added" {
			continue // TestOffloadedAddedFails
		}
		for _, fail := range failures {
			t.Run(m.name+"/"+fail.name, func(t *testing.T) {
				man := eventloop.NewManual()
				defer man.Close()
				log := new(trace)
				var errs []error
				fired := 0
				b, c := &tracer{name: "b", log: log}, &tracer{name: "c", log: log}
				b.on(m.name, func(k call) error {
					if m.name == "error" {
						errs = append(errs, k.msg.(error))
					}
					if fired == 0 {
						fired++
						fail.fail()
					}
					return nil
				})
				note := func(k call) error { errs = append(errs, k.msg.(error)); return nil }
				if m.name != "error" {
					b.on("error", note)
				}
				c.on("error", note)
				ch := embedded.NewConfig(embedded.Config{Manual: man, Inactive: m.inactive})
				fired = 1 // while it is added
				for _, h := range []*tracer{b, c} {
					var add any = h
					if h == b {
						add = pipeline.Offloaded{Handler: b}
					}
					if _, err := ch.Pipeline().AddNamed(h.name, add); err != nil {
						t.Fatal(err)
					}
				}
				drive(man)
				fired = 0
				log.take()
				elsewhere(func() { ch.Do(func() { m.trigger(ch) }) })
				drive(man)
				if fired != 1 {
					t.Fatalf("the handler failed %d times, want once", fired)
				}
				if ch.Open() || !fail.is(ch.CloseReason()) && m.name != "inactive" && m.name != "unregistered" {
					t.Errorf("open %v, closed because of %v; want because of the handler", ch.Open(), ch.CloseReason())
				}
				told := 0
				for _, err := range errs {
					if fail.is(err) {
						told++
					}
				}
				want := 1
				if m.name == "error" {
					want = 0 // only logged
				}
				if told != want {
					t.Errorf("HandleError told %d times, want %d: %v", told, want, errs)
				}
				if m.notification {
					if log.count("c "+m.name) != 1 {
						t.Errorf("the handler behind got the notification %d times, want once: %q", log.count("c "+m.name), log.calls)
					}
					if slices.Index(log.calls, "b error") > slices.Index(log.calls, "c "+m.name) {
						t.Errorf("HandleError after the notification went on: %q", log.calls)
					}
				}
				for _, n := range []string{"b", "c"} {
					if got := log.count(n + " removed"); got != 1 {
						t.Errorf("%s removed %d times, want once", n, got)
					}
					for _, ev := range []string{"inactive", "unregistered"} {
						if got := log.count(n + " " + ev); got > 1 {
							t.Errorf("%s %s %d times: %q", n, ev, got, log.calls)
						}
					}
				}
				if names := ch.Pipeline().Names(); len(names) != 0 {
					t.Errorf("left in the pipeline: %q", names)
				}
				_ = ch.Finish()
			})
		}
	}
}

// What a method had in its hands when it broke fails.
func TestOffloadedBrokenPromise(t *testing.T) {
	for _, m := range []string{"write", "close", "closewrite", "connect"} {
		b := (&tracer{name: "b", log: new(trace)}).on(m, func(call) error { panic("boom") })
		ch := newChannel(t, embedded.Config{Inactive: m == "connect"}, pipeline.Offloaded{Handler: b})
		var got []error
		ch.Do(func() {
			p := eventloop.NewPromise(ch.Loop())
			p.Then(func(err error) { got = append(got, err) })
			c, err := ch.Pipeline().AddNamed("last", new(sink))
			if err != nil {
				t.Fatal(err)
			}
			switch m {
			case "write":
				c.ForwardWrite("x", p)
			case "close":
				c.ForwardClose(p)
			case "closewrite":
				c.ForwardCloseWrite(p)
			case "connect":
				c.ForwardConnect(nil, nil, p)
			}
		})
		ch.Run()
		var pe *pipeline.PanicError
		if len(got) != 1 || !errors.As(got[0], &pe) || pe.Handler != "tracer#0" {
			t.Errorf("%s: completed with %v, want once with the panic", m, got)
		}
	}
}

// A HandleAdded that fails later than Add returns.
func TestOffloadedAddedFails(t *testing.T) {
	tests := []struct {
		name   string
		added  func() error
		is     func(error) bool
		closes bool
	}{
		{"error", func() error { return errSome }, func(err error) bool { return errors.Is(err, errSome) }, false},
		{"panic", func() error { panic("boom") }, func(err error) bool { var pe *pipeline.PanicError; return errors.As(err, &pe) }, true},
		{"goexit", func() error { runtime.Goexit(); return nil }, func(err error) bool { return errors.Is(err, pipeline.ErrGoexit) }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			log := new(trace)
			var errs []error
			a := (&tracer{name: "a", log: log}).on("error", func(k call) error {
				errs = append(errs, k.msg.(error))
				return nil
			})
			b := (&tracer{name: "b", log: log}).on("added", func(call) error { return tt.added() })
			c := &tracer{name: "c", log: log}
			ch := embedded.New(a, c)
			log.take()
			ch.Manual().Enter(func() {
				if _, err := ch.Pipeline().AddAfter("tracer#0", "b", pipeline.Offloaded{Handler: b}); err != nil {
					t.Errorf("AddAfter: got %v, want nil: HandleAdded comes later", err)
				}
				ch.Pipeline().FireRead(1)
				ch.Write(2)
			})
			drive(ch.Manual())
			if len(errs) != 1 || !tt.is(errs[0]) || !strings.Contains(errs[0].Error(), `adding handler "b"`) {
				t.Errorf("HandleError got %v, want the failure once", errs)
			}
			got := slices.DeleteFunc(slices.Clone(log.calls), func(s string) bool { return s[0] != 'b' })
			checkCalls(t, "calls of the handler", got, "b added", "b removed")
			if i, j := slices.Index(log.calls, "b removed"), slices.Index(log.calls, "a error"); i > j {
				t.Errorf("the failure is told before the handler is gone: %q", log.calls)
			}
			if log.count("c read") != 1 || log.count("a write") != 1 {
				t.Errorf("what came meanwhile has not gone on: %q", log.calls)
			}
			if ch.Open() == tt.closes {
				t.Errorf("got open %v, want %v", ch.Open(), !tt.closes)
			}
			if !tt.closes {
				checkCalls(t, "names", ch.Pipeline().Names(), "tracer#0", "tracer#1")
			}
			_ = ch.Finish()
			ch.ReleaseAll()
		})
	}
}

// A HandleError that breaks in its turn is logged, and closes the channel; what is owed
// comes all the same.
func TestOffloadedBrokenHandleError(t *testing.T) {
	for name, fail := range map[string]func(){"panic": func() { panic("boom") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			core, logs := observer.New(zap.WarnLevel)
			log := new(trace)
			b := &tracer{name: "b", log: log}
			b.on("complete", func(call) error { return errSome })
			b.on("error", func(call) error { fail(); return nil })
			ch := embedded.NewConfig(embedded.Config{Logger: zap.New(core)}, pipeline.Offloaded{Handler: b}, &tracer{name: "c", log: log})
			ch.Run()
			log.take()
			ch.Manual().Enter(ch.Pipeline().FireReadComplete)
			drive(ch.Manual())
			checkCalls(t, "calls", log.of("complete", "error", "removed"), "b complete", "b error", "c complete", "c removed", "b removed")
			if n := logs.FilterMessage("panic in HandleError").Len(); n != 1 || ch.Open() {
				t.Errorf("%d lines in the log, open %v; want one and closed", n, ch.Open())
			}
			if err := ch.Finish(); err != nil {
				t.Errorf("Finish: %v", err)
			}
		})
	}
}
