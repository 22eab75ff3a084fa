//go:build race

package sys

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The race detector sees what the kernel reads and writes. The races are in a
// process of their own, because one that has had a race fails.
func TestRacesAreSeen(t *testing.T) {
	races := map[string]func(buf []byte){
		"read": func(buf []byte) {
			r, w, _ := Pipe()
			Write(w, []byte("12345678"))
			race(buf, func() { Read(r, buf) })
		},
		"readv": func(buf []byte) {
			r, w, _ := Pipe()
			Write(w, []byte("12345678"))
			race(buf, func() { Readv(r, parts(buf, 4)) })
		},
		"write":      func(buf []byte) { race(buf, func() { Write(pipeEnd(), buf) }) },
		"writeslow":  func(buf []byte) { race(buf, func() { WriteSlow(pipeEnd(), buf) }) },
		"writev":     func(buf []byte) { race(buf, func() { Writev(pipeEnd(), parts(buf, 4)) }) },
		"writevslow": func(buf []byte) { race(buf, func() { WritevSlow(pipeEnd(), parts(buf, 4)) }) },
	}
	const variable = "RUNNEL_TEST_RACE"
	if name := os.Getenv(variable); name != "" {
		races[name](make([]byte, 8))
		return
	}
	for name := range races {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestRacesAreSeen$")
			cmd.Env = append(os.Environ(), variable+"="+name)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "DATA RACE") {
				t.Errorf("got %v and no report of a race:\n%s", err, out)
			}
		})
	}
}

// race writes to buf on another goroutine, in an order to f of which only the
// scheduler knows.
func race(buf []byte, f func()) {
	written := make(chan struct{})
	go func() {
		buf[5] = 'x'
		close(written)
	}()
	f()
	<-written
}

func pipeEnd() int {
	_, w, _ := Pipe()
	return w
}

// A write and the read that gets it are ordered, as with the standard library.
func TestWriteOrdersRead(t *testing.T) {
	client, server := tcpPair(t)
	shared := 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		shared = 1
		Write(client, []byte("x"))
	}()
	readAll(t, server, 1)
	if shared != 1 {
		t.Errorf("got %d, want 1", shared)
	}
	<-done
}
