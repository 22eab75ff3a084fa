package buffer_test

import (
	"os/exec"
	"regexp"
	"runtime"
	"testing"
)

// The accessors of integers are inlined: they sit at the edge of the compiler's
// budget, and one node more makes each of them twice as slow.
func TestInlined(t *testing.T) {
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" && runtime.GOARCH != "386" {
		t.Skipf("not promised on %s", runtime.GOARCH)
	}
	tool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("no go command here")
	}
	out, err := exec.Command(tool, "build", "-gcflags=-m=2", ".").CombinedOutput()
	if err != nil {
		t.Skipf("cannot build here: %v\n%s", err, out)
	}
	inlined := map[string]bool{}
	for _, m := range regexp.MustCompile(`can inline \(\*Buf\)\.(\w+) with cost`).FindAllSubmatch(out, -1) {
		inlined[string(m[1])] = true
	}
	if len(inlined) == 0 {
		t.Skip("the compiler does not say what it inlines")
	}
	for _, name := range []string{
		"ReadUint8", "ReadUint16", "ReadUint32", "ReadUint64", "ReadUint16LE", "ReadUint32LE", "ReadUint64LE", "ReadInt8",
		"WriteUint8", "WriteUint16", "WriteUint32", "WriteUint64", "WriteUint16LE", "WriteUint32LE", "WriteUint64LE",
		"Uint8At", "Uint16At", "Uint32At", "Uint16AtLE", "Uint32AtLE", "Len", "ReaderIndex", "WriterIndex", "Skip",
		"chunk",
		// These are a call each already, and are not to become two.
		"Int64At", "Int64AtLE", "Float64At", "Float64AtLE", "SetInt32At", "SetInt32AtLE", "SetFloat64At", "SetFloat64AtLE", "SetBoolAt",
		"TryReadInt32", "TryReadInt32LE", "TryReadFloat64", "TryReadFloat64LE", "TryReadBool", "ReadInt24", "ReadInt24LE",
		"ReadUvarint", "ReadVarint",
	} {
		if !inlined[name] {
			t.Errorf("%s is not inlined", name)
		}
	}
}
