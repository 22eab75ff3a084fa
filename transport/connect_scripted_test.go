package transport

import (
	"errors"
	"fmt"
	"net"
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

// connectErrors are what a call of a connect may meet.
var connectErrors = []syscall.Errno{
	syscall.EAGAIN, syscall.EINTR, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNRESET, syscall.EPIPE,
	syscall.EMFILE, syscall.ENFILE, syscall.ECONNREFUSED, syscall.ETIMEDOUT, syscall.EADDRINUSE,
	syscall.EADDRNOTAVAIL, syscall.ENETUNREACH, syscall.EACCES, syscall.EINVAL,
}

// connectScript is a kernel that makes connections as a test says. It is the connector of
// the channel and its socket.
type connectScript struct {
	*script // what is read and written when it is connected
	s       *stream

	answers map[string][]answer            // to the connects to an address, in order; the last one lasts
	calls   []string                       // names, in order
	fault   func(i int, call string) error // of call i
	control func()                         // called while the options are set

	next    int
	open    map[int]string // the addresses of the sockets that are open
	pending map[int]error  // what a connect that was waited for has come to
	tried   []string       // addresses
}

// answer is what becomes of a connect: at once, or, if that is sys.ErrInProgress, in the end.
type answer struct{ at, end error }

func newConnectScript(t *testing.T) *connectScript {
	return &connectScript{
		script: &script{t: t}, next: scriptFD,
		answers: make(map[string][]answer), open: make(map[int]string), pending: make(map[int]error),
	}
}

func (k *connectScript) called(call string, fd int) error {
	k.calls = append(k.calls, call)
	if fd >= 0 && k.open[fd] == "" {
		k.t.Errorf("%s of descriptor %d, which is not open", call, fd)
	}
	if k.fault != nil {
		return k.fault(len(k.calls)-1, call)
	}
	return nil
}

func (k *connectScript) socket(addr net.Addr) (int, error) {
	if err := k.called("socket", -1); err != nil {
		return -1, err
	}
	k.next++
	k.open[k.next] = addr.String()
	return k.next, nil
}

func (k *connectScript) prepare(_ *Config, fd int, _, _ net.Addr) error {
	if k.control != nil {
		k.control()
	}
	return k.called("setsockopt", fd)
}

func (k *connectScript) bind(fd int, _ net.Addr) error { return k.called("bind", fd) }

func (k *connectScript) connect(fd int, addr net.Addr) error {
	if k.open[fd] != addr.String() {
		k.t.Errorf("the socket for %s connects to %s", k.open[fd], addr)
	}
	k.tried = append(k.tried, addr.String())
	if err := k.called("connect", fd); err != nil {
		return err
	}
	var a answer
	if all := k.answers[addr.String()]; len(all) > 0 {
		a = all[0]
		if len(all) > 1 {
			k.answers[addr.String()] = all[1:]
		}
	}
	k.pending[fd] = a.end
	return a.at
}

func (k *connectScript) localAddr(fd int, network string) (net.Addr, error) {
	if err := k.called("getsockname", fd); err != nil {
		return nil, err
	}
	if network == "unix" {
		return &net.UnixAddr{Net: network}, nil
	}
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 40000}, nil
}

func (k *connectScript) remoteAddr(fd int, _ string) (net.Addr, error) {
	return nil, k.called("getpeername", fd)
}

func (k *connectScript) close(fd int) {
	if k.open[fd] == "" {
		k.t.Errorf("descriptor %d is closed, and was not open", fd)
	}
	delete(k.open, fd)
	delete(k.pending, fd)
}

// connectSocket is the connectScript as the socket of its channel.
type connectSocket struct {
	scriptSocket
	k *connectScript
}

func (s connectSocket) socketError() error {
	fd := int(s.k.s.fd.fd)
	if err := s.k.called("getsockopt", fd); err != nil {
		return err
	}
	return s.k.pending[fd]
}

func (s connectSocket) close() {
	s.k.script.close()
	s.k.close(int(s.k.s.fd.fd))
}

// connectRig is a channel that connects by a connectScript, on a loop of virtual time.
type connectRig struct {
	*stream
	t        *testing.T
	k        *connectScript
	m        *eventloop.Manual
	deadline time.Duration
	rec      *rig    // for its recorder
	result   []error // of the dial
	promised []error // of the connect
}

// throughScript has the connect of a connectRig made by its script.
type throughScript struct{ x *connectRig }

func (h throughScript) HandleConnect(c *pipeline.Context, remote, local net.Addr, p *eventloop.Promise) error {
	remote.(*candidates).by = h.x.k
	p.Then(func(err error) { h.x.promised = append(h.x.promised, err) })
	c.ForwardConnect(remote, local, p)
	return nil
}

// newConnectRig makes a channel; dial has it connect.
func newConnectRig(t *testing.T, cfg Config) *connectRig {
	t.Helper()
	c, err := cfg.check()
	if err != nil {
		t.Fatal(err)
	}
	x := &connectRig{t: t, k: newConnectScript(t), m: eventloop.NewManual(), rec: &rig{t: t}, deadline: 30 * time.Second}
	x.m.Turn() // which tells the loop the time
	x.stream = newStream(&c, x.m.Loop(), nil, -1)
	x.k.s = x.stream
	x.sock = connectSocket{scriptSocket{x.k.script}, x.k}
	return x
}

// init adds a recorder, the way to the script, and the handlers.
func (x *connectRig) init(handlers ...any) func(pipeline.Channel) error {
	return func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(append([]any{&recorder{r: x.rec}, throughScript{x}}, handlers...)...)
	}
}

// dial connects to the addresses, with somebody who gives up at the deadline, as Dial does.
func (x *connectRig) dial(local net.Addr, addrs ...string) {
	var list []net.Addr
	for _, a := range addrs {
		network := "tcp"
		if a[0] == '@' {
			network = "unix"
		}
		list = append(list, literal(network, a)...)
	}
	d := &Dialer{LocalAddr: local, Init: x.init()}
	x.m.Enter(func() {
		x.Loop().Schedule(x.deadline, func() { x.give(ErrConnectTimeout) })
		d.connect(x.stream, list, x.Loop().Now().Add(x.deadline), func(err error) { x.result = append(x.result, err) })
	})
	x.m.RunUntilIdle()
}

// give gives the connect up.
func (x *connectRig) give(reason error) {
	if len(x.result) == 0 {
		x.Abort(pipeline.CloseNow, reason)
	}
}

// ready makes ev ready on the socket of now.
func (x *connectRig) ready(ev eventloop.Event) {
	x.m.Ready(int(x.fd.fd), ev)
	x.m.RunUntilIdle()
}

// wantTimers looks whether there is a timer more than that of who gives up at the deadline
// and, while others are left, that of the address that is tried.
func (x *connectRig) wantTimers() {
	x.t.Helper()
	most := 1
	if x.at == streamConnecting && len(x.rare.dial.addrs) > 0 {
		most = 2
	}
	if n := x.m.Loop().Metrics().TimersArmed; n > most {
		x.t.Errorf("in state %d: got %d timers armed, want %d at most", x.at, n, most)
	}
}

// end ends the channel and looks at what it has told and left.
func (x *connectRig) end() {
	x.t.Helper()
	connected := len(x.result) == 1 && x.result[0] == nil
	if connected && x.Open() && len(x.k.open) != 1 {
		x.t.Errorf("connected: got sockets %v, want one", x.k.open)
	}
	x.m.Enter(x.Reset)
	x.m.Advance(2 * x.deadline)
	if n := x.m.Loop().Metrics(); n.TimersArmed != 0 || n.Registrations != 0 {
		x.t.Errorf("at the end: got %d timers armed and %d registrations, want none", n.TimersArmed, n.Registrations)
	}
	x.m.Close()
	if len(x.result) != 1 || len(x.promised) > 1 {
		x.t.Errorf("got outcomes %v of promises %v, want one each", x.result, x.promised)
	}
	if len(x.k.open) != 0 {
		x.t.Errorf("descriptors left open: %v", x.k.open)
	}
	if x.at != streamClosed || x.rare != nil && x.rare.dial != nil {
		x.t.Errorf("the channel is in state %d", x.at)
	}
	// What its handlers see of it: it was active and became inactive, or neither.
	var life []string
	for _, ev := range x.rec.log {
		if ev == "active" || ev == "inactive" || ev == "unregistered" {
			life = append(life, ev)
		}
	}
	want := []string{"unregistered"}
	if slices.Contains(life, "active") {
		want = []string{"active", "inactive", "unregistered"}
	}
	if !slices.Equal(life, want) || connected && len(life) != 3 {
		x.t.Errorf("events: got %q, connected %v", life, connected)
	}
	if !connected && slices.ContainsFunc(x.rec.log, func(s string) bool { return strings.HasPrefix(s, "error") }) && len(life) == 1 {
		x.t.Errorf("a connect that fails is told to who dials, and to no handler: got %q", x.rec.log)
	}
}

const (
	refusing = "192.0.2.1:1"
	silent   = "192.0.2.2:2"
	taking   = "192.0.2.3:3"
)

var refusal = os.NewSyscallError("connect", syscall.ECONNREFUSED)

// threeAddresses dials a host that has one address that refuses, one that does not answer,
// and one that takes the connection, and lets what is to come come. It stops when the
// channel is over.
func (x *connectRig) threeAddresses(between func()) {
	x.k.answers[refusing] = []answer{{sys.ErrInProgress, refusal}}
	x.k.answers[silent] = []answer{{sys.ErrInProgress, nil}}
	x.k.answers[taking] = []answer{{sys.ErrInProgress, nil}}
	x.dial(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, refusing, silent, taking)
	for range 40 {
		between()
		x.wantTimers()
		if x.at != streamConnecting {
			break
		}
		switch x.k.open[int(x.fd.fd)] {
		case refusing:
			x.ready(eventloop.EventWrite | eventloop.EventError | eventloop.EventHangup)
		case taking:
			x.ready(eventloop.EventWrite)
		default:
			x.m.Advance(x.deadline / 20)
		}
	}
}

// Every error in every call of a connect has the address fail whose it is, and no other; of
// several failures the first is told. Nothing is left open.
func TestFaultsOfConnect(t *testing.T) {
	x := newConnectRig(t, Config{})
	x.threeAddresses(func() {})
	x.end()
	sound := x.k.calls
	if len(x.result) != 1 || x.result[0] != nil {
		t.Fatalf("without faults: got %v, want a connection", x.result)
	}
	for _, call := range []string{"socket", "setsockopt", "bind", "connect", "getsockopt", "getsockname"} {
		if !slices.Contains(sound, call) {
			t.Fatalf("calls: got %q, and no %s", sound, call)
		}
	}
	attempts := func(calls []string) (n int) {
		for _, c := range calls {
			if c == "socket" {
				n++
			}
		}
		return n
	}
	for i, call := range sound {
		for _, e := range connectErrors {
			t.Run(fmt.Sprintf("%v in call %d, %s", e, i, call), func(t *testing.T) {
				err := error(os.NewSyscallError(call, e))
				if e == syscall.EAGAIN {
					err = sys.ErrAgain
				}
				x := newConnectRig(t, Config{})
				hit := false
				x.k.fault = func(n int, name string) error {
					if n != i {
						return nil
					}
					if hit = true; name != call {
						t.Errorf("call %d is %s", n, name)
					}
					return err
				}
				x.threeAddresses(func() {})
				x.end()
				if !hit {
					t.Fatal("the fault has not come")
				}
				nth := attempts(sound[:i+1])
				if got, want := attempts(x.k.calls), 3; got != want {
					t.Errorf("addresses: got %d tried, want %d", got, want)
				}
				switch {
				case call == "getsockname" || nth < 3:
					if x.result[0] != nil {
						t.Errorf("got %v, want a connection to the last address", x.result[0])
					}
				default:
					// All three have failed, the first of them by its refusal.
					var op *OpError
					if !errors.As(x.result[0], &op) || op.Op != "connect" || op.Addr.String() != refusing ||
						!errors.Is(x.result[0], syscall.ECONNREFUSED) {
						t.Errorf("got %v, want a connect *OpError of the first refusal", x.result[0])
					}
				}

				// The only address there is: the error is told, unless it is one of a name.
				x = newConnectRig(t, Config{})
				x.k.answers[taking] = []answer{{sys.ErrInProgress, nil}}
				x.k.fault = func(_ int, name string) error {
					if name == call {
						return err
					}
					return nil
				}
				x.dial(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, taking)
				x.ready(eventloop.EventWrite)
				x.end()
				var op *OpError
				switch {
				case call == "getsockname":
					if x.result[0] != nil {
						t.Errorf("alone: got %v, want a connection", x.result[0])
					}
				case !errors.As(x.result[0], &op) || op.Op != "connect" || !errors.Is(x.result[0], e):
					t.Errorf("alone: got %v, want a connect *OpError of %v", x.result[0], e)
				}
			})
		}
	}
}

// A connect that was waited for ends once, whatever is reported of its socket, in whatever
// combination and order, and whatever it has come to.
func TestEventsOfConnect(t *testing.T) {
	const all = eventloop.EventRead | eventloop.EventWrite | eventloop.EventReadHangup |
		eventloop.EventHangup | eventloop.EventError
	const settling = eventloop.EventWrite | eventloop.EventHangup | eventloop.EventError
	var sets []eventloop.Event
	for ev := eventloop.EventRead; ev <= all; ev++ {
		if ev&all == ev {
			sets = append(sets, ev)
		}
	}
	if len(sets) != 31 {
		t.Fatalf("got %d sets of events, want 31", len(sets))
	}
	for _, end := range []error{nil, refusal, os.NewSyscallError("connect", syscall.ECONNRESET)} {
		for _, first := range sets {
			for _, then := range sets {
				x := newConnectRig(t, Config{})
				x.k.answers[taking] = []answer{{sys.ErrInProgress, end}}
				x.dial(nil, taking)
				fd := int(x.fd.fd)
				x.m.Ready(fd, first)
				x.m.RunUntilIdle()
				settled := first&settling != 0
				if got := len(x.result) == 1; got != settled {
					t.Errorf("%v of a connect that comes to %v: got an outcome %v, want %v", first, end, got, settled)
				}
				if then&eventloop.EventReadHangup != 0 {
					x.k.in = append(x.k.in, readStep{data: "last"}, readStep{eof: true})
				}
				x.m.Ready(fd, then)
				x.m.RunUntilIdle()
				if settled = settled || then&settling != 0; settled && (len(x.result) != 1 || !errors.Is(x.result[0], end)) {
					t.Errorf("%v, then %v: got %v, want %v", first, then, x.result, end)
				}
				// What the socket has, is heard of when it is connected, and not before.
				if end == nil && settled && !slices.Contains(x.rec.log, "active") {
					t.Errorf("%v, then %v: got %q, want it active", first, then, x.rec.log)
				}
				x.end()
				if t.Failed() {
					t.Fatalf("%v, then %v, of a connect that comes to %v: %q", first, then, end, x.rec.log)
				}
			}
		}
	}
}

// endsOfConnect are the ways in which a connect is given up.
var endsOfConnect = []struct {
	name string
	do   func(x *connectRig)
	want error
}{
	{"time-out", func(x *connectRig) { x.give(ErrConnectTimeout) }, ErrConnectTimeout},
	{"cancel", func(x *connectRig) { x.give(errPipe) }, errPipe},
	{"Close", func(x *connectRig) { x.Close() }, pipeline.ErrClosed},
	{"Reset", func(x *connectRig) { x.Reset() }, pipeline.ErrReset},
	{"the loop ends", func(x *connectRig) { x.CloseIO() }, ErrLoopEnded},
	{"an error in a handler", func(x *connectRig) { x.Abort(pipeline.CloseReset, errPipe) }, errPipe},
}

// A connect is given up at every moment: between all steps, with the outcome on its way, in
// the turn in which time is over for the address, while options are set, and by those who
// are told that it has come about.
func TestConnectGivenUpAtEveryMoment(t *testing.T) {
	for _, e := range endsOfConnect {
		t.Run(e.name, func(t *testing.T) {
			for moment := 0; ; moment++ {
				x := newConnectRig(t, Config{})
				step, given := 0, false
				x.threeAddresses(func() {
					if step == moment {
						given = true
						if moment%2 == 1 && x.fd.fd >= 0 {
							x.m.Ready(int(x.fd.fd), eventloop.EventWrite) // and the turn has not come yet
						}
						x.m.Enter(func() { e.do(x) })
						x.m.RunUntilIdle()
					}
					step++
				})
				connected := len(x.k.open) == 1 || slices.Contains(x.rec.log, "active")
				x.end()
				if given && !connected && !errors.Is(x.result[0], e.want) {
					t.Errorf("at moment %d: got %v, want %v", moment, x.result[0], e.want)
				}
				if t.Failed() || !given {
					if moment < 10 {
						t.Fatalf("got %d moments, want more", moment)
					}
					return
				}
			}
		})
		t.Run(e.name+" when the time of the address is over", func(t *testing.T) {
			x := newConnectRig(t, Config{})
			x.k.answers[silent] = []answer{{sys.ErrInProgress, nil}}
			x.dial(nil, silent, taking)
			x.m.Enter(func() { x.Loop().Schedule(x.deadline/2, func() { e.do(x) }) }) // behind the address's own
			x.k.answers[taking] = []answer{{sys.ErrInProgress, nil}}
			x.m.Advance(x.deadline / 2)
			x.end()
			if !errors.Is(x.result[0], e.want) {
				t.Errorf("got %v, want %v", x.result[0], e.want)
			}
		})
		t.Run(e.name+" while options are set", func(t *testing.T) {
			for nth := 1; nth <= 3; nth++ {
				for _, also := range []error{nil, errPipe} { // and the hook fails, or does not
					x := newConnectRig(t, Config{})
					sockets := 0
					x.k.control = func() {
						if sockets++; sockets == nth {
							e.do(x)
						}
					}
					x.k.fault = func(_ int, call string) error {
						if call == "setsockopt" && sockets == nth {
							return also
						}
						return nil
					}
					x.threeAddresses(func() {})
					x.end()
					if sockets != nth || !errors.Is(x.result[0], e.want) {
						t.Errorf("at socket %d: got %v after %d sockets, want %v", nth, x.result[0], sockets, e.want)
					}
				}
			}
		})
		t.Run(e.name+" by who is told", func(t *testing.T) {
			for _, at := range []error{nil, sys.ErrInProgress} {
				x := newConnectRig(t, Config{})
				x.k.answers[taking] = []answer{{at, nil}}
				x.m.Enter(func() {
					d := &Dialer{Init: x.init(connectHook(func(p *eventloop.Promise) {
						p.Then(func(error) { e.do(x) })
					}))}
					d.connect(x.stream, literal("tcp", taking), time.Time{}, func(err error) { x.result = append(x.result, err) })
				})
				x.m.RunUntilIdle()
				if len(x.k.open) > 0 {
					x.ready(eventloop.EventWrite)
				}
				x.end()
				if x.result[0] == nil || slices.Contains(x.rec.log, "active") && !errors.Is(x.result[0], e.want) {
					t.Errorf("got %v with %q, want %v", x.result[0], x.rec.log, e.want)
				}
			}
		})
	}
}

// connectHook is called with the promise of a connect.
type connectHook func(p *eventloop.Promise)

func (h connectHook) HandleConnect(c *pipeline.Context, remote, local net.Addr, p *eventloop.Promise) error {
	h(p)
	c.ForwardConnect(remote, local, p)
	return nil
}

// Of TCP EAGAIN says nothing about when it would be better: the address has failed, and the
// others are tried. Of a Unix socket it is tried again until there is room.
func TestConnectAgain(t *testing.T) {
	x := newConnectRig(t, Config{})
	x.k.answers[refusing] = []answer{{at: sys.ErrAgain}}
	x.dial(nil, refusing, taking)
	x.end()
	if x.result[0] != nil || !slices.Equal(x.k.tried, []string{refusing, taking}) {
		t.Errorf("TCP: got %v after %q, want a connection to the other address", x.result, x.k.tried)
	}

	x = newConnectRig(t, Config{})
	x.k.answers["@full"] = []answer{{at: sys.ErrAgain}, {at: sys.ErrAgain}, {at: sys.ErrAgain}, {}}
	x.dial(nil, "@full")
	for range 3 {
		if len(x.result) > 0 || len(x.k.open) > 0 {
			t.Errorf("without room: got %v and open sockets %v, want none", x.result, x.k.open)
		}
		x.m.Advance(connectRetry)
	}
	x.end()
	if x.result[0] != nil || len(x.k.tried) != 4 {
		t.Errorf("Unix: got %v after %d tries, want a connection at the fourth", x.result, len(x.k.tried))
	}

	for _, e := range endsOfConnect {
		x = newConnectRig(t, Config{})
		x.k.answers["@full"] = []answer{{at: sys.ErrAgain}}
		x.dial(nil, "@full")
		x.m.Advance(5 * connectRetry)
		x.m.Enter(func() { e.do(x) })
		tries := len(x.k.tried)
		x.end()
		if !errors.Is(x.result[0], e.want) || len(x.k.tried) != tries {
			t.Errorf("%s: got %v and %d more tries, want %v and none", e.name, x.result[0], len(x.k.tried)-tries, e.want)
		}
	}
}

// Several addresses are tried in turn whatever becomes of each: the first that connects is
// it, and none behind it is tried.
func TestAddressesInTurn(t *testing.T) {
	ends := []answer{
		{},                       // connected at once
		{at: refusal},            // refused at once
		{sys.ErrInProgress, nil}, // connected in the end
		{sys.ErrInProgress, refusal},
		{at: sys.ErrAgain},
		{sys.ErrInProgress, sys.ErrInProgress}, // never answers
	}
	addrs := []string{refusing, silent, taking}
	for n := range len(ends) * len(ends) * len(ends) {
		which := []int{n % len(ends), n / len(ends) % len(ends), n / len(ends) / len(ends)}
		x := newConnectRig(t, Config{})
		want, connects := addrs, false
		for i, w := range which {
			x.k.answers[addrs[i]] = []answer{ends[w]}
			if connects = ends[w].end == nil && (ends[w].at == nil || ends[w].at == sys.ErrInProgress); connects {
				want = addrs[:i+1]
				break
			}
		}
		x.dial(nil, addrs...)
		for range 60 {
			if x.at != streamConnecting {
				break
			}
			if fd := int(x.fd.fd); x.k.pending[fd] != sys.ErrInProgress {
				x.ready(eventloop.EventWrite)
			} else {
				x.m.Advance(x.deadline / 20)
			}
		}
		x.wantTimers()
		if connects {
			if got := x.RemoteAddr().String(); got != want[len(want)-1] || len(x.k.open) != 1 {
				t.Errorf("connected to %s with open sockets %v, want %s", got, x.k.open, want[len(want)-1])
			}
		}
		x.end()
		if got := x.result[0] == nil; got != connects || !slices.Equal(x.k.tried, want) {
			t.Errorf("got %v after %q, want connected %v after %q", x.result[0], x.k.tried, connects, want)
		}
		if t.Failed() {
			t.Fatalf("with addresses of kinds %v", which)
		}
	}
}

// dgramConnectSocket is the socket of a channel of datagrams that a connectScript has
// connected.
type dgramConnectSocket struct {
	*dgramScript
	k *connectScript
	s *dgram
}

func (s dgramConnectSocket) close() {
	s.dgramScript.close()
	s.k.close(int(s.s.fd.fd))
}

// connectDatagrams connects a channel of datagrams to the addresses, and looks at what is left
// when it has ended. It returns how often the channel was active, and the outcome.
func connectDatagrams(t *testing.T, k *connectScript, addrs ...string) (active int, result error) {
	t.Helper()
	cfg, err := Config{}.check()
	if err != nil {
		t.Fatal(err)
	}
	m := eventloop.NewManual()
	s := newDgram(&cfg, m.Loop(), -1, nil)
	s.sock = dgramConnectSocket{&dgramScript{t: t}, k, s}
	x := &connectRig{k: k, rec: &rig{t: t}}
	if k.control != nil {
		control := k.control
		k.control = func() { k.control = nil; control(); s.Reset() }
	}
	var list []net.Addr
	for _, a := range addrs {
		list = append(list, literal("udp", a)...)
	}
	var results []error
	m.Enter(func() {
		d := &Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, Init: x.init()}
		d.connect(s, list, time.Time{}, func(err error) { results = append(results, err) })
	})
	m.RunUntilIdle()
	if len(results) != 1 || len(x.promised) != 1 {
		t.Fatalf("got outcomes %v of promises %v, want one each", results, x.promised)
	}
	if results[0] == nil && len(k.open) != 1 || results[0] != nil && (len(k.open) != 0 || !s.over()) {
		t.Errorf("got %v with open sockets %v, over %v", results[0], k.open, s.over())
	}
	m.Enter(s.Reset)
	m.RunUntilIdle()
	if n := m.Loop().Metrics(); n.TimersArmed != 0 || n.Registrations != 0 || len(k.open) != 0 {
		t.Errorf("at the end: got %d timers, %d registrations, open sockets %v; want none", n.TimersArmed, n.Registrations, k.open)
	}
	m.Close()
	for _, ev := range x.rec.log {
		switch {
		case ev == "active":
			active++
		case strings.HasPrefix(ev, "error"):
			t.Errorf("a connect that fails is told to who dials, and to no handler: got %q", x.rec.log)
		}
	}
	return active, results[0]
}

// Every error in every call of the connect of a channel of datagrams has that address fail;
// without another one it is the outcome.
func TestFaultsOfDatagramConnect(t *testing.T) {
	for _, call := range []string{"socket", "setsockopt", "bind", "connect", "getsockname", "getpeername"} {
		for _, e := range connectErrors {
			t.Run(fmt.Sprintf("%v in %s", e, call), func(t *testing.T) {
				for _, lasts := range []bool{false, true} {
					k := newConnectScript(t)
					hits := 0
					k.fault = func(_ int, name string) error {
						if name != call || hits > 0 && !lasts {
							return nil
						}
						hits++
						return os.NewSyscallError(call, e)
					}
					active, err := connectDatagrams(t, k, refusing, taking)
					names := call == "getsockname" || call == "getpeername" // which nothing depends on
					if want := !lasts || names; (err == nil) != want || (active == 1) != want {
						t.Errorf("lasting %v: got %v, active %d times; want a connection %v", lasts, err, active, want)
					}
					var op *OpError
					if err != nil && (!errors.As(err, &op) || op.Op != "connect" || op.Addr.String() != refusing || !errors.Is(err, e)) {
						t.Errorf("got %v, want a connect *OpError of %v to the first address", err, e)
					}
					if all := hits == 2; all != (lasts && !names) || hits == 0 {
						t.Errorf("lasting %v: got %d faults", lasts, hits)
					}
				}
			})
		}
	}
	for _, also := range []error{nil, errPipe} {
		k := newConnectScript(t)
		k.control = func() {}
		k.fault = func(_ int, call string) error {
			if call == "setsockopt" {
				return also
			}
			return nil
		}
		active, err := connectDatagrams(t, k, refusing, taking)
		if !errors.Is(err, pipeline.ErrReset) || active != 0 || len(k.tried) != 0 || k.next != scriptFD+1 {
			t.Errorf("closed while options are set: got %v, active %d times, %d sockets; want it reset at the first", err, active, k.next-scriptFD)
		}
	}
}
