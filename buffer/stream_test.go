package buffer_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/runnel-io/runnel/buffer"
)

var (
	_ io.ReadWriter   = (*buffer.Buf)(nil)
	_ io.StringWriter = (*buffer.Buf)(nil)
	_ io.ByteScanner  = (*buffer.Buf)(nil)
	_ io.WriterTo     = (*buffer.Buf)(nil)
	_ io.ReaderFrom   = (*buffer.Buf)(nil)
)

// text returns n bytes that do not repeat soon.
func text(n int) string {
	rnd := rand.New(rand.NewPCG(uint64(n), 1))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	return string(p)
}

func TestReader(t *testing.T) {
	for name, layout := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			for _, n := range []int{0, 1, 1000, 5000} {
				b := layout(text(n))
				if err := iotest.TestReader(b, []byte(text(n))); err != nil {
					t.Errorf("%d bytes: %v", n, err)
				}
				b.Release()
			}
			b := layout("#abc")
			defer b.Release()
			b.Skip(1)
			if n, err := b.Read(nil); n != 0 || err != nil {
				t.Errorf("Read of nothing: got %d, %v", n, err)
			}
			p := make([]byte, 8)
			if n, err := b.Read(p[:2]); n != 2 || err != nil || string(p[:2]) != "ab" {
				t.Errorf("Read of 2: got %d, %v, %q", n, err, p[:2])
			}
			if n, err := b.Read(p); n != 1 || err != nil || p[0] != 'c' {
				t.Errorf("Read of the rest: got %d, %v, %q", n, err, p[:1])
			}
			if n, err := b.Read(p); n != 0 || err != io.EOF {
				t.Errorf("Read at the end: got %d, %v, want io.EOF", n, err)
			}
			if n, err := b.Read(nil); n != 0 || err != nil {
				t.Errorf("Read of nothing at the end: got %d, %v", n, err)
			}
			b.WriteString("d")
			if n, err := b.Read(p); n != 1 || err != nil || p[0] != 'd' {
				t.Errorf("Read of what came later: got %d, %v, %q", n, err, p[:1])
			}
		})
	}
}

func TestByteScanner(t *testing.T) {
	for name, layout := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			b := layout("abc")
			defer b.Release()
			if err := b.UnreadByte(); !errors.Is(err, buffer.ErrShort) {
				t.Errorf("UnreadByte at the front: got %v, want ErrShort", err)
			}
			for _, want := range []byte("abc") {
				for range 2 {
					if c, err := b.ReadByte(); c != want || err != nil {
						t.Errorf("ReadByte: got %q, %v, want %q", c, err, want)
					}
					if err := b.UnreadByte(); err != nil {
						t.Errorf("UnreadByte: %v", err)
					}
				}
				b.Skip(1)
			}
			if c, err := b.ReadByte(); c != 0 || err != io.EOF {
				t.Errorf("ReadByte at the end: got %q, %v, want io.EOF", c, err)
			}
		})
	}
}

// Others' readers and writers work on a Buf.
func TestStreams(t *testing.T) {
	b := buffer.FromString("")
	defer b.Release()
	w := bufio.NewWriter(b)
	fmt.Fprintf(w, "%s\n%d\n", "first line", 42)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(b)
	line, err := r.ReadString('\n')
	if line != "first line\n" || err != nil {
		t.Errorf("got %q, %v", line, err)
	}
	var n int
	if _, err := fmt.Fscan(r, &n); n != 42 || err != nil {
		t.Errorf("got %d, %v, want 42", n, err)
	}
	o := buffer.FromString("")
	defer o.Release()
	b.WriteString(text(100_000))
	if n, err := io.Copy(o, b); n != 100_000 || err != nil || b.Len() != 0 || o.ReadString(o.Len()) != text(100_000) {
		t.Errorf("copied %d, %v", n, err)
	}
}

// limitedWriter takes n bytes, then returns err, or a short count without one.
type limitedWriter struct {
	got []byte
	n   int
	err error
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.n)
	w.n -= n
	w.got = append(w.got, p[:n]...)
	if n < len(p) {
		return n, w.err
	}
	return n, nil
}

// liar says n whatever it is asked.
type liar int

func (l liar) Write([]byte) (int, error) { return int(l), nil }
func (l liar) Read([]byte) (int, error)  { return int(l), nil }

func TestWriteTo(t *testing.T) {
	broken := errors.New("broken")
	for name, layout := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			tests := []struct {
				name string
				w    limitedWriter
				n    int
				err  error
			}{
				{"all", limitedWriter{n: 1 << 20}, 999, nil},
				{"just all", limitedWriter{n: 999, err: broken}, 999, nil},
				{"an error after some", limitedWriter{n: 600, err: broken}, 600, broken},
				{"an error at once", limitedWriter{err: broken}, 0, broken},
				{"a short write", limitedWriter{n: 600}, 600, io.ErrShortWrite},
				{"nothing, and no error", limitedWriter{}, 0, io.ErrShortWrite},
			}
			for _, tt := range tests {
				b := layout("#" + text(999))
				b.Skip(1)
				n, err := b.WriteTo(&tt.w)
				if n != int64(tt.n) || err != tt.err || string(tt.w.got) != text(999)[:tt.n] || b.ReaderIndex() != 1+tt.n {
					t.Errorf("%s: got %d, %v, reader at %d, want %d, %v", tt.name, n, err, b.ReaderIndex(), tt.n, tt.err)
				}
				b.Release()
			}
			b := layout("abc")
			defer b.Release()
			for _, says := range []liar{-1, 4, 1 << 30} {
				n, err := b.WriteTo(says)
				var e *buffer.Error
				if n != 0 || !errors.As(err, &e) || b.ReaderIndex() != 0 {
					t.Errorf("a writer that says %d: got %d, %v, reader at %d", says, n, err, b.ReaderIndex())
				}
			}
			b.Skip(3)
			if n, err := b.WriteTo(&limitedWriter{err: broken}); n != 0 || err != nil {
				t.Errorf("nothing: got %d, %v", n, err)
			}
		})
	}
}

func TestReadFrom(t *testing.T) {
	broken := errors.New("broken")
	for name, layout := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			for _, n := range []int{0, 1, 511, 512, 513, 100_000} {
				in := text(n)
				type test struct {
					name string
					r    io.Reader
					err  error
				}
				tests := []test{
					{"all at once", strings.NewReader(in), nil},
					{"half of what is asked for", iotest.HalfReader(strings.NewReader(in)), nil},
					{"with its end", iotest.DataErrReader(strings.NewReader(in)), nil},
					{"with nothing in between", io.MultiReader(&empty{49}, strings.NewReader(in), &empty{50}), nil},
					{"broken in the end", io.MultiReader(strings.NewReader(in), iotest.ErrReader(broken)), broken},
					{"broken with its last bytes", iotest.DataErrReader(io.MultiReader(strings.NewReader(in), iotest.ErrReader(broken))), broken},
					{"nothing more for ever", io.MultiReader(strings.NewReader(in), liar(0)), io.ErrNoProgress},
				}
				if n < 1000 {
					tests = append(tests, test{"byte by byte", iotest.OneByteReader(strings.NewReader(in)), nil})
				}
				for _, tt := range tests {
					b := layout("ab")
					b.Skip(1)
					got, err := b.ReadFrom(tt.r)
					if got != int64(n) || err != tt.err || b.StringAt(0, b.WriterIndex()) != "ab"+in || b.ReaderIndex() != 1 {
						t.Errorf("%s, %d bytes: got %d, %v, %d bytes from %d, want %v", tt.name, n, got, err, b.Len(), b.ReaderIndex(), tt.err)
					}
					b.Release()
				}
			}
			for _, says := range []liar{-1, 1 << 30} {
				b := layout("ab")
				n, err := b.ReadFrom(says)
				var e *buffer.Error
				if n != 0 || !errors.As(err, &e) || b.ReadString(b.Len()) != "ab" {
					t.Errorf("a reader that says %d: got %d, %v", says, n, err)
				}
				b.Release()
			}
		})
	}
}

// empty returns nothing n times, then ends.
type empty struct{ n int }

func (r *empty) Read([]byte) (int, error) {
	if r.n == 0 {
		return 0, io.EOF
	}
	r.n--
	return 0, nil
}

// idle says that it has filled p and has not touched it, once.
type idle struct{ done bool }

func (r *idle) Read(p []byte) (int, error) {
	if r.done {
		return 0, io.EOF
	}
	r.done = true
	return len(p), nil
}

// A reader that lies gets no look at what others left in the memory.
func TestReadFromExposesNothing(t *testing.T) {
	c := boundCache(t, buffer.PoolConfig{})
	for _, fill := range []int{0, 10, 64} {
		for range 2 {
			for _, n := range []int{64, 1 << 10} {
				b := c.Alloc(n)
				b.Write(bytes.Repeat([]byte{0xee}, n))
				b.Release()
			}
		}
		b := c.Alloc(64)
		b.Write(bytes.Repeat([]byte("x"), fill))
		n, err := b.ReadFrom(&idle{})
		if err != nil || n == 0 {
			t.Errorf("got %d, %v", n, err)
		}
		if got := b.StringAt(fill, b.WriterIndex()-fill); strings.Trim(got, "\x00") != "" {
			t.Errorf("after %d bytes: got %x, want zeros", fill, got)
		}
		b.Release()
	}
}

// endless never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'e'
	}
	return len(p), nil
}

// A stream that is too long is an error, not a panic: how long it is, the other end says.
func TestReadFromHasBounds(t *testing.T) {
	c := boundCache(t, buffer.PoolConfig{MaxCap: 10_000})
	b := c.Alloc(64)
	b.WriteString("ab")
	most := b.MaxCap()
	n, err := b.ReadFrom(endless{})
	if n != int64(most-2) || !errors.Is(err, buffer.ErrTooLarge) || b.WriterIndex() != most {
		t.Errorf("got %d, %v up to %d, want %d and ErrTooLarge", n, err, b.WriterIndex(), most-2)
	}
	b.Release()

	c = boundCache(t, buffer.PoolConfig{Limit: 1 << 20})
	b = c.Alloc(64)
	n, err = b.ReadFrom(endless{})
	if n == 0 || n != int64(b.Len()) || !errors.Is(err, buffer.ErrOutOfMemory) {
		t.Errorf("got %d, %v with %d bytes, want ErrOutOfMemory", n, err, b.Len())
	}
	if got := b.ReadString(b.Len()); strings.Trim(got, "e") != "" {
		t.Error("what was read is not what came")
	}
	b.Release()

	// A panic of the reader is its own.
	b = buffer.FromString("ab")
	defer b.Release()
	wantPanic(t, "a reader that panics", os.ErrInvalid, func() { _, _ = b.ReadFrom(panics{}) })
}

type panics struct{}

func (panics) Read([]byte) (int, error) { panic(os.ErrInvalid) }

func ExampleBuf_ReadFrom() {
	b := buffer.Default().Alloc(64)
	defer b.Release()
	if _, err := io.Copy(b, strings.NewReader("to be sent")); err != nil {
		fmt.Println(err)
	}
	fmt.Println(b.Len())
	if _, err := io.Copy(os.Stdout, b); err != nil {
		fmt.Println(err)
	}
	// Output:
	// 10
	// to be sent
}
