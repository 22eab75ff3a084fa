//go:build linux

package transport

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
)

// When the Unix socket at the other end is gone, each write says so; nothing else
// happens.
func TestUnixDatagramPeerGone(t *testing.T) {
	in := make(inbox, 100)
	l := serve(t, &Server{Init: with(in)}, "unixgram", unixgramAddr(t).Name)
	ch := dialDatagrams(t, &Dialer{}, l)
	ch.Write("x")
	await(t, in, "a datagram")
	l.Close()
	await(t, l.Closed().Done(), "the end of the peer")
	for i, want := range []error{syscall.ECONNREFUSED, syscall.ENOTCONN, syscall.ENOTCONN} {
		if err := ch.Send(context.Background(), "x"); !errors.Is(err, want) {
			t.Errorf("write %d: got %v, want %v", i, err, want)
		}
	}
	if !ch.Open() {
		t.Errorf("closed: %v", ch.CloseReason())
	}
}

// Many goroutines write to many channels that end at any moment, by every kind of
// end: what a goroutine has written arrives in its order, each completion comes once,
// and nothing is left behind, which TestMain sees.
func TestDatagramStress(t *testing.T) {
	const writers, each = 4, 100
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	var last sync.Map // "round writer" to the last number that has come
	in := pipeline.On(func(_ *pipeline.Context, d *Datagram) error {
		defer d.Release()
		var round, writer, i int
		if _, err := fmt.Sscan(string(d.Content.Window()), &round, &writer, &i); err != nil {
			t.Errorf("got %q: %v", d.Content.Window(), err)
			return nil
		}
		key := [2]int{round, writer}
		if before, ok := last.Swap(key, i); ok && before.(int) >= i {
			t.Errorf("round %d, writer %d: got %d after %d", round, writer, i, before)
		}
		return nil
	})
	l := serve(t, &Server{Init: with(in)}, "unixgram", unixgramAddr(t).Name)
	name := l.LocalAddr().String()
	for round := range rounds {
		srv := &Server{Init: with(echoDatagrams()), Config: Config{HighWater: 4000}}
		connected := round%2 == 0
		var ch pipeline.Channel
		var err error
		if connected {
			ch, err = (&Dialer{}).Dial(context.Background(), "unixgram", name)
		} else {
			ch, err = srv.Listen(context.Background(), "unixgram", unixgramAddr(t).Name)
		}
		if err != nil {
			t.Fatal(err)
		}
		var told atomic.Int64
		var all sync.WaitGroup
		r := rand.New(rand.NewPCG(uint64(round), 0))
		end, at := r.IntN(4), int64(r.IntN(writers*each))
		for w := range writers {
			all.Go(func() {
				for i := range each {
					b := buffer.Default().Alloc(64)
					fmt.Fprintf(b, "%d %d %d ", round, w, i)
					var msg any = b
					if !connected {
						msg = &Datagram{Content: b, Name: name}
					}
					ch.WriteThen(msg, func(err error) {
						if err != nil && !errors.Is(err, pipeline.ErrClosed) {
							t.Errorf("got %v, want nil or ErrClosed", err)
						}
						if told.Add(1) != at {
							return
						}
						switch end {
						case 0:
							ch.Close()
						case 1:
							ch.Reset()
						case 2:
							panic("stress")
						}
					})
				}
			})
		}
		all.Wait()
		ch.Close()
		await(t, ch.Closed().Done(), "the end of the channel")
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		// Behind the end of the channel: what it owes is told on its loop.
		behind := make(chan struct{})
		if ch.Loop().Execute(func() { close(behind) }) == nil {
			await(t, behind, "the loop")
		}
		if got := told.Load(); got != writers*each {
			t.Errorf("round %d: completions: got %d, want %d", round, got, writers*each)
		}
	}
}
