//go:build linux

package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// echoDatagrams sends back what it reads to whom it came from.
func echoDatagrams() any {
	return pipeline.On(func(c *pipeline.Context, d *Datagram) error { c.Write(d); return nil })
}

// datagramNetworks are the networks of datagrams, each with an address to listen on;
// those of IPv6 only where it is.
func datagramNetworks(t *testing.T) map[string]string {
	all := map[string]string{"udp": "127.0.0.1:0", "udp4": "localhost:0", "unixgram": ""}
	if nc, err := net.ListenPacket("udp6", "[::1]:0"); err == nil {
		nc.Close()
		all["udp6"] = "[::1]:0"
	}
	return all
}

func eachDatagramNetwork(t *testing.T, f func(t *testing.T, network, addr string)) {
	for network, addr := range datagramNetworks(t) {
		t.Run(network, func(t *testing.T) {
			if network == "unixgram" {
				addr = unixgramAddr(t).Name
			}
			f(t, network, addr)
		})
	}
}

// unixgramAddr returns a name that nobody uses.
func unixgramAddr(t testing.TB) *net.UnixAddr {
	dir, err := os.MkdirTemp("", "runnel")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unixgram"}
}

// inbox is a handler that hands on the content of every message.
type inbox chan string

func (in inbox) HandleRead(_ *pipeline.Context, msg any) error {
	b, ok := msg.(*buffer.Buf)
	if d, is := msg.(*Datagram); is {
		b, ok = d.Content, true
		defer d.Release()
	} else if ok {
		defer b.Release()
	}
	in <- b.ReadString(b.Len())
	return nil
}

func (in inbox) HandleError(_ *pipeline.Context, err error) { in <- "error: " + err.Error() }

// dialDatagrams makes a channel to l, which can be answered; it is closed with the
// test.
func dialDatagrams(t testing.TB, d *Dialer, l pipeline.Channel) pipeline.Channel {
	t.Helper()
	network := l.LocalAddr().Network()
	if network == "unixgram" && d.LocalAddr == nil {
		d.LocalAddr = unixgramAddr(t)
	}
	ch, err := d.Dial(context.Background(), network, l.LocalAddr().String())
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() {
		ch.Close()
		await(t, ch.Closed().Done(), "the end of the channel")
	})
	return ch
}

// One after the other, datagrams of all sizes come back as they were sent.
func TestDatagramEcho(t *testing.T) {
	eachDatagramNetwork(t, func(t *testing.T, network, addr string) {
		l := serve(t, &Server{Init: with(echoDatagrams())}, network, addr)
		if l.RemoteAddr() != nil {
			t.Errorf("remote address of a bound channel: got %v, want nil", l.RemoteAddr())
		}
		in := make(inbox, 1)
		ch := dialDatagrams(t, &Dialer{Init: with(in)}, l)
		if got, want := ch.RemoteAddr().String(), l.LocalAddr().String(); got != want {
			t.Errorf("remote address: got %v, want %v", got, want)
		}
		sizes := []int{0, 1, 100, 1472, 4097, 16_384, 16_385, 60_000, 65_507, 0}
		for _, n := range sizes {
			want := letters(n)
			if err := ch.Send(context.Background(), want); err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
			if got := await(t, in, "an answer"); got != want {
				t.Fatalf("got %d bytes %.60q, want the %d that were sent", len(got), got, n)
			}
		}
	})
}

// A socket of both families names IPv4 peers as such and answers them.
func TestDatagramsOfBothFamilies(t *testing.T) {
	if !haveIPv6() {
		t.Skip("the system has no IPv6")
	}
	from := make(chan netip.AddrPort, 1)
	l := serve(t, &Server{Init: with(pipeline.On(func(c *pipeline.Context, d *Datagram) error {
		from <- d.Addr
		c.Write(d)
		return nil
	}))}, "udp", ":0")
	port := l.LocalAddr().(*net.UDPAddr).Port
	for _, host := range []string{"127.0.0.1", "::1"} {
		nc, err := net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(port)))
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(patience))
		fmt.Fprint(nc, "hello")
		got := make([]byte, 10)
		if n, err := nc.Read(got); err != nil || string(got[:n]) != "hello" {
			t.Errorf("%s: got %q, %v", host, got[:n], err)
		}
		if got, want := await(t, from, "a datagram"), nc.LocalAddr().(*net.UDPAddr).AddrPort(); got != want {
			t.Errorf("%s: sender: got %v, want %v", host, got, want)
		}
	}
}

// Thousands of datagrams arrive in order and none is lost, where the kernel does not
// lose any, however slow the receiver is.
func TestManyDatagrams(t *testing.T) {
	for _, tt := range []struct {
		name      string
		connected bool
		count     int
		cfg       Config
	}{
		{"connected", true, 5000, Config{}},
		{"addressed", false, 300, Config{}},
		{"connected, smallest buffers", true, 1000, Config{SendBuffer: 1, RecvBuffer: 1}},
		{"addressed, smallest buffers", false, 100, Config{SendBuffer: 1, RecvBuffer: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var next atomic.Int64
			done := make(chan struct{})
			l := serve(t, &Server{Config: tt.cfg, Init: with(pipeline.On(func(_ *pipeline.Context, d *Datagram) error {
				defer d.Release()
				var i int
				if _, err := fmt.Sscan(string(d.Content.Window()), &i); err != nil || int64(i) != next.Load() {
					t.Errorf("got %.20q, want %d", d.Content.Window(), next.Load())
				}
				if want := 1 + i%700 + len(fmt.Sprint(i)); d.Content.Len() != want {
					t.Errorf("datagram %d: got %d bytes, want %d", i, d.Content.Len(), want)
				}
				if next.Add(1) == int64(tt.count) {
					close(done)
				}
				return nil
			}))}, "unixgram", unixgramAddr(t).Name)
			var ch pipeline.Channel
			if tt.connected {
				ch = dialDatagrams(t, &Dialer{Config: tt.cfg}, l)
			} else {
				ch = serve(t, &Server{Config: tt.cfg}, "unixgram", unixgramAddr(t).Name)
			}
			var left atomic.Int64
			for i := range tt.count {
				b := pooled(fmt.Sprint(i) + " " + strings.Repeat("x", i%700))
				var msg any = b
				if !tt.connected {
					msg = &Datagram{Content: b, Name: l.LocalAddr().String()}
				}
				ch.WriteThen(msg, func(err error) {
					if err != nil {
						t.Errorf("datagram %d: %v", i, err)
					}
					left.Add(1)
				})
			}
			await(t, done, "the last datagram")
			ch.Close()
			await(t, ch.Closed().Done(), "the end of the channel")
			if got := left.Load(); got != int64(tt.count) {
				t.Errorf("completions: got %d, want %d", got, tt.count)
			}
		})
	}
}

// While a receiver does not read, what is written waits and the channel is not
// writable; when it reads it gets everything, in order, and so it does when the
// channel was closed meanwhile.
func TestReceiverThatDoesNotRead(t *testing.T) {
	for _, closing := range []bool{false, true} {
		t.Run(fmt.Sprint("closing ", closing), func(t *testing.T) {
			at := unixgramAddr(t)
			nc, err := net.ListenUnixgram("unixgram", at)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			nc.SetDeadline(time.Now().Add(patience))
			writable := make(chan bool, 10)
			d := Dialer{
				Config: Config{HighWater: 100_000, LowWater: 1000},
				Init: with(onWritability(func(c *pipeline.Context) error {
					writable <- c.Channel().Writable()
					return nil
				})),
			}
			ch, err := d.Dial(context.Background(), "unixgram", at.Name)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for ; ch.Writable(); n++ {
				if n == 10_000 {
					t.Fatalf("still writable after %d datagrams of 1,000 bytes", n)
				}
				ch.Write(fmt.Sprint(n) + strings.Repeat("x", 1000))
			}
			if n > 1000 {
				t.Errorf("got %d datagrams of 1,000 bytes until unwritable, want about 100", n)
			}
			if w := await(t, writable, "writability"); w {
				t.Error("got writable first")
			}
			if closing {
				ch.Close()
			}
			buf := make([]byte, 2000)
			for i := range n {
				got, err := nc.Read(buf)
				if want := fmt.Sprint(i) + strings.Repeat("x", 1000); err != nil || string(buf[:got]) != want {
					t.Fatalf("datagram %d: got %.20q, %v", i, buf[:got], err)
				}
			}
			if !closing {
				if w := await(t, writable, "writability"); !w {
					t.Error("got unwritable again")
				}
				ch.Close()
			}
			await(t, ch.Closed().Done(), "the end of the channel")
		})
	}
}

// A datagram longer than the channel takes is dropped, which its handlers are told;
// one that is as long is not.
func TestTruncatedDatagrams(t *testing.T) {
	eachDatagramNetwork(t, func(t *testing.T, network, addr string) {
		in := make(inbox, 10)
		l := serve(t, &Server{Config: Config{MaxDatagram: 100}, Init: with(in)}, network, addr)
		ch := dialDatagrams(t, &Dialer{}, l)
		for _, tt := range []struct {
			size int
			want string
		}{{100, letters(100)}, {101, "error: "}, {0, ""}, {50_000, "error: "}, {1, letters(1)}} {
			ch.Write(letters(tt.size))
			got := await(t, in, "a datagram")
			if tt.want == "error: " {
				if !strings.HasPrefix(got, "error: ") || !strings.Contains(got, ErrTruncated.Error()) || !strings.Contains(got, ch.LocalAddr().String()) {
					t.Errorf("%d bytes: got %q, want an error that names the sender", tt.size, got)
				}
			} else if got != tt.want {
				t.Errorf("%d bytes: got %q", tt.size, got)
			}
		}
	})
}

// That nobody is there is an error and not the end: when somebody comes, datagrams
// arrive.
func TestRefusedDatagrams(t *testing.T) {
	nc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := nc.LocalAddr().(*net.UDPAddr)
	nc.Close()
	errs := make(chan error, 100)
	d := Dialer{Init: with(pipeline.OnError(func(_ *pipeline.Context, err error) { errs <- err }))}
	ch, err := d.Dial(context.Background(), "udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { ch.Close(); await(t, ch.Closed().Done(), "the end of the channel") }()
	for range 3 {
		ch.Write("is anybody there?")
		err := await(t, errs, "an error")
		var op *OpError
		if !errors.Is(err, syscall.ECONNREFUSED) || !errors.As(err, &op) || op.Addr.String() != at.String() {
			t.Errorf("got %v, want ECONNREFUSED by %v", err, at)
		}
	}
	// Paused, too, nothing is lost and nothing spins.
	ch.SetAutoRead(false)
	ch.Write("is anybody there?")
	if err := await(t, errs, "an error"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("paused: got %v, want ECONNREFUSED", err)
	}
	// Those that a refusal of an earlier one keeps back leave all the same.
	left := make(chan error, 10)
	for range cap(left) {
		ch.WriteThen("x", func(err error) { left <- err })
	}
	for i := range cap(left) {
		if err := await(t, left, "a datagram"); err != nil {
			t.Errorf("datagram %d: %v", i, err)
		}
	}
	if err := await(t, errs, "an error"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("many: got %v, want ECONNREFUSED", err)
	}
	if !ch.Open() {
		t.Fatalf("closed: %v", ch.CloseReason())
	}

	nc, err = net.ListenPacket("udp", at.String())
	if err != nil {
		t.Skipf("somebody else has the port now: %v", err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	if err := ch.Send(context.Background(), "now?"); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
	if err := ch.Send(context.Background(), "now?"); err != nil {
		t.Error(err)
	}
	got := make([]byte, 10)
	if n, _, err := nc.ReadFrom(got); err != nil || string(got[:n]) != "now?" {
		t.Errorf("got %q, %v", got[:n], err)
	}
}

// What cannot be sent fails by itself, with the kernel's reason.
func TestDatagramsThatCannotLeave(t *testing.T) {
	l := serve(t, &Server{Init: with(echoDatagrams())}, "udp4", "127.0.0.1:0")
	to := l.LocalAddr().(*net.UDPAddr).AddrPort()
	in := make(inbox, 1)
	ch := serve(t, &Server{Init: with(in)}, "udp4", "127.0.0.1:0")
	for _, tt := range []struct {
		name string
		size int
		to   netip.AddrPort
		want error
	}{
		{"too long", 70_000, to, syscall.EMSGSIZE},
		{"IPv6", 1, netip.MustParseAddrPort("[::1]:9"), syscall.EAFNOSUPPORT},
		{"port 0", 1, netip.AddrPortFrom(to.Addr(), 0), syscall.EINVAL},
		{"to itself", 5, ch.LocalAddr().(*net.UDPAddr).AddrPort(), nil},
	} {
		err := ch.Send(context.Background(), &Datagram{Content: pooled(letters(tt.size)), Addr: tt.to})
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	if got := await(t, in, "a datagram"); got != letters(5) {
		t.Errorf("got %q", got)
	}

	at := unixgramAddr(t).Name
	ux := serve(t, &Server{Init: with(in)}, "unixgram", at)
	for _, tt := range []struct {
		to   string
		want error
	}{{at + "-nobody", syscall.ENOENT}, {strings.Repeat("x", 200), syscall.EINVAL}, {at, nil}, {"@runnel-nobody-there", syscall.ECONNREFUSED}} {
		if err := ux.Send(context.Background(), &Datagram{Content: pooled("x"), Name: tt.to}); !errors.Is(err, tt.want) {
			t.Errorf("to %.20s: got %v, want %v", tt.to, err, tt.want)
		}
	}
	if got := await(t, in, "a datagram"); got != "x" {
		t.Errorf("got %q", got)
	}
}

// A connected channel hears its peer and nobody else.
func TestConnectedHearsItsPeerOnly(t *testing.T) {
	l := serve(t, &Server{Init: with(echoDatagrams())}, "udp", "127.0.0.1:0")
	in := make(inbox, 10)
	ch := dialDatagrams(t, &Dialer{Init: with(in)}, l)
	stranger, err := net.Dial("udp", ch.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	fmt.Fprint(stranger, "let me in")
	ch.Write("hello")
	if got := await(t, in, "an answer"); got != "hello" {
		t.Errorf("got %q, want what the peer sent", got)
	}
}

// Abstract names, and senders that have none.
func TestUnixDatagramNames(t *testing.T) {
	in := make(inbox, 1)
	names := make(chan string, 1)
	name := fmt.Sprintf("@runnel-test-%d", os.Getpid())
	l := serve(t, &Server{Init: with(pipeline.On(func(c *pipeline.Context, d *Datagram) error {
		names <- d.Name
		c.FireRead(d)
		return nil
	}), in)}, "unixgram", name)
	if got := l.LocalAddr().String(); got != name {
		t.Errorf("local address: got %q, want %q", got, name)
	}
	from := &net.UnixAddr{Name: name + "-client", Net: "unixgram"}
	for _, local := range []*net.UnixAddr{from, nil, from} {
		d := Dialer{}
		want := ""
		if local != nil {
			d.LocalAddr, want = local, local.Name
		}
		ch, err := d.Dial(context.Background(), "unixgram", name)
		if err != nil {
			t.Fatal(err)
		}
		ch.Write("x")
		if got := await(t, names, "a datagram"); got != want {
			t.Errorf("sender: got %q, want %q", got, want)
		}
		await(t, in, "a datagram")
		ch.Close()
		await(t, ch.Closed().Done(), "the end of the channel")
	}
}

// The file of a Unix socket goes with its channel, also with one that was dialed.
func TestUnixDatagramFiles(t *testing.T) {
	at := unixgramAddr(t)
	l := serve(t, &Server{}, "unixgram", at.Name)
	local := unixgramAddr(t)
	ch := dialDatagrams(t, &Dialer{LocalAddr: local}, l)
	for _, c := range []pipeline.Channel{ch, l} {
		name := c.LocalAddr().String()
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
		c.Close()
		await(t, c.Closed().Done(), "the end of the channel")
		if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("file of a closed channel: got %v, want it gone", err)
		}
	}
	// A connect that fails leaves none.
	if _, err := (&Dialer{LocalAddr: local}).Dial(context.Background(), "unixgram", at.Name); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("got %v, want ENOENT", err)
	}
	if _, err := os.Stat(local.Name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("file of a failed connect: got %v, want it gone", err)
	}
}

func TestDatagramListenErrors(t *testing.T) {
	l := serve(t, &Server{}, "udp", "127.0.0.1:0")
	broken := errors.New("broken")
	for _, tt := range []struct {
		name, network, addr string
		init                func(pipeline.Channel) error
		want                error
	}{
		{"in use", "udp", l.LocalAddr().String(), nil, syscall.EADDRINUSE},
		{"not ours", "udp4", "192.0.2.1:0", nil, syscall.EADDRNOTAVAIL},
		{"no directory", "unixgram", "/no/such/directory/s", nil, syscall.ENOENT},
		{"no port", "udp6", "[::1]", nil, nil},
		{"Init fails", "udp", "127.0.0.1:0", func(pipeline.Channel) error { return broken }, broken},
		{"closed by a handler", "udp", "127.0.0.1:0", with(pipeline.OnActive(func(c *pipeline.Context) error {
			c.Close()
			return nil
		})), pipeline.ErrClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := &Server{Init: tt.init}
			_, err := srv.Listen(context.Background(), tt.network, tt.addr)
			var op *OpError
			if !errors.As(err, &op) || op.Op != "listen" || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %v, want a listen *OpError of %v", err, tt.want)
			}
			if err := srv.Shutdown(context.Background()); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			if _, err := srv.Listen(context.Background(), "udp", "127.0.0.1:0"); !errors.Is(err, ErrServerClosed) {
				t.Errorf("after Shutdown: got %v, want ErrServerClosed", err)
			}
		})
	}
	for _, n := range []int{-1, maxMaxDatagram + 1} {
		if _, err := (&Server{Config: Config{MaxDatagram: n}}).Listen(context.Background(), "udp", "127.0.0.1:0"); err == nil {
			t.Errorf("MaxDatagram %d: got nil, want an error", n)
		}
	}
}

// Several sockets share a port when they ask for it.
func TestDatagramReusePort(t *testing.T) {
	srv := &Server{ReusePort: true, Init: with(echoDatagrams())}
	l := serve(t, srv, "udp", "127.0.0.1:0")
	if _, err := srv.Listen(context.Background(), "udp", l.LocalAddr().String()); err != nil {
		t.Error(err)
	}
}

// With PerLoop each loop has a channel, all on the same port, and they end together.
func TestDatagramsPerLoop(t *testing.T) {
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	channels := make(chan pipeline.Channel, 3)
	srv := &Server{Group: g, PerLoop: true, Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
		channels <- c.Channel()
		return nil
	}), echoDatagrams())}
	l, err := srv.Listen(context.Background(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	loops := map[*eventloop.Loop]bool{}
	var all []pipeline.Channel
	for range 3 {
		ch := await(t, channels, "a channel")
		loops[ch.Loop()] = true
		all = append(all, ch)
		if got, want := ch.LocalAddr().String(), l.LocalAddr().String(); got != want {
			t.Errorf("local address: got %s, want %s", got, want)
		}
	}
	if len(loops) != 3 {
		t.Errorf("got channels on %d loops, want 3", len(loops))
	}
	for range 20 { // whichever of them it is that answers
		nc := dialNet(t, l)
		fmt.Fprint(nc, "hello")
		if n, err := nc.Read(make([]byte, 10)); n != 5 || err != nil {
			t.Errorf("got %d, %v, want 5", n, err)
		}
	}
	l.Close()
	for _, ch := range all {
		await(t, ch.Closed().Done(), "the end of a channel")
	}

	// One that cannot start takes those before it with it.
	var n atomic.Int32
	broken := errors.New("broken")
	srv2 := &Server{Group: g, PerLoop: true, Init: func(pipeline.Channel) error {
		if n.Add(1) == 3 {
			return broken
		}
		return nil
	}}
	if _, err := srv2.Listen(context.Background(), "udp", "127.0.0.1:0"); !errors.Is(err, broken) {
		t.Errorf("got %v, want what Init says", err)
	}
	for _, s := range []*Server{srv, srv2} {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

// The drain of a server tells the handlers of its datagram channels, lets what was
// written leave, and closes those whose queue does not at its end.
func TestDatagramDrain(t *testing.T) {
	at := unixgramAddr(t)
	nc, err := net.ListenUnixgram("unixgram", at)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	for _, reads := range []bool{true, false} {
		draining := make(chan struct{})
		srv := &Server{Init: with(pipeline.OnEvent(func(c *pipeline.Context, _ Draining) error {
			close(draining)
			return nil
		}))}
		ch, err := srv.Listen(context.Background(), "unixgram", unixgramAddr(t).Name)
		if err != nil {
			t.Fatal(err)
		}
		const n = 100
		for range n {
			ch.Write(&Datagram{Content: pooled("x"), Name: at.Name})
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- srv.Shutdown(ctx) }()
		await(t, draining, "Draining")
		if reads {
			for range n {
				if got, err := nc.Read(make([]byte, 10)); got != 1 || err != nil {
					t.Fatalf("got %d, %v", got, err)
				}
			}
			if err := await(t, done, "the end of the drain"); err != nil {
				t.Errorf("got %v, want nil", err)
			}
		} else {
			cancel()
			if err := await(t, done, "the end of the drain"); !errors.Is(err, ErrDrainTimeout) {
				t.Errorf("got %v, want ErrDrainTimeout", err)
			}
			if !errors.Is(ch.CloseReason(), ErrDrainTimeout) {
				t.Errorf("close reason: got %v, want ErrDrainTimeout", ch.CloseReason())
			}
		}
		cancel()
		if _, err := os.Stat(ch.LocalAddr().String()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("file: got %v, want it gone", err)
		}
	}
}

// A handler dials datagrams on its own loop, by name too.
func TestDialDatagramsFromHandler(t *testing.T) {
	l := serve(t, &Server{Init: with(echoDatagrams())}, "udp4", "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(l.LocalAddr().String())
	for _, host := range []string{"127.0.0.1", "localhost"} {
		got := make(chan string, 1)
		front := serve(t, &Server{Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
			d := &Dialer{Init: with(inbox(got))}
			d.DialThen(c, "udp4", net.JoinHostPort(host, port), func(ch pipeline.Channel, err error) {
				if err != nil {
					got <- err.Error()
					return
				}
				if ch.Loop() != c.Loop() || !ch.Active() {
					t.Errorf("on another loop, or not active")
				}
				c.Channel().Closed().Then(func(error) { ch.Close() })
				ch.Write("hello")
			})
			return nil
		}))}, "udp", "127.0.0.1:0")
		if s := await(t, got, "an answer"); s != "hello" {
			t.Errorf("%s: got %q", host, s)
		}
		front.Close()
	}
}

func TestDialDatagramErrors(t *testing.T) {
	for _, tt := range []struct {
		name, network, addr string
		d                   Dialer
		want                error
	}{
		{"nobody at the name", "unixgram", unixgramAddr(t).Name, Dialer{}, syscall.ENOENT},
		{"a local address that is not ours", "udp", "127.0.0.1:9", Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1)}}, syscall.EADDRNOTAVAIL},
		{"Init fails", "udp", "127.0.0.1:9", Dialer{Init: func(pipeline.Channel) error { return os.ErrPermission }}, os.ErrPermission},
		{"no IPv4 address", "udp4", "[::1]:9", Dialer{}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ch, err := tt.d.Dial(context.Background(), tt.network, tt.addr)
			var op *OpError
			if ch != nil || !errors.As(err, &op) || op.Op != "connect" || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %v, %v; want a connect *OpError of %v", ch, err, tt.want)
			}
		})
	}
	// What was written before is sent when the channel is active.
	l := serve(t, &Server{Init: with(echoDatagrams())}, "udp", "127.0.0.1:0")
	in := make(inbox, 1)
	dialDatagrams(t, &Dialer{Init: func(ch pipeline.Channel) error {
		ch.Write("early")
		return ch.Pipeline().Add(in)
	}}, l)
	if got := await(t, in, "an answer"); got != "early" {
		t.Errorf("got %q", got)
	}
}

// Large datagrams in a burst, of many parts and from a mapped file, arrive whole.
func TestLargeDatagrams(t *testing.T) {
	content := letters(40_000)
	f := tempFile(t, content)
	defer f.Close()
	in := make(inbox, 1)
	at := unixgramAddr(t).Name
	serve(t, &Server{Init: with(in), Config: Config{MaxDatagram: 128 << 10}}, "unixgram", at)
	ch, err := (&Dialer{Config: Config{SendBuffer: 1 << 20}}).Dial(context.Background(), "unixgram", at)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { ch.Close(); await(t, ch.Closed().Done(), "the end of the channel") }()
	var want []string
	for i := range 60 {
		var b *buffer.Buf
		switch i % 3 {
		case 0:
			b = pooled(content)
		case 1:
			if b, err = buffer.MapFile(f, 0, len(content)); err != nil {
				t.Fatal(err)
			}
		case 2:
			b = buffer.Compose()
			for _, p := range slices.Collect(slices.Chunk([]byte(content), 30)) {
				b.Append(buffer.FromBytes(p))
			}
			b.Append(pooled(content + content))
		}
		var all bytes.Buffer
		b.Segments(func(p []byte) bool { all.Write(p); return true })
		want = append(want, all.String())
		ch.Write(b)
	}
	for i, w := range want {
		if got := await(t, in, "a datagram"); got != w {
			t.Fatalf("datagram %d: got %d bytes, want %d, or they differ", i, len(got), len(w))
		}
	}
}

// Beside TCP the same server serves datagrams, and both end with it.
func TestServerOfBoth(t *testing.T) {
	srv := &Server{Init: with(echoDatagrams(), echo())}
	tcp := serve(t, srv, "tcp", "127.0.0.1:0")
	udp := serve(t, srv, "udp", "127.0.0.1:0")
	for _, l := range []pipeline.Channel{tcp, udp} {
		nc := dialNet(t, l)
		fmt.Fprint(nc, "hello")
		got := make([]byte, 10)
		if n, err := nc.Read(got); err != nil || string(got[:n]) != "hello" {
			t.Errorf("%s: got %q, %v", l.LocalAddr().Network(), got[:n], err)
		}
	}
}

// ListenAndServe serves datagrams until its context ends.
func TestListenAndServeDatagrams(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	addr := make(chan net.Addr, 1)
	srv := &Server{Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
		addr <- c.Channel().LocalAddr()
		return nil
	}), echoDatagrams())}
	done := make(chan error, 1)
	go func() { done <- srv.ListenAndServe(ctx, "udp", "127.0.0.1:0") }()
	nc, err := net.Dial("udp", await(t, addr, "the server").String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(nc, "hello")
	if n, err := nc.Read(make([]byte, 10)); n != 5 || err != nil {
		t.Errorf("got %d, %v, want 5", n, err)
	}
	cancel()
	if err := await(t, done, "the end"); err != nil {
		t.Errorf("got %v, want nil", err)
	}
}

// shutSocket shuts the socket of a channel down, as somebody may who shares it.
func shutSocket(t *testing.T, ch pipeline.Channel, how int) {
	t.Helper()
	raw, err := SyscallConn(ch)
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		// Of a UDP socket without a peer that is an error, and is done all the same.
		if err := syscall.Shutdown(int(fd), how); err != nil && !errors.Is(err, syscall.ENOTCONN) {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// A socket that somebody who shares it has shut down says so without end. Its channel, which
// would turn its loop without rest, reads what has come before, and closes by an error, as
// soon as it is to read.
func TestDatagramSocketShutDown(t *testing.T) {
	g := newGroup(t, eventloop.GroupConfig{Loops: 1}) // which does not end with the only channel
	for _, network := range []string{"udp", "unixgram"} {
		for _, dialed := range []bool{false, true} {
			for name, how := range map[string]int{"reading": syscall.SHUT_RD, "both": syscall.SHUT_RDWR} {
				for _, paused := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s, dialed %v, shut for %s, paused %v", network, dialed, name, paused), func(t *testing.T) {
						address := "127.0.0.1:0"
						if network == "unixgram" {
							address = unixgramAddr(t).Name
						}
						peer, err := net.ListenPacket(network, address)
						if err != nil {
							t.Fatal(err)
						}
						defer peer.Close()
						local := address
						if network == "unixgram" {
							local = unixgramAddr(t).Name
						}
						var got []string
						var errs []error
						init := with(
							pipeline.On(func(_ *pipeline.Context, m *Datagram) error {
								got = append(got, string(m.Content.Window()))
								m.Release()
								return nil
							}),
							pipeline.On(func(_ *pipeline.Context, b *buffer.Buf) error {
								got = append(got, string(b.Window()))
								b.Release()
								return nil
							}),
							pipeline.OnError(func(_ *pipeline.Context, err error) { errs = append(errs, err) }),
						)
						cfg := Config{ManualRead: paused}
						var ch pipeline.Channel
						if dialed {
							d := &Dialer{Group: g, Init: init, Config: cfg}
							if network == "unixgram" {
								d.LocalAddr = &net.UnixAddr{Name: local, Net: network}
							}
							ch, err = d.Dial(t.Context(), network, peer.LocalAddr().String())
						} else {
							ch, err = serve(t, &Server{Group: g, Init: init, Config: cfg}, network, local), nil
						}
						if err != nil {
							t.Fatal(err)
						}
						var want []string
						if paused {
							want = []string{"1", "2", "3"}
							for _, s := range want {
								if _, err := peer.WriteTo([]byte(s), ch.LocalAddr()); err != nil {
									t.Fatal(err)
								}
							}
						}
						shutSocket(t, ch, how)
						ch.SetAutoRead(true)
						await(t, ch.Closed().Done(), "the end of the channel")
						var op *OpError
						if !errors.Is(ch.CloseReason(), errShut) || !errors.As(ch.CloseReason(), &op) || op.Op != "read" {
							t.Errorf("close reason: got %v, want a read *OpError of a shutdown", ch.CloseReason())
						}
						onChannel(t, ch, func() {
							if !slices.Equal(got, want) {
								t.Errorf("got %q, want what had come before: %q", got, want)
							}
							if len(errs) != 1 || !errors.Is(errs[0], errShut) {
								t.Errorf("errors: got %v, want the one of the shutdown", errs)
							}
						})
					})
				}
			}
		}
	}
}
