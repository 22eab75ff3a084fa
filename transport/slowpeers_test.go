//go:build linux

package transport

import (
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// Thousands of peers ask for more than there is memory for, and do not read it: what
// their queues pin stays within the budget, the longest of them are closed, and those
// who read go on as if nothing were.
func TestThousandsOfSlowPeers(t *testing.T) {
	peers := 2000
	if testing.Short() {
		peers = 500
	}
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	peers = min(peers, int(files.Cur/2)-100)
	if peers < 100 {
		t.Skipf("%d descriptors are too few", files.Cur)
	}
	const answer = 80 << 10
	limit := int64(peers) * answer / 10
	budget := &Budget{Limit: limit}
	var asked, most atomic.Int64
	all := make(chan struct{})
	srv := &Server{
		Group:  newGroup(t, eventloop.GroupConfig{Loops: 2}),
		Config: Config{Budget: budget, SendBuffer: 4 << 10},
		Init: with(pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
			if b.Uint8At(0) == 'x' {
				c.Write(b)
				return nil
			}
			b.Release()
			c.Write(pooled(letters(answer)))
			c.Flush()
			if q := budget.Stats().Queued; q > most.Load() {
				most.Store(q)
			}
			if asked.Add(1) == int64(peers) {
				close(all)
			}
			return nil
		})),
	}
	l := serve(t, srv, "unix", anyAddr(t, "unix"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var rounds atomic.Int64
	for range 10 {
		nc := dialNet(t, l)
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					roundTrip(t, nc)
					rounds.Add(1)
				}
			}
		})
	}
	for range peers {
		nc, err := net.DialTimeout("unix", l.LocalAddr().String(), patience)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(patience))
		if _, err := nc.Write([]byte{'?'}); err != nil {
			t.Fatal(err)
		}
	}
	await(t, all, "the last of the slow peers' requests")
	close(stop)
	wg.Wait()
	s := budget.Stats()
	if most.Load() > limit || s.Queued > limit {
		t.Errorf("queued: got %d bytes at most, want no more than %d", most.Load(), limit)
	}
	// A tenth of them at least can stay: nobody is closed for nothing.
	if left := int64(s.Channels); left < limit/(2*answer) || s.Closed > uint64(peers)-uint64(left) {
		t.Errorf("got %d slow channels left and %d closed of %d; want %d at least to stay", left, s.Closed, peers, limit/(2*answer))
	}
	t.Logf("%d slow peers: %d closed, %d KiB of %d KiB queued; %d round trips meanwhile", peers, s.Closed, s.Queued>>10, limit>>10, rounds.Load())
	for _, ch := range srv.s.open() {
		ch.Reset()
	}
}
