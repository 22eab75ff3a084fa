//go:build linux

package transport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
)

// TestPeer is the peer that the test below kills. It connects and is connected to, sends
// without end, and reads next to nothing.
func TestPeer(t *testing.T) {
	addr := os.Getenv("RUNNEL_TEST_PEER")
	if addr == "" {
		t.Skip("for another test")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	flood := func(nc net.Conn) {
		go func() {
			for {
				_, _ = nc.Write(make([]byte, 64<<10))
			}
		}()
	}
	for range peerConns {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		flood(nc)
	}
	fmt.Println(l.Addr())
	for {
		nc, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		flood(nc)
	}
}

const peerConns = 10

// When the process at the other end is killed, all channels to it end, accepted and
// dialed, full or not, with every completion told; the others go on.
func TestPeerIsKilled(t *testing.T) {
	type end struct {
		dialed bool
		reason error
	}
	ends := make(chan end, 2*peerConns)
	var owed, told atomic.Int64
	// Each channel is written to until it is full.
	filler := func(dialed bool) []any {
		return []any{
			pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
				b.Release()
				if c.Channel().Writable() {
					owed.Add(1)
					c.WriteThen(letters(300<<10), func(error) { told.Add(1) })
				}
				return nil
			}),
			pipeline.OnInactive(func(c *pipeline.Context) error {
				ends <- end{dialed, c.Channel().CloseReason()}
				return nil
			}),
		}
	}
	full := make(chan struct{}, 1)
	srv := &Server{Config: Config{SendBuffer: 16 << 10}, Init: with(append(filler(false),
		pipeline.OnWritability(func(c *pipeline.Context) error {
			select {
			case full <- struct{}{}:
			default:
			}
			return nil
		}))...)}
	l := serve(t, srv, "tcp", "127.0.0.1:0")
	other := serve(t, &Server{Init: with(echo())}, "tcp", "127.0.0.1:0")
	stays := dialNet(t, other)
	roundTrip(t, stays)

	cmd := exec.Command(os.Args[0], "-test.run=^TestPeer$")
	cmd.Env = append(os.Environ(), "RUNNEL_TEST_PEER="+l.LocalAddr().String())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	for range peerConns {
		d := &Dialer{Config: Config{SendBuffer: 16 << 10}, Init: with(filler(true)...)}
		if _, err := d.Dial(context.Background(), "tcp", strings.TrimSpace(line)); err != nil {
			t.Fatal(err)
		}
	}
	await(t, full, "a channel that is full")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	dialed := 0
	for range 2 * peerConns {
		e := await(t, ends, "the end of a channel")
		if e.dialed {
			dialed++
		}
		if !errors.Is(e.reason, io.EOF) && !errors.Is(e.reason, syscall.ECONNRESET) && !errors.Is(e.reason, syscall.EPIPE) &&
			!errors.Is(e.reason, ErrCloseTimeout) {
			t.Errorf("close reason: got %v, want the end or the error of the connection", e.reason)
		}
	}
	if dialed != peerConns || told.Load() != owed.Load() {
		t.Errorf("got %d of %d dialed channels ended, %d of %d completions told", dialed, peerConns, told.Load(), owed.Load())
	}
	roundTrip(t, stays)
}
