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
		n, err := w.unread()
		return n == 0, err
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
	endless, err := w.fill(ep, fds, sent, o)
	if err != nil {
		return err
	}
	if w.full, err = w.settled(); err != nil {
		return err
	}
	w.stage("full", w.full, o.peers)
	unread, err := w.unread()
	if err != nil {
		return err
	}
	var total int64
	for _, n := range sent {
		total += n
	}
	fmt.Printf("  sent %.0f KiB a peer, of which the server has not read %.0f KiB; %d peers were never held up\n",
		float64(total)/1024/float64(o.peers), float64(unread)/1024/float64(o.peers), endless)

	if err := drainPeers(ep, fds, sent); err != nil {
		return err
	}
	if err := w.left(&fds, o.peers); err != nil {
		return err
	}
	return w.verdict(o, "peers", o.peers, o.slowLimit)
}

// fill writes until nothing moves any more. It returns how many peers could send all they had.
func (w *watch) fill(ep int, fds []int, sent []int64, o options) (endless int, err error) {
	events := make([]unix.EpollEvent, 1024)
	checked := time.Now()
	for {
		n, err := unix.EpollWait(ep, events, int(o.quiet.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, os.NewSyscallError("epoll_wait", err)
		}
		if n == 0 {
			return endless, nil
		}
		for _, ev := range events[:n] {
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
				if err := unix.EpollCtl(ep, unix.EPOLL_CTL_MOD, fds[i], &unix.EpollEvent{Fd: ev.Fd}); err != nil {
					return 0, os.NewSyscallError("epoll_ctl", err)
				}
			}
		}
		if time.Since(checked) > 200*time.Millisecond {
			checked = time.Now()
			m, err := proc.MemoryOf(w.server.PID)
			if err != nil {
				return 0, err
			}
			if grown := (m.RSS - w.idle.RSS) / mib; grown > o.abort {
				return 0, fmt.Errorf("given up: the server has grown by %d MiB and still reads", grown)
			}
		}
	}
}

// drainPeers reads what each peer is owed and compares it.
func drainPeers(ep int, fds []int, sent []int64) error {
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
		n, err := unix.EpollWait(ep, events, 5000)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("epoll_wait", err)
		}
		if n == 0 {
			return fmt.Errorf("the peers read again, but %d of them wait for bytes and none came for 5 s", left)
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
