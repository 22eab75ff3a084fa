// Package codectest tests decoders: whether they make the same messages however
// the stream is cut, and keep no more memory than they should.
//
// [Verify] is all there is to it. It counts the live Bufs of the process, so tests
// that use it do not run in parallel with others.
package codectest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// Verify feeds in to decoders from newDecoder, which returns what is added to a
// pipeline: whole, byte by byte, cut in two at many places, in pieces of several
// sizes, and cut at random, in Bufs with and without room, shared and not, with
// reads on their own and asked for. Each time the messages must be want, and the
// error wantErr, in the sense of errors.Is, or none if it is nil; messages that are
// kept must stay what they were; and no Buf may be left.
//
// Messages are compared as text: a Buf and a []byte by their bytes, others as
// fmt.Sprint prints them, so a struct that holds a Buf has a method String that shows
// the bytes without reading past them. Messages that are [buffer.Counted] are
// released. What a decoder makes of the end of the stream counts.
//
// A decoder that keeps bytes between reads may have a method
//
//	Held() (bytes, pinned int)
//
// as those of package codec have: then the memory it keeps alive must not be more
// than twice these bytes and a little.
//
// On a failure it reports the way of feeding that failed first; random cuts are
// repeated by setting CODECTEST_SEED to the seed it prints.
func Verify(t testing.TB, newDecoder func() any, in string, want []string, wantErr error) {
	t.Helper()
	for _, f := range feedings(len(in)) {
		if problem := f.run(newDecoder, in, want, wantErr); problem != "" {
			t.Errorf("%s: %s", f.name, problem)
			return
		}
	}
}

// feeding is a way to feed a stream to a decoder.
type feeding struct {
	name   string
	cuts   []int // where pieces end; the last is the length
	turns  func(piece int) bool
	kind   func(piece int) bufKind
	manual bool // AutoRead off: a piece comes when it is asked for
	keep   bool // the messages are kept until the end
	shut   bool // the end of the stream is first seen as InputShutdown
}

// bufKind is what the Buf of a piece is like.
type bufKind int

const (
	exact   bufKind = iota // on the heap, no more room than bytes
	roomy                  // from the pool, with room behind
	behind                 // bytes that have been read in front
	shared                 // memory that a slice shares
	between                // a slice of a larger Buf, with others' bytes around it
	kinds
)

func byTurn(int) bool                  { return true }
func inOneTurn(int) bool               { return false }
func inTurn(piece int) bufKind         { return bufKind(piece) % kinds }
func only(k bufKind) func(int) bufKind { return func(int) bufKind { return k } }

func feedings(n int) []feeding {
	var fs []feeding
	for k := range kinds {
		fs = append(fs, feeding{name: fmt.Sprintf("whole, Buf of kind %d", k), cuts: []int{n}, turns: byTurn, kind: only(k), keep: k%2 == 1})
	}
	fs = append(fs, feeding{name: "whole, then half-closed", cuts: []int{n}, turns: byTurn, kind: only(exact), shut: true})
	for _, size := range []int{1, 2, 3, 7, 64, 1000} {
		if size > n && size > 1 {
			break
		}
		cuts := every(size, n)
		name := fmt.Sprintf("%d bytes at a time", size)
		fs = append(fs,
			feeding{name: name, cuts: cuts, turns: byTurn, kind: only(roomy)},
			feeding{name: name + ", the messages kept", cuts: cuts, turns: byTurn, kind: inTurn, keep: true},
			feeding{name: name + ", all in one turn", cuts: cuts, turns: inOneTurn, kind: inTurn},
			feeding{name: name + ", reading by hand", cuts: cuts, turns: byTurn, kind: inTurn, manual: true},
			feeding{name: name + ", then half-closed", cuts: cuts, turns: byTurn, kind: only(roomy), shut: true},
		)
	}
	for i := 1; i < n; i += max(1, n/64) {
		for _, at := range []int{i, n - i} { // both ends, to the byte
			fs = append(fs, feeding{name: fmt.Sprintf("cut at %d", at), cuts: []int{at, n}, turns: byTurn, kind: inTurn, keep: true})
		}
		if i >= 64 {
			break
		}
	}
	seed := rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv("CODECTEST_SEED"), 10, 64); err == nil {
		seed = s
	}
	for i := range 24 {
		fs = append(fs, random(n, seed, uint64(i)))
	}
	return fs
}

// every returns the cuts of n bytes into pieces of size.
func every(size, n int) (cuts []int) {
	for i := size; i < n; i += size {
		cuts = append(cuts, i)
	}
	return append(cuts, n)
}

func random(n int, seed, i uint64) feeding {
	r := rand.New(rand.NewPCG(seed, i))
	var cuts []int
	for at, mean := 0, 1+r.IntN(max(1, n/2)); at < n; {
		at = min(n, at+1+r.IntN(2*mean))
		cuts = append(cuts, at)
	}
	if n == 0 {
		cuts = []int{0}
	}
	bits := r.Uint64()
	return feeding{
		name:   fmt.Sprintf("random cuts %d with CODECTEST_SEED=%d at %d", i, seed, cuts),
		cuts:   cuts,
		turns:  func(piece int) bool { return bits>>(piece%31)&1 == 0 },
		kind:   func(piece int) bufKind { return bufKind(bits>>(piece%61)) % kinds },
		manual: bits>>61&1 == 1,
		keep:   bits>>62&1 == 1,
		shut:   bits>>63 == 1,
	}
}

// run returns what was wrong, or nothing.
func (f *feeding) run(newDecoder func() any, in string, want []string, wantErr error) string {
	live := buffer.Live()
	s := &sink{manual: f.manual, keep: f.keep}
	ch := embedded.NewConfig(embedded.Config{ManualRead: f.manual}, newDecoder(), s)
	others, problem := f.feed(ch, s, in)
	if f.shut {
		ch.Do(func() { ch.Pipeline().FireEvent(pipeline.InputShutdown{}) })
	}
	if err := ch.Finish(); err != nil {
		s.errs = append(s.errs, err)
	}
	changed := s.release()
	for _, b := range others {
		b.Release()
	}
	unread := ch.ReleaseAll()
	switch {
	case !slices.Equal(s.got, want):
		return fmt.Sprintf("got messages %q, errors %v; want messages %q, error %v", s.got, s.errs, want, wantErr)
	case wantErr == nil && len(s.errs) > 0:
		return fmt.Sprintf("got errors %v, want none", s.errs)
	case wantErr != nil && (len(s.errs) != 1 || !errors.Is(s.errs[0], wantErr)):
		return fmt.Sprintf("got errors %v, want %v once", s.errs, wantErr)
	case problem != "":
		return problem
	case changed != "":
		return changed
	case f.shut && wantErr == nil && (s.shuts != 1 || unread != 1):
		return fmt.Sprintf("got %d events of a half-closed stream, want 1", s.shuts)
	}
	if n := buffer.Live() - live; n != 0 {
		return fmt.Sprintf("got %d more live Bufs than before, want none", n)
	}
	return ""
}

// holder is a decoder that says what it keeps.
type holder interface {
	Held() (bytes, pinned int)
}

// heldSlack is how much more than twice its bytes a decoder may keep: a small block
// and its handle.
const heldSlack = 288

// feed feeds in until it ends or the channel closes. It returns the Bufs that share
// memory with what was fed.
func (f *feeding) feed(ch *embedded.Channel, s *sink, in string) (others []*buffer.Buf, problem string) {
	var holds holder
	ch.Do(func() {
		if c := pipeline.Find[holder](ch.Pipeline()); c != nil {
			holds = c.Handler().(holder)
		}
	})
	if f.manual {
		ch.Read()
	}
	var turn []any
	for i, at := 0, 0; i < len(f.cuts) && ch.Open(); i++ {
		b, other := newBuf(ch.Alloc(), in[at:f.cuts[i]], f.kind(i))
		if other != nil {
			others = append(others, other)
		}
		turn = append(turn, b)
		at = f.cuts[i]
		if !f.turns(i) && i < len(f.cuts)-1 {
			continue
		}
		if f.manual && ch.ReadRequests() == 0 && problem == "" {
			problem = fmt.Sprintf("nobody asked for the bytes from %d on, and reading is by hand", at-b.Len())
		}
		ch.WriteInbound(turn...)
		turn = nil
		if holds == nil || problem != "" {
			continue
		}
		if n, pinned := holds.Held(); pinned > 2*n+heldSlack {
			problem = fmt.Sprintf("after %d bytes it keeps %d bytes of memory alive for %d bytes, want at most twice as many and %d", at, pinned, n, heldSlack)
		}
	}
	return others, problem
}

// newBuf returns a Buf with the bytes of s, and the Buf that shares its memory, if
// there is one.
func newBuf(alloc buffer.Allocator, s string, kind bufKind) (b, other *buffer.Buf) {
	const around = "\n\x00around\xff\r\n"
	switch kind {
	case roomy:
		b = alloc.Alloc(len(s) + 100)
		b.WriteString(s)
	case behind:
		b = alloc.Alloc(len(around) + len(s))
		b.WriteString(around)
		b.WriteString(s)
		b.Skip(len(around))
	case shared:
		b = alloc.Alloc(len(s))
		b.WriteString(s)
		other = b.Duplicate()
	case between:
		other = alloc.Alloc(len(s) + 2*len(around))
		other.WriteString(around)
		other.WriteString(s)
		other.WriteString(around)
		b = other.Slice(len(around), len(s))
	default:
		b = buffer.FromString(s)
	}
	return b, other
}

// sink is the handler that takes the messages and the errors.
type sink struct {
	manual bool
	keep   bool
	got    []string
	kept   []any
	errs   []error
	shuts  int
	asks   bool // a message came in this turn, and the next is to be asked for
}

func (s *sink) HandleRead(_ *pipeline.Context, msg any) error {
	s.got = append(s.got, text(msg))
	s.asks = true
	if s.keep {
		s.kept = append(s.kept, msg)
	} else {
		buffer.Release(msg)
	}
	return nil
}

func (s *sink) HandleReadComplete(c *pipeline.Context) error {
	if s.manual && s.asks {
		c.Read()
	}
	s.asks = false
	return nil
}

func (s *sink) HandleError(_ *pipeline.Context, err error) { s.errs = append(s.errs, err) }

func (s *sink) HandleEvent(c *pipeline.Context, ev any) error {
	if _, ok := ev.(pipeline.InputShutdown); ok {
		s.shuts++
	}
	c.FireEvent(ev)
	return nil
}

// release releases the messages that were kept, and says which has changed.
func (s *sink) release() (changed string) {
	for i, msg := range s.kept {
		if now := text(msg); now != s.got[i] && changed == "" {
			changed = fmt.Sprintf("message %d was %q and became %q later", i, s.got[i], now)
		}
		buffer.Release(msg)
	}
	return changed
}

// text returns a message as Verify compares it.
func text(msg any) string {
	switch m := msg.(type) {
	case *buffer.Buf:
		var p []byte
		m.Segments(func(part []byte) bool {
			p = append(p, part...)
			return true
		})
		return string(p)
	case []byte:
		return string(m)
	case string:
		return m
	}
	return fmt.Sprint(msg)
}
