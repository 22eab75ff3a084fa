package eventloop_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/eventloop"
)

// lines is an IOHandle that reads lines from a descriptor, a pipe for one, and tells
// what comes.
type lines struct {
	reg  *eventloop.Registration
	rest []byte
	line func(string)
	end  func()
}

// HandleIO reads what is there: once, because what stays is reported again.
func (h *lines) HandleIO(eventloop.Event) {
	var buf [512]byte
	n, err := syscall.Read(h.reg.FD(), buf[:])
	switch {
	case err == syscall.EAGAIN || err == syscall.EINTR:
		return
	case err != nil || n == 0:
		h.CloseIO()
		return
	}
	h.rest = append(h.rest, buf[:n]...)
	for {
		line, rest, ok := bytes.Cut(h.rest, []byte("\n"))
		if !ok {
			return
		}
		h.rest = rest
		h.line(string(line))
	}
}

// HandleOp is for handles that submit Ops.
func (h *lines) HandleOp(*eventloop.Op) {}

// CloseIO closes the descriptor when nothing uses it any more.
func (h *lines) CloseIO() {
	fd := h.reg.FD()
	h.reg.Close(func() {
		_ = syscall.Close(fd)
		h.end()
	})
}

// A loop drives any descriptor that epoll takes: here the reading end of a pipe.
func ExampleLoop_Register() {
	group, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_NONBLOCK|syscall.O_CLOEXEC); err != nil {
		fmt.Println(err)
		return
	}
	ended := make(chan struct{})
	h := &lines{
		line: func(s string) { fmt.Println("line:", s) },
		end:  func() { close(ended) },
	}
	loop := group.Next()
	_ = loop.Execute(func() { // Register is for the loop only
		if h.reg, err = loop.Register(p[0], h); err == nil {
			err = h.reg.SetInterest(eventloop.EventRead)
		}
		if err != nil {
			fmt.Println(err)
		}
	})
	_, _ = syscall.Write(p[1], []byte("one\ntwo\nth"))
	_, _ = syscall.Write(p[1], []byte("ree\n"))
	_ = syscall.Close(p[1])
	<-ended
	if err := group.Shutdown(context.Background()); err != nil {
		fmt.Println(err)
	}
	// Output:
	// line: one
	// line: two
	// line: three
}

// reads is an IOHandle that reads once when there is something.
type reads struct {
	reg *eventloop.Registration
	got func([]byte, error)
}

func (h *reads) HandleIO(eventloop.Event) {
	buf := make([]byte, 4096)
	n, err := syscall.Read(h.reg.FD(), buf)
	h.got(buf[:max(n, 0)], err)
}

func (h *reads) HandleOp(*eventloop.Op) {}

func (h *reads) CloseIO() {
	fd := h.reg.FD()
	h.reg.Close(func() { _ = syscall.Close(fd) })
}

// watch registers fd for reading and returns what the first read brings.
func watch(t *testing.T, fd int) <-chan []byte {
	t.Helper()
	group, err := eventloop.NewGroup(eventloop.GroupConfig{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // CloseIO closes the descriptor
		if err := group.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	got := make(chan []byte, 1)
	h := &reads{}
	h.got = func(b []byte, err error) {
		if err != nil {
			t.Errorf("read: %v", err)
		}
		if err := h.reg.SetInterest(0); err != nil { // one is enough
			t.Errorf("SetInterest: %v", err)
		}
		got <- b
	}
	registered := make(chan error, 1)
	loop := group.Next()
	if err := loop.Execute(func() {
		var err error
		if h.reg, err = loop.Register(fd, h); err == nil {
			err = h.reg.SetInterest(eventloop.EventRead)
		}
		registered <- err
	}); err != nil {
		t.Fatal(err)
	}
	if err := <-registered; err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRegisterInotify(t *testing.T) {
	dir := t.TempDir()
	fd, err := syscall.InotifyInit1(syscall.IN_NONBLOCK | syscall.IN_CLOEXEC)
	if err != nil {
		t.Skipf("inotify: %v", err)
	}
	if _, err := syscall.InotifyAddWatch(fd, dir, syscall.IN_CREATE); err != nil {
		t.Fatal(errors.Join(err, syscall.Close(fd)))
	}
	got := watch(t, fd)
	if err := os.WriteFile(filepath.Join(dir, "news"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := <-got
	if len(b) <= syscall.SizeofInotifyEvent {
		t.Fatalf("got %d bytes, want an event and a name", len(b))
	}
	name, _, _ := bytes.Cut(b[syscall.SizeofInotifyEvent:], []byte{0})
	if mask := binary.NativeEndian.Uint32(b[4:]); mask&syscall.IN_CREATE == 0 || string(name) != "news" {
		t.Errorf("got event %#x for %q, want a file that was made", mask, name)
	}
}

func TestRegisterTimerfd(t *testing.T) {
	fd, err := newTimerfd(time.Millisecond)
	if err != nil {
		t.Skipf("timerfd: %v", err)
	}
	b := <-watch(t, fd)
	if len(b) != 8 || binary.NativeEndian.Uint64(b) != 1 {
		t.Errorf("got % x, want that it has expired once", b)
	}
}
