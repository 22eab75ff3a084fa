//go:build linux

package transport

import (
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// shouter is a handler that changes whatever passes it.
type shouter struct{ _ int }

func (*shouter) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	buffer.Release(msg)
	c.ForwardWrite("changed", p)
	return nil
}

func (*shouter) HandleRead(c *pipeline.Context, msg any) error {
	buffer.Release(msg)
	return nil
}

// What is relayed across loops, or mirrored to another loop, is none of the handlers'
// business there.
func TestAcrossLoopsPastThePipeline(t *testing.T) {
	for _, what := range []string{"relay", "mirror"} {
		t.Run(what, func(t *testing.T) {
			here, there := eventloop.NewManual(), eventloop.NewManual()
			a, ka := scriptedEnd(t, here, scriptFD, true, new(writer))
			b, kb := scriptedEnd(t, here, scriptFD+1, true, new(writer))
			far, kf := scriptedEnd(t, there, scriptFD+2, true, new(shouter))
			relay, target, kt := &Relay{}, b, kb
			if what == "mirror" {
				relay.Mirrors = []Mirror{{Channel: far, Block: true}}
			} else {
				target, kt = far, kf
			}
			there.Enter(func() { far.SetAutoRead(false) }) // what it gets is for the relay
			ka.in = []readStep{{data: "first"}, {data: " second"}}
			kt.in = []readStep{{data: "answer"}}
			here.Enter(func() {
				if err := relay.Start(pipeline.Find[*writer](a.Pipeline()), target); err != nil {
					t.Fatal(err)
				}
			})
			for range 5 {
				here.Ready(scriptFD, eventloop.EventRead)
				here.Ready(scriptFD+1, eventloop.EventRead)
				here.RunUntilIdle()
				there.Ready(scriptFD+2, eventloop.EventRead)
				there.RunUntilIdle()
			}
			if got := kf.out.String(); got != "first second" {
				t.Errorf("the other loop's channel: got %q", got)
			}
			if got := kt.out.String(); got != "first second" {
				t.Errorf("target: got %q", got)
			}
			if got := ka.out.String(); got != "answer" {
				t.Errorf("client: got %q", got)
			}
			here.Close()
			there.Close()
		})
	}
}

// A relay across loops has its target read when what is read is the relay's, and not in a
// turn before.
func TestRelay_CrossingReadsNothingBefore(t *testing.T) {
	here, there := eventloop.NewManual(), eventloop.NewManual()
	a, ka := scriptedEnd(t, here, scriptFD, true, new(writer))
	far, kf := scriptedEnd(t, there, scriptFD+1, true, new(shouter))
	there.Enter(func() { far.SetAutoRead(false) })
	kf.in = []readStep{{data: "answer"}}
	for range 1023 { // with one more its loop looks at I/O again
		if err := there.Loop().Execute(func() {}); err != nil {
			t.Fatal(err)
		}
	}
	here.Enter(func() {
		if err := new(Relay).Start(pipeline.Find[*writer](a.Pipeline()), far); err != nil {
			t.Fatal(err)
		}
	})
	for range 10 {
		there.Turn()
		there.Ready(scriptFD+1, far.reg.Interest())
		here.RunUntilIdle()
	}
	there.RunUntilIdle()
	here.RunUntilIdle()
	if got := ka.out.String(); got != "answer" {
		t.Errorf("client: got %q", got)
	}
	here.Close()
	there.Close()
}

// A mirror that becomes writable before its loop has heard of the relay is not waited for
// for ever.
func TestMirror_WritableBeforeItIsOne(t *testing.T) {
	here, there := eventloop.NewManual(), eventloop.NewManual()
	a, ka := scriptedEnd(t, here, scriptFD, true, new(writer))
	b, kb := scriptedEnd(t, here, scriptFD+1, true, new(writer))
	far, kf := scriptedEnd(t, there, scriptFD+2, true, new(writer))
	kf.take = []takeStep{{err: sys.ErrAgain}}
	there.Enter(func() { far.Write(strings.Repeat("x", 1<<20)) })
	there.RunUntilIdle()
	if far.Writable() {
		t.Fatal("writable")
	}
	relay := &Relay{Mirrors: []Mirror{{Channel: far, Block: true}}}
	ka.in = []readStep{{data: "up"}}
	here.Enter(func() {
		if err := relay.Start(pipeline.Find[*writer](a.Pipeline()), b); err != nil {
			t.Fatal(err)
		}
	})
	here.Ready(scriptFD, eventloop.EventRead)
	here.RunUntilIdle() // and finds it unwritable
	there.Ready(scriptFD+2, eventloop.EventWrite)
	there.RunUntilIdle()
	for range 3 {
		here.Ready(scriptFD, a.reg.Interest()&eventloop.EventRead)
		here.RunUntilIdle()
		there.RunUntilIdle()
	}
	if got := kb.out.String(); got != "up" {
		t.Errorf("target: got %q; interest %v", got, a.reg.Interest())
	}
	here.Close()
	there.Close()
}
