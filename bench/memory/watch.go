//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

// watch is a server process whose memory is followed through the stages of a scenario.
type watch struct {
	server *proc.Server
	target proc.Target

	idle, connected, full proc.Memory
}

const settleTime = 5 * time.Second

// settled reads the memory until it has stopped moving for half a second.
func (w *watch) settled() (proc.Memory, error) {
	const step, still = 100 * time.Millisecond, 5
	last, err := proc.MemoryOf(w.server.PID)
	same := 0
	for end := time.Now().Add(settleTime); err == nil && same < still && time.Now().Before(end); {
		select {
		case <-w.server.Exited():
			return last, fmt.Errorf("the server has ended\n%s", w.server.Stderr())
		case <-time.After(step):
		}
		var m proc.Memory
		if m, err = proc.MemoryOf(w.server.PID); m == last {
			same++
		} else {
			same = 0
		}
		last = m
	}
	return last, err
}

// stage prints one line: the memory now, and its growth since idle per connection.
func (w *watch) stage(name string, m proc.Memory, conns int) {
	grown := m.RSS - w.idle.RSS
	fmt.Printf("  %-28s RSS %8.1f MiB (anonymous %8.1f)  over idle %+8.1f MiB, %+9.0f B a connection\n",
		name, float64(m.RSS)/mib, float64(m.Anonymous)/mib, float64(grown)/mib, float64(grown)/float64(conns))
}

// connect opens n connections from up to 5,000 to each address of the loopback
// range and waits until the server has accepted them all.
func (w *watch) connect(n int, o proc.SocketOptions) ([]int, error) {
	had, err := w.descriptors()
	if err != nil {
		return nil, err
	}
	fds := make([]int, 0, n)
	for i := range n {
		o.Source = netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i/5000)})
		fd, err := w.target.Connect(o)
		if err != nil {
			return fds, fmt.Errorf("connection %d: %w", i, err)
		}
		fds = append(fds, fd)
	}
	return fds, w.wait("accept all connections", func() (bool, error) {
		have, err := w.descriptors()
		return have >= had+n, err
	})
}

func (w *watch) descriptors() (int, error) {
	d, err := os.Open(fmt.Sprintf("/proc/%d/fd", w.server.PID))
	if err != nil {
		return 0, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	return len(names), err
}

// queues are the bytes that the kernel holds on their way to the server.
type queues struct {
	unread   map[string]int64 // by the peer's address as the kernel prints it: arrived, not read
	onTheWay int64            // in the peers' own send queues
}

func (q *queues) total() (sum int64) {
	for _, n := range q.unread {
		sum += n
	}
	return sum
}

// queues reads the kernel's table of IPv4 connections.
func (w *watch) queues() (queues, error) {
	q := queues{unread: map[string]int64{}}
	_, portText, _ := strings.Cut(strings.TrimPrefix(w.server.Addr, "tcp://"), ":")
	port, err := strconv.Atoi(portText)
	if err != nil {
		return q, fmt.Errorf("address %q: %w", w.server.Addr, err)
	}
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", w.server.PID))
	if err != nil {
		return q, err
	}
	// sl local_address rem_address st tx_queue:rx_queue ...
	suffix := fmt.Appendf(nil, ":%04X", port)
	for line := range bytes.Lines(table) {
		f := bytes.Fields(line)
		if len(f) < 5 || string(f[3]) != "01" { // established
			continue
		}
		txText, rxText, _ := bytes.Cut(f[4], []byte{':'})
		switch {
		case bytes.HasSuffix(f[1], suffix):
			rx, err := strconv.ParseInt(string(rxText), 16, 64)
			if err != nil {
				return q, err
			}
			q.unread[string(f[2])] = rx
		case bytes.HasSuffix(f[2], suffix):
			tx, err := strconv.ParseInt(string(txText), 16, 64)
			if err != nil {
				return q, err
			}
			q.onTheWay += tx
		}
	}
	return q, nil
}

// kernelName is a socket's own address as the kernel's table prints it.
func kernelName(fd int) (string, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return "", os.NewSyscallError("getsockname", err)
	}
	in, ok := sa.(*unix.SockaddrInet4)
	if !ok {
		return "", errors.New("not an IPv4 socket")
	}
	return fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(in.Addr[:]), in.Port), nil
}

func (w *watch) wait(what string, ok func() (bool, error)) error {
	const limit = 20 * time.Second
	for end := time.Now().Add(limit); ; {
		done, err := ok()
		if err != nil || done {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("the server did not %s within %v\n%s", what, limit, w.server.Stderr())
		}
		time.Sleep(20 * time.Millisecond)
	}
}
