//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

const (
	patience = 10_000 // milliseconds without a byte
	readSize = 256 << 10
)

// client asks for one file over some connections, again and again.
type client struct {
	ep      int
	conns   []*conn
	request []byte
	answer  []byte // header
	content []byte
	buf     []byte
}

// conn is a connection and what it still has to get.
type conn struct {
	fd      int
	waiting int   // answers that have been asked for and are not complete
	at      int64 // bytes of the answer under way that have come, header included
}

func newClient(t proc.Target, n int, request, answer, content []byte) (*client, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	cl := &client{ep: ep, request: request, answer: answer, content: content, buf: make([]byte, readSize)}
	for i := range n {
		fd, err := t.Connect(proc.SocketOptions{})
		if err != nil {
			cl.close()
			return nil, err
		}
		cl.conns = append(cl.conns, &conn{fd: fd})
		ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			cl.close()
			return nil, os.NewSyscallError("epoll_ctl", err)
		}
	}
	return cl, nil
}

func (cl *client) close() {
	for _, c := range cl.conns {
		unix.Close(c.fd)
	}
	unix.Close(cl.ep)
}

// ask asks for the file n times, with depth requests under way on each connection, and
// waits for all answers. With compare every byte is looked at, otherwise the kernel
// drops what is behind the header unseen.
func (cl *client) ask(n, depth int, compare bool) error {
	left, open := n, n
	for _, c := range cl.conns {
		for range depth {
			if left > 0 {
				if err := cl.send(c); err != nil {
					return err
				}
				left--
			}
		}
	}
	events := make([]unix.EpollEvent, len(cl.conns))
	for open > 0 {
		k, err := unix.EpollWait(cl.ep, events, patience)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("epoll_wait", err)
		}
		if k == 0 {
			return fmt.Errorf("nothing has come for %d ms; %d answers are missing", patience, open)
		}
		for _, ev := range events[:k] {
			c := cl.conns[ev.Fd]
			ended, err := cl.receive(c, compare)
			if err != nil {
				return fmt.Errorf("connection %d, answer at byte %d: %w", ev.Fd, c.at, err)
			}
			for range ended {
				open--
				if left > 0 {
					if err := cl.send(c); err != nil {
						return err
					}
					left--
				}
			}
		}
	}
	return nil
}

func (cl *client) send(c *conn) error {
	c.waiting++
	n, err := unix.Write(c.fd, cl.request)
	if err == nil && n < len(cl.request) {
		err = unix.EAGAIN
	}
	return os.NewSyscallError("write", err)
}

// receive reads once, and returns how many answers have ended.
func (cl *client) receive(c *conn, compare bool) (ended int, err error) {
	flags, size := 0, len(cl.buf)
	head, total := int64(len(cl.answer)), int64(len(cl.answer)+len(cl.content))
	blind := !compare && c.at >= head
	if blind {
		// To the end of the answer, and no further: a header is behind it.
		flags, size = unix.MSG_TRUNC, int(min(total-c.at, 1<<30))
	} else if !compare {
		size = int(head - c.at)
	}
	n, err := recv(c.fd, cl.buf, size, flags)
	if err == unix.EAGAIN || err == unix.EINTR {
		return 0, nil
	}
	if err != nil {
		return 0, os.NewSyscallError("recv", err)
	}
	if n == 0 {
		return 0, fmt.Errorf("the server has closed")
	}
	for got := cl.buf[:min(n, len(cl.buf))]; n > 0; {
		if c.waiting == 0 {
			return ended, fmt.Errorf("%d bytes that nobody has asked for", n)
		}
		k := int(min(int64(n), total-c.at))
		if !blind {
			m := 0
			if c.at < head {
				m = min(k, int(head-c.at))
				if want := cl.answer[c.at:][:m]; !bytes.Equal(got[:m], want) {
					return ended, fmt.Errorf("got header %q, want %q", got[:m], want)
				}
			}
			if want := cl.content[c.at+int64(m)-head:][:k-m]; !bytes.Equal(got[m:k], want) {
				return ended, fmt.Errorf("other bytes than the file's")
			}
			got = got[k:]
		}
		n -= k
		if c.at += int64(k); c.at == total {
			c.at = 0
			c.waiting--
			ended++
		}
	}
	return ended, nil
}
