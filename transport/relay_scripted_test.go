//go:build linux

package transport

import (
	"errors"
	"flag"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

var relaySeed = flag.Uint64("relay.seed", 0, "seed of the first round of TestRelay_Scripted, which is then the only one")

// pipeSocket is a scripted socket that has to do with pipes, which are real.
type pipeSocket struct {
	scriptSocket
	refuses bool // splices
}

func (s pipeSocket) spliceIn(pipe, n int) (int, error) {
	if s.refuses {
		return 0, syscall.EINVAL
	}
	s.call()
	if len(s.in) == 0 {
		return 0, sys.ErrAgain
	}
	step := &s.in[0]
	if step.err != nil || step.eof {
		err := step.err
		s.in = s.in[1:]
		return 0, err
	}
	m, err := sys.Write(pipe, []byte(step.data[:min(n, len(step.data))]))
	if err != nil {
		return 0, err
	}
	if step.data = step.data[m:]; step.data == "" {
		s.in = s.in[1:]
	}
	return m, nil
}

func (s pipeSocket) spliceOut(pipe, n int) (int, error) {
	n, err := s.next(n)
	if err != nil {
		return 0, err
	}
	p := make([]byte, n)
	n, err = sys.Read(pipe, p)
	s.out.Write(p[:n])
	return n, err
}

// scriptedEnd is one of two channels on one Manual.
func scriptedEnd(t *testing.T, m *eventloop.Manual, fd int, refuses bool, handlers ...any) (*stream, *script) {
	t.Helper()
	return scriptedEndOf(t, m, nil, fd, refuses, handlers...)
}

// scriptedEndOf is scriptedEnd with its memory from alloc.
func scriptedEndOf(t *testing.T, m *eventloop.Manual, alloc buffer.Allocator, fd int, refuses bool, handlers ...any) (*stream, *script) {
	t.Helper()
	cfg, err := (&Config{Logger: zap.NewNop(), Allocator: alloc}).check()
	if err != nil {
		t.Fatal(err)
	}
	k := &script{t: t}
	s := newStream(&cfg, m.Loop(), nil, fd)
	s.sock = pipeSocket{scriptSocket{k}, refuses}
	m.Enter(func() {
		s.start(func(ch pipeline.Channel) error {
			return ch.Pipeline().Add(append(handlers, new(sinkErrors))...)
		})
	})
	return s, k
}

// Whatever the kernel does, and whether or not there is memory, the bytes of both directions
// arrive in order; all of them, if both streams end; and a beginning of them if something breaks, and then both channels
// close. Nothing is left in a pipe.
func TestRelay_Scripted(t *testing.T) {
	if *relaySeed != 0 {
		relayScripted(t, *relaySeed)
		return
	}
	seeds := uint64(400)
	if testing.Short() {
		seeds /= 4
	}
	for seed := range seeds {
		if relayScripted(t, seed+1); t.Failed() {
			t.Fatalf("repeat with -relay.seed=%d", seed+1)
		}
	}
}

func relayScripted(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	m := eventloop.NewManual()
	relay := &Relay{Mode: RelayMode(r.IntN(3))}
	var ends [3]*stream // the last one is a mirror
	var ks [3]*script
	blocks, ended, got := r.IntN(2) == 0, 0, int64(0)
	var mirrorErr error
	breaks := false // the mirror's socket
	memory, scarce := &stingy{Allocator: buffer.Heap}, r.IntN(3) == 0
	for i := range ends {
		ends[i], ks[i] = scriptedEndOf(t, m, memory, scriptFD+i, r.IntN(8) == 0, new(writer))
	}
	if r.IntN(2) == 0 {
		relay.Mirrors = []Mirror{{Channel: ends[2], Block: blocks, Ended: func(n int64, err error) {
			ended++
			got, mirrorErr = n, err
			ends[2].Close()
		}}}
	} else {
		m.Enter(ends[2].Close)
	}
	var sent [3]string
	clean := true
	for i, k := range ks {
		for range r.IntN(12) {
			if i == 2 {
				break
			}
			p := letters(1 + r.IntN([]int{10, 3000, 200_000}[r.IntN(3)]))
			k.in = append(k.in, readStep{data: p})
			sent[i] += p
		}
		switch n := r.IntN(6); {
		case i == 2:
		case n == 0:
			k.in = append(k.in, readStep{err: syscall.ECONNRESET})
			clean = false
		default:
			k.in = append(k.in, readStep{eof: true})
		}
		for range r.IntN(30) {
			switch n := r.IntN(40); {
			case n == 0:
				k.take = append(k.take, takeStep{err: syscall.EPIPE})
				clean, breaks = clean && i == 2, breaks || i == 2
			case n < 12:
				k.take = append(k.take, takeStep{err: sys.ErrAgain})
			default:
				k.take = append(k.take, takeStep{n: 1 + r.IntN([]int{5, 2000, 100_000}[r.IntN(3)])})
			}
		}
	}
	first := ""
	m.Enter(func() {
		if r.IntN(2) == 0 { // what was read before
			first = "first"
			ends[1].Write(first)
		}
		if err := relay.Start(pipeline.Find[*writer](ends[0].Pipeline()), ends[1]); err != nil {
			t.Error(err)
		}
	})
	stop := -1
	if r.IntN(4) == 0 {
		stop = r.IntN(40)
		clean = false // what comes after is dropped by the tail
	}
	for i := 0; i < 8000 && (ends[0].at != streamClosed || ends[1].at != streamClosed || ends[2].at != streamClosed); i++ {
		if i == stop {
			m.Enter(relay.Stop)
		}
		if memory.empty = scarce && r.IntN(3) == 0; scarce && r.IntN(3) == 0 {
			m.Advance(starvedRetry)
		}
		j := r.IntN(3)
		if ends[j].at == streamClosed || ends[j].reg == nil {
			continue
		}
		ev := ends[j].reg.Interest() // no more than what it asks for
		if r.IntN(2) == 0 {
			ev &^= eventloop.EventWrite
		}
		if r.IntN(2) == 0 || ev == 0 {
			ev &= eventloop.EventWrite
		}
		if ev == 0 {
			continue
		}
		m.Enter(func() { ends[j].HandleIO(ev) })
		m.RunUntilIdle()
		if i > 4000 {
			m.Advance(starvedRetry)
		}
	}
	memory.empty = false
	for i, s := range ends[:2] {
		out := ks[1-i].out.String()
		want := sent[i]
		if i == 0 {
			want = first + want
		}
		switch {
		case s.at != streamClosed:
			t.Errorf("seed %d: channel %d has not closed: state %d, %d bytes in the queue", seed, i, s.at, s.out.queued-s.out.sent)
		case clean && out != want:
			t.Errorf("seed %d: way %d: %d bytes have arrived, want %d", seed, i, len(out), len(want))
		case !strings.HasPrefix(want, out):
			t.Errorf("seed %d: way %d: %d bytes that were not sent", seed, i, len(out))
		}
	}
	out := ks[2].out.String()
	switch {
	case relay.Mirrors == nil:
	case ended != 1:
		t.Errorf("seed %d: the mirror has ended %d times", seed, ended)
	case !strings.HasPrefix(sent[0], out):
		t.Errorf("seed %d: the mirror got %d bytes that were not sent", seed, len(out))
	case !breaks && int64(len(out)) != got:
		t.Errorf("seed %d: %d bytes have left the mirror, want %d", seed, len(out), got)
	case clean && !breaks && mirrorErr == nil && out != sent[0], errors.Is(mirrorErr, ErrMirrorBehind) && blocks:
		t.Errorf("seed %d: the mirror got %d of %d bytes: %v", seed, len(out), len(sent[0]), mirrorErr)
	}
	if s := relay.Stats(); relay.Mirrors != nil && clean && s.Mirrored+s.Dropped != int64(len(sent[0])) {
		t.Errorf("seed %d: %d mirrored and %d dropped of %d", seed, s.Mirrored, s.Dropped, len(sent[0]))
	}
	c := *m.Loop().Counters()
	if n := ks[0].out.Len() + ks[1].out.Len() + ks[2].out.Len(); c.BytesWritten+c.BytesSpliced != uint64(n) {
		t.Errorf("seed %d: got %d bytes written and %d spliced in the counters, want %d together", seed, c.BytesWritten, c.BytesSpliced, n)
	}
	m.Close()
	if n := piped.Load(); n != 0 {
		t.Errorf("seed %d: %d bytes are counted as in pipes", seed, n)
	}
	for i, k := range ks {
		if k.closes != 1 {
			t.Errorf("seed %d: socket %d closed %d times", seed, i, k.closes)
		}
	}
}

// A relay says how it moves what comes next, and why.
func TestRelay_Explain(t *testing.T) {
	full, short := readStep{data: letters(recvSizes[0])}, readStep{data: "short"}
	tests := []struct {
		name    string
		mode    RelayMode
		refuses bool
		full    bool // the pipes
		in      []readStep
		want    route
	}{
		{"at first", RelayAuto, false, false, nil, route{PathCopy, whyShortReads}},
		{"a stream", RelayAuto, false, false, []readStep{full, full}, route{PathSplice, whyFullReads}},
		{"no more", RelayAuto, false, false, append([]readStep{full, full}, slices.Repeat([]readStep{short}, smallSplices)...), route{PathCopy, whyShortReads}},
		{"splice", RelaySplice, false, false, []readStep{short}, route{PathSplice, whyAsked}},
		{"copy", RelayCopy, false, false, []readStep{full, full}, route{PathCopy, whyAsked}},
		{"no pipes", RelaySplice, true, false, []readStep{short}, route{PathCopy, whyNoPipes}},
		{"full pipes", RelaySplice, false, true, []readStep{short}, route{PathCopy, whyPipesFull}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.full {
				piped.Add(mostPiped)
				defer piped.Add(-mostPiped)
			}
			m := eventloop.NewManual()
			defer m.Close()
			a, k := scriptedEnd(t, m, scriptFD, tt.refuses, new(writer))
			b, _ := scriptedEnd(t, m, scriptFD+1, false, new(writer))
			r := &Relay{Mode: tt.mode}
			check := func(want route) {
				t.Helper()
				if got, _ := r.Explain(); got != want.explain() {
					t.Errorf("got %v, want %v", got, want.explain())
				}
			}
			m.Enter(func() {
				check(route{PathNone, whyNotStarted})
				if err := r.Start(pipeline.Find[*writer](a.Pipeline()), b); err != nil {
					t.Fatal(err)
				}
			})
			for _, step := range tt.in {
				k.in = append(k.in, step)
				m.Ready(scriptFD, eventloop.EventRead)
				m.RunUntilIdle()
			}
			m.Enter(func() {
				check(tt.want)
				r.Stop()
				check(route{PathNone, whyNotStarted})
			})
		})
	}
}

// What a mirror gets may run a handler that closes the relay's channels: nothing is
// written to a socket that is closed, and what its place in the queue has is dropped.
func TestRelay_ClosedByAMirrorsHandler(t *testing.T) {
	for _, short := range []int{1000, 100_000} { // what the target's socket takes
		m := eventloop.NewManual()
		var ends [3]*stream
		var ks [3]*script
		for i := range ends {
			hs := []any{new(writer)}
			if i == 2 {
				hs = append(hs, pipeline.OnWritability(func(*pipeline.Context) error {
					ends[1].Reset()
					return nil
				}))
			}
			ends[i], ks[i] = scriptedEnd(t, m, scriptFD+i, true, hs...)
		}
		ends[2].SetWaterMarks(1, 1000)
		ks[0].in = []readStep{{data: letters(60_000)}, {data: letters(60_000)}}
		ks[1].take = []takeStep{{n: short}}
		ks[2].take = []takeStep{{err: sys.ErrAgain}}
		relay := &Relay{Mode: RelayCopy, Mirrors: []Mirror{{Channel: ends[2], Block: true}}}
		c := pipeline.Find[*writer](ends[0].Pipeline())
		m.Enter(func() {
			if err := relay.Start(c, ends[1]); err != nil {
				t.Fatal(err)
			}
			for _, s := range ends[1:] {
				if err := new(Relay).Start(pipeline.Find[*writer](s.Pipeline()), ends[0]); err != ErrRelayed {
					t.Errorf("a second relay: got %v, want %v", err, ErrRelayed)
				}
			}
			ends[0].HandleIO(eventloop.EventRead)
		})
		m.RunUntilIdle()
		if ends[1].at != streamClosed || ends[0].at == streamOpen {
			t.Errorf("%d: got states %d and %d, want both closed", short, ends[0].at, ends[1].at)
		}
		if out := ks[1].out.String(); out != letters(60_000)[:min(short, 60_000)] {
			t.Errorf("%d: the target got %d bytes", short, len(out))
		}
		m.Close()
	}
}

// A mirror's channel is free: not an end of the relay, nor a sink twice.
func TestMirror_Refused(t *testing.T) {
	m := eventloop.NewManual()
	defer m.Close()
	var ends [3]*stream
	for i := range ends {
		ends[i], _ = scriptedEnd(t, m, scriptFD+i, true, new(writer))
	}
	c := pipeline.Find[*writer](ends[0].Pipeline())
	m.Enter(func() {
		for _, mirrors := range [][]Mirror{{{Channel: ends[0]}}, {{Channel: ends[1]}}, {{Channel: ends[2]}, {Channel: ends[2]}}} {
			if err := (&Relay{Mirrors: mirrors}).Start(c, ends[1]); err != ErrRelayed {
				t.Errorf("got %v, want %v", err, ErrRelayed)
			}
		}
		if ends[0].relayed || ends[2].rare != nil && ends[2].rare.feeds != nil {
			t.Error("something has changed")
		}
	})
}

// A relay that finds no memory to copy with goes on when there is some, in both directions.
func TestRelay_Starved(t *testing.T) {
	m := eventloop.NewManual()
	a := &stingy{Allocator: buffer.Heap}
	var ends [2]*stream
	var ks [2]*script
	for i := range ends {
		ends[i], ks[i] = scriptedEndOf(t, m, a, scriptFD+i, true, new(writer))
	}
	ks[0].in = []readStep{{data: "up"}, {eof: true}}
	ks[1].in = []readStep{{data: "down"}, {eof: true}}
	m.Enter(func() {
		if err := new(Relay).Start(pipeline.Find[*writer](ends[0].Pipeline()), ends[1]); err != nil {
			t.Fatal(err)
		}
	})
	turn := func() {
		for i, s := range ends {
			if s.at != streamClosed {
				m.Ready(scriptFD+i, s.reg.Interest()&eventloop.EventRead)
			}
		}
		m.RunUntilIdle()
	}
	a.empty = true
	turn()
	if ks[0].out.Len()+ks[1].out.Len() > 0 || ends[0].reg.Interest()|ends[1].reg.Interest() != 0 {
		t.Errorf("without memory: got %q and %q, waiting for %v and %v", &ks[0].out, &ks[1].out, ends[0].reg.Interest(), ends[1].reg.Interest())
	}
	a.empty = false
	m.Advance(starvedRetry)
	for range 5 {
		turn()
	}
	if up, down := ks[1].out.String(), ks[0].out.String(); up != "up" || down != "down" || ends[0].at != streamClosed || ends[1].at != streamClosed {
		t.Errorf("afterwards: got %q up, %q down, states %d and %d; want all and both closed", up, down, ends[0].at, ends[1].at)
	}
	m.Close()
}

// A relay keeps to the share of a turn that its channels are to have.
func TestRelay_ReadsPerTurn(t *testing.T) {
	for _, mode := range []RelayMode{RelayCopy, RelaySplice} {
		for set, want := range map[int]int{0: maxReadsPerTurn, 1: 1, 3: 3} {
			m := eventloop.NewManual()
			a, k := scriptedEnd(t, m, scriptFD, false, new(writer))
			b, out := scriptedEnd(t, m, scriptFD+1, false, new(writer))
			a.cfg.ReadsPerTurn = set
			for range 30 {
				k.in = append(k.in, readStep{data: letters(recvSizes[0])})
			}
			m.Enter(func() {
				if err := (&Relay{Mode: mode}).Start(pipeline.Find[*writer](a.Pipeline()), b); err != nil {
					t.Fatal(err)
				}
				a.HandleIO(eventloop.EventRead)
			})
			if got := out.out.Len() / recvSizes[0]; got != want {
				t.Errorf("mode %d, ReadsPerTurn %d: got %d reads, want %d", mode, set, got, want)
			}
			m.Close()
		}
	}
}
