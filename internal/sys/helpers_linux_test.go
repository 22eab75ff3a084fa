package sys

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain fails when descriptors are left open.
func TestMain(m *testing.M) {
	// The runtime opens descriptors of its own at the first use of its poller.
	r, _, err := os.Pipe()
	if err == nil {
		err = r.SetReadDeadline(time.Now())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	before := descriptors()
	code := m.Run()
	for fd, what := range descriptors() {
		if before[fd] != what && code == 0 {
			fmt.Fprintf(os.Stderr, "descriptor %s left open: %s\n", fd, what)
			code = 1
		}
	}
	os.Exit(code)
}

func descriptors() map[string]string {
	fds := map[string]string{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if what, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			fds[e.Name()] = what
		}
	}
	return fds
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// closing closes fd at the end of the test.
func closing(t *testing.T, fd int) int {
	t.Helper()
	t.Cleanup(func() {
		if err := Close(fd); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return fd
}

// await waits until fd is ready for one of events, and returns what it is ready for.
func await(t *testing.T, fd int, events uint32) uint32 {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(fd), Events: int16(events)}}
	for {
		switch n, err := unix.Poll(p, 10_000); {
		case err == unix.EINTR:
		case err != nil:
			t.Fatal(err)
		case n == 0:
			t.Fatalf("descriptor %d: not ready for %#x after 10 s", fd, events)
		default:
			return uint32(p[0].Revents)
		}
	}
}

// endpoints are the kinds of stream sockets, each with an address to listen at.
func endpoints(t *testing.T) map[string]net.Addr {
	t.Helper()
	return map[string]net.Addr{
		"tcp4":     &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)},
		"tcp6":     &net.TCPAddr{IP: net.IPv6loopback},
		"tcp any":  &net.TCPAddr{},
		"unix":     &net.UnixAddr{Net: "unix", Name: filepath.Join(t.TempDir(), "s")},
		"abstract": &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("@runnel-test-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))},
	}
}

// listen returns a listening socket and its address.
func listen(t *testing.T, at net.Addr) (int, net.Addr) {
	t.Helper()
	fd, err := Socket(at)
	if err != nil && errors.Is(err, syscall.EAFNOSUPPORT) {
		t.Skip("the machine does not have this family")
	}
	check(t, err)
	closing(t, fd)
	if err := Bind(fd, at); errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Skip("the machine does not have this address")
	} else {
		check(t, err)
	}
	check(t, Listen(fd, 16))
	addr, err := LocalAddr(fd, "unix")
	check(t, err)
	return fd, addr
}

// dial returns a socket that is connected to addr.
func dial(t *testing.T, addr net.Addr) int {
	t.Helper()
	fd, err := Socket(addr)
	check(t, err)
	closing(t, fd)
	if err := Connect(fd, addr); err != nil && err != ErrInProgress {
		t.Fatal(err)
	}
	await(t, fd, EpollOut)
	check(t, SocketError(fd))
	return fd
}

// pair returns the two ends of a connection.
func pair(t *testing.T, at net.Addr) (client, server int) {
	t.Helper()
	l, addr := listen(t, at)
	client = dial(t, addr)
	await(t, l, EpollIn)
	server, _, err := Accept(l)
	check(t, err)
	return client, closing(t, server)
}

func tcpPair(t *testing.T) (client, server int) {
	t.Helper()
	return pair(t, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
}

// pattern returns n bytes of which no two neighbouring stretches are the same.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return b
}

// fill writes until the socket takes no more, and returns how much that was.
func fill(t *testing.T, fd int) int {
	t.Helper()
	p := make([]byte, 64<<10)
	for sum := 0; ; {
		n, err := Write(fd, p)
		if err == ErrAgain {
			return sum
		}
		check(t, err)
		sum += n
	}
}

// readAll reads n bytes.
func readAll(t *testing.T, fd, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	for got := 0; got < n; {
		k, err := Read(fd, b[got:])
		if err == ErrAgain {
			await(t, fd, EpollIn)
			continue
		}
		check(t, err)
		if k == 0 {
			t.Fatalf("got the end after %d bytes, want %d", got, n)
		}
		got += k
	}
	return b
}

// wantErrno checks that err is the errno wrapped by os.NewSyscallError.
func wantErrno(t *testing.T, err error, call string, want syscall.Errno) {
	t.Helper()
	var se *os.SyscallError
	if !errors.As(err, &se) || se.Syscall != call || se.Err != want {
		t.Errorf("got error %v, want %s: %v", err, call, want)
	}
}

func same(t *testing.T, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		t.Errorf("got %d bytes, want %d; they differ from byte %d on", len(got), len(want), i)
	}
}

func tempFile(t *testing.T, content []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	check(t, err)
	t.Cleanup(func() { f.Close() })
	_, err = f.Write(content)
	check(t, err)
	return f
}
