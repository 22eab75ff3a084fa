//go:build linux

package transport

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// stepText is what is sent.
var stepText = letters(100_000)

var stepsRuns = flag.Int("steps.runs", 1, "how many runs TestEndsAtEveryStep has of each operation and ending")
var stepsSeed = flag.Uint64("steps.seed", 0, "seed of the only run of TestEndsAtEveryStep; 0 means many")
var stepsStep = flag.Int("steps.step", 0, "its only step; 0 means all")

// An operation is ended at each of its steps, one run for each: a step is a turn of a
// loop, a call of user code, and a call of the kernel. However it ends, each completion
// comes once, and no buffer, pipe, descriptor or state is left.
func TestEndsAtEveryStep(t *testing.T) {
	seeds := uint64(len(stepOps) * len(stepEndings) * *stepsRuns)
	if testing.Short() {
		seeds /= 4
	}
	first := uint64(1)
	if *stepsSeed != 0 {
		first, seeds = *stepsSeed, 1
	}
	file := tempFile(t, stepText)
	file.Close()
	for seed := first; seed < first+seeds; seed++ {
		for at := max(*stepsStep, 1); ; at++ {
			x := runSteps(t, file.Name(), seed, at)
			if t.Failed() {
				t.Fatalf("repeat with -steps.seed=%d -steps.step=%d: %s, %s of channel %d", seed, at, x.op, x.how, x.victim)
			}
			if !x.ended || *stepsStep != 0 {
				break // it was over before
			}
		}
	}
}

// stepOps are the operations.
var stepOps = []struct {
	name  string
	start func(x *steps)
}{
	{"record", (*steps).record},
	{"record with mirrors", (*steps).recordMirrored},
	{"relay", (*steps).relay},
	{"relay with mirrors", (*steps).relayMirrored},
	{"relay across loops", (*steps).relayCrossing},
	{"file regions", (*steps).regions},
}

// stepEndings are the ways in which it ends. The loop's shutdown is for between turns.
var stepEndings = []struct {
	name string
	end  func(x *steps)
}{
	{"Close", func(x *steps) { x.ends[x.victim].Close() }},
	{"Reset", func(x *steps) { x.ends[x.victim].Reset() }},
	{"CloseWrite", func(x *steps) { x.ends[x.victim].CloseWrite() }},
	{"Stop", func(x *steps) {
		if l := x.loops[0].Loop(); l.InLoop() {
			x.stop()
		} else {
			_ = l.Execute(x.stop)
		}
	}},
	{"reset by the peer", func(x *steps) {
		k := x.ks[x.victim]
		k.in = []readStep{{err: syscall.ECONNRESET}}
		k.take = []takeStep{{err: syscall.EPIPE}}
	}},
	{"failure of the file", func(x *steps) {
		for _, f := range x.files {
			f.take = []takeStep{{n: 1}, {err: syscall.ENOSPC}}
		}
	}},
	{"panic", func(x *steps) { x.panics = true }},
	{"shutdown of the loop", func(x *steps) { x.shutdown = true }},
}

// steps is one run.
type steps struct {
	t       *testing.T
	r       *rand.Rand
	op, how string
	path    string // of a file with stepText
	end     func(x *steps)
	n, at   int // steps so far; the one at which it ends
	ended   bool

	loops    []*eventloop.Manual
	ends     []*stream
	ks       []*script
	files    []*scriptFile
	victim   int
	stop     func() // of the operation, on the loop of the first channel
	panics   bool   // the next call of user code does
	shutdown bool

	owed map[string]int // how often each completion has come
}

func runSteps(t *testing.T, path string, seed uint64, at int) *steps {
	buffers, pipes, fds := buffer.Live(), piped.Load(), openFDs()
	r := rand.New(rand.NewPCG(seed, 5))
	op := stepOps[seed%uint64(len(stepOps))]
	how := stepEndings[(seed/uint64(len(stepOps))+seed)%uint64(len(stepEndings))]
	x := &steps{t: t, r: r, path: path, op: op.name, how: how.name, end: how.end, at: at, owed: map[string]int{}}
	x.stop = func() {}
	x.victim = -1
	op.start(x)
	x.drive()
	for _, m := range x.loops {
		x.contained(func() { m.Advance(3 * defaultCloseTimeout) })
	}
	for _, m := range x.loops {
		if x.contained(m.Close) {
			m.Close()
		}
	}
	for i, k := range x.ks {
		if k.closes != 1 {
			t.Errorf("socket %d: closed %d times, want once", i, k.closes)
		}
	}
	for what, n := range x.owed {
		if n != 1 {
			t.Errorf("%s: told %d times, want once", what, n)
		}
	}
	if n := buffer.Live(); n > buffers { // those of an earlier test may be gone by now
		t.Errorf("buffers: got %d, want %d", n, buffers)
	}
	if n := piped.Load(); n != pipes {
		t.Errorf("bytes in pipes: got %d, want %d", n, pipes)
	}
	if n := openFDs(); n > fds {
		t.Errorf("descriptors: got %d, want %d", n, fds)
	}
	for _, m := range x.loops {
		loopStates.Range(func(key, _ any) bool {
			if key.(loopKey).loop == m.Loop() {
				t.Error("the state of a loop is left")
			}
			return true
		})
	}
	return x
}

// drive does turns until all channels have closed or nothing happens any more.
func (x *steps) drive() {
	for i, idle := 0, 0; i < 3000 && idle < 100; i++ {
		x.tick()
		if x.shutdown {
			return
		}
		before := x.n
		j := x.r.IntN(len(x.ends))
		s := x.ends[j]
		m := x.loops[0]
		if s.Loop() != m.Loop() {
			m = x.loops[1]
		}
		if s.at != streamClosed && s.reg != nil {
			ev := s.reg.Interest()
			if x.r.IntN(3) == 0 {
				ev &= eventloop.EventWrite
			}
			m.Ready(int(scriptFD+j), ev)
		}
		for _, m := range x.loops {
			x.contained(func() { m.Turn() })
		}
		if i > 500 {
			m.Advance(starvedRetry)
		}
		if idle++; x.n > before+1 {
			idle = 0
		}
		if x.over() {
			return
		}
	}
}

// contained calls a turn, from which the panic outside of a handler comes through, and
// reports whether there was one.
func (x *steps) contained(turn func()) (panicked bool) {
	defer func() {
		v := recover()
		if panicked = v != nil; panicked && v != errStep {
			panic(v)
		}
	}()
	turn()
	return false
}

var errStep = errors.New("panic of a step")

func (x *steps) over() bool {
	return !slices.ContainsFunc(x.ends, func(s *stream) bool { return s.at != streamClosed })
}

// tick is one step.
func (x *steps) tick() {
	if x.n++; x.n != x.at || x.ended {
		return
	}
	x.ended = true
	m := x.loops[0]
	if s := x.ends[x.victim]; s.Loop() != m.Loop() {
		m = x.loops[1]
	}
	if m.Loop().InLoop() {
		x.end(x)
		return
	}
	// From a worker, or between turns.
	_ = m.Loop().Execute(func() { x.end(x) })
}

// user is a step in user code.
func (x *steps) user() {
	x.tick()
	if x.panics {
		x.panics = false
		panic(errStep)
	}
}

// once returns a completion that is to be called once.
func (x *steps) once(what string) func(error) {
	x.owed[what] = 0
	return func(error) {
		x.owed[what]++
		x.user()
	}
}

// kernel is a step inside of the kernel, in which nothing of ours runs: the loop goes on
// with what was posted meanwhile.
func (x *steps) kernel(m *eventloop.Manual) func() {
	return func() {
		if x.n++; x.n == x.at && !x.ended {
			x.ended = true
			_ = m.Loop().Submit(stepTask{x})
		}
	}
}

type stepTask struct{ x *steps }

func (t stepTask) Run() { t.x.end(t.x) }

// stepUser is the handler of all channels.
type stepUser struct{ x *steps }

func (h *stepUser) HandleRead(_ *pipeline.Context, msg any) error {
	buffer.Release(msg)
	h.x.user()
	return nil
}
func (h *stepUser) HandleActive(*pipeline.Context) error      { h.x.user(); return nil }
func (h *stepUser) HandleInactive(*pipeline.Context) error    { h.x.user(); return nil }
func (h *stepUser) HandleWritability(*pipeline.Context) error { h.x.user(); return nil }
func (h *stepUser) HandleEvent(*pipeline.Context, any) error  { h.x.user(); return nil }
func (h *stepUser) HandleError(*pipeline.Context, error)      { h.x.user() }

// loop adds a loop.
func (x *steps) loop() *eventloop.Manual {
	m := eventloop.NewManual()
	x.loops = append(x.loops, m)
	return m
}

// channel adds a channel, whose socket has some input and takes what it likes.
func (x *steps) channel(m *eventloop.Manual, input bool) *stream {
	cfg, err := (&Config{CloseTimeout: time.Second, HalfClose: x.r.IntN(2) == 0, HighWater: 1 + x.r.IntN(60_000)}).check()
	if err != nil {
		x.t.Fatal(err)
	}
	k := &script{t: x.t, left: x.r.IntN(3) == 0, before: x.kernel(m)}
	if input {
		for range x.r.IntN(5) {
			k.in = append(k.in, readStep{data: stepText[:1+x.r.IntN([]int{10, 5000, 100_000}[x.r.IntN(3)])]})
		}
		if x.r.IntN(4) > 0 {
			k.in = append(k.in, readStep{eof: true})
		}
	}
	for range x.r.IntN(10) {
		switch x.r.IntN(4) {
		case 0:
			k.take = append(k.take, takeStep{err: sys.ErrAgain})
		default:
			k.take = append(k.take, takeStep{n: 1 + x.r.IntN([]int{5, 2000, 60_000}[x.r.IntN(3)])})
		}
	}
	s := newStream(&cfg, m.Loop(), nil, scriptFD+len(x.ends))
	s.sock = pipeSocket{scriptSocket{k}, x.r.IntN(8) == 0}
	x.ends, x.ks = append(x.ends, s), append(x.ks, k)
	x.victim = x.r.IntN(len(x.ends))
	m.Enter(func() {
		s.start(func(ch pipeline.Channel) error { return ch.Pipeline().Add(&stepUser{x}) })
	})
	return s
}

// file makes a file that takes what it likes.
func (x *steps) file(m *eventloop.Manual) *scriptFile {
	f := &scriptFile{noSplice: x.r.IntN(4) == 0, before: x.tick}
	for range x.r.IntN(5) {
		f.take = append(f.take, takeStep{n: 1 + x.r.IntN(20_000)})
	}
	x.files = append(x.files, f)
	return f
}

// mirrors makes up to three mirrors, into channels of this and another loop and files.
func (x *steps) mirrors(m *eventloop.Manual) (mirrors []Mirror) {
	for i := range 1 + x.r.IntN(3) {
		told := x.once(fmt.Sprintf("end of mirror %d", i))
		mirror := Mirror{Block: x.r.IntN(2) == 0, Ended: func(_ int64, err error) { told(err) }}
		switch x.r.IntN(5) {
		case 0, 1:
			mirror.Channel = x.channel(m, false)
		case 2:
			if len(x.loops) == 1 {
				x.loop()
			}
			mirror.Channel = x.channel(x.loops[1], false)
		default:
			mirror.storage = x.file(m)
			end := int64(0)
			mirror.Reserve = func(n int64) int64 { x.user(); end += n; return end - n }
		}
		mirrors = append(mirrors, mirror)
	}
	return mirrors
}

func (x *steps) context(s *stream) *pipeline.Context { return pipeline.Find[*stepUser](s.Pipeline()) }

// enter runs f as the loop, if the first channel has not ended in its HandleActive.
func (x *steps) enter(f func(c *pipeline.Context)) {
	x.contained(func() {
		x.loops[0].Enter(func() {
			if c := x.context(x.ends[0]); c != nil {
				f(c)
			} else {
				clear(x.owed)
			}
		})
	})
}

func (x *steps) record() {
	m := x.loop()
	x.receive(m, nil)
}

func (x *steps) recordMirrored() {
	m := x.loop()
	x.receive(m, func() []Mirror { return x.mirrors(m) })
}

func (x *steps) receive(m *eventloop.Manual, mirrors func() []Mirror) {
	x.channel(m, true)
	r := &FileReceiver{Sync: x.r.IntN(2) == 0, copies: x.r.IntN(4) == 0, Progress: func(int64) { x.user() }}
	if mirrors != nil {
		r.Mirrors = mirrors()
	}
	if x.r.IntN(2) == 0 {
		r.First = buffer.Compose(pooled("first"), pooled(stepText[:3000]))
	}
	length := int64(-1)
	if x.r.IntN(3) == 0 {
		length = 4000 + x.r.Int64N(100_000)
	}
	x.stop = r.Stop
	f := x.file(m)
	told := x.once("then")
	started := false
	x.enter(func(c *pipeline.Context) {
		started = true
		err := r.start(c, f, length, func(n int64, err error) {
			if n != int64(len(f.content)) {
				x.t.Errorf("told of %d bytes, want %d", n, len(f.content))
			}
			told(err)
		})
		if err != nil {
			x.forget(err)
		}
	})
	if !started { // the channel had ended before
		r.dropFirst()
	}
}

// forget is for an operation that was not started, because its channel has closed.
func (x *steps) forget(err error) {
	if !x.ended || !errors.Is(err, pipeline.ErrClosed) {
		x.t.Errorf("not started: %v", err)
	}
	clear(x.owed)
}

func (x *steps) relay() { x.relayWith(nil) }

func (x *steps) relayMirrored() {
	x.relayWith(func(m *eventloop.Manual) []Mirror { return x.mirrors(m) })
}

func (x *steps) relayWith(mirrors func(m *eventloop.Manual) []Mirror) {
	m := x.loop()
	x.channel(m, true)
	target := x.channel(m, true)
	r := &Relay{Mode: RelayMode(x.r.IntN(3))}
	if mirrors != nil {
		r.Mirrors = mirrors(m)
	}
	x.stop = r.Stop
	x.enter(func(c *pipeline.Context) {
		if err := r.Start(c, target); err != nil {
			x.forget(err)
		}
	})
}

func (x *steps) relayCrossing() {
	m := x.loop()
	x.channel(m, true)
	target := x.channel(x.loop(), true)
	r := &Relay{}
	x.stop = r.Stop
	x.enter(func(c *pipeline.Context) {
		if err := r.Start(c, target); err != nil {
			x.forget(err)
		}
	})
}

// regions sends files between buffers.
func (x *steps) regions() {
	x.channel(x.loop(), true)
	x.ks[0].cold = x.r.IntN(2) == 0
	var msgs []any
	for range 1 + x.r.IntN(8) {
		if x.r.IntN(2) == 0 {
			msgs = append(msgs, stepText[:x.r.IntN(3000)])
			continue
		}
		off, n := x.r.Int64N(50_000), x.r.Int64N(50_000)
		msgs = append(msgs, buffer.NewFileRegion(must(os.Open(x.path)), off, n))
	}
	x.enter(func(c *pipeline.Context) {
		for i, msg := range msgs {
			told := x.once(fmt.Sprintf("write %d", i))
			c.WriteProgress(msg, func(int64, int64) { x.user() }, told)
		}
		if x.r.IntN(2) == 0 {
			c.Channel().Close()
		}
		msgs = nil
	})
	for _, msg := range msgs { // the channel had ended before
		buffer.Release(msg)
	}
}
