// Package process runs the examples as processes, for their tests: it builds the
// program once, starts it, reads where it listens, and ends it as a supervisor
// would. The tests talk to it through plain net and os.
package process

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience bounds everything a test waits for: a net below the test, not a measure.
const Patience = 30 * time.Second

var program string // path of what Main has built

// Main is the TestMain of an example's package: it builds the example, in the mode
// in which the tests were built, and runs the tests.
func Main(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "runnel-example-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	wd, err := os.Getwd()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	program = filepath.Join(dir, filepath.Base(wd))
	args := []string{"build", "-buildvcs=false", "-o", program}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "-race" || s.Key == "-asan" || s.Key == "-tags" {
				args = append(args, s.Key+"="+s.Value)
			}
		}
	}
	if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// Run runs the program to its end.
func Run(t testing.TB, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	LinuxOnly(t)
	var out, log bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &out, &log
	prepare(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := time.AfterFunc(Patience, func() { _ = cmd.Process.Kill() })
	defer stop.Stop()
	err := cmd.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), log.String(), cmd.ProcessState.ExitCode()
}

// Server is a server at work.
type Server struct {
	Network, Addr string // where it listens

	t      testing.TB
	cmd    *exec.Cmd
	stdout *bufio.Reader
	exited chan struct{} // closed when the process has ended

	mu    sync.Mutex
	more  *sync.Cond // told of each change below
	log   []string   // lines on standard error
	ended bool       // no more lines will come
}

// Start starts the program and waits until it listens.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, exec.Command(program, args...))
}

// StartLimited is Start with at most n open descriptors.
func StartLimited(t testing.TB, n int, args ...string) *Server {
	t.Helper()
	return StartUlimit(t, "-n "+strconv.Itoa(n), args...)
}

// StartUlimit is Start under a limit, as the shell's ulimit takes it.
func StartUlimit(t testing.TB, limit string, args ...string) *Server {
	t.Helper()
	script := "ulimit " + limit + ` && exec "$0" "$@"`
	return start(t, exec.Command("/bin/sh", append([]string{"-c", script, program}, args...)...))
}

// StartOn is Start with a socket that listens already, as a service manager would pass
// it.
func StartOn(t testing.TB, l *os.File, args ...string) *Server {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.ExtraFiles = []*os.File{l}
	cmd.Env = []string{"LISTEN_FDS=1"}
	return start(t, cmd)
}

func start(t testing.TB, cmd *exec.Cmd) *Server {
	t.Helper()
	LinuxOnly(t)
	s := &Server{t: t, cmd: cmd, exited: make(chan struct{})}
	s.more = sync.NewCond(&s.mu)
	outR, outW := pipe(t)
	errR, errW := pipe(t)
	cmd.Stdout, cmd.Stderr = outW, errW
	prepare(cmd)
	err := cmd.Start()
	outW.Close()
	errW.Close()
	if err != nil {
		t.Fatal(err)
	}
	go s.readLog(errR)
	go func() {
		_ = cmd.Wait()
		close(s.exited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-s.exited
		if t.Failed() {
			t.Logf("log of %s:\n%s", filepath.Base(program), s.Log())
		}
	})

	if err := outR.SetReadDeadline(time.Now().Add(Patience)); err != nil {
		t.Fatal(err)
	}
	s.stdout = bufio.NewReader(outR)
	line, err := s.stdout.ReadString('\n')
	if err != nil {
		t.Fatalf("reading where it listens: got %q, %v; log:\n%s", line, err, s.Log())
	}
	where, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "listening on ")
	if s.Network, s.Addr, _ = strings.Cut(where, "://"); !ok || s.Addr == "" {
		t.Fatalf("got first line %q, want listening on NETWORK://ADDRESS", line)
	}
	return s
}

// prepare sets what all processes have in common.
func prepare(cmd *exec.Cmd) {
	tieToParent(cmd)
	// By default a program with the race detector sleeps for a second before it exits.
	cmd.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE")), cmd.Env...)
}

func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, w
}

func (s *Server) readLog(r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		s.mu.Lock()
		s.log = append(s.log, lines.Text())
		s.more.Broadcast()
		s.mu.Unlock()
	}
	s.mu.Lock()
	s.ended = true
	s.more.Broadcast()
	s.mu.Unlock()
}

// Log returns what the server has written to standard error so far.
func (s *Server) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.log, "\n")
}

// WaitLog waits for a line of the log that contains text, and returns it.
func (s *Server) WaitLog(text string) string {
	s.t.Helper()
	late := false
	timer := time.AfterFunc(Patience, func() {
		s.mu.Lock()
		late = true
		s.more.Broadcast()
		s.mu.Unlock()
	})
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := 0; ; i++ {
		for i == len(s.log) && !s.ended && !late {
			s.more.Wait()
		}
		if i == len(s.log) {
			s.t.Fatalf("got no line with %q in the log", text)
		}
		if strings.Contains(s.log[i], text) {
			return s.log[i]
		}
	}
}

// waitLogEnd waits until all of the log has been read.
func (s *Server) waitLogEnd() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.ended {
		s.more.Wait()
	}
}

// Signal sends the server a signal.
func (s *Server) Signal(sig os.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// Wait waits for the process to end, and returns its exit status.
func (s *Server) Wait() int {
	s.t.Helper()
	select {
	case <-s.exited:
	case <-time.After(Patience):
		s.t.Fatalf("still running after %v", Patience)
	}
	s.waitLogEnd()
	return s.cmd.ProcessState.ExitCode()
}

// Stop ends the server as a supervisor would, and checks that it ended well: status
// 0, nothing more on standard output, no stack trace and no leak in the log.
func (s *Server) Stop() {
	s.t.Helper()
	s.Signal(syscall.SIGTERM)
	s.Ended()
}

// Ended waits for a server that has been told to end, and checks what Stop does.
func (s *Server) Ended() {
	s.t.Helper()
	if status := s.Wait(); status != 0 {
		s.t.Errorf("got exit status %d, want 0", status)
	}
	if rest, err := io.ReadAll(s.stdout); err != nil || len(rest) > 0 {
		s.t.Errorf("got more on standard output: %q, %v; want one line only", rest, err)
	}
	for line := range strings.SplitSeq(s.Log(), "\n") {
		if strings.Contains(line, "a call holds its loop") {
			continue // the watchdog, with stacks: on a machine that is busy, any call may
		}
		for _, bad := range []string{"panic", "fatal error", "goroutine ", "DATA RACE", "not released"} {
			if strings.Contains(line, bad) {
				s.t.Errorf("got %q in the log", line)
			}
		}
	}
}

// Line returns the next line that the process prints, without its end.
func (s *Server) Line() string {
	s.t.Helper()
	line, err := s.stdout.ReadString('\n') // bounded by the deadline of Start
	if err != nil {
		s.t.Fatalf("reading a line: got %q, %v", line, err)
	}
	return strings.TrimSuffix(line, "\n")
}

// Dial connects to the server. All that is done on the connection is bounded by
// Patience.
func (s *Server) Dial() net.Conn {
	s.t.Helper()
	c, err := net.DialTimeout(s.Network, s.Addr, Patience)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(Patience)); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// Descriptors returns how many descriptors the server has open.
func (s *Server) Descriptors() int {
	s.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	return len(entries)
}

// WaitDescriptors waits until the server has no more than n descriptors open.
// between, a round trip to the server for example, is called while there are more.
func (s *Server) WaitDescriptors(n int, between func()) {
	s.t.Helper()
	for end := time.Now().Add(Patience); ; {
		got := s.Descriptors()
		if got <= n {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("got %d open descriptors, want %d", got, n)
		}
		between()
	}
}

// CloseWrite closes the sending side of a connection.
func CloseWrite(t testing.TB, c net.Conn) {
	t.Helper()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
}

// LinuxOnly skips a test where the examples cannot serve.
func LinuxOnly(t testing.TB) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("sockets need Linux")
	}
}
