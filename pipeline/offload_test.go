package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// The works of a channel run one at a time and in order, whichever handler asks, and so
// come their results. What they share has no lock: the race detector looks on.
func TestOffloadIsOrdered(t *testing.T) {
	l := newLoop(t)
	m := newMemory(t, l, new(sink), pipeline.Offloaded{Handler: new(counter)})
	cs := []*pipeline.Context{m.Pipeline().Get("sink#0"), m.Pipeline().Get("counter#0")}
	const n = 300
	running, begun := 0, 0
	results := make(chan int, n)
	var onLoop, onStrand []int
	for i := range n {
		c := cs[i%2]
		c.Offload(func(context.Context) (any, error) {
			if running++; running != 1 || begun != i || l.InLoop() {
				t.Errorf("work %d began as number %d, %d at once, on the loop %v", i, begun, running, l.InLoop())
			}
			begun++
			running--
			if i%10 == 7 {
				panic("boom") // one at a time all the same
			}
			return i, nil
		}, func(v any, err error) {
			if err != nil {
				v = i
			}
			if c == cs[0] {
				onLoop = append(onLoop, v.(int))
			} else {
				onStrand = append(onStrand, v.(int))
			}
			results <- i
		})
	}
	for range n {
		await(t, "a result", results)
	}
	for i, got := range [][]int{onLoop, onStrand} {
		if len(got) != n/2 || !slices.IsSorted(got) {
			t.Errorf("results of handler %d: got %v, want them in order", i, got)
		}
	}
	m.Close()
	await(t, "the end", m.ended)
}

// While many wait the channel does not read; beyond the maximum the next is refused,
// and nobody is left without an answer.
func TestOffloadIsBounded(t *testing.T) {
	const mark, most = 256, 1 << 16
	ch := newChannel(t, embedded.Config{}, new(sink))
	c := ch.Pipeline().Get("sink#0")
	ch.Run()
	told, refused := 0, 0
	then := func(_ any, err error) {
		told++
		if errors.Is(err, eventloop.ErrOffloadFull) {
			refused++
		} else if err != nil {
			t.Errorf("a result: %v", err)
		}
		if !ch.Loop().InLoop() {
			t.Error("a result off the loop")
		}
	}
	readsWhile := func(n int) int {
		before := readsOf(ch)
		ch.Manual().Enter(func() {
			for range n {
				c.Offload(noWork, then)
			}
			ch.Pipeline().FireReadComplete()
		})
		return readsOf(ch) - before
	}
	if n := readsWhile(mark - 1); n != 1 {
		t.Errorf("below the mark: %d reads asked for, want 1", n)
	}
	if n := readsWhile(1); n != 0 {
		t.Errorf("at the mark: %d reads asked for, want none", n)
	}
	before := readsOf(ch)
	ch.Run()
	if n := readsOf(ch) - before; n != 1 || told != mark {
		t.Errorf("when all is done: %d reads asked for, %d results; want 1, %d", n, told, mark)
	}
	ch.Manual().Enter(func() {
		for range most + 3 {
			c.Offload(noWork, then)
		}
		if refused != 0 {
			t.Error("refused inside the call, want it told later")
		}
	})
	ch.Run()
	if told != mark+most+3 || refused != 3 || !ch.Open() {
		t.Errorf("got %d answers, %d of them refusals, open %v; want %d, 3, true", told, refused, ch.Open(), mark+most+3)
	}
}

// closer is a result that has to be closed.
type closer struct{ open *int }

func (c closer) Close() error { *c.open--; return nil }

// A channel that closes while work is under way or waits: each result is delivered once,
// in order, on the handler's executor, and the work's context has ended.
func TestOffloadOutlivesItsChannel(t *testing.T) {
	for _, offloaded := range []bool{false, true} {
		t.Run(fmt.Sprintf("offloaded=%v", offloaded), func(t *testing.T) {
			var h any = new(sink)
			if offloaded {
				h = pipeline.Offloaded{Handler: h}
			}
			ch := newChannel(t, embedded.Config{}, h)
			c := ch.Pipeline().Get("sink#0")
			opened := 0
			var got []int
			for i := range 10 {
				c.Offload(func(ctx context.Context) (any, error) {
					opened++
					if i == 3 {
						// Work runs between turns: here on the goroutine of the test.
						ch.Manual().Enter(ch.Reset)
						if !errors.Is(context.Cause(ctx), pipeline.ErrReset) {
							t.Errorf("the context ended with %v, want ErrReset", context.Cause(ctx))
						}
					}
					return io.Closer(closer{&opened}), nil
				}, func(v any, err error) {
					got = append(got, i)
					if err := v.(io.Closer).Close(); err != nil {
						t.Error(err)
					}
					if ch.Loop().InLoop() == offloaded {
						t.Errorf("result %d: on the loop %v", i, ch.Loop().InLoop())
					}
				})
			}
			ch.Run()
			if want := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}; !slices.Equal(got, want) || opened != 0 {
				t.Errorf("got results %v with %d left open, want %v and none", got, opened, want)
			}
		})
	}
}

// The end of a group while work is under way and more waits: what was taken is done and
// told, on the loop.
func TestOffloadAndShutdown(t *testing.T) {
	l, end := startLoop(t)
	m := newMemory(t, l, new(sink))
	c := m.Pipeline().Get("sink#0")
	begun, release := make(chan struct{}), make(chan struct{})
	const n = 20
	results := make(chan bool, n)
	for i := range n {
		c.Offload(func(context.Context) (any, error) {
			if i == 0 {
				close(begun)
				<-release
			}
			return nil, nil
		}, func(any, error) { results <- l.InLoop() })
	}
	await(t, "the first work", begun)
	onLoop(t, l, m.Close)
	over := make(chan struct{})
	go func() { end(); close(over) }()
	close(release)
	await(t, "the end of the group", over)
	if len(results) != n {
		t.Fatalf("got %d results by the end, want %d", len(results), n)
	}
	for i := range n {
		if !<-results {
			t.Errorf("result %d: not on the loop", i)
		}
	}
	await(t, "the end of the channel", m.ended)
}
