//go:build linux

package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// echo writes back what it reads.
func echo() any {
	return pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error { c.Write(b); return nil })
}

func with(handlers ...any) func(pipeline.Channel) error {
	return func(ch pipeline.Channel) error { return ch.Pipeline().Add(handlers...) }
}

// networks are the stream sockets that every test of behaviour runs over.
var networks = []string{"tcp", "unix"}

func eachNetwork(t *testing.T, f func(t *testing.T, network, addr string)) {
	for _, n := range networks {
		t.Run(n, func(t *testing.T) { f(t, n, anyAddr(t, n)) })
	}
}

func anyAddr(t testing.TB, network string) string {
	if network == "unix" {
		dir, err := os.MkdirTemp("", "runnel")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		return filepath.Join(dir, "s")
	}
	return "127.0.0.1:0"
}

// serve starts srv; it is shut down with the test.
func serve(t testing.TB, srv *Server, network, addr string) pipeline.Channel {
	t.Helper()
	l, err := srv.Listen(context.Background(), network, addr)
	if err != nil {
		t.Fatalf("Listen: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
	return l
}

func dialNet(t testing.TB, l pipeline.Channel) net.Conn {
	t.Helper()
	nc, err := net.Dial(l.LocalAddr().Network(), l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { nc.Close() })
	return nc
}

type closeWriter interface{ CloseWrite() error }

func TestEcho(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network, addr string) {
		for _, size := range []int{1, 64, 4096, 4097, 70000, 5 << 20} {
			t.Run(fmt.Sprint(size), func(t *testing.T) {
				srv := &Server{Init: with(echo())}
				l := serve(t, srv, network, anyAddr(t, network))
				nc := dialNet(t, l)
				want := []byte(letters(size))
				var wg sync.WaitGroup
				wg.Go(func() {
					if _, err := nc.Write(want); err != nil {
						t.Error(err)
					}
					nc.(closeWriter).CloseWrite()
				})
				got, err := io.ReadAll(nc)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("got %d bytes, %v; want %d bytes, nil", len(got), err, len(want))
				}
				wg.Wait()
			})
		}
	})
}

// A peer that sends and does not read is paused; when it reads it gets everything.
func TestPeerThatReadsLate(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network, addr string) {
		paused := make(chan struct{})
		var once sync.Once
		srv := &Server{
			Config: Config{SendBuffer: 128 << 10},
			Init: with(onWritability(func(c *pipeline.Context) error {
				if !c.Channel().Writable() {
					once.Do(func() { close(paused) })
				}
				return nil
			}), echo()),
		}
		l := serve(t, srv, network, addr)
		nc := dialNet(t, l)
		want := []byte(letters(8 << 20))
		var wg sync.WaitGroup
		wg.Go(func() {
			nc.Write(want)
			nc.(closeWriter).CloseWrite()
		})
		await(t, paused, "a channel that is not writable")
		for _, st := range srv.s.open() {
			if pending, limit := st.BytesBeforeWritable(), int64(3<<20); pending > limit {
				t.Errorf("pending: got %d, want at most %d", pending, limit)
			}
		}
		got, err := io.ReadAll(nc)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %d bytes, %v; want %d bytes, nil", len(got), err, len(want))
		}
		wg.Wait()
	})
}

func TestDialAndSendFromAnywhere(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network, addr string) {
		l := serve(t, &Server{Init: with(echo())}, network, addr)
		const goroutines, each = 8, 500
		var got atomic.Int64
		all := make(chan struct{})
		d := &Dialer{Init: with(pipeline.On(func(_ *pipeline.Context, b *buffer.Buf) error {
			defer b.Release()
			if got.Add(int64(b.Len())) == goroutines*each*10 {
				close(all)
			}
			return nil
		}))}
		ch, err := d.Dial(context.Background(), network, l.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		if !ch.Active() || !ch.Open() {
			t.Errorf("after Dial: active %v, open %v", ch.Active(), ch.Open())
		}
		if network == "tcp" && (ch.RemoteAddr().String() != l.LocalAddr().String() || ch.LocalAddr() == nil) {
			t.Errorf("addresses: got %v to %v", ch.LocalAddr(), ch.RemoteAddr())
		}
		var wg sync.WaitGroup
		for range goroutines {
			wg.Go(func() {
				for range each {
					ch.Write(pooled("0123456789"))
				}
			})
		}
		wg.Wait()
		await(t, all, "the echo")
		closed := make(chan error, 1)
		ch.CloseThen(func(err error) { closed <- err })
		if err := await(t, closed, "the close"); err != nil {
			t.Errorf("CloseThen: %v", err)
		}
		await(t, ch.Context().Done(), "the end of the channel's context")
		if !errors.Is(context.Cause(ch.Context()), pipeline.ErrClosed) {
			t.Errorf("cause: got %v, want ErrClosed", context.Cause(ch.Context()))
		}
	})
}

func TestDialErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := l.Addr().String()
	l.Close()
	for _, tt := range []struct {
		name, network, addr string
		want                error
	}{
		{"refused", "tcp", refused, syscall.ECONNREFUSED},
		{"no socket file", "unix", filepath.Join(t.TempDir(), "none"), syscall.ENOENT},
		{"unknown network", "carrier pigeon", "x:1", nil},
		{"no port", "tcp", "127.0.0.1", nil},
		{"bad port", "tcp", "127.0.0.1:99999", nil},
		{"no such host", "tcp", "no-such-host.invalid:1", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ch, err := (&Dialer{Timeout: patience}).Dial(context.Background(), tt.network, tt.addr)
			var op *OpError
			if ch != nil || !errors.As(err, &op) || op.Op != "connect" {
				t.Fatalf("got %v, %v, want a connect *OpError", ch, err)
			}
			if tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	t.Run("Init fails", func(t *testing.T) {
		boom := errors.New("boom")
		_, err := (&Dialer{Init: func(pipeline.Channel) error { return boom }}).Dial(context.Background(), "tcp", refused)
		if !errors.Is(err, boom) {
			t.Errorf("got %v, want %v", err, boom)
		}
	})
	t.Run("bad config", func(t *testing.T) {
		if _, err := (&Dialer{Config: Config{HighWater: -1}}).Dial(context.Background(), "tcp", refused); err == nil {
			t.Error("got nil, want an error")
		}
	})
}

// full returns the address of a listener that answers no more connections: its
// queue is full.
func full(t *testing.T) string {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return addr
}

func TestConnectEnds(t *testing.T) {
	addr := full(t)
	t.Run("timeout", func(t *testing.T) {
		_, err := (&Dialer{Timeout: 1}).Dial(context.Background(), "tcp", addr)
		if !errors.Is(err, ErrConnectTimeout) {
			t.Errorf("got %v, want ErrConnectTimeout", err)
		}
	})
	t.Run("context", func(t *testing.T) {
		boom := errors.New("boom")
		ctx, cancel := context.WithCancelCause(context.Background())
		started := make(chan struct{})
		go func() { <-started; cancel(boom) }()
		_, err := (&Dialer{Init: func(pipeline.Channel) error { close(started); return nil }}).Dial(ctx, "tcp", addr)
		if !errors.Is(err, boom) {
			t.Errorf("got %v, want %v", err, boom)
		}
	})
	t.Run("in a handler", func(t *testing.T) {
		l := serve(t, &Server{}, "tcp", "127.0.0.1:0")
		result := make(chan error, 1)
		d := &Dialer{Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
			(&Dialer{Timeout: time.Millisecond}).DialThen(c, "tcp", addr, func(_ pipeline.Channel, err error) { result <- err })
			return nil
		}))}
		ch, err := d.Dial(context.Background(), "tcp", l.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer ch.Close()
		if err := await(t, result, "the outcome"); !errors.Is(err, ErrConnectTimeout) {
			t.Errorf("got %v, want ErrConnectTimeout", err)
		}
	})
	t.Run("the asking channel closes", func(t *testing.T) {
		l := serve(t, &Server{}, "tcp", "127.0.0.1:0")
		result := make(chan error, 1)
		d := &Dialer{Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
			(&Dialer{}).DialThen(c, "tcp", addr, func(_ pipeline.Channel, err error) { result <- err })
			return c.Execute(c.Close)
		}))}
		if _, err := d.Dial(context.Background(), "tcp", l.LocalAddr().String()); err != nil {
			t.Fatal(err)
		}
		if err := await(t, result, "the outcome"); !errors.Is(err, pipeline.ErrClosed) {
			t.Errorf("got %v, want ErrClosed", err)
		}
	})
}

// The addresses of a name are tried in turn, on one channel.
func TestSeveralAddresses(t *testing.T) {
	l := serve(t, &Server{Init: with(echo())}, "tcp4", "127.0.0.1:0")
	port := l.LocalAddr().(*net.TCPAddr).Port
	refused := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9).To4(), Port: port}
	good := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1).To4(), Port: port}
	inits := 0
	d := &Dialer{Init: func(pipeline.Channel) error { inits++; return nil }}
	g, err := eventloop.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := d.Config.check()
	s := newStream(&cfg, g.Next(), nil, -1)
	result := make(chan error, 1)
	s.Loop().Execute(func() {
		d.connect(s, []net.Addr{refused, refused, good}, time.Time{}, func(err error) { result <- err })
	})
	if err := await(t, result, "the connection"); err != nil {
		t.Fatal(err)
	}
	if inits != 1 || s.RemoteAddr().String() != good.String() {
		t.Errorf("got %d Inits and %v, want 1 and %v", inits, s.RemoteAddr(), good)
	}
	s.Close()
	await(t, s.Closed().Done(), "the close")
}

// A proxy: a handler dials, on its own loop, and couples the two channels.
func TestProxy(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network, addr string) {
		target := serve(t, &Server{Init: with(echo())}, network, addr)
		dial := func(c *pipeline.Context) error {
			c.Channel().SetAutoRead(false)
			d := &Dialer{Init: func(ch pipeline.Channel) error {
				if ch.Loop() != c.Loop() {
					t.Error("the dialed channel is on another loop")
				}
				return ch.Pipeline().Add(
					pipeline.On(func(_ *pipeline.Context, b *buffer.Buf) error { c.Write(b); return nil }),
					pipeline.OnInactive(func(*pipeline.Context) error { c.Close(); return nil }))
			}}
			d.DialThen(c, network, target.LocalAddr().String(), func(ch pipeline.Channel, err error) {
				if err != nil {
					t.Error(err)
					c.Close()
					return
				}
				c.Pipeline().Add(
					pipeline.On(func(_ *pipeline.Context, b *buffer.Buf) error { ch.Write(b); return nil }),
					pipeline.OnEvent(func(*pipeline.Context, pipeline.InputShutdown) error { ch.CloseWrite(); return nil }))
				c.Channel().SetAutoRead(true)
			})
			return nil
		}
		proxy := serve(t, &Server{Config: Config{HalfClose: true}, Init: with(pipeline.OnActive(dial))}, network, anyAddr(t, network))
		nc := dialNet(t, proxy)
		want := []byte(letters(3 << 20))
		var wg sync.WaitGroup
		wg.Go(func() { nc.Write(want); nc.(closeWriter).CloseWrite() })
		got, err := io.ReadAll(nc)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %d bytes, %v; want %d bytes, nil", len(got), err, len(want))
		}
		wg.Wait()
	})
}

func TestListenErrors(t *testing.T) {
	l := serve(t, &Server{}, "tcp", "127.0.0.1:0")
	for _, tt := range []struct {
		name, network, addr string
		want                error
	}{
		{"in use", "tcp", l.LocalAddr().String(), syscall.EADDRINUSE},
		{"not ours", "tcp", "192.0.2.1:0", syscall.EADDRNOTAVAIL},
		{"unknown network", "ip", "127.0.0.1:0", nil},
		{"no port", "tcp", "127.0.0.1", nil},
		{"no directory", "unix", "/no/such/directory/s", syscall.ENOENT},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := (&Server{}).Listen(context.Background(), tt.network, tt.addr)
			var op *OpError
			if !errors.As(err, &op) || op.Op != "listen" || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %v, want a listen *OpError of %v", err, tt.want)
			}
		})
	}
	if err := (&Server{Config: Config{LowWater: -1}}).ListenAndServe(context.Background(), "tcp", "127.0.0.1:0"); err == nil {
		t.Error("bad config: got nil, want an error")
	}
}

func TestListenEverywhere(t *testing.T) {
	l := serve(t, &Server{Init: with(echo())}, "tcp", ":0")
	_, port, _ := net.SplitHostPort(l.LocalAddr().String())
	nc, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}

func TestListenAndServe(t *testing.T) {
	active := make(chan pipeline.Channel, 1)
	var listening pipeline.Channel
	ready := make(chan struct{})
	srv := &Server{
		Init: with(echo(), pipeline.OnActive(func(c *pipeline.Context) error { active <- c.Channel(); return nil })),
		ListenerInit: with(pipeline.OnActive(func(c *pipeline.Context) error {
			listening = c.Channel()
			close(ready)
			return nil
		})),
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- srv.ListenAndServe(ctx, "tcp", "127.0.0.1:0") }()
	await(t, ready, "the listener")
	nc := dialNet(t, listening)
	ch := await(t, active, "a channel")
	if ch.Parent() != listening || ch.LocalAddr().String() != nc.RemoteAddr().String() || ch.RemoteAddr().String() != nc.LocalAddr().String() {
		t.Errorf("got parent %v, %v to %v; want %v, %v to %v", ch.Parent(), ch.LocalAddr(), ch.RemoteAddr(),
			listening, nc.RemoteAddr(), nc.LocalAddr())
	}
	roundTrip(t, nc) // else the drain waits a second for the first words
	cancel()
	if err := await(t, served, "the end of the server"); err != nil {
		t.Errorf("got %v, want nil", err)
	}
	if _, err := nc.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read from the drained server: got %v, want EOF", err)
	}
	if _, err := srv.Listen(context.Background(), "tcp", "127.0.0.1:0"); err != ErrServerClosed {
		t.Errorf("Listen after the end: got %v, want ErrServerClosed", err)
	}
}

// A drain lets what was written leave, tells the handlers, and gives up those who
// do not take it.
func TestDrain(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network, addr string) {
		content := letters(2 << 20)
		var told atomic.Int32
		written, ended := make(chan struct{}, 2), make(chan struct{}, 2)
		srv := &Server{
			Config: Config{SendBuffer: 4 << 10},
			Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
				c.Write(pooled(content))
				written <- struct{}{}
				return nil
			}), pipeline.OnEvent(func(*pipeline.Context, Draining) error { told.Add(1); return nil }),
				pipeline.OnInactive(func(*pipeline.Context) error { ended <- struct{}{}; return nil })),
		}
		l := serve(t, srv, network, addr)
		reader, stuck := dialNet(t, l), dialNet(t, l)
		for range 2 {
			await(t, written, "the answer")
		}
		read := make(chan error, 1)
		drained := make(chan error, 1)
		ctx, cancel := context.WithCancel(context.Background())
		go func() { drained <- srv.Shutdown(ctx) }()
		go func() {
			got, err := io.ReadAll(reader)
			if err == nil && string(got) != content {
				err = fmt.Errorf("got %d bytes, want %d", len(got), len(content))
			}
			reader.Close()
			read <- err
		}()
		if err := await(t, read, "the whole answer"); err != nil {
			t.Errorf("reader: %v", err)
		}
		await(t, ended, "the end of the reader's channel")
		cancel()
		if err := await(t, drained, "the end of the drain"); !errors.Is(err, ErrDrainTimeout) || !strings.Contains(err.Error(), "1 channels") {
			t.Errorf("Shutdown: got %v, want ErrDrainTimeout of 1 channel", err)
		}
		if _, err := io.Copy(io.Discard, stuck); network == "tcp" && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("stuck peer: got %v, want a reset", err)
		}
		if told.Load() != 2 {
			t.Errorf("channels told: got %d, want 2", told.Load())
		}
	})
}

// A server that closes after its answer, with the peer's request not all read, does
// not lose the answer to a reset.
func TestAnswerSurvivesUnreadInput(t *testing.T) {
	answer := letters(4 << 20)
	srv := &Server{
		Config: Config{ManualRead: true},
		Init: with(pipeline.OnActive(func(c *pipeline.Context) error { c.Read(); return nil }),
			pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
				b.Release()
				c.Write(answer)
				c.Close()
				return nil
			})),
	}
	l := serve(t, srv, "tcp", "127.0.0.1:0")
	nc := dialNet(t, l)
	if _, err := nc.Write([]byte(letters(500000))); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(nc)
	if err != nil || string(got) != answer {
		t.Errorf("got %d bytes, %v; want %d bytes, nil", len(got), err, len(answer))
	}
}

func TestPeerResets(t *testing.T) {
	reason := make(chan error, 1)
	srv := &Server{Init: with(echo(), pipeline.OnInactive(func(c *pipeline.Context) error {
		reason <- c.Channel().CloseReason()
		return nil
	}))}
	l := serve(t, srv, "tcp", "127.0.0.1:0")
	nc := dialNet(t, l)
	nc.Write([]byte("x"))
	io.ReadFull(nc, make([]byte, 1))
	nc.(*net.TCPConn).SetLinger(0)
	nc.Close()
	if err := await(t, reason, "the end"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("close reason: got %v, want ECONNRESET", err)
	}
}

// A handler of the listener may refuse a connection.
func TestListenerHandlerRefuses(t *testing.T) {
	inits := atomic.Int32{}
	srv := &Server{
		Init: func(pipeline.Channel) error { inits.Add(1); return nil },
		ListenerInit: with(pipeline.On(func(c *pipeline.Context, ch pipeline.Channel) error {
			ch.Close()
			return nil
		})),
	}
	l := serve(t, srv, "tcp", "127.0.0.1:0")
	nc := dialNet(t, l)
	if _, err := nc.Read(make([]byte, 1)); err == nil {
		t.Error("read: got nil, want the end")
	}
	if inits.Load() != 0 {
		t.Error("Init was called for a refused connection")
	}
}

func TestInitFailureCloses(t *testing.T) {
	for _, init := range []func(pipeline.Channel) error{
		func(pipeline.Channel) error { return errors.New("no") },
		func(pipeline.Channel) error { panic("no") },
	} {
		l := serve(t, &Server{Init: init}, "tcp", "127.0.0.1:0")
		nc := dialNet(t, l)
		if _, err := nc.Read(make([]byte, 1)); err == nil {
			t.Error("read: got nil, want the end")
		}
	}
}

func TestWaitingOnALoopIsRefused(t *testing.T) {
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 3)
	g.Next().Execute(func() {
		_, err := (&Dialer{}).Dial(context.Background(), "tcp", "127.0.0.1:1")
		errs <- err
		_, err = (&Server{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
		errs <- err
		errs <- (&Server{}).Shutdown(context.Background())
	})
	for range 3 {
		if err := await(t, errs, "an answer"); err != eventloop.ErrWouldDeadlock {
			t.Errorf("got %v, want ErrWouldDeadlock", err)
		}
	}
	if err := g.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// A server on a group of its own; the group ends with channels still open.
func TestGroupEndsUnderServer(t *testing.T) {
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 2})
	if err != nil {
		t.Fatal(err)
	}
	reasons := make(chan error, 4)
	srv := &Server{Group: g, Init: with(pipeline.OnInactive(func(c *pipeline.Context) error {
		reasons <- c.Channel().CloseReason()
		return nil
	}), echo())}
	l := serve(t, srv, "tcp", "127.0.0.1:0")
	for range 4 {
		nc := dialNet(t, l)
		nc.Write([]byte("x"))
		io.ReadFull(nc, make([]byte, 1))
	}
	if err := g.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if err := await(t, reasons, "the end of a channel"); !errors.Is(err, ErrLoopEnded) {
			t.Errorf("close reason: got %v, want ErrLoopEnded", err)
		}
	}
	if _, err := (&Dialer{Group: g}).Dial(context.Background(), "tcp", l.LocalAddr().String()); err == nil {
		t.Error("Dial on a group that has ended: got nil, want an error")
	}
}

// Goexit in a handler, as t.FailNow does, ends its channel and nothing else.
func TestGoexitInHandler(t *testing.T) {
	reason := make(chan error, 1)
	srv := &Server{Init: with(
		pipeline.OnInactive(func(c *pipeline.Context) error { reason <- c.Channel().CloseReason(); return nil }),
		pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
			if b.Uint8At(0) == '!' {
				b.Release()
				goexit()
			}
			c.Write(b)
			return nil
		}))}
	l := serve(t, srv, "tcp", "127.0.0.1:0")
	other := dialNet(t, l)
	nc := dialNet(t, l)
	nc.Write([]byte("!"))
	if err := await(t, reason, "the end of the channel"); !errors.Is(err, pipeline.ErrGoexit) {
		t.Errorf("close reason: got %v, want ErrGoexit", err)
	}
	other.Write([]byte("x"))
	if _, err := io.ReadFull(other, make([]byte, 1)); err != nil {
		t.Errorf("another channel: %v", err)
	}
}

// A message through three handlers, written back and flushed, allocates nothing.
func TestEchoAllocatesNothing(t *testing.T) {
	defer buffer.SetLeakLevel(buffer.SetLeakLevel(buffer.LeakSampled)) // at level all buffers are not used again
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	pass := func() any {
		return pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error { c.FireRead(b); return nil })
	}
	for _, size := range []int{64, 16 << 10} {
		l := serve(t, &Server{Init: with(pass(), pass(), echo())}, "tcp", "127.0.0.1:0")
		nc := dialNet(t, l).(*net.TCPConn)
		p := bytes.Repeat([]byte{'x'}, size)
		round := func() {
			if _, err := nc.Write(p); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(nc, p); err != nil {
				t.Fatal(err)
			}
		}
		nc.SetDeadline(time.Time{})
		for range 100 {
			round()
		}
		if n := testing.AllocsPerRun(200, round); n != 0 {
			t.Errorf("%d bytes: got %v allocations a message, want 0", size, n)
		}
	}
}

func TestListenFamilies(t *testing.T) {
	if !haveIPv6() {
		t.Skip("the system has no IPv6")
	}
	for _, tt := range []struct {
		network string
		v4, v6  bool
	}{{"tcp", true, true}, {"tcp4", true, false}, {"tcp6", false, true}} {
		l := serve(t, &Server{}, tt.network, ":0")
		_, port, _ := net.SplitHostPort(l.LocalAddr().String())
		for host, want := range map[string]bool{"127.0.0.1": tt.v4, "::1": tt.v6} {
			nc, err := net.Dial("tcp", net.JoinHostPort(host, port))
			if (err == nil) != want {
				t.Errorf("%s: connecting to %s: %v, want success %v", tt.network, host, err, want)
			}
			if err == nil {
				nc.Close()
			}
		}
	}
}
