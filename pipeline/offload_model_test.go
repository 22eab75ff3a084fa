package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

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
