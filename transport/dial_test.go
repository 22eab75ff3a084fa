//go:build linux

package transport

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

func TestAddressTime(t *testing.T) {
	tests := []struct {
		left time.Duration
		n    int
		want time.Duration
	}{
		{30 * time.Second, 3, 10 * time.Second},
		{10 * time.Second, 1, 10 * time.Second},
		{5 * time.Second, 4, 2 * time.Second},
		{time.Second, 4, time.Second},
		{0, 2, 0},
		{-time.Second, 2, -time.Second / 2},
	}
	for _, tt := range tests {
		if got := addressTime(tt.left, tt.n); got != tt.want {
			t.Errorf("%v for %d addresses: got %v, want %v", tt.left, tt.n, got, tt.want)
		}
	}
}

// dialRig is a channel that connects, by real sockets, on a loop of virtual time.
type dialRig struct {
	*stream
	m      *eventloop.Manual
	result []error
}

func newDialRig(t *testing.T, d *Dialer, deadline time.Duration, addrs ...string) *dialRig {
	t.Helper()
	cfg, err := d.Config.check()
	if err != nil {
		t.Fatal(err)
	}
	r := &dialRig{m: eventloop.NewManual()}
	t.Cleanup(func() {
		wantNoTimers(t, r.m, r.CloseIO)
		r.m.Close()
	})
	r.m.Turn() // which tells the loop the time
	r.stream = newStream(&cfg, r.m.Loop(), nil, -1)
	var list []net.Addr
	for _, a := range addrs {
		network := "tcp"
		if a[0] == '/' {
			network = "unix"
		}
		list = append(list, literal(network, a)...)
	}
	r.m.Enter(func() {
		d.connect(r.stream, list, r.Loop().Now().Add(deadline), func(err error) { r.result = append(r.result, err) })
	})
	return r
}

// ended has the connect under way find its outcome, which the kernel knows already.
func (r *dialRig) ended() {
	r.m.Ready(int(r.fd.fd), eventloop.EventWrite)
	r.m.RunUntilIdle()
}

// An address that does not answer takes its part of the time, and no more.
func TestAddressThatDoesNotAnswer(t *testing.T) {
	l := serve(t, &Server{}, "tcp", "127.0.0.1:0")
	silent := full(t)
	r := newDialRig(t, &Dialer{}, 30*time.Second, silent, silent, l.LocalAddr().String())
	for i, d := range []time.Duration{10 * time.Second, 10 * time.Second} {
		r.m.Advance(d - 1)
		if got := r.RemoteAddr().String(); got != silent || len(r.rare.dial.addrs) != 2-i {
			t.Fatalf("just before its time is over: got %s, %d addresses left; want %s, %d", got, len(r.rare.dial.addrs), silent, 2-i)
		}
		r.m.Advance(1)
	}
	r.ended()
	if len(r.result) != 1 || r.result[0] != nil || r.RemoteAddr().String() != l.LocalAddr().String() {
		t.Errorf("got %v, connected to %v; want nil, %v", r.result, r.RemoteAddr(), l.LocalAddr())
	}

	// The last one has what is left, and when all have failed the first is to blame.
	r = newDialRig(t, &Dialer{}, 30*time.Second, silent, silent)
	r.m.Advance(time.Hour)
	if len(r.result) != 0 {
		t.Errorf("got %v: the last address was bounded by somebody else than who has dialed", r.result)
	}
	r.m.Enter(func() { r.Abort(pipeline.CloseNow, errors.New("over")) })
	r.m.RunUntilIdle()
	if len(r.result) != 1 || r.result[0] == nil {
		t.Errorf("got %v, want one error", r.result)
	}
	_, refused, _ := net.SplitHostPort(l.LocalAddr().String())
	r = newDialRig(t, &Dialer{}, 3*time.Second, silent, "127.0.0.77:"+refused)
	r.m.Advance(2 * time.Second)
	r.ended()
	if len(r.result) != 1 || !errors.Is(r.result[0], ErrConnectTimeout) {
		t.Errorf("got %v, want the time-out of the first address", r.result)
	}
}

// A Unix socket whose listener has as many waiting as it may is tried again until there
// is room, or the time is over.
func TestUnixListenerWithoutRoom(t *testing.T) {
	addr := anyAddr(t, "unix")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: addr}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	waiting, err := net.Dial("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()

	r := newDialRig(t, &Dialer{}, time.Minute, addr)
	r.m.Enter(func() { r.Read(); r.SetAutoRead(false); r.SetAutoRead(true) }) // which must not wake it
	r.m.Advance(time.Second)
	if len(r.result) != 0 || r.fd.fd >= 0 {
		t.Fatalf("without room: got %v and descriptor %d, want no outcome and none", r.result, r.fd.fd)
	}
	given := newDialRig(t, &Dialer{}, time.Minute, addr)
	given.m.Enter(func() { given.Abort(pipeline.CloseNow, errors.New("over")) })
	given.m.Advance(time.Second)
	if len(given.result) != 1 || given.result[0] == nil {
		t.Errorf("given up: got %v, want one error", given.result)
	}
	c, _, err := syscall.Accept4(fd, syscall.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(c)
	r.m.Advance(connectRetry)
	if len(r.result) != 1 || r.result[0] != nil || !r.Active() {
		t.Errorf("with room: got %v, active %v; want nil, true", r.result, r.Active())
	}
}

// A Unix socket that comes from a path can be tried again, and leaves no file behind,
// however it ends.
func TestUnixDialFromPath(t *testing.T) {
	exists := func(path string) bool {
		_, err := os.Lstat(path)
		return err == nil
	}
	addr := anyAddr(t, "unix")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: addr}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	waiting, err := net.Dial("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	local := addr + ".client"
	d := &Dialer{LocalAddr: &net.UnixAddr{Name: local, Net: "unix"}}

	r := newDialRig(t, d, time.Minute, addr)
	r.m.Advance(time.Second)
	if len(r.result) != 0 {
		t.Fatalf("without room: got %v, want no outcome", r.result)
	}
	c, _, err := syscall.Accept4(fd, syscall.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(c)
	r.m.Advance(connectRetry)
	if len(r.result) != 1 || r.result[0] != nil || r.LocalAddr().String() != local || !exists(local) {
		t.Errorf("with room: got %v from %v, want a connection from %s", r.result, r.LocalAddr(), local)
	}

	// A name that is taken is not ours to remove.
	taken := newDialRig(t, d, time.Minute, addr)
	if len(taken.result) != 1 || !errors.Is(taken.result[0], syscall.EADDRINUSE) || !exists(local) {
		t.Errorf("from a name that is taken: got %v, file %v; want EADDRINUSE and the file", taken.result, exists(local))
	}
	r.m.Enter(r.Reset)
	if exists(local) {
		t.Error("the file is there after the end of the channel")
	}

	given := newDialRig(t, d, time.Minute, addr) // there is no room again
	given.m.Enter(func() { given.Abort(pipeline.CloseNow, errors.New("over")) })
	refused := newDialRig(t, d, time.Minute, addr+".nobody")
	if len(refused.result) != 1 || !errors.Is(refused.result[0], syscall.ENOENT) || exists(local) {
		t.Errorf("to nobody: got %v, file %v; want ENOENT and no file", refused.result, exists(local))
	}
}

// freePort returns a TCP port of 127.0.0.1 that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// A socket that the system has connected to itself is no connection; who asks for that
// gets it.
func TestSelfConnect(t *testing.T) {
	port := freePort(t)
	addr := "127.0.0.1:" + strconv.Itoa(port)
	d := &Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}}
	for _, asked := range []bool{true, false} {
		r := newDialRig(t, d, time.Minute, addr)
		if !asked {
			r.m.Enter(func() { r.rare.dial.local = nil }) // as if the system had chosen it
		}
		r.ended()
		if asked {
			if len(r.result) != 1 || r.result[0] != nil {
				t.Errorf("asked for: got %v, want nil", r.result)
			}
			r.m.Enter(r.Reset)
			r.m.RunUntilIdle()
			continue
		}
		if len(r.result) == 0 {
			r.ended() // of the second try, which nobody answers
		}
		if len(r.result) != 1 || !errors.Is(r.result[0], syscall.ECONNREFUSED) {
			t.Errorf("not asked for: got %v, want ECONNREFUSED", r.result)
		}
	}
	c := &connecting{}
	a := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}
	for i := range maxSelfConnects + 1 {
		again := len(c.addrs)
		if !c.self(a, a) {
			t.Fatal("not recognized")
		}
		if got, want := len(c.addrs) > again, i < maxSelfConnects; got != want {
			t.Errorf("time %d: got another try %v, want %v", i+1, got, want)
		}
	}
	if c.self(a, &net.TCPAddr{IP: a.IP, Port: 2}) || c.self(a, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2), Port: 1}) ||
		c.self(&net.UnixAddr{}, &net.UnixAddr{}) {
		t.Error("another address was taken for our own")
	}
}

func TestDialFrom(t *testing.T) {
	peer := make(chan net.Addr, 1)
	l := serve(t, &Server{Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
		peer <- c.Channel().RemoteAddr()
		return nil
	}))}, "tcp", "127.0.0.1:0")
	ch, err := (&Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 5)}}).Dial(context.Background(), "tcp", l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	if a := await(t, peer, "the connection").(*net.TCPAddr); !a.IP.Equal(net.IPv4(127, 0, 0, 5)) || a.String() != ch.LocalAddr().String() {
		t.Errorf("got a connection from %v, by a channel at %v; want 127.0.0.5", a, ch.LocalAddr())
	}
	if _, err := (&Dialer{LocalAddr: &net.UnixAddr{Name: "@x", Net: "unix"}}).Dial(context.Background(), "tcp", l.LocalAddr().String()); err == nil {
		t.Error("from a Unix socket to TCP: got nil, want an error")
	}
}

// A look-up does not wait for what else the channel has offloaded.
func TestDialThenPassesOffloads(t *testing.T) {
	l := serve(t, &Server{}, "tcp", "127.0.0.1:0")
	port := l.LocalAddr().(*net.TCPAddr).Port
	release := make(chan struct{})
	result := make(chan error, 1)
	ch, err := (&Dialer{Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
		c.Offload(func(context.Context) (any, error) { <-release; return nil, nil }, func(any, error) {})
		(&Dialer{}).DialThen(c, "tcp4", fmt.Sprintf("localhost:%d", port), func(ch pipeline.Channel, err error) {
			if err == nil {
				ch.Close()
			}
			result <- err
		})
		return nil
	}))}).Dial(context.Background(), "tcp", l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := await(t, result, "the outcome while an Offload is under way"); err != nil {
		t.Error(err)
	}
	close(release)
	ch.Close()
}

// A look-up and a connect together are bounded by Timeout, and by the end of the channel
// that asks.
func TestDialThenEndsDuringLookUp(t *testing.T) {
	l := serve(t, &Server{}, "tcp", "127.0.0.1:0")
	for _, tt := range []struct {
		name    string
		timeout time.Duration
		close   bool
		want    error
	}{
		{"timeout", 1, false, ErrConnectTimeout},
		{"close", patience, true, pipeline.ErrClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			result := make(chan error, 1)
			ch, err := (&Dialer{Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
				if tt.close {
					c.Channel().Reset()
				}
				(&Dialer{Timeout: tt.timeout}).DialThen(c, "tcp", "localhost:1", func(ch pipeline.Channel, err error) { result <- err })
				return nil
			}))}).Dial(context.Background(), "tcp", l.LocalAddr().String())
			if err := await(t, result, "the outcome"); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if err == nil {
				ch.Close()
			}
		})
	}
}

// What ends a look-up does so while it has no worker yet, and there is one outcome: what
// it finds later is nobody's.
func TestDialThenEndsBeforeLookUp(t *testing.T) {
	for _, tt := range []struct {
		name    string
		timeout time.Duration
		close   bool
		want    error
	}{
		{"timeout", time.Millisecond, false, ErrConnectTimeout},
		{"close", patience, true, pipeline.ErrClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGroup(t, eventloop.GroupConfig{Loops: 1, Offload: eventloop.OffloadConfig{Workers: 1}})
			l := serve(t, &Server{Group: g}, "tcp", "127.0.0.1:0")
			port := l.LocalAddr().(*net.TCPAddr).Port
			busy := make(chan struct{})
			release := sync.OnceFunc(func() { close(busy) })
			defer release()
			if err := g.Offload().Submit(func() { <-busy }); err != nil {
				t.Fatal(err)
			}
			result := make(chan error, 2)
			ch, err := (&Dialer{Group: g, Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
				(&Dialer{Timeout: tt.timeout}).DialThen(c, "tcp4", fmt.Sprintf("localhost:%d", port),
					func(_ pipeline.Channel, err error) { result <- err })
				return nil
			}))}).Dial(context.Background(), "tcp", l.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			if tt.close {
				ch.Reset()
			}
			if err := await(t, result, "the outcome while the only worker is busy"); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			ch.Reset()
			await(t, ch.Closed().Done(), "the end of the channel")
			onChannel(t, l, func() {
				if n := l.Loop().Metrics().TimersArmed; n != 0 {
					t.Errorf("timers: got %d armed, want none", n)
				}
			})

			// The look-up, then whatever it may bring to the loop.
			release()
			looked := make(chan struct{})
			if err := g.Offload().Submit(func() { close(looked) }); err != nil {
				t.Fatal(err)
			}
			await(t, looked, "what was offloaded behind the look-up")
			onChannel(t, l, func() {})
			onChannel(t, l, func() {}) // a task of that task
			select {
			case err := <-result:
				t.Errorf("a second outcome: %v", err)
			default:
			}
		})
	}
}

// Whatever comes first, success, refusal, time-out, the end of the context, of the
// channel that asks or of the loops: each dial has one outcome, and nothing is left.
func TestDialStress(t *testing.T) {
	seeds := uint64(30)
	if testing.Short() {
		seeds = 5
	}
	silent := full(t)
	for seed := range seeds {
		if dialStress(t, seed, silent); t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func dialStress(t *testing.T, seed uint64, silent string) {
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 2})
	if err != nil {
		t.Fatal(err)
	}
	srv := &Server{Init: with(echo())}
	l, err := srv.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.LocalAddr().(*net.TCPAddr).Port
	targets := []string{
		l.LocalAddr().String(), l.LocalAddr().String(), silent, fmt.Sprintf("127.0.0.99:%d", port),
		fmt.Sprintf("localhost:%d", port), "localhost:nonsense",
	}
	var all sync.WaitGroup // outcomes
	var kinds [3]atomic.Int32
	left := atomic.Int32{} // outcomes until the loops end, if they do before all have come
	left.Store(int32(rand.New(rand.NewPCG(seed, 99)).IntN(100)))
	enough := make(chan struct{})
	outcome := func(told *atomic.Bool, ch pipeline.Channel, err error) {
		if told.Swap(true) {
			t.Error("a second outcome")
			return
		}
		switch {
		case (ch == nil) == (err == nil):
			t.Errorf("got %v and %v", ch, err)
		case err == nil:
			kinds[0].Add(1)
			ch.Close()
		case errors.Is(err, pipeline.ErrClosed):
			kinds[1].Add(1)
		default:
			kinds[2].Add(1)
		}
		if left.Add(-1) == 0 {
			close(enough)
		}
		all.Done()
	}
	dialer := func(r *rand.Rand) *Dialer {
		d := &Dialer{Group: g, Timeout: time.Duration(1 + r.IntN(3_000_000))}
		if r.IntN(3) == 0 {
			d.Timeout = time.Duration(1 + r.IntN(100_000))
		}
		if r.IntN(8) == 0 {
			d.Init = func(pipeline.Channel) error { return errors.New("no") }
		}
		return d
	}
	var wg sync.WaitGroup
	for id := range 8 {
		r := rand.New(rand.NewPCG(seed, uint64(id)))
		wg.Go(func() {
			for range 10 {
				if r.IntN(2) == 0 {
					ctx, cancel := context.WithCancel(context.Background())
					after := time.Duration(r.IntN(1_000_000))
					stop := time.AfterFunc(after, cancel)
					d, target := dialer(r), targets[r.IntN(len(targets))]
					var told atomic.Bool
					all.Add(1)
					ch, err := d.Dial(ctx, "tcp4", target)
					outcome(&told, ch, err)
					stop.Stop()
					cancel()
					continue
				}
				asks, err := (&Dialer{Group: g}).Dial(context.Background(), "tcp", l.LocalAddr().String())
				if err != nil {
					continue // the loops have ended
				}
				n := 1 + r.IntN(4)
				all.Add(n)
				var dials []func(c *pipeline.Context)
				for range n {
					d, target := dialer(r), targets[r.IntN(len(targets))]
					dials = append(dials, func(c *pipeline.Context) {
						var told atomic.Bool
						d.DialThen(c, "tcp4", target, func(ch pipeline.Channel, err error) { outcome(&told, ch, err) })
					})
				}
				h := any(pipeline.OnError(func(*pipeline.Context, error) {}))
				if r.IntN(3) == 0 {
					h = pipeline.Offloaded{Handler: h}
				}
				c, err := asks.Pipeline().AddNamed("dials", h)
				if err != nil {
					all.Add(-n)
					asks.Close()
					continue
				}
				run := func() {
					for _, dial := range dials {
						dial(c)
					}
				}
				if r.IntN(2) == 0 || c.Execute(run) != nil {
					run() // a Context may be used anywhere
				}
				if r.IntN(4) == 0 {
					asks.Reset()
				} else {
					time.AfterFunc(time.Duration(r.IntN(2_000_000)), asks.Close)
				}
			}
		})
	}
	tried := make(chan struct{})
	go func() { wg.Wait(); close(tried) }()
	select {
	case <-enough:
		if err := g.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	case <-tried:
	}
	await(t, tried, "the end of those who dial")
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	await(t, done, "the outcome of every dial")
	if err := g.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	t.Logf("seed %d: %d connected, %d ended by a close, %d failed", seed, kinds[0].Load(), kinds[1].Load(), kinds[2].Load())
}
