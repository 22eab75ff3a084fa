//go:build linux

package transport

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// acceptScript is a listening socket that does what a test says, one step a call, then
// has nobody waiting.
type acceptScript struct {
	steps  []error // nil for a connection
	calls  int
	closes int
	peers  []int // the other ends of the connections
}

func (k *acceptScript) accept() (int, sys.Peer, error) {
	k.calls++
	if len(k.steps) == 0 {
		return -1, sys.Peer{}, sys.ErrAgain
	}
	err := k.steps[0]
	k.steps = k.steps[1:]
	if err != nil {
		return -1, sys.Peer{}, err
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	k.peers = append(k.peers, pair[1])
	return pair[0], sys.Peer{Other: &net.UnixAddr{Net: "unix"}}, nil
}

func (k *acceptScript) close() { k.closes++ }

// ended counts the connections that have been closed on our side.
func (k *acceptScript) ended() (n int) {
	for _, fd := range k.peers {
		if m, err := syscall.Read(fd, make([]byte, 1)); m == 0 && err == nil {
			n++
		}
	}
	return n
}

// acceptRig is a listener on a scripted socket and a loop on virtual time.
type acceptRig struct {
	*listener
	k    *acceptScript
	m    *eventloop.Manual
	logs *observer.ObservedLogs
	chs  []pipeline.Channel // accepted
}

func newAcceptRig(t *testing.T, srv *Server) *acceptRig {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	r := &acceptRig{k: &acceptScript{}, m: eventloop.NewManual(), logs: logs}
	srv.Config.Logger = zap.New(core)
	srv.Init = func(ch pipeline.Channel) error { r.chs = append(r.chs, ch); return nil }
	srv.setUp()
	if srv.err != nil {
		t.Fatal(srv.err)
	}
	r.listener = newListener(srv.s, r.m.Loop(), scriptFD, &net.UnixAddr{Name: "@script", Net: "unix"})
	r.perLoop = true
	r.sock = r.k
	if !srv.s.addListener(r.listener) {
		t.Fatal("the server is closing")
	}
	r.m.Enter(func() {
		if err := r.start(srv.ListenerInit); err != nil {
			t.Fatal(err)
		}
	})
	r.m.Turn()
	t.Cleanup(func() {
		wantNoTimers(t, r.m, r.CloseIO)
		r.m.Close()
		if r.k.closes != 1 {
			t.Errorf("listening socket closed %d times, want once", r.k.closes)
		}
		for _, fd := range r.k.peers {
			syscall.Close(fd)
		}
	})
	return r
}

// come adds steps to the script and has connections wait.
func (r *acceptRig) come(steps ...error) {
	r.k.steps = append(r.k.steps, steps...)
	r.ready()
}

func (r *acceptRig) ready() {
	r.m.Ready(scriptFD, eventloop.EventRead)
	r.m.RunUntilIdle()
}

// wantPaused checks whether the listener waits for connections.
func (r *acceptRig) wantPaused(t *testing.T, want bool, when string) {
	t.Helper()
	if paused := r.reg.Interest() == 0; paused != want {
		t.Errorf("%s: got paused %v, want %v", when, paused, want)
	}
}

func errno(e syscall.Errno) error { return os.NewSyscallError("accept4", e) }

func repeat(n int, err error) []error {
	steps := make([]error, n)
	for i := range steps {
		steps[i] = err
	}
	return steps
}

// accept(2): what happened to one connection while it waited is no reason not to take
// the next one at once.
func TestAcceptErrorsOfOneConnection(t *testing.T) {
	for _, e := range []syscall.Errno{
		syscall.ECONNABORTED, syscall.EPROTO, syscall.EPERM, syscall.EOPNOTSUPP, syscall.ENOPROTOOPT,
		syscall.ENETDOWN, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENONET,
	} {
		t.Run(e.Error(), func(t *testing.T) {
			r := newAcceptRig(t, &Server{})
			r.come(errno(e), nil, errno(e), errno(e), nil)
			if len(r.chs) != 2 {
				t.Errorf("accepted: got %d, want 2", len(r.chs))
			}
			r.wantPaused(t, false, "afterwards")
			if n := r.logs.Len(); n != 0 {
				t.Errorf("lines in the log: got %d, want none", n)
			}
			// If it is all that accept says it is not the connections, and does not spin.
			r.come(repeat(maxReadsPerTurn, errno(e))...)
			r.wantPaused(t, true, "after nothing but failures")
			r.m.Advance(minAcceptBackoff)
			r.come(nil)
			if len(r.chs) != 3 {
				t.Errorf("accepted after the pause: got %d in all, want 3", len(r.chs))
			}
		})
	}
}

// A lack of memory or descriptors pauses accepting, each time for longer, up to a
// second; the log says so at a limited rate.
func TestAcceptBacksOff(t *testing.T) {
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		t.Run(e.Error(), func(t *testing.T) {
			r := newAcceptRig(t, &Server{})
			for _, ms := range []int{10, 20, 40, 80, 160, 320, 640, 1000, 1000} {
				// Once more for the try with the spare descriptor.
				r.come(errno(e), errno(e))
				r.k.steps = nil
				r.wantPaused(t, true, "after the error")
				calls := r.k.calls
				r.m.Advance(time.Duration(ms)*time.Millisecond - 1)
				r.wantPaused(t, true, fmt.Sprintf("just before %d ms are over", ms))
				if r.k.calls != calls {
					t.Errorf("accept was called during the pause")
				}
				r.m.Advance(1)
				r.wantPaused(t, false, fmt.Sprintf("after %d ms", ms))
			}
			if n := r.logs.Len(); n != 1 {
				t.Errorf("lines in the log: got %d after 3 s, want 1", n)
			}
			r.m.Advance(acceptLogEvery)
			r.come(errno(e))
			if got := r.logs.All(); len(got) != 2 || got[1].ContextMap()["not_logged"] != int64(8) {
				t.Errorf("log: got %v, want a second line that counts 8 that were not logged", got)
			}
			r.m.Advance(maxAcceptBackoff)
			r.come(nil)
			r.come(errno(e))
			r.m.Advance(minAcceptBackoff)
			r.wantPaused(t, false, "after a success and the shortest pause")
		})
	}
}

// Without descriptors, those who wait are kept waiting once, and closed when it lasts.
func TestShedding(t *testing.T) {
	r := newAcceptRig(t, &Server{})
	r.come(errno(syscall.EMFILE), nil, nil)
	if n := len(r.k.peers); n != 0 {
		t.Fatalf("shed at once: got %d, want none", n)
	}
	r.m.Advance(minAcceptBackoff)
	r.k.steps = append([]error{errno(syscall.EMFILE), nil, errno(syscall.ECONNABORTED)}, r.k.steps...)
	r.ready()
	if got := r.k.ended(); got != 3 || len(r.chs) != 0 {
		t.Errorf("after the first pause: got %d shed, %d channels; want 3, 0", got, len(r.chs))
	}
	r.wantPaused(t, true, "after shedding")
	if n := r.shed; n != 3 {
		t.Errorf("to be logged as shed: got %d, want 3", n)
	}
	r.m.Advance(2 * minAcceptBackoff)
	r.come(nil)
	if len(r.chs) != 1 {
		t.Errorf("accepted afterwards: got %d, want 1", len(r.chs))
	}

	// A long queue is shed in parts, with the shortest pause in between.
	r.come(errno(syscall.EMFILE))
	r.m.Advance(minAcceptBackoff)
	before := len(r.k.peers)
	r.come(append([]error{errno(syscall.EMFILE)}, repeat(2*maxShed, nil)...)...)
	if n := len(r.k.peers) - before; n != maxShed {
		t.Errorf("shed in one go: got %d, want %d", n, maxShed)
	}
	r.m.Advance(minAcceptBackoff)
	r.wantPaused(t, false, "after a part and the shortest pause")
	r.k.steps = append([]error{errno(syscall.EMFILE)}, r.k.steps...)
	r.ready()
	if n := len(r.k.peers) - before; n != 2*maxShed {
		t.Errorf("shed in two goes: got %d, want %d", n, 2*maxShed)
	}

	// What is not about descriptors is not helped by one.
	r.m.Advance(time.Minute)
	r.come(nil)
	r.come(errno(syscall.ENOMEM))
	r.m.Advance(minAcceptBackoff)
	before = len(r.k.peers)
	r.come(errno(syscall.ENOMEM), nil)
	if n := len(r.k.peers) - before; n != 0 {
		t.Errorf("shed for a lack of memory: got %d, want none", n)
	}
}

// A listening socket that is broken for good ends its listener, with the reason.
func TestAcceptOnBrokenSocket(t *testing.T) {
	for _, e := range []syscall.Errno{syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK} {
		var told error
		r := newAcceptRig(t, &Server{ListenerInit: with(pipeline.OnError(func(_ *pipeline.Context, err error) { told = err }))})
		r.come(nil, errno(e))
		var op *OpError
		if !errors.As(r.CloseReason(), &op) || op.Op != "accept" || !errors.Is(op, e) {
			t.Errorf("close reason: got %v, want an accept *OpError of %v", r.CloseReason(), e)
		}
		if !errors.Is(told, e) {
			t.Errorf("HandleError: got %v, want %v", told, e)
		}
		if !r.chs[0].Open() {
			t.Error("the channel accepted before is closed, too")
		}
	}
}

// MaxConns stops accepting and goes on when a channel has ended; a channel that a
// handler of the listener holds back counts as well.
func TestMaxConnsScripted(t *testing.T) {
	r := newAcceptRig(t, &Server{MaxConns: 2})
	r.come(nil, nil, nil, nil)
	if n := len(r.chs); n != 2 {
		t.Fatalf("accepted: got %d, want 2", n)
	}
	r.wantPaused(t, true, "at the limit")
	calls := r.k.calls
	r.m.Advance(time.Hour)
	if r.k.calls != calls {
		t.Error("accept was called at the limit")
	}
	for n := 3; n <= 4; n++ {
		r.m.Enter(r.chs[n-3].Reset)
		r.m.RunUntilIdle()
		r.wantPaused(t, false, "after the end of a channel")
		r.ready()
		if len(r.chs) != n {
			t.Errorf("accepted after an end: got %d in all, want %d", len(r.chs), n)
		}
	}
	if n := r.logs.FilterMessageSnippet("as many connections as allowed").Len(); n != 2 {
		t.Errorf("lines in the log: got %d, want 2: one now, one an hour ago", n)
	}
	// Nobody waits, or who waits is gone: the place is given back.
	for _, ch := range r.chs {
		r.m.Enter(ch.Reset)
	}
	r.m.RunUntilIdle()
	r.come(errno(syscall.ECONNABORTED))
	r.come(errno(syscall.EMFILE))
	r.m.Advance(time.Second)
	r.come(nil, nil)
	if n := len(r.chs); n != 6 {
		t.Errorf("accepted: got %d in all, want 6", n)
	}
}

func TestServerConfigErrors(t *testing.T) {
	srv := &Server{MaxConns: -1}
	if _, err := srv.Listen(t.Context(), "tcp", "127.0.0.1:0"); err == nil || !strings.Contains(err.Error(), "MaxConns -1") {
		t.Errorf("got %v, want an error about MaxConns", err)
	}
}
