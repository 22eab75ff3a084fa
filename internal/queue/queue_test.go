package queue

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOrder(t *testing.T) {
	tests := []struct {
		name    string
		batches []int // elements pushed before each PopAll
	}{
		{"never used", nil},
		{"empty batch", []int{0}},
		{"one at a time", []int{1, 1, 1}},
		{"bursts", []int{10, 1, 0, 5000, 0, 0, 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var q MPSC[int]
			next := 0
			for _, n := range tt.batches {
				var want []int
				for i := range n {
					if got := q.Push(next); got != (i == 0) {
						t.Errorf("push %d of a burst: got wasEmpty %v, want %v", i, got, i == 0)
					}
					want = append(want, next)
					next++
				}
				if got := q.Len(); got != n {
					t.Errorf("got length %d, want %d", got, n)
				}
				if got := q.PopAll(); !slices.Equal(got, want) {
					t.Errorf("got %v, want %v", got, want)
				}
				if got := q.Len(); got != 0 {
					t.Errorf("got length %d after PopAll, want 0", got)
				}
			}
		})
	}
}

// What is pushed while the consumer works through a batch is of the next one, and
// the batch stays as it is.
func TestPushDuringBatch(t *testing.T) {
	var q MPSC[int]
	q.Push(1)
	q.Push(2)
	batch := q.PopAll()
	for i := range 100 {
		if got := q.Push(10 + i); got != (i == 0) {
			t.Fatalf("push %d: got wasEmpty %v, want %v", i, got, i == 0)
		}
	}
	if want := []int{1, 2}; !slices.Equal(batch, want) {
		t.Errorf("got %v, want %v", batch, want)
	}
	if got := q.PopAll(); len(got) != 100 || got[0] != 10 || got[99] != 109 {
		t.Errorf("got %v, want 10 to 109", got)
	}
}

// The queue does not keep alive what the consumer is done with.
func TestClears(t *testing.T) {
	var q MPSC[*[64]byte]
	gone := make(chan struct{})
	v := new([64]byte)
	runtime.AddCleanup(v, func(struct{}) { close(gone) }, struct{}{})
	q.Push(v)
	v = nil
	q.PopAll()
	q.PopAll()
	for {
		runtime.GC()
		select {
		case <-gone:
			runtime.KeepAlive(&q)
			return
		default:
			runtime.Gosched()
		}
	}
}

func TestBoundedMemory(t *testing.T) {
	var q MPSC[int]
	burst := func(n int) {
		for i := range n {
			q.Push(i)
		}
		q.PopAll()
	}
	burst(100 * retained)
	burst(100 * retained)
	for range 3 {
		burst(1)
	}
	for _, c := range []int{cap(q.in), cap(q.out)} {
		if c > retained {
			t.Errorf("got a capacity of %d after a burst, want at most %d", c, retained)
		}
	}
}

// At work nothing is allocated, whatever the size of the batches.
func TestNoAllocations(t *testing.T) {
	for _, n := range []int{1, 100, 4 * retained} {
		var q MPSC[int]
		turn := func() {
			for i := range n {
				q.Push(i)
			}
			q.PopAll()
		}
		turn()
		turn()
		if got := testing.AllocsPerRun(10, turn); got != 0 {
			t.Errorf("batches of %d: got %v allocations, want 0", n, got)
		}
	}
}

// Nothing is lost or doubled, the elements of each producer keep their order, and
// a consumer that waits until it is woken never misses one.
func TestConcurrent(t *testing.T) {
	const producers, each = 8, 20000
	type elem struct{ from, n int }
	var q MPSC[elem]
	wake := make(chan struct{}, 1)
	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			for n := range each {
				if q.Push(elem{p, n}) {
					select {
					case wake <- struct{}{}:
					default: // a wakeup is on its way already
					}
				}
			}
		})
	}
	var next [producers]int
	for got := 0; got < producers*each; {
		batch := q.PopAll()
		if batch == nil {
			<-wake
			continue
		}
		for _, e := range batch {
			if e.n != next[e.from] {
				t.Fatalf("producer %d: got element %d, want %d", e.from, e.n, next[e.from])
			}
			next[e.from]++
		}
		got += len(batch)
	}
	wg.Wait()
	if got := q.Len(); got != 0 {
		t.Errorf("got length %d at the end, want 0", got)
	}
}

// The cost of an element from push to pop, beside that of a Go channel.
func BenchmarkMPSC(b *testing.B) {
	for _, producers := range []int{1, 4} {
		b.Run(fmt.Sprintf("queue/producers=%d", producers), func(b *testing.B) {
			var q MPSC[func()]
			wake := make(chan struct{}, 1)
			b.ReportAllocs()
			produce(b.N, producers, func() {
				if q.Push(nothing) {
					select {
					case wake <- struct{}{}:
					default:
					}
				}
			})
			for got := 0; got < b.N; {
				batch := q.PopAll()
				if batch == nil {
					<-wake
				}
				for _, f := range batch {
					f()
				}
				got += len(batch)
			}
		})
		b.Run(fmt.Sprintf("channel/producers=%d", producers), func(b *testing.B) {
			c := make(chan func(), 1024)
			b.ReportAllocs()
			produce(b.N, producers, func() { c <- nothing })
			for range b.N {
				(<-c)()
			}
		})
	}
}

// produce calls push n times, from several goroutines.
func produce(n, producers int, push func()) {
	for p := range producers {
		go func() {
			for range n/producers + flag(p < n%producers) {
				push()
			}
		}()
	}
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

func nothing() {}
