package handler_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
	"github.com/runnel-io/runnel/pipeline/handler"
	"github.com/runnel-io/runnel/transport"
)

// upper is a handler that needs the bytes of what is written.
type upper struct{ t *testing.T }

func (u upper) HandleWrite(c *pipeline.Context, msg any, p *eventloop.Promise) error {
	var b *buffer.Buf
	switch m := msg.(type) {
	case *buffer.Buf:
		b = buffer.FromString(strings.ToUpper(m.ReadString(m.Len())))
		m.Release()
	case string:
		b = buffer.FromString(strings.ToUpper(m))
	case []byte:
		b = buffer.FromString(strings.ToUpper(string(m)))
	default:
		u.t.Errorf("got a %T to encode", msg)
		buffer.Release(msg)
	}
	c.ForwardWrite(b, p)
	return nil
}

// fileOf returns a file with the content, opened for reading.
func fileOf(t testing.TB, content string) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func region(t testing.TB, content string) *buffer.FileRegion {
	return buffer.NewFileRegion(fileOf(t, content), 0, int64(len(content)))
}

// letters returns n of them, in no order that repeats soon.
func letters(n int) string {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = 'a' + byte(x>>24)%26
	}
	return string(b)
}

// sent takes everything that has left.
func sent(ch *embedded.Channel) (all string, messages int) {
	for msg := ch.ReadOutbound(); msg != nil; msg = ch.ReadOutbound() {
		messages++
		switch m := msg.(type) {
		case *buffer.Buf:
			all += m.ReadString(m.Len())
			m.Release()
		case string:
			all += m
		case *buffer.FileRegion:
			p := make([]byte, m.Remaining())
			_, _ = m.File().ReadAt(p, m.Offset()+m.Sent())
			all += string(p)
			m.Release()
		}
	}
	return all, messages
}

// until drives the channel until cond: what is read by workers comes when it comes.
func until(t *testing.T, ch *embedded.Channel, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); ch.Run() {
		if time.Now().After(deadline) {
			t.Fatalf("no sign of %s", what)
		}
	}
}

// What needs the bytes gets them, in the order of the writes, in chunks.
func TestChunkedWrite(t *testing.T) {
	const size = 1000
	for _, n := range []int{0, 1, size - 1, size, size + 1, 2 * size, 3*size + 7} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			ch := embedded.NewTest(t, embedded.Config{}, upper{t}, handler.ChunkedWrite{Size: size})
			content := letters(n)
			var told []string
			tell := func(name string) func(error) {
				return func(err error) { told = append(told, fmt.Sprint(name, " ", err)) }
			}
			ch.Do(func() {
				ch.WriteThen("head,", tell("head"))
				ch.WriteThen(region(t, content), tell("file"))
				ch.WriteThen([]byte(",between,"), tell("between"))
				ch.WriteThen(region(t, "second"), tell("second"))
				ch.WriteThen(buffer.FromString(",tail"), tell("tail"))
			})
			until(t, ch, "the last completion", func() bool { return len(told) == 5 })
			got, _ := sent(ch)
			if want := strings.ToUpper("head," + content + ",between,second,tail"); got != want {
				t.Errorf("got %.60q, want %.60q", got, want)
			}
			if want := []string{"head <nil>", "file <nil>", "between <nil>", "second <nil>", "tail <nil>"}; !slices.Equal(told, want) {
				t.Errorf("completions: got %q, want %q", told, want)
			}
			if !ch.Writable() {
				t.Error("not writable when everything has left")
			}
		})
	}
}

// Part of a file is a region like any other, and progress is told as it leaves.
func TestChunkedWrite_Progress(t *testing.T) {
	ch := embedded.NewTest(t, embedded.Config{}, handler.ChunkedWrite{Size: 4}, new(keep))
	c := pipeline.Find[*keep](ch.Pipeline())
	var told []string
	ch.Do(func() {
		c.WriteProgress(buffer.NewFileRegion(fileOf(t, "0123456789abcdef"), 3, 10),
			func(sent, total int64) { told = append(told, fmt.Sprintf("%d/%d", sent, total)) },
			func(err error) { told = append(told, fmt.Sprint(err)) })
	})
	until(t, ch, "the completion", func() bool { return len(told) > 0 && told[len(told)-1] == "<nil>" })
	if want := []string{"4/10", "8/10", "10/10", "<nil>"}; !slices.Equal(told, want) {
		t.Errorf("got %q, want %q", told, want)
	}
	if got, n := sent(ch); got != "3456789abc" || n != 3 {
		t.Errorf("got %q in %d messages, want %q in 3", got, n, "3456789abc")
	}
}

type keep struct{}

func (*keep) HandleAdded(*pipeline.Context) error { return nil }

// While nothing leaves two chunks are in memory, the channel is not writable, and what is
// written waits.
func TestChunkedWrite_Holds(t *testing.T) {
	const size = 10_000
	content := letters(30 * size)
	ch := embedded.NewTest(t, embedded.Config{HighWater: 1 << 30}, handler.ChunkedWrite{Size: size})
	ch.Hold(true)
	live := buffer.Live()
	f := region(t, content)
	ch.Do(func() {
		ch.Write(f)
		ch.Write("tail")
	})
	if ch.Writable() {
		t.Error("writable while a long file waits")
	}
	until(t, ch, "two chunks", func() bool { return f.Sent() == 2*size })
	ch.Run()
	if n := buffer.Live() - live; f.Sent() != 2*size || n != 3 {
		t.Errorf("got %d bytes and %d buffers in memory, the region included; want %d and 3", f.Sent(), n, 2*size)
	}
	ch.Hold(false)
	var got string
	until(t, ch, "the tail", func() bool {
		s, _ := sent(ch)
		got += s
		return strings.HasSuffix(got, "tail")
	})
	if got != content+"tail" {
		t.Error("what has left is not what was written")
	}
	if !ch.Writable() {
		t.Error("not writable at the end")
	}
}

// With ManualFlush one Flush is for all that was written before it, and for nothing else.
func TestChunkedWrite_ManualFlush(t *testing.T) {
	content := letters(5000)
	ch := embedded.NewTest(t, embedded.Config{ManualFlush: true}, handler.ChunkedWrite{Size: 1000})
	ch.Do(func() {
		ch.Write("head,")
		ch.Write(region(t, content))
		ch.Write(",flushed")
		ch.Flush()
		ch.Write("not flushed")
	})
	var got string
	until(t, ch, "what was flushed", func() bool {
		s, _ := sent(ch)
		got += s
		return strings.HasSuffix(got, ",flushed")
	})
	ch.Run()
	if s, _ := sent(ch); s != "" || got != "head,"+content+",flushed" {
		t.Errorf("got %d bytes and then %q, want %d and nothing", len(got), s, 13+len(content))
	}
	ch.Do(func() { ch.Flush() })
	if s, _ := sent(ch); s != "not flushed" {
		t.Errorf("after a second flush: got %q", s)
	}
}

// A file that ends too early is an error, of the write or of the channel, and the channel
// closes when what there was has left.
func TestChunkedWrite_FileShrinks(t *testing.T) {
	for _, asked := range []bool{false, true} {
		t.Run(fmt.Sprintf("completion %v", asked), func(t *testing.T) {
			ch := embedded.NewTest(t, embedded.Config{}, handler.ChunkedWrite{Size: 4})
			short := buffer.NewFileRegion(fileOf(t, "0123456"), 0, 20)
			var told, behind error
			ch.Do(func() {
				if asked {
					ch.WriteThen(short, func(err error) { told = err })
				} else {
					ch.Write(short)
				}
				ch.WriteThen("behind", func(err error) { behind = err })
			})
			until(t, ch, "the close", func() bool { return !ch.Open() })
			if !asked {
				told = ch.CheckError()
			}
			var path *fs.PathError
			if !errors.Is(told, io.ErrUnexpectedEOF) || !errors.As(told, &path) {
				t.Errorf("got %v, want a *fs.PathError of an unexpected end", told)
			}
			if !errors.Is(behind, io.ErrUnexpectedEOF) {
				t.Errorf("behind it: got %v, want the same", behind)
			}
			if got, _ := sent(ch); got != "0123" {
				t.Errorf("got %q, want the chunk that was there", got)
			}
		})
	}
}

// closeHolder holds every close back.
type closeHolder struct{ closes []func() }

func (h *closeHolder) HandleClose(c *pipeline.Context, p *eventloop.Promise) error {
	h.closes = append(h.closes, func() { c.ForwardClose(p) })
	return nil
}

// Nothing leaves behind a file that was broken off, also while the close is held back.
func TestChunkedWrite_NothingBehindAGap(t *testing.T) {
	holder := new(closeHolder)
	ch := embedded.NewTest(t, embedded.Config{}, holder, handler.ChunkedWrite{Size: 4})
	var told error
	ch.Do(func() {
		ch.WriteThen(buffer.NewFileRegion(fileOf(t, "0123456"), 0, 20), func(err error) { told = err })
	})
	until(t, ch, "the close", func() bool { return len(holder.closes) == 1 })
	var later error
	ch.Do(func() {
		ch.WriteThen(buffer.FromString("later"), func(err error) { later = err })
		ch.Write(region(t, "a file"))
	})
	if !errors.Is(told, io.ErrUnexpectedEOF) || !errors.Is(later, io.ErrUnexpectedEOF) {
		t.Errorf("got %v and, for what is written later, %v; want the unexpected end twice", told, later)
	}
	ch.Do(func() { holder.closes[0]() })
	if got, _ := sent(ch); got != "0123" {
		t.Errorf("got %q, want what came before the gap", got)
	}
}

func TestChunkedWrite_Bad(t *testing.T) {
	for _, w := range []handler.ChunkedWrite{{Size: -1}, {Size: 1<<30 + 1}, {Reason: -1}, {Reason: 32}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v: got no panic", w)
				}
			}()
			w.NewHandler()
		}()
	}
}

// A Close waits for the file, also for the one of its completion, but not for ever.
func TestChunkedWrite_Close(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		t.Run(fmt.Sprintf("stuck %v", stuck), func(t *testing.T) {
			content := letters(50_000)
			ch := embedded.NewTest(t, embedded.Config{}, handler.ChunkedWrite{Size: 1000, Timeout: time.Minute})
			var file, tail error
			closed := false
			ch.Hold(stuck)
			r := region(t, content)
			ch.Do(func() {
				ch.WriteThen(r, func(err error) { file = err })
				ch.WriteThen("tail", func(err error) { tail = err })
				ch.CloseThen(func(error) { closed = true })
			})
			if stuck {
				until(t, ch, "two chunks", func() bool { return r.Sent() == 2000 })
				if closed {
					t.Error("closed before its time")
				}
				ch.Advance(time.Minute)
			}
			until(t, ch, "the close", func() bool { return closed })
			if stuck != errors.Is(file, pipeline.ErrClosed) || stuck != errors.Is(tail, pipeline.ErrClosed) {
				t.Errorf("file: %v, tail: %v; want ErrClosed only when stuck", file, tail)
			}
			if got, _ := sent(ch); !stuck && got != content+"tail" {
				t.Errorf("got %d bytes, want all %d", len(got), len(content)+4)
			}
		})
	}
}

// A handler that is removed hands on what it has: of a region what has not been sent.
func TestChunkedWrite_Removed(t *testing.T) {
	content := letters(10_000)
	ch := embedded.NewTest(t, embedded.Config{HighWater: 1 << 30}, handler.ChunkedWrite{Size: 1000})
	ch.Hold(true)
	var told []error
	r := region(t, content)
	ch.Do(func() {
		ch.WriteThen(r, func(err error) { told = append(told, err) })
		ch.WriteThen("tail", func(err error) { told = append(told, err) })
	})
	until(t, ch, "two chunks", func() bool { return r.Sent() == 2000 })
	ch.Do(func() {
		if err := pipeline.Find[handler.ChunkedWrite](ch.Pipeline()).Remove(); err != nil {
			t.Error(err)
		}
	})
	ch.Hold(false)
	until(t, ch, "both completions", func() bool { return len(told) == 2 })
	if got, n := sent(ch); got != content+"tail" || n != 4 || told[0] != nil || told[1] != nil {
		t.Errorf("got %d bytes in %d messages, %v; want all in two chunks, a region and the tail", len(got), n, told)
	}
	if !ch.Writable() {
		t.Error("not writable when the handler is gone")
	}
}

// A channel that ends takes nothing with it.
func TestChunkedWrite_Reset(t *testing.T) {
	ch := embedded.NewTest(t, embedded.Config{}, handler.ChunkedWrite{Size: 1000})
	ch.Hold(true)
	var told []error
	ch.Do(func() {
		ch.WriteThen(region(t, letters(10_000)), func(err error) { told = append(told, err) })
		ch.WriteThen(buffer.FromString("tail"), func(err error) { told = append(told, err) })
		ch.Reset()
	})
	until(t, ch, "both completions", func() bool { return len(told) == 2 })
	for _, err := range told {
		if !errors.Is(err, pipeline.ErrClosed) {
			t.Errorf("got %v, want ErrClosed", err)
		}
	}
}

// Over TCP, with a drain that waits for the file, and on an executor as well.
func TestChunkedWrite_Server(t *testing.T) {
	content := letters(3 << 20)
	for _, offloaded := range []bool{false, true} {
		t.Run(fmt.Sprintf("offloaded %v", offloaded), func(t *testing.T) {
			var chunked any = handler.ChunkedWrite{}
			if offloaded {
				chunked = pipeline.Offloaded{Handler: chunked}
			}
			srv := &transport.Server{Init: func(ch pipeline.Channel) error {
				return ch.Pipeline().Add(upper{t}, chunked, pipeline.OnActive(func(c *pipeline.Context) error {
					c.Write("head,")
					c.Write(region(t, content))
					c.Write(",tail")
					c.CloseWrite()
					return nil
				}))
			}}
			l, err := srv.Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			conn, err := net.Dial("tcp", l.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			first := make([]byte, 5)
			if _, err := io.ReadFull(conn, first); err != nil {
				t.Fatal(err)
			}
			drained := make(chan error, 1)
			go func() { drained <- srv.Shutdown(t.Context()) }()
			rest, err := io.ReadAll(conn)
			if got, want := string(first)+string(rest), strings.ToUpper("head,"+content+",tail"); got != want || err != nil {
				t.Errorf("got %d bytes, %v; want %d", len(got), err, len(want))
			}
			conn.Close()
			if err := <-drained; err != nil {
				t.Error(err)
			}
		})
	}
}
