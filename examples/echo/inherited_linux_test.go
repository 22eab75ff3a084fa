package main

import (
	"net"
	"syscall"
	"testing"

	"github.com/runnel-io/runnel/examples/internal/process"
)

// A server whose inherited socket is shut down by somebody else who has it says so and
// ends, instead of running on without one.
func TestInheritedSocketShut(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := process.StartOn(t, f)
	c, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Control(func(fd uintptr) { err = syscall.Shutdown(int(fd), syscall.SHUT_RDWR) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if status := s.Wait(); status != 1 {
		t.Errorf("got status %d, want 1", status)
	}
	s.WaitLog("accept " + l.Addr().String())
}
