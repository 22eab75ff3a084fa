package transport_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// upper answers lines in capitals.
func upper(c *pipeline.Context, line *buffer.Buf) error {
	defer line.Release()
	for _, b := range line.Next(line.Len()) {
		if 'a' <= b && b <= 'z' {
			b -= 'a' - 'A'
		}
		c.Write(string(rune(b)))
	}
	c.Write("\n")
	return nil
}

// A server on a port that the system picks, a client, and the end of both.
func ExampleServer_Listen() {
	ctx := context.Background()
	srv := &transport.Server{Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(codec.Line{Max: 80}, pipeline.On(upper))
	}}
	l, err := srv.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}

	answers := make(chan string)
	d := &transport.Dialer{Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(codec.Line{Max: 80}, pipeline.On(func(_ *pipeline.Context, line *buffer.Buf) error {
			defer line.Release()
			answers <- line.ReadString(line.Len())
			return nil
		}))
	}}
	ch, err := d.Dial(ctx, "tcp", l.LocalAddr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	ch.Write("hello\n") // from any goroutine
	fmt.Println(<-answers)
	ch.Close()

	fmt.Println(srv.Shutdown(ctx)) // returns when the last channel has ended
	// Output:
	// HELLO
	// <nil>
}

// A server of files: a line is a path, the answer is the file. Its bytes go from the
// kernel to the kernel.
func ExampleFileCache() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "files")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "greeting"), []byte("hello from a file\n"), 0o600); err != nil {
		fmt.Println(err)
		return
	}
	files, err := transport.NewFileCache(dir, transport.FileCacheConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer files.Close()
	srv := &transport.Server{Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(codec.Line{}, pipeline.On(func(c *pipeline.Context, line *buffer.Buf) error {
			path := line.ReadString(line.Len())
			line.Release()
			files.Open(c, path, func(f *transport.CachedFile, err error) {
				if errors.Is(err, transport.ErrPathEscapes) {
					c.Write("not allowed\n")
					return
				}
				if err != nil {
					c.Write("not there\n")
					return
				}
				c.Write(f.Region(0, f.Size()))
				f.Release()
			})
			return nil
		}))
	}}
	l, err := srv.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	nc, err := net.Dial("tcp", l.LocalAddr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	answers := bufio.NewReader(nc)
	for _, path := range []string{"greeting", "nothing", "../etc/passwd"} {
		fmt.Fprintln(nc, path)
		answer, _ := answers.ReadString('\n')
		fmt.Print(answer)
	}
	nc.Close()
	fmt.Println(srv.Shutdown(ctx))
	// Output:
	// hello from a file
	// not there
	// not allowed
	// <nil>
}

// A proxy: each accepted channel dials the target on its own loop, so the two can
// call each other without locks. What one end cannot send, the other stops reading.
func ExampleDialer_DialThen() {
	ctx := context.Background()
	target := &transport.Server{Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(codec.Line{Max: 80}, pipeline.On(upper))
	}}
	to, err := target.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}

	cfg := transport.Config{HalfClose: true, ReadWhileUnwritable: true, ManualRead: true}
	proxy := &transport.Server{Config: cfg, Init: func(front pipeline.Channel) error {
		return front.Pipeline().Add(pipeline.OnActive(func(c *pipeline.Context) error {
			d := &transport.Dialer{Config: cfg, Init: func(back pipeline.Channel) error {
				return back.Pipeline().Add(&forward{to: front})
			}}
			d.DialThen(c, "tcp", to.LocalAddr().String(), func(back pipeline.Channel, err error) {
				if err != nil {
					front.Close()
					return
				}
				_ = front.Pipeline().Add(&forward{to: back})
				pipeline.Couple(front, back) // which begins to read
			})
			return nil
		}))
	}}
	l, err := proxy.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}

	answers := make(chan string)
	client, err := (&transport.Dialer{Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(codec.Line{Max: 80}, pipeline.On(func(_ *pipeline.Context, line *buffer.Buf) error {
			defer line.Release()
			answers <- line.ReadString(line.Len())
			return nil
		}))
	}}).Dial(ctx, "tcp", l.LocalAddr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	client.Write("through the proxy\n")
	fmt.Println(<-answers)
	client.Close()
	fmt.Println(proxy.Shutdown(ctx), target.Shutdown(ctx))
	// Output:
	// THROUGH THE PROXY
	// <nil> <nil>
}

// forward is one end of a proxy: what it reads goes to the other end.
type forward struct{ to pipeline.Channel }

func (h *forward) HandleRead(_ *pipeline.Context, msg any) error {
	h.to.Write(msg)
	return nil
}

func (h *forward) HandleEvent(c *pipeline.Context, ev any) error {
	if _, ok := ev.(pipeline.InputShutdown); ok {
		h.to.CloseWrite()
		return nil
	}
	c.FireEvent(ev)
	return nil
}

func (h *forward) HandleInactive(*pipeline.Context) error {
	h.to.Close()
	return nil
}

// A successor takes the listening sockets over: it is started with them, as sd_listen_fds(3)
// says, and takes them by Inherited and Adopt. When it is ready, this process is sent
// SIGTERM and drains. Nobody is refused meanwhile.
func ExampleServer_ListenerFiles() {
	succeed := func(srv *transport.Server) error {
		files, err := srv.ListenerFiles()
		if err != nil {
			return err
		}
		cmd := exec.Command(os.Args[0], os.Args[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.ExtraFiles = files // descriptors 3, 4, ...
		cmd.Env = append(os.Environ(), "LISTEN_FDS="+strconv.Itoa(len(files)))
		return cmd.Start()
	}
	serve := func(ctx context.Context, srv *transport.Server) error {
		files, err := transport.Inherited()
		if err != nil {
			return err
		}
		if len(files) == 0 {
			return srv.ListenAndServe(ctx, "tcp", "127.0.0.1:7000")
		}
		for _, f := range files {
			if _, err := srv.Adopt(f); err != nil {
				return err
			}
		}
		<-ctx.Done()
		drain, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return srv.Shutdown(drain)
	}
	_, _ = succeed, serve
}
