package transport

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// dgramScript is a datagram socket that does what a test says. A call to receive
// takes what is in, up to an error; one to send what the next step allows, then
// everything.
type dgramScript struct {
	t    *testing.T
	in   []inDatagram
	take []takeStep // n is a number of datagrams

	out      []string // "name: content"
	calls    []int    // datagrams given to each call of send
	receives int
	pending  error
	closes   int

	peer   net.Addr
	refuse error // of connects
	lost   error // of disconnects
}

type inDatagram struct {
	from string
	data string
	cut  bool
	err  error

	to      netip.AddrPort
	segment int // it is many of this length
}

func (k *dgramScript) receive(in *dgramSlots, n, max int) (int, error) {
	k.receives++
	if k.closes > 0 {
		k.t.Error("receive after close")
	}
	got := 0
	for got < n && len(k.in) > 0 {
		d := k.in[0]
		if d.err != nil && got > 0 {
			break
		}
		k.in = k.in[1:]
		if d.err != nil {
			return 0, d.err
		}
		s := &in.slots[got]
		s.buf.WriteString(d.data[:min(len(d.data), max)])
		s.addr, s.name, s.truncated = netip.AddrPort{}, d.from, d.cut || len(d.data) > max
		s.to, s.segment = d.to, d.segment
		got++
	}
	if got == 0 {
		return 0, sys.ErrAgain
	}
	return got, nil
}

func (k *dgramScript) send(q *dgramQueue, n int, _ *dgramParts) (int, error) {
	k.calls = append(k.calls, n)
	if k.closes > 0 {
		k.t.Error("send after close")
	}
	if len(k.take) > 0 {
		s := k.take[0]
		k.take = k.take[1:]
		if s.err != nil {
			return 0, s.err
		}
		n = min(n, s.n)
	}
	for i := range n {
		e := q.entries.at(i)
		var content strings.Builder
		e.buf.Segments(func(p []byte) bool { content.Write(p); return true })
		if content.Len() > 40 {
			k.out = append(k.out, fmt.Sprintf("%s: %d bytes", e.name, content.Len()))
		} else {
			k.out = append(k.out, e.name+": "+content.String())
		}
	}
	return n, nil
}

func (k *dgramScript) socketError() error {
	err := k.pending
	k.pending = nil
	return err
}

func (k *dgramScript) connect(peer net.Addr) error {
	k.out = append(k.out, "connect "+peer.String())
	if k.refuse != nil {
		return k.refuse
	}
	k.peer = peer
	return nil
}

func (k *dgramScript) disconnect() error {
	k.out = append(k.out, "disconnect")
	k.peer = nil
	return k.lost
}

func (k *dgramScript) addresses(bool) (local, remote net.Addr) { return nil, k.peer }

func (k *dgramScript) close() { k.closes++ }

// dgramRig is a datagram channel on a scripted socket and a loop on virtual time.
type dgramRig struct {
	*dgram
	k    *dgramScript
	m    *eventloop.Manual
	logs *observer.ObservedLogs
	t    *testing.T
	rec  *rig // for its recorder
}

// newDgramRig starts a channel that is bound, or connected if dialed, as a Unix
// socket is, with a recorder of what the handlers let pass.
func newDgramRig(t *testing.T, cfg rigConfig, handlers ...any) *dgramRig {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	cfg.Logger = zap.New(core)
	c, err := cfg.check()
	if err != nil {
		t.Fatal(err)
	}
	m := eventloop.NewManual()
	r := &dgramRig{k: &dgramScript{t: t}, m: m, logs: logs, t: t, rec: &rig{t: t}}
	r.dgram = newDgram(&c, m.Loop(), scriptFD, nil)
	r.unix, r.connected = true, cfg.dialed
	if !cfg.dialed {
		var srv Server
		srv.setUp()
		r.dgram.srv = srv.s
		srv.s.addDgram(r.dgram)
	}
	r.sock = r.k
	named := pipeline.On(func(c *pipeline.Context, d *Datagram) error {
		text := d.Name + ": " + d.Content.ReadString(d.Content.Len())
		d.Release()
		c.FireRead(pooled(text))
		return nil
	})
	r.do(func() {
		r.start(func(ch pipeline.Channel) error {
			return ch.Pipeline().Add(append(handlers, named, &recorder{r: r.rec})...)
		})
	})
	t.Cleanup(func() {
		wantNoTimers(t, m, r.CloseIO)
		before := r.k.closes
		m.Close()
		if before > 1 || r.k.closes != 1 {
			t.Errorf("socket closed %d times, want once", r.k.closes)
		}
	})
	r.rec.log = nil
	return r
}

func (r *dgramRig) do(f func()) {
	r.m.Enter(f)
	r.m.Turn()
}

func (r *dgramRig) ready(ev eventloop.Event) {
	r.m.Ready(scriptFD, ev)
	r.m.RunUntilIdle()
}

func (r *dgramRig) readable(in ...inDatagram) {
	r.k.in = append(r.k.in, in...)
	r.ready(eventloop.EventRead)
}

func (r *dgramRig) wantLog(want ...string) {
	r.t.Helper()
	r.rec.wantLog(want...)
}

func (r *dgramRig) wantOut(want ...string) {
	r.t.Helper()
	if !slices.Equal(r.k.out, want) {
		r.t.Errorf("sent:\n got %q\nwant %q", r.k.out, want)
	}
	r.k.out = nil
}

func (r *dgramRig) interest() eventloop.Event { return r.reg.Interest() }

// to is a datagram for a name.
func to(name, content string) *Datagram { return &Datagram{Content: pooled(content), Name: name} }

// from are datagrams from a name.
func from(name string, contents ...string) (in []inDatagram) {
	for _, c := range contents {
		in = append(in, inDatagram{from: name, data: c})
	}
	return in
}
