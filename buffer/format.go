package buffer

import (
	"encoding/hex"
	"fmt"
	"io"
	"strings"
)

// dumpBytes is how much of the content is shown when no precision says how much.
const dumpBytes = 256

// String returns the indices and the references of b, and never its content. It may
// be called after the last release.
func (b *Buf) String() string {
	if b == nil {
		return "Buf(nil)"
	}
	refs := b.Refs()
	if refs <= 0 {
		return "Buf(released)"
	}
	more := ""
	if n := b.Parts(); n > 1 {
		more = fmt.Sprintf(", %d parts", n)
	}
	if b.Mapped() {
		more += ", mapped"
	}
	return fmt.Sprintf("Buf(reader %d, writer %d, cap %d, refs %d%s)", b.ReaderIndex(), b.WriterIndex(), b.Cap(), refs, more)
}

// Format implements fmt.Formatter. The verbs v and s print what String returns. The
// verb x prints the bytes that can be read, in hexadecimal and as text, 16 a line,
// with offsets counted from ReaderIndex; %+v prints both. Of the content at most 256
// bytes are shown, or as many as the precision says, as in %.64x, and then how many
// are left out.
func (b *Buf) Format(f fmt.State, verb rune) {
	text := b.String()
	live := b != nil && b.Refs() > 0
	switch {
	case verb == 'x' && live:
		text = b.dump(f)
	case verb == 'v' && f.Flag('+') && live && b.Len() > 0:
		text += "\n" + b.dump(f)
	case verb == 'v', verb == 's', verb == 'x':
	default:
		text = fmt.Sprintf("%%!%c(*buffer.Buf=%s)", verb, text)
	}
	_, _ = io.WriteString(f, text) // fmt keeps the error of its writer
}

// dump returns the lines of a hex dump, without a line break at the end.
func (b *Buf) dump(f fmt.State) string {
	most := dumpBytes
	if p, ok := f.Precision(); ok {
		most = p
	}
	p := make([]byte, min(b.Len(), most))
	if err := b.tryCopyOut(p, b.ReaderIndex()); err != nil {
		return err.Error()
	}
	text := hex.Dump(p)
	if left := b.Len() - len(p); left > 0 {
		text += fmt.Sprintf("%d more bytes", left)
	}
	return strings.TrimSuffix(text, "\n")
}
