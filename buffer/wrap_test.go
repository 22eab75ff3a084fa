package buffer_test

import (
	"testing"

	"github.com/runnel-io/runnel/buffer"
)

func TestWrap(t *testing.T) {
	tests := []struct {
		name   string
		pieces []string
		parts  int
	}{
		{"none", nil, 1},
		{"an empty one", []string{""}, 1},
		{"one", []string{"abc"}, 1},
		{"many", []string{"ab", "", "cde", "f"}, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var pieces [][]byte
			want := ""
			for _, s := range tt.pieces {
				pieces = append(pieces, []byte(s))
				want += s
			}
			released := 0
			b := buffer.Wrap(func() { released++ }, pieces...)
			if got := content(t, b); got != want || b.Parts() != tt.parts {
				t.Errorf("got %q in %d parts, want %q in %d", got, b.Parts(), want, tt.parts)
			}
			if len(want) > 0 {
				b.SetUint8At(0, 'X')
				if pieces[0][0] != 'X' {
					t.Error("a change does not show in the caller's memory")
				}
			}
			s := b.Duplicate()
			b.WriteString("more")
			b.Release()
			if s.Release(); released != 1 {
				t.Errorf("released %d times, want once", released)
			}
			for _, p := range pieces {
				for _, c := range p {
					if c == 0xdb {
						t.Error("the caller's memory has been overwritten")
					}
				}
			}
		})
	}
}

// The memory is not released before its last slice, on whatever goroutine.
func TestWrapOutlived(t *testing.T) {
	released := make(chan struct{})
	b := buffer.Wrap(func() { close(released) }, []byte("abc"), []byte("def"))
	s := b.Slice(4, 1)
	b.Release()
	select {
	case <-released:
		t.Error("released before the last slice")
	default:
	}
	go s.Release()
	<-released
	buffer.Wrap(nil, []byte("abc")).Release()
}

// Memory that a growth leaves behind is released then, if nobody else shows it.
func TestWrapGrown(t *testing.T) {
	released := 0
	b := buffer.Wrap(func() { released++ }, []byte("abc"))
	b.WriteString("def")
	if got := string(b.Window()); got != "abcdef" || released != 1 {
		t.Errorf("got %q, released %d times", got, released)
	}
	b.Release()
}

// What is appended never goes to the memory of the caller, whatever place there is.
func TestWrapIsNotFilled(t *testing.T) {
	uses := map[string]struct {
		use  func(b *buffer.Buf) *buffer.Buf
		want string
	}{
		"cleared":   {func(b *buffer.Buf) *buffer.Buf { b.Clear(); return b }, "new"},
		"discarded": {func(b *buffer.Buf) *buffer.Buf { b.Skip(3); b.DiscardRead(); return b }, "defnew"},
		"a slice":   {func(b *buffer.Buf) *buffer.Buf { s := b.Slice(0, 2); b.Release(); return s }, "abnew"},
		"split":     {func(b *buffer.Buf) *buffer.Buf { b.Split(2).Release(); return b }, "abnew"},
		"cut":       {func(b *buffer.Buf) *buffer.Buf { b.Truncate(2); return b }, "abnew"},
		"a part":    {func(b *buffer.Buf) *buffer.Buf { return buffer.Compose(b) }, "abcdefnew"},
	}
	for what, tt := range uses {
		t.Run(what, func(t *testing.T) {
			released := 0
			mine := []byte("abcdef")
			b := tt.use(buffer.Wrap(func() { released++ }, mine))
			b.WriteString("new")
			if got := content(t, b); got != tt.want || string(mine) != "abcdef" {
				t.Errorf("got %q, and %q in the caller's memory, want %q and abcdef", got, mine, tt.want)
			}
			if b.Release(); released != 1 {
				t.Errorf("released %d times, want once", released)
			}
		})
	}
}
