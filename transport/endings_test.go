//go:build linux

package transport

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"weak"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

type onEvent func(c *pipeline.Context, ev any) error

func (f onEvent) HandleEvent(c *pipeline.Context, ev any) error { return f(c, ev) }

type onConnect func(c *pipeline.Context, remote, local net.Addr, p *eventloop.Promise) error

func (f onConnect) HandleConnect(c *pipeline.Context, remote, local net.Addr, p *eventloop.Promise) error {
	return f(c, remote, local, p)
}

type onWrite func(c *pipeline.Context, msg any, p *eventloop.Promise) error

func (f onWrite) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	return f(c, msg, p)
}

type onRegistered func(c *pipeline.Context) error

func (f onRegistered) HandleRegistered(c *pipeline.Context) error { return f(c) }

// A handler that closes when it hears that the sending side is closed does not have
// to wait for the close timeout, and the peer sees no reset.
func TestCloseWhenOutputIsShut(t *testing.T) {
	for _, written := range []string{"", "last words"} {
		r := newRig(t, rigConfig{}, onEvent(func(c *pipeline.Context, ev any) error {
			if _, ok := ev.(pipeline.OutputShutdown); ok {
				c.Close()
			}
			return nil
		}))
		r.do(func() {
			if written != "" {
				r.Write(pooled(written))
			}
			r.CloseWrite()
		})
		r.m.RunUntilIdle()
		r.wantOut(written)
		if r.k.closes != 1 || r.k.resets != 0 {
			t.Errorf("after %q: got %d closes, %d resets, want 1, 0", written, r.k.closes, r.k.resets)
		}
	}
}

// All completions of a channel that closes are told, also when a callback before
// them is ended by runtime.Goexit.
func TestGoexitWhileClosing(t *testing.T) {
	const writes = 5
	for name, prepare := range map[string]func(ch pipeline.Channel){
		"in Closed": func(ch pipeline.Channel) { ch.Closed().Then(func(error) { goexit() }) },
		"in a completion": func(ch pipeline.Channel) {
			ch.WriteThen(pooled("first"), func(error) { goexit() })
		},
	} {
		t.Run(name, func(t *testing.T) {
			var told atomic.Int32
			all := make(chan struct{})
			ended := make(chan struct{})
			l := serve(t, &Server{
				Config: Config{ManualFlush: true},
				Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
					ch := c.Channel()
					return c.Execute(func() {
						prepare(ch)
						for range writes {
							ch.WriteThen(pooled("never"), func(err error) {
								if !errors.Is(err, pipeline.ErrReset) {
									t.Errorf("got %v, want ErrReset", err)
								}
								if told.Add(1) == writes {
									close(all)
								}
							})
						}
						ch.Reset()
					})
				}), pipeline.OnInactive(func(*pipeline.Context) error { close(ended); return nil })),
			}, "tcp", "127.0.0.1:0")
			if nc, err := net.Dial("tcp", l.LocalAddr().String()); err == nil {
				defer nc.Close() // not before: its end would be another reason
			}
			await(t, all, "the completions")
			await(t, ended, "HandleInactive")
		})
	}
}

// A completion that no handler's guard stands around, and that is ended by
// runtime.Goexit when the socket takes more again, does not leave a channel that
// never hears of its socket again: it is closed.
func TestGoexitInBareCompletion(t *testing.T) {
	ended := make(chan struct{})
	l := serve(t, &Server{
		Config: Config{SendBuffer: 128 << 10},
		Init: with(
			onWrite(func(c *pipeline.Context, msg any, _ *eventloop.Promise) error {
				p := eventloop.NewPromise(c.Loop())
				p.Then(func(error) { goexit() })
				c.ForwardWrite(msg, p)
				return nil
			}),
			pipeline.OnActive(func(c *pipeline.Context) error { c.Write(pooled(letters(8 << 20))); return nil }),
			pipeline.OnInactive(func(*pipeline.Context) error { close(ended); return nil }),
		),
	}, "tcp", "127.0.0.1:0")
	nc := dialNet(t, l)
	buf := make([]byte, 1<<20)
	for {
		if _, err := nc.Read(buf); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("channel neither sent nor closed")
			}
			break
		}
	}
	await(t, ended, "HandleInactive")
}

// Goexit in a handler of an accepted channel leaves the listener alone, also on the
// same loop.
func TestGoexitInAcceptedChannel(t *testing.T) {
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	t.Run("", func(t *testing.T) {
		steps := 0
		l := serve(t, &Server{Group: g, Init: func(ch pipeline.Channel) error {
			steps++
			switch steps {
			case 1:
				goexit()
			case 2:
				return ch.Pipeline().Add(onRegistered(func(*pipeline.Context) error { goexit(); return nil }))
			case 3:
				return ch.Pipeline().Add(pipeline.OnActive(func(*pipeline.Context) error { goexit(); return nil }))
			}
			return ch.Pipeline().Add(echo())
		}}, "tcp", "127.0.0.1:0")
		for range 3 {
			nc := dialNet(t, l)
			if n, err := nc.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("got %d, %v; want the end of the connection", n, err)
			}
		}
		if !l.Open() {
			t.Fatalf("listener closed: %v", l.CloseReason())
		}
		nc := dialNet(t, l)
		nc.Write([]byte("x"))
		if n, err := nc.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("got %d, %v, want an echo", n, err)
		}
	})
}

// Whatever becomes of the channel, whoever dials is told, once.
func TestDialIsAlwaysTold(t *testing.T) {
	l := serve(t, &Server{Init: with(echo())}, "tcp", "127.0.0.1:0")
	addr := l.LocalAddr().String()
	exits := func(*pipeline.Context) error { goexit(); return nil }
	for name, init := range map[string]func(pipeline.Channel) error{
		"Init exits":             func(pipeline.Channel) error { goexit(); return nil },
		"HandleRegistered exits": with(onRegistered(exits)),
		"HandleActive exits":     with(pipeline.OnActive(exits)),
		"HandleConnect exits":    with(onConnect(func(*pipeline.Context, net.Addr, net.Addr, *eventloop.Promise) error { goexit(); return nil })),
		"HandleConnect closes and forgets": with(onConnect(func(c *pipeline.Context, _, _ net.Addr, _ *eventloop.Promise) error {
			c.Close()
			return nil
		})),
		"completion exits": with(onConnect(func(c *pipeline.Context, remote, local net.Addr, p *eventloop.Promise) error {
			p.Then(func(error) { goexit() })
			c.ForwardConnect(remote, local, p)
			c.Channel().Reset()
			return nil
		})),
	} {
		t.Run(name, func(t *testing.T) {
			result := make(chan error, 1)
			go func() {
				ch, err := (&Dialer{Init: init, Timeout: -1}).Dial(context.Background(), "tcp", addr)
				if ch != nil {
					ch.Close()
				}
				result <- err
			}()
			if err := await(t, result, "the outcome"); err == nil {
				t.Error("got nil, want an error")
			}
		})
		t.Run("DialThen/"+name, func(t *testing.T) {
			result := make(chan error, 2)
			asking, err := (&Dialer{Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
				// Outside the handler, so that an exit is not one of c's handler.
				(&Dialer{Init: init, Timeout: -1}).DialThen(c, "tcp", addr, func(_ pipeline.Channel, err error) { result <- err })
				return nil
			}))}).Dial(context.Background(), "tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			if err := await(t, result, "the outcome"); err == nil {
				t.Error("got nil, want an error")
			}
			asking.Close()
			await(t, asking.Closed().Done(), "the close")
			if len(result) != 0 {
				t.Error("told twice")
			}
		})
	}
}

// A handler that keeps the connect to itself does not keep Dial from ending with
// its context.
func TestDialEndsThoughConnectIsHeld(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	boom := errors.New("boom")
	d := &Dialer{Init: with(onConnect(func(*pipeline.Context, net.Addr, net.Addr, *eventloop.Promise) error {
		cancel(boom)
		return nil
	}))}
	result := make(chan error, 1)
	go func() {
		_, err := d.Dial(ctx, "tcp", "127.0.0.1:1")
		result <- err
	}()
	err := await(t, result, "the end of Dial")
	var op *OpError
	if !errors.Is(err, boom) || !errors.As(err, &op) || op.Op != "connect" {
		t.Errorf("got %v, want a connect *OpError of %v", err, boom)
	}
}

// A handler that connects to a proxy first, and completes the connect when the proxy
// has answered, makes Dial wait until then.
func TestDialThroughHandshake(t *testing.T) {
	l := serve(t, &Server{Init: with(echo())}, "tcp", "127.0.0.1:0")
	shaken := false
	var held *eventloop.Promise
	d := &Dialer{Init: with(
		onConnect(func(c *pipeline.Context, remote, local net.Addr, p *eventloop.Promise) error {
			held = p
			first := eventloop.NewPromise(c.Loop())
			first.Then(func(err error) {
				if err != nil {
					p.Complete(err)
					return
				}
				c.Write("hello proxy")
			})
			c.ForwardConnect(remote, local, first)
			return nil
		}),
		pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
			b.Release()
			if held != nil {
				shaken = true
				held.Complete(nil)
				held = nil
			}
			return nil
		}),
	)}
	result := make(chan pipeline.Channel, 1)
	go func() {
		ch, err := d.Dial(context.Background(), "tcp", l.LocalAddr().String())
		if err != nil || !shaken {
			t.Errorf("got %v, handshake over: %v", err, shaken)
		}
		result <- ch
	}()
	if ch := await(t, result, "the connection"); ch != nil {
		ch.Close()
		await(t, ch.Closed().Done(), "the close")
	}
}

// A handler on an executor dials: the new channel is of its own channel's loop, and the
// outcome comes where the handler runs.
func TestDialThenFromAnExecutor(t *testing.T) {
	l := serve(t, &Server{}, "tcp", "127.0.0.1:0")
	_, port, err := net.SplitHostPort(l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"127.0.0.1:" + port, "localhost:" + port} {
		type outcome struct {
			ch     pipeline.Channel
			err    error
			onLoop bool
		}
		result := make(chan outcome, 1)
		asking, err := (&Dialer{Init: with(pipeline.Offloaded{Handler: pipeline.OnActive(func(c *pipeline.Context) error {
			(&Dialer{}).DialThen(c, "tcp", addr, func(ch pipeline.Channel, err error) {
				result <- outcome{ch, err, c.Loop().InLoop()}
			})
			return nil
		})})}).Dial(context.Background(), "tcp", l.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		r := await(t, result, "the outcome")
		if r.err != nil || r.onLoop || r.ch.Loop() != asking.Loop() || !r.ch.Active() {
			t.Errorf("%s: got %v, %v, on the loop %v; want a channel of the same loop, on the executor", addr, r.ch, r.err, r.onLoop)
		}
		asking.Close()
		await(t, asking.Closed().Done(), "the close")
		if r.ch != nil {
			r.ch.Close()
			await(t, r.ch.Closed().Done(), "the close of the dialed one")
		}
	}
}

// A channel that dials again and again does not hold on to what it dialed before.
func TestDialThenForgets(t *testing.T) {
	l := serve(t, &Server{}, "tcp", "127.0.0.1:0")
	ended := make(chan weak.Pointer[stream], 1)
	asking, err := (&Dialer{Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
		(&Dialer{}).DialThen(c, "tcp", l.LocalAddr().String(), func(ch pipeline.Channel, err error) {
			if err != nil {
				t.Error(err)
				close(ended)
				return
			}
			w := weak.Make(ch.(*stream))
			ch.CloseThen(func(error) { ended <- w })
		})
		return nil
	}))}).Dial(context.Background(), "tcp", l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	w := await(t, ended, "the end of the dialed channel")
	for i := 0; w.Value() != nil && i < 200; i++ {
		done := make(chan struct{})
		asking.Loop().Execute(func() { close(done) }) // its last tasks are over
		await(t, done, "a task")
		runtime.GC()
		runtime.Gosched()
	}
	if w.Value() != nil {
		t.Error("a closed channel is held by the one that dialed it")
	}
	asking.Close()
	await(t, asking.Closed().Done(), "the close")
}

// Listen returns whatever the handlers of the listener do.
func TestGoexitInListenerInit(t *testing.T) {
	for name, init := range map[string]func(pipeline.Channel) error{
		"Init":             func(pipeline.Channel) error { goexit(); return nil },
		"HandleRegistered": with(onRegistered(func(*pipeline.Context) error { goexit(); return nil })),
		"HandleActive":     with(pipeline.OnActive(func(*pipeline.Context) error { goexit(); return nil })),
	} {
		t.Run(name, func(t *testing.T) {
			result := make(chan error, 1)
			srv := &Server{ListenerInit: init}
			go func() {
				l, err := srv.Listen(context.Background(), "tcp", "127.0.0.1:0")
				if l != nil {
					l.Close()
				}
				result <- err
			}()
			if err := await(t, result, "the end of Listen"); err == nil {
				t.Error("got nil, want an error")
			}
			if err := srv.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A listener whose reading is switched off accepts no more.
func TestListenerStopsReading(t *testing.T) {
	for _, manual := range []bool{false, true} {
		accepted := make(chan pipeline.Channel, 100)
		l := serve(t, &Server{ListenerInit: func(l pipeline.Channel) error {
			if manual {
				l.SetAutoRead(false)
			}
			return l.Pipeline().Add(pipeline.On(func(c *pipeline.Context, ch pipeline.Channel) error {
				c.Channel().SetAutoRead(false)
				accepted <- ch
				c.FireRead(ch)
				return nil
			}))
		}}, "tcp", "127.0.0.1:0")
		if manual {
			done := make(chan struct{})
			for range 5 {
				dialNet(t, l)
			}
			l.Loop().Execute(func() { l.Read(); close(done) })
			await(t, done, "Read")
		} else {
			// While the loop is held up several connections come.
			held := make(chan struct{})
			l.Loop().Execute(func() { <-held })
			for range 5 {
				dialNet(t, l)
			}
			close(held)
		}
		await(t, accepted, "the first connection")
		done := make(chan struct{})
		l.Loop().Execute(func() { l.Loop().Execute(func() { close(done) }) }) // the turn is over
		await(t, done, "a task")
		if n := len(accepted); n != 0 {
			t.Errorf("manual=%v: got %d more connections than asked for", manual, n)
		}
	}
}

// A server that has been shut down leaves no socket file of a Listen that failed.
func TestListenAfterShutdownLeavesNoFile(t *testing.T) {
	var srv Server
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	path := anyAddr(t, "unix")
	if _, err := srv.Listen(context.Background(), "unix", path); err != ErrServerClosed {
		t.Errorf("got %v, want ErrServerClosed", err)
	}
	if left, _ := filepath.Glob(path); left != nil {
		t.Errorf("left: %v", left)
	}
}

// pairOf returns a descriptor that a test may give away.
func pairOf(t *testing.T) int {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	syscall.Close(fds[1])
	return fds[0]
}

// A listener that is closed before it has started does not start.
func TestListenerClosedBeforeStart(t *testing.T) {
	var srv Server
	srv.setUp()
	m := eventloop.NewManual()
	defer m.Close()
	l := newListener(srv.s, m.Loop(), pairOf(t), &net.UnixAddr{Net: "unix"})
	if !srv.s.addListener(l) {
		t.Fatal("not added")
	}
	m.Enter(func() { l.Abort(pipeline.CloseNow, ErrServerClosed) })
	m.RunUntilIdle()
	m.Enter(func() {
		if err := l.start(nil); !errors.Is(err, ErrServerClosed) {
			t.Errorf("got %v, want ErrServerClosed", err)
		}
		if l.reg != nil {
			t.Error("a closed descriptor is registered")
		}
	})
}

// An accepted channel that was closed while it waited for its loop, which then
// ended, is not closed a second time: the descriptor may be somebody else's.
func TestAcceptedChannelClosedBeforeStart(t *testing.T) {
	r := newRig(t, rigConfig{})
	var srv Server
	srv.setUp()
	m := eventloop.NewManual()
	fd := pairOf(t)
	ch := newStream(&srv.s.cfg, m.Loop(), nil, fd)
	ch.srv = srv.s
	srv.s.add(ch)
	m.Enter(func() { ch.Close() })
	m.RunUntilIdle()
	m.Close()
	other := pairOf(t)
	defer syscall.Close(other)
	if other != fd {
		t.Skip("another goroutine has taken the descriptor")
	}
	r.do(func() {
		if err := r.Pipeline().Add(&contextOf{use: func(c *pipeline.Context) {
			if err := srv.s.adopt(c, ch); err == nil {
				t.Error("adopted")
			}
		}}); err != nil {
			t.Error(err)
		}
	})
	if _, err := syscall.GetsockoptInt(other, syscall.SOL_SOCKET, syscall.SO_TYPE); err != nil {
		t.Errorf("a descriptor of somebody else was closed: %v", err)
		other = -1
	}
	if srv.s.streams != 0 {
		t.Errorf("streams: got %d, want 0", srv.s.streams)
	}
}

type contextOf struct{ use func(*pipeline.Context) }

func (h *contextOf) HandleAdded(c *pipeline.Context) error { h.use(c); return nil }

// The count of entries since the last large one does not run over.
func TestManySmallEntries(t *testing.T) {
	o := outbound{spare: new(spareQueues)}
	o.open().behind = math.MaxInt32 - 1
	for range 4 {
		o.addBuf(pooled("x"), nil, buffer.Default())
		o.advance(1)
	}
	if n := o.open().behind; n != 0 {
		t.Errorf("got %d behind the last large one of an empty queue, want 0", n)
	}
}

// A socket with SO_LINGER, which whoever had it before may have set, sleeps in its close:
// the loop goes on meanwhile, and the channel ends when the close has returned.
func TestLingeringCloseIsOffTheLoop(t *testing.T) {
	g := newGroup(t, eventloop.GroupConfig{Loops: 1})
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	nc := must(net.Dial("tcp", l.Addr().String()))
	peer := must(l.Accept())
	defer peer.Close()
	if err := nc.(*net.TCPConn).SetLinger(600); err != nil {
		t.Fatal(err)
	}
	ch := must((&Dialer{Group: g, Init: with(new(sinkErrors))}).Adopt(nc))
	fill(t, ch) // and the peer reads nothing
	onChannel(t, ch, func() { ch.(*stream).Abort(pipeline.CloseNow, io.ErrUnexpectedEOF) })
	onChannel(t, ch, func() {}) // which waits for the close, if that is on the loop
	select {
	case <-ch.Closed().Done():
		t.Error("the channel has ended while its socket is being closed")
	default:
	}
	peer.Close()
	await(t, ch.Closed().Done(), "the end of the channel")
	if err := ch.CloseReason(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("reason: got %v, want %v", err, io.ErrUnexpectedEOF)
	}
}
