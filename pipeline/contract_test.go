package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
	"github.com/runnel-io/runnel/transport"
)

// The tests of this file are named after the lines of SEMANTICS.md, sections 6 and 15,
// as DESIGN.md amends them. What does not need a channel of one kind runs over all of
// them. docs/pipeline.md has the list, with those of contract_offloaded_test.go and
// contract_end_test.go.

// Every promise that is tested is in the list, and every test in the list is there.
func TestContractIsListed(t *testing.T) {
	name := regexp.MustCompile(`TestSemantics(?:6_|14|15)\w+`)
	doc, err := os.ReadFile(filepath.Join("..", "docs", "pipeline.md"))
	if err != nil {
		t.Fatal(err)
	}
	listed := name.FindAllString(string(doc), -1)
	var tests []string
	for _, dir := range []string{".", filepath.Join("..", "eventloop")} {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			src, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^func (`+name.String()+`)\(`).FindAllStringSubmatch(string(src), -1) {
				tests = append(tests, m[1])
			}
		}
	}
	slices.Sort(listed)
	slices.Sort(tests)
	tests = slices.Compact(tests) // two have the same name in both packages
	if len(tests) < 30 {
		t.Errorf("found %d tests only: %q", len(tests), tests)
	}
	checkCalls(t, "tests in docs/pipeline.md", listed, tests...)
}

// Handlers are added, then the channel is registered, then it is active, then it reads.
func TestSemantics6_1_OpenOrder(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		log := new(trace)
		r := open(&tracer{name: "a", log: log}, &tracer{name: "b", log: log})
		checkCalls(t, "open", without(log.take(), "a connect", "b connect"), "a added", "b added", "a registered", "b registered",
			"a active", "b active", "b request", "a request")
		if !r.ch.Active() || !r.ch.Open() {
			t.Errorf("active %v, open %v; want true, true", r.ch.Active(), r.ch.Open())
		}
		r.do(func() {
			if err := r.ch.(interface {
				Register(func(pipeline.Channel) error) error
			}).Register(nil); err == nil {
				t.Error("Register once more: got nil, want an error")
			}
		})
		checkCalls(t, "registered once more", log.take())
	})
}

// Between the two there may be time: a connect, or its absence.
func TestSemantics6_1_Inactive(t *testing.T) {
	log := new(trace)
	ch := newChannel(t, embedded.Config{Inactive: true}, &tracer{name: "a", log: log}, &tracer{name: "b", log: log})
	checkCalls(t, "registered", log.take(), "a added", "b added", "a registered", "b registered")
	if ch.Active() || !ch.Open() {
		t.Errorf("active %v, open %v; want false, true", ch.Active(), ch.Open())
	}
	ch.Activate()
	checkCalls(t, "active", log.take(), "a active", "b active", "b request", "a request")
	ch.Activate()
	checkCalls(t, "active once more", log.take())
}

// connects notes the connect that passes it, and how that ends.
type connects struct{ log *trace }

func (h connects) HandleConnect(c *pipeline.Context, remote, local net.Addr, p *eventloop.Promise) error {
	h.log.add("connect")
	if p == nil {
		p = eventloop.NewPromise(c.Loop())
	}
	p.Then(func(err error) { h.log.add(fmt.Sprint("connected ", err)) })
	c.ForwardConnect(remote, local, p)
	return nil
}

// The connect is complete before the channel is active.
func TestSemantics6_2_ConnectOrder(t *testing.T) {
	want := []string{"a registered", "connect", "connected <nil>", "a active", "a request"}
	t.Run("embedded", func(t *testing.T) {
		log := new(trace)
		ch := newChannel(t, embedded.Config{Inactive: true}, connects{log}, &tracer{name: "a", log: log})
		ch.Do(func() { ch.Pipeline().Connect(&net.TCPAddr{}, nil, nil) })
		checkCalls(t, "connect", without(log.take(), "a added", "a connect"), want...)
	})
	overSockets(t, dialed, func(t *testing.T, k kind) {
		log := new(trace)
		k.with(t, connects{log}, &tracer{name: "a", log: log})
		checkCalls(t, "connect", without(log.take(), "a added", "a connect"), want...)
	})
}

// Who gives a connect up before it is made never sees the channel active; who does so
// when it has been made sees it active, and then closed. An embedded channel's connect
// has nobody who could give it up.
func TestSemantics6_2_CancelledConnect(t *testing.T) {
	overSockets(t, dialed, func(t *testing.T, k kind) {
		for _, in := range []string{"connect", "active"} {
			t.Run("in "+in, func(t *testing.T) {
				g := newGroup(t)
				l, err := net.Listen(k.network, k.addr(t))
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				log := new(trace)
				h := (&tracer{name: "a", log: log}).on(in, func(call) error { cancel(); return nil }) // and no connect is made
				d := &transport.Dialer{Group: g, Init: func(ch pipeline.Channel) error { return ch.Pipeline().Add(h) }}
				ch, err := d.Dial(ctx, k.network, l.Addr().String())
				switch {
				case err == nil && in == "active":
					ch.Close() // Dial has returned before it has seen the end of ctx
				case !errors.Is(err, context.Canceled):
					t.Errorf("got %v, %v; want an error that is context.Canceled", ch, err)
				}
				log.until(t, "a removed")
				want := []string{"a registered", "a connect", "a unregistered", "a removed"}
				if in == "active" {
					want = []string{"a registered", "a connect", "a active", "a inactive", "a unregistered", "a removed"}
				}
				checkCalls(t, "calls", log.of("registered", "connect", "active", "inactive", "unregistered", "removed"), want...)
			})
		}
	})
}

// A listener is bound before it is active, and then asks for children. There are no
// embedded ones.
func TestSemantics6_2_BindOrder(t *testing.T) {
	overSockets(t, accepted, func(t *testing.T, k kind) {
		g := newGroup(t)
		log := new(trace)
		srv := &transport.Server{Group: g, ListenerInit: func(ch pipeline.Channel) error {
			return ch.Pipeline().Add(&tracer{name: "a", log: log})
		}}
		l, err := srv.Listen(context.Background(), k.network, k.addr(t))
		if err != nil {
			t.Fatal(err)
		}
		onLoop(t, l.Loop(), func() {})
		checkCalls(t, "bind", log.take(), "a added", "a registered", "a active", "a request")
		if at := l.LocalAddr().String(); !l.Active() || at == "" || at == "127.0.0.1:0" {
			t.Errorf("active %v at %q; want true at its address", l.Active(), at)
		}
	})
}

// without returns calls but for those given.
func without(calls []string, not ...string) []string {
	return slices.DeleteFunc(slices.Clone(calls), func(c string) bool { return slices.Contains(not, c) })
}

// A close happens once: those who wait for it are told, then those whose writes it has
// dropped, and in a later task the handlers; last they are removed.
func TestSemantics6_3_CloseOrder(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		r, log, _ := traced(open, "a", "b")
		ch := r.ch
		ch.Closed().Then(func(err error) {
			log.add(fmt.Sprint("closed ", err))
			_ = ch.Loop().Execute(func() { log.add("task of closed") })
		})
		msg := r.full()
		r.do(func() {
			ch.WriteThen(msg, func(err error) { log.add(fmt.Sprint("flushed ", errors.Is(err, pipeline.ErrReset))) })
			ch.Flush()
			ch.WriteThen("queued", func(err error) { log.add(fmt.Sprint("queued ", errors.Is(err, pipeline.ErrReset))) })
			ch.CloseThen(func(err error) { log.add(fmt.Sprint("close ", err)) })
			ch.CloseThen(func(err error) { log.add(fmt.Sprint("second close ", err)) })
			log.take()
			ch.Reset()
			log.add("reset returned")
		})
		checkCalls(t, "close", without(log.take(), "a flush", "b flush"),
			"closed <nil>", "close <nil>", "second close <nil>", "flushed true", "queued true", "reset returned",
			"task of closed", "a inactive", "b inactive", "a unregistered", "b unregistered", "b removed", "a removed")
		r.do(func() {
			ch.CloseThen(func(err error) { log.add(fmt.Sprint("late close ", err)) })
			ch.Reset()
		})
		checkCalls(t, "close of a closed channel", log.take(), "late close <nil>")
	})
}

// Close lets what was written before leave first (where DESIGN.md differs).
func TestSemantics6_3_CloseFlushes(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		r, log, _ := traced(open, "a")
		msg := r.full().(string)
		r.do(func() {
			r.ch.WriteThen(msg, func(err error) { log.add(fmt.Sprint("written ", err)) })
			r.ch.CloseThen(func(err error) { log.add(fmt.Sprint("closed ", err)) })
		})
		if !r.ch.Open() {
			t.Error("closed before the queue has left")
		}
		var late error
		r.do(func() { r.ch.WriteThen("late", func(err error) { late = err }) })
		if !errors.Is(late, pipeline.ErrClosed) {
			t.Errorf("a write behind the close: got %v, want ErrClosed", late)
		}
		r.say("dropped")
		if got := r.hear(len(msg)); got != msg {
			t.Errorf("heard %d bytes, want the %d written before", len(got), len(msg))
		}
		if got := r.hear(1); got != "" {
			t.Errorf("heard %q besides", got)
		}
		r.hangUp() // which the channel waits for
		log.until(t, "a removed")
		checkCalls(t, "calls", without(log.take(), "a flush", "a writability"),
			"a write", "a close", "a write", "written <nil>", "closed <nil>", "a inactive", "a unregistered", "a removed")
	})
}

// The end of the peer's stream closes, and what is still to be said is.
func TestSemantics6_3_PeerCloses(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		if t.Name() == "TestSemantics6_3_PeerCloses/embedded" {
			t.Skip("its peer closes by Finish, see package embedded")
		}
		r, log, _ := traced(open, "a")
		r.ch.Write("last words")
		r.hear(len("last words"))
		r.hangUp()
		log.until(t, "a removed")
		checkCalls(t, "calls", log.of("close", "inactive", "unregistered", "removed"), "a inactive", "a unregistered", "a removed")
		if !errors.Is(r.ch.CloseReason(), io.EOF) {
			t.Errorf("reason: got %v, want io.EOF", r.ch.CloseReason())
		}
	})
}

// A channel that never was active owes no inactive. An accepted one is active as soon
// as it is there.
func TestSemantics6_3_CloseBeforeActive(t *testing.T) {
	t.Run("embedded", func(t *testing.T) {
		log := new(trace)
		ch := newChannel(t, embedded.Config{Inactive: true}, &tracer{name: "a", log: log})
		log.take()
		ch.Do(ch.Close)
		checkCalls(t, "registered only", log.take(), "a close", "a unregistered", "a removed")
	})
	overSockets(t, dialed, func(t *testing.T, k kind) {
		log := new(trace)
		h := (&tracer{name: "a", log: log}).on("connect", func(k call) error {
			k.c.Channel().Close()
			k.c.ForwardConnect(&net.TCPAddr{}, nil, k.p)
			return nil
		})
		if _, err := k.open(t, func(ch pipeline.Channel) error { return ch.Pipeline().Add(h) }); !errors.Is(err, pipeline.ErrClosed) {
			t.Errorf("Dial: got %v, want ErrClosed", err)
		}
		log.until(t, "a removed")
		checkCalls(t, "calls", log.take(), "a added", "a registered", "a connect", "a close", "a unregistered", "a removed")
	})
}

func TestSemantics6_4_RemovedOnce(t *testing.T) {
	some := errors.New("some error")
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		t.Run("HandleAdded fails", func(t *testing.T) {
			r, log, hs := traced(open, "a")
			hs[0].on("error", func(k call) error {
				if !errors.Is(k.msg.(error), some) {
					t.Errorf("HandleError got %v, want %v", k.msg, some)
				}
				return nil
			})
			bad := (&tracer{name: "bad", log: log}).on("added", func(call) error { return some })
			last := &tracer{name: "last", log: log}
			r.do(func() {
				if err := r.ch.Pipeline().Add(bad, last); !errors.Is(err, some) {
					t.Errorf("Add: got %v, want %v", err, some)
				}
			})
			checkCalls(t, "calls", log.take(), "bad added", "bad removed", "a error")
			checkCalls(t, "names", r.ch.Pipeline().Names(), "tracer#0")
			if !r.ch.Open() {
				t.Error("closed by an error of HandleAdded")
			}
		})
		t.Run("removes itself in HandleAdded", func(t *testing.T) {
			r, log, _ := traced(open)
			h := (&tracer{name: "a", log: log}).on("added", func(k call) error { return errors.Join(k.c.Remove(), some) })
			r.do(func() {
				if err := r.ch.Pipeline().Add(h, pipeline.OnError(func(*pipeline.Context, error) {})); !errors.Is(err, some) {
					t.Errorf("Add: got %v, want %v", err, some)
				}
			})
			checkCalls(t, "calls", log.take(), "a added", "a removed")
		})
		t.Run("removed twice", func(t *testing.T) {
			r, log, _ := traced(open, "a")
			c := r.ch.Pipeline().Get("tracer#0")
			if err := c.Remove(); err != nil || !c.Removed() {
				t.Errorf("Remove: got %v, removed %v; want nil, true", err, c.Removed())
			}
			if err := c.Remove(); !errors.Is(err, pipeline.ErrNoHandler) {
				t.Errorf("Remove once more: got %v, want ErrNoHandler", err)
			}
			r.do(r.ch.Close)
			checkCalls(t, "calls", log.take(), "a removed")
		})
		t.Run("added to a closed channel", func(t *testing.T) {
			r, log, _ := traced(open)
			r.do(r.ch.Reset)
			r.do(func() {
				if err := r.ch.Pipeline().Add(&tracer{name: "a", log: log}); !errors.Is(err, pipeline.ErrClosed) {
					t.Errorf("Add: got %v, want ErrClosed", err)
				}
			})
			checkCalls(t, "calls", log.take())
		})
		t.Run("added while it ends", func(t *testing.T) {
			r, log, hs := traced(open, "a")
			hs[0].on("inactive", func(k call) error {
				return k.c.Pipeline().Add(&tracer{name: "b", log: log})
			})
			hs[0].on("removed", func(k call) error {
				if err := k.c.Pipeline().Add(&tracer{name: "c", log: log}); !errors.Is(err, pipeline.ErrClosed) {
					t.Errorf("Add in the last HandleRemoved: got %v, want ErrClosed", err)
				}
				return nil
			})
			r.do(r.ch.Close)
			checkCalls(t, "calls", log.take(), "a close", "a inactive", "b added", "b inactive", "a unregistered", "b unregistered", "b removed", "a removed")
		})
	})
}

// A handler sees no event before its HandleAdded.
func TestSemantics6_4_AddedFirst(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		r, log, hs := traced(open, "a")
		once := true
		hs[0].on("read", func(k call) error {
			if once {
				once = false
				if _, err := k.c.Pipeline().AddAfter(k.c, "late", &tracer{name: "late", log: log}); err != nil {
					return err
				}
			}
			buffer.Release(k.msg)
			k.c.FireRead("seen")
			return nil
		})
		if err := r.ch.Pipeline().Add(pipeline.On(func(*pipeline.Context, string) error { return nil })); err != nil {
			t.Fatal(err)
		}
		r.say("x")
		log.until(t, "late complete")
		checkCalls(t, "calls", log.of("added", "read", "complete"), "a read", "late added", "late read", "a complete", "late complete")
	})
}

// The new handler is there before the old one goes, which may pass on what it has kept.
func TestSemantics6_5_ReplaceOrder(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		r, log, hs := traced(open, "a", "old", "z")
		hs[1].on("removed", func(k call) error { k.c.FireRead("kept by old"); return nil })
		var seen any
		next := (&tracer{name: "new", log: log}).on("read", func(k call) error { seen = k.msg; return nil })
		r.do(func() {
			c, err := r.ch.Pipeline().Replace("tracer#1", "new", next)
			if err != nil || c.Name() != "new" {
				t.Errorf("Replace: got %v, %v", c, err)
			}
		})
		checkCalls(t, "calls", log.take(), "new added", "old removed", "new read")
		if seen != "kept by old" {
			t.Errorf("the new handler got %v, want what the old one kept", seen)
		}
		checkCalls(t, "names", r.ch.Pipeline().Names(), "tracer#0", "new", "tracer#2")
	})
}

// Names are by type, with a number, and each is there once; see also
// TestSemantics6_6_Sharing.
func TestSemantics6_6_Names(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		r := open(new(forwarder), new(forwarder), pipeline.On(func(*pipeline.Context, *buffer.Buf) error { return nil }))
		p := r.ch.Pipeline()
		checkCalls(t, "names", p.Names(), "forwarder#0", "forwarder#1", "On[*buffer.Buf]#0")
		if _, err := p.AddNamed("forwarder#1", new(forwarder)); !errors.Is(err, pipeline.ErrDuplicateName) {
			t.Errorf("AddNamed of a name in use: got %v, want ErrDuplicateName", err)
		}
		if _, err := p.AddNamed("forwarder#2", new(sink)); err != nil {
			t.Errorf("AddNamed: %v", err)
		}
		if err := p.Add(new(forwarder)); err != nil {
			t.Errorf("Add: %v", err)
		}
		checkCalls(t, "names", p.Names(), "forwarder#0", "forwarder#1", "On[*buffer.Buf]#0", "forwarder#2", "forwarder#3")
		if _, err := p.Replace("forwarder#0", "forwarder#1", new(sink)); !errors.Is(err, pipeline.ErrDuplicateName) {
			t.Errorf("Replace by a name in use: got %v, want ErrDuplicateName", err)
		}
		if c, err := p.Replace("forwarder#0", "forwarder#0", new(sink)); err != nil || c.Name() != "forwarder#0" {
			t.Errorf("Replace by its own name: got %v, %v", c, err)
		}
	})
}

// An Init that fails closes the channel, in whatever way it fails, and so does a handler that
// it cannot add; see also TestDesign1_BrokenInit.
func TestSemantics6_7_InitFails(t *testing.T) {
	some := errors.New("some error")
	for _, k := range kinds {
		for _, how := range []string{"handler", "error", "panic"} {
			t.Run(k.name+"/"+how, func(t *testing.T) {
				log := new(trace)
				_, err := k.open(t, func(ch pipeline.Channel) error {
					a := (&tracer{name: "a", log: log}).on("error", func(call) error { return nil })
					b := &tracer{name: "b", log: log}
					if how == "handler" {
						b.on("added", func(call) error { return some })
					}
					err := ch.Pipeline().Add(a, b)
					switch {
					case how == "error":
						err = some
					case how == "panic":
						panic(some)
					}
					return err
				})
				if !errors.Is(err, some) && (err != errBroken || how != "panic") {
					t.Errorf("got %v, want %v", err, some)
				}
				log.until(t, "a removed")
				want := []string{"a added", "b added", "b removed", "a removed"}
				if how == "handler" {
					want = slices.Insert(want, 3, "a error")
				}
				if k.name == "embedded" { // a handler is its Init, and a's error comes before what follows from it
					want = slices.Insert(want, len(want)-2, "a error")
				}
				checkCalls(t, "calls", log.take(), want...)
			})
		}
	}
}

// A listener's children are messages in its pipeline: a handler may keep one from
// being served. There are no embedded listeners.
func TestSemantics6_8_Children(t *testing.T) {
	overSockets(t, accepted, func(t *testing.T, k kind) {
		g := newGroup(t)
		served := make(chan pipeline.Channel, 1)
		n := 0
		var kept pipeline.Channel
		srv := &transport.Server{
			Group: g,
			Init:  func(ch pipeline.Channel) error { served <- ch; return nil },
			ListenerInit: func(l pipeline.Channel) error {
				return l.Pipeline().Add(pipeline.On(func(c *pipeline.Context, child pipeline.Channel) error {
					if n++; n == 1 {
						kept = child
						child.Close()
						return nil
					}
					if child.Parent() != l {
						t.Errorf("parent: got %v, want the listener", child.Parent())
					}
					c.FireRead(child)
					return nil
				}))
			},
		}
		l, err := srv.Listen(context.Background(), k.network, k.addr(t))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			conn, err := net.Dial(k.network, l.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			if i == 0 {
				if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
					t.Errorf("the first: got %d bytes, %v; want it closed", n, err)
				}
				continue
			}
			if ch := await(t, "the second", served); ch == kept {
				t.Error("the first has been served")
			}
		}
	})
}

// Errors go forward from the thrower, itself first; those of outbound operations
// fail the promise, and are told from the head on if there is none.
func TestSemantics6_10_Errors(t *testing.T) {
	some := errors.New("some error")
	fail := func(call) error { return some }
	triggers := map[string]func(ch pipeline.Channel){
		"read":        func(ch pipeline.Channel) { ch.Pipeline().FireRead("x") },
		"event":       func(ch pipeline.Channel) { ch.Pipeline().FireEvent("x") },
		"complete":    func(ch pipeline.Channel) { ch.Pipeline().FireReadComplete() },
		"writability": func(ch pipeline.Channel) { ch.Pipeline().Get("first").FireWritability() },
		"write":       func(ch pipeline.Channel) { ch.Write("x") },
		"flush":       pipeline.Channel.Flush,
		"request":     pipeline.Channel.Read,
		"close":       pipeline.Channel.Close,
		"closewrite":  pipeline.Channel.CloseWrite,
	}
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		prepare := func(m string) (*rig, *trace, *[]error) {
			r, log, hs := traced(open, "a", "b", "c")
			if _, err := r.ch.Pipeline().AddBefore("tracer#0", "first", new(bystander)); err != nil {
				t.Fatal(err)
			}
			var told []error
			hs[1].on(m, fail)
			hs[2].on("error", func(k call) error { told = append(told, k.msg.(error)); return nil })
			return r, log, &told
		}
		for m, trigger := range triggers {
			inbound := []string{"b error", "c error"}
			if slices.Contains([]string{"write", "flush", "request", "close", "closewrite"}, m) {
				inbound = []string{"a error", "b error", "c error"}
			}
			r, log, told := prepare(m)
			var calls []string
			r.do(func() {
				trigger(r.ch)
				calls = log.of("error")
			})
			checkCalls(t, m, calls, inbound...)
			if len(*told) == 0 || (*told)[0] != some {
				t.Errorf("%s: told %v, want %v", m, *told, some)
			}
			if !r.ch.Open() {
				t.Errorf("%s: an error closed the channel", m)
			}
		}
		for _, m := range []string{"write", "close"} {
			r, log, told := prepare(m)
			var got []error
			then := func(err error) { got = append(got, err) }
			r.do(func() {
				if m == "write" {
					r.ch.WriteThen("x", then)
				} else {
					r.ch.CloseThen(then)
				}
			})
			if len(got) != 1 || got[0] != some {
				t.Errorf("%s: completed with %v, want once with %v", m, got, some)
			}
			if checkCalls(t, m, log.of("error")); len(*told) != 0 {
				t.Errorf("%s: told %v besides", m, *told)
			}
		}
	})
}

// An error in HandleError itself can only be a panic: it is logged, and closes.
func TestSemantics6_10_PanicInHandleError(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		r, log, hs := traced(open, "a", "b")
		hs[0].on("error", func(call) error { panic("boom") })
		r.do(func() { r.ch.Pipeline().FireError(errors.New("some error")) })
		log.until(t, "a removed")
		checkCalls(t, "errors", log.of("error"), "a error")
		var pe *pipeline.PanicError
		if !errors.As(r.ch.CloseReason(), &pe) || pe.Handler != "tracer#0" {
			t.Errorf("reason: got %v, want the panic", r.ch.CloseReason())
		}
	})
}

// Notifications go on by themselves, also after an error (where DESIGN.md differs).
func TestSemantics6_11_Forwarding(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		log := new(trace)
		a := (&tracer{name: "a", log: log}).on("error", func(call) error { return nil })
		notifications := []string{"registered", "active", "writability", "complete", "inactive", "unregistered"}
		for _, m := range notifications {
			a.on(m, func(call) error { return errors.New("some error") })
		}
		r := open(new(sink), a, new(sink), &tracer{name: "b", log: log})
		first := r.ch.Pipeline().Get("sink#0")
		r.do(func() {
			first.FireWritability()
			r.ch.Pipeline().FireReadComplete()
			r.ch.Reset()
		})
		log.until(t, "a removed")
		var want []string
		for _, m := range notifications {
			want = append(want, "a "+m, "a error", "b "+m)
		}
		checkCalls(t, "calls", log.of(append(notifications, "error")...), want...)
	})
}

// The result of a promise is the first; a channel's own cannot be completed by others.
func TestSemantics6_12_Promises(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		r, _, hs := traced(open, "a")
		some := errors.New("some error")
		hs[0].on("write", func(k call) error {
			k.c.ForwardWrite(k.msg, k.p)
			k.c.Flush()
			return some // too late: it has left
		})
		var got []error
		r.do(func() { r.ch.WriteThen("x", func(err error) { got = append(got, err) }) })
		if len(got) != 1 || got[0] != nil {
			t.Errorf("completed with %v, want once with nil", got)
		}
		var _ eventloop.Future = r.ch.Closed() // which has no Complete
		if s := r.hear(1); s != "x" {
			t.Errorf("heard %q, want x", s)
		}
	})
}

// A write behind the close is released and fails with the first reason; nobody who did
// not ask is told.
func TestSemantics15_WriteAfterClose(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		r, log, _ := traced(open, "a")
		reason := errors.New("first reason")
		abort := r.ch.(interface {
			Abort(pipeline.CloseMode, error)
		}).Abort
		r.do(func() { abort(pipeline.CloseNow, reason) })
		r.do(func() { abort(pipeline.CloseNow, io.EOF) })
		for _, from := range []struct {
			name string
			call func(func())
		}{{"the loop", r.do}, {"another goroutine", elsewhere}} {
			msg := &counted{refs: 1}
			var got error
			from.call(func() {
				r.ch.WriteThen(msg, func(err error) { got = err })
				r.ch.Write("nobody asks")
			})
			r.do(func() {})
			for _, want := range []error{pipeline.ErrClosed, net.ErrClosed, reason} {
				if !errors.Is(got, want) {
					t.Errorf("from %s: got %v, want one that is %v", from.name, got, want)
				}
			}
			if msg.refs != 0 {
				t.Errorf("from %s: got %d references, want 0", from.name, msg.refs)
			}
			checkCalls(t, "errors told", log.of("error"))
			if got != r.ch.CloseReason() {
				t.Errorf("from %s: the error is not the one that the channel made when it closed", from.name)
			}
			if want := "pipeline: channel closed: first reason"; got == nil || got.Error() != want {
				t.Errorf("from %s: got %q, want %q", from.name, got, want)
			}
		}
	})
}

// Where nobody asked for a completion the failure goes to HandleError.
func TestSemantics15_NobodyAsks(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		r, _, hs := traced(open, "a")
		var told []error
		hs[0].on("error", func(k call) error { told = append(told, k.msg.(error)); return nil })
		r.do(r.ch.CloseWrite)
		r.do(func() { r.ch.Write("nobody asks") })
		if len(told) != 1 || !errors.Is(told[0], pipeline.ErrOutputShutdown) {
			t.Errorf("told %v, want ErrOutputShutdown once", told)
		}
		var got error
		r.do(func() { r.ch.WriteThen("somebody asks", func(err error) { got = err }) })
		if len(told) != 1 || !errors.Is(got, pipeline.ErrOutputShutdown) {
			t.Errorf("completed with %v, told %v besides", got, told[1:])
		}
	})
}

// Completions come on the channel's loop, wherever the operation was asked for, and
// waiting for one there is refused.
func TestSemantics15_Listeners(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		r, log, _ := traced(open, "a")
		l := r.ch.Loop()
		note := func(what string) func(error) {
			return func(err error) { log.add(fmt.Sprint(what, " ", l.InLoop(), " ", err)) }
		}
		elsewhere(func() { r.ch.WriteThen("x", note("written")) })
		r.do(func() {
			if err := r.ch.Closed().Wait(context.Background()); err != eventloop.ErrWouldDeadlock {
				t.Errorf("Wait on the loop: got %v, want %v", err, eventloop.ErrWouldDeadlock)
			}
			if err := r.ch.Send(context.Background(), "x"); err != eventloop.ErrWouldDeadlock {
				t.Errorf("Send on the loop: got %v, want %v", err, eventloop.ErrWouldDeadlock)
			}
		})
		elsewhere(func() { r.ch.CloseThen(note("closed")) })
		r.do(func() {})
		if got := r.hear(2); got != "x" {
			t.Errorf("heard %q, want x", got)
		}
		log.until(t, "closed true <nil>")
		elsewhere(func() { r.ch.Closed().Then(note("asked late")) })
		r.do(func() {})
		if err := r.ch.Closed().Wait(context.Background()); err != nil {
			t.Errorf("Wait: got %v", err)
		}
		for _, want := range []string{"written true <nil>", "closed true <nil>", "asked late true <nil>"} {
			if n := log.count(want); n != 1 {
				t.Errorf("%s: got %d times, want once, in %q", want, n, log.take())
			}
		}
	})
}

// Deep chains of completions do not use up the stack.
func TestSemantics15_CompletionsDoNotNest(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		r, log, _ := traced(open)
		n, deepest := 0, 0
		var again func(error)
		again = func(error) {
			pcs := make([]uintptr, 2000)
			deepest = max(deepest, runtime.Callers(0, pcs))
			if n++; n < 2000 {
				r.ch.WriteThen("x", again)
				r.ch.Flush()
				return
			}
			log.add("the end")
		}
		r.do(func() { again(nil) })
		if got := len(r.hear(1999)); got != 1999 {
			t.Errorf("heard %d, want 1999", got)
		}
		r.do(func() {})
		log.until(t, "the end")
		r.do(func() {})
		if deepest > 1000 {
			t.Errorf("stack: got %d frames, want a bound", deepest)
		}
	})
}

// An embedded channel holds what reached its ends, keeps errors for its test, has time
// of its own, and flushes what is written to it.
func TestSemantics15_Embedded(t *testing.T) {
	some := errors.New("some error")
	var at []time.Duration
	ch := newChannel(t, embedded.Config{}, pipeline.On(func(c *pipeline.Context, d time.Duration) error {
		from := c.Loop().Now()
		c.Schedule(d, func() { at = append(at, c.Loop().Now().Sub(from)) })
		return nil
	}), pipeline.On(func(*pipeline.Context, int) error { return some }))
	ch.WriteInbound("in", 1, "stays in order")
	if a, b := ch.ReadInbound(), ch.ReadInbound(); a != "in" || b != "stays in order" {
		t.Errorf("inbound: got %v, %v", a, b)
	}
	ch.WriteOutbound("out")
	if got := ch.ReadOutbound(); got != "out" {
		t.Errorf("outbound: got %v, want out", got)
	}
	if got := ch.CheckError(); got != some {
		t.Errorf("error: got %v, want %v", got, some)
	}
	ch.WriteInbound(time.Hour)
	before := ch.Manual().Now()
	ch.Run()
	if d := ch.Manual().Now().Sub(before); d != 0 {
		t.Errorf("time has passed by itself: %v", d)
	}
	ch.Advance(time.Hour - 1)
	ch.Advance(1)
	if len(at) != 1 || at[0] != time.Hour {
		t.Errorf("timer: fired at %v, want once after an hour", at)
	}
	ran := false
	_ = ch.Loop().Execute(func() { ran = true })
	if err := ch.Finish(); err != nil || !ran || ch.Open() {
		t.Errorf("Finish: got %v, task run %v, open %v; want nil, true, false", err, ran, ch.Open())
	}
}

// Send is held back to what the peer takes, and loses and reorders nothing.
func TestDesign0_Send(t *testing.T) {
	overAll(t, func(t *testing.T, open func(...any) *rig) {
		if t.Name() == "TestDesign0_Send/embedded" {
			t.Skip("its loop runs only when the test says so, see ExampleChannel_Send")
		}
		r := open()
		const senders, each, size = 4, 40, 100 << 10
		var wg sync.WaitGroup
		for s := range senders {
			wg.Go(func() {
				for i := range each {
					b := r.ch.Alloc().Alloc(size)
					b.WriteUint16(uint16(s))
					b.WriteUint16(uint16(i))
					b.WriteZeros(size - 4)
					if err := r.ch.Send(context.Background(), b); err != nil {
						t.Errorf("Send: %v", err)
					}
				}
			})
		}
		var next [senders]byte
		for range senders * each {
			if m := r.hear(size); len(m) != size || m[3] != next[m[1]] {
				t.Fatalf("got message %d of sender %d, want %d", m[3], m[1], next[m[1]])
			} else {
				next[m[1]]++
			}
		}
		wg.Wait()
		r.do(func() {}) // completions come before the marks are judged
		if n := pipeline.WaitingSenders(r.ch); n != 0 || !r.ch.Writable() {
			t.Errorf("at the end: %d in the line, writable %v; want 0, true", n, r.ch.Writable())
		}
	})
}

// A group has channels of all kinds, on many loops.
func TestDesign4_ChannelGroup(t *testing.T) {
	var g pipeline.ChannelGroup
	var rigs []*rig
	for _, k := range kinds {
		rigs = append(rigs, k.with(t, pipeline.OnActive(func(c *pipeline.Context) error { g.Add(c.Channel()); return nil })))
	}
	if g.Len() != len(kinds) {
		t.Fatalf("got %d members, want %d", g.Len(), len(kinds))
	}
	g.Write(buffer.FromString("for all"))
	for i, r := range rigs {
		r.do(func() {})
		if got := r.hear(len("for all")); got != "for all" {
			t.Errorf("%s heard %q", kinds[i].name, got)
		}
	}
	rigs[1].do(rigs[1].ch.Reset)
	g.Write(buffer.FromString("the rest"), pipeline.Channel.Writable)
	g.Close()
	for i, r := range rigs {
		if i == 1 {
			continue
		}
		r.do(func() {})
		if got := r.hear(len("the rest")); got != "the rest" {
			t.Errorf("%s heard %q", kinds[i].name, got)
		}
		r.hangUp()
	}
	if err := g.Wait(context.Background()); err != nil || g.Len() != 0 {
		t.Errorf("Wait: got %v with %d members", err, g.Len())
	}
}
