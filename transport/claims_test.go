//go:build linux

package transport

import (
	"testing"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// claimRig is channels on two loops: 0 to 2 on the first, 3 to 5 on the second.
type claimRig struct {
	t     *testing.T
	loops [2]*eventloop.Manual
	ends  [6]*stream
	file  scriptFile
}

func newClaimRig(t *testing.T) *claimRig {
	x := &claimRig{t: t, loops: [2]*eventloop.Manual{eventloop.NewManual(), eventloop.NewManual()}}
	for i := range x.ends {
		x.ends[i], _ = scriptedEnd(t, x.loops[i/3], scriptFD+i, true, new(writer))
	}
	t.Cleanup(func() {
		x.loops[0].Close()
		x.loops[1].Close()
	})
	return x
}

// on calls f on the loop of a channel, and then lets both loops become idle.
func (x *claimRig) on(i int, f func(c *pipeline.Context) error) (err error) {
	x.loops[i/3].Enter(func() { err = f(pipeline.Find[*writer](x.ends[i].Pipeline())) })
	x.idle()
	return err
}

func (x *claimRig) idle() {
	for range 3 {
		x.loops[0].RunUntilIdle()
		x.loops[1].RunUntilIdle()
	}
}

func (x *claimRig) relay(r *Relay, i, j int) error {
	return x.on(i, func(c *pipeline.Context) error { return r.Start(c, x.ends[j]) })
}

func (x *claimRig) receive(r *FileReceiver, i int) error {
	return x.on(i, func(c *pipeline.Context) error {
		return r.start(c, &x.file, -1, func(int64, error) {})
	})
}

func (x *claimRig) mirror(i int) []Mirror { return []Mirror{{Channel: x.ends[i]}} }

// Whoever has a channel to himself keeps everybody else from it, on whatever loops they
// are, until he gives it back; and who is refused has taken nothing.
func TestClaims(t *testing.T) {
	// Each has channels 0 and, if it relays, 1 or 3; mirrors go to 2 or 5.
	holders := map[string]struct {
		hold    func(x *claimRig) (release func())
		relayed map[int]error // what relays of each channel are told
		receive map[int]error
		mirror  map[int]error
	}{
		"relay": {
			hold: func(x *claimRig) func() {
				r := new(Relay)
				must1(x.t, x.relay(r, 0, 1))
				return r.Stop
			},
			relayed: map[int]error{0: ErrRelayed, 1: ErrRelayed},
			receive: map[int]error{0: ErrRelayed, 1: ErrRelayed},
			mirror:  map[int]error{0: ErrRelayed, 1: ErrRelayed},
		},
		"relay across loops": {
			hold: func(x *claimRig) func() {
				r := new(Relay)
				must1(x.t, x.relay(r, 0, 3))
				return r.Stop
			},
			relayed: map[int]error{0: ErrRelayed, 3: ErrRelayed},
			receive: map[int]error{0: ErrRelayed, 3: ErrRelayed},
			mirror:  map[int]error{0: ErrRelayed, 3: ErrRelayed},
		},
		"mirrored relay": {
			hold: func(x *claimRig) func() {
				r := &Relay{Mirrors: x.mirror(5)}
				must1(x.t, x.relay(r, 0, 1))
				return r.Stop
			},
			relayed: map[int]error{0: ErrRelayed, 1: ErrRelayed, 5: ErrRelayed},
			receive: map[int]error{0: ErrRelayed, 1: ErrRelayed, 5: nil},
			mirror:  map[int]error{0: ErrRelayed, 1: ErrRelayed, 5: ErrRelayed},
		},
		"reception": {
			hold: func(x *claimRig) func() {
				r := new(FileReceiver)
				must1(x.t, x.receive(r, 0))
				return r.Stop
			},
			relayed: map[int]error{0: ErrReceiving},
			receive: map[int]error{0: ErrReceiving},
			mirror:  map[int]error{0: nil},
		},
		"mirrored reception": {
			hold: func(x *claimRig) func() {
				r := &FileReceiver{Mirrors: x.mirror(2)}
				must1(x.t, x.receive(r, 0))
				return r.Stop
			},
			relayed: map[int]error{0: ErrReceiving, 2: ErrRelayed},
			receive: map[int]error{0: ErrReceiving, 2: nil},
			mirror:  map[int]error{0: nil, 2: ErrRelayed},
		},
	}
	for name, tt := range holders {
		t.Run(name, func(t *testing.T) {
			x := newClaimRig(t)
			release := tt.hold(x)
			// Twice: who was refused has left no trace.
			for range 2 {
				x.tryRelays(tt.relayed)
				x.tryReceptions(tt.receive)
				x.tryMirrors(tt.mirror)
			}
			x.loops[0].Enter(release)
			x.idle()
			free := func(m map[int]error) map[int]error {
				all := map[int]error{}
				for i := range m {
					all[i] = nil
				}
				return all
			}
			x.tryRelays(free(tt.relayed))
			x.tryReceptions(free(tt.receive))
			x.tryMirrors(free(tt.mirror))
		})
	}
}

// tryRelays starts a relay of each channel with one that is free, from either side, and
// stops it again.
func (x *claimRig) tryRelays(want map[int]error) {
	x.t.Helper()
	for i, err := range want {
		for _, other := range []int{2, 4} {
			if other == i || want[other] != nil {
				continue
			}
			for _, pair := range [][2]int{{i, other}, {other, i}} {
				r := new(Relay)
				if got := x.relay(r, pair[0], pair[1]); got != err {
					x.t.Errorf("relay of %d and %d: got %v, want %v", pair[0], pair[1], got, err)
				}
				x.loops[pair[0]/3].Enter(r.Stop)
				x.idle()
			}
		}
	}
}

func (x *claimRig) tryReceptions(want map[int]error) {
	x.t.Helper()
	for i, err := range want {
		r := new(FileReceiver)
		if got := x.receive(r, i); got != err {
			x.t.Errorf("reception of %d: got %v, want %v", i, got, err)
		}
		x.loops[i/3].Enter(r.Stop)
		x.idle()
	}
}

// tryMirrors has a reception of a free channel of each loop mirrored into each channel.
func (x *claimRig) tryMirrors(want map[int]error) {
	x.t.Helper()
	for i, err := range want {
		r := &FileReceiver{Mirrors: append(x.mirror(i), Mirror{storage: new(scriptFile)})}
		if got := x.receive(r, 4); got != err {
			x.t.Errorf("reception mirrored into %d: got %v, want %v", i, got, err)
		}
		x.loops[1].Enter(r.Stop)
		x.idle()
	}
}

// A channel that has closed is refused as such, whoever had it.
func TestClaims_Closed(t *testing.T) {
	x := newClaimRig(t)
	must1(t, x.relay(new(Relay), 0, 3))
	x.loops[1].Enter(x.ends[3].Close)
	x.idle()
	for i, s := range x.ends[:4] {
		if closed := s.at == streamClosed; closed != (i == 0 || i == 3) {
			t.Errorf("channel %d: closed %v", i, closed)
		}
	}
	for _, i := range []int{0, 3} {
		if c, ok := claimed.Get(x.ends[i]); !ok || c.input.by != nil || c.output.by != nil {
			t.Errorf("channel %d has closed and is still claimed: %+v", i, c)
		}
		if err := x.on(1, func(c *pipeline.Context) error { return new(Relay).Start(c, x.ends[i]) }); err == nil || err == ErrRelayed {
			t.Errorf("relay to a channel that has closed: got %v", err)
		}
	}
}
