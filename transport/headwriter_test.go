//go:build linux

package transport

import (
	"flag"
	"math/rand/v2"
	"strings"
	"testing"

	"go.uber.org/zap"

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

var crossSeed = flag.Uint64("cross.seed", 0, "seed of the only round of TestRelay_CrossingScripted; 0 means many")

// passer is a handler that does in its own way what a relay does: it changes nothing, so
// that a relay can be stopped at any moment.
type passer struct{ to *stream }

func (h *passer) HandleRead(_ *pipeline.Context, msg any) error { h.to.Write(msg); return nil }
func (h *passer) HandleEvent(c *pipeline.Context, ev any) error {
	if _, ended := ev.(pipeline.InputShutdown); ended {
		h.to.CloseWrite()
	}
	return nil
}

// However the turns of two loops follow each other, whatever the sockets take and whenever
// the relay is stopped, both streams arrive whole and in order, and both channels end.
func TestRelay_CrossingScripted(t *testing.T) {
	if *crossSeed != 0 {
		relayCrossing(t, *crossSeed)
		return
	}
	for seed := range uint64(300) {
		if relayCrossing(t, seed+1); t.Failed() {
			t.Fatalf("repeat with -cross.seed=%d", seed+1)
		}
	}
}

func relayCrossing(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 4))
	var ms [2]*eventloop.Manual
	var ends [2]*stream
	var ks [2]*script
	var sent [2]string
	memory, scarce := &stingy{Allocator: buffer.Heap}, r.IntN(3) == 0
	cfg, err := (&Config{HalfClose: true, Logger: zap.NewNop(), Allocator: memory, HighWater: 1 + r.IntN(100_000)}).check()
	if err != nil {
		t.Fatal(err)
	}
	for i := range ends {
		k := &script{t: t}
		for range r.IntN(15) {
			p := letters(1 + r.IntN([]int{10, 3000, 100_000}[r.IntN(3)]))
			k.in = append(k.in, readStep{data: p})
			sent[i] += p
		}
		k.in = append(k.in, readStep{eof: true})
		for range r.IntN(30) {
			if r.IntN(3) == 0 {
				k.take = append(k.take, takeStep{err: sys.ErrAgain})
			} else {
				k.take = append(k.take, takeStep{n: 1 + r.IntN([]int{5, 2000, 100_000}[r.IntN(3)])})
			}
		}
		ms[i] = eventloop.NewManual()
		ends[i], ks[i] = newStream(&cfg, ms[i].Loop(), nil, scriptFD+i), k
		ends[i].sock = scriptSocket{k}
	}
	for i, s := range ends {
		ms[i].Enter(func() {
			s.start(func(ch pipeline.Channel) error {
				return ch.Pipeline().Add(&passer{ends[1-i]}, new(sinkErrors))
			})
		})
	}
	relay := new(Relay)
	start, stop := r.IntN(20), -1
	if r.IntN(2) == 0 {
		stop = start + r.IntN(60)
	}
	if r.IntN(2) == 0 { // a proxy holds the target back
		ms[1].Enter(func() { ends[1].SetAutoRead(false) })
		ms[0].Enter(func() { ends[0].SetAutoRead(false) })
		start = 0
	}
	for i := 0; i < 6000 && (ends[0].at != streamClosed || ends[1].at != streamClosed); i++ {
		switch i {
		case start:
			ms[0].Enter(func() {
				if c := pipeline.Find[*passer](ends[0].Pipeline()); c != nil {
					if err := relay.Start(c, ends[1]); err != nil && ends[0].Open() && ends[1].Open() {
						t.Errorf("seed %d: %v", seed, err)
					}
				}
			})
		case stop:
			ms[0].Enter(relay.Stop)
		}
		memory.empty = scarce && r.IntN(3) == 0
		j := r.IntN(2)
		if s := ends[j]; s.at != streamClosed {
			ev := s.reg.Interest()
			if r.IntN(2) == 0 {
				ev &= eventloop.EventWrite
			}
			ms[j].Ready(scriptFD+j, ev)
		}
		ms[j].Turn()
		if i%8 == 7 {
			ms[j].Advance(starvedRetry)
		}
	}
	memory.empty = false
	for i, s := range ends {
		if s.at != streamClosed {
			t.Errorf("seed %d: channel %d has not closed: state %d, %d bytes in the queue", seed, i, s.at, s.out.queued-s.out.sent)
		}
		if out := ks[1-i].out.String(); out != sent[i] {
			t.Errorf("seed %d: way %d: %d bytes have arrived, want %d, or they differ", seed, i, len(out), len(sent[i]))
		}
	}
	for _, m := range ms {
		m.Close()
	}
}
