//go:build linux

package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// mirrored is a proxy with mirrors that are connected first.
type mirrored struct {
	proxy
	mirrors []Mirror // Channel is dialed for those without a File
	addr    string   // of the mirrors
}

func (p *mirrored) HandleActive(c *pipeline.Context) error {
	c.Channel().SetAutoRead(false)
	p.dial(c, 0)
	return nil
}

func (p *mirrored) dial(c *pipeline.Context, i int) {
	if i == len(p.mirrors) {
		p.relay.Mirrors = p.mirrors
		_ = p.proxy.HandleActive(c)
		return
	}
	if !p.mirrors[i].dialed() {
		p.dial(c, i+1)
		return
	}
	(&Dialer{Config: p.cfg, Init: with(new(sinkErrors))}).DialThen(c, p.network, p.addr, func(ch pipeline.Channel, err error) {
		if err != nil {
			p.failed(err)
			return
		}
		p.mirrors[i].Channel = ch
		ended := p.mirrors[i].Ended
		p.mirrors[i].Ended = func(n int64, err error) {
			ended(n, err)
			ch.Close()
		}
		p.dial(c, i+1)
	})
}

// dialed reports whether a mirror has no sink yet.
func (m *Mirror) dialed() bool { return m.File == nil && m.Channel == nil && m.storage == nil }

type mirrorEnd struct {
	bytes int64
	err   error
}

// mirrorRig is a relay with mirrors between a client and a server of package net.
type mirrorRig struct {
	relay          *Relay
	client, server net.Conn
	sinks          []net.Conn
	ends           []chan mirrorEnd
}

func newMirrorRig(t *testing.T, network string, cfg Config, mode RelayMode, mirrors ...Mirror) *mirrorRig {
	t.Helper()
	target, sink := must(net.Listen(network, anyAddr(t, network))), must(net.Listen(network, anyAddr(t, network)))
	t.Cleanup(func() { target.Close(); sink.Close() })
	r := &mirrorRig{relay: &Relay{Mode: mode}}
	for i := range mirrors {
		end := make(chan mirrorEnd, 2)
		r.ends = append(r.ends, end)
		mirrors[i].Ended = func(n int64, err error) { end <- mirrorEnd{n, err} }
	}
	srv := &Server{Config: cfg, Init: func(ch pipeline.Channel) error {
		p := &mirrored{mirrors: slices.Clone(mirrors), addr: sink.Addr().String()}
		p.proxy = proxy{network: network, addr: target.Addr().String(), relay: r.relay, cfg: cfg, failed: func(err error) { t.Error(err) }}
		return ch.Pipeline().Add(p)
	}}
	r.client = dialNet(t, serve(t, srv, network, anyAddr(t, network)))
	for _, m := range mirrors {
		if m.dialed() {
			nc := must(sink.Accept())
			t.Cleanup(func() { nc.Close() })
			r.sinks = append(r.sinks, nc)
		}
	}
	r.server = must(target.Accept())
	t.Cleanup(func() { r.server.Close() })
	return r
}

// A mirror that blocks gets all that goes up, and nothing of what comes down, in every
// mode, be it a channel or a file, alone or with others, and none of them disturbs the
// relay.
func TestMirror(t *testing.T) {
	eachRelay(t, func(t *testing.T, network string, mode RelayMode) {
		for _, cfg := range []Config{{}, {SendBuffer: 1, RecvBuffer: 1}} {
			for _, sinks := range []string{"c", "f", "ccff"} {
				for _, size := range []int{0, 1, 3 << 20} {
					if cfg.SendBuffer > 0 {
						size = min(size, 300<<10)
					}
					t.Run(fmt.Sprintf("%s, %d bytes, buffers of %d", sinks, size, cfg.SendBuffer), func(t *testing.T) {
						var mirrors []Mirror
						var files []*os.File
						for _, kind := range sinks {
							m := Mirror{Block: true}
							if kind == 'f' {
								m.File = must(os.Create(filepath.Join(t.TempDir(), "mirror")))
								files = append(files, m.File)
								defer m.File.Close()
							}
							mirrors = append(mirrors, m)
						}
						r := newMirrorRig(t, network, cfg, mode, mirrors...)
						up, down := letters(size), "down"
						var wg sync.WaitGroup
						wg.Go(func() {
							io.WriteString(r.client, up)
							r.client.(closeWriter).CloseWrite()
						})
						wg.Go(func() {
							io.WriteString(r.server, down)
							r.server.(closeWriter).CloseWrite()
							if got, err := io.ReadAll(r.client); err != nil || string(got) != down {
								t.Errorf("client: got %d bytes, %v", len(got), err)
							}
						})
						for i, nc := range append([]net.Conn{r.server}, r.sinks...) {
							wg.Go(func() {
								if got, err := io.ReadAll(nc); err != nil || string(got) != up {
									t.Errorf("reader %d: got %d bytes, %v; want %d", i, len(got), err, len(up))
								}
							})
						}
						wg.Wait()
						for i, end := range r.ends {
							if e := await(t, end, "the mirror's end"); e.err != nil || e.bytes != int64(size) {
								t.Errorf("end of mirror %d: got %d bytes, %v; want %d, nil", i, e.bytes, e.err, size)
							}
						}
						for i, f := range files {
							if got := must(os.ReadFile(f.Name())); string(got) != up {
								t.Errorf("file %d: got %d bytes, want %d", i, len(got), len(up))
							}
						}
						s := r.relay.Stats()
						if s.Mirrored != int64(len(sinks)*size) || s.Dropped != 0 {
							t.Errorf("got %d mirrored, %d dropped; want %d, 0", s.Mirrored, s.Dropped, len(sinks)*size)
						}
					})
				}
			}
		}
	})
}

// A mirror that is not read is given up at the first byte that it cannot take, and the
// relay goes on; one that blocks holds the relay up until it is read, or closes.
func TestMirror_Slow(t *testing.T) {
	eachRelay(t, func(t *testing.T, network string, mode RelayMode) {
		cfg := Config{SendBuffer: 128 << 10}
		t.Run("given up", func(t *testing.T) {
			r := newMirrorRig(t, network, cfg, mode, Mirror{})
			out := letters(8 << 20)
			go func() {
				io.WriteString(r.client, out)
				r.client.(closeWriter).CloseWrite()
			}()
			if got, err := io.ReadAll(r.server); err != nil || string(got) != out {
				t.Errorf("server: got %d bytes, %v; want %d", len(got), err, len(out))
			}
			e := await(t, r.ends[0], "the mirror's end")
			if !errors.Is(e.err, ErrMirrorBehind) {
				t.Errorf("got %v, want %v", e.err, ErrMirrorBehind)
			}
			got, _ := io.ReadAll(r.sinks[0])
			if int64(len(got)) != e.bytes || !bytes.HasPrefix([]byte(out), got) {
				t.Errorf("mirror: got %d bytes, want the first %d", len(got), e.bytes)
			}
			if s := r.relay.Stats(); s.Mirrored != e.bytes || s.Mirrored+s.Dropped != int64(len(out)) {
				t.Errorf("got %+v, want %d mirrored and the rest dropped", s, e.bytes)
			}
		})
		t.Run("blocks", func(t *testing.T) {
			for _, closes := range []bool{false, true} {
				r := newMirrorRig(t, network, cfg, mode, Mirror{Block: true})
				out := letters(8 << 20)
				go func() {
					io.WriteString(r.client, out)
					r.client.(closeWriter).CloseWrite()
				}()
				// The server gets what the mirror has got, or has in its buffers.
				half := make([]byte, 1<<10)
				if _, err := io.ReadFull(r.server, half); err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				wg.Go(func() {
					if closes {
						r.sinks[0].Close()
						return
					}
					if got, err := io.ReadAll(r.sinks[0]); err != nil || string(got) != out {
						t.Errorf("mirror: got %d bytes, %v", len(got), err)
					}
				})
				rest, err := io.ReadAll(r.server)
				if err != nil || len(rest) != len(out)-len(half) {
					t.Errorf("closes %v: server: got %d bytes, %v", closes, len(rest), err)
				}
				wg.Wait()
				if e := await(t, r.ends[0], "the mirror's end"); (e.err != nil) != closes {
					t.Errorf("closes %v: got %v", closes, e.err)
				}
			}
		})
	})
}

// A file that cannot be written ends its mirror and nothing else.
func TestMirror_BadFile(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	readOnly := must(os.Open("/dev/null"))
	defer readOnly.Close()
	for _, f := range []*os.File{full, readOnly} {
		eachRelay(t, func(t *testing.T, network string, mode RelayMode) {
			for _, size := range []int{1, 3 << 20} { // the relay of one may end before its mirror
				r := newMirrorRig(t, network, Config{}, mode, Mirror{File: f, Block: true})
				out := letters(size)
				go func() {
					io.WriteString(r.client, out)
					r.client.(closeWriter).CloseWrite()
				}()
				if got, err := io.ReadAll(r.server); err != nil || string(got) != out {
					t.Errorf("server: got %d bytes, %v; want %d", len(got), err, len(out))
				}
				if e := await(t, r.ends[0], "the mirror's end"); e.err == nil || e.bytes != 0 {
					t.Errorf("got %d bytes, %v; want none and an error", e.bytes, e.err)
				}
				if s := r.relay.Stats(); s.Mirrored != 0 || s.Dropped != int64(size) {
					t.Errorf("got %d mirrored, %d dropped; want all %d dropped", s.Mirrored, s.Dropped, size)
				}
			}
		})
	}
}

// A sink on another loop gets what goes up, too, by copying; and nothing of the mirror
// stays in its pipeline.
func TestMirror_Elsewhere(t *testing.T) {
	g := must(eventloop.NewGroup(eventloop.GroupConfig{Loops: 1}))
	defer g.Shutdown(context.Background())
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			l := must(net.Listen(network, anyAddr(t, network)))
			defer l.Close()
			ch := must((&Dialer{Group: g}).Dial(context.Background(), network, l.Addr().String()))
			sink := must(l.Accept())
			defer sink.Close()
			r := newMirrorRig(t, network, Config{}, RelayAuto, Mirror{Channel: ch, Block: true})
			out := letters(8 << 20)
			go func() {
				io.WriteString(r.client, out)
				r.client.(closeWriter).CloseWrite()
			}()
			var wg sync.WaitGroup
			wg.Go(func() {
				if got, err := io.ReadAll(r.server); err != nil || string(got) != out {
					t.Errorf("server: got %d bytes, %v; want %d", len(got), err, len(out))
				}
			})
			wg.Go(func() {
				if got, err := io.ReadAll(sink); err != nil || string(got) != out {
					t.Errorf("mirror: got %d bytes, %v; want %d", len(got), err, len(out))
				}
			})
			if e := await(t, r.ends[0], "the mirror's end"); e.err != nil || e.bytes != int64(len(out)) {
				t.Errorf("end: got %d bytes, %v", e.bytes, e.err)
			}
			names := make(chan []string, 1)
			_ = ch.Loop().Execute(func() { names <- ch.Pipeline().Names() })
			if left := await(t, names, "names"); len(left) != 0 {
				t.Errorf("left in the sink's pipeline: %q", left)
			}
			ch.Close()
			wg.Wait()
			if s := r.relay.Stats(); s.Up.Spliced != 0 || s.Mirrored != int64(len(out)) {
				t.Errorf("got %+v, want all copied and mirrored", s)
			}
		})
	}
}
