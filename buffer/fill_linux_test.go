package buffer_test

import (
	"errors"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/sys"
)

func pipe(t testing.TB) (r, w int) {
	t.Helper()
	r, w, err := sys.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

func TestFillFrom(t *testing.T) {
	r, w := pipe(t)
	defer sys.Close(r)
	c := boundCache(t, buffer.PoolConfig{})
	b := c.Alloc(16)
	defer b.Release()
	if n, err := b.FillFrom(r, 16); n != 0 || err != sys.ErrAgain {
		t.Errorf("nothing there: got %d, %v, want sys.ErrAgain", n, err)
	}
	if _, err := sys.Write(w, []byte("0123456789abcdefghij")); err != nil {
		t.Fatal(err)
	}
	b.WriteString("> ")
	for _, tt := range []struct{ max, want int }{{4, 4}, {100, 10}} {
		if n, err := b.FillFrom(r, tt.max); n != tt.want || err != nil {
			t.Errorf("FillFrom(%d): got %d, %v, want %d", tt.max, n, err, tt.want)
		}
	}
	if got := string(b.Window()); got != "> 0123456789abcd" {
		t.Errorf("got %q", got)
	}
	if n, err := b.FillFrom(r, 1); n != 0 || !errors.Is(err, buffer.ErrTooLarge) {
		t.Errorf("no room: got %d, %v, want ErrTooLarge", n, err)
	}
	b.Clear()
	sys.Close(w)
	if n, err := b.FillFrom(r, 100); n != 6 || err != nil {
		t.Errorf("the rest: got %d, %v, want 6", n, err)
	}
	if n, err := b.FillFrom(r, 100); n != 0 || err != nil {
		t.Errorf("the end: got %d, %v, want 0 and nil", n, err)
	}
}
