package buffer_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
)

func TestFormat(t *testing.T) {
	b := buffer.Heap.Alloc(64)
	b.WriteString("##secret \x00\xff text of two lines")
	b.Skip(2)
	b.Retain()
	const line = "Buf(reader 2, writer 29, cap 64, refs 2)"
	const dump = "00000000  73 65 63 72 65 74 20 00  ff 20 74 65 78 74 20 6f  |secret .. text o|\n" +
		"00000010  66 20 74 77 6f 20 6c 69  6e 65 73                 |f two lines|"
	tests := []struct{ format, want string }{
		{"%v", line},
		{"%s", line},
		{"%#v", line},
		{"%d", "%!d(*buffer.Buf=" + line + ")"},
		{"%q", "%!q(*buffer.Buf=" + line + ")"},
		{"%x", dump},
		{"%+v", line + "\n" + dump},
		{"%.5x", "00000000  73 65 63 72 65                                    |secre|\n22 more bytes"},
		{"%+.0v", line + "\n27 more bytes"},
		{"%.27x", dump},
	}
	for _, tt := range tests {
		if got := fmt.Sprintf(tt.format, b); got != tt.want {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.format, got, tt.want)
		}
	}
	if got := b.String(); got != line {
		t.Errorf("String: got %s, want %s", got, line)
	}
	if b.ReaderIndex() != 2 {
		t.Errorf("printing moved the index to %d", b.ReaderIndex())
	}
	b.Release()
	b.Release()
	for _, format := range []string{"%v", "%s", "%+v", "%x"} {
		if got, want := fmt.Sprintf(format, b), "Buf(released)"; got != want {
			t.Errorf("%s after the last release: got %s, want %s", format, got, want)
		}
	}
	b = nil
	if got, want := fmt.Sprintf("%v %+v %x", b, b, b), "Buf(nil) Buf(nil) Buf(nil)"; got != want || b.String() != "Buf(nil)" {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestStringOfComposite(t *testing.T) {
	b := composed(buffer.Heap, "abc", "def", "ghi")
	b.Skip(4)
	if got, want := b.String(), "Buf(reader 4, writer 9, cap 22, refs 1, 3 parts)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := fmt.Sprintf("%.4x", b), "00000000  65 66 67 68                                       |efgh|\n1 more bytes"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	b.Release()
	if got, want := b.String(), "Buf(released)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDumpIsBounded(t *testing.T) {
	for name, layout := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			b := layout(strings.Repeat("0123456789abcdef", 1000))
			defer b.Release()
			got := strings.Split(fmt.Sprintf("%x", b), "\n")
			if len(got) != 17 || got[16] != "15744 more bytes" {
				t.Errorf("got %d lines, the last %q, want 17 and 15744 more bytes", len(got), got[len(got)-1])
			}
			for i, line := range got[:16] {
				if want := fmt.Sprintf("%08x  30 31 32 33 34 35 36 37  38 39 61 62 63 64 65 66  |0123456789abcdef|", 16*i); line != want {
					t.Errorf("line %d: got %q, want %q", i, line, want)
				}
			}
			if got := strings.Count(fmt.Sprintf("%.16000x", b), "\n") + 1; got != 1000 {
				t.Errorf("got %d lines of all, want 1000", got)
			}
			b.Skip(b.Len())
			if got := fmt.Sprintf("%x|%+v", b, b); got != "|"+b.String() {
				t.Errorf("empty: got %q", got)
			}
		})
	}
}

func ExampleBuf_Format() {
	b := buffer.FromString("\x00\x00\x00\x0bhello, world")
	defer b.Release()
	b.Skip(4)
	fmt.Println(b)
	fmt.Printf("%x\n", b)
	fmt.Printf("%.5x\n", b)
	// Output:
	// Buf(reader 4, writer 16, cap 16, refs 1)
	// 00000000  68 65 6c 6c 6f 2c 20 77  6f 72 6c 64              |hello, world|
	// 00000000  68 65 6c 6c 6f                                    |hello|
	// 7 more bytes
}
