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
	"github.com/runnel-io/runnel/pipeline/embedded"
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

// number is a message that is counted: of the peer's stream inbound, of the sink's or
// of a disturber's outbound.
type number struct {
	w   *world
	way int // 0 inbound, 1 the sink's answer, 2 and 3 a disturber's, off the loop and on it
	n   int
	has atomic.Bool
}

func (m *number) Release() bool {
	if !m.has.Swap(false) {
		m.w.fail("message %d of way %d released twice", m.n, m.way)
	}
	m.w.live.Add(-1)
	return true
}

// world is what the handlers of one channel check together.
type world struct {
	fail  func(format string, args ...any)
	lost  atomic.Bool  // a handler has broken: messages may have been lost with it
	live  atomic.Int64 // messages
	owed  atomic.Int64 // completions
	there atomic.Int64 // handlers that have been added and not removed
	ids   atomic.Int64
	ended *atomic.Bool                           // an executor may have ended: its handlers run on the loop
	away  func(r *rand.Rand) *pipeline.Offloaded // where the next handler runs; nil for the loop
	also  func(l *life, c *pipeline.Context)     // what a handler does besides; nil for nothing
}

func (w *world) message(way, n int) *number {
	w.live.Add(1)
	m := &number{w: w, way: way, n: n}
	m.has.Store(true)
	return m
}

// once counts a completion that is owed and returns what is to be called for it.
func (w *world) once(what string) func() {
	w.owed.Add(1)
	var told atomic.Bool
	return func() {
		if told.Swap(true) {
			w.fail("%s: told twice", what)
			return
		}
		w.owed.Add(-1)
	}
}

// What a handler may do instead of its work, once.
const (
	wellBehaved int32 = iota
	returnsError
	panics
	exits
	failsAdded
	panicsAdded
	troubles
)

// life checks what every handler is told. Its fields have no lock: a handler's methods
// are called one at a time, wherever it runs.
type life struct {
	w       *world
	id      int64
	first   bool // there from the beginning
	away    bool
	trouble atomic.Int32

	stage int // 1 registered, 2 active, 3 inactive, 4 unregistered
	added bool
	gone  bool
	busy  int
	last  [4]int // number that has come by, by way
}

func (l *life) call(c *pipeline.Context, what string) func() {
	if l.busy++; l.busy != 1 && l.away {
		l.w.fail("handler %d: %s while another call is under way", l.id, what)
	}
	if l.misplaced(c) {
		l.w.fail("handler %d: %s: on the loop %v", l.id, what, l.away)
	}
	if !l.added || l.gone {
		l.w.fail("handler %d: %s: added %v, removed %v", l.id, what, l.added, l.gone)
	}
	if l.w.also != nil {
		l.w.also(l, c)
	}
	return func() { l.busy-- }
}

// misplaced reports whether the handler is called where it should not be.
func (l *life) misplaced(c *pipeline.Context) bool {
	return c.Loop().InLoop() == l.away && !(l.away && l.w.ended.Load())
}

// to moves the stage on; stages may be left out by handlers that came late.
func (l *life) to(c *pipeline.Context, stage int) error {
	defer l.call(c, fmt.Sprint("stage ", stage))()
	if l.stage >= stage || l.first && l.stage != stage-1 && (stage != 4 || l.stage != 1) {
		l.w.fail("handler %d, there from the beginning %v: stage %d after %d", l.id, l.first, stage, l.stage)
	}
	l.stage = stage
	return l.mayFail()
}

func (l *life) mayFail() error {
	switch l.trouble.Swap(wellBehaved) {
	case returnsError:
		l.w.lost.Store(true)
		return errSome
	case panics:
		l.w.lost.Store(true)
		panic("trouble")
	case exits:
		l.w.lost.Store(true)
		runtime.Goexit()
	}
	return nil
}

// passes checks the order of the messages that come by.
func (l *life) passes(m *number) {
	if m.n <= l.last[m.way] {
		l.w.fail("handler %d: message %d of way %d after %d", l.id, m.n, m.way, l.last[m.way])
	}
	l.last[m.way] = m.n
}

func (l *life) HandleAdded(c *pipeline.Context) error {
	l.w.there.Add(1)
	if l.added || l.gone || l.misplaced(c) {
		l.w.fail("handler %d: added %v, removed %v, on the loop %v", l.id, l.added, l.gone, c.Loop().InLoop())
	}
	switch l.trouble.Load() {
	case failsAdded:
		return errSome
	case panicsAdded:
		l.w.lost.Store(true)
		panic("trouble")
	}
	l.added = true
	if l.w.also != nil {
		l.w.also(l, c)
	}
	return nil
}

func (l *life) HandleRemoved(c *pipeline.Context) {
	l.w.there.Add(-1)
	if l.gone || l.misplaced(c) {
		l.w.fail("handler %d: removed twice %v, on the loop %v", l.id, l.gone, c.Loop().InLoop())
	}
	if l.first && l.stage != 4 && l.stage != 0 {
		l.w.fail("handler %d, there from the beginning: removed in stage %d", l.id, l.stage)
	}
	l.gone = true
}

func (l *life) HandleError(c *pipeline.Context, err error) {
	defer l.call(c, "error")()
	c.FireError(err)
}

// inStation takes what is inbound.
type inStation struct{ *life }

func (s inStation) HandleRegistered(c *pipeline.Context) error   { return s.to(c, 1) }
func (s inStation) HandleActive(c *pipeline.Context) error       { return s.to(c, 2) }
func (s inStation) HandleInactive(c *pipeline.Context) error     { return s.to(c, 3) }
func (s inStation) HandleUnregistered(c *pipeline.Context) error { return s.to(c, 4) }
func (s inStation) HandleReadComplete(c *pipeline.Context) error {
	defer s.call(c, "read complete")()
	return s.mayFail()
}
func (s inStation) HandleRead(c *pipeline.Context, msg any) error {
	defer s.call(c, "read")()
	if s.stage > 2 || s.first && s.stage != 2 {
		s.w.fail("handler %d: read in stage %d", s.id, s.stage)
	}
	s.passes(msg.(*number))
	if s.trouble.Load() != wellBehaved {
		msg.(*number).Release()
		if err := s.mayFail(); err != nil {
			return err
		}
		return nil
	}
	c.FireRead(msg)
	return nil
}
func (s inStation) HandleEvent(c *pipeline.Context, ev any) error {
	defer s.call(c, "event")()
	if s.trouble.Load() != wellBehaved {
		buffer.Release(ev)
		return s.mayFail()
	}
	c.FireEvent(ev)
	return nil
}

// outStation takes what is outbound.
type outStation struct{ *life }

func (s outStation) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	defer s.call(c, "write")()
	s.passes(msg.(*number))
	if s.trouble.Load() != wellBehaved {
		msg.(*number).Release()
		return s.mayFail()
	}
	c.ForwardWrite(msg, p)
	return nil
}
func (s outStation) HandleClose(c *pipeline.Context, p *eventloop.Promise) error {
	defer s.call(c, "close")()
	if s.trouble.Load() != wellBehaved {
		err := s.mayFail()
		if err != nil {
			c.Channel().Reset() // the close is not to be forgotten
		}
		return err
	}
	c.ForwardClose(p)
	return nil
}

// mapStation takes messages of both ways and returns them.
type mapStation struct{ *life }

func (s mapStation) MapRead(c *pipeline.Context, msg any) (any, error) {
	return s.apply(c, "map a read", msg.(*number))
}

func (s mapStation) MapWrite(c *pipeline.Context, msg any) (any, error) {
	return s.apply(c, "map a write", msg.(*number))
}

func (s mapStation) apply(c *pipeline.Context, what string, m *number) (any, error) {
	defer s.call(c, what)()
	s.passes(m)
	if s.trouble.Load() != wellBehaved {
		m.Release()
		return nil, s.mayFail()
	}
	return m, nil
}

// bothStation takes both.
type bothStation struct {
	inStation
	outStation
}

func (s bothStation) HandleAdded(c *pipeline.Context) error       { return s.inStation.HandleAdded(c) }
func (s bothStation) HandleRemoved(c *pipeline.Context)           { s.inStation.HandleRemoved(c) }
func (s bothStation) HandleError(c *pipeline.Context, err error)  { s.inStation.HandleError(c, err) }
func (s bothStation) HandleFlush(c *pipeline.Context) error       { c.Flush(); return nil }
func (s bothStation) HandleReadRequest(c *pipeline.Context) error { c.Read(); return nil }
func (s bothStation) HandleWritability(*pipeline.Context) error   { return nil }
func (s bothStation) HandleCloseWrite(c *pipeline.Context, p *eventloop.Promise) error {
	c.ForwardCloseWrite(p)
	return nil
}

// sink is the last handler: every number of the peer's arrives there, and goes back.
type endStation struct {
	inStation
	got int
}

func (s *endStation) HandleRead(c *pipeline.Context, msg any) error {
	defer s.call(c, "read")()
	m := msg.(*number)
	if s.stage != 2 {
		s.w.fail("the last handler: read in stage %d", s.stage)
	}
	if s.passes(m); m.n != s.got+1 && !s.w.lost.Load() {
		s.w.fail("the last handler got %d after %d", m.n, s.got)
	}
	s.got = m.n
	m.Release()
	done := s.w.once("answer")
	c.WriteThen(s.w.message(1, m.n), func(error) { done() })
	return nil
}
func (s *endStation) HandleEvent(_ *pipeline.Context, ev any) error { buffer.Release(ev); return nil }
func (s *endStation) HandleError(*pipeline.Context, error)          {} // trouble is what this is about

// station makes a handler: what it is in the pipeline, and its life.
func (w *world) station(r *rand.Rand, first bool) (any, *life) {
	l := &life{w: w, id: w.ids.Add(1), first: first}
	off := w.away(r)
	l.away = off != nil
	var h any
	switch r.IntN(4) {
	case 0:
		h = inStation{l}
	case 1:
		h = outStation{l}
		l.first = false // it is not told what stage it is
	case 2:
		h = mapStation{l}
		l.first = false
	default:
		h = bothStation{inStation{l}, outStation{l}}
	}
	if off == nil {
		return h, l
	}
	off.Handler = h
	return *off, l
}

// last makes the last handler.
func (w *world) last(r *rand.Rand) any {
	l := &life{w: w, id: 1_000_000, first: true}
	h := &endStation{inStation: inStation{l}}
	if off := w.away(r); off != nil {
		l.away = true
		off.Handler = h
		return *off
	}
	return h
}

// disturber changes a channel's pipeline and does what users do. It is the loop, or
// another goroutine.
type disturber struct {
	w     *world
	r     *rand.Rand
	ch    pipeline.Channel
	lives []*life
	ctxs  []*pipeline.Context
	sent  [4]int // by way
	waits bool   // off the loop it may wait for the loop
	calm  bool   // makes no trouble

	inside bool  // a handler's call
	kinds  []int // of the steps made
}

// refused checks the error that a change of the pipeline or a Send has ended with.
func (d *disturber) refused(err error) {
	switch {
	case err == nil, errors.Is(err, pipeline.ErrClosed), errors.Is(err, pipeline.ErrNoHandler), errors.Is(err, errSome), errors.Is(err, pipeline.ErrGoexit):
	default:
		var pe *pipeline.PanicError
		if !errors.As(err, &pe) {
			d.w.fail("a change of the pipeline, or a Send: %v", err)
		}
	}
}

func (d *disturber) step() {
	r, w, p := d.r, d.w, d.ch.Pipeline()
	k, at := r.IntN(15), r.Uint64() // whether or not there is a handler, or what follows would depend on that
	var c *pipeline.Context
	if n := uint64(len(d.ctxs)); n > 0 {
		c = d.ctxs[at%n]
	}
	d.kinds = append(d.kinds, k)
	if d.inside { // where a write would come before the message that the handler has in hand
		k = [...]int{0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12}[r.IntN(11)]
	}
	switch k {
	case 0, 1, 2, 3: // a handler more
		h, l := w.station(r, false)
		if !d.calm && r.IntN(30) == 0 {
			l.trouble.Store(failsAdded + int32(r.IntN(2)))
		}
		var added *pipeline.Context
		var err error
		switch {
		case k < 2 || c == nil:
			added, err = p.AddBefore("last", "", h)
		case k == 2:
			added, err = p.AddAfter(c, "", h)
		default:
			added, err = p.Replace(c, "", h)
		}
		d.refused(err)
		if err == nil {
			d.lives, d.ctxs = append(d.lives, l), append(d.ctxs, added)
		}
	case 4, 5:
		if c != nil {
			d.refused(c.Remove())
		}
	case 6, 7:
		way := 2 // the two have no order between them
		if d.ch.Loop().InLoop() {
			way = 3
		}
		d.sent[way]++
		if r.IntN(2) == 0 {
			d.ch.Write(w.message(way, d.sent[way]))
		} else {
			done := w.once("WriteThen")
			d.ch.WriteThen(w.message(way, d.sent[way]), func(error) { done() })
		}
	case 8:
		p.FireEvent(w.message(0, -1))
	case 9:
		if c != nil {
			done := w.once("Context.Offload")
			c.Offload(noWork, func(any, error) { done() })
		}
	case 10:
		if c != nil {
			done := w.once("Context.Execute")
			if c.Execute(done) != nil {
				done()
			}
		}
	case 11:
		switch r.IntN(3) {
		case 0:
			d.ch.SetAutoRead(false)
			d.ch.Read()
		case 1:
			d.ch.SetAutoRead(true)
		default:
			d.ch.Flush()
		}
	case 12:
		_ = p.Names()
		if c := pipeline.Find[*endStation](p); c == nil && d.ch.Open() {
			w.fail("the last handler is not found")
		}
	case 13:
		if d.waits && !d.ch.Loop().InLoop() {
			d.sent[2]++
			d.refused(d.ch.Send(context.Background(), w.message(2, d.sent[2])))
		}
	case 14:
		if !d.calm && len(d.lives) > 0 && r.IntN(4) == 0 {
			d.lives[r.IntN(len(d.lives))].trouble.Store(returnsError + int32(r.IntN(3)))
		}
	}
}

// The same seed is the same test: turns of a Manual and everything that may happen
// between them.
func TestOffloadedModel(t *testing.T) {
	seed := stressSeed(t)
	rounds := scaled(400)
	if *offloadSteps > 0 {
		rounds = *offloadSteps/modelSteps + 1
	}
	for i := range rounds {
		if !t.Failed() {
			offloadedModel(t, seed+uint64(i))
		}
	}
}

// modelSteps is how many steps one channel of TestOffloadedModel lives.
const modelSteps = 150

func offloadedModel(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	man := eventloop.NewManual()
	w := &world{ended: new(atomic.Bool), fail: func(f string, args ...any) { t.Errorf("seed %d: "+f, append([]any{seed}, args...)...) }}
	w.away = func(r *rand.Rand) *pipeline.Offloaded {
		if r.IntN(3) == 0 {
			return nil
		}
		return &pipeline.Offloaded{Mark: 1 + r.IntN(8)}
	}
	firsts := make([]any, r.IntN(3))
	for i := range firsts {
		firsts[i], _ = w.station(r, true)
	}
	ch := embedded.NewConfig(embedded.Config{Manual: man, Inactive: r.IntN(2) == 0, HighWater: 1000},
		initializer(func(ch pipeline.Channel) error {
			if err := ch.Pipeline().Add(firsts...); err != nil {
				return err
			}
			_, err := ch.Pipeline().AddNamed("last", w.last(r))
			return err
		}))
	d := &disturber{w: w, r: r, ch: ch, calm: r.IntN(2) == 0}
	end := pipeline.Find[*endStation](ch.Pipeline()).Handler().(*endStation)
	// A handler changes the pipeline in its calls, wherever these are made, and what it
	// has added does so, too.
	depth, left := 0, 1000
	w.also = func(l *life, c *pipeline.Context) {
		if depth == 3 || left == 0 || r.IntN(12) != 0 {
			return
		}
		left--
		depth++
		d.inside = true
		defer func() {
			depth--
			d.inside = depth > 0
		}()
		if !l.first && r.IntN(4) == 0 {
			d.refused(c.Remove())
			return
		}
		d.step()
	}
	sent, answered := 0, [4]int{}
	for range modelSteps {
		elsewhere(func() {
			switch r.IntN(6) {
			case 0:
				man.Turn()
			case 1, 2:
				man.Enter(func() {
					if !ch.Active() {
						return
					}
					for range 1 + r.IntN(4) {
						if ch.Open() {
							sent++
							ch.Pipeline().FireRead(w.message(0, sent))
						}
					}
					if ch.Open() {
						ch.Pipeline().FireReadComplete()
					}
				})
			case 3:
				d.step()
			case 4:
				man.Enter(d.step)
			case 5:
				switch r.IntN(40) {
				case 0:
					man.Enter(ch.Close)
				case 1:
					man.Enter(ch.Reset)
				case 2:
					ch.Abort(pipeline.CloseNow, io.EOF)
				default:
					if !ch.Active() && ch.Open() {
						ch.Activate()
					}
				}
			}
		})
	}
	if ch.Open() && ch.Active() && d.calm {
		man.RunUntilIdle()
		if end.got != sent {
			w.fail("%d of %d messages have arrived", end.got, sent)
		}
	}
	drive(man)
	for m := ch.ReadOutbound(); m != nil; m = ch.ReadOutbound() {
		n := m.(*number)
		if n.n <= answered[n.way] {
			w.fail("way %d: %d left after %d", n.way, n.n, answered[n.way])
		}
		answered[n.way] = n.n
		n.Release()
	}
	elsewhere(func() { _ = ch.Finish() })
	drive(man)
	elsewhere(man.Close)
	ch.ReleaseAll()
	if n := w.there.Load(); n != 0 {
		w.fail("%d handlers have not been removed", n)
	}
	if n := w.owed.Load(); n != 0 {
		w.fail("%d completions never came", n)
	}
	// A handler that breaks loses the message in its hands; the stations release theirs.
	if n := w.live.Load(); n != 0 {
		w.fail("%d messages are left", n)
	}
	if names := ch.Pipeline().Names(); len(names) != 0 {
		w.fail("left in the pipeline: %q", names)
	}
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
