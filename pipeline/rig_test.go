package pipeline_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
	"github.com/runnel-io/runnel/transport"
)

// rig is a channel of some kind, with the test at its other end.
type rig struct {
	t  testing.TB
	ch pipeline.Channel
	// do calls f on the channel's loop, and returns when all that follows from it at
	// once has happened.
	do   func(f func())
	say  func(s string)       // the other end sends
	hear func(n int) string   // what it has got: n bytes, fewer at the end
	full func() (message any) // a message that does not leave as long as nobody hears

	hangUp func() // the other end closes
}

// kinds are the channels that keep the contract.
var kinds = []struct {
	name string
	open func(t *testing.T, init func(pipeline.Channel) error) (*rig, error)
}{
	{"embedded", openEmbedded},
	{"tcp", func(t *testing.T, init func(pipeline.Channel) error) (*rig, error) {
		return openAccepted(t, "tcp", "127.0.0.1:0", init)
	}},
	{"tcp dialed", openDialed},
	{"unix", func(t *testing.T, init func(pipeline.Channel) error) (*rig, error) {
		return openAccepted(t, "unix", filepath.Join(t.TempDir(), "s"), init)
	}},
}

// overAll runs a test over all kinds of channels.
func overAll(t *testing.T, test func(t *testing.T, open func(handlers ...any) *rig)) {
	t.Helper()
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			test(t, func(handlers ...any) *rig {
				t.Helper()
				r, err := k.open(t, func(ch pipeline.Channel) error { return ch.Pipeline().Add(handlers...) })
				if err != nil {
					t.Fatal(err)
				}
				return r
			})
		})
	}
}

// traced opens a channel with tracers of the given names and drops what they have
// noted so far.
func traced(open func(...any) *rig, names ...string) (*rig, *trace, []*tracer) {
	log := new(trace)
	var hs []*tracer
	var all []any
	for _, n := range names {
		hs = append(hs, &tracer{name: n, log: log})
		all = append(all, hs[len(hs)-1])
	}
	r := open(all...)
	log.take()
	return r, log, hs
}

func openEmbedded(t *testing.T, init func(pipeline.Channel) error) (r *rig, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = v.(error)
		}
	}()
	ch := embedded.New(initializer(init))
	t.Cleanup(func() {
		_ = ch.Finish()
		ch.ReleaseAll()
	})
	return &rig{
		t: t, ch: ch,
		do:  func(f func()) { ch.Do(f); ch.Run() },
		say: func(s string) { ch.WriteInbound(buffer.FromString(s)) },
		hear: func(n int) string {
			ch.Hold(false)
			var got bytes.Buffer
			for m := ch.ReadOutbound(); m != nil; m = ch.ReadOutbound() {
				switch m := m.(type) {
				case string:
					got.WriteString(m)
				case *buffer.Buf:
					got.WriteString(m.ReadString(m.Len()))
					m.Release()
				}
			}
			return got.String()
		},
		full:   func() any { ch.Hold(true); return "x" },
		hangUp: func() {},
	}, nil
}

// initializer is an Init as the handler that an embedded channel is made with. It
// takes itself out again.
type initializer func(pipeline.Channel) error

func (h initializer) HandleAdded(c *pipeline.Context) error {
	if err := h(c.Channel()); err != nil {
		return err
	}
	return c.Remove()
}

// newGroup starts a group of one loop that ends with the test, and its channels with
// it.
func newGroup(t *testing.T) *eventloop.Group {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("sockets need Linux")
	}
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := g.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
	return g
}

// overConn is the rig of a channel whose other end is conn.
func overConn(t *testing.T, ch pipeline.Channel, conn net.Conn) *rig {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Error(err)
	}
	big := string(make([]byte, 16<<20)) // more than the kernel keeps
	return &rig{
		t: t, ch: ch,
		do: func(f func()) {
			onLoop(t, ch.Loop(), f)
			for range 4 { // what a turn's end writes leaves at the next one's
				onLoop(t, ch.Loop(), func() {})
			}
		},
		say: func(s string) {
			if _, err := io.WriteString(conn, s); err != nil {
				t.Error(err)
			}
		},
		hear: func(n int) string {
			got := make([]byte, n)
			n, err := io.ReadFull(conn, got)
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Error(err)
			}
			return string(got[:n])
		},
		full:   func() any { return big },
		hangUp: func() { _ = conn.Close() },
	}
}

func openAccepted(t *testing.T, network, addr string, init func(pipeline.Channel) error) (*rig, error) {
	t.Helper()
	g := newGroup(t)
	type opened struct {
		ch  pipeline.Channel
		err error
	}
	accepted := make(chan opened, 1)
	srv := &transport.Server{Group: g, Init: func(ch pipeline.Channel) error {
		err := init(ch)
		accepted <- opened{ch, err}
		return err
	}}
	l, err := srv.Listen(context.Background(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial(network, l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	o := await(t, "the accepted channel", accepted)
	r := overConn(t, o.ch, conn)
	r.do(func() {}) // it is active, and has asked for a read
	return r, o.err
}

func openDialed(t *testing.T, init func(pipeline.Channel) error) (*rig, error) {
	t.Helper()
	g := newGroup(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conns := make(chan net.Conn, 1)
	go func() {
		if conn, err := l.Accept(); err == nil {
			conns <- conn
		}
	}()
	ch, err := (&transport.Dialer{Group: g, Init: init}).Dial(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		var pe *transport.OpError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, err
	}
	conn := await(t, "the other end", conns)
	t.Cleanup(func() { conn.Close() })
	r := overConn(t, ch, conn)
	r.do(func() {})
	return r, nil
}
