package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// some makes n channels on one Manual.
func some(t *testing.T, n int, handlers ...any) (*eventloop.Manual, []*embedded.Channel) {
	t.Helper()
	man := eventloop.NewManual()
	t.Cleanup(man.Close)
	var chs []*embedded.Channel
	for range n {
		chs = append(chs, newChannel(t, embedded.Config{Manual: man}, handlers...))
	}
	return man, chs
}

func TestChannelGroup_Members(t *testing.T) {
	man, chs := some(t, 3)
	var g pipeline.ChannelGroup
	a, b, c := chs[0], chs[1], chs[2]
	if g.Len() != 0 || g.Contains(a) || g.Remove(a) {
		t.Error("an empty group has a member")
	}
	for _, ch := range chs {
		if !g.Add(ch) {
			t.Errorf("Add(%v): got false", ch)
		}
	}
	if g.Add(a) {
		t.Error("Add of a member: got true")
	}
	if !g.Remove(a) || g.Remove(a) || g.Contains(a) || pipeline.GroupsOf(a) != 0 {
		t.Error("Remove: want true, then false, and no trace of it")
	}
	members := func() (ids []uint64) {
		for ch := range g.All() {
			ids = append(ids, ch.ID())
		}
		slices.Sort(ids)
		return ids
	}
	if got, want := members(), []uint64{b.ID(), c.ID()}; !slices.Equal(got, want) || g.Len() != 2 {
		t.Errorf("members: got %v of %d, want %v", got, g.Len(), want)
	}
	for range g.All() {
		break
	}
	// A member leaves when it has closed, one that is closing is still there.
	b.Hold(true)
	b.WriteOutbound("held")
	b.Do(b.Close)
	if !g.Contains(b) {
		t.Error("a closing channel has left")
	}
	b.Hold(false)
	if g.Contains(b) || g.Len() != 1 {
		t.Error("a closed channel is still there")
	}
	if g.Add(b) {
		t.Error("Add of a closed channel: got true")
	}
	if err := g.Wait(ended()); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait with a member: got %v, want %v", err, context.Canceled)
	}
	man.Enter(func() {
		if err := g.Wait(context.Background()); err != eventloop.ErrWouldDeadlock {
			t.Errorf("Wait on a loop: got %v, want %v", err, eventloop.ErrWouldDeadlock)
		}
	})
	c.Do(c.Reset)
	if err := g.Wait(ended()); err != nil || g.Len() != 0 {
		t.Errorf("Wait without members: got %v", err)
	}
}

// ended returns a context that has ended.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// Each gets the same content with indices of its own; the message is released, also
// where there is nobody, and what a handler does to its own harms nobody.
func TestChannelGroup_Write(t *testing.T) {
	_, chs := some(t, 3, pipeline.OnWrite(func(c *pipeline.Context, b *buffer.Buf, p *eventloop.Promise) error {
		b.Skip(int(c.Channel().ID() % 3))
		c.ForwardWrite(b, p)
		return nil
	}))
	run := func() { chs[0].Run() }
	var g pipeline.ChannelGroup
	for _, on := range []bool{false, true} {
		do := func(f func()) { f(); run() }
		if on {
			do = chs[0].Do
		}
		empty := buffer.FromString("nobody")
		do(func() { new(pipeline.ChannelGroup).Write(empty) })
		for _, ch := range chs {
			g.Add(ch)
		}
		b := buffer.FromString("content")
		do(func() { g.Write(b.Retain()) })
		if b.Refs() != 1 || b.ReaderIndex() != 0 {
			t.Errorf("the message: got %d references, index %d; want the caller's and 0", b.Refs(), b.ReaderIndex())
		}
		b.Release()
		for _, ch := range chs {
			got, _ := ch.ReadOutbound().(*buffer.Buf)
			if want := "content"[ch.ID()%3:]; got == nil || got.ReadString(got.Len()) != want {
				t.Errorf("on the loop %v: %v did not get %q", on, ch, want)
			}
			got.Release()
		}
	}
}

// What can be shared is, what cannot is refused and released.
func TestChannelGroup_Messages(t *testing.T) {
	_, chs := some(t, 3)
	var g pipeline.ChannelGroup
	for _, ch := range chs {
		g.Add(ch)
	}
	f, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	only := &counted{refs: 1}
	for _, msg := range []any{only, buffer.NewFileRegion(f, 0, 10)} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Write(%T): no panic", msg)
				}
			}()
			g.Write(msg)
		}()
	}
	if only.refs != 0 {
		t.Errorf("a message that cannot be shared: got %d references, want 0", only.refs)
	}
	if f.Close() == nil {
		t.Error("the region was not released")
	}
	m := newCounted(0)
	for _, msg := range []any{"text", []byte("bytes"), 7, m} {
		g.Write(msg)
		for _, ch := range chs {
			if got := ch.ReadOutbound(); fmt.Sprint(got) != fmt.Sprint(msg) {
				t.Errorf("got %v, want %v", got, msg)
			}
		}
	}
	if got := m.refs.Load(); got != 3 {
		t.Errorf("a message with Retain: got %d references, want one for each channel", got)
	}
}

// Matches choose; a method of Channel is one.
func TestChannelGroup_Match(t *testing.T) {
	_, chs := some(t, 4)
	var g pipeline.ChannelGroup
	for _, ch := range chs {
		g.Add(ch)
	}
	chs[1].SetWaterMarks(0, 1)
	chs[1].Hold(true)
	chs[1].WriteOutbound("full")
	notFirst := func(ch pipeline.Channel) bool { return ch.ID() != chs[0].ID() }
	got := func() (ids []int) {
		for i, ch := range chs {
			for m := ch.ReadOutbound(); m != nil; m = ch.ReadOutbound() {
				if m == "x" {
					ids = append(ids, i)
				}
			}
		}
		return ids
	}
	for _, tt := range []struct {
		name  string
		match []func(pipeline.Channel) bool
		want  []int
	}{
		{"all", nil, []int{0, 2, 3}}, // 1 is held
		{"one match", []func(pipeline.Channel) bool{notFirst}, []int{2, 3}},
		{"two", []func(pipeline.Channel) bool{notFirst, func(ch pipeline.Channel) bool { return ch.ID() != chs[3].ID() }}, []int{2}},
		{"nobody", []func(pipeline.Channel) bool{func(pipeline.Channel) bool { return false }}, nil},
	} {
		g.Write("x", tt.match...)
		if ids := got(); !slices.Equal(ids, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, ids, tt.want)
		}
	}
	chs[1].Hold(false)
	got()
	chs[1].Hold(true)
	chs[1].WriteOutbound("full")
	g.Write("x", pipeline.Channel.Writable)
	chs[1].Hold(false)
	if ids := got(); !slices.Equal(ids, []int{0, 2, 3}) {
		t.Errorf("writable ones: got %v, want all but 1", ids)
	}
	g.Close(notFirst)
	chs[0].Run()
	if g.Len() != 1 || !g.Contains(chs[0]) {
		t.Errorf("after Close of all but one: got %d members", g.Len())
	}
}

// Flush is for those with ManualFlush.
func TestChannelGroup_Flush(t *testing.T) {
	ch := newChannel(t, embedded.Config{ManualFlush: true})
	var g pipeline.ChannelGroup
	g.Add(ch)
	g.Write("x")
	if got := ch.ReadOutbound(); got != nil {
		t.Errorf("before Flush: got %v", got)
	}
	g.Flush()
	if got := ch.ReadOutbound(); got != "x" {
		t.Errorf("after Flush: got %v, want x", got)
	}
}

// A completion is called once, when all are done, with the errors by channel.
func TestChannelGroup_WriteThen(t *testing.T) {
	_, chs := some(t, 3)
	var g pipeline.ChannelGroup
	var got []map[pipeline.Channel]error
	then := func(failed map[pipeline.Channel]error) { got = append(got, failed) }
	g.WriteThen("x", then)
	if len(got) != 1 || got[0] != nil {
		t.Errorf("nobody: got %v, want nil once, at once", got)
	}
	for _, ch := range chs {
		g.Add(ch)
	}
	chs[0].Hold(true)
	got = nil
	g.WriteThen("x", then)
	chs[0].Run()
	if len(got) != 0 {
		t.Errorf("before the last one: got %v", got)
	}
	chs[0].Hold(false)
	if len(got) != 1 || got[0] != nil {
		t.Errorf("all left: got %v, want nil once", got)
	}
	chs[1].Hold(true)
	chs[2].Hold(true)
	got = nil
	g.WriteThen(buffer.FromString("y"), then)
	chs[1].Run()
	chs[1].Reset()
	chs[1].Run()
	chs[2].Hold(false)
	if len(got) != 1 || len(got[0]) != 1 || !errors.Is(got[0][chs[1]], pipeline.ErrReset) {
		t.Errorf("one failed: got %v, want ErrReset of it", got)
	}
	chs[0].ReleaseAll()
	chs[2].ReleaseAll()
}

// A Goexit in a handler costs one channel and not the broadcast; a panic of a match
// costs nothing but the broadcast.
func TestChannelGroup_Broken(t *testing.T) {
	l := newLoop(t)
	var g pipeline.ChannelGroup
	var all []*memory
	for i := range 4 {
		h := pipeline.OnWrite(func(c *pipeline.Context, b *buffer.Buf, p *eventloop.Promise) error {
			if i%2 == 1 {
				b.Release()
				runtime.Goexit()
			}
			c.ForwardWrite(b, p)
			return nil
		})
		m := newMemory(t, l, h)
		all = append(all, m)
		g.Add(m)
	}
	done := make(chan map[pipeline.Channel]error, 1)
	g.WriteThen(buffer.FromString("x"), func(failed map[pipeline.Channel]error) { done <- failed })
	failed := await(t, "the broadcast", done)
	for i, m := range all {
		if want := i%2 == 1; errors.Is(failed[m], pipeline.ErrGoexit) != want {
			t.Errorf("channel %d: got %v, want a failure %v", i, failed[m], want)
		}
	}
	func() {
		defer func() { _ = recover() }()
		g.Write(buffer.FromString("x"), func(pipeline.Channel) bool { panic("boom") })
	}()
	g.Close()
	for _, m := range all {
		await(t, "the end", m.ended)
	}
	if err := g.Wait(context.Background()); err != nil {
		t.Errorf("Wait: got %v", err)
	}
}

// When a loop has ended its part fails, and nothing is left.
func TestChannelGroup_LoopEnded(t *testing.T) {
	_, chs := some(t, 2)
	gone := newChannel(t, embedded.Config{})
	var g pipeline.ChannelGroup
	g.Add(chs[0])
	g.Add(gone)
	gone.Manual().Close() // with the channel open
	var got map[pipeline.Channel]error
	g.WriteThen(buffer.FromString("x"), func(failed map[pipeline.Channel]error) { got = failed })
	g.Flush()
	chs[0].Run()
	if len(got) != 1 || !errors.Is(got[gone], pipeline.ErrClosed) {
		t.Errorf("got %v, want ErrClosed of the one whose loop has ended", got)
	}
	chs[0].ReleaseAll()
}

// Members come, go, close and are written to from everywhere, over many loops: every
// broadcast is completed once, a member's messages are in order, nothing is left.
func TestChannelGroup_Many(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("loops with a poller need Linux")
	}
	group, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 3})
	if err != nil {
		t.Fatal(err)
	}
	const channels, rounds = 60, 150
	var g pipeline.ChannelGroup
	var all []*memory
	var mu sync.Mutex
	last := make(map[string]int) // "channel writer" to its last number
	for i := range channels {
		m := newMemory(t, group.Loops()[i%3], pipeline.OnWrite(func(c *pipeline.Context, b *buffer.Buf, p *eventloop.Promise) error {
			var writer, n int
			if _, err := fmt.Sscan(b.ReadString(b.Len()), &writer, &n); err != nil {
				t.Error(err)
			}
			key := fmt.Sprint(c.Channel().ID(), " ", writer)
			mu.Lock()
			if n <= last[key] {
				t.Errorf("channel and writer %s: got %d behind %d", key, n, last[key])
			}
			last[key] = n
			mu.Unlock()
			c.ForwardWrite(b, p)
			return nil
		}))
		all = append(all, m)
		if i%2 == 0 {
			g.Add(m)
		}
	}
	var completed sync.WaitGroup
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := range rounds {
				msg := buffer.FromString(fmt.Sprint(w, " ", i+1))
				switch i % 3 {
				case 0:
					g.Write(msg)
				case 1:
					completed.Add(1)
					g.WriteThen(msg, func(map[pipeline.Channel]error) { completed.Done() })
				default:
					g.Write(msg, pipeline.Channel.Open)
				}
				m := all[(i*7+w)%channels]
				if !g.Remove(m) {
					g.Add(m)
				}
				if i%10 == 9 {
					all[(i+w*20)%channels].Reset()
				}
				for range g.All() {
					break
				}
			}
		})
	}
	wg.Wait()
	completed.Wait()
	g.Close()
	if err := g.Wait(context.Background()); err != nil || g.Len() != 0 {
		t.Errorf("Wait: got %v, %d members", err, g.Len())
	}
	for _, m := range all {
		m.Close()
		await(t, "the end", m.ended)
		if n := pipeline.GroupsOf(m); n != 0 {
			t.Errorf("%v is still in %d groups", m, n)
		}
	}
	if err := group.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// room is everybody who is in a chat. A channel leaves it by itself when it closes.
var room pipeline.ChannelGroup

// say passes what one says on to all others who can take it.
func say(c *pipeline.Context, line string) error {
	others := func(ch pipeline.Channel) bool { return ch != c.Channel() }
	room.Write(line, others, pipeline.Channel.Writable)
	return nil
}

func enter(c *pipeline.Context) error {
	room.Write("somebody comes in")
	room.Add(c.Channel())
	return nil
}

func ExampleChannelGroup() {
	ann := embedded.New(pipeline.OnActive(enter), pipeline.On(say))
	bob := embedded.New(pipeline.OnActive(enter), pipeline.On(say))
	bob.WriteInbound("hello")
	fmt.Println(ann.ReadOutbound(), ann.ReadOutbound(), bob.ReadOutbound())
	_ = bob.Finish()
	fmt.Println(room.Len())
	_ = ann.Finish()
	// Output:
	// somebody comes in hello <nil>
	// 1
}

// BenchmarkChannelGroup_Write is a broadcast beside a loop over the channels, each of
// which is posted to.
func BenchmarkChannelGroup_Write(b *testing.B) {
	for _, each := range []bool{false, true} {
		for _, n := range []int{10, 1000, 10000} {
			b.Run(fmt.Sprintf("channels=%d/each=%v", n, each), func(b *testing.B) {
				group, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 2})
				if err != nil {
					b.Fatal(err)
				}
				var g pipeline.ChannelGroup
				var all []*memory
				for range n {
					m := newMemory(b, group.Next())
					all = append(all, m)
					g.Add(m)
				}
				msg := buffer.FromString(strings.Repeat("x", 100))
				barrier := func() {
					for _, l := range group.Loops() {
						onLoop(b, l, func() {})
					}
				}
				b.ReportAllocs()
				for b.Loop() {
					if each {
						for _, m := range all {
							m.Write(msg.Duplicate())
						}
					} else {
						g.Write(msg.Retain())
					}
					barrier()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/channel")
				msg.Release()
				g.Close()
				for _, m := range all {
					await(b, "the end", m.ended)
				}
				_ = group.Shutdown(context.Background())
			})
		}
	}
}
