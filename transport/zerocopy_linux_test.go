package transport

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// connection is how a channel that lends and its peer are joined.
type connection struct {
	name string
	use  zeroCopyUse // what comes of it
	join func(t testing.TB, srv *Server) (dial func() net.Conn)
}

// connections are a network card, as near as one machine comes to it, and what it is not.
func connections() []connection {
	over := func(lends bool) func(t testing.TB, srv *Server) func() net.Conn {
		return func(t testing.TB, srv *Server) func() net.Conn {
			v := newVeth(t, lends)
			l := v.listen(t, srv)
			return func() net.Conn { return v.dial(t, l) }
		}
	}
	local := func(network string) func(t testing.TB, srv *Server) func() net.Conn {
		return func(t testing.TB, srv *Server) func() net.Conn {
			l := serve(t, srv, network, anyAddr(t, network))
			return func() net.Conn { return dialNet(t, l) }
		}
	}
	return []connection{
		{"lent over veth", zeroCopyUsed, over(true)},
		{"copied over veth", zeroCopyCopied, over(false)},
		{"loopback", zeroCopyCopied, local("tcp")},
		{"unix", zeroCopyNotTCP, local("unix")},
	}
}

// oneLoop returns a group of one loop, for as long as the test.
func oneLoop(t testing.TB) *eventloop.Group {
	g, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Shutdown(context.Background()) })
	return g
}

// noQuarantine waits until nothing is left in quarantine.
func noQuarantine(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(patience); quarantined.sweep(time.Now()) > 0; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("in quarantine after %v: %+v", patience, Quarantine())
		}
	}
}

// The bytes that are lent are those that arrive, whatever their sizes, and come back.
func TestZeroCopyArrives(t *testing.T) {
	const threshold = 16 << 10
	sizes := []int{1, threshold - 1, threshold, threshold + 1, 3, 64 << 10, 100, 1 << 20, 700, 5 << 20, threshold, 20, 200_000}
	for _, conn := range connections() {
		for _, reader := range []string{"fast", "slow"} {
			t.Run(conn.name+", "+reader+" reader", func(t *testing.T) {
				live := buffer.Live()
				g := oneLoop(t)
				sum := sha256.New()
				accepted := make(chan pipeline.Channel, 1)
				released := 0 // on the loop
				srv := &Server{Group: g, Config: Config{ZeroCopy: threshold}, Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
					// The next message when the last one has left, so that there are many calls.
					var next func(i int)
					next = func(i int) {
						if i == 3*len(sizes) {
							c.Close()
							return
						}
						p := []byte(letters(sizes[i%len(sizes)] + i)[i:])
						sum.Write(p)
						var msg *buffer.Buf
						switch i % 3 {
						case 0:
							msg = buffer.Wrap(func() { released++ }, p)
						case 1:
							msg = pooled(string(p))
						case 2:
							msg = buffer.Compose(pooled(string(p[:len(p)/2])), buffer.Wrap(func() { released++ }, p[len(p)/2:]))
						}
						c.WriteThen(msg, func(err error) {
							if err == nil {
								next(i + 1)
							}
						})
					}
					next(0)
					accepted <- c.Channel()
					return nil
				}))}
				nc := conn.join(t, srv)()
				got := sha256.New()
				if n, err := io.CopyBuffer(got, onlyReader{nc, reader == "slow"}, make([]byte, 70_000)); err != nil {
					t.Fatalf("after %d bytes: %v", n, err)
				}
				ch := await(t, accepted, "a channel")
				nc.Close()
				await(t, ch.Closed().Done(), "the end of the channel")
				noQuarantine(t)
				onChannel(t, ch, func() {
					if fmt.Sprintf("%x", got.Sum(nil)) != fmt.Sprintf("%x", sum.Sum(nil)) {
						t.Error("what has arrived is not what was sent")
					}
					if want := 2 * len(sizes); released != want {
						t.Errorf("memory of the user's: %d given back, want %d", released, want)
					}
					z := ch.(*stream).rare.zc
					if z.able != conn.use || z.unconfirmed() != 0 || z.charge != 0 {
						t.Errorf("got %q with %d calls and a charge of %d, want %q", z.able, z.unconfirmed(), z.charge, conn.use)
					}
					// Of the 24 that are long enough each is one call at least, but for those
					// for which the kernel has no room.
					if conn.use == zeroCopyUsed && z.first < 12 {
						t.Errorf("calls without a copy: got %d, want 12 at least", z.first)
					}
					if conn.use != zeroCopyUsed && z.first > mostUnconfirmed {
						t.Errorf("calls without a copy: got %d before the report of the first copy", z.first)
					}
				})
				if err := g.Shutdown(context.Background()); err != nil {
					t.Fatal(err)
				}
				if n := buffer.Live(); n > live {
					t.Errorf("live buffers: got %d, want %d", n, live)
				}
			})
		}
	}
}

// onlyReader hides the other methods of a connection, and may read little at a time.
type onlyReader struct {
	r    io.Reader
	slow bool
}

func (r onlyReader) Read(p []byte) (int, error) {
	if r.slow {
		runtime.Gosched()
		p = p[:min(len(p), 5000)]
	}
	return r.r.Read(p)
}

// A channel that ends while its peer takes nothing tells the peer, and gives its memory
// back when the kernel does not read it any more, whatever the way in which it ends.
func TestZeroCopyToADeafPeer(t *testing.T) {
	for _, conn := range connections() {
		if conn.use == zeroCopyNotTCP {
			continue
		}
		for _, e := range []ending{
			{"Close", 50 * time.Millisecond, func(ch pipeline.Channel, _ *Server) { ch.Close() }, ErrCloseTimeout},
			{"Reset", time.Hour, func(ch pipeline.Channel, _ *Server) { ch.Reset() }, pipeline.ErrReset},
			{"an error", 50 * time.Millisecond, func(ch pipeline.Channel, _ *Server) {
				ch.(*stream).Abort(pipeline.CloseNow, errPipe)
			}, errPipe},
			{"a drain that is over", time.Hour, func(_ pipeline.Channel, srv *Server) { _ = srv.Shutdown(cancelled()) }, ErrDrainTimeout},
		} {
			t.Run(conn.name+", "+e.name, func(t *testing.T) {
				live := buffer.Live()
				g := oneLoop(t)
				accepted := make(chan pipeline.Channel, 1)
				srv := &Server{Group: g, Config: Config{ZeroCopy: 10_000, CloseTimeout: e.timeout}, Init: with(pipeline.OnActive(func(c *pipeline.Context) error {
					accepted <- c.Channel()
					return nil
				}))}
				nc := conn.join(t, srv)()
				ch := await(t, accepted, "a channel")
				if conn.use == zeroCopyUsed {
					fill(t, ch)
					reach(t, ch, "lending", func(s *stream) bool { return s.zc().unconfirmed() > 0 })
				} else {
					onChannel(t, ch, func() { ch.Write(pooled(letters(8 << 20))) })
				}
				e.do(ch, srv)
				await(t, ch.Closed().Done(), "the end of the channel")
				if !errors.Is(ch.CloseReason(), e.reason) {
					t.Errorf("close reason: got %v, want %v", ch.CloseReason(), e.reason)
				}
				noQuarantine(t)
				if err := g.Shutdown(context.Background()); err != nil {
					t.Fatal(err)
				}
				if n := buffer.Live(); n > live {
					t.Errorf("live buffers: got %d, want %d", n, live)
				}
				// An error closes; what has been copied by then is sent on by the kernel.
				if _, err := io.Copy(io.Discard, nc); !errors.Is(err, syscall.ECONNRESET) && (err != nil || e.reason != errPipe || conn.use == zeroCopyUsed) {
					t.Errorf("the peer: got %v, want a reset", err)
				}
			})
		}
	}
}
