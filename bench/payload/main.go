// Command payload moves a stream through examples/fileregion, relay, with and without a
// mirror, and record under strace, checks what arrives, and adds up by which system calls it went.
//
//	go run ./payload
//	go run ./payload -only relay -size 1073741824
//
// It exits with status 1 when less than the whole stream went past the process, or when
// the process read more than -slack bytes. Without strace it says so and does nothing.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

// calls are those that move bytes, the ones that take them through the process first.
var calls = []string{
	"read", "readv", "recvfrom", "recvmsg", "pread64", "preadv", "preadv2",
	"write", "writev", "sendto", "sendmsg", "pwrite64", "pwritev",
	"sendfile", "splice", "tee",
}

// reads is how many of calls bring bytes into the process.
const reads = 7

func main() {
	size := flag.Int64("size", 256<<20, "bytes of the stream")
	slack := flag.Int64("slack", 1<<20, "bytes that a server may read for other reasons: its start, requests")
	only := flag.String("only", "", "one `scenario`: fileregion, relay, mirror or record")
	flag.Parse()
	if err := run(*only, *size, *slack); err != nil {
		fmt.Fprintln(os.Stderr, "payload:", err)
		os.Exit(1)
	}
}

func run(only string, size, slack int64) (err error) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		fmt.Println("payload: strace is not installed, nothing measured")
		return nil
	}
	b, err := proc.NewBuilder()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	dir, err := os.MkdirTemp("", "runnel-payload-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ran := false
	for _, s := range scenarios {
		if only != "" && s.name != only {
			continue
		}
		ran = true
		switches, moved, err := s.run(b, strace, dir, size)
		if err == nil {
			err = judge(s, switches, moved, size, slack)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if !ran {
		return fmt.Errorf("no scenario %q", only)
	}
	return nil
}

// judge prints what a trace adds up to.
func judge(s scenario, switches int64, moved map[string]total, size, slack int64) error {
	fmt.Printf("%s: %d bytes, SHA-256 right, %d context switches without strace; bytes by system call:\n", s.name, size, switches)
	var read int64
	for i, call := range calls {
		m := moved[call]
		if m.calls > 0 {
			fmt.Printf("  %-10s %10d calls %12d bytes\n", call, m.calls, m.bytes)
		}
		if i < reads {
			read += m.bytes
		}
	}
	want := int64(s.passes) * size
	if got := moved[s.by].bytes; got < want || read > slack {
		return fmt.Errorf("%s moved %d of %d bytes and %d were read, want at most %d", s.by, got, want, read, slack)
	}
	return nil
}

// total is what one kind of call adds up to.
type total struct{ calls, bytes int64 }

// traceFlags makes strace write down the calls of a process to a file.
func traceFlags(pid, file string) []string {
	return []string{"-f", "-p", pid, "-o", file, "-e", "trace=" + strings.Join(calls, ",")}
}
