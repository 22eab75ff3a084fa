//go:build linux

package transport

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

func TestListenNames(t *testing.T) {
	const pid = 42
	tests := []struct {
		name            string
		pid, fds, names string
		want            []string
		fails           bool
	}{
		{name: "nothing"},
		{name: "two", pid: "42", fds: "2", want: []string{"LISTEN_FD_3", "LISTEN_FD_4"}},
		{name: "without a process", fds: "1", want: []string{"LISTEN_FD_3"}},
		{name: "names", pid: "42", fds: "2", names: "http:admin", want: []string{"http", "admin"}},
		{name: "fewer names", fds: "2", names: "http", want: []string{"http", "LISTEN_FD_4"}},
		{name: "an empty name", fds: "2", names: ":admin", want: []string{"LISTEN_FD_3", "admin"}},
		{name: "more names", fds: "1", names: "a:b:c", want: []string{"a"}},
		{name: "none", pid: "42", fds: "0"},
		{name: "for another process", pid: "41", fds: "2"},
		{name: "for another process, and wrong", pid: "41", fds: "x"},
		{name: "bad process", pid: "me", fds: "2", fails: true},
		{name: "negative process", pid: "-42", fds: "2", fails: true},
		{name: "no number", fds: "two", fails: true},
		{name: "negative", fds: "-1", fails: true},
		{name: "too many", fds: "5000", fails: true},
		{name: "no such number", fds: "99999999999999999999", fails: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := listenNames(pid, func(name string) string {
				return map[string]string{"LISTEN_PID": tt.pid, "LISTEN_FDS": tt.fds, "LISTEN_FDNAMES": tt.names}[name]
			})
			if (err != nil) != tt.fails || !slices.Equal(got, tt.want) {
				t.Errorf("got %v, %v; want %v, error %v", got, err, tt.want, tt.fails)
			}
		})
	}
}

// TestSuccessor is the program that the tests below start in this one's place.
func TestSuccessor(t *testing.T) {
	if os.Getenv("RUNNEL_TEST_SUCCESSOR") == "" {
		t.Skip("for other tests")
	}
	files, err := Inherited()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if s, ok := os.LookupEnv(v); ok {
			t.Errorf("%s is still set, to %q", v, s)
		}
	}
	if again, err := Inherited(); len(again) != 0 || err != nil {
		t.Errorf("the second time: got %v, %v; want none", again, err)
	}
	srv := &Server{Init: says("successor")}
	for _, f := range files {
		raw, _ := f.SyscallConn()
		_ = raw.Control(func(fd uintptr) {
			if flags, _, e := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFD, 0); e != 0 || flags&syscall.FD_CLOEXEC == 0 {
				t.Errorf("%s would be passed on to children", f.Name())
			}
		})
		l, err := srv.Adopt(f)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("%s at %s\n", f.Name(), l.LocalAddr())
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test says so
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// says returns an Init of channels that say who they are: of a connection at once, of
// datagrams in answer to each.
func says(who string) func(pipeline.Channel) error {
	return func(ch pipeline.Channel) error {
		if isDatagram(ch.LocalAddr().Network()) {
			return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, d *Datagram) error {
				d.Content.Release()
				d.Content = pooled(who)
				c.Write(d)
				return nil
			}))
		}
		return ch.Pipeline().Add(pipeline.OnActive(func(c *pipeline.Context) error {
			c.Write(who)
			c.Close()
			return nil
		}))
	}
}

// succeed starts a successor with the listening sockets of srv. end ends it.
func succeed(t *testing.T, srv *Server, env ...string) (said []string, end func()) {
	t.Helper()
	files, err := srv.ListenerFiles()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestSuccessor$")
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), "RUNNEL_TEST_SUCCESSOR=1", "LISTEN_FDS="+strconv.Itoa(len(files)))
	cmd.Env = append(cmd.Env, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	var all strings.Builder
	for buf := make([]byte, 1); !strings.HasSuffix(all.String(), "ready\n"); {
		if _, err := out.Read(buf); err != nil {
			t.Fatalf("the successor said %q, then %v", all.String(), err)
		}
		all.Write(buf)
	}
	return strings.Split(strings.TrimSpace(all.String()), "\n"), sync.OnceFunc(func() {
		in.Close()
		rest, _ := io.ReadAll(out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the successor: %v, %s", err, rest)
		}
	})
}

// A process passes its listening sockets on to its successor; from the first moment that
// both accept until long after the first has ended, nobody is refused and nobody lost,
// and the file of a Unix socket stays.
func TestHandOver(t *testing.T) {
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			addr := anyAddr(t, network)
			srv := &Server{Init: says("first")}
			l, err := srv.Listen(context.Background(), network, addr)
			if err != nil {
				t.Fatal(err)
			}
			a := l.LocalAddr()
			ask := func() string {
				nc, err := net.DialTimeout(a.Network(), a.String(), patience)
				if err != nil {
					t.Errorf("refused: %v", err)
					return ""
				}
				defer nc.Close()
				nc.SetDeadline(time.Now().Add(patience))
				got, err := io.ReadAll(nc)
				if err != nil || string(got) != "first" && string(got) != "successor" {
					t.Errorf("lost: got %q, %v", got, err)
				}
				return string(got)
			}
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							ask()
						}
					}
				})
			}
			said, end := succeed(t, srv)
			defer end()
			if want := "LISTEN_FD_3 at " + a.String(); said[0] != want {
				t.Errorf("the successor said %q, want %q", said[0], want)
			}
			for range 50 {
				ask()
			}
			if err := srv.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
			for range 50 {
				if got := ask(); got != "successor" {
					t.Errorf("after the end of the first: got %q", got)
				}
			}
			close(stop)
			wg.Wait()
			if network == "unix" {
				if _, err := os.Stat(addr); err != nil {
					t.Errorf("the socket's file is gone: %v", err)
				}
			}
		})
	}
}

// Connections that stay open have requests under way when the first process is told to
// end: one that its handler is at work on, one whose answer is too long to have left, one
// that has been sent and not been read, since its peer does not take the answers before.
// Each gets its whole answer, then the end; meanwhile nobody is refused and nobody lost.
func TestHandOverWithRequestsUnderWay(t *testing.T) {
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			long := letters(8 << 20)
			working := make(chan pipeline.Channel, 1)
			draining := make(chan pipeline.Channel, 1000)
			srv := &Server{Config: Config{HighWater: 32 << 10}, Init: with(
				pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
					defer b.Release()
					switch b.ReadString(b.Len()) {
					case "work":
						c.Channel().Begin()
						working <- c.Channel()
					case "long":
						c.Write(long)
					default:
						c.Write("first")
					}
					return nil
				}),
				pipeline.OnEvent(func(c *pipeline.Context, _ Draining) error { draining <- c.Channel(); return nil }),
			)}
			l, err := srv.Listen(context.Background(), network, anyAddr(t, network))
			if err != nil {
				t.Fatal(err)
			}
			a := l.LocalAddr()
			dial := func() net.Conn {
				nc, err := net.DialTimeout(a.Network(), a.String(), patience)
				if err != nil {
					t.Errorf("refused: %v", err)
					return nil
				}
				nc.SetDeadline(time.Now().Add(patience))
				return nc
			}
			say := func(nc net.Conn, text string) {
				if _, err := nc.Write([]byte(text)); err != nil {
					t.Errorf("not sent: %v", err)
				}
			}
			hear := func(nc net.Conn, n int) string {
				b := make([]byte, n)
				got, err := io.ReadFull(nc, b)
				if err != nil {
					t.Errorf("lost: got %d bytes, %v; want %d", got, err, n)
				}
				return string(b[:got])
			}
			var stay [3]net.Conn
			for i := range stay {
				nc := dial()
				if nc == nil {
					return
				}
				defer nc.Close()
				for range 3 {
					say(nc, "hello")
					hear(nc, len("first"))
				}
				stay[i] = nc
			}
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					for !t.Failed() {
						select {
						case <-stop:
							return
						default:
						}
						if nc := dial(); nc != nil {
							// One of the successor's says the same thing unasked, and ends.
							_, _ = nc.Write([]byte("hello"))
							b := make([]byte, len("first"))
							if _, err := io.ReadFull(nc, b); err != nil || string(b) != "first" && string(b) != "succe" {
								t.Errorf("lost: got %q, %v", b, err)
							}
							nc.Close()
						}
					}
				})
			}
			defer wg.Wait()
			stopAll := sync.OnceFunc(func() { close(stop) })
			defer stopAll()

			_, end := succeed(t, srv)
			defer end()
			say(stay[0], "work")
			worker := await(t, working, "the request")
			say(stay[1], "long")
			hear(stay[1], 1)
			say(stay[2], "long")
			hear(stay[2], 1) // it is not writable by now, and does not read the next
			say(stay[2], "hello")
			down := make(chan error, 1)
			go func() { down <- srv.Shutdown(context.Background()) }()
			for await(t, draining, "the drain") != worker {
			}
			select {
			case err := <-down:
				t.Fatalf("Shutdown: got %v with requests under way", err)
			default:
			}
			worker.Write("worked")
			worker.End()
			for i, want := range []string{"worked", long[1:], long[1:] + "first"} {
				got, err := io.ReadAll(stay[i])
				if err != nil || string(got) != want {
					t.Errorf("connection %d: got %d bytes, %v; want %d, and the end", i, len(got), err, len(want))
				}
				stay[i].Close()
			}
			if err := await(t, down, "the end of the first"); err != nil {
				t.Errorf("Shutdown: got %v", err)
			}
			for range 20 {
				if nc := dial(); nc != nil {
					if got := hear(nc, len("successor")); got != "successor" {
						t.Errorf("after the end of the first: got %q", got)
					}
					nc.Close()
				}
			}
			stopAll()
			wg.Wait() // before the successor ends, and with it the socket
		})
	}
}

// So it does with sockets of datagrams: each one that comes has an answer, from the one or
// the other, and when the first has ended from the successor.
func TestHandOverOfDatagrams(t *testing.T) {
	eachDatagramNetwork(t, func(t *testing.T, network, addr string) {
		srv := &Server{Init: says("first")}
		l, err := srv.Listen(context.Background(), network, addr)
		if err != nil {
			t.Fatal(err)
		}
		client := func() (ask func() string) {
			var nc net.Conn
			var err error
			if to, unix := l.LocalAddr().(*net.UnixAddr); unix {
				nc, err = net.DialUnix("unixgram", unixgramAddr(t), to)
			} else {
				nc, err = net.Dial(network, l.LocalAddr().String())
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { nc.Close() })
			nc.SetDeadline(time.Now().Add(patience))
			return func() string {
				if _, err := nc.Write([]byte("?")); err != nil {
					t.Errorf("not sent: %v", err)
				}
				var b [16]byte
				n, err := nc.Read(b[:])
				if got := string(b[:n]); err != nil || got != "first" && got != "successor" {
					t.Errorf("lost: got %q, %v", got, err)
				}
				return string(b[:n])
			}
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 3 {
			ask := client()
			wg.Go(func() {
				for !t.Failed() {
					select {
					case <-stop:
						return
					default:
						ask()
					}
				}
			})
		}
		said, end := succeed(t, srv)
		defer end()
		if want := "LISTEN_FD_3 at " + l.LocalAddr().String(); said[0] != want {
			t.Errorf("the successor said %q, want %q", said[0], want)
		}
		ask := client()
		for range 50 {
			ask()
		}
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		for range 50 {
			if got := ask(); got != "successor" {
				t.Errorf("after the end of the first: got %q", got)
			}
		}
		close(stop)
		wg.Wait()
		if a, unix := l.LocalAddr().(*net.UnixAddr); unix && a.Name[0] == '/' {
			if _, err := os.Stat(a.Name); err != nil {
				t.Errorf("the socket's file is gone: %v", err)
			}
		}
	})
}

// All addresses are handed over, with PerLoop all sockets of each, under the names that
// the predecessor gives them.
func TestHandOverOfSeveral(t *testing.T) {
	g := newGroup(t, eventloop.GroupConfig{Loops: 2})
	srv := &Server{Group: g, PerLoop: true}
	a := serve(t, srv, "tcp", "127.0.0.1:0").LocalAddr().String()
	closed := serve(t, srv, "tcp", "127.0.0.1:0")
	u := serve(t, srv, "udp", "127.0.0.1:0").LocalAddr().String()
	b := serve(t, srv, "unix", anyAddr(t, "unix")).LocalAddr().String()
	closed.Close()
	await(t, closed.Closed().Done(), "the close")
	said, end := succeed(t, srv, "LISTEN_FDNAMES=web:web:dns:dns:admin")
	end()
	if want := []string{"web at " + a, "web at " + a, "dns at " + u, "dns at " + u, "admin at " + b, "ready"}; !slices.Equal(said, want) {
		t.Errorf("got %q, want %q", said, want)
	}
}

func TestListenerFilesOfNone(t *testing.T) {
	srv := new(Server)
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if files, err := srv.ListenerFiles(); len(files) != 0 || err != nil {
		t.Errorf("got %v, %v; want none", files, err)
	}
}
