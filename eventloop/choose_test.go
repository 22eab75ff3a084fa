package eventloop

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

func TestRoundRobin(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 3})
	for i := range 9 {
		if got, want := g.NextFor(rand.Uint64()), g.Loops()[i%3]; got != want {
			t.Errorf("got %s in turn %d, want %s", got.Name(), i, want.Name())
		}
	}
}

// Registrations even out, whoever made them and whoever is slow to come.
func TestFewest(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 3, Choose: Fewest})
	loops := g.Loops()
	counts := func() (n [3]int) {
		for i, l := range loops {
			n[i] = l.Metrics().Registrations
		}
		return n
	}
	settle := func() {
		for _, l := range loops {
			onLoop(t, l, func() {})
			onLoop(t, l, func() {}) // the turn before has ended
		}
	}
	register := func(l *Loop) (r *Registration) {
		onLoop(t, l, func() {
			var err error
			if r, err = l.Register(-1, &testHandle{}); err != nil {
				t.Errorf("Register: %v", err)
			}
		})
		return r
	}
	var first []*Registration
	for range 6 {
		first = append(first, register(loops[0])) // not chosen
	}
	settle()
	// A burst: nobody has come when the last one is chosen.
	var chosen []*Loop
	for range 6 {
		chosen = append(chosen, g.Next())
	}
	for _, l := range chosen {
		register(l)
	}
	settle()
	if got, want := counts(), [3]int{6, 3, 3}; got != want {
		t.Errorf("got %v registrations after the burst, want %v", got, want)
	}
	for range 6 {
		register(g.NextFor(7))
	}
	settle()
	if got, want := counts(), [3]int{6, 6, 6}; got != want {
		t.Errorf("got %v registrations, want %v", got, want)
	}
	onLoop(t, loops[0], func() {
		for _, r := range first {
			r.Close(nil)
		}
	})
	for range 3 {
		if l := g.Next(); l != loops[0] {
			t.Errorf("got %s, want %s, which has the fewest", l.Name(), loops[0].Name())
		}
	}
	// Those that were promised and have not come are forgotten when tasks have run.
	settle()
	for _, l := range loops {
		if got, want := l.load.now(), int64(l.Metrics().Registrations); got != want {
			t.Errorf("%s: got a load of %d, want that of its %d registrations", l.Name(), got, want)
		}
	}
}

// The same hash, the same loop; and different hashes are spread, also bad ones.
func TestByHash(t *testing.T) {
	const loops, n = 7, 7000
	g := newTestGroup(t, GroupConfig{Loops: loops, Choose: ByHash})
	hashes := map[string]func(i uint64) uint64{
		"small numbers":   func(i uint64) uint64 { return i },
		"high bits only":  func(i uint64) uint64 { return i << 50 },
		"every 256th":     func(i uint64) uint64 { return i << 8 },
		"random":          func(uint64) uint64 { return rand.Uint64() },
		"negative, small": func(i uint64) uint64 { return -i },
	}
	for name, hash := range hashes {
		count := map[*Loop]int{}
		for i := range uint64(n) {
			h := hash(i)
			l := g.NextFor(h)
			count[l]++
			if again := g.NextFor(h); again != l {
				t.Fatalf("%s: got %s and %s for %#x", name, l.Name(), again.Name(), h)
			}
		}
		for _, l := range g.Loops() {
			if c := count[l]; c < n/loops/2 || c > n/loops*2 {
				t.Errorf("%s: got %d of %d on %s, want about %d", name, c, n, l.Name(), n/loops)
			}
		}
	}
	if a, b := g.Next(), g.Next(); a == b {
		t.Error("got the same loop twice without a hash, want them to take turns")
	}
}

func TestUnknownChoice(t *testing.T) {
	if _, err := NewGroup(GroupConfig{Loops: 1, Choose: ByHash + 1}); err == nil {
		t.Error("got no error")
	}
}

func BenchmarkNext(b *testing.B) {
	for _, c := range []Choice{RoundRobin, Fewest, ByHash} {
		for _, loops := range []int{2, 64} {
			b.Run(fmt.Sprintf("choice=%d/loops=%d", c, loops), func(b *testing.B) {
				g := newTestGroup(b, GroupConfig{Loops: loops, Choose: c})
				for i := uint64(0); b.Loop(); i++ {
					g.NextFor(i)
				}
			})
		}
	}
}
