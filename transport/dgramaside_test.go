package transport

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// receivers is a Unix datagram socket whose receivers have queues of their own, as the
// kernel's have. It is always ready.
type receivers struct {
	*dgramScript
	room map[string]int // what is missing has no end of it
	asks int            // calls that met a full receiver
}

func (k *receivers) send(q *dgramQueue, n int, out *dgramParts) (int, error) {
	for i := range n {
		name := q.entries.at(i).name
		if room, bounded := k.room[name]; bounded && room == 0 {
			if i > 0 {
				return k.dgramScript.send(q, i, out)
			}
			k.asks++
			return 0, sys.ErrAgain
		} else if bounded {
			k.room[name]--
		}
	}
	return k.dgramScript.send(q, n, out)
}

func newReceivers(t *testing.T, cfg Config, room map[string]int, handlers ...any) (*dgramRig, *receivers) {
	r := newDgramRig(t, rigConfig{Config: cfg}, handlers...)
	k := &receivers{dgramScript: r.k, room: room}
	r.sock = k
	return r, k
}

// settled lets the poller say that the socket is ready as often as it is waited for.
func (r *dgramRig) settled() {
	for r.interest()&eventloop.EventWrite != 0 {
		r.ready(eventloop.EventWrite)
	}
}

// advance lets d pass in steps, with a socket that is always ready.
func (r *dgramRig) advance(d time.Duration) {
	const step = time.Millisecond
	for ; d > 0; d -= step {
		r.m.Advance(step)
		r.settled()
	}
}

// What is for a receiver that has no room holds up nothing that is for others, and comes
// in order when it has.
func TestFullReceiverHoldsUpNobody(t *testing.T) {
	r, k := newReceivers(t, Config{}, map[string]int{"full": 1})
	r.do(func() {
		for i := range 4 {
			r.Write(to("full", fmt.Sprint(i)))
			r.Write(to("a", fmt.Sprint(i)))
			r.Write(to("b", fmt.Sprint(i)))
		}
	})
	r.settled()
	r.wantOut("full: 0", "a: 0", "b: 0", "a: 1", "b: 1", "a: 2", "b: 2", "a: 3", "b: 3")
	r.do(func() {
		r.Write(to("full", "4"))
		r.Write(to("a", "4"))
	})
	r.settled()
	r.wantOut("a: 4")
	if k.asks > 2 {
		t.Errorf("the full receiver was tried %d times at once, want twice at most", k.asks)
	}
	k.room["full"] = 2
	r.advance(maxDgramRest)
	r.wantOut("full: 1", "full: 2")
	k.room["full"] = 10
	r.advance(maxDgramRest)
	r.wantOut("full: 3", "full: 4")
	if r.out.charge != 0 || len(r.out.aside.receivers) != 0 || r.out.gone != r.out.queued {
		t.Errorf("afterwards: got charge %d, %d full receivers, %d of %d gone", r.out.charge, len(r.out.aside.receivers), r.out.gone, r.out.queued)
	}
	r.wantLog()
}

// A receiver that takes nothing loses what waits for it after a second, and is not asked
// more often than an idle loop may turn.
func TestReceiverThatNeverReads(t *testing.T) {
	r, k := newReceivers(t, Config{}, map[string]int{"full": 0, "fuller": 0})
	failed := map[string][]error{}
	send := func(name string) {
		r.WriteThen(to(name, "x"), func(err error) { failed[name] = append(failed[name], err) })
	}
	r.do(func() { send("full"); send("full") })
	r.advance(slowReceiver / 2)
	r.do(func() { send("full"); send("fuller"); send("other") })
	r.advance(slowReceiver/2 - 10*time.Millisecond)
	if len(failed["full"])+len(failed["fuller"]) > 0 || len(failed["other"]) != 1 || failed["other"][0] != nil {
		t.Errorf("before the time is over: got %v, want only other complete", failed)
	}
	r.advance(2 * maxDgramRest)
	if n := len(failed["full"]); n != 3 || len(failed["fuller"]) != 0 {
		t.Errorf("after a second: got %v, want all of full and nothing of fuller", failed)
	}
	for _, err := range failed["full"] {
		var op *OpError
		if !errors.As(err, &op) || !errors.Is(err, ErrSlowPeer) || op.Addr.String() != "full" {
			t.Errorf("got %v, want an *OpError to full with ErrSlowPeer", err)
		}
	}
	r.advance(slowReceiver)
	if n := len(failed["fuller"]); n != 1 {
		t.Errorf("the other one: got %d failures after more than a second, want 1", n)
	}
	if !r.Open() || k.asks > 50 {
		t.Errorf("got open %v and %d calls that met a full receiver in 2 s, want true and some 40", r.Open(), k.asks)
	}
	if n := r.m.Loop().Metrics().TimersArmed; n != 0 || len(r.out.aside.receivers) != 0 {
		t.Errorf("afterwards: got %d timers and %d full receivers, want none", n, len(r.out.aside.receivers))
	}
	r.wantOut("other: x")
}

// A receiver that takes something now and then is not given up.
func TestReceiverThatReadsSlowly(t *testing.T) {
	r, k := newReceivers(t, Config{}, map[string]int{"slow": 0})
	var want []string
	r.do(func() {
		for i := range 8 {
			r.Write(to("slow", fmt.Sprint(i)))
			want = append(want, fmt.Sprintf("slow: %d", i))
		}
	})
	for range 8 {
		r.advance(slowReceiver * 3 / 4)
		k.room["slow"]++
	}
	r.advance(maxDgramRest)
	r.wantOut(want...)
	r.wantLog()
}

// What is aside does not keep the channel from being writable, nor does it end it: beyond
// its bound it fails at once.
func TestFullReceiverLeavesTheChannelWritable(t *testing.T) {
	const high = 10_000
	r, _ := newReceivers(t, Config{HighWater: high, MaxPending: 2 * high}, map[string]int{"full": 0})
	slow := 0
	for range 60 {
		r.do(func() {
			r.WriteThen(to("full", letters(1000)), func(err error) {
				if errors.Is(err, ErrSlowPeer) {
					slow++
				}
			})
		})
		r.settled()
	}
	if !r.Writable() || r.out.pending() != 0 || r.out.charge > maxAside*high {
		t.Errorf("got writable %v with %d bytes, %d of them pending; want true, at most %d, none",
			r.Writable(), r.out.charge, r.out.pending(), maxAside*high)
	}
	if slow == 0 || slow > 40 {
		t.Errorf("refused at once: got %d of 60, want what is beyond the bound", slow)
	}
	r.wantLog()
	r.do(func() { r.Write(to("other", "x")) })
	r.settled()
	r.wantOut("other: x")
}

// An answer to each failure is a failure only after its time.
func TestFailureToFullReceiverAnswered(t *testing.T) {
	failures := 0
	var r *dgramRig
	r, k := newReceivers(t, Config{}, map[string]int{"full": 0}, pipeline.OnError(func(c *pipeline.Context, err error) {
		failures++
		c.Write(to("full", "again"))
	}))
	r.do(func() { r.Write(to("full", "x")) })
	r.advance(10 * slowReceiver)
	if failures < 8 || failures > 10 || k.asks > 300 {
		t.Errorf("got %d failures and %d calls in 10 s, want about one and 20 a second", failures, k.asks)
	}
}

// A channel that closes lets what is aside leave, or fail when its time is over; one that
// is reset fails it.
func TestCloseWithFullReceiver(t *testing.T) {
	for _, tt := range []struct {
		name  string
		end   func(r *dgramRig, k *receivers)
		want  error
		after time.Duration
	}{
		{"it reads", func(r *dgramRig, k *receivers) { r.Close(); k.room["full"] = 2 }, nil, maxDgramRest},
		{"it does not", func(r *dgramRig, k *receivers) { r.Close() }, ErrSlowPeer, slowReceiver + maxDgramRest},
		{"reset", func(r *dgramRig, k *receivers) { r.Reset() }, pipeline.ErrClosed, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, k := newReceivers(t, Config{}, map[string]int{"full": 0})
			var got []error
			note := func(err error) { got = append(got, err) }
			r.do(func() {
				r.WriteThen(to("full", "1"), note)
				r.WriteThen(to("full", "2"), note)
			})
			r.settled()
			r.do(func() { tt.end(r, k) })
			r.advance(tt.after)
			if r.Open() || r.k.closes != 1 {
				t.Errorf("got open %v after %v", r.Open(), tt.after)
			}
			if len(got) != 2 || !errors.Is(got[0], tt.want) || !errors.Is(got[1], tt.want) {
				t.Errorf("got %v, want %v twice", got, tt.want)
			}
			if tt.want == nil && !slices.Equal(r.k.out, []string{"full: 1", "full: 2"}) {
				t.Errorf("sent: got %q", r.k.out)
			}
		})
	}
}
