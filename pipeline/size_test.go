package pipeline

import (
	"math/bits"
	"reflect"
	"testing"

	"github.com/runnel-io/runnel/eventloop"
)

// What each handler of each of perhaps a million silent connections costs: the runtime
// has three in a row in 288 bytes.
func TestContextSize(t *testing.T) {
	if got := reflect.TypeFor[Context]().Size(); bits.UintSize == 64 && got > 88 {
		t.Errorf("size of a Context: got %d, want at most 88", got)
	}
}

type (
	ownRead     struct{ _ int }
	ownWrite    struct{ _ int }
	ownMapRead  struct{ _ int }
	ownMapWrite struct{ _ int }
	ownEvent    struct{ _ int }
)

func (*ownRead) HandleRead(*Context, any) error                       { return nil }
func (*ownWrite) HandleWrite(*Context, any, *eventloop.Promise) error { return nil }
func (*ownMapRead) MapRead(_ *Context, msg any) (any, error)          { return msg, nil }
func (*ownMapWrite) MapWrite(_ *Context, msg any) (any, error)        { return msg, nil }
func (*ownEvent) HandleEvent(*Context, any) error                     { return nil }

// A context keeps its handler in what it calls for it.
func TestContextKeepsHandler(t *testing.T) {
	for _, h := range []any{
		new(ownRead), new(ownWrite), new(ownMapRead), new(ownMapWrite), new(ownEvent),
		&struct {
			*ownRead
			*ownWrite
		}{},
		&struct {
			*ownMapRead
			*ownMapWrite
		}{},
		&struct {
			*ownEvent
			*ownMapWrite
		}{},
	} {
		for _, touches := range []bool{false, true} {
			c := &Context{p: &Pipeline{touches: touches}, typ: typeOf(h)}
			if c.setHandler(h); c.own() != h || c.Handler() != h {
				t.Errorf("%T, touched %v: got %T", h, touches, c.own())
			}
			if takes := c.reader != nil; c.typ.mask&maskRead != 0 && !takes {
				t.Errorf("%T, touched %v: nothing to call for a read", h, touches)
			}
			if takes := c.writer != nil; takes != (c.typ.mask&maskWrite != 0) {
				t.Errorf("%T, touched %v: something to call for a write: %v", h, touches, takes)
			}
		}
	}
}
