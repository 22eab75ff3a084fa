package pipeline_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
	"github.com/runnel-io/runnel/transport"
)

// pair are two channels on one loop, coupled.
func pair(t *testing.T, manual bool) (a, b *embedded.Channel) {
	t.Helper()
	m := eventloop.NewManual()
	t.Cleanup(m.Close)
	a = embedded.NewTest(t, embedded.Config{Manual: m, HighWater: 100, ManualRead: manual})
	b = embedded.NewTest(t, embedded.Config{Manual: m, HighWater: 100})
	a.Do(func() { pipeline.Couple(a, b) })
	m.RunUntilIdle()
	return a, b
}

func wantAutoRead(t *testing.T, when string, a, b *embedded.Channel, wantA, wantB bool) {
	t.Helper()
	if gotA, gotB := a.AutoRead(), b.AutoRead(); gotA != wantA || gotB != wantB {
		t.Errorf("%s: got AutoRead %v, %v; want %v, %v", when, gotA, gotB, wantA, wantB)
	}
}

func TestCouple(t *testing.T) {
	a, b := pair(t, true)
	wantAutoRead(t, "coupled", a, b, true, true) // also for one that was not reading
	long := fmt.Sprint(make([]int, 100))

	b.Hold(true)
	b.WriteOutbound(long)
	wantAutoRead(t, "b full", a, b, false, true)
	a.Hold(true)
	a.WriteOutbound(long)
	wantAutoRead(t, "both full", a, b, false, false)
	b.Hold(false)
	b.Run()
	wantAutoRead(t, "b empty again", a, b, true, false)
	a.Hold(false)
	a.Run()
	wantAutoRead(t, "both empty again", a, b, true, true)

	a.SetUserWritable(1, false)
	a.Run()
	wantAutoRead(t, "a not writable for a reason of its user", a, b, true, false)
	a.SetUserWritable(1, true)
	a.Run()
	wantAutoRead(t, "and again", a, b, true, true)
	a.ReleaseAll()
	b.ReleaseAll()
}

// A channel that closes while it is full does not leave the other without reading.
func TestCoupleWithOneThatCloses(t *testing.T) {
	a, b := pair(t, false)
	b.Hold(true)
	b.WriteOutbound(fmt.Sprint(make([]int, 100)))
	wantAutoRead(t, "b full", a, b, false, true)
	b.Reset()
	b.Run()
	if !a.AutoRead() {
		t.Error("a does not read when b has closed")
	}

	c := embedded.NewTest(t, embedded.Config{Manual: a.Manual(), ManualRead: true})
	pipeline.Couple(b, c) // b has closed before
	c.Run()
	if !c.AutoRead() {
		t.Error("c does not read when it is coupled to a channel that has closed")
	}
	b.ReleaseAll()
}

// Whatever loops two channels are on, and whoever makes them unwritable and when, in the
// end each reads as the other is writable.
func TestCoupleAcrossLoops(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("sockets need Linux")
	}
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for seed := range uint64(30) {
		var chs [2]pipeline.Channel
		for i := range chs {
			if chs[i], err = (&transport.Dialer{Group: g}).Dial(context.Background(), "tcp", l.Addr().String()); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		for id := range 4 {
			r := rand.New(rand.NewPCG(seed, uint64(id)))
			wg.Go(func() {
				for range 50 {
					chs[r.IntN(2)].SetUserWritable(1+id, r.IntN(2) == 0)
				}
				for _, ch := range chs {
					ch.SetUserWritable(1+id, id < 3 || seed%2 == 0)
				}
			})
			if id == 1 {
				wg.Go(func() { pipeline.Couple(chs[0], chs[1]) })
			}
		}
		wg.Wait()
		for range 4 { // news goes to one loop and from there to the other
			for _, ch := range chs {
				done := make(chan struct{})
				if err := ch.Loop().Execute(func() { close(done) }); err != nil {
					t.Fatal(err)
				}
				<-done
			}
		}
		for i, ch := range chs {
			if got, want := ch.AutoRead(), chs[1-i].Writable(); got != want {
				t.Errorf("seed %d: channel %d: got AutoRead %v, want %v as the other is writable", seed, i, got, want)
			}
		}
		for _, ch := range chs {
			ch.Reset()
		}
	}
}

func TestSetUserWritable(t *testing.T) {
	var told []bool
	ch := embedded.NewTest(t, embedded.Config{HighWater: 100}, pipeline.OnWritability(func(c *pipeline.Context) error {
		told = append(told, c.Channel().Writable())
		return nil
	}))
	want := func(when string, writable bool, events ...bool) {
		t.Helper()
		ch.Run()
		if ch.Writable() != writable || fmt.Sprint(told) != fmt.Sprint(events) {
			t.Errorf("%s: got writable %v, events %v; want %v, %v", when, ch.Writable(), told, writable, events)
		}
		told = nil
	}
	ch.SetUserWritable(1, false)
	if ch.Writable() || told != nil {
		t.Errorf("at once: got writable %v, events %v; want false and the event later", ch.Writable(), told)
	}
	want("one reason", false, false)
	ch.SetUserWritable(31, false)
	ch.SetUserWritable(1, true)
	want("another reason instead", false)
	ch.Hold(true)
	ch.WriteOutbound(fmt.Sprint(make([]int, 100)))
	ch.SetUserWritable(31, true)
	want("the water mark instead", false)
	if n := ch.BytesBeforeUnwritable(); n != 0 {
		t.Errorf("bytes before unwritable: got %d, want 0", n)
	}
	ch.Hold(false)
	want("no reason left", true, true)
	ch.SetUserWritable(5, false)
	ch.SetUserWritable(5, true)
	want("there and back before the loop has seen it: somebody may have", true, true, true)
	ch.SetUserWritable(2, true)
	want("no change", true)
	for _, bad := range []int{-1, 0, 32} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("reason %d: no panic", bad)
				}
			}()
			ch.SetUserWritable(bad, false)
		}()
	}
	ch.ReleaseAll()
}

// Who waits in Send is let in when a user's reason is gone.
func TestSendWaitsForUserWritable(t *testing.T) {
	ch := embedded.NewTest(t, embedded.Config{})
	ch.SetUserWritable(3, false)
	sent := make(chan error, 1)
	go func() { sent <- ch.Send(t.Context(), "message") }()
	for pipeline.WaitingSenders(ch) == 0 {
		ch.Run()
	}
	if got := ch.ReadOutbound(); got != nil {
		t.Errorf("left before: %v", got)
	}
	ch.SetUserWritable(3, true)
	for len(sent) == 0 {
		ch.Run()
	}
	if err := <-sent; err != nil || ch.ReadOutbound() != "message" {
		t.Errorf("Send: got %v, want nil and the message", err)
	}
}
