//go:build linux

package transport

import (
	"errors"
	"syscall"
	"testing"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// listenerStates are those in which a listener may be, and how it gets there.
var listenerStates = []struct {
	name   string
	manual bool
	enter  func(r *acceptRig)
}{
	{"nobody waits", false, func(r *acceptRig) {}},
	{"at its limit", false, func(r *acceptRig) { r.come(nil, nil) }},
	{"in back-off", false, func(r *acceptRig) { r.come(errno(syscall.EMFILE)) }},
	{"not to read", true, func(r *acceptRig) {}},
	{"not to read any more", false, func(r *acceptRig) { r.m.Enter(func() { r.SetAutoRead(false) }) }},
}

func newShutRig(t *testing.T, manual bool, told *[]error) *acceptRig {
	return newAcceptRig(t, &Server{MaxConns: 1, ListenerInit: func(l pipeline.Channel) error {
		l.SetAutoRead(!manual)
		return l.Pipeline().Add(pipeline.OnError(func(_ *pipeline.Context, err error) { *told = append(*told, err) }))
	}})
}

// When somebody who shares a listening socket shuts it down, the listener ends with the
// error of accept, whatever it waits for: the hangup cannot be masked, and nobody will
// ever be accepted.
func TestListenerShutByAnother(t *testing.T) {
	for _, tt := range listenerStates {
		t.Run(tt.name, func(t *testing.T) {
			var told []error
			r := newShutRig(t, tt.manual, &told)
			tt.enter(r)
			r.k.steps = []error{errno(syscall.EINVAL)}
			calls, accepting := r.k.calls, r.accepting()
			r.m.Ready(scriptFD, eventloop.EventRead|eventloop.EventHangup)
			r.m.RunUntilIdle()
			var op *OpError
			if err := r.CloseReason(); !errors.As(err, &op) || op.Op != "accept" || !errors.Is(err, syscall.EINVAL) {
				t.Errorf("close reason: got %v, want an accept *OpError of EINVAL", err)
			}
			if len(told) != 1 || !errors.Is(r.CloseReason(), told[0]) {
				t.Errorf("HandleError: got %v, want the close reason, once", told)
			}
			if n := r.k.calls - calls; n > 0 && !accepting {
				t.Errorf("accept was called %d times, by a listener that is not to", n)
			}
			if n := r.m.Loop().Metrics().TimersArmed; n != 0 {
				t.Errorf("timers: got %d armed after the end, want none", n)
			}
		})
	}
}

// Of a Unix socket that was shut down, who waits may still be accepted.
func TestListenerShutAcceptsWhoWaits(t *testing.T) {
	r := newAcceptRig(t, &Server{})
	r.k.steps = append(repeat(maxReadsPerTurn+1, nil), errno(syscall.EINVAL))
	for range 2 {
		r.m.Ready(scriptFD, eventloop.EventRead|eventloop.EventHangup)
		r.m.RunUntilIdle()
	}
	if n := len(r.chs); n != maxReadsPerTurn+1 {
		t.Errorf("accepted: got %d, want %d", n, maxReadsPerTurn+1)
	}
	if !errors.Is(r.CloseReason(), syscall.EINVAL) {
		t.Errorf("got %v, want EINVAL", r.CloseReason())
	}
}

// An error without a hangup is not the end, and not a reason to turn: the socket is
// looked at again after a while, and whenever there is a reason to.
func TestListenerWithError(t *testing.T) {
	for _, tt := range listenerStates {
		t.Run(tt.name, func(t *testing.T) {
			var told []error
			r := newShutRig(t, tt.manual, &told)
			tt.enter(r)
			r.k.steps = nil
			calls := 0
			for range 100 {
				r.m.Ready(scriptFD, eventloop.EventError) // as long as it is in the poller
				before := r.k.calls
				r.m.RunUntilIdle()
				calls += r.k.calls - before
			}
			if calls > 1 {
				t.Errorf("accept was called %d times in no time", calls)
			}
			if !r.Open() || len(told) > 0 {
				t.Errorf("got open %v, told %v; want it open and nobody told", r.Open(), told)
			}
			r.m.Enter(func() {
				for _, ch := range r.chs {
					ch.Reset()
				}
				r.SetAutoRead(true)
			})
			r.m.Advance(maxAcceptBackoff)
			before := len(r.chs)
			r.come(nil)
			if n := len(r.chs) - before; n != 1 {
				t.Errorf("accepted afterwards: got %d, want 1", n)
			}
		})
	}
}

// A Read that has met nobody to accept is served when there is somebody.
func TestListenerRequestIsKept(t *testing.T) {
	var told []error
	for _, tt := range []struct {
		name  string
		enter func(r *acceptRig)
	}{
		{"nobody waits", func(r *acceptRig) { r.come(sys.ErrAgain) }},
		{"at its limit", func(r *acceptRig) {
			r.come(nil)
			r.m.Enter(r.Read)
			r.come(nil)
			r.k.steps = nil
			if r.chs[0].Reset(); len(r.chs) != 1 {
				t.Errorf("accepted at the limit: got %d, want 1", len(r.chs))
			}
			r.m.RunUntilIdle()
		}},
		{"in back-off", func(r *acceptRig) { r.come(errno(syscall.EMFILE)) }},
		{"only who was gone already", func(r *acceptRig) { r.come(repeat(maxReadsPerTurn, errno(syscall.ECONNABORTED))...) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newShutRig(t, true, &told)
			r.m.Enter(r.Read)
			tt.enter(r)
			r.m.Advance(maxAcceptBackoff)
			before := len(r.chs)
			r.come(nil, nil)
			if n := len(r.chs) - before; n != 1 {
				t.Errorf("accepted for the request: got %d, want 1", n)
			}
		})
	}
}

// A lack that has passed, if only to find that nobody waits, is not continued by the next
// one: nobody is shed at its first sign.
func TestLackIsOverWhenNobodyWaits(t *testing.T) {
	r := newAcceptRig(t, &Server{})
	r.come(errno(syscall.EMFILE))
	r.m.Advance(minAcceptBackoff)
	r.come(sys.ErrAgain)
	r.come(errno(syscall.EMFILE), nil, nil)
	if n := len(r.k.peers); n != 0 {
		t.Errorf("shed at once: got %d, want none", n)
	}
	r.m.Advance(minAcceptBackoff)
	r.wantPaused(t, false, "after the shortest pause")
}

// The sockets are real ones: the kernel reports the hangup of each kind, and no loop turns
// for it.
func TestListenerSocketShut(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network, addr string) {
		for _, state := range []string{"accepting", "at its limit", "not to read"} {
			t.Run(state, func(t *testing.T) {
				accepted := make(chan pipeline.Channel, 1)
				srv := &Server{
					MaxConns:     1,
					Init:         func(ch pipeline.Channel) error { accepted <- ch; return nil },
					ListenerInit: func(l pipeline.Channel) error { l.SetAutoRead(state != "not to read"); return nil },
				}
				l := serve(t, srv, network, anyAddr(t, network))
				if state == "at its limit" {
					dialNet(t, l)
					dialNet(t, l)
					reachListener(t, l, state, func(l *listener) bool { return l.atLimit })
					t.Cleanup(await(t, accepted, "a channel").Reset)
				}
				files, err := srv.ListenerFiles()
				if err != nil {
					t.Fatal(err)
				}
				defer files[0].Close()
				c, err := files[0].SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Control(func(fd uintptr) { err = syscall.Shutdown(int(fd), syscall.SHUT_RDWR) }); err != nil {
					t.Fatal(err)
				}
				if err != nil {
					t.Fatal(err)
				}
				await(t, l.Closed().Done(), "the end of the listener")
				if !errors.Is(l.CloseReason(), syscall.EINVAL) {
					t.Errorf("got %v, want EINVAL", l.CloseReason())
				}
			})
		}
	})
}
