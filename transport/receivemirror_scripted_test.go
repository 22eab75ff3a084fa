//go:build linux

package transport

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

var receiveSeed = flag.Uint64("receive.seed", 0, "seed of the only round of TestFileReceiver_MirrorsScripted; 0 means many")

// Whatever the kernel, the file, the sinks and the memory do, the file gets what the socket gave, in
// order and without a hole; a mirror that blocks gets the same, whichever others there
// are; one that does not, a beginning of it, and is told of how much.
func TestFileReceiver_MirrorsScripted(t *testing.T) {
	if *receiveSeed != 0 {
		receiveScripted(t, *receiveSeed)
		return
	}
	seeds := uint64(240)
	if raceEnabled || testing.Short() {
		seeds /= 3
	}
	for seed := range seeds {
		if receiveScripted(t, seed+1); t.Failed() {
			t.Fatalf("repeat with -receive.seed=%d", seed+1)
		}
	}
}

// sinkScript is a sink of a scripted reception.
type sinkScript struct {
	k     *script     // of a channel
	f     *scriptFile // of a file
	ch    *stream
	block bool
	fails bool
	told  int
	n     int64
	err   error
}

func (s *sinkScript) got() []byte {
	if s.f != nil {
		return s.f.content
	}
	return s.k.out.Bytes()
}

func receiveScripted(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 9))
	m, elsewhere := eventloop.NewManual(), eventloop.NewManual()
	memory, scarce := &stingy{Allocator: buffer.Heap}, r.IntN(3) == 0
	s, k := scriptedEndOf(t, m, memory, scriptFD, r.IntN(8) == 0, new(writer))
	file := &scriptFile{noSplice: r.IntN(6) == 0}
	size := []int{10, 3000, 200_000}[r.IntN(3)]
	var sent strings.Builder
	rec := &FileReceiver{Sync: r.IntN(2) == 0, copies: r.IntN(6) == 0}
	if r.IntN(2) == 0 {
		p := letters(1 + r.IntN(2000))
		rec.First = buffer.Compose(pooled(p[:len(p)/2]), pooled(p[len(p)/2:]))
		sent.WriteString(p)
	}
	for range r.IntN(12) {
		p := letters(1 + r.IntN(size))
		k.in = append(k.in, readStep{data: p})
		sent.WriteString(p)
	}
	k.in = append(k.in, readStep{eof: true})
	take := func(fails *bool, again bool) (steps []takeStep) {
		for range r.IntN(20) {
			switch n := r.IntN(40); {
			case n == 0 && fails != nil:
				*fails = true
				return append(steps, takeStep{err: syscall.EPIPE})
			case n < 12 && again:
				steps = append(steps, takeStep{err: sys.ErrAgain})
			default:
				steps = append(steps, takeStep{n: 1 + r.IntN([]int{5, 2000, 100_000}[r.IntN(3)])})
			}
		}
		return steps
	}
	fileFails := false
	var maybe *bool
	if r.IntN(4) == 0 {
		maybe = &fileFails
	}
	file.take = take(maybe, false)

	sinks := make([]*sinkScript, 1+r.IntN(3))
	for i := range sinks {
		x := &sinkScript{block: r.IntN(2) == 0}
		sinks[i] = x
		mirror := Mirror{Block: x.block, Ended: func(n int64, err error) {
			x.told++
			x.n, x.err = n, err
			if x.ch != nil {
				x.ch.Close()
			}
		}}
		switch r.IntN(4) {
		case 0, 1:
			x.ch, x.k = scriptedEnd(t, m, scriptFD+1+i, r.IntN(8) == 0)
		case 2:
			x.ch, x.k = scriptedEnd(t, elsewhere, scriptFD+1+i, true)
		default:
			x.f = &scriptFile{noSplice: r.IntN(4) == 0, take: take(&x.fails, false)}
			mirror.storage = x.f
		}
		if x.ch != nil {
			x.k.take = take(&x.fails, true)
			mirror.Channel = x.ch
		}
		rec.Mirrors = append(rec.Mirrors, mirror)
	}
	length := int64(-1)
	want := sent.String()
	if r.IntN(4) == 0 && rec.First == nil {
		length = r.Int64N(int64(len(want)) + 1)
		want = want[:length]
	}
	told, n := 0, int64(0)
	var err error
	m.Enter(func() {
		must1(t, rec.start(pipeline.Find[*writer](s.Pipeline()), file, length, func(got int64, e error) {
			told++
			n, err = got, e
			s.Close()
		}))
	})
	all := append([]*sinkScript{{ch: s}}, sinks...)
	done := func() bool {
		for _, x := range all {
			if x.ch != nil && x.ch.at != streamClosed {
				return false
			}
			if x.k != nil || x.f != nil {
				if x.told == 0 {
					return false
				}
			}
		}
		return true
	}
	for i := 0; i < 8000 && !done(); i++ {
		if memory.empty = scarce && r.IntN(3) == 0; scarce && r.IntN(3) == 0 {
			m.Advance(starvedRetry)
		}
		x := all[r.IntN(len(all))]
		if x.ch != nil && x.ch.at != streamClosed && x.ch.reg != nil {
			ev := x.ch.reg.Interest() // no more than what it asks for
			if r.IntN(2) == 0 {
				ev &^= eventloop.EventWrite
			}
			if r.IntN(2) == 0 {
				ev &= eventloop.EventWrite
			}
			if ev != 0 {
				loop := m
				if x.ch.Loop() != m.Loop() {
					loop = elsewhere
				}
				loop.Enter(func() { x.ch.HandleIO(ev) })
			}
		}
		m.RunUntilIdle()
		elsewhere.RunUntilIdle()
		if i > 4000 {
			m.Advance(starvedRetry)
			elsewhere.Advance(starvedRetry)
		}
	}
	memory.empty = false
	got := string(file.content)
	switch {
	case told != 1 || n != int64(len(got)):
		t.Errorf("seed %d: then called %d times, with %d bytes of %d", seed, told, n, len(got))
	case !strings.HasPrefix(want, got):
		t.Errorf("seed %d: the file got %d bytes that were not sent", seed, len(got))
	case fileFails && err != nil:
		if !errors.Is(err, syscall.EPIPE) {
			t.Errorf("seed %d: got %v, want EPIPE", seed, err)
		}
	case err != nil || got != want:
		t.Errorf("seed %d: the file got %d bytes of %d: %v", seed, len(got), len(want), err)
	}
	mirrored := int64(0)
	for i, x := range sinks {
		out := x.got()
		mirrored += x.n
		switch name := fmt.Sprintf("seed %d, mirror %d", seed, i); {
		case x.told != 1:
			t.Errorf("%s: has ended %d times", name, x.told)
		case !bytes.HasPrefix([]byte(want), out):
			t.Errorf("%s: got %d bytes that were not sent", name, len(out))
		case !x.fails && int64(len(out)) != x.n:
			t.Errorf("%s: told of %d bytes, got %d", name, x.n, len(out))
		case x.err == nil && (x.n < int64(len(got)) || !fileFails && x.n != int64(len(want))):
			t.Errorf("%s: got %d bytes of %d, and no error", name, x.n, len(got))
		case x.err != nil && x.block && !x.fails && !errors.Is(x.err, buffer.ErrOutOfMemory):
			t.Errorf("%s: blocks, and was given up: %v", name, x.err)
		}
	}
	st := rec.Stats()
	if st.Copied+st.Spliced != n {
		t.Errorf("seed %d: got %+v, want %d in the file", seed, st, n)
	}
	if err == nil && st.Mirrored+st.Dropped != n*int64(len(sinks)) {
		t.Errorf("seed %d: got %+v, want %d times %d mirrored or dropped", seed, st, len(sinks), n)
	}
	m.Close()
	elsewhere.Close()
	if n := piped.Load(); n != 0 {
		t.Errorf("seed %d: %d bytes are counted as in pipes", seed, n)
	}
}

// A Close lets what was taken from the socket go into a mirror that holds it up, and then
// into the file; a Reset does not wait.
func TestFileReceiver_MirrorHoldsClose(t *testing.T) {
	const n = 5000
	content := letters(2 * n)
	for _, how := range []string{"Close", "Reset", "Stop"} {
		m := eventloop.NewManual()
		s, k := scriptedEnd(t, m, scriptFD, false, new(writer))
		sink, sk := scriptedEnd(t, m, scriptFD+1, false)
		file := new(scriptFile)
		rec := &FileReceiver{Mirrors: []Mirror{{Channel: sink, Block: true}}}
		told, got := 0, int64(0)
		var err error
		m.Enter(func() {
			must1(t, rec.start(pipeline.Find[*writer](s.Pipeline()), file, -1, func(n int64, e error) {
				told++
				got, err = n, e
			}))
			// What is first in the sink's queue keeps it from taking a pipe.
			sk.take = []takeStep{{err: sys.ErrAgain}}
			sink.Write("before")
			sink.Flush()
		})
		m.RunUntilIdle()
		k.in = []readStep{{data: content[:n]}, {data: content[n:]}}
		m.Ready(scriptFD, eventloop.EventRead)
		m.RunUntilIdle()
		if rec.held != n || rec.busy {
			t.Errorf("%s: got %d bytes held, want %d", how, rec.held, n)
		}
		m.Enter(func() {
			switch how {
			case "Close":
				s.Close()
			case "Reset":
				s.Reset()
			default:
				rec.Stop()
			}
		})
		m.RunUntilIdle()
		want := content[:n]
		if how == "Reset" {
			want = ""
		} else if told != 0 {
			t.Errorf("%s: ended while a mirror held it up", how)
		}
		m.Ready(scriptFD+1, eventloop.EventWrite)
		m.RunUntilIdle()
		if told != 1 || got != int64(len(want)) || string(file.content) != want || sk.out.String() != "before"+want {
			t.Errorf("%s: told %d times, of %d bytes; want once, of %d; the mirror has %d", how, told, got, len(want), sk.out.Len())
		}
		if (how == "Stop") != (err == nil) || err != nil && !errors.Is(err, pipeline.ErrClosed) {
			t.Errorf("%s: got %v", how, err)
		}
		m.Close()
	}
}

// A mapped file that was cut before it is given to the mirrors is their error and that of the
// reception, and no panic; nothing is left.
func TestFileReceiver_FirstIsCut(t *testing.T) {
	live := buffer.Live()
	m := eventloop.NewManual()
	a, _ := scriptedEnd(t, m, scriptFD, true, new(writer))
	f := tempFile(t, letters(10_000))
	first, err := buffer.MapFile(f, 0, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(f.Name(), 0); err != nil {
		t.Fatal(err)
	}
	f.Close()
	sink, _ := scriptedEnd(t, m, scriptFD+1, true, new(writer))
	var mirrorErr, fileErr error
	m.Enter(func() {
		r := &FileReceiver{First: first, Mirrors: []Mirror{{Channel: sink, Ended: func(_ int64, err error) { mirrorErr = err }}}}
		c := pipeline.Find[*writer](a.Pipeline())
		if err := r.Start(c, tempFile(t, ""), -1, func(_ int64, err error) { fileErr = err }); err != nil {
			t.Fatal(err)
		}
	})
	m.RunUntilIdle()
	if !errors.Is(mirrorErr, ErrFileShrunk) || !errors.Is(fileErr, syscall.EFAULT) {
		t.Errorf("got %v of the mirror, %v of the file; want %v, %v", mirrorErr, fileErr, ErrFileShrunk, syscall.EFAULT)
	}
	if a.at != streamOpen || sink.at != streamOpen {
		t.Errorf("got states %d and %d, want both open", a.at, sink.at)
	}
	m.Close()
	if n := buffer.Live(); n != live {
		t.Errorf("got %d buffers, want %d", n, live)
	}
}
