//go:build linux

package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// hung is an Op that ends when a test says so.
type hung struct {
	entered chan struct{} // closed when it has begun
	release chan struct{}
}

func newHung() *hung { return &hung{make(chan struct{}), make(chan struct{})} }

func (h *hung) wait() {
	close(h.entered)
	<-h.release
}

// hungSocket is a socket on which no file is in memory, and the first sendfile is hung.
type hungSocket struct {
	*fdSocket
	*hung
}

func (k hungSocket) cached(int, int64) (bool, error) { return false, nil }
func (k hungSocket) sendfile(file int, off int64, n int) (int, error) {
	k.wait()
	return k.fdSocket.sendfile(file, off, n)
}

// ending is how a channel with an Op that does not end is brought to its end.
type ending struct {
	name    string
	timeout time.Duration // CloseTimeout
	do      func(ch pipeline.Channel, srv *Server)
	reason  error
}

// cancelled is the context of a drain that is over.
func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

var endings = []ending{
	{"Close", 20 * time.Millisecond, func(ch pipeline.Channel, _ *Server) { ch.Close() }, ErrCloseTimeout},
	{"Reset", 20 * time.Millisecond, func(ch pipeline.Channel, _ *Server) { ch.Reset() }, pipeline.ErrReset},
	{"an error", 20 * time.Millisecond, func(ch pipeline.Channel, _ *Server) {
		ch.(*stream).Abort(pipeline.CloseNow, errPipe)
	}, errPipe},
	{"a drain that is over", time.Hour, func(_ pipeline.Channel, srv *Server) { _ = srv.Shutdown(cancelled()) }, ErrDrainTimeout},
	{"Reset, then a drain that is over", time.Hour, func(ch pipeline.Channel, srv *Server) {
		ch.Reset()
		_ = srv.Shutdown(cancelled())
	}, pipeline.ErrReset},
}

// An Op that does not end keeps the descriptor and its buffers, and nothing else: its
// channel ends for its user and for the server, its peer is told, and when the Op returns
// all is given back.
func TestOpThatDoesNotEnd(t *testing.T) {
	content := letters(5000)
	for _, op := range []string{"sendfile", "receive"} {
		eachNetwork(t, func(t *testing.T, network, addr string) {
			for _, e := range endings {
				t.Run(op+" "+e.name, func(t *testing.T) {
					g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
					if err != nil {
						t.Fatal(err)
					}
					h := newHung()
					file := &scriptFile{before: h.wait}
					region := buffer.NewFileRegion(tempFile(t, content), 0, int64(len(content)))
					first := pooled(letters(100))
					var events, completions []string // on the loop
					note := func(s string) { events = append(events, s) }
					var ch pipeline.Channel
					srv := &Server{Group: g, Config: Config{CloseTimeout: e.timeout}, Init: func(c pipeline.Channel) error {
						ch = c
						s := c.(*stream)
						s.sock = hungSocket{&s.fd, h}
						return c.Pipeline().Add(
							pipeline.OnActive(func(c *pipeline.Context) error {
								if op == "receive" {
									region.Release()
									region = nil
									r := &FileReceiver{First: first, copies: true}
									return r.start(c, file, -1, func(_ int64, err error) {
										completions = append(completions, fmt.Sprint("then ", errors.Is(err, e.reason)))
									})
								}
								first.Release()
								first = nil
								c.WriteThen(region, func(err error) { completions = append(completions, fmt.Sprint("region ", errors.Is(err, e.reason))) })
								c.WriteThen(pooled("behind"), func(err error) { completions = append(completions, fmt.Sprint("behind ", errors.Is(err, e.reason))) })
								return nil
							}),
							pipeline.OnInactive(func(*pipeline.Context) error { note("inactive"); return nil }),
						)
					}}
					l := serve(t, srv, network, addr)
					peer := dialNet(t, l)
					await(t, h.entered, "the Op")
					s := ch.(*stream)
					fd := fmt.Sprintf("/proc/self/fd/%d", s.fd.fd)
					link := must(os.Readlink(fd))
					e.do(ch, srv)
					await(t, ch.Closed().Done(), "the end of the channel")
					if err := srv.Shutdown(context.Background()); err != nil && !errors.Is(err, ErrDrainTimeout) {
						t.Errorf("Shutdown: %v", err)
					}
					if !errors.Is(ch.CloseReason(), e.reason) {
						t.Errorf("close reason: got %v, want %v", ch.CloseReason(), e.reason)
					}
					wantGone(t, peer)
					wantCompletions := "region true, behind true"
					if op == "receive" {
						wantCompletions = "then true"
					}
					onChannel(t, ch, func() {
						if got := strings.Join(completions, ", "); got != wantCompletions {
							t.Errorf("completions: got %s, want %s", got, wantCompletions)
						}
						if got := strings.Join(events, ", "); got != "inactive" {
							t.Errorf("events: got %s, want inactive", got)
						}
						if region != nil && region.Refs() != 1 || first != nil && first.Refs() != 1 {
							t.Error("what the Op uses has been released")
						}
					})
					if got, err := os.Readlink(fd); got != link {
						t.Errorf("the descriptor is %s, %v while the Op uses it, want %s", got, err, link)
					}
					close(h.release)
					if err := g.Shutdown(context.Background()); err != nil {
						t.Fatal(err)
					}
					if got, _ := os.Readlink(fd); got == link {
						t.Error("the descriptor is still open when the Op has ended")
					}
					if region != nil && region.Refs() != 0 || first != nil && first.Refs() != 0 {
						t.Error("what the Op used has not been released")
					}
					if got := strings.Join(completions, ", "); got != wantCompletions {
						t.Errorf("completions in the end: got %s, want %s", got, wantCompletions)
					}
				})
			}
		})
	}
}

// wantGone looks whether the peer of a channel is told that it is over.
func wantGone(t *testing.T, peer net.Conn) {
	t.Helper()
	if n, err := peer.Read(make([]byte, 10)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the peer: got %d bytes and %v, want the end", n, err)
	}
}

// An Op that ends in time changes nothing: the channel ends with it.
func TestOpThatEndsInTime(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{CloseTimeout: time.Second}})
	r.k.cold = true
	r.log = nil
	r.do(func() { r.Write(buffer.NewFileRegion(tempFile(t, letters(100)), 0, 100)) })
	r.m.Enter(r.Reset)
	if r.k.disconnects != 1 {
		t.Errorf("resets before the Op has ended: got %d, want 1", r.k.disconnects)
	}
	r.wantLog()
	r.m.RunUntilIdle()
	r.wantLog("inactive", "unregistered")
	r.m.Advance(time.Minute)
	if n := r.logs.FilterMessageSnippet("does not end").Len(); n != 0 || r.k.closes != 1 {
		t.Errorf("got %d lines in the log, closed %d times; want none, once", n, r.k.closes)
	}
}
