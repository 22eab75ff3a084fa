package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

// traced does something with the server while strace looks on, and stops the server,
// with which strace ends.
func traced(strace, trace string, srv *proc.Server, do func() error) error {
	cmd := exec.Command(strace, traceFlags(strconv.Itoa(srv.PID), trace)...)
	said, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return errors.Join(err, srv.Stop())
	}
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil || !strings.Contains(line, "attached") {
		err = fmt.Errorf("strace: %q, %v", line, err)
	} else {
		err = do()
	}
	return errors.Join(err, srv.Stop(), cmd.Wait())
}

// ended matches a call that has ended, also one that another thread interrupted.
var ended = regexp.MustCompile(`^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed).* = (\d+)(?: |$)`)

// count adds up a trace.
func count(name string) (map[string]total, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := make(map[string]total)
	s := bufio.NewScanner(f)
	for s.Scan() {
		m := ended.FindStringSubmatch(s.Text())
		if m == nil {
			continue
		}
		n, err := strconv.ParseInt(m[2], 10, 64)
		if err != nil {
			return nil, err
		}
		t := sum[m[1]]
		t.calls++
		t.bytes += n
		sum[m[1]] = t
	}
	return sum, s.Err()
}
