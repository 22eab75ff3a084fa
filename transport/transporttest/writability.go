package transporttest

import (
	"slices"

	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// What Netty's suite has as SocketConditionalWritabilityTest, and SEMANTICS 3.
var writabilityTests = []test{
	{name: "3.1 each change is told once", run: changesOnce},
	{name: "3.2 the marks are strict", run: strictMarks},
	{name: "3.3 a write tells of the change before it returns", run: toldInside},
	{name: "3.4 the end of a channel is no change", run: noChangeAtEnd},
	{name: "3 an accepted channel that is not writable does not read", run: acceptedPauses},
	{name: "3 a dialed channel that is not writable reads", run: dialedReads},
	{name: "a handler that writes while it can sends everything", run: writesWhileItCan},
}

func changesOnce(f *fixture) {
	a, d := f.pair(transport.Config{ManualRead: true}, transport.Config{})
	d.strict = true
	var all []byte
	for i := range 3 {
		all = append(all, d.fill()...)
		for a.received() < len(all) {
			before := a.received()
			a.ch.Read()
			a.wait("a read", func() bool { return len(a.data) > before })
		}
		d.wait("a writable channel", func() bool { return slices.Contains(d.log, "writable true") })
		f.settle()
		if no, yes := d.saw("writable false"), d.saw("writable true"); no != yes || yes < i+1 {
			f.Errorf("after round %d: got %d and %d changes, want as many of both", i, no, yes)
		}
	}
	a.wantData(all) // checkLife looks at the order of the changes
}

func strictMarks(f *fixture) {
	const high, low = 20_000, 5_000
	a, d := f.pair(transport.Config{}, transport.Config{ManualFlush: true, HighWater: high, LowWater: low})
	total := 0
	d.do(func() {
		before := d.ch.BytesBeforeUnwritable()
		if before != high+1 || d.ch.BytesBeforeWritable() != 0 {
			f.Errorf("empty: got %d before unwritable, %d before writable; want %d, 0", before, d.ch.BytesBeforeWritable(), high+1)
		}
		// Too large to be merged, so each is charged as it is.
		for d.ch.Writable() {
			b := pooled(make([]byte, 1500))
			charge := pipeline.PendingSize(b, high)
			before := d.ch.BytesBeforeUnwritable()
			if b := d.ch.BytesBeforeWritable(); b != 0 {
				f.Errorf("writable, and %d before it is", b)
			}
			d.ch.Write(b)
			total += 1500
			if want := before > charge; d.ch.Writable() != want {
				f.Errorf("writable %v after %d of %d bytes before unwritable", !want, charge, before)
			}
			if d.ch.Writable() && d.ch.BytesBeforeUnwritable() != before-charge {
				f.Errorf("before unwritable: got %d, want %d", d.ch.BytesBeforeUnwritable(), before-charge)
			}
		}
		if before := d.ch.BytesBeforeUnwritable(); before != 0 {
			f.Errorf("not writable, and %d before it is not", before)
		}
		if before := d.ch.BytesBeforeWritable(); before <= high-low || before > high {
			f.Errorf("before writable: got %d, want more than %d", before, high-low)
		}
		d.ch.Flush()
	})
	d.waitLog("writable true")
	a.wantData(make([]byte, total))
}

func toldInside(f *fixture) {
	_, d := f.pair(transport.Config{}, transport.Config{ManualFlush: true, HighWater: 1000, LowWater: 500})
	d.do(func() {
		d.ch.Write(pooled(make([]byte, 2000)))
		if d.saw("writable false") != 1 {
			f.Error("the write has returned and the handlers have not been told")
		}
		d.ch.Flush()
		if d.saw("writable true") != 1 {
			f.Error("the flush has returned and the handlers have not been told")
		}
	})
}

func noChangeAtEnd(f *fixture) {
	a, d := f.pair(transport.Config{ManualRead: true}, transport.Config{})
	d.fill()
	d.ch.Reset()
	d.wantEnd(pipeline.ErrReset)
	if n := d.saw("writable true"); n != 0 {
		f.Error("a channel that has ended became writable")
	}
	a.ch.Reset()
}

// acceptedPauses and dialedReads fill one way of a connection and use the other.
func acceptedPauses(f *fixture) {
	if f.tr.BothDialed {
		f.Skip("both ends are dialed ones")
	}
	a, d := f.pair(transport.Config{}, transport.Config{ManualRead: true})
	all := a.fill()
	a.do(func() {})
	before := a.received()
	d.ch.Write("unheard")
	f.settle()
	if a.received() != before {
		f.Error("an accepted channel reads while it is not writable")
	}
	d.ch.SetAutoRead(true)
	d.wantData(all)
	a.wantData([]byte("unheard"))

	a, d = f.pair(transport.Config{ReadWhileUnwritable: true}, transport.Config{ManualRead: true})
	a.fill()
	d.ch.Write("heard")
	a.wantData([]byte("heard"))
}

func dialedReads(f *fixture) {
	a, d := f.pair(transport.Config{ManualRead: true}, transport.Config{})
	d.fill()
	a.ch.Write("heard")
	d.wantData([]byte("heard"))
}

// writer writes what is left of all while the channel is writable.
type writer struct{ left []byte }

func (w *writer) write(c *pipeline.Context) {
	for c.Channel().Writable() && len(w.left) > 0 {
		n := min(1000, len(w.left))
		p := w.left[:n]
		w.left = w.left[n:]
		c.Write(pooled(p))
	}
}

func (w *writer) HandleActive(c *pipeline.Context) error { w.write(c); return nil }

func (w *writer) HandleWritability(c *pipeline.Context) error { w.write(c); return nil }

func writesWhileItCan(f *fixture) {
	all := pattern(2 * f.bulk)
	a, d := f.end(transport.Config{}), f.end(transport.Config{HighWater: 4096}, &writer{all})
	f.connect(a, d)
	a.wantData(all)
}
