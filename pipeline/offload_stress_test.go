package pipeline_test

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

var (
	offloadSeed  = flag.Uint64("offload.seed", 0, "seed of TestOffloadedStress and TestOffloadedModel; 0 means by the clock")
	offloadSteps = flag.Int("offload.steps", 0, "steps of TestOffloadedModel, at least; 0 means some ten thousand")
)

// stressSeed returns the seed of a test. It is printed at once: a check that ends the
// process leaves no other trace.
func stressSeed(t *testing.T) uint64 {
	seed := *offloadSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
		fmt.Printf("%s: -offload.seed=%d\n", t.Name(), seed)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("repeat with -offload.seed=%d", seed)
		}
	})
	return seed
}

// scaled is how much of n a test does where it takes longer: under the race detector,
// and where asking for a goroutine's identity takes microseconds.
func scaled(n int) int {
	switch {
	case runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64":
		return max(n/6, 1)
	case testing.Short() || invariant.Race:
		return max(n/2, 1)
	}
	return n
}

// splitter makes numbers of the bytes that a peer sends, and bytes of those it gets.
type splitter struct {
	w    *world
	rest []byte
	n    int
}

func (s *splitter) HandleRead(c *pipeline.Context, msg any) error {
	b := msg.(*buffer.Buf)
	defer b.Release()
	s.rest = append(s.rest, b.Window()...)
	for len(s.rest) >= 4 {
		n := int(binary.BigEndian.Uint32(s.rest))
		s.rest = s.rest[4:]
		if s.n++; n != s.n {
			s.w.fail("the peer's %d came as number %d", n, s.n)
		}
		c.FireRead(s.w.message(0, n))
	}
	return nil
}

func (s *splitter) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	m := msg.(*number)
	defer m.Release()
	b := c.Alloc().Alloc(5)
	b.WriteUint8(uint8(m.way))
	b.WriteUint32(uint32(m.n))
	c.ForwardWrite(b, p)
	return nil
}

// Real loops, workers and peers: what the model knows, at any timing.
//
// A seed repeats which channel each peer gets and on which loop, with which handlers it
// begins, which steps are made for it, in which order and from where, what each of them
// chooses, and what the peer sends. It does not repeat how goroutines take turns: which
// handlers are there when a step chooses one of them, how far the bytes have got, who is
// first at the end.
func TestOffloadedStress(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("sockets need Linux")
	}
	seed := stressSeed(t)
	for i, tt := range []struct{ network, end string }{
		{"tcp", "server"}, {"unix", "group"}, {"unix", "executor"},
	} {
		t.Run(tt.network+", first ends the "+tt.end, func(t *testing.T) {
			offloadedStress(t, tt.network, tt.end, seed+uint64(i), scaled(100))
		})
	}
}

// The comment of TestOffloadedStress is true: two runs with one seed make the same steps
// for the same channels.
func TestOffloadedStressRepeats(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("sockets need Linux")
	}
	seed := stressSeed(t)
	const channels = 12
	first, second := offloadedStress(t, "unix", "server", seed, channels), offloadedStress(t, "unix", "server", seed, channels)
	if len(first) != channels || len(second) != channels {
		t.Errorf("got %d and %d channels, want %d", len(first), len(second), channels)
	}
	steps := 0
	for k, a := range first {
		b := second[k]
		n := min(len(a.steps), len(b.steps)) // a loop that ends cuts them off
		steps += n
		if a.loop != b.loop || a.handlers != b.handlers || !slices.Equal(a.steps[:n], b.steps[:n]) {
			t.Errorf("channel %d:\n got %+v\nthen %+v", k, a, b)
		}
	}
	if steps == 0 {
		t.Error("no steps were made")
	}
}

// program is what was chosen for a channel of TestOffloadedStress.
type program struct {
	loop     string
	handlers string
	steps    []int
}

func offloadedStress(t *testing.T, network, end string, seed uint64, channels int) map[uint64]program {
	r := rand.New(rand.NewPCG(seed, 0))
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 2, Offload: eventloop.OffloadConfig{Workers: 3}})
	if err != nil {
		t.Fatal(err)
	}
	own, err := eventloop.NewOffload(eventloop.OffloadConfig{Workers: 1 + r.IntN(3), Waiting: 1})
	if err != nil {
		t.Fatal(err)
	}
	away := func(r *rand.Rand) *pipeline.Offloaded {
		off := &pipeline.Offloaded{Mark: 1 + r.IntN(30)}
		switch r.IntN(3) {
		case 0:
			return nil
		case 1:
			off.Executor = own
		}
		return off
	}
	var work sync.WaitGroup
	var mu sync.Mutex
	var dialing uint64      // whose Init is called next: peers come one after the other
	var begun chan struct{} // told of that
	var worlds []*world
	programs := make(map[uint64]program)
	var ended, executorEnded atomic.Bool
	busy := make(chan struct{}) // closed when there is much to do
	srv := &transport.Server{
		Group:  g,
		Config: transport.Config{HighWater: 1 << 14},
		Init: func(ch pipeline.Channel) error {
			mu.Lock()
			k := dialing
			defer close(begun)
			mu.Unlock()
			r := rand.New(rand.NewPCG(seed, k))
			w := &world{fail: func(f string, args ...any) {
				t.Errorf("channel %d: "+f, append([]any{ch.ID()}, args...)...)
			}, away: away, ended: &executorEnded}
			mu.Lock()
			worlds = append(worlds, w)
			if len(worlds) == channels/2 {
				close(busy)
			}
			mu.Unlock()
			handlers := []any{&splitter{w: w}}
			for range r.IntN(4) {
				h, _ := w.station(r, true)
				handlers = append(handlers, h)
			}
			if err := ch.Pipeline().Add(handlers...); err != nil {
				return err
			}
			if _, err := ch.Pipeline().AddNamed("last", w.last(r)); err != nil {
				return err
			}
			calm := k%2 == 0
			prog := program{loop: ch.Loop().Name(), handlers: fmt.Sprint(ch.Pipeline().Names())}
			mu.Lock()
			programs[k] = prog
			mu.Unlock()
			if r.IntN(20) == 0 {
				return errSome // Init gives the channel up with handlers that are being added
			}
			work.Add(1)
			go func() {
				defer work.Done()
				d := &disturber{w: w, ch: ch, calm: calm, waits: true}
				defer func() {
					prog.steps = d.kinds
					mu.Lock()
					programs[k] = prog
					mu.Unlock()
				}()
				for i := range 40 + r.IntN(80) {
					d.r = rand.New(rand.NewPCG(seed, k<<32+uint64(i)))
					if d.r.IntN(4) == 0 {
						turn := make(chan struct{})
						if ch.Loop().Execute(func() { defer close(turn); d.step() }) != nil {
							break
						}
						<-turn
					} else {
						d.step()
					}
				}
				ch.SetAutoRead(true)
				switch k % 8 {
				case 1:
					ch.Close()
				case 3:
					ch.Reset()
				case 5:
					ch.Pipeline().FireEvent(w.message(0, -1))
					ch.(interface {
						Abort(pipeline.CloseMode, error)
					}).Abort(pipeline.CloseNow, io.EOF)
				}
			}()
			return nil
		},
	}
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = shortPath(t)
	}
	l, err := srv.Listen(context.Background(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	limit := make(chan struct{}, 32)
	for i := range channels {
		limit <- struct{}{}
		work.Add(1)
		r := rand.New(rand.NewPCG(seed, uint64(1_000_000+i)))
		mu.Lock()
		dialing = uint64(i + 1)
		begun = make(chan struct{})
		mu.Unlock()
		over := make(chan struct{})
		go func() {
			defer func() { close(over); <-limit; work.Done() }()
			peer(t, r, network, l.LocalAddr().String(), &ended)
		}()
		select {
		case <-begun:
		case <-over: // there is no server any more
		}
		if i == channels*3/4 {
			await(t, "half of the channels", busy)
			switch end {
			case "group":
				ended.Store(true)
				work.Add(1)
				go func() {
					defer work.Done()
					if err := g.Shutdown(context.Background()); err != nil {
						t.Errorf("Group: %v", err)
					}
					mu.Lock()
					defer mu.Unlock()
					for _, w := range worlds {
						if n := w.there.Load(); n != 0 {
							w.fail("%d handlers have not been removed when the group has ended", n)
						}
					}
				}()
			case "executor":
				executorEnded.Store(true)
				work.Add(1)
				go func() {
					defer work.Done()
					if err := own.Close(); err != nil {
						t.Errorf("Offload: %v", err)
					}
				}()
			}
		}
	}
	over := make(chan struct{})
	go func() {
		work.Wait()
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		// The server has ended after the last handler of its channels.
		for _, w := range worlds {
			if n := w.there.Load(); n != 0 {
				w.fail("%d handlers have not been removed when the server has ended", n)
			}
		}
		if err := g.Shutdown(context.Background()); err != nil {
			t.Errorf("Group: %v", err)
		}
		if err := own.Close(); err != nil {
			t.Errorf("Offload: %v", err)
		}
		close(over)
	}()
	await(t, "the end", over)
	for _, w := range worlds {
		if n := w.owed.Load(); n != 0 {
			w.fail("%d completions never came", n)
		}
		if n := w.live.Load(); n != 0 {
			w.fail("%d messages are left", n)
		}
	}
	return programs
}

// peer sends numbers and checks the order of what comes back.
func peer(t *testing.T, r *rand.Rand, network, addr string, ended *atomic.Bool) {
	conn, err := net.Dial(network, addr)
	if err != nil {
		// One that is reset at once may be so before Dial returns.
		if !ended.Load() && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("dial: %v", err)
		}
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	total := scaled(100 + r.IntN(1000))
	go func() {
		for n := 1; n <= total; {
			var b []byte
			for range 1 + r.IntN(100) {
				if n <= total {
					b = binary.BigEndian.AppendUint32(b, uint32(n))
					n++
				}
			}
			if _, err := conn.Write(b); err != nil {
				return
			}
		}
	}()
	var last [4]int
	var b [5]byte
	for last[1] < total {
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				t.Errorf("the peer still waits at %d of %d", last[1], total)
			}
			return
		}
		way, n := int(b[0]), int(binary.BigEndian.Uint32(b[1:]))
		if way > 3 || n <= last[way] {
			t.Errorf("the peer got %d of way %d after %d", n, way, last[way%4])
			return
		}
		last[way] = n
	}
}
