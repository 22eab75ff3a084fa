package transport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

func named(name string) *net.UnixAddr { return &net.UnixAddr{Name: name, Net: "unixgram"} }

// outcomes notes what was told of operations, in order.
type outcomes []string

func (o *outcomes) of(name string) func(error) {
	return func(err error) {
		if err != nil {
			name += " failed"
		}
		*o = append(*o, name)
	}
}

// Connects and disconnects have their place among the writes, however many datagrams a
// call takes and however often the socket is full.
func TestPeerChangesAreInOrder(t *testing.T) {
	for step := 1; step <= 4; step++ {
		for _, full := range []bool{false, true} {
			t.Run(fmt.Sprint(step, full), func(t *testing.T) {
				r := newDgramRig(t, rigConfig{})
				var told outcomes
				r.do(func() {
					for range 40 {
						if full {
							r.k.take = append(r.k.take, takeStep{err: sys.ErrAgain})
						}
						r.k.take = append(r.k.take, takeStep{n: step})
					}
					write := func(msg any, name string) { r.WriteThen(msg, told.of(name)) }
					write(to("a", "1"), "1")
					write(to("b", "2"), "2")
					Connect(r, named("a"), told.of("a"))
					write("3", "3")
					write(to("a", "4"), "4") // to its peer, which goes without saying
					write(to("b", "never"), "never")
					Connect(r, named("c"), told.of("c"))
					write("5", "5")
					Disconnect(r, told.of("-"))
					write("never", "never")
					write(to("b", "6"), "6")
					Disconnect(r, told.of("-"))
					write(to("b", "7"), "7")
				})
				for range 40 {
					r.ready(eventloop.EventWrite)
				}
				r.wantOut("a: 1", "b: 2", "connect a", ": 3", ": 4", "disconnect", "connect c", ": 5", "disconnect", "b: 6", "b: 7")
				want := outcomes{"never failed", "never failed", "1", "2", "a", "3", "4", "c", "5", "-", "6", "-", "7"}
				if slices.Sort(told); len(told) != len(want) {
					t.Errorf("told: got %q", told)
				}
				slices.Sort(want)
				if !slices.Equal(told, want) {
					t.Errorf("told: got %q, want %q", told, want)
				}
				if r.out.charge != 0 || r.change != nil {
					t.Errorf("afterwards: got charge %d, change %v", r.out.charge, r.change)
				}
				r.wantLog()
			})
		}
	}
}

// What comes is told from what came before the connect: only the peer is heard while there
// is one, and handlers get what a channel of that kind gets.
func TestConnectedAtRunTimeHearsItsPeerOnly(t *testing.T) {
	r := newDgramRig(t, rigConfig{})
	r.readable(from("a", "1")...)
	r.do(func() { Connect(r, named("a"), nil) })
	if got := r.RemoteAddr(); got == nil || got.String() != "a" {
		t.Errorf("remote address: got %v, want a", got)
	}
	r.readable(from("b", "2")...)
	r.readable(from("a", "3")...)
	r.do(func() { Disconnect(r, nil) })
	if got := r.RemoteAddr(); got != nil {
		t.Errorf("remote address: got %v, want nil", got)
	}
	r.readable(from("b", "4")...)
	r.wantLog("read a: 1", "complete", "complete", "read 3", "complete", "read b: 4", "complete")
}

// A handler that connects to the sender of the first datagram gets no other's of the
// batch, and its answer to the first goes where it should.
func TestConnectInHandler(t *testing.T) {
	for _, noted := range []bool{false, true} {
		r := newDgramRig(t, rigConfig{}, pipeline.On(func(c *pipeline.Context, d *Datagram) error {
			Connect(c.Channel(), named(d.Name), nil)
			c.Write(d)
			return nil
		}))
		r.fd.notes = noted
		r.readable(slices.Concat(from("a", "1"), from("b", "2"), from("a", "3"))...)
		r.wantLog("read 3", "complete")
		r.wantOut("connect a", ": 1")
	}
}

// A connect that fails leaves the channel open and without a peer: what was written for it
// goes to nobody. Who does not ask is told by HandleError.
func TestConnectFails(t *testing.T) {
	for _, before := range []bool{false, true} {
		r := newDgramRig(t, rigConfig{})
		if before {
			r.do(func() { Connect(r, named("a"), nil) })
			r.wantOut("connect a")
		}
		r.k.refuse = os.NewSyscallError("connect", syscall.ECONNREFUSED)
		r.k.take = []takeStep{{err: sys.ErrAgain}, {n: 1}, {err: os.NewSyscallError("sendmmsg", syscall.ENOTCONN)}}
		var got error
		r.do(func() {
			if before {
				r.Write("0")
			} else {
				r.Write(to("a", "0"))
			}
			Connect(r, named("b"), func(err error) { got = err })
			r.Write("for b only")
			Connect(r, named("c"), nil)
			Disconnect(r, nil)
			r.Write(to("d", "1"))
		})
		r.ready(eventloop.EventWrite)
		want := []string{"a: 0", "connect b", "connect c", "d: 1"}
		if before {
			want = []string{": 0", "disconnect", "connect b", "connect c", "d: 1"}
		}
		r.wantOut(want...)
		var op *OpError
		if !errors.Is(got, syscall.ECONNREFUSED) || !errors.As(got, &op) || op.Op != "connect" || op.Addr.String() != "b" {
			t.Errorf("got %v, want a connect *OpError of b", got)
		}
		r.wantLog("error transport: write: sendmmsg: transport endpoint is not connected",
			"error transport: connect c: connect: connection refused")
		if !r.Open() || r.RemoteAddr() != nil {
			t.Errorf("open %v, remote address %v", r.Open(), r.RemoteAddr())
		}
	}
}

// A socket that may have lost its port cannot be reached any more.
func TestDisconnectThatFailsCloses(t *testing.T) {
	for _, remote := range []net.Addr{nil, named("b")} {
		r := newDgramRig(t, rigConfig{dialed: true})
		r.k.lost = os.NewSyscallError("bind", syscall.EADDRINUSE)
		var told []error
		r.do(func() {
			changePeer(r, remote, func(err error) { told = append(told, err) })
			r.WriteThen("behind", func(err error) { told = append(told, err) })
		})
		if len(told) != 2 || !errors.Is(told[0], syscall.EADDRINUSE) || !errors.Is(told[1], pipeline.ErrClosed) {
			t.Errorf("got %v", told)
		}
		if !errors.Is(r.CloseReason(), syscall.EADDRINUSE) {
			t.Errorf("close reason: got %v, want EADDRINUSE", r.CloseReason())
		}
		r.wantLog("error transport: disconnect: bind: address already in use", "inactive", "unregistered")
	}
}

// What waits for a receiver without room goes before the connect to it, so that what is
// written behind does not overtake it.
func TestConnectWaitsForWhatIsAside(t *testing.T) {
	for _, reads := range []bool{true, false} {
		r := newDgramRig(t, rigConfig{})
		var told outcomes
		again := takeStep{err: sys.ErrAgain}
		r.do(func() {
			r.k.take = []takeStep{again}
			r.WriteThen(to("a", "1"), told.of("1"))
			r.Write(to("b", "2"))
			Connect(r, named("a"), told.of("a"))
			r.WriteThen("3", told.of("3"))
		})
		r.k.take = append(r.k.take, again)
		r.ready(eventloop.EventWrite) // the socket is ready, and still does not take it
		r.wantOut("b: 2")
		calls := len(r.k.calls)
		r.do(r.Flush)
		r.m.RunUntilIdle()
		if n := len(r.k.calls) - calls; n != 0 || len(told) != 0 {
			t.Errorf("got %d calls and %q before the receiver is tried again", n, told)
		}
		if !reads {
			for range 1000 {
				r.k.take = append(r.k.take, again)
			}
			for range 30 {
				r.m.Advance(100 * time.Millisecond)
				r.ready(eventloop.EventWrite)
			}
			r.k.take = nil
			r.m.Advance(maxDgramRest)
			r.wantOut("connect a", ": 3")
			if want := (outcomes{"1 failed", "a", "3"}); !slices.Equal(told, want) {
				t.Errorf("told: got %q, want %q", told, want)
			}
			continue
		}
		r.m.Advance(maxDgramRest)
		r.wantOut("a: 1", "connect a", ": 3")
		if want := (outcomes{"1", "a", "3"}); !slices.Equal(told, want) {
			t.Errorf("told: got %q, want %q", told, want)
		}
	}
}

// Close lets a change that waits happen; Reset drops it. Each is told once.
func TestCloseWithPeerChangeWaiting(t *testing.T) {
	for _, reset := range []bool{false, true} {
		r := newDgramRig(t, rigConfig{})
		var told outcomes
		r.do(func() {
			r.k.take = []takeStep{{err: sys.ErrAgain}}
			r.Write(to("a", "1"))
			Connect(r, named("a"), told.of("a"))
			r.WriteThen("2", told.of("2"))
			if reset {
				r.Reset()
			} else {
				r.Close()
			}
			Connect(r, named("b"), told.of("b"))
		})
		if !reset {
			r.ready(eventloop.EventWrite)
			r.wantOut("a: 1", "connect a", ": 2")
			if want := (outcomes{"b failed", "a", "2"}); !slices.Equal(told, want) {
				t.Errorf("told: got %q, want %q", told, want)
			}
		} else {
			r.wantOut()
			slices.Sort(told)
			if want := (outcomes{"2 failed", "a failed", "b failed"}); !slices.Equal(told, want) {
				t.Errorf("told: got %q, want %q", told, want)
			}
		}
		if r.Open() {
			t.Error("still open")
		}
	}
}

// With ManualFlush what was written before is flushed, and what is written behind is not.
func TestConnectFlushesWhatIsBefore(t *testing.T) {
	r := newDgramRig(t, rigConfig{Config: Config{ManualFlush: true}})
	r.do(func() {
		r.Write(to("a", "1"))
		Connect(r, named("a"), nil)
		r.Write("2")
	})
	r.wantOut("a: 1", "connect a")
	r.do(r.Flush)
	r.wantOut(": 2")
}

// Before the channel is active a connect waits as writes do.
func TestConnectInInit(t *testing.T) {
	var told outcomes
	m := eventloop.NewManual()
	defer m.Close()
	cfg, err := Config{}.check()
	if err != nil {
		t.Fatal(err)
	}
	k := &dgramScript{t: t}
	ch := newDgram(&cfg, m.Loop(), scriptFD, nil)
	ch.unix, ch.sock = true, k
	m.Enter(func() {
		ch.start(func(pipeline.Channel) error {
			ch.Write(to("a", "1"))
			Connect(ch, named("a"), told.of("a"))
			ch.Write("2")
			if len(told) != 0 {
				t.Error("connected before it is active")
			}
			return nil
		})
	})
	m.Turn()
	if want := []string{"a: 1", "connect a", ": 2"}; !slices.Equal(k.out, want) || !slices.Equal(told, outcomes{"a"}) {
		t.Errorf("got %q, told %q", k.out, told)
	}
}

// What cannot be is refused, and told once, to who asked or to HandleError.
func TestConnectRefused(t *testing.T) {
	udp := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:9"))
	for _, peer := range []net.Addr{nil, udp, &net.TCPAddr{}, noAddr{}} {
		r := newDgramRig(t, rigConfig{})
		var got error
		r.do(func() {
			Connect(r, peer, func(err error) { got = err })
			Connect(r, peer, nil)
			r.Write(to("a", "1"))
		})
		if !errors.Is(got, syscall.EAFNOSUPPORT) {
			t.Errorf("%v: got %v, want EAFNOSUPPORT", peer, got)
		}
		if len(r.rec.log) != 1 || !strings.HasPrefix(r.rec.log[0], "error transport: connect") {
			t.Errorf("%v: got events %q, want one error", peer, r.rec.log)
		}
		r.wantOut("a: 1")
	}

	// A handler may refuse, or have another peer.
	broken := errors.New("not that one")
	r := newDgramRig(t, rigConfig{}, connectHandler(func(c *pipeline.Context, remote, local net.Addr, p *eventloop.Promise) error {
		switch {
		case remote == nil:
			c.ForwardConnect(remote, local, p)
		case remote.String() == "bad":
			return broken
		default:
			c.ForwardConnect(named("other"), local, p)
		}
		return nil
	}))
	var told []error
	r.do(func() {
		for _, name := range []string{"bad", "good"} {
			Connect(r, named(name), func(err error) { told = append(told, err) })
		}
		Disconnect(r, func(err error) { told = append(told, err) })
	})
	if len(told) != 3 || !errors.Is(told[0], broken) || told[1] != nil || told[2] != nil {
		t.Errorf("got %v, want the first refused", told)
	}
	r.wantOut("connect other", "disconnect")

	// Streams have no such thing.
	s := newRig(t, rigConfig{})
	s.log = nil
	var got error
	s.do(func() {
		Connect(s, udp, func(err error) { got = err })
		Disconnect(s, nil)
	})
	if !errors.Is(got, errors.ErrUnsupported) {
		t.Errorf("a stream: got %v, want ErrUnsupported", got)
	}
	if len(s.log) != 1 || !strings.HasPrefix(s.log[0], "error transport: disconnect") {
		t.Errorf("a stream: got events %q, want one error", s.log)
	}
}

type connectHandler func(c *pipeline.Context, remote, local net.Addr, p *eventloop.Promise) error

func (f connectHandler) HandleConnect(c *pipeline.Context, remote, local net.Addr, p *eventloop.Promise) error {
	return f(c, remote, local, p)
}
