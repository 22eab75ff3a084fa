package pipeline_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
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

	// end ends the channel's loop by shutting its group down, and an embedded channel's
	// by Finish, which closes the channel first.
	end    func() error
	group  *eventloop.Group  // nil for an embedded channel
	server *transport.Server // of an accepted channel
}

// kinds are the channels that keep the contract.
var kinds = []kind{
	{name: "embedded"},
	{name: "tcp", network: "tcp"},
	{name: "tcp dialed", network: "tcp", dialed: true},
	{name: "unix", network: "unix"},
	{name: "unix dialed", network: "unix", dialed: true},
}

// kind is a kind of channel.
type kind struct {
	name    string
	network string // "" if there are no sockets
	dialed  bool

	manualFlush bool // what is written leaves only when it is flushed
}

// open makes a channel of the kind. The error is that of its Init.
func (k kind) open(t *testing.T, init func(pipeline.Channel) error) (*rig, error) {
	t.Helper()
	switch {
	case k.network == "":
		return openEmbedded(t, k, init)
	case k.dialed:
		return openDialed(t, k, init)
	}
	return openAccepted(t, k, init)
}

// with opens a channel with handlers, which must succeed.
func (k kind) with(t *testing.T, handlers ...any) *rig {
	t.Helper()
	r, err := k.open(t, func(ch pipeline.Channel) error { return ch.Pipeline().Add(handlers...) })
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// addr is where a listener of the kind may listen.
func (k kind) addr(t *testing.T) string {
	if k.network == "unix" {
		return shortPath(t)
	}
	return "127.0.0.1:0"
}

// overSockets runs a test over the kinds that have sockets: over those of which which says
// yes, or over all if it is nil.
func overSockets(t *testing.T, which func(kind) bool, test func(t *testing.T, k kind)) {
	t.Helper()
	for _, k := range kinds {
		if k.network != "" && (which == nil || which(k)) {
			t.Run(k.name, func(t *testing.T) { test(t, k) })
		}
	}
}

func dialed(k kind) bool   { return k.dialed }
func accepted(k kind) bool { return !k.dialed }

// overAll runs a test over all kinds of channels.
func overAll(t *testing.T, test func(t *testing.T, open func(handlers ...any) *rig)) {
	t.Helper()
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			test(t, func(handlers ...any) *rig { t.Helper(); return k.with(t, handlers...) })
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

func openEmbedded(t *testing.T, k kind, init func(pipeline.Channel) error) (r *rig, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = v.(error)
		}
	}()
	ch := embedded.NewConfig(embedded.Config{ManualFlush: k.manualFlush}, initializer(init))
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
		end:    ch.Finish,
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
		if err := shutdown(g); err != nil {
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
		end:    func() error { return shutdown(ch.Loop().Group()) },
		group:  ch.Loop().Group(),
	}
}

// shutdown ends a group, within patience.
func shutdown(g *eventloop.Group) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return g.Shutdown(ctx)
}

func openAccepted(t *testing.T, k kind, init func(pipeline.Channel) error) (*rig, error) {
	t.Helper()
	g := newGroup(t)
	type opened struct {
		ch  pipeline.Channel
		err error
	}
	accepted := make(chan opened, 1)
	cfg := transport.Config{ManualFlush: k.manualFlush}
	srv := &transport.Server{Group: g, Config: cfg, Init: func(ch pipeline.Channel) (err error) {
		err = errBroken
		defer func() { accepted <- opened{ch, err} }()
		return init(ch)
	}}
	l, err := srv.Listen(context.Background(), k.network, k.addr(t))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial(k.network, l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	o := await(t, "the accepted channel", accepted)
	r := overConn(t, o.ch, conn)
	r.server = srv
	r.do(func() {}) // it is active, and has asked for a read
	return r, o.err
}

// errBroken is the error of an Init that does not return, where it has no other.
var errBroken = errors.New("no return from Init")

func openDialed(t *testing.T, k kind, init func(pipeline.Channel) error) (*rig, error) {
	t.Helper()
	g := newGroup(t)
	l, err := net.Listen(k.network, k.addr(t))
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
	d := &transport.Dialer{Group: g, Init: init, Config: transport.Config{ManualFlush: k.manualFlush}}
	ch, err := d.Dial(context.Background(), k.network, l.Addr().String())
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

// shortPath returns the path of a Unix socket: those are 107 bytes at most, and a test's own
// directory has its name in it.
func shortPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "runnel")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}
