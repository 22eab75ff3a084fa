package transport

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/runnel-io/runnel/pipeline"
)

// What was adopted counts for MaxConns while it lives, and no longer: neither after its
// end, nor when its Init fails.
func TestAdoptedGivesItsPlaceBack(t *testing.T) {
	refuse := errors.New("not this one")
	var refused atomic.Bool // by the Init that runs next
	accepted := make(chan pipeline.Channel, 1)
	srv := &Server{MaxConns: 1, Init: func(ch pipeline.Channel) error {
		if refused.Load() {
			return refuse
		}
		accepted <- ch
		return nil
	}}
	l := serve(t, srv, "tcp", "127.0.0.1:0")
	for range 3 {
		a, b := socketPair(t)
		defer b.Close()
		ch, err := srv.Adopt(a)
		if err != nil {
			t.Fatal(err)
		}
		await(t, accepted, "what was adopted")
		ch.Reset()
		await(t, ch.Closed().Done(), "its end")
	}
	refused.Store(true)
	for range 3 {
		a, b := socketPair(t)
		defer b.Close()
		if _, err := srv.Adopt(a); !errors.Is(err, refuse) {
			t.Fatalf("got %v, want the error of Init", err)
		}
	}
	refused.Store(false)
	dialNet(t, l)
	await(t, accepted, "a connection after the end of all that was adopted").Reset()

	// And while it lives it has a place, also one beyond the limit.
	a, b := socketPair(t)
	defer b.Close()
	ch, err := srv.Adopt(a)
	if err != nil {
		t.Fatal(err)
	}
	await(t, accepted, "what was adopted")
	dialNet(t, l)
	reachListener(t, l, "at its limit", func(l *listener) bool { return l.atLimit })
	select {
	case <-accepted:
		t.Error("a connection was accepted at the limit")
	default:
	}
	ch.Reset()
	await(t, accepted, "the connection that waited").Reset()
}

// reachListener is reach for a listener.
func reachListener(t *testing.T, ch pipeline.Channel, what string, is func(l *listener) bool) {
	t.Helper()
	reachState(t, ch, what, func() bool { return is(ch.(*listener)) })
}
