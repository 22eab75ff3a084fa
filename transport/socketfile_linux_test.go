package transport

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/runnel-io/runnel/pipeline"
)

// stale leaves the file of a socket at path, as a server that was killed does.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func shutDown(t *testing.T, srv *Server) {
	t.Helper()
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// What stands in the way of a Unix socket is replaced only if it is a socket that
// nobody listens on.
func TestUnixSocketInTheWay(t *testing.T) {
	for _, tt := range []struct {
		name    string
		put     func(t *testing.T, path string)
		replace bool
	}{
		{"nothing", func(*testing.T, string) {}, true},
		{"a stale socket", stale, true},
		{"a file", func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"a directory", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"a FIFO", func(t *testing.T, path string) {
			if err := syscall.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"a link to a stale socket", func(t *testing.T, path string) {
			stale(t, path+"2")
			if err := os.Symlink(path+"2", path); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"a server", func(t *testing.T, path string) {
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, false},
		{"a server with a full queue", func(t *testing.T, path string) {
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { syscall.Close(fd) })
			if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
				t.Fatal(err)
			}
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
		}, false},
		{"a datagram socket", func(t *testing.T, path string) {
			c, err := net.ListenPacket("unixgram", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "socket")
			tt.put(t, path)
			before, _ := os.Lstat(path)
			srv := &Server{}
			_, err := srv.Listen(context.Background(), "unix", path)
			if tt.replace {
				if err != nil {
					t.Fatalf("got %v, want nil", err)
				}
				shutDown(t, srv)
				if _, err := os.Lstat(path); !os.IsNotExist(err) {
					t.Errorf("got %v for the socket after Shutdown, want it gone", err)
				}
				return
			}
			var op *OpError
			if !errors.Is(err, syscall.EADDRINUSE) || !errors.As(err, &op) || op.Op != "listen" {
				t.Errorf("got %v, want an OpError that is EADDRINUSE", err)
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
				t.Errorf("what was there is not any more: %v", err)
			}
		})
	}
}

// Sockets of datagrams keep the same rule.
func TestUnixDatagramInTheWay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	srv := &Server{}
	if _, err := srv.Listen(context.Background(), "unixgram", path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("somebody there: got %v, want EADDRINUSE", err)
	}
	c.Close() // which leaves the file
	if _, err := srv.Listen(context.Background(), "unixgram", path); err != nil {
		t.Errorf("nobody there any more: got %v, want nil", err)
	}
	shutDown(t, srv)
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("got %v after Shutdown, want it gone", err)
	}
}

// Of many servers that find the same stale socket one gets the address, and it keeps
// it: no other one takes its socket for the stale one.
func TestUnixSocketManyServers(t *testing.T) {
	for range 20 {
		path := filepath.Join(t.TempDir(), "socket")
		stale(t, path)
		const n = 8
		servers := make([]Server, n)
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i := range servers {
			wg.Go(func() { _, errs[i] = servers[i].Listen(context.Background(), "unix", path) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("got %v, want nil or EADDRINUSE", err)
			}
		}
		if won != 1 {
			t.Errorf("got %d servers that listen, want 1", won)
		}
		if ch, err := (&Dialer{}).Dial(context.Background(), "unix", path); err != nil {
			t.Errorf("nobody is there: %v", err)
		} else {
			ch.Close()
			await(t, ch.Closed().Done(), "the end of the channel")
		}
		for i := range servers {
			shutDown(t, &servers[i])
		}
	}
}

// The file is removed by the server that made it: not what has taken its place.
func TestUnixSocketTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	old, next := &Server{}, &Server{}
	if _, err := old.Listen(context.Background(), "unix", path); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := next.Listen(context.Background(), "unix", path); err != nil {
		t.Fatal(err)
	}
	shutDown(t, old)
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket of the next server: got %v, want it there", err)
	}
	shutDown(t, next)
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("got %v after Shutdown, want it gone", err)
	}
}

// Names of all lengths and kinds, as far as the kernel takes them.
func TestUnixNames(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("x", 107))[:107]
	if len(dir) > 100 {
		t.Skip("the directory for tests has a long name")
	}
	abstract := "@runnel-test-" + filepath.Base(dir) + "-" + filepath.Base(filepath.Dir(dir))
	for _, tt := range []struct {
		name, addr string
		want       error
	}{
		{"path of 107 bytes", long, nil},
		{"path of 108 bytes", long + "x", syscall.ENAMETOOLONG},
		{"path of 4096 bytes", long + strings.Repeat("x", 4096), syscall.ENAMETOOLONG},
		{"path with a zero byte", filepath.Join(dir, "a\x00b"), syscall.EINVAL},
		{"abstract", abstract, nil},
		{"abstract with zero bytes", abstract + "\x00\x00b", nil},
		{"abstract of 107 bytes", (abstract + strings.Repeat("y", 107))[:107], nil},
		{"abstract of 108 bytes", (abstract + strings.Repeat("y", 108))[:108], syscall.ENAMETOOLONG},
		{"picked by the kernel", "", nil},
		{"in no directory", filepath.Join(dir, "none", "socket"), syscall.ENOENT},
	} {
		t.Run(tt.name, func(t *testing.T) {
			accepted := make(chan pipeline.Channel, 1)
			srv := &Server{Init: func(ch pipeline.Channel) error {
				accepted <- ch
				return nil
			}}
			l, err := srv.Listen(context.Background(), "unix", tt.addr)
			if tt.want != nil {
				if !errors.Is(err, tt.want) {
					t.Errorf("Listen: got %v, want %v", err, tt.want)
				}
				if _, err := (&Dialer{}).Dial(context.Background(), "unix", tt.addr); !errors.Is(err, tt.want) {
					t.Errorf("Dial: got %v, want %v", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer shutDown(t, srv)
			local := l.LocalAddr().String()
			if tt.addr != "" && local != tt.addr || len(local) < 2 {
				t.Errorf("got the address %q, want %q", local, tt.addr)
			}
			ch, err := (&Dialer{}).Dial(context.Background(), "unix", local)
			if err != nil {
				t.Fatal(err)
			}
			other := await(t, accepted, "the accepted channel")
			if got := ch.RemoteAddr().String(); got != local {
				t.Errorf("remote address of the dialed end: got %q, want %q", got, local)
			}
			if got := other.LocalAddr().String(); got != local {
				t.Errorf("local address of the accepted end: got %q, want %q", got, local)
			}
			if got := ch.LocalAddr(); got == nil || got.String() != "" {
				t.Errorf("local address of an end without a name: got %v, want an empty one", got)
			}
			if got := other.RemoteAddr(); got == nil || got.String() != "" {
				t.Errorf("remote address of an end without a name: got %v, want an empty one", got)
			}
			ch.Close()
			await(t, ch.Closed().Done(), "the end of the channel")
		})
	}
}

// A dialed channel gets the name it asks for, or one of the kernel's.
func TestUnixLocalName(t *testing.T) {
	dir := t.TempDir()
	srv := &Server{}
	accepted := make(chan string, 1)
	srv.Init = func(ch pipeline.Channel) error {
		accepted <- ch.RemoteAddr().String()
		return nil
	}
	l, err := srv.Listen(context.Background(), "unix", filepath.Join(dir, "server"))
	if err != nil {
		t.Fatal(err)
	}
	defer shutDown(t, srv)
	for _, name := range []string{filepath.Join(dir, "client"), ""} {
		d := &Dialer{LocalAddr: &net.UnixAddr{Name: name, Net: "unix"}}
		ch, err := d.Dial(context.Background(), "unix", l.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		got := await(t, accepted, "the accepted channel")
		if got != ch.LocalAddr().String() || name != "" && got != name || name == "" && (len(got) < 2 || got[0] != '@') {
			t.Errorf("asked for %q: got %q and %v, want it, or one that begins with @", name, got, ch.LocalAddr())
		}
		ch.Close()
		await(t, ch.Closed().Done(), "the end of the channel")
	}
	if _, err := (&Dialer{}).Dial(context.Background(), "unix", ""); err == nil {
		t.Error("dialing no name: got nil, want an error")
	}
}

// Who cannot lock the directory still listens, and removes nothing.
func TestUnixSocketUnlocked(t *testing.T) {
	dir := t.TempDir()
	lock, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	stale(t, filepath.Join(dir, "stale"))
	srv := &Server{}
	defer shutDown(t, srv)
	if _, err := srv.Listen(context.Background(), "unix", filepath.Join(dir, "free")); err != nil {
		t.Errorf("a free name: got %v, want nil", err)
	}
	if _, err := srv.Listen(context.Background(), "unix", filepath.Join(dir, "stale")); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a stale socket: got %v, want EADDRINUSE", err)
	}
}
