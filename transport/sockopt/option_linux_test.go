package sockopt_test

import (
	"context"
	"errors"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
	"github.com/runnel-io/runnel/transport"
	"github.com/runnel-io/runnel/transport/sockopt"
)

// check sets an option and reads it back.
func check[T comparable](o sockopt.Option[T], set, want T) func(*testing.T, pipeline.Channel) {
	return func(t *testing.T, ch pipeline.Channel) {
		t.Helper()
		if err := o.Set(ch, set); err != nil {
			t.Fatalf("%v: got %v, want nil", o, err)
		}
		if got, err := o.Get(ch); err != nil || got != want {
			t.Errorf("%v: got %v, %v; want %v", o, got, err, want)
		}
	}
}

// What is set on a live channel is what the kernel has.
func TestSetAndGet(t *testing.T) {
	live := map[string]func(*testing.T, pipeline.Channel){
		"NoDelay off":           check(sockopt.NoDelay, false, false),
		"NoDelay on":            check(sockopt.NoDelay, true, true),
		"Cork on":               check(sockopt.Cork, true, true),
		"Cork off":              check(sockopt.Cork, false, false),
		"KeepAlive":             check(sockopt.KeepAlive, true, true),
		"KeepAliveIdle":         check(sockopt.KeepAliveIdle, 90*time.Second, 90*time.Second),
		"KeepAliveIdle rounded": check(sockopt.KeepAliveIdle, 1500*time.Millisecond, 2*time.Second),
		"KeepAliveInterval":     check(sockopt.KeepAliveInterval, 7*time.Second, 7*time.Second),
		"KeepAliveCount":        check(sockopt.KeepAliveCount, 5, 5),
		"UserTimeout":           check(sockopt.UserTimeout, 2*time.Second, 2*time.Second),
		"UserTimeout rounded":   check(sockopt.UserTimeout, time.Microsecond, time.Millisecond),
		"UnsentLimit":           check(sockopt.UnsentLimit, 16<<10, 16<<10),
		"TypeOfService":         check(sockopt.TypeOfService, 0x10, 0x10),
		"TypeOfService ECN":     check(sockopt.TypeOfService, 0x2b, 0x28),
		"Priority":              check(sockopt.Priority, 4, 4),
		"BusyPoll off":          check(sockopt.BusyPoll, 0, 0),
		"SendBuffer":            check(sockopt.SendBuffer, 64<<10, 128<<10),
		"RecvBuffer":            check(sockopt.RecvBuffer, 64<<10, 128<<10),
		"ReuseAddr":             check(sockopt.ReuseAddr, true, true),
		"FreeBind":              check(sockopt.FreeBind, true, true),
		"BindNoPort":            check(sockopt.BindNoPort, true, true),
		"an Int":                check(sockopt.Int("SO_RCVLOWAT", syscall.SOL_SOCKET, syscall.SO_RCVLOWAT), 3, 3),
		"QuickAck": func(t *testing.T, ch pipeline.Channel) {
			if err := sockopt.QuickAck.Set(ch, true); err != nil { // the kernel may undo it at once
				t.Error(err)
			}
		},
		"IncomingCPU": func(t *testing.T, ch pipeline.Channel) {
			if n, err := sockopt.IncomingCPU.Get(ch); err != nil || n < -1 {
				t.Errorf("got %d, %v", n, err)
			}
		},
		"IncomingNAPI": func(t *testing.T, ch pipeline.Channel) {
			if n, err := sockopt.IncomingNAPI.Get(ch); err != nil || n != 0 {
				t.Errorf("got %d, %v; want 0 on loopback", n, err)
			}
			if err := sockopt.IncomingNAPI.Set(ch, 1); err == nil {
				t.Error("got nil for a set, want an error")
			}
		},
	}
	for _, tt := range []struct{ network, addr string }{
		{"tcp4", "127.0.0.1:0"},
		{"tcp6", "[::1]:0"},
	} {
		t.Run(tt.network, func(t *testing.T) {
			if tt.network == "tcp6" {
				if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
					t.Skip("no IPv6")
				}
			}
			c := connect(t, tt.network, tt.addr, transport.Config{})
			for name, f := range live {
				t.Run(name, func(t *testing.T) {
					f(t, c.dialed)
					f(t, c.accepted)
				})
			}
			listening := map[string]func(*testing.T, pipeline.Channel){
				"FastOpen":        check(sockopt.FastOpen, 32, 32),
				"DeferAccept off": check(sockopt.DeferAccept, 0, 0),
				"ReusePort":       check(sockopt.ReusePort, true, true),
				"IncomingCPU":     check(sockopt.IncomingCPU, 0, 0),
			}
			for name, f := range listening {
				t.Run("listener "+name, func(t *testing.T) { f(t, c.listener) })
			}
			if got, err := sockopt.V6Only.Get(c.listener); tt.network == "tcp6" && (err != nil || !got) {
				t.Errorf("V6Only of tcp6: got %v, %v; want true", got, err)
			}
		})
	}
}

// The fields of Config arrive at the kernel: of what is dialed, of what is accepted,
// and of the listener.
func TestConfigArrives(t *testing.T) {
	c := connect(t, "tcp", "127.0.0.1:0", transport.Config{
		Nagle:             true,
		KeepAlive:         30 * time.Second,
		KeepAliveInterval: 4 * time.Second,
		KeepAliveCount:    6,
		UserTimeout:       9 * time.Second,
		UnsentLimit:       32 << 10,
		SendBuffer:        48 << 10,
		RecvBuffer:        40 << 10,
	})
	want := func(ok bool, what string, err error) {
		t.Helper()
		if !ok || err != nil {
			t.Errorf("%s is not as configured: %v", what, err)
		}
	}
	for _, ch := range []pipeline.Channel{c.dialed, c.accepted} {
		nd, err := sockopt.NoDelay.Get(ch)
		want(!nd, "NoDelay", err)
		ka, err := sockopt.KeepAlive.Get(ch)
		want(ka, "KeepAlive", err)
		idle, err := sockopt.KeepAliveIdle.Get(ch)
		want(idle == 30*time.Second, "KeepAliveIdle", err)
		interval, err := sockopt.KeepAliveInterval.Get(ch)
		want(interval == 4*time.Second, "KeepAliveInterval", err)
		count, err := sockopt.KeepAliveCount.Get(ch)
		want(count == 6, "KeepAliveCount", err)
		timeout, err := sockopt.UserTimeout.Get(ch)
		want(timeout == 9*time.Second, "UserTimeout", err)
		unsent, err := sockopt.UnsentLimit.Get(ch)
		want(unsent == 32<<10, "UnsentLimit", err)
		snd, err := sockopt.SendBuffer.Get(ch)
		want(snd == 96<<10, "SendBuffer", err)
		rcv, err := sockopt.RecvBuffer.Get(ch)
		want(rcv == 80<<10, "RecvBuffer", err)
	}
	rcv, err := sockopt.RecvBuffer.Get(c.listener)
	want(rcv == 80<<10, "RecvBuffer of the listener", err)
}

func TestFastOpenAndDeferAccept(t *testing.T) {
	got := make(chan string, 1)
	srv := &transport.Server{
		Config: transport.Config{FastOpen: 16, DeferAccept: 3 * time.Second},
		Init: func(ch pipeline.Channel) error {
			return ch.Pipeline().Add(pipeline.On(func(_ *pipeline.Context, b *buffer.Buf) error {
				got <- b.ReadString(b.Len())
				b.Release()
				return nil
			}))
		},
	}
	l, err := srv.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Shutdown(context.Background())
	if n, err := sockopt.FastOpen.Get(l); err != nil || n != 16 {
		t.Errorf("FastOpen of the listener: got %d, %v; want 16", n, err)
	}
	if d, err := sockopt.DeferAccept.Get(l); err != nil || d < 3*time.Second {
		t.Errorf("DeferAccept of the listener: got %v, %v; want 3s or what the kernel makes of it", d, err)
	}
	for range 2 { // the second may have a cookie from the first
		ch, err := (&transport.Dialer{Config: transport.Config{FastOpen: 1}}).Dial(context.Background(), "tcp", l.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		if on, err := sockopt.FastOpenConnect.Get(ch); err != nil || !on {
			t.Errorf("FastOpenConnect: got %v, %v; want true", on, err)
		}
		if err := ch.Send(context.Background(), "hello"); err != nil {
			t.Error(err)
		}
		if s := await(t, got, "the first message"); s != "hello" {
			t.Errorf("got %q, want hello", s)
		}
		ch.Close()
		await(t, ch.Closed().Done(), "the end of the channel")
	}
}

// A value that cannot be meant is an error that says which option it is of.
func TestBadValues(t *testing.T) {
	c := connect(t, "tcp", "127.0.0.1:0", transport.Config{})
	ch := c.dialed
	for _, tt := range []struct {
		name string
		err  error
	}{
		{"TCP_KEEPIDLE", sockopt.KeepAliveIdle.Set(ch, -time.Second)},
		{"TCP_KEEPIDLE", sockopt.KeepAliveIdle.Set(ch, 0)},
		{"TCP_KEEPIDLE", sockopt.KeepAliveIdle.Set(ch, math.MaxInt64)},
		{"TCP_KEEPINTVL", sockopt.KeepAliveInterval.Set(ch, 32768*time.Second)},
		{"TCP_KEEPCNT", sockopt.KeepAliveCount.Set(ch, 128)},
		{"TCP_KEEPCNT", sockopt.KeepAliveCount.Set(ch, math.MinInt)},
		{"TCP_USER_TIMEOUT", sockopt.UserTimeout.Set(ch, math.MinInt64)},
		{"TCP_USER_TIMEOUT", sockopt.UserTimeout.Set(ch, math.MaxInt64)},
		{"IP_TOS", sockopt.TypeOfService.Set(ch, 256)},
		{"IP_TOS", sockopt.TypeOfService.Set(ch, -1)},
		{"TCP_MD5SIG", sockopt.SetMD5Key(ch, netip.Prefix{}, []byte("k"))},
		{"TCP_MD5SIG", sockopt.SetMD5Key(ch, netip.MustParsePrefix("127.0.0.1/32"), make([]byte, sockopt.MaxMD5Key+1))},
		{"TCP_MD5SIG", sockopt.SetMD5Key(ch, netip.MustParsePrefix("::1/128"), []byte("k"))},
	} {
		var op *transport.OpError
		if !errors.As(tt.err, &op) || !errors.Is(tt.err, syscall.EINVAL) || !strings.Contains(tt.err.Error(), tt.name) {
			t.Errorf("got %v, want an OpError about %s that is EINVAL", tt.err, tt.name)
		}
	}
	if got, err := sockopt.KeepAliveCount.Get(ch); err != nil || got == 128 {
		t.Errorf("after the refusals: got %d, %v", got, err)
	}
}

// What only root may do is an OpError that is EPERM for others.
func TestUnprivileged(t *testing.T) {
	c := connect(t, "tcp", "127.0.0.1:0", transport.Config{})
	if os.Geteuid() == 0 {
		if err := syscall.Seteuid(65534); err != nil {
			t.Skip(err)
		}
		defer syscall.Seteuid(0)
	}
	for name, err := range map[string]error{
		"SO_MARK":        sockopt.Mark.Set(c.dialed, 7),
		"SO_PRIORITY":    sockopt.Priority.Set(c.dialed, 7),
		"IP_TRANSPARENT": sockopt.Transparent.Set(c.dialed, true),
	} {
		var op *transport.OpError
		if !errors.As(err, &op) || !errors.Is(err, os.ErrPermission) || op.Addr == nil || op.Op != "set "+name {
			t.Errorf("%s: got %v, want an OpError that is EPERM", name, err)
		}
	}
}

func TestPrivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	c := connect(t, "tcp", "127.0.0.1:0", transport.Config{})
	check(sockopt.Mark, 0xfffffffe, 0xfffffffe)(t, c.dialed)
	check(sockopt.BusyPoll, 50*time.Microsecond, 50*time.Microsecond)(t, c.dialed)
	check(sockopt.Transparent, true, true)(t, c.dialed)
}

// A hook sets what must be there before the bind or the connect.
func TestControl(t *testing.T) {
	type call struct{ network, address string }
	var mu sync.Mutex
	var calls []call
	var refuse error
	cfg := transport.Config{Control: func(network, address string, c syscall.RawConn) error {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, call{network, address})
		if err := c.Read(func(uintptr) bool { return true }); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Read: got %v, want ErrUnsupported", err)
		}
		if refuse != nil {
			return refuse
		}
		return errors.Join(sockopt.FreeBind.SetRaw(c, true), sockopt.KeepAliveCount.SetRaw(c, 3))
	}}
	c := connect(t, "tcp", "127.0.0.1:0", cfg)
	for _, ch := range []pipeline.Channel{c.listener, c.dialed} {
		if on, err := sockopt.FreeBind.Get(ch); err != nil || !on {
			t.Errorf("FreeBind of %v: got %v, %v; want true", ch, on, err)
		}
	}
	mu.Lock()
	want := []call{{"tcp4", "127.0.0.1:0"}, {"tcp4", c.listener.LocalAddr().String()}}
	if len(calls) != 2 || calls[0] != want[0] || calls[1] != want[1] {
		t.Errorf("got calls %v, want %v", calls, want)
	}
	refuse = errors.New("not here")
	mu.Unlock()

	var op *transport.OpError
	_, err := (&transport.Dialer{Config: cfg}).Dial(context.Background(), "tcp", c.listener.LocalAddr().String())
	if !errors.As(err, &op) || op.Op != "connect" || !errors.Is(err, refuse) {
		t.Errorf("Dial: got %v, want the hook's error", err)
	}
	_, err = (&transport.Server{Config: cfg}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if !errors.As(err, &op) || op.Op != "listen" || !errors.Is(err, refuse) {
		t.Errorf("Listen: got %v, want the hook's error", err)
	}
}

// Who asks for an address and leaves the port to the kernel gets the port at the
// connect.
func TestBindNoPort(t *testing.T) {
	c := connect(t, "tcp", "127.0.0.1:0", transport.Config{})
	for _, tt := range []struct {
		local *net.TCPAddr
		want  bool
	}{
		{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, true},
		{nil, false},
	} {
		d := &transport.Dialer{}
		if tt.local != nil {
			d.LocalAddr = tt.local
		}
		ch, err := d.Dial(context.Background(), "tcp", c.listener.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		if on, err := sockopt.BindNoPort.Get(ch); err != nil || on != tt.want {
			t.Errorf("from %v: got %v, %v; want %v", tt.local, on, err, tt.want)
		}
		if ch.LocalAddr().(*net.TCPAddr).Port == 0 {
			t.Errorf("from %v: got no port", tt.local)
		}
		ch.Close()
		await(t, ch.Closed().Done(), "the end of the channel")
	}
}

// Signed connections work with the same key, and keys may be given to a listener
// that is at work.
func TestMD5(t *testing.T) {
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	srv := &transport.Server{}
	l, err := srv.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Shutdown(context.Background())
	if err := sockopt.SetMD5Key(l, loopback, []byte("secret")); errors.Is(err, syscall.ENOPROTOOPT) {
		t.Skip("kernel without TCP_MD5SIG")
	} else if err != nil {
		t.Fatal(err)
	}
	dial := func(key string, timeout time.Duration) error {
		d := &transport.Dialer{Timeout: timeout, Config: transport.Config{
			Control: func(_, _ string, c syscall.RawConn) error {
				return sockopt.SetMD5KeyRaw(c, loopback, []byte(key))
			},
		}}
		ch, err := d.Dial(context.Background(), "tcp", l.LocalAddr().String())
		if err == nil {
			ch.Close()
			await(t, ch.Closed().Done(), "the end of the channel")
		}
		return err
	}
	if err := dial("secret", patience); err != nil {
		t.Errorf("same key: got %v, want nil", err)
	}
	if err := dial("wrong", 50*time.Millisecond); !errors.Is(err, transport.ErrConnectTimeout) {
		t.Errorf("other key: got %v, want a timeout", err)
	}
	if err := sockopt.SetMD5Key(l, loopback, nil); err != nil {
		t.Errorf("taking the key back: got %v, want nil", err)
	}
}

func TestPeerCredentials(t *testing.T) {
	c := connect(t, "unix", filepath.Join(t.TempDir(), "socket"), transport.Config{})
	want := sockopt.Credentials{PID: os.Getpid(), UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	for _, ch := range []pipeline.Channel{c.dialed, c.accepted} {
		if got, err := sockopt.PeerCredentials(ch); err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	if _, err := sockopt.NoDelay.Get(c.dialed); !errors.Is(err, syscall.EOPNOTSUPP) && !errors.Is(err, syscall.ENOPROTOOPT) {
		t.Errorf("a TCP option of a Unix socket: got %v, want EOPNOTSUPP", err)
	}
	tcp := connect(t, "tcp", "127.0.0.1:0", transport.Config{})
	if _, err := sockopt.PeerCredentials(tcp.dialed); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("of a TCP connection: got %v, want ErrUnsupported", err)
	}
}

func TestTCPInfo(t *testing.T) {
	got := make(chan int, 1)
	c := connect(t, "tcp", "127.0.0.1:0", transport.Config{})
	if err := c.accepted.Pipeline().Add(pipeline.On(func(_ *pipeline.Context, b *buffer.Buf) error {
		got <- b.Len()
		b.Release()
		return nil
	})); err != nil {
		t.Fatal(err)
	}
	if err := c.dialed.Send(context.Background(), make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	await(t, got, "the message")
	i, err := sockopt.ReadTCPInfo(c.dialed)
	if err != nil {
		t.Fatal(err)
	}
	if i.State != sockopt.Established || i.State.String() != "established" || i.SendMSS == 0 || i.SendWindow == 0 ||
		i.RTT <= 0 || i.RTT > patience || i.BytesSent < 1000 || i.DataSegmentsSent == 0 {
		t.Errorf("got %+v of a connection that has sent 1000 bytes", i)
	}
	if i, err = sockopt.ReadTCPInfo(c.accepted); err != nil || i.BytesReceived != 1000 {
		t.Errorf("got %d bytes, %v at the other end, want 1000", i.BytesReceived, err)
	}
	if i, err = sockopt.ReadTCPInfo(c.listener); err != nil || i.State != sockopt.Listening {
		t.Errorf("got %v, %v of the listener, want listening", i.State, err)
	}
	if s := sockopt.TCPState(200).String(); s != "unknown" {
		t.Errorf("got %q for a state that is none, want unknown", s)
	}
}

// Of a channel that has closed the error says so; it never gets at another
// descriptor.
func TestClosed(t *testing.T) {
	c := connect(t, "tcp", "127.0.0.1:0", transport.Config{})
	raw, err := transport.SyscallConn(c.dialed)
	if err != nil {
		t.Fatal(err)
	}
	inside, out := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- raw.Control(func(fd uintptr) {
			close(inside)
			<-out
			// The channel has closed, and the number is still its socket's.
			if _, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_TYPE); err != nil {
				t.Errorf("descriptor in use: got %v, want nil", err)
			}
		})
	}()
	await(t, inside, "Control")
	c.dialed.Reset()
	await(t, c.dialed.Closed().Done(), "the end of the channel")
	close(out)
	if err := await(t, done, "the end of Control"); err != nil {
		t.Error(err)
	}
	if err := raw.Control(func(uintptr) { t.Error("called after the end") }); !errors.Is(err, pipeline.ErrClosed) {
		t.Errorf("Control: got %v, want ErrClosed", err)
	}
	if err := sockopt.NoDelay.Set(c.dialed, true); !errors.Is(err, pipeline.ErrClosed) {
		t.Errorf("Set: got %v, want ErrClosed", err)
	}
	if _, err := sockopt.NoDelay.Get(c.dialed); !errors.Is(err, pipeline.ErrClosed) {
		t.Errorf("Get: got %v, want ErrClosed", err)
	}
}

// A dialed channel has a socket only when it is connected.
func TestNotConnected(t *testing.T) {
	c := connect(t, "tcp", "127.0.0.1:0", transport.Config{})
	var inInit, active error
	d := &transport.Dialer{Init: func(ch pipeline.Channel) error {
		inInit = sockopt.Cork.Set(ch, true)
		return ch.Pipeline().Add(activeFunc(func(c *pipeline.Context) error {
			active = sockopt.Cork.Set(c.Channel(), true)
			return nil
		}))
	}}
	ch, err := d.Dial(context.Background(), "tcp", c.listener.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	ch.Close()
	await(t, ch.Closed().Done(), "the end of the channel")
	if !errors.Is(inInit, syscall.ENOTCONN) || active != nil {
		t.Errorf("got %v in Init and %v in HandleActive, want ENOTCONN and nil", inInit, active)
	}
}

type activeFunc func(*pipeline.Context) error

func (f activeFunc) HandleActive(c *pipeline.Context) error { return f(c) }

func TestWithoutSocket(t *testing.T) {
	ch := embedded.New()
	defer ch.Finish()
	if err := sockopt.NoDelay.Set(ch, true); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want ErrUnsupported", err)
	}
	if _, err := sockopt.ReadTCPInfo(ch); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want ErrUnsupported", err)
	}
}

// Channels of datagrams have options like others.
func TestDatagrams(t *testing.T) {
	var mu sync.Mutex
	var calls []string
	cfg := transport.Config{Control: func(network, address string, c syscall.RawConn) error {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, network+" "+address)
		return sockopt.FreeBind.SetRaw(c, true)
	}}
	srv := &transport.Server{Config: cfg}
	defer srv.Shutdown(context.Background())
	bound, err := srv.Listen(context.Background(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dialed, err := (&transport.Dialer{Config: cfg}).Dial(context.Background(), "udp", bound.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, ch := range []pipeline.Channel{bound, dialed} {
		if on, err := sockopt.FreeBind.Get(ch); err != nil || !on {
			t.Errorf("FreeBind of %v: got %v, %v; want true", ch, on, err)
		}
		check(sockopt.TypeOfService, 0x2b, 0x2b)(t, ch) // with ECN, which is TCP's elsewhere
		check(sockopt.Broadcast, true, true)(t, ch)
	}
	mu.Lock()
	want := []string{"udp4 127.0.0.1:0", "udp4 " + bound.LocalAddr().String()}
	if len(calls) != 2 || calls[0] != want[0] || calls[1] != want[1] {
		t.Errorf("got calls %q, want %q", calls, want)
	}
	mu.Unlock()
	dialed.Close()
	await(t, dialed.Closed().Done(), "the end of the channel")
	if err := sockopt.TypeOfService.Set(dialed, 0); !errors.Is(err, pipeline.ErrClosed) {
		t.Errorf("after the end: got %v, want ErrClosed", err)
	}
}

// An option that is in no list: the kernel cuts what a channel writes into datagrams.
func TestSegments(t *testing.T) {
	lengths := make(chan int, 10)
	srv := transport.Server{Config: transport.Config{GRO: true}, Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.On(func(_ *pipeline.Context, d *transport.Datagram) error {
			lengths <- d.Content.Len()
			d.Release()
			return nil
		}))
	}}
	l, err := srv.Listen(context.Background(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Shutdown(context.Background())
	ch, err := new(transport.Dialer).Dial(context.Background(), "udp4", l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	if err := sockopt.Int("UDP_SEGMENT", 17, 103).Set(ch, 300); err != nil {
		t.Fatal(err)
	}
	if err := ch.Send(context.Background(), strings.Repeat("x", 1000)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{300, 300, 300, 100} {
		if got := await(t, lengths, "a datagram"); got != want {
			t.Errorf("got a datagram of %d bytes, want %d", got, want)
		}
	}
}
