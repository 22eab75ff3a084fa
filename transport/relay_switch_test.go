//go:build linux

package transport

import (
	"flag"
	"math/rand/v2"
	"testing"

	"go.uber.org/zap"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

var switchSeed = flag.Uint64("switch.seed", 0, "seed of the only round of TestRelay_StartedAndStoppedAnywhere; 0 means many")

// switcher is a handler that sends on what it reads, as long as no relay does, and that
// starts a relay and stops it when it comes to its mind, in whatever it is called for.
type switcher struct {
	r      *rand.Rand
	relay  **Relay // of both ends; nil for none
	other  *stream
	most   *int // relays that are still to be started
	starts *int
}

func (h *switcher) act(c *pipeline.Context) {
	if h.r.IntN(3) > 0 {
		return
	}
	if *h.relay != nil {
		(*h.relay).Stop()
		*h.relay = nil
		return
	}
	if *h.most == 0 {
		return
	}
	*h.most--
	r := &Relay{Mode: RelayMode(h.r.IntN(3))}
	if r.Start(c, h.other) == nil {
		*h.starts++
		*h.relay = r
	}
}

func (h *switcher) HandleRead(c *pipeline.Context, msg any) error {
	// In the midst of what was read: the first half leaves, then the relay may begin.
	b := msg.(*buffer.Buf)
	h.other.Write(b.ReadSlice(b.Len() / 2))
	h.other.WriteThen(b, func(error) {
		if c := pipeline.Find[*switcher](h.other.Pipeline()); c != nil {
			c.Handler().(*switcher).act(c)
		}
	})
	h.act(c)
	return nil
}

func (h *switcher) HandleEvent(c *pipeline.Context, ev any) error {
	if _, ended := ev.(pipeline.InputShutdown); ended {
		h.other.CloseWrite()
	}
	h.act(c)
	return nil
}

func (h *switcher) HandleWritability(c *pipeline.Context) error  { h.act(c); return nil }
func (h *switcher) HandleReadComplete(c *pipeline.Context) error { h.act(c); return nil }
func (h *switcher) HandleError(*pipeline.Context, error)         {}

// A relay is started and stopped by handlers at any moment, over and over, in the midst
// of what they read themselves. Both streams arrive whole and in order, and when both have
// ended so have the channels.
func TestRelay_StartedAndStoppedAnywhere(t *testing.T) {
	if *switchSeed != 0 {
		relaySwitched(t, *switchSeed)
		return
	}
	started := 0
	for seed := range uint64(120) {
		if started += relaySwitched(t, seed+1); t.Failed() {
			t.Fatalf("repeat with -switch.seed=%d", seed+1)
		}
	}
	if started < 400 {
		t.Errorf("got %d relays started, want hundreds", started)
	}
}

func relaySwitched(t *testing.T, seed uint64) (starts int) {
	r := rand.New(rand.NewPCG(seed, 3))
	m := eventloop.NewManual()
	var relay *Relay
	most := 20
	var ends [2]*stream
	var ks [2]*script
	var hs [2]*switcher
	var sent [2]string
	cfg, err := (&Config{HalfClose: true, Logger: zap.NewNop(), HighWater: 1 + r.IntN(100_000)}).check()
	if err != nil {
		t.Fatal(err)
	}
	for i := range ends {
		k := &script{t: t}
		for range 5 + r.IntN(20) {
			p := letters(2 + r.IntN([]int{10, 3000, 100_000}[r.IntN(3)]))
			k.in = append(k.in, readStep{data: p})
			sent[i] += p
		}
		k.in = append(k.in, readStep{eof: true})
		for range r.IntN(60) {
			if r.IntN(3) == 0 {
				k.take = append(k.take, takeStep{err: sys.ErrAgain})
			} else {
				k.take = append(k.take, takeStep{n: 1 + r.IntN([]int{5, 2000, 100_000}[r.IntN(3)])})
			}
		}
		s := newStream(&cfg, m.Loop(), nil, scriptFD+i)
		s.sock = pipeSocket{scriptSocket{k}, r.IntN(8) == 0}
		ends[i], ks[i], hs[i] = s, k, &switcher{r: r, relay: &relay, most: &most, starts: &starts}
	}
	for i, h := range hs {
		h.other = ends[1-i]
		m.Enter(func() {
			ends[i].start(func(ch pipeline.Channel) error { return ch.Pipeline().Add(h) })
		})
	}
	for i := 0; i < 4000 && (ends[0].at != streamClosed || ends[1].at != streamClosed); i++ {
		s := ends[r.IntN(2)]
		if s.at != streamClosed {
			ev := s.reg.Interest()
			if r.IntN(2) == 0 {
				ev &= eventloop.EventWrite
			}
			m.Ready(s.reg.FD(), ev)
		}
		if m.Turn(); r.IntN(8) == 0 {
			m.Enter(func() {
				if c := pipeline.Find[*switcher](s.Pipeline()); c != nil {
					c.Handler().(*switcher).act(c)
				}
			})
		}
	}
	for i, k := range ks {
		if ends[i].at != streamClosed {
			t.Errorf("channel %d has not closed: state %d, %d bytes in the queue", i, ends[i].at, ends[i].out.queued-ends[i].out.sent)
		}
		if out := k.out.String(); out != sent[1-i] {
			t.Errorf("channel %d: %d bytes have arrived, want %d, or they differ", i, len(out), len(sent[1-i]))
		}
	}
	m.Close()
	if n := piped.Load(); n != 0 {
		t.Errorf("%d bytes are counted as in pipes", n)
	}
	return starts
}
