//go:build linux

package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

var relayModes = map[string]RelayMode{"auto": RelayAuto, "splice": RelaySplice, "copy": RelayCopy}

func eachRelay(t *testing.T, f func(t *testing.T, network string, mode RelayMode)) {
	for _, network := range networks {
		for name, mode := range relayModes {
			t.Run(network+", "+name, func(t *testing.T) { f(t, network, mode) })
		}
	}
}

// proxy is a handler that relays its channel to a target.
type proxy struct {
	network, addr string
	relay         *Relay
	cfg           Config
	started       func(c *pipeline.Context, target pipeline.Channel) // nil for none
	failed        func(error)
}

func (p *proxy) HandleActive(c *pipeline.Context) error {
	c.Channel().SetAutoRead(false) // what comes meanwhile, the end for one, waits
	d := Dialer{Config: p.cfg, Init: with(new(sinkErrors))}
	d.DialThen(c, p.network, p.addr, func(target pipeline.Channel, err error) {
		if err == nil {
			err = p.relay.Start(c, target)
		}
		if err != nil {
			if p.failed != nil {
				p.failed(err)
			}
			c.Close()
			return
		}
		if p.started != nil {
			p.started(c, target)
		}
	})
	return nil
}

func (p *proxy) HandleError(*pipeline.Context, error) {}

// sinkErrors takes errors that a test expects.
type sinkErrors struct{ _ int }

func (*sinkErrors) HandleError(*pipeline.Context, error) {}

// relayRig is a proxy between a client and a listener of package net.
type relayRig struct {
	proxies chan *proxy
	client  net.Conn
	server  net.Conn
}

func newRelayRig(t *testing.T, network string, cfg Config, setUp func(*proxy)) *relayRig {
	t.Helper()
	target, err := net.Listen(network, anyAddr(t, network))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	r := &relayRig{proxies: make(chan *proxy, 1)}
	srv := &Server{Config: cfg, Init: func(ch pipeline.Channel) error {
		p := &proxy{network: network, addr: target.Addr().String(), relay: new(Relay), cfg: cfg, failed: func(err error) { t.Error(err) }}
		setUp(p)
		r.proxies <- p
		return ch.Pipeline().Add(p)
	}}
	r.client = dialNet(t, serve(t, srv, network, anyAddr(t, network)))
	r.server = must(target.Accept())
	t.Cleanup(func() { r.server.Close() })
	return r
}

// Bytes of both directions arrive as they were sent, in every mode, with small socket
// buffers and large messages, and both half-closes pass.
func TestRelay(t *testing.T) {
	eachRelay(t, func(t *testing.T, network string, mode RelayMode) {
		for _, cfg := range []Config{{}, {SendBuffer: 1, RecvBuffer: 1}} {
			for _, size := range []int{0, 1, 100, 8 << 20} {
				t.Run(fmt.Sprintf("%d bytes, buffers of %d", size, cfg.SendBuffer), func(t *testing.T) {
					if cfg.SendBuffer > 0 && size > 1<<20 {
						size = 1 << 20
					}
					r := newRelayRig(t, network, cfg, func(p *proxy) { p.relay.Mode = mode })
					up, down := letters(size), letters(size + 13)[13:]
					var wg sync.WaitGroup
					for _, end := range []struct {
						c         net.Conn
						out, want string
					}{{r.client, up, down}, {r.server, down, up}} {
						wg.Go(func() {
							_, err := io.WriteString(end.c, end.out)
							if err2 := end.c.(closeWriter).CloseWrite(); err != nil || err2 != nil {
								t.Error(err, err2)
							}
						})
						wg.Go(func() {
							got, err := io.ReadAll(end.c)
							if err != nil || string(got) != end.want {
								t.Errorf("got %d bytes, %v; want %d bytes", len(got), err, len(end.want))
							}
						})
					}
					wg.Wait()
					s := (<-r.proxies).relay.Stats()
					if n := int64(size); s.Up.Copied+s.Up.Spliced != n || s.Down.Copied+s.Down.Spliced != n {
						t.Errorf("got %+v, want %d each way", s, n)
					}
					if mode == RelayCopy && s.Up.Spliced+s.Down.Spliced > 0 || mode == RelaySplice && s.Up.Copied+s.Down.Copied > 0 ||
						mode == RelayAuto && size == 100 && s.Up.Spliced > 0 || mode == RelayAuto && size >= 8<<20 && s.Up.Spliced < n64(size)/2 {
						t.Errorf("got %+v in mode %d", s, mode)
					}
				})
			}
		}
	})
}

func n64(n int) int64 { return int64(n) }

// One side's half-close passes while the other goes on.
func TestRelay_HalfClose(t *testing.T) {
	eachRelay(t, func(t *testing.T, network string, mode RelayMode) {
		r := newRelayRig(t, network, Config{}, func(p *proxy) { p.relay.Mode = mode })
		for i, ends := range [][2]net.Conn{{r.client, r.server}, {r.server, r.client}} {
			if i > 0 {
				io.WriteString(ends[0], "late words")
			}
			if err := ends[0].(closeWriter).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(ends[1])
			if want := []string{"", "late words"}[i]; err != nil || string(got) != want {
				t.Errorf("half-close %d: got %q, %v; want %q", i, got, err, want)
			}
		}
	})
}

// What was read before leaves first; after Stop bytes come to the handlers again, and
// what they write leaves behind what the relay had taken.
func TestRelay_StartStop(t *testing.T) {
	eachRelay(t, func(t *testing.T, network string, mode RelayMode) {
		var relay Relay
		relay.Mode = mode
		target := must(net.Listen(network, anyAddr(t, network)))
		defer target.Close()
		stopped, targets := make(chan struct{}), make(chan pipeline.Channel, 1)
		var theTarget pipeline.Channel // of the loop
		handler := pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
			if theTarget != nil { // after Stop
				c.Write(b)
				return nil
			}
			c.Channel().SetAutoRead(false)
			(&Dialer{Init: with(echo())}).DialThen(c, network, target.Addr().String(), func(ch pipeline.Channel, err error) {
				if err != nil {
					t.Error(err)
					return
				}
				theTarget = ch
				targets <- ch
				ch.Write(b)
				ch.Write("<relay>")
				if err := relay.Start(c, ch); err != nil {
					t.Error(err)
				}
				if err := relay.Start(c, ch); !errors.Is(err, ErrRelayed) {
					t.Errorf("second Start: got %v, want %v", err, ErrRelayed)
				}
				c.Channel().SetAutoRead(true)
			})
			return nil
		})
		client := dialNet(t, serve(t, &Server{Init: with(handler)}, network, anyAddr(t, network)))
		io.WriteString(client, "first")
		server := must(target.Accept())
		defer server.Close()
		expect := func(nc net.Conn, want string) {
			t.Helper()
			got := make([]byte, len(want))
			if _, err := io.ReadFull(nc, got); err != nil || string(got) != want {
				t.Fatalf("got %q, %v; want %q", got, err, want)
			}
		}
		expect(server, "first<relay>")
		io.WriteString(client, "up")
		expect(server, "up")
		io.WriteString(server, "down")
		expect(client, "down")
		_ = (<-targets).Loop().Execute(func() { relay.Stop(); relay.Stop(); theTarget.Write("<stop>"); close(stopped) })
		<-stopped
		expect(server, "<stop>")
		io.WriteString(client, "to the handler")
		expect(client, "to the handler")
		io.WriteString(server, "to its handler")
		expect(server, "to its handler")
	})
}

// Start refuses what cannot be joined, and nothing changes.
func TestRelay_Refused(t *testing.T) {
	r := newRig(t, rigConfig{}, new(writer))
	c := pipeline.Find[*writer](r.Pipeline())
	other := newRig(t, rigConfig{})
	r.m.Enter(func() {
		if err := new(Relay).Start(c, r.stream); !errors.Is(err, ErrCannotRelay) {
			t.Errorf("with itself: got %v, want %v", err, ErrCannotRelay)
		}
		if err := (&Relay{Mode: RelaySplice}).Start(c, other.stream); !errors.Is(err, ErrCannotRelay) {
			t.Errorf("spliced across loops: got %v, want %v", err, ErrCannotRelay)
		}
		if err := (&Relay{Mirrors: make([]Mirror, 1)}).Start(c, other.stream); !errors.Is(err, ErrCannotRelay) {
			t.Errorf("with mirrors across loops: got %v, want %v", err, ErrCannotRelay)
		}
	})
	new(Relay).Stop()
}

// Both ends talk and either closes or resets at any moment: nobody hangs, what arrived
// is a beginning of what was sent, and nothing is left in a pipe.
func TestRelay_Endings(t *testing.T) {
	eachRelay(t, func(t *testing.T, network string, mode RelayMode) {
		for i := range 8 {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			rig := newRelayRig(t, network, Config{SendBuffer: 1 << 17}, func(p *proxy) { p.relay.Mode = mode })
			out := letters(1 << 20)
			cut := []int{r.IntN(1 << 20), r.IntN(1 << 20)}
			resets := r.IntN(2) == 0
			var wg sync.WaitGroup
			for j, ends := range [][2]net.Conn{{rig.client, rig.server}, {rig.server, rig.client}} {
				wg.Go(func() {
					nc := ends[0]
					n, _ := io.WriteString(nc, out[:cut[j]])
					if tc, ok := nc.(*net.TCPConn); ok && resets && n == cut[j] {
						tc.SetLinger(0)
					}
					if j == 0 {
						nc.Close()
					}
				})
				wg.Go(func() {
					got, _ := io.ReadAll(ends[1])
					if !bytes.HasPrefix([]byte(out), got) {
						t.Errorf("round %d: %d bytes that were not sent", i, len(got))
					}
				})
			}
			wg.Wait()
			rig.server.Close()
		}
	})
}

// Channels on two loops are joined by copying, with their half-closes, and parted again.
func TestRelay_Crossing(t *testing.T) {
	g := must(eventloop.NewGroup(eventloop.GroupConfig{Loops: 1}))
	defer g.Shutdown(context.Background())
	for _, network := range networks {
		for _, stops := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, stopped %v", network, stops), func(t *testing.T) {
				target := must(net.Listen(network, anyAddr(t, network)))
				defer target.Close()
				d := &Dialer{Group: g, Config: Config{ManualRead: true, HalfClose: true}, Init: with(echo())}
				ch := must(d.Dial(context.Background(), network, target.Addr().String()))
				server := must(target.Accept())
				defer server.Close()
				var relay Relay
				started, parted := make(chan struct{}), make(chan struct{})
				srv := &Server{Config: Config{HalfClose: true, ManualRead: true}, Init: with(onActive(func(c *pipeline.Context) error {
					defer close(started)
					return relay.Start(c, ch)
				}), echo())}
				client := dialNet(t, serve(t, srv, network, anyAddr(t, network)))
				await(t, started, "the start")
				up, down := letters(3<<20), letters(1<<20)
				var wg sync.WaitGroup
				for _, end := range []struct {
					c         net.Conn
					out, want string
				}{{client, up, down}, {server, down, up}} {
					wg.Go(func() {
						io.WriteString(end.c, end.out)
						if !stops {
							end.c.(closeWriter).CloseWrite()
						}
					})
					wg.Go(func() {
						got := make([]byte, len(end.want))
						if n, err := io.ReadFull(end.c, got); err != nil || string(got) != end.want {
							t.Errorf("got %d bytes, %v; want %d", n, err, len(end.want))
						}
						if !stops {
							if rest, err := io.ReadAll(end.c); err != nil || len(rest) > 0 {
								t.Errorf("got %d bytes more, %v", len(rest), err)
							}
						}
					})
				}
				wg.Wait()
				if s := relay.Stats(); s.Up.Copied != int64(len(up)) || s.Down.Copied != int64(len(down)) {
					t.Errorf("got %+v, want %d up, %d down", s, len(up), len(down))
				}
				if !stops {
					return
				}
				_ = ch.Loop().Execute(func() { relay.crossing.part(); close(parted) })
				await(t, parted, "Stop")
				for _, c := range []net.Conn{client, server} {
					io.WriteString(c, "to the handler")
					got := make([]byte, len("to the handler"))
					if _, err := io.ReadFull(c, got); err != nil || string(got) != "to the handler" {
						t.Errorf("after Stop: got %q, %v", got, err)
					}
				}
				ch.Close()
			})
		}
	}
}

type onActive func(c *pipeline.Context) error

func (f onActive) HandleActive(c *pipeline.Context) error { return f(c) }
