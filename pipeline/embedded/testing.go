package embedded

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
)

// TB is the part of testing.TB that this package uses.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
}

// NewTest is [NewConfig] for a test. When the test ends, the channel is finished,
// what was not read is released, and the test fails if a message, an event or an
// error was left that it has not taken, or a Buf or FileRegion that was not released: it
// says where that was allocated and which handlers had it.
//
// What is looked for is what the test's goroutine allocates from this call on, and so do
// all handlers of the channel but those with an Executor of their own. So tests may run in
// parallel ([buffer.CheckOwnLeaks]); one that releases something only in a cleanup
// registers that after this call. It is called on the goroutine of its test.
func NewTest(t TB, cfg Config, handlers ...any) *Channel {
	t.Helper()
	buffer.CheckOwnLeaks(t) // looks last: cleanups are called in reverse order
	ch := NewConfig(cfg, handlers...)
	t.Cleanup(func() {
		t.Helper()
		if err := ch.Finish(); err != nil {
			t.Errorf("error that no handler took: %v", err)
		}
		if left := ch.leftovers(); left != "" {
			t.Errorf("left unread: %s", left)
		}
		ch.ReleaseAll()
	})
	return ch
}

// leftovers lists the types of what was not read.
func (ch *Channel) leftovers() string {
	var all []string
	for _, q := range []struct {
		name string
		msgs []any
	}{{"inbound", ch.in}, {"outbound", ch.out}, {"event", ch.events}} {
		for _, m := range q.msgs {
			all = append(all, fmt.Sprintf("%s %T", q.name, m))
		}
	}
	return strings.Join(all, ", ")
}

// Inbound takes the next message that passed all handlers. It ends the test if there
// is none or if it is not an M.
func Inbound[M any](t TB, ch *Channel) M {
	t.Helper()
	return must[M](t, ch, "inbound message", ch.ReadInbound())
}

// Outbound takes the next message that was flushed at the head. It ends the test if
// there is none or if it is not an M.
func Outbound[M any](t TB, ch *Channel) M {
	t.Helper()
	return must[M](t, ch, "outbound message", ch.ReadOutbound())
}

// Event takes the next user event that no handler took. It ends the test if there is
// none or if it is not an E.
func Event[E any](t TB, ch *Channel) E {
	t.Helper()
	return must[E](t, ch, "event", ch.ReadEvent())
}

func must[M any](t TB, ch *Channel, what string, got any) M {
	t.Helper()
	m, ok := got.(M)
	if ok {
		return m
	}
	why := ""
	if err := ch.CheckError(); err != nil {
		why = fmt.Sprintf("; an error that no handler took: %v", err)
	} else if !ch.Open() {
		why = fmt.Sprintf("; the channel has closed: %v", ch.CloseReason())
	}
	if got == nil {
		t.Fatalf("no %s, want a %v%s", what, reflect.TypeFor[M](), why)
	}
	t.Fatalf("got %s of type %T, want %v%s", what, got, reflect.TypeFor[M](), why)
	return m
}

var _ pipeline.Channel = (*Channel)(nil)
