//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// held connects, sends the beginning of one frame on every connection, and
// measures; then it completes the frames and expects each back.
func held(w *watch, o options) (err error) {
	const payload = 1000
	frame := binary.BigEndian.AppendUint32(nil, payload)
	for i := range payload {
		frame = append(frame, byte(i))
	}
	fmt.Printf("held: %d connections with %d B of a frame each\n", o.conns, o.heldBytes)
	if w.idle, err = w.settled(); err != nil {
		return err
	}
	w.stage("idle", w.idle, o.conns)
	fds, err := w.connect(o.conns, proc.SocketOptions{})
	defer func() { closeAll(fds) }()
	if err != nil {
		return err
	}
	if w.connected, err = w.settled(); err != nil {
		return err
	}
	w.stage("connected", w.connected, o.conns)
	for i, fd := range fds {
		if n, err := unix.Write(fd, frame[:o.heldBytes]); n != o.heldBytes {
			return fmt.Errorf("connection %d: wrote %d of %d B: %w", i, n, o.heldBytes, err)
		}
	}
	if err := w.wait("read what was sent", func() (bool, error) {
		q, err := w.queues()
		return q.total()+q.onTheWay == 0, err
	}); err != nil {
		return err
	}
	if w.full, err = w.settled(); err != nil {
		return err
	}
	w.stage("holding", w.full, o.conns)

	for i, fd := range fds {
		if n, err := unix.Write(fd, frame[o.heldBytes:]); n != len(frame)-o.heldBytes {
			return fmt.Errorf("connection %d: the rest of its frame: wrote %d: %w", i, n, err)
		}
	}
	got := make([]byte, len(frame)+1)
	for i, fd := range fds {
		n, err := readFull(fd, got[:len(frame)])
		if err != nil {
			return fmt.Errorf("connection %d: its frame did not come back: %w", i, err)
		}
		if !bytes.Equal(got[:n], frame) {
			return fmt.Errorf("connection %d: another frame than its own came back", i)
		}
	}
	if err := w.left(&fds, o.conns); err != nil {
		return err
	}
	return w.verdict(o, "connections", o.conns, o.heldLimit)
}

// left measures once more: after all frames were answered, and after all have gone.
func (w *watch) left(fds *[]int, n int) error {
	m, err := w.settled()
	if err != nil {
		return err
	}
	w.stage("answered, still connected", m, n)
	have, err := w.descriptors()
	if err != nil {
		return err
	}
	closeAll(*fds)
	gone := len(*fds)
	*fds = nil
	if err := w.wait("close the connections its peers have closed", func() (bool, error) {
		now, err := w.descriptors()
		return now <= have-gone, err
	}); err != nil {
		return err
	}
	if m, err = w.settled(); err != nil {
		return err
	}
	w.stage("all gone", m, n)
	return nil
}

// readFull reads all of p from a non-blocking descriptor.
func readFull(fd int, p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m, err := unix.Read(fd, p[n:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
			if err != nil && err != unix.EINTR {
				return n, os.NewSyscallError("poll", err)
			}
			if ready == 0 && err == nil {
				return n, fmt.Errorf("nothing for 5 s after %d of %d B", n, len(p))
			}
		case err != nil:
			return n, os.NewSyscallError("read", err)
		case m == 0:
			return n, fmt.Errorf("closed after %d of %d B", n, len(p))
		default:
			n += m
		}
	}
	return n, nil
}

// stream is what a peer sends: bytes that repeat with a prime period, from a start of its own.
var stream = func() []byte {
	b := make([]byte, 251+64<<10)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}()

func streamAt(peer int, off int64) []byte { return stream[(int64(peer)*17+off)%251:] }

// slow has every peer send small messages, one write each, until the server takes
// no more, measures, and then reads everything back.
func slow(w *watch, o options) (err error) {
	fmt.Printf("slow: %d peers send messages of %d B and do not read\n", o.peers, o.size)
	if w.idle, err = w.settled(); err != nil {
		return err
	}
	w.stage("idle", w.idle, o.peers)
	fds, err := w.connect(o.peers, proc.SocketOptions{SendBuffer: o.sndbuf, RecvBuffer: o.rcvbuf, MaxSegment: o.mss})
	defer func() { closeAll(fds) }()
	if err != nil {
		return err
	}
	if w.connected, err = w.settled(); err != nil {
		return err
	}
	w.stage("connected", w.connected, o.peers)

	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	defer unix.Close(ep)
	for i, fd := range fds {
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLOUT, Fd: int32(i)}); err != nil {
			return os.NewSyscallError("epoll_ctl", err)
		}
	}
	sent := make([]int64, len(fds))
	began := time.Now()
	endless, err := w.fill(ep, fds, sent, o)
	if err != nil {
		return err
	}
	if w.full, err = w.settled(); err != nil {
		return err
	}
	w.stage("full", w.full, o.peers)
	q, err := w.queues()
	if err != nil {
		return err
	}
	var total int64
	for _, n := range sent {
		total += n
	}
	fmt.Printf("  sent %.0f KiB a peer, of which the server has not read %.0f KiB; %d peers were never held up\n",
		float64(total)/1024/float64(o.peers), float64(q.total()+q.onTheWay)/1024/float64(o.peers), endless)

	if err := drainPeers(ep, fds, sent, time.Since(began)); err != nil {
		return err
	}
	if err := w.left(&fds, o.peers); err != nil {
		return err
	}
	return w.verdict(o, "peers", o.peers, o.slowLimit)
}

// enough is what may lie unread at the server before its peer holds back: more of
// it would only fill the kernel.
const enough = 16 << 10

// fill has every peer write while the server reads from it, until the server has
// read nothing from anyone for o.quiet. It returns how many peers could send all
// they had.
func (w *watch) fill(ep int, fds []int, sent []int64, o options) (endless int, err error) {
	names := make([]string, len(fds))
	for i, fd := range fds {
		if names[i], err = kernelName(fd); err != nil {
			return 0, err
		}
	}
	var (
		events  = make([]unix.EpollEvent, 1024)
		waiting = make([]bool, len(fds)) // writes nothing for now
		checked = time.Now()
		moved   = time.Now()
		read    int64 // by the server, when last looked
	)
	pause := func(i int, yes bool) error {
		if waiting[i] == yes {
			return nil
		}
		waiting[i] = yes
		ev := unix.EpollEvent{Events: unix.EPOLLOUT, Fd: int32(i)}
		if yes {
			ev.Events = 0
		}
		return os.NewSyscallError("epoll_ctl", unix.EpollCtl(ep, unix.EPOLL_CTL_MOD, fds[i], &ev))
	}
	for {
		n, err := unix.EpollWait(ep, events, 50)
		if err != nil && err != unix.EINTR {
			return 0, os.NewSyscallError("epoll_wait", err)
		}
		for _, ev := range events[:max(n, 0)] {
			i := int(ev.Fd)
			size := int64(o.size) - sent[i]%int64(o.size) // the rest of a message, if one was cut
			m, err := unix.Write(fds[i], streamAt(i, sent[i])[:size])
			if err == unix.EAGAIN || err == unix.EINTR {
				continue
			}
			if err != nil {
				return 0, fmt.Errorf("peer %d, after %d B: %w", i, sent[i], os.NewSyscallError("write", err))
			}
			if sent[i] += int64(m); sent[i] >= o.perPeer {
				endless++
				if err := pause(i, true); err != nil {
					return 0, err
				}
			}
		}
		if time.Since(checked) < 100*time.Millisecond {
			continue
		}
		q, err := w.queues()
		if err != nil {
			return 0, err
		}
		now := -q.total() - q.onTheWay
		for i := range fds {
			now += sent[i]
			if sent[i] < o.perPeer {
				if err := pause(i, q.unread[names[i]] > enough); err != nil {
					return 0, err
				}
			}
		}
		if now > read {
			read, moved = now, time.Now()
		} else if time.Since(moved) > o.quiet {
			return endless, nil
		}
		m, err := proc.MemoryOf(w.server.PID)
		if err != nil {
			return 0, err
		}
		if grown := (m.RSS - w.idle.RSS) / mib; grown > o.abort {
			return 0, fmt.Errorf("given up: the server has grown by %d MiB and still reads", grown)
		}
		checked = time.Now()
	}
}

// drainPeers reads what each peer is owed and compares it. The server's kernel may
// look at a window that was closed for some time only after as long again.
func drainPeers(ep int, fds []int, sent []int64, closed time.Duration) error {
	patience := closed + 5*time.Second
	for i, fd := range fds {
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
			return os.NewSyscallError("epoll_ctl", err)
		}
	}
	got := make([]int64, len(fds))
	left := 0
	for i := range sent {
		if sent[i] > 0 {
			left++
		}
	}
	events, buf := make([]unix.EpollEvent, 1024), make([]byte, 64<<10)
	for left > 0 {
		n, err := unix.EpollWait(ep, events, int(patience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("epoll_wait", err)
		}
		if n == 0 {
			return fmt.Errorf("the peers read again, but %d of them wait for bytes and none came for %v", left, patience.Round(time.Second))
		}
		for _, ev := range events[:n] {
			i := int(ev.Fd)
			m, err := unix.Read(fds[i], buf)
			switch {
			case err == unix.EAGAIN || err == unix.EINTR:
				continue
			case err != nil:
				return fmt.Errorf("peer %d, after %d of %d B: %w", i, got[i], sent[i], os.NewSyscallError("read", err))
			case m == 0:
				return fmt.Errorf("peer %d: closed after %d of %d B", i, got[i], sent[i])
			case !bytes.Equal(buf[:m], streamAt(i, got[i])[:m]):
				return fmt.Errorf("peer %d: wrong bytes after %d", i, got[i])
			}
			if got[i] += int64(m); got[i] == sent[i] {
				left--
			} else if got[i] > sent[i] {
				return errors.New("more came back than was sent")
			}
		}
	}
	return nil
}
