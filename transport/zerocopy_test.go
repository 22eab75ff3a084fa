package transport

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/sys"
)

// lentTo lends z a call with so many buffers. Each notes its number when it is released.
func lentTo(z *zeroCopy, released *[]int, next *int, bufs int) {
	z.sent()
	for range bufs {
		n := *next
		*next++
		z.hold(buffer.Wrap(func() { *released = append(*released, n) }, make([]byte, 10)), 100)
	}
}

// takeAll releases what is free.
func takeAll(z *zeroCopy) (charge int64) {
	for {
		b, n, ok := z.take()
		if !ok {
			return charge
		}
		charge += n
		b.Release()
	}
}

func TestConfirmations(t *testing.T) {
	type step struct {
		send   int // buffers of a call; 0 is none
		c      sys.Confirmation
		want   []int // released by now
		wantIn int   // calls left
	}
	confirm := func(from, to uint32) sys.Confirmation {
		return sys.Confirmation{Calls: true, First: from, Last: to}
	}
	const max = 1<<32 - 1
	for _, tt := range []struct {
		name  string
		first uint32
		steps []step
	}{
		{name: "in order", steps: []step{
			{send: 1, wantIn: 1}, {send: 2, wantIn: 2},
			{c: confirm(0, 0), want: []int{0}, wantIn: 1},
			{c: confirm(1, 1), want: []int{0, 1, 2}},
		}},
		{name: "the other way round", steps: []step{
			{send: 1, wantIn: 1}, {send: 1, wantIn: 2}, {send: 1, wantIn: 3},
			{c: confirm(2, 2), wantIn: 3},
			{c: confirm(1, 1), wantIn: 3},
			{c: confirm(0, 0), want: []int{0, 1, 2}},
		}},
		{name: "ranges", steps: []step{
			{send: 1, wantIn: 1}, {send: 1, wantIn: 2}, {send: 1, wantIn: 3}, {send: 1, wantIn: 4},
			{c: confirm(1, 2), wantIn: 4},
			{c: confirm(0, 0), want: []int{0, 1, 2}, wantIn: 1},
			{send: 1, want: []int{0, 1, 2}, wantIn: 2},
			{c: confirm(3, 4), want: []int{0, 1, 2, 3, 4}},
		}},
		{name: "twice, and never made", steps: []step{
			{c: confirm(0, 7)},
			{send: 1, wantIn: 1}, {send: 1, wantIn: 2},
			{c: confirm(2, 9), wantIn: 2},
			{c: confirm(0, 0), want: []int{0}, wantIn: 1},
			{c: confirm(0, 0), want: []int{0}, wantIn: 1},
			{c: confirm(0, 1), want: []int{0, 1}},
			{c: confirm(0, 1), want: []int{0, 1}},
		}},
		{name: "of something else", steps: []step{
			{send: 1, wantIn: 1},
			{c: sys.Confirmation{}, wantIn: 1},
			{c: confirm(0, 0), want: []int{0}},
		}},
		{name: "around 2^32, one by one", first: max - 1, steps: []step{
			{send: 1, wantIn: 1}, {send: 1, wantIn: 2}, {send: 1, wantIn: 3}, {send: 1, wantIn: 4},
			{c: confirm(0, 0), wantIn: 4},
			{c: confirm(max-1, max-1), want: []int{0}, wantIn: 3},
			{c: confirm(1, 1), want: []int{0}, wantIn: 3},
			{c: confirm(max, max), want: []int{0, 1, 2, 3}},
			{send: 1, want: []int{0, 1, 2, 3}, wantIn: 1},
			{c: confirm(2, 2), want: []int{0, 1, 2, 3, 4}},
		}},
		{name: "a range across 2^32", first: max - 1, steps: []step{
			{send: 1, wantIn: 1}, {send: 1, wantIn: 2}, {send: 1, wantIn: 3}, {send: 1, wantIn: 4},
			{c: confirm(max, 1), wantIn: 4},
			{c: confirm(max-1, max-1), want: []int{0, 1, 2, 3}},
		}},
		{name: "all from before to behind 2^32", first: max, steps: []step{
			{send: 1, wantIn: 1}, {send: 3, wantIn: 2}, {send: 1, wantIn: 3},
			{c: confirm(max, 1), want: []int{0, 1, 2, 3, 4}},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			z := zeroCopy{first: tt.first, able: zeroCopyUsed}
			var released []int
			next := 0
			for i, s := range tt.steps {
				if s.send > 0 {
					lentTo(&z, &released, &next, s.send)
				} else {
					z.confirm(s.c)
				}
				takeAll(&z)
				if !slices.Equal(released, s.want) || z.unconfirmed() != s.wantIn {
					t.Fatalf("step %d: released %v and %d calls left, want %v and %d", i, released, z.unconfirmed(), s.want, s.wantIn)
				}
				if want := int64(100 * (next - len(released))); z.charge != want {
					t.Errorf("step %d: charge %d, want %d", i, z.charge, want)
				}
			}
			if z.able != zeroCopyUsed {
				t.Errorf("got %v without a report of copies", z.able)
			}
		})
	}
}

// One report of a copy is enough, also as a part of a range, and takes back nothing else.
func TestCopiedSwitchesOff(t *testing.T) {
	z := zeroCopy{able: zeroCopyUsed}
	var released []int
	next := 0
	lentTo(&z, &released, &next, 1)
	lentTo(&z, &released, &next, 1)
	z.confirm(sys.Confirmation{Calls: true, First: 1, Last: 1, Copied: true})
	if z.able != zeroCopyCopied {
		t.Errorf("after a copy: got %v, want %v", z.able, zeroCopyCopied)
	}
	z.confirm(sys.Confirmation{Calls: true})
	takeAll(&z)
	if z.able != zeroCopyCopied || len(released) != 2 {
		t.Errorf("got %v and %d released, want %v and 2", z.able, len(released), zeroCopyCopied)
	}
}

// In whatever order calls are made and confirmed, and wherever the numbers wrap: a buffer
// comes back when its call and all before it are confirmed, and not before.
func TestConfirmationsInAnyOrder(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		first := uint32(-rnd.IntN(40))
		z := zeroCopy{first: first, able: zeroCopyUsed}
		var released, owner []int // calls that the buffers belong to
		var done []bool
		next := 0
		for step := range 300 {
			open := slices.Index(done, false)
			if open < 0 || rnd.IntN(3) == 0 && step < 250 {
				for range 1 + rnd.IntN(3) {
					owner = append(owner, len(done))
				}
				lentTo(&z, &released, &next, len(owner)-next)
				done = append(done, false)
			} else {
				// A range of calls that are not confirmed yet.
				from := open + rnd.IntN(len(done)-open)
				for done[from] {
					from--
				}
				to := from
				for to+1 < len(done) && !done[to+1] && rnd.IntN(2) == 0 {
					to++
				}
				for i := from; i <= to; i++ {
					done[i] = true
				}
				z.confirm(sys.Confirmation{Calls: true, First: first + uint32(from), Last: first + uint32(to)})
			}
			takeAll(&z)
			free := slices.Index(done, false)
			if free < 0 {
				free = len(done)
			}
			want := 0
			for want < len(owner) && owner[want] < free {
				want++
			}
			if len(released) != want || z.unconfirmed() != len(done)-free {
				t.Fatalf("seed %d, step %d: released %d and %d calls left, want %d and %d", seed, step, len(released), z.unconfirmed(), want, len(done)-free)
			}
		}
		z.confirm(sys.Confirmation{Calls: true, First: first, Last: first + uint32(len(done)) - 1})
		takeAll(&z)
		if z.unconfirmed() != 0 || z.charge != 0 || len(released) != len(owner) {
			t.Fatalf("seed %d: %d calls, charge %d and %d of %d buffers at the end", seed, z.unconfirmed(), z.charge, len(released), len(owner))
		}
	}
}

// Of a queue of buffers of every layout, lent in steps of any length: what is lent is what
// has left and stays as it is, whatever is written behind it, and what is charged stays
// charged until it comes back.
func TestLend(t *testing.T) {
	for step := 1; step < 4000; step += 1 + step/3 {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			var o outbound
			z := zeroCopy{able: zeroCopyUsed}
			var want string
			add := func(b *buffer.Buf) {
				want += string(b.Peek(b.Len()))
				o.addBuf(b, nil, buffer.Default())
			}
			text := letters(6000)
			block := pooled(text)
			add(pooled("small "))
			add(pooled("ones together"))
			add(block.ReadSlice(2000))
			add(block.ReadSlice(1500)) // joined
			add(pooled("x"))
			add(block)
			add(buffer.Compose(pooled(letters(1200)), pooled("part"), pooled(letters(1300))))
			add(pooled("tail"))
			full := o.charge
			var got string
			for i := 0; len(got) < len(want); i++ {
				n := int64(min(step, len(want)-len(got)))
				parts, _, _, _ := o.parts(make([]sys.Iovec, 0, 64), o.queued-o.sent)
				o.lend(n, &z)
				for left := int(n); left > 0; parts = parts[1:] {
					p := partBytes(parts[0])
					p = p[:min(len(p), left)]
					got += string(p)
					left -= len(p)
				}
				if i < 40 {
					add(pooled("more")) // into the merge buffer, behind what has left
				}
			}
			if got != want {
				t.Fatalf("lent %d bytes, want %d, or they differ", len(got), len(want))
			}
			if o.charge < full || o.charge != z.charge {
				t.Errorf("charge when all is lent: %d, of which for lent memory %d; want %d or more", o.charge, z.charge, full)
			}
			// All of it can still be read where it was.
			var held string
			for i := range int(z.held.n) {
				for p := range z.held.at(i).buf.Segments {
					held += string(p)
				}
			}
			if held != want {
				t.Errorf("held: %d bytes, want %d, or they differ", len(held), len(want))
			}
			z.confirm(sys.Confirmation{Calls: true, Last: uint32(z.calls.n) - 1})
			if n := takeAll(&z); n != o.charge {
				t.Errorf("given back: charge %d, want %d", n, o.charge)
			}
		})
	}
}
