package pipeline_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// leakT is a test that is checked for leaks.
type leakT struct {
	error    string
	cleanups []func()
}

func (f *leakT) Helper()                   {}
func (f *leakT) Cleanup(c func())          { f.cleanups = append(f.cleanups, c) }
func (f *leakT) Errorf(s string, a ...any) { f.error += fmt.Sprintf(s, a...) }
func (f *leakT) end() {
	for _, c := range f.cleanups {
		c()
	}
}

// passer passes on what it is given, both ways.
type passer struct{ forwarder }

func (*passer) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	c.ForwardWrite(msg, p)
	return nil
}

// keeper keeps what it reads and forgets to release it.
type keeper struct {
	passer
	kept []any
}

func (k *keeper) HandleRead(_ *pipeline.Context, msg any) error {
	k.kept = append(k.kept, msg)
	return nil
}

// The report of a leak names the handlers that the message passed.
func TestLeakNamesHandlers(t *testing.T) {
	tests := []struct {
		name string
		send func(ch *embedded.Channel, b *buffer.Buf)
		want string
	}{
		{"read", func(ch *embedded.Channel, b *buffer.Buf) { ch.WriteInbound(b) }, "passer#0, middle, keeper#0"},
		{"fired in a turn", func(ch *embedded.Channel, b *buffer.Buf) {
			ch.Do(func() { ch.Pipeline().Get("middle").FireRead(b) })
		}, "keeper#0"},
		{"fired from elsewhere", func(ch *embedded.Channel, b *buffer.Buf) {
			ch.Pipeline().Get("middle").FireRead(b)
			ch.Run()
		}, "keeper#0"},
		{"passes all", func(ch *embedded.Channel, b *buffer.Buf) {
			ch.Pipeline().Get("keeper#0").FireRead(b)
			ch.Run()
		}, "tail"},
		{"written", func(ch *embedded.Channel, b *buffer.Buf) { ch.WriteOutbound(b) }, "keeper#0, middle, passer#0, head"},
		{"written with a promise", func(ch *embedded.Channel, b *buffer.Buf) {
			ch.Do(func() { ch.Pipeline().Get("middle").WriteThen(b, func(error) {}) })
		}, "passer#0, head"},
		{"written by a handler", func(ch *embedded.Channel, b *buffer.Buf) {
			c := ch.Pipeline().Get("middle")
			ch.Do(func() { _ = c.Execute(func() { c.Write(b) }) })
		}, "passer#0, head"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := new(leakT)
			buffer.CheckLeaks(f)
			k := new(keeper)
			ch := embedded.New(&passer{})
			if _, err := ch.Pipeline().AddNamed("middle", &passer{}); err != nil {
				t.Fatal(err)
			}
			if err := ch.Pipeline().Add(k); err != nil {
				t.Fatal(err)
			}
			b := buffer.FromString("message")
			tt.send(ch, b)
			ch.Run()
			f.end()
			if want := "given to: " + tt.want + "\n"; !strings.Contains(f.error, want) {
				t.Errorf("got %q, want %q in it", f.error, want)
			}
			for _, m := range k.kept {
				buffer.Release(m)
			}
			if err := ch.Finish(); err != nil {
				t.Errorf("got error %v at the end, want none", err)
			}
			ch.ReleaseAll()
		})
	}
}

// A pipeline that was made when buffers did not want to know tells them nothing, and
// is the pipeline it always was.
func TestNoTouches(t *testing.T) {
	defer buffer.SetLeakLevel(buffer.SetLeakLevel(buffer.LeakSampled))
	k := new(keeper)
	ch := embedded.New(&passer{}, k)
	f := new(leakT)
	buffer.CheckLeaks(f)
	ch.WriteInbound(buffer.FromString("message"))
	f.end()
	if !strings.Contains(f.error, "not released: 1 of") || strings.Contains(f.error, "given to") {
		t.Errorf("got %q, want a Buf that was given to nobody known", f.error)
	}
	buffer.Release(k.kept[0])
	if err := ch.Finish(); err != nil {
		t.Errorf("got error %v at the end, want none", err)
	}
}
