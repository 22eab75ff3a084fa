package buffer_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/sys"
)

// What a batch has received becomes readable in the Buf that lent its room, as far as
// the kernel has filled it, and in no other.
func TestLend(t *testing.T) {
	at := &net.UnixAddr{Net: "unixgram", Name: fmt.Sprintf("@runnel-test-lend-%d", os.Getpid())}
	fd, err := sys.Socket(at)
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close(fd)
	if err := sys.Bind(fd, at); err != nil {
		t.Fatal(err)
	}
	if err := sys.Connect(fd, at); err != nil { // to itself
		t.Fatal(err)
	}
	out := sys.NewMessages(3)
	for _, s := range []string{"hello", "", "0123456789abcdef"} {
		out.Add([]sys.Iovec{sys.MakeIovec([]byte(s))})
	}
	if n, err := sys.Sendmmsg(fd, out, false); n != 3 || err != nil {
		t.Fatalf("got %d, %v, want 3", n, err)
	}

	c := boundCache(t, buffer.PoolConfig{})
	in := sys.NewMessages(3)
	var bufs [3]*buffer.Buf
	for i := range bufs {
		bufs[i] = c.Alloc(16)
		defer bufs[i].Release()
		bufs[i].WriteString("> ")
		if err := bufs[i].Lend(in, i, 100); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := sys.Recvmmsg(fd, in, 3); n != 3 || err != nil {
		t.Fatalf("got %d, %v, want 3", n, err)
	}
	for i, want := range []string{"> hello", "> ", "> 0123456789abcd"} {
		if n := bufs[i].Filled(in, i); n != len(want)-2 || string(bufs[i].Window()) != want {
			t.Errorf("message %d: got %d, %q, want %q", i, n, bufs[i].Window(), want)
		}
	}
	if err := bufs[2].Lend(in, 0, 1); !errors.Is(err, buffer.ErrTooLarge) {
		t.Errorf("no room: got %v, want ErrTooLarge", err)
	}
	defer func() {
		var e *buffer.Error
		if v := recover(); !errors.As(v.(error), &e) || !errors.Is(e, buffer.ErrShort) {
			t.Errorf("filled by another's message: got panic %v, want ErrShort", v)
		}
	}()
	if err := bufs[1].Lend(in, 1, 5); err != nil {
		t.Fatal(err)
	}
	bufs[0].Filled(in, 1)
}
