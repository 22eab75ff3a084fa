//go:build linux

package transport

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// order checks that a channel is told of its life once each, in order. What it finds
// goes to fail.
type order struct {
	fail  func(string, ...any)
	ends  *sync.WaitGroup
	stage int // 1 registered, 2 active, 3 inactive, 4 unregistered, 5 removed
}

func (o *order) to(c *pipeline.Context, stage int, after ...int) error {
	for _, s := range after {
		if o.stage == s {
			o.stage = stage
			return nil
		}
	}
	o.fail("%v: stage %d after %d", c.Channel(), stage, o.stage)
	return nil
}

func (o *order) HandleAdded(*pipeline.Context) error          { o.ends.Add(1); return nil }
func (o *order) HandleRegistered(c *pipeline.Context) error   { return o.to(c, 1, 0) }
func (o *order) HandleActive(c *pipeline.Context) error       { return o.to(c, 2, 1) }
func (o *order) HandleInactive(c *pipeline.Context) error     { return o.to(c, 3, 2) }
func (o *order) HandleUnregistered(c *pipeline.Context) error { return o.to(c, 4, 1, 3) }
func (o *order) HandleRemoved(c *pipeline.Context) {
	_ = o.to(c, 5, 0, 4)
	o.ends.Done()
}

func (o *order) HandleRead(c *pipeline.Context, msg any) error {
	if o.stage != 2 {
		o.fail("%v: read in stage %d", c.Channel(), o.stage)
	}
	c.FireRead(msg)
	return nil
}
func (o *order) HandleError(*pipeline.Context, error) {} // resets are what this is about

// What a client of the stress test does at its end.
const (
	endHalf  = iota // closes its sending side: everything comes back
	endClose        // closes: everything arrives
	endReset
	endServerReset // a word makes the server reset
	endKinds
)

// at is byte i of the stream of client id.
func at(id, i int) byte { return byte(id*31 + i*7 + i>>8) }

// client sends a stream from one goroutine while others disturb it.
type client struct {
	id, kind int
	manual   bool // begins without reading
	ch       pipeline.Channel
	chosen   []int        // sizes of the writes that every run makes; the writer's
	stirred  []int        // what disturb has done; its own
	sent     int          // bytes; the writer's
	got      int          // bytes; the loop's
	writes   atomic.Int32 // completions that are owed
	failed   atomic.Bool  // a write has failed
	input    bool         // all of it has been read; the loop's
	fail     func(string, ...any)
}

func (cl *client) HandleRead(_ *pipeline.Context, msg any) error {
	b := msg.(*buffer.Buf)
	defer b.Release()
	for _, v := range b.Window() {
		if v != at(cl.id, cl.got) {
			cl.fail("client %d: byte %d is %d, want %d", cl.id, cl.got, v, at(cl.id, cl.got))
			break
		}
		cl.got++
	}
	return nil
}

func (cl *client) HandleEvent(c *pipeline.Context, ev any) error {
	if _, ok := ev.(pipeline.InputShutdown); ok {
		cl.input = true
		c.Close()
	}
	return nil
}

func (cl *client) write(r *rand.Rand) {
	n := 1 + r.IntN(200)
	if r.IntN(8) == 0 {
		n = 1 + r.IntN(40000)
	}
	b := buffer.Default().Alloc(n)
	p := make([]byte, n)
	for i := range p {
		p[i] = at(cl.id, cl.sent+i)
	}
	b.Write(p)
	cl.sent += n
	cl.chosen = append(cl.chosen, n)
	if r.IntN(3) == 0 {
		cl.ch.Write(b)
		return
	}
	var told atomic.Bool
	cl.writes.Add(1)
	cl.ch.WriteThen(b, func(err error) {
		if told.Swap(true) {
			cl.fail("client %d: completion told twice", cl.id)
		}
		if err != nil {
			cl.failed.Store(true)
		}
		cl.writes.Add(-1)
	})
}

func (cl *client) disturb(r *rand.Rand) {
	for range 5 + r.IntN(20) {
		k := r.IntN(6)
		cl.stirred = append(cl.stirred, k)
		switch k {
		case 0:
			cl.ch.Flush()
		case 1:
			cl.ch.SetAutoRead(false)
			cl.ch.Read()
		case 2:
			cl.ch.SetAutoRead(true)
		case 3:
			cl.ch.Pipeline().FireEvent(r)
		case 4:
			_, _ = cl.ch.Writable(), cl.ch.BytesBeforeWritable()+cl.ch.BytesBeforeUnwritable()
		case 5:
			_, _, _ = cl.ch.Context().Err(), cl.ch.CloseReason(), cl.ch.Closed().Err()
		}
	}
	cl.ch.SetAutoRead(true)
}

var stressSeed = flag.Uint64("stress.seed", 0, "seed of TestStress; 0 means by the clock")

// seedOfStress returns the seed of a test. It is printed at once: a check that ends the
// process leaves no other trace.
func seedOfStress(t *testing.T) uint64 {
	seed := *stressSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
		fmt.Printf("%s: -stress.seed=%d\n", t.Name(), seed)
	}
	t.Cleanup(func() { // also after a Fatal
		if t.Failed() {
			t.Logf("repeat with -stress.seed=%d", seed)
		}
	})
	return seed
}

// Hundreds of channels that write, flush, close, half-close and reset from many
// goroutines at once, some while the server is drained: events come in order and
// once, so does every completion, and what is promised to arrive does.
//
// A seed repeats what each client is: how it ends, how it reads, what it writes and in
// which pieces, what the goroutine beside it does. It does not repeat how goroutines take
// turns: which loop a client gets, how far the others are when it ends, and how much one
// writes that waits for the server's reset.
func TestStress(t *testing.T) {
	seed := seedOfStress(t)
	n := 240
	if testing.Short() {
		n = 60
	}
	for round, network := range []string{"tcp", "unix", "tcp", "unix"} {
		drained := round >= 2
		t.Run(fmt.Sprintf("%s/drained=%v", network, drained), func(t *testing.T) {
			stress(t, network, seed+uint64(round), drained, n)
		})
	}
}

// The comment of TestStress is true: two runs with one seed, also with another number of
// clients, do the same for each of them.
func TestStressRepeats(t *testing.T) {
	seed := seedOfStress(t)
	first, second := stress(t, "unix", seed, false, 12), stress(t, "unix", seed, false, 24)
	for i, a := range first {
		b := second[i]
		if a.kind != b.kind || a.manual != b.manual || !slices.Equal(a.stirred, b.stirred) {
			t.Errorf("client %d: got kind %d, manual %v, disturbed by %v; then %d, %v, %v", i, a.kind, a.manual, a.stirred, b.kind, b.manual, b.stirred)
		}
		n := max(len(a.chosen), len(b.chosen))
		if a.kind == endServerReset {
			n = min(len(a.chosen), len(b.chosen))
		}
		if n < 5 || len(a.chosen) < n || len(b.chosen) < n || !slices.Equal(a.chosen[:n], b.chosen[:n]) {
			t.Errorf("client %d, kind %d: wrote %v, then %v", i, a.kind, a.chosen, b.chosen)
		}
	}
}

func stress(t *testing.T, network string, seed uint64, drained bool, n int) []*client {
	r := rand.New(rand.NewPCG(seed, 0))
	var ends sync.WaitGroup
	var received sync.Map // kind endClose: ID of the client to bytes
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 3})
	if err != nil {
		t.Fatal(err)
	}
	over := make([]chan struct{}, n) // the accepted channels of clients that close
	for i := range over {
		over[i] = make(chan struct{})
	}
	srv := &Server{
		Group:  g,
		Config: Config{HighWater: 1 << (10 + r.IntN(8))},
		Init: func(ch pipeline.Channel) error {
			kind, id, n := -1, 0, 0
			return ch.Pipeline().Add(&order{fail: t.Errorf, ends: &ends},
				pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
					for kind < 0 || n < 3 { // a head of three bytes: the kind and the client
						if b.Len() == 0 {
							b.Release()
							return nil
						}
						v := int(b.ReadUint8())
						if n++; n == 1 {
							kind = v
						} else {
							id = id<<8 | v
						}
					}
					n += b.Len()
					switch kind {
					case endClose:
						received.Store(id, n-3)
						b.Release()
					case endServerReset:
						b.Release()
						if n > 2000 {
							c.Channel().Reset()
						}
					default:
						c.Write(b)
					}
					return nil
				}),
				pipeline.OnInactive(func(*pipeline.Context) error {
					if kind == endClose && n >= 3 {
						close(over[id])
					}
					return nil
				}))
		},
	}
	l, err := srv.Listen(context.Background(), network, anyAddr(t, network))
	if err != nil {
		t.Fatal(err)
	}
	clients := make([]*client, n)
	var work sync.WaitGroup
	limit := make(chan struct{}, 64)
	for i := range clients {
		own, other := rand.New(rand.NewPCG(seed, uint64(2*i+1))), rand.New(rand.NewPCG(seed, uint64(2*i+2)))
		cl := &client{id: i, kind: own.IntN(endKinds), manual: own.IntN(4) == 0, fail: t.Errorf}
		clients[i] = cl
		work.Add(1)
		limit <- struct{}{}
		go func() {
			defer func() { <-limit; work.Done() }()
			d := &Dialer{
				Config: Config{HalfClose: true, ManualRead: cl.manual},
				Init:   with(&order{fail: t.Errorf, ends: &ends}, cl),
			}
			ch, err := d.Dial(context.Background(), network, l.LocalAddr().String())
			if err != nil {
				if !drained {
					t.Errorf("client %d: %v", i, err)
				}
				return
			}
			cl.ch = ch
			ch.Write([]byte{byte(cl.kind), byte(i >> 8), byte(i)})
			done := make(chan struct{})
			go func() { defer close(done); cl.disturb(other) }()
			for range 5 + own.IntN(40) {
				cl.write(own)
			}
			switch cl.kind {
			case endHalf:
				ch.CloseWrite()
			case endClose:
				ch.Close()
			case endReset:
				ch.Reset()
			case endServerReset:
				for ch.Open() {
					if ch.Writable() {
						cl.write(own)
					}
					turn := make(chan struct{})
					if ch.Loop().Execute(func() { close(turn) }) == nil {
						<-turn
					}
				}
			}
			<-done
		}()
		if drained && i == n/2 {
			work.Add(1)
			patient := r.IntN(2) == 0
			go func() {
				defer work.Done()
				ctx, cancel := context.WithCancel(context.Background())
				if !patient {
					cancel()
				}
				defer cancel()
				if err := srv.Shutdown(ctx); err != nil && !errors.Is(err, ErrDrainTimeout) {
					t.Errorf("Shutdown: %v", err)
				}
			}()
		}
	}
	finished := make(chan struct{})
	go func() {
		work.Wait()
		for _, cl := range clients {
			if cl.ch != nil {
				<-cl.ch.Closed().Done()
			}
		}
		if !drained {
			for i, cl := range clients {
				if cl.kind == endClose && cl.ch != nil {
					<-over[i] // a drain would not read what has arrived
				}
			}
			if err := srv.Shutdown(context.Background()); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		}
		ends.Wait()
		close(finished)
	}()
	select {
	case <-finished:
	case <-time.After(patience):
		for _, cl := range clients {
			if cl.ch != nil && cl.ch.Open() {
				t.Errorf("client %d, kind %d: still open, sent %d, %d completions owed", cl.id, cl.kind, cl.sent, cl.writes.Load())
			}
		}
		t.Fatal("not finished")
	}
	if err := g.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	for _, cl := range clients {
		if cl.ch == nil {
			continue
		}
		// What was written to a closed channel fails in a task of its loop.
		turn := make(chan struct{})
		if cl.ch.Loop().Execute(func() { close(turn) }) == nil {
			await(t, turn, "a task")
		}
		if w := cl.writes.Load(); w != 0 {
			t.Errorf("client %d: %d completions never came", cl.id, w)
		}
		if drained {
			continue
		}
		switch cl.kind {
		case endHalf:
			if cl.got != cl.sent || !cl.input || cl.failed.Load() {
				t.Errorf("client %d: got %d bytes back, sent %d; end %v, failed writes %v: %v",
					cl.id, cl.got, cl.sent, cl.input, cl.failed.Load(), cl.ch.CloseReason())
			}
		case endClose:
			if v, _ := received.Load(cl.id); v != cl.sent || cl.failed.Load() {
				t.Errorf("client %d: %v bytes arrived, sent %d, failed writes %v", cl.id, v, cl.sent, cl.failed.Load())
			}
		}
	}
	return clients
}
