package pipeline_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

func TestAttr(t *testing.T) {
	a, same := pipeline.NewAttr[string]("name"), pipeline.NewAttr[string]("name")
	failure := pipeline.NewAttr[error]("failure")
	ch, other := newChannel(t, embedded.Config{}), newChannel(t, embedded.Config{})

	if v, ok := a.Get(ch); ok || v != "" {
		t.Errorf("Get of nothing: got %q, %v", v, ok)
	}
	if pipeline.HasExtras(ch) {
		t.Error("asking for an attribute made something")
	}
	a.Set(ch, "first")
	same.Set(ch, "the other key's")
	if v, ok := a.Get(ch); v != "first" || !ok {
		t.Errorf("Get: got %q, %v; want first", v, ok)
	}
	if v, set := a.SetIfAbsent(ch, "second"); v != "first" || set {
		t.Errorf("SetIfAbsent of a value: got %q, %v; want first, false", v, set)
	}
	if v, set := a.SetIfAbsent(other, "second"); v != "second" || !set {
		t.Errorf("SetIfAbsent of none: got %q, %v; want second, true", v, set)
	}
	a.Set(ch, "third")
	if v, ok := a.Delete(ch); v != "third" || !ok {
		t.Errorf("Delete: got %q, %v; want third, true", v, ok)
	}
	if v, ok := a.Delete(ch); v != "" || ok {
		t.Errorf("Delete of none: got %q, %v", v, ok)
	}
	if v, ok := same.Get(ch); v != "the other key's" || !ok {
		t.Errorf("a key of the same name: got %q, %v; want its own value", v, ok)
	}
	if v, ok := a.Get(other); v != "second" || !ok {
		t.Errorf("another channel: got %q, %v; want its own value", v, ok)
	}
	failure.Set(ch, nil)
	if err, ok := failure.Get(ch); err != nil || !ok {
		t.Errorf("a nil value: got %v, %v; want nil, true", err, ok)
	}
	if a.String() != "name" {
		t.Errorf("String: got %q, want name", a)
	}
	ch.Do(ch.Close)
	if v, ok := same.Get(ch); v != "the other key's" || !ok {
		t.Errorf("after the close: got %q, %v; want the value", v, ok)
	}
}

// Of many that set or delete at once, one succeeds. It is the race detector, too,
// that judges this test.
func TestAttr_AnyGoroutine(t *testing.T) {
	ch := newChannel(t, embedded.Config{})
	keys := make([]*pipeline.Attr[int], 8)
	for i := range keys {
		keys[i] = pipeline.NewAttr[int](fmt.Sprint("key ", i))
	}
	var set, deleted atomic.Int64
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				k := keys[(i*7+g)%len(keys)]
				if _, ok := k.SetIfAbsent(ch, i); ok {
					set.Add(1)
				}
				k.Get(ch)
				if _, ok := k.Delete(ch); ok {
					deleted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	left := int64(0)
	for _, k := range keys {
		if _, ok := k.Get(ch); ok {
			left++
		}
	}
	if set.Load() != deleted.Load()+left {
		t.Errorf("got %d set, %d deleted, %d left: some were lost or doubled", set.Load(), deleted.Load(), left)
	}
}

func TestAttr_Allocations(t *testing.T) {
	ch := newChannel(t, embedded.Config{})
	a := pipeline.NewAttr[*int]("a")
	a.Set(ch, new(int))
	checkAllocs(t, ch.Loop(), "Get", 0, func() { a.Get(ch) })
}

type user struct{ Name string }

// userKey is a package's own: no other key is the same.
var userKey = pipeline.NewAttr[user]("user")

// A handler in front finds out who it is; those behind ask.
func ExampleAttr() {
	ch := embedded.New(
		pipeline.On(func(c *pipeline.Context, name string) error {
			if _, known := userKey.SetIfAbsent(c.Channel(), user{name}); !known {
				c.FireRead(name)
			}
			return nil
		}),
		pipeline.On(func(c *pipeline.Context, line string) error {
			u, _ := userKey.Get(c.Channel())
			c.Write(u.Name + " says " + line)
			return nil
		}),
	)
	ch.WriteInbound("ann", "hello")
	fmt.Println(ch.ReadOutbound())
	_ = ch.Finish()
	// Output: ann says hello
}
