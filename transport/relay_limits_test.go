//go:build linux

package transport

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// pairRig is two scripted channels on one loop, and a relay of them.
type pairRig struct {
	t    *testing.T
	m    *eventloop.Manual
	ends [2]*stream
	ks   [2]*script
	r    *Relay
}

func newPairRig(t *testing.T, r *Relay) *pairRig {
	x := &pairRig{t: t, m: eventloop.NewManual(), r: r}
	for i := range x.ends {
		x.ends[i], x.ks[i] = scriptedEnd(t, x.m, scriptFD+i, false, new(writer))
	}
	t.Cleanup(func() {
		x.m.Close()
		if n := piped.Load(); n != 0 {
			t.Errorf("%d bytes are counted as in pipes", n)
		}
	})
	x.m.Enter(func() { must1(t, r.Start(pipeline.Find[*writer](x.ends[0].Pipeline()), x.ends[1])) })
	return x
}

// read has a channel read what it wants to.
func (x *pairRig) read(i int, steps ...readStep) {
	x.ks[i].in = append(x.ks[i].in, steps...)
	x.m.Ready(scriptFD+i, eventloop.EventRead)
	x.m.RunUntilIdle()
}

// A side that takes nothing stops the reading of the other, each way, with no more under
// way than a pipe or a buffer holds; when it takes something again the rest follows.
func TestRelay_Backpressure(t *testing.T) {
	content := letters(1 << 20)
	for name, mode := range relayModes {
		for from := range 2 {
			t.Run(fmt.Sprintf("%s, from %d", name, from), func(t *testing.T) {
				x := newPairRig(t, &Relay{Mode: mode})
				to := 1 - from
				x.ks[to].take = []takeStep{{n: 1000}, {err: sys.ErrAgain}, {err: sys.ErrAgain}}
				for i := 0; i < len(content); i += 10_000 {
					x.ks[from].in = append(x.ks[from].in, readStep{data: content[i:min(i+10_000, len(content))]})
				}
				for range 20 {
					x.read(from)
				}
				left := 0
				for _, s := range x.ks[from].in {
					left += len(s.data)
				}
				if taken := len(content) - left; taken > recvSizes[0]+longSplice || taken < 1000 {
					t.Errorf("got %d bytes taken while nothing leaves", taken)
				}
				if ev := x.ends[from].reg.Interest(); ev&eventloop.EventRead != 0 {
					t.Errorf("interest of the source: got %v, want no reading", ev)
				}
				if ev := x.ends[to].reg.Interest(); ev&eventloop.EventWrite == 0 {
					t.Errorf("interest of the full side: got %v, want writing", ev)
				}
				// The other way goes on.
				x.read(to, readStep{data: "meanwhile"})
				if got := x.ks[from].out.String(); got != "meanwhile" {
					t.Errorf("the other way: got %q, want meanwhile", got)
				}
				play(x.m, x.ends[0], x.ends[1])
				for range 200 {
					play(x.m, x.ends[from])
				}
				if got := x.ks[to].out.String(); got != content {
					t.Errorf("got %d bytes, want %d", len(got), len(content))
				}
			})
		}
	}
}

// RelayAuto splices after two reads that filled their buffer, copies again after eight
// splices that brought little, and counts each way for itself.
func TestRelay_AutoSwitches(t *testing.T) {
	x := newPairRig(t, new(Relay))
	full := letters(recvSizes[0])
	up, down := WayStats{}, WayStats{}
	want := func(what string) {
		t.Helper()
		if s := x.r.Stats(); s.Up != up || s.Down != down {
			t.Errorf("%s: got %+v, want %+v and %+v", what, s, up, down)
		}
	}
	small := func(n int, counter *int64) {
		for range n {
			x.read(0, readStep{data: "small"})
			*counter += 5
		}
	}
	small(10, &up.Copied)
	want("small ones")
	x.read(0, readStep{data: full}, readStep{data: "small"})
	up.Copied += int64(len(full)) + 5
	want("one full read")
	x.read(0, readStep{data: full}, readStep{data: full})
	up.Copied += 2 * int64(len(full))
	want("two full reads")
	small(smallSplices-1, &up.Spliced)
	x.read(0, readStep{data: letters(smallSplice)})
	up.Spliced += smallSplice
	small(smallSplices, &up.Spliced)
	want("small ones by splice")
	small(1, &up.Copied)
	want("small ones again")
	x.read(1, readStep{data: "down"})
	down.Copied += 4
	want("the other way")
}

// Where pipes hold so much already, or there is none to be had, a relay that is to splice
// copies.
func TestRelay_NoPipes(t *testing.T) {
	content := letters(100_000)
	want := WayStats{Copied: int64(len(content))}
	t.Run("full", func(t *testing.T) {
		x := newPairRig(t, &Relay{Mode: RelaySplice})
		piped.Add(mostPiped)
		x.read(0, readStep{data: content})
		piped.Add(-mostPiped)
		if got := x.r.Stats().Up; got != want || x.ks[1].out.String() != content {
			t.Errorf("got %+v, want %+v", got, want)
		}
		x.read(0, readStep{data: "more"})
		if got := x.r.Stats().Up; got.Spliced != 4 {
			t.Errorf("got %+v, want 4 spliced", got)
		}
	})
	t.Run("none", func(t *testing.T) {
		x := newPairRig(t, &Relay{Mode: RelaySplice})
		withoutDescriptors(t, func() { x.read(0, readStep{data: content}) })
		if got := x.r.Stats().Up; got != want || x.ks[1].out.String() != content {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

// withoutDescriptors calls f while the process can open no more of them.
func withoutDescriptors(t *testing.T, f func()) {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	must1(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 1, Max: before.Max}))
	defer func() { must1(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before)) }()
	f()
}

// A mirror that gets no pipe is given up, also if it blocks: nothing would tell when there
// is one. What it is a mirror of goes on.
func TestMirror_NoPipe(t *testing.T) {
	content := letters(1000)
	for _, kind := range []string{"channel", "file"} {
		for _, op := range []string{"relay", "reception"} {
			t.Run(op+", "+kind, func(t *testing.T) {
				m := eventloop.NewManual()
				defer m.Close()
				a, ak := scriptedEnd(t, m, scriptFD, false, new(writer))
				b, bk := scriptedEnd(t, m, scriptFD+1, false)
				mirrors, _, got := shortMirror(t, m, kind, 1000)
				var end *mirrorEnd
				mirrors[0].Ended = func(n int64, err error) { end = &mirrorEnd{n, err} }
				file := new(scriptFile)
				m.Enter(func() {
					c := pipeline.Find[*writer](a.Pipeline())
					if op == "relay" {
						must1(t, (&Relay{Mode: RelaySplice, Mirrors: mirrors}).Start(c, b))
					} else {
						must1(t, (&FileReceiver{Mirrors: mirrors}).start(c, file, -1, func(int64, error) {}))
					}
				})
				m.RunUntilIdle()
				// One pipe there is, for the bytes themselves.
				a.state.pipes.back(must(a.state.pipes.lend()))
				ak.in = []readStep{{data: content}}
				withoutDescriptors(t, func() {
					m.Ready(scriptFD, eventloop.EventRead)
					m.RunUntilIdle()
				})
				if end == nil || end.bytes != 0 || !errors.Is(end.err, syscall.EMFILE) || got() != "" {
					t.Errorf("mirror: got %+v, want EMFILE at byte 0", end)
				}
				if out := bk.out.String() + string(file.content); out != content {
					t.Errorf("got %d bytes, want %d", len(out), len(content))
				}
			})
		}
	}
}

// A mirror into a channel whose sending side is closed is given up.
func TestMirror_OutputShut(t *testing.T) {
	for _, mode := range []RelayMode{RelaySplice, RelayCopy} {
		m := eventloop.NewManual()
		a, ak := scriptedEnd(t, m, scriptFD, false, new(writer))
		b, bk := scriptedEnd(t, m, scriptFD+1, false)
		sink, k := scriptedEnd(t, m, scriptFD+2, false)
		var end *mirrorEnd
		r := &Relay{Mode: mode, Mirrors: []Mirror{{Channel: sink, Block: true, Ended: func(n int64, err error) { end = &mirrorEnd{n, err} }}}}
		m.Enter(func() { must1(t, r.Start(pipeline.Find[*writer](a.Pipeline()), b)) })
		ak.in = []readStep{{data: "first"}}
		m.Ready(scriptFD, eventloop.EventRead)
		m.RunUntilIdle()
		m.Enter(sink.CloseWrite)
		ak.in = []readStep{{data: " and more"}}
		m.Ready(scriptFD, eventloop.EventRead)
		m.RunUntilIdle()
		if end == nil || end.bytes != 5 || !errors.Is(end.err, pipeline.ErrOutputShutdown) {
			t.Errorf("mode %d: got %+v, want ErrOutputShutdown after 5 bytes", mode, end)
		}
		if out, mirrored := bk.out.String(), k.out.String(); out != "first and more" || mirrored != "first" {
			t.Errorf("mode %d: got %q, mirrored %q", mode, out, mirrored)
		}
		if s := r.Stats(); s.Mirrored != 5 || s.Dropped != 9 {
			t.Errorf("mode %d: got %+v, want 5 mirrored, 9 dropped", mode, s)
		}
		m.Close()
	}
}

// A Reserve that panics ends its mirror, and nothing else.
func TestMirror_ReservePanics(t *testing.T) {
	m := eventloop.NewManual()
	a, ak := scriptedEnd(t, m, scriptFD, false, new(writer))
	b, bk := scriptedEnd(t, m, scriptFD+1, false)
	var end *mirrorEnd
	r := &Relay{Mode: RelaySplice, Mirrors: []Mirror{{
		storage: new(scriptFile),
		Reserve: func(int64) int64 { panic("no room") },
		Ended:   func(n int64, err error) { end = &mirrorEnd{n, err} },
	}}}
	m.Enter(func() { must1(t, r.Start(pipeline.Find[*writer](a.Pipeline()), b)) })
	ak.in = []readStep{{data: "bytes"}}
	m.Ready(scriptFD, eventloop.EventRead)
	m.RunUntilIdle()
	var pe *pipeline.PanicError
	if end == nil || end.bytes != 0 || !errors.As(end.err, &pe) || !strings.Contains(end.err.Error(), "no room") {
		t.Errorf("got %+v, want the panic at byte 0", end)
	}
	if out := bk.out.String(); out != "bytes" {
		t.Errorf("got %q, want bytes", out)
	}
	m.Close()
}
