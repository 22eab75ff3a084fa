package transport

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

func noLocalNames(t *testing.T) {
	t.Helper()
	localNames.Range(func(name, _ any) bool {
		t.Errorf("the name %v is still taken", name)
		return true
	})
}

// The network "local" serves like any other.
func TestLocalServer(t *testing.T) {
	defer noLocalNames(t)
	srv := &Server{Init: with(echo())}
	for _, name := range []string{"", "service"} {
		l, err := srv.Listen(context.Background(), "local", name)
		if err != nil {
			t.Fatal(err)
		}
		addr := l.LocalAddr()
		if addr.Network() != "local" || name != "" && addr.String() != name || addr.String() == "" {
			t.Errorf("got the address %v of %q", addr, name)
		}
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				h := newCollector()
				ch, err := h.dialer(Config{}).Dial(context.Background(), "local", addr.String())
				if err != nil {
					t.Error(err)
					return
				}
				if ch.RemoteAddr() != addr || ch.LocalAddr() == nil {
					t.Errorf("got %v - %v, want the listener's address", ch.LocalAddr(), ch.RemoteAddr())
				}
				want := strings.Repeat(fmt.Sprint(i), 200<<10)
				if err := ch.Send(context.Background(), want); err != nil {
					t.Error(err)
				}
				if got := await(t, h.read, "the echo"); got != want {
					t.Errorf("got %d bytes, want %d", len(got), len(want))
				}
				closeAndWait(t, ch)
			})
		}
		wg.Wait()
	}
	shutDown(t, srv)
}

func TestLocalServerErrors(t *testing.T) {
	defer noLocalNames(t)
	ctx := context.Background()
	var op *OpError
	if _, err := (&Dialer{}).Dial(ctx, "local", "nobody"); !errors.Is(err, syscall.ECONNREFUSED) || !errors.As(err, &op) || op.Op != "connect" {
		t.Errorf("nobody there: got %v, want ECONNREFUSED", err)
	}
	srv, other := &Server{}, &Server{}
	l, err := srv.Listen(ctx, "local", "name")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Listen(ctx, "local", "name"); !errors.Is(err, syscall.EADDRINUSE) || !errors.As(err, &op) || op.Op != "listen" {
		t.Errorf("a name in use: got %v, want EADDRINUSE", err)
	}
	l.Close()
	await(t, l.Closed().Done(), "the end of the listener")
	if _, err := other.Listen(ctx, "local", "name"); err != nil {
		t.Errorf("a name that is free again: got %v, want nil", err)
	}
	shutDown(t, other)
	shutDown(t, srv)
	if _, err := srv.Listen(ctx, "local", "name"); !errors.Is(err, ErrServerClosed) {
		t.Errorf("after Shutdown: got %v, want ErrServerClosed", err)
	}
	failing := &Server{ListenerInit: func(pipeline.Channel) error { return errors.New("no") }}
	if _, err := failing.Listen(ctx, "local", "name"); err == nil {
		t.Error("a ListenerInit that fails: got nil, want an error")
	}
	shutDown(t, failing)

	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	ended := &Server{Group: g}
	if _, err := ended.Listen(ctx, "local", "name"); !errors.Is(err, eventloop.ErrLoopClosed) {
		t.Errorf("a group that has ended: got %v, want ErrLoopClosed", err)
	}
	shutDown(t, ended)
}

// Who waits to be accepted is connected; there may be Backlog of them, and the end of
// the listener is theirs.
func TestLocalBacklog(t *testing.T) {
	defer noLocalNames(t)
	ctx := context.Background()
	accepted := make(chan pipeline.Channel, 10)
	srv := &Server{
		Backlog:      2,
		Init:         func(ch pipeline.Channel) error { accepted <- ch; return nil },
		ListenerInit: func(l pipeline.Channel) error { l.SetAutoRead(false); return nil },
	}
	l, err := srv.Listen(ctx, "local", "name")
	if err != nil {
		t.Fatal(err)
	}
	var waiting []pipeline.Channel
	for range 2 {
		ch, err := (&Dialer{}).Dial(ctx, "local", "name")
		if err != nil {
			t.Fatal(err)
		}
		ch.Write("early")
		waiting = append(waiting, ch)
	}
	if _, err := (&Dialer{}).Dial(ctx, "local", "name"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a full queue: got %v, want ECONNREFUSED", err)
	}
	l.Read()
	ch := await(t, accepted, "the first one")
	if ch.Parent() != l {
		t.Errorf("got the parent %v, want the listener", ch.Parent())
	}
	if len(accepted) != 0 {
		t.Error("accepted without a request")
	}
	third, err := (&Dialer{}).Dial(ctx, "local", "name")
	if err != nil {
		t.Errorf("a place is free: got %v, want nil", err)
	}
	shutDown(t, srv)
	for _, ch := range append(waiting, third) {
		await(t, ch.Closed().Done(), "the end of a channel")
	}
	if !errors.Is(third.CloseReason(), syscall.ECONNRESET) {
		t.Errorf("got %v, want ECONNRESET for who was not accepted", third.CloseReason())
	}
}

// At the limit of connections who comes waits to be accepted.
func TestLocalMaxConns(t *testing.T) {
	defer noLocalNames(t)
	ctx := context.Background()
	accepted := make(chan pipeline.Channel, 10)
	srv := &Server{MaxConns: 1, Init: func(ch pipeline.Channel) error { accepted <- ch; return nil }}
	if _, err := srv.Listen(ctx, "local", "name"); err != nil {
		t.Fatal(err)
	}
	var before pipeline.Channel
	for range 3 {
		ch, err := (&Dialer{}).Dial(ctx, "local", "name")
		if err != nil {
			t.Fatal(err)
		}
		if before != nil {
			if len(accepted) != 0 {
				t.Error("accepted over the limit")
			}
			closeAndWait(t, before)
		}
		await(t, accepted, "the accepted channel")
		before = ch
	}
	shutDown(t, srv)
}

// A drain ends channels that are idle, and resets at its end those that are not.
func TestLocalDrain(t *testing.T) {
	defer noLocalNames(t)
	draining, busy := make(chan struct{}), make(chan struct{})
	srv := &Server{Init: with(onEvent(func(_ *pipeline.Context, ev any) error {
		if _, ok := ev.(Draining); ok {
			close(draining)
		}
		return nil
	}), pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
		b.Release()
		for range 100 {
			c.Write(strings.Repeat("x", 8<<10)) // the peer does not read
		}
		close(busy)
		return nil
	}))}
	if _, err := srv.Listen(context.Background(), "local", "name"); err != nil {
		t.Fatal(err)
	}
	ch, err := (&Dialer{Config: Config{ManualRead: true}}).Dial(context.Background(), "local", "name")
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Send(context.Background(), "go"); err != nil {
		t.Fatal(err)
	}
	await(t, busy, "the message")
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- srv.Shutdown(ctx) }()
	await(t, draining, "Draining")
	cancel()
	if err := await(t, done, "the end of the drain"); !errors.Is(err, ErrDrainTimeout) || !strings.Contains(err.Error(), "1 channel") {
		t.Errorf("got %v, want ErrDrainTimeout of 1 channel", err)
	}
	await(t, ch.Closed().Done(), "the end of the channel")
}

// A handler dials on its own loop, and its end is that of the attempt or of nothing.
func TestLocalDialThen(t *testing.T) {
	defer noLocalNames(t)
	srv := &Server{Init: with(echo())}
	if _, err := srv.Listen(context.Background(), "local", "name"); err != nil {
		t.Fatal(err)
	}
	type outcome struct {
		ch  pipeline.Channel
		err error
	}
	var c *pipeline.Context
	front, err := (&Dialer{Init: with(&contextOf{func(x *pipeline.Context) { c = x }})}).Dial(context.Background(), "local", "name")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		want error
	}{{"name", nil}, {"nobody", syscall.ECONNREFUSED}} {
		got := make(chan outcome, 1)
		if err := front.Loop().Execute(func() {
			(&Dialer{}).DialThen(c, "local", tt.name, func(ch pipeline.Channel, err error) {
				if !c.Loop().InLoop() {
					t.Error("called elsewhere than on the loop")
				}
				got <- outcome{ch, err}
			})
		}); err != nil {
			t.Fatal(err)
		}
		o := await(t, got, "the outcome")
		if tt.want != nil {
			if !errors.Is(o.err, tt.want) {
				t.Errorf("got %v, want %v", o.err, tt.want)
			}
			continue
		}
		if o.err != nil || !o.ch.Active() || o.ch.Loop() != front.Loop() {
			t.Errorf("got %v, %v; want an active channel on the same loop", o.ch, o.err)
		}
		closeAndWait(t, o.ch)
	}
	closeAndWait(t, front)
	shutDown(t, srv)
}

// The end of a group under a server is that of all its channels.
func TestLocalGroupEnds(t *testing.T) {
	defer noLocalNames(t)
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 2})
	if err != nil {
		t.Fatal(err)
	}
	srv := &Server{Group: g}
	l, err := srv.Listen(context.Background(), "local", "name")
	if err != nil {
		t.Fatal(err)
	}
	var all []pipeline.Channel
	for range 10 {
		ch, err := (&Dialer{}).Dial(context.Background(), "local", "name")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ch)
	}
	if err := g.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, ch := range append(all, l) {
		await(t, ch.Closed().Done(), "the end of a channel")
	}
	shutDown(t, srv)
}

// Servers and dialers that come and go at the same time leave nothing.
func TestLocalComeAndGo(t *testing.T) {
	defer noLocalNames(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				srv := &Server{Init: with(echo())}
				_, err := srv.Listen(context.Background(), "local", "name")
				if err != nil && !errors.Is(err, syscall.EADDRINUSE) {
					t.Errorf("Listen: %v", err)
				}
				shutDown(t, srv)
			}
		})
		wg.Go(func() {
			for range 200 {
				ch, err := (&Dialer{}).Dial(context.Background(), "local", "name")
				if err != nil {
					var op *OpError
					if !errors.As(err, &op) {
						t.Errorf("Dial: %v", err)
					}
					continue
				}
				ch.Write("hello")
				closeAndWait(t, ch)
			}
		})
	}
	wg.Wait()
}
