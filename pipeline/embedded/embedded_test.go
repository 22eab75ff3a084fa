package embedded_test

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// fakeTB notes what a test would have been told.
type fakeTB struct {
	errors, fatals []string
	cleanups       []func()
}

func (f *fakeTB) Helper()                   {}
func (f *fakeTB) Cleanup(c func())          { f.cleanups = append(f.cleanups, c) }
func (f *fakeTB) Errorf(s string, a ...any) { f.errors = append(f.errors, fmt.Sprintf(s, a...)) }
func (f *fakeTB) Fatalf(s string, a ...any) {
	f.fatals = append(f.fatals, fmt.Sprintf(s, a...))
	runtime.Goexit()
}

// run calls f as a test would be and then what it wants at its end.
func (f *fakeTB) run(test func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for _, c := range slices.Backward(f.cleanups) {
				c()
			}
		}()
		test()
	}()
	<-done
}

func TestNewTest(t *testing.T) {
	some := errors.New("some error")
	tests := []struct {
		name   string
		test   func(tb embedded.TB, ch *embedded.Channel)
		errors string
		fatal  string
	}{
		{"all taken", func(tb embedded.TB, ch *embedded.Channel) {
			ch.WriteInbound("in")
			ch.WriteOutbound(7)
			ch.Do(func() { ch.Pipeline().FireEvent(1.5) })
			if in, out, ev := embedded.Inbound[string](tb, ch), embedded.Outbound[int](tb, ch), embedded.Event[float64](tb, ch); in != "in" || out != 7 || ev != 1.5 {
				t.Errorf("got %v, %v, %v", in, out, ev)
			}
		}, "", ""},
		{"leftovers", func(_ embedded.TB, ch *embedded.Channel) {
			ch.WriteInbound(buffer.FromString("in"), "in")
			ch.WriteOutbound(buffer.FromString("out"))
			ch.Do(func() { ch.Pipeline().FireEvent(1.5) })
		}, "left unread: inbound *buffer.Buf, inbound string, outbound *buffer.Buf, event float64", ""},
		{"error", func(_ embedded.TB, ch *embedded.Channel) {
			ch.Do(func() { ch.Pipeline().FireError(some) })
		}, "error that no handler took: some error", ""},
		{"held", func(_ embedded.TB, ch *embedded.Channel) {
			ch.Hold(true)
			ch.WriteOutbound(buffer.FromString("out"))
		}, "left unread: outbound *buffer.Buf", ""},
		{"nothing there", func(tb embedded.TB, ch *embedded.Channel) { embedded.Inbound[string](tb, ch) },
			"", "no inbound message, want a string"},
		{"an error instead", func(tb embedded.TB, ch *embedded.Channel) {
			ch.Do(func() { ch.Pipeline().FireError(some) })
			embedded.Inbound[io.Reader](tb, ch)
		}, "", "no inbound message, want a io.Reader; an error that no handler took: some error"},
		{"a close instead", func(tb embedded.TB, ch *embedded.Channel) {
			ch.Do(ch.Close)
			embedded.Event[int](tb, ch)
		}, "", "no event, want a int; the channel has closed: pipeline: channel closed"},
		{"another type", func(tb embedded.TB, ch *embedded.Channel) {
			ch.WriteOutbound(1)
			embedded.Outbound[string](tb, ch)
		}, "", "got outbound message of type int, want string"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tb := new(fakeTB)
			tb.run(func() { tt.test(tb, embedded.NewTest(tb, embedded.Config{})) })
			if got := strings.Join(tb.errors, "|"); got != tt.errors {
				t.Errorf("errors: got %q, want %q", got, tt.errors)
			}
			if got := strings.Join(tb.fatals, "|"); got != tt.fatal {
				t.Errorf("fatal: got %q, want %q", got, tt.fatal)
			}
		})
	}
}

// keeper keeps the buffers that it reads, and allocates one for each.
type keeper struct {
	kept []*buffer.Buf
	free bool // release them at the end
}

func (k *keeper) HandleRead(c *pipeline.Context, msg any) error {
	k.kept = append(k.kept, msg.(*buffer.Buf), c.Alloc().Alloc(32))
	return nil
}

func (k *keeper) HandleRemoved(*pipeline.Context) {
	if k.free {
		k.release()
	}
}

func (k *keeper) release() {
	for _, b := range k.kept {
		b.Release()
	}
}

// What a handler has forgotten fails the test, wherever it runs, and nothing else does.
func TestNewTestFindsLeaks(t *testing.T) {
	const leak = "not released: 2 of what was allocated meanwhile"
	tests := []struct {
		name string
		wrap func(k *keeper) any
		free bool
		want string
	}{
		{"forgotten", func(k *keeper) any { return k }, false, leak},
		{"forgotten by an offloaded handler", func(k *keeper) any { return pipeline.Offloaded{Handler: k} }, false, leak},
		{"released at the end", func(k *keeper) any { return k }, true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := &keeper{free: tt.free}
			tb := new(fakeTB)
			var parallel *buffer.Buf // of another test
			tb.run(func() {
				ch := embedded.NewTest(tb, embedded.Config{}, tt.wrap(k))
				ch.WriteInbound(buffer.Default().Alloc(64))
				ch.Run()
				done := make(chan struct{})
				go func() { defer close(done); parallel = buffer.Default().Alloc(64) }()
				<-done
			})
			parallel.Release()
			if !tt.free {
				k.release()
			}
			got := strings.Join(tb.errors, "|")
			if head, _, _ := strings.Cut(got, "\n"); head != tt.want {
				t.Errorf("got %q, want %q", head, tt.want)
			}
			if tt.want != "" && !strings.Contains(got, "given to: keeper#0") {
				t.Errorf("got %q: it does not name the handler", got)
			}
		})
	}
}

func TestFinish(t *testing.T) {
	a, b := errors.New("a"), errors.New("b")
	ch := embedded.New()
	ch.Hold(true)
	left := false
	ch.Do(func() {
		ch.WriteThen("held", func(err error) { left = err == nil })
		ch.Pipeline().FireError(a)
		ch.Pipeline().FireError(b)
	})
	if err := ch.Finish(); !errors.Is(err, a) || !errors.Is(err, b) {
		t.Errorf("Finish: got %v, want both errors", err)
	}
	if !left || ch.ReadOutbound() != "held" {
		t.Error("what was held did not leave")
	}
	if !errors.Is(ch.CloseReason(), io.EOF) || ch.Open() || ch.Active() {
		t.Errorf("closed because of %v, want io.EOF", ch.CloseReason())
	}
	if err := ch.Finish(); err != nil {
		t.Errorf("Finish once more: got %v", err)
	}
	msg := buffer.FromString("late")
	ch.WriteInbound(msg)
	ch.WriteOutbound(buffer.FromString("late"))
	ch.Write(buffer.FromString("late"))
	ch.Run()
	ch.Advance(time.Second)
	if in, out := ch.ReadInbound(), ch.ReadOutbound(); in != nil || out != nil {
		t.Errorf("after Finish: got %v, %v, want nothing", in, out)
	}
	if n := ch.ReleaseAll(); n != 0 {
		t.Errorf("ReleaseAll: got %d, want 0", n)
	}
}

// Several channels on one loop.
func TestManual(t *testing.T) {
	man := eventloop.NewManual()
	defer man.Close()
	to := embedded.NewTest(t, embedded.Config{Manual: man})
	from := embedded.NewTest(t, embedded.Config{Manual: man, Parent: to},
		pipeline.On(func(_ *pipeline.Context, s string) error { to.Write(s); return nil }))
	from.WriteInbound("x")
	if got := embedded.Outbound[string](t, to); got != "x" {
		t.Errorf("got %q, want x", got)
	}
	if from.Manual() != man || from.Parent() != pipeline.Channel(to) || from.ID() <= to.ID() {
		t.Error("loop, parent or order of ids is not as it was made")
	}
	if want := fmt.Sprintf("channel %d [embedded - embedded]", to.ID()); to.String() != want || to.LocalAddr().Network() != "embedded" {
		t.Errorf("got %q, want %q", to, want)
	}
}

func TestInactive(t *testing.T) {
	ch := embedded.NewTest(t, embedded.Config{Inactive: true})
	ch.WriteOutbound("early")
	if got := ch.ReadOutbound(); got != nil {
		t.Errorf("before it is active: got %v, want nothing", got)
	}
	ch.Activate()
	if got := ch.ReadOutbound(); got != "early" || ch.ReadRequests() != 1 {
		t.Errorf("once it is active: got %v, want early", got)
	}
	ch.Do(ch.Close)
	ch.Activate()
	if ch.Active() {
		t.Error("a closed channel became active")
	}
	var got error
	p := eventloop.NewPromise(ch.Loop())
	p.Then(func(err error) { got = err })
	ch.Do(func() { ch.Pipeline().Connect(nil, nil, p) })
	if !errors.Is(got, pipeline.ErrClosed) {
		t.Errorf("connect of a closed channel: got %v, want ErrClosed", got)
	}
}

// A flush before the channel is active is one of what was written by then, when it is.
func TestFlushBeforeActive(t *testing.T) {
	ch := embedded.NewTest(t, embedded.Config{Inactive: true, ManualFlush: true})
	done := false
	ch.Do(func() {
		ch.WriteThen("flushed", func(error) { done = true })
		ch.Flush()
		ch.Write("not yet")
	})
	if got := ch.ReadOutbound(); got != nil || done {
		t.Errorf("before it is active: got %v, complete %v; want nothing", got, done)
	}
	ch.Activate()
	if got := ch.ReadOutbound(); got != "flushed" || !done {
		t.Errorf("once it is active: got %v, complete %v; want what was flushed", got, done)
	}
	if got := ch.ReadOutbound(); got != nil {
		t.Errorf("got %v, which was not flushed", got)
	}
	ch.Do(ch.Flush)
	if got := ch.ReadOutbound(); got != "not yet" {
		t.Errorf("got %v, want what was flushed now", got)
	}
}

// The sending side closes behind the queue; reading goes on.
func TestCloseWrite(t *testing.T) {
	ch := embedded.NewTest(t, embedded.Config{})
	ch.Hold(true)
	log := []string{}
	note := func(s string) *eventloop.Promise {
		p := eventloop.NewPromise(ch.Loop())
		p.Then(func(err error) { log = append(log, fmt.Sprint(s, " ", err)) })
		return p
	}
	c, err := ch.Pipeline().AddNamed("last", pipeline.OnActive(func(*pipeline.Context) error { return nil }))
	if err != nil {
		t.Fatal(err)
	}
	ch.Do(func() {
		c.ForwardWrite("x", note("write"))
		c.ForwardCloseWrite(note("close 1"))
		c.ForwardCloseWrite(note("close 2"))
		c.ForwardWrite("late", note("late"))
	})
	ch.Hold(false)
	ch.Do(func() { c.ForwardCloseWrite(note("close 3")) })
	want := []string{"late " + pipeline.ErrOutputShutdown.Error(), "write <nil>", "close 1 <nil>", "close 2 <nil>", "close 3 <nil>"}
	if strings.Join(log, "|") != strings.Join(want, "|") {
		t.Errorf("got %q, want %q", log, want)
	}
	embedded.Event[pipeline.OutputShutdown](t, ch)
	ch.WriteInbound("still read")
	embedded.Inbound[string](t, ch)
	embedded.Outbound[string](t, ch)
	ch.Do(ch.Reset)
	ch.Do(func() { c.ForwardCloseWrite(note("closed")) })
	if got := log[len(log)-1]; got != "closed "+ch.CloseReason().Error() {
		t.Errorf("got %q, want %q", got, ch.CloseReason())
	}
}

// What comes before a channel is active is read when it is, and dropped if it never is.
func TestWriteInboundBeforeActive(t *testing.T) {
	for _, activate := range []bool{true, false} {
		t.Run(fmt.Sprint(activate), func(t *testing.T) {
			var got []string
			note := func(s string) { got = append(got, s) }
			ch := embedded.NewTest(t, embedded.Config{Inactive: true},
				pipeline.OnActive(func(*pipeline.Context) error { note("active"); return nil }),
				pipeline.On(func(_ *pipeline.Context, b *buffer.Buf) error { note("read"); b.Release(); return nil }))
			ch.WriteInbound(buffer.FromString("a"), buffer.FromString("b"))
			if len(got) > 0 {
				t.Errorf("got %q before the channel is active", got)
			}
			want := ""
			if activate {
				ch.Activate()
				want = "[active read read]"
			} else {
				ch.Do(ch.Close)
				want = "[]"
			}
			if s := fmt.Sprint(got); s != want {
				t.Errorf("got %s, want %s", s, want)
			}
		})
	}
}

// The pipeline may be changed from the test's goroutine.
func TestChangesFromTheTest(t *testing.T) {
	ch := embedded.NewTest(t, embedded.Config{})
	if err := ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, n int) error { c.FireRead(-n); return nil })); err != nil {
		t.Fatal(err)
	}
	ch.WriteInbound(1)
	if err := ch.Pipeline().Remove("On[int]#0"); err != nil {
		t.Fatal(err)
	}
	ch.WriteInbound(1)
	if a, b := embedded.Inbound[int](t, ch), embedded.Inbound[int](t, ch); a != -1 || b != 1 {
		t.Errorf("got %d, %d, want -1, 1", a, b)
	}
}

// A decoder of bytes, fed in pieces.
func Example() {
	var line strings.Builder
	ch := embedded.New(pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
		defer b.Release()
		for b.Len() > 0 {
			if r := b.ReadUint8(); r != '\n' {
				line.WriteByte(r)
				continue
			}
			c.FireRead(line.String())
			line.Reset()
		}
		return nil
	}))
	ch.WriteInbound(buffer.FromString("one\ntw"))
	ch.WriteInbound(buffer.FromString("o\n"))
	fmt.Println(ch.ReadInbound(), ch.ReadInbound(), ch.ReadInbound())
	fmt.Println(ch.Finish())
	// Output:
	// one two <nil>
	// <nil>
}

// A peer that does not read: what was flushed is held, the channel becomes
// unwritable, and a close waits.
func ExampleChannel_Hold() {
	ch := embedded.NewConfig(embedded.Config{HighWater: 1000})
	ch.Hold(true)
	ch.WriteOutbound(strings.Repeat("x", 2000))
	fmt.Println(ch.Writable())
	ch.Do(ch.Close)
	fmt.Println(ch.Open())
	ch.Hold(false)
	fmt.Println(ch.Open(), len(ch.ReadOutbound().(string)))
	_ = ch.Finish()
	// Output:
	// false
	// true
	// false 2000
}
