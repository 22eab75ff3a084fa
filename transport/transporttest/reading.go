package transporttest

import (
	"slices"
	"sync/atomic"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// What Netty's suite has as SocketAutoReadTest, SocketDataReadInitialStateTest,
// SocketReadPendingTest, SocketChannelEOFTest.
var readingTests = []test{
	{name: "4.1 reading goes on by itself", run: readsByItself},
	{name: "4.1 a handler may hold requests for reading back", run: requestsHeld},
	{name: "4.1 reading is switched off and on by a handler", run: switchedByHandler},
	{name: "4.1 reading is switched off and on from elsewhere", run: switchedFromElsewhere},
	{name: "4.2 one turn for each request", run: oneTurnEach},
	{name: "4.3 a request made while reading counts", run: requestWhileReading},
	{name: "4.3 a request made before the channel is active counts", run: requestBeforeActive},
	{name: "4.5 nothing is read after a close while reading", run: closeWhileReading},
	{name: "4.6 each turn of reading has one end", run: turnsEnd},
	{name: "5.2 all that was sent is read before the end", run: allBeforeTheEnd},
	{name: "5.8 an end that comes while reading is paused waits", run: endWhilePaused},
	{name: "data is there before the handlers are", run: dataBeforeHandlers},
}

func readsByItself(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	var all []byte
	for i := range 50 {
		p := pattern(10 + i)
		all = append(all, p...)
		d.ch.Write(p)
		a.wantData(all)
	}
}

// gate holds requests for reading back while it is shut.
type gate struct{ open atomic.Bool }

func (g *gate) HandleReadRequest(c *pipeline.Context) error {
	if g.open.Load() {
		c.Read()
	}
	return nil
}

func requestsHeld(f *fixture) {
	g := &gate{}
	a, d := f.end(transport.Config{}, g), f.end(transport.Config{})
	f.connect(a, d)
	d.ch.Write("held")
	f.settle()
	if n := a.received(); n != 0 {
		f.Errorf("read %d bytes that nobody asked for", n)
	}
	g.open.Store(true)
	a.ch.Read()
	a.wantData([]byte("held"))
	d.ch.Write(" and more")
	a.wantData([]byte("held and more"))
}

func switchedByHandler(f *fixture) {
	off := pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
		c.Channel().SetAutoRead(false)
		c.FireRead(b)
		return nil
	})
	a, d := f.end(transport.Config{}, off), f.end(transport.Config{})
	f.connect(a, d)
	all := pattern(f.bulk / 4)
	d.ch.Write(pooled(all))
	// One read each time that it is on, and each is of some bytes.
	for turns := 1; a.received() < len(all); turns++ {
		a.wait("a read", func() bool { return a.reads >= turns && a.completes >= turns })
		f.settle()
		if a.mu.Lock(); a.reads != turns {
			f.Errorf("reads: got %d, want %d", a.reads, turns)
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		a.ch.SetAutoRead(true)
	}
	a.wantData(all)
}

func switchedFromElsewhere(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	want := []byte{}
	for i := range 5 {
		a.ch.SetAutoRead(false)
		a.do(func() {})
		if a.ch.AutoRead() {
			f.Error("AutoRead is on")
		}
		d.ch.Write(string(rune('a' + i)))
		f.settle()
		if n := a.received(); n != len(want) {
			f.Fatalf("read %d bytes with AutoRead off", n-len(want))
		}
		want = append(want, byte('a'+i))
		a.ch.SetAutoRead(true)
		a.wantData(want)
	}
}

func oneTurnEach(f *fixture) {
	a, d := f.pair(transport.Config{ManualRead: true}, transport.Config{})
	for turn := range 4 {
		d.ch.Write("x")
		f.settle()
		if a.mu.Lock(); a.completes != turn || a.reads != turn {
			f.Errorf("got %d reads, %d turns without a request, want %d", a.reads, a.completes, turn)
		}
		a.mu.Unlock()
		a.do(func() { a.ch.Read(); a.ch.Read() }) // two requests are one
		a.wait("a turn", func() bool { return a.completes == turn+1 })
	}
	a.wantData([]byte("xxxx"))
}

func requestWhileReading(f *fixture) {
	reads := 0
	again := pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
		if reads++; reads == 1 {
			c.Read()
		}
		c.FireRead(b)
		return nil
	})
	a, d := f.end(transport.Config{ManualRead: true}, again), f.end(transport.Config{})
	f.connect(a, d)
	a.ch.Read()
	d.ch.Write("1")
	a.wantData([]byte("1"))
	d.ch.Write("2")
	a.wantData([]byte("12"))
	d.ch.Write("3")
	f.settle()
	a.wantData([]byte("12"))
	a.ch.Read()
	a.wantData([]byte("123"))
}

func requestBeforeActive(f *fixture) {
	manual := transport.Config{ManualRead: true}
	a, d := f.end(manual), f.end(manual)
	early := func(ch pipeline.Channel) error { ch.Read(); return nil }
	a.setUp, d.setUp = early, early
	f.connect(a, d)
	for _, way := range [][2]*end{{a, d}, {d, a}} {
		from, to := way[0], way[1]
		from.ch.Write("1")
		to.wantData([]byte("1"))
		from.ch.Write("2")
		f.settle()
		to.wantData([]byte("1"))
	}
}

func closeWhileReading(f *fixture) {
	for _, how := range []struct {
		name string
		do   func(pipeline.Channel)
	}{
		{"Close", pipeline.Channel.Close},
		{"Reset", pipeline.Channel.Reset},
	} {
		f.Logf("by %s", how.name)
		closer := pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
			how.do(c.Channel())
			c.FireRead(b)
			return nil
		})
		a, d := f.end(transport.Config{}, closer), f.end(transport.Config{})
		f.connect(a, d)
		d.ch.Write(pooled(pattern(f.bulk)))
		a.wait("the first read", func() bool { return a.reads > 0 })
		d.ch.Reset() // a close may wait for the peer
		a.waitLog("removed")
		if a.mu.Lock(); a.reads != 1 {
			f.Errorf("got %d reads, want 1", a.reads)
		}
		a.mu.Unlock()
	}
}

func turnsEnd(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	all := pattern(f.bulk)
	d.ch.Write(pooled(all))
	d.ch.Close()
	a.wantData(all)
	a.wantEnd(errEnd)
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.turns) != a.completes {
		f.Errorf("got %d turns of reading and %d ends of one", len(a.turns), a.completes)
	}
	for i, t := range a.turns {
		switch {
		case t[0] == 0 && i < len(a.turns)-1:
			f.Errorf("turn %d of %d read nothing", i, len(a.turns))
		case t[0] > 16 || t[0] > 1 && t[1] > 2<<20: // a message may be longer
			f.Errorf("turn %d: got %d reads, %d bytes; want 16 reads and less than 2 MiB", i, t[0], t[1])
		}
	}
}

func allBeforeTheEnd(f *fixture) {
	a := f.end(transport.Config{ManualRead: true})
	d := f.end(transport.Config{})
	f.connect(a, d)
	all := pattern(f.bulk)
	d.ch.Write(pooled(all))
	d.ch.Close()
	for a.received() < len(all) {
		before := a.received()
		a.ch.Read()
		a.wait("a read", func() bool { return len(a.data) > before })
	}
	a.wantData(all)
	if a.saw("inactive") > 0 {
		f.Error("inactive before the end was asked for")
	}
	a.ch.Read()
	a.wantEnd(errEnd)
}

func endWhilePaused(f *fixture) {
	a, d := f.pair(transport.Config{ManualRead: true}, transport.Config{})
	d.ch.Write("last words")
	d.ch.Close()
	f.settle()
	if !a.ch.Active() || a.received() > 0 {
		f.Errorf("active %v, %d bytes read; want true, 0", a.ch.Active(), a.received())
	}
	a.ch.Read()
	a.wantData([]byte("last words"))
	f.settle()
	if !a.ch.Active() {
		f.Error("inactive before the end was asked for")
	}
	a.ch.Read()
	a.wantEnd(errEnd)
	d.wantEnd(pipeline.ErrClosed)
}

func dataBeforeHandlers(f *fixture) {
	a := f.end(transport.Config{ManualRead: true})
	d := f.end(transport.Config{})
	f.connect(a, d)
	d.ch.Write("early")
	f.settle()
	seen := make(chan string, 1)
	err := a.ch.Pipeline().AddFirst(pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
		seen <- string(b.Window())
		c.FireRead(b)
		return nil
	}))
	if err != nil {
		f.Fatal(err)
	}
	a.ch.SetAutoRead(true)
	if got := await(f, seen, "the message"); got != "early" {
		f.Errorf("the new handler got %q, want %q", got, "early")
	}
	if slices.Contains(a.log, "error") {
		f.Errorf("errors: %v", a.errs)
	}
}
