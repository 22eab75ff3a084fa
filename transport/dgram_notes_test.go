package transport

import (
	"net/netip"
	"runtime"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// newNotedRig starts a channel whose socket says more of a datagram than where it came
// from, and may hand over many as one.
func newNotedRig(t *testing.T, cfg rigConfig, handlers ...any) *dgramRig {
	r := newDgramRig(t, cfg, handlers...)
	r.fd.notes, r.fd.gro, r.room = true, true, maxCoalesced
	return r
}

// What came as one is delivered as what was sent, in order and among what came alone.
func TestCoalescedDatagrams(t *testing.T) {
	in := []inDatagram{
		{from: "a", data: "aaabbbcc", segment: 3},
		{from: "b", data: "alone"},
		{from: "a", data: "", segment: 3},
		{from: "a", data: "dddeee", segment: 3},
		{from: "a", data: "one", segment: 3},
		{from: "a", data: "two", segment: 5},
		{from: "c", data: "xyz", segment: 1},
		{from: "c", data: "aaabb", segment: -1}, // the kernel's word, and still not to be trusted
	}
	for _, dialed := range []bool{false, true} {
		r := newNotedRig(t, rigConfig{dialed: dialed})
		r.readable(in...)
		name := func(s string) string {
			if dialed {
				return ""
			}
			return s + ": "
		}
		r.wantLog("read "+name("a")+"aaa", "read "+name("a")+"bbb", "read "+name("a")+"cc", "read "+name("b")+"alone",
			"read "+name("a"), "read "+name("a")+"ddd", "read "+name("a")+"eee", "read "+name("a")+"one", "read "+name("a")+"two",
			"read "+name("c")+"x", "read "+name("c")+"y", "read "+name("c")+"z", "read "+name("c")+"aaabb", "complete")
	}
}

// Each of them is bounded by MaxDatagram, not all together.
func TestCoalescedDatagramsTooLong(t *testing.T) {
	r := newNotedRig(t, rigConfig{Config: Config{MaxDatagram: 4}})
	r.readable(
		inDatagram{from: "a", data: "aaaabbbbcc", segment: 4},
		inDatagram{from: "b", data: "aaaaabbbbbcc", segment: 5},
		inDatagram{from: "c", data: "alone"},
	)
	tooLong := func(name string) string {
		return "error " + (&OpError{Op: "read", Addr: (&dgramSlot{name: name}).from(), Err: ErrTruncated}).Error()
	}
	r.wantLog("read a: aaaa", "read a: bbbb", "read a: cc", tooLong("b"), tooLong("b"), "read b: cc", tooLong("c"), "complete")
}

// Where the channel ends among them, by whatever means, the rest is dropped and nothing
// of the memory is kept.
func TestChannelEndsAmongCoalescedDatagrams(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(c *pipeline.Context)
	}{
		{"close", func(c *pipeline.Context) { c.Channel().Close() }},
		{"reset", func(c *pipeline.Context) { c.Channel().Reset() }},
		{"panic", func(*pipeline.Context) { panic("boom") }},
		{"goexit", func(*pipeline.Context) { runtime.Goexit() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := buffer.Live()
			var seen []string
			r := newNotedRig(t, rigConfig{}, pipeline.On(func(c *pipeline.Context, d *Datagram) error {
				seen = append(seen, d.Content.ReadString(d.Content.Len()))
				d.Release()
				if len(seen) == 2 {
					tt.end(c)
				}
				return nil
			}))
			done := make(chan struct{})
			go func() { // which Goexit may end
				defer close(done)
				r.readable(inDatagram{from: "a", data: letters(60_000), segment: 1000}, inDatagram{from: "a", data: "next"})
			}()
			await(t, done, "the read")
			r.m.RunUntilIdle()
			if len(seen) != 2 || r.Open() {
				t.Errorf("got %d datagrams, open %v; want 2 and false", len(seen), r.Open())
			}
			r.m.Close()
			if n := buffer.Live() - before; n != 0 {
				t.Errorf("live buffers: got %d more than before", n)
			}
		})
	}
}

// What is written of them waits in the queue for the price of the memory that it keeps
// alive, which is charged once.
func TestCoalescedDatagramsAreChargedOnce(t *testing.T) {
	r := newNotedRig(t, rigConfig{Config: Config{HighWater: 1 << 20}}, pipeline.On(func(c *pipeline.Context, d *Datagram) error {
		if got := d.Pinned(); got < maxCoalesced {
			t.Errorf("a datagram of %d bytes pins %d, want all that came with it", d.Content.Len(), got)
		}
		c.Write(d)
		return nil
	}))
	r.k.take = []takeStep{{err: sys.ErrAgain}}
	r.readable(inDatagram{from: "a", data: letters(60_000), segment: 1000})
	queued := r.out.pending()
	if want := int64(maxCoalesced + 60*entryCharge); queued < want || queued > want+1000 {
		t.Errorf("60 datagrams of one buffer: got %d bytes queued, want about %d", queued, want)
	}
	r.ready(eventloop.EventWrite)
	if len(r.k.out) != 60 {
		t.Errorf("got %d datagrams sent, want 60", len(r.k.out))
	}
}

// A Datagram says to whom it was sent if the channel asks for it, and the next one that
// uses its memory does not.
func TestDatagramDestination(t *testing.T) {
	to := netip.MustParseAddrPort("192.0.2.1:7")
	var got []netip.AddrPort
	note := pipeline.On(func(_ *pipeline.Context, d *Datagram) error {
		got = append(got, d.To)
		d.Release()
		return nil
	})
	r := newNotedRig(t, rigConfig{}, note)
	r.readable(inDatagram{from: "a", data: "aabb", segment: 2, to: to}, inDatagram{from: "a", data: "c"})
	plain := newDgramRig(t, rigConfig{}, note)
	plain.readable(inDatagram{from: "a", data: "d", to: to}) // what is left in a slot by another channel
	var none netip.AddrPort
	if len(got) != 4 || got[0] != to || got[1] != to || got[2] != none || got[3] != none {
		t.Errorf("got %v, want %v twice and nothing twice", got, to)
	}
}

// What comes with a datagram, and the parts of one that is many, cost no allocation.
func TestNotedDatagramAllocations(t *testing.T) {
	if invariant.Enabled {
		t.Skip("assertions allocate")
	}
	defer buffer.SetLeakLevel(buffer.SetLeakLevel(buffer.LeakSampled)) // at level all buffers are not used again
	got := 0
	r := newNotedRig(t, rigConfig{}, pipeline.On(func(c *pipeline.Context, d *Datagram) error {
		got++
		d.Release()
		return nil
	}))
	r.sock = &reflector{dgramScript: r.k, segment: 3}
	round := func() {
		r.m.Ready(scriptFD, eventloop.EventRead)
		r.m.Turn()
	}
	for range 100 {
		round()
	}
	const rounds, each = 200, 4 * dgramBatch
	before := got
	if n := testing.AllocsPerRun(rounds, round); n > 1 { // a pool may lose what it keeps
		t.Errorf("got %v allocations for a batch of %d datagrams, want 0", n, each)
	}
	if n := got - before; n != (rounds+1)*each {
		t.Errorf("got %d datagrams, want %d", n, (rounds+1)*each)
	}
}

// A request to read brings all that came as one; the next waits for the next request.
func TestReadingCoalescedDatagramsWhenAsked(t *testing.T) {
	r := newNotedRig(t, rigConfig{Config: Config{ManualRead: true}})
	r.k.in = []inDatagram{{from: "a", data: "aabb", segment: 2}, {from: "a", data: "c"}}
	for _, want := range [][]string{{"read a: aa", "read a: bb", "complete"}, {"read a: c", "complete"}} {
		r.do(r.Read)
		r.ready(eventloop.EventRead)
		r.wantLog(want...)
		r.rec.log = nil
	}
}
