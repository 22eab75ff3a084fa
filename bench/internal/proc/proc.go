//go:build linux

// Package proc builds servers, runs each as a process of its own, and reads what
// it costs: CPU time in nanoseconds and resident memory.
package proc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrAbsent reports that a server cannot be had here: an example that does not
// exist, or the C loop where there is no C compiler.
var ErrAbsent = errors.New("not available")

const readyTimeout = 10 * time.Second

// ModuleDir returns the directory of the bench module, found from the working directory.
func ModuleDir() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	dir := filepath.Dir(strings.TrimSpace(string(out)))
	if _, err := os.Stat(filepath.Join(dir, "cloop", "cloop.c")); err != nil {
		return "", errors.New("run this from the bench directory")
	}
	return dir, nil
}

// Builder compiles servers into one directory, each once.
type Builder struct {
	module, out string
}

// NewBuilder returns a Builder with a temporary directory of its own.
func NewBuilder() (*Builder, error) {
	module, err := ModuleDir()
	if err != nil {
		return nil, err
	}
	out, err := os.MkdirTemp("", "runnel-bench-")
	if err != nil {
		return nil, err
	}
	return &Builder{module: module, out: out}, nil
}

// Close removes what was built.
func (b *Builder) Close() error { return os.RemoveAll(b.out) }

// Own compiles a command of the bench module, say "load".
func (b *Builder) Own(name string) (string, error) {
	return b.goBuild(b.module, name, "./"+name)
}

// Example compiles one of the library's example programs; ErrAbsent if there is none of that name.
func (b *Builder) Example(name string) (string, error) {
	root := filepath.Dir(b.module)
	if found, _ := filepath.Glob(filepath.Join(root, "examples", name, "*.go")); len(found) == 0 {
		return "", fmt.Errorf("examples/%s: %w", name, ErrAbsent)
	}
	return b.goBuild(root, "example-"+name, "./examples/"+name)
}

// C compiles NAME/NAME.c; ErrAbsent without a compiler.
func (b *Builder) C(name string) (string, error) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		return "", fmt.Errorf("%s needs gcc: %w", name, ErrAbsent)
	}
	bin := filepath.Join(b.out, name)
	cmd := exec.Command(gcc, "-O2", "-o", bin, filepath.Join(b.module, name, name+".c"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("gcc: %w\n%s", err, out)
	}
	return bin, nil
}

func (b *Builder) goBuild(dir, name, pkg string) (string, error) {
	bin := filepath.Join(b.out, name)
	cmd := exec.Command("go", "build", "-o", bin, pkg)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return bin, nil
}

// Server is a running server process that has said where it listens.
type Server struct {
	PID  int
	Addr string // "tcp://127.0.0.1:40001", as the server printed it

	cmd    *exec.Cmd
	stderr tail
	exited chan struct{} // closed when the process has ended
}

// Start runs a server and waits for its "listening on" line. A cpu of 0 or more
// pins the process to that core from its first instruction, so that a Go server
// sees one core; a negative one leaves it free.
func Start(cpu int, bin string, args ...string) (*Server, error) {
	name := filepath.Base(bin)
	s := &Server{cmd: exec.Command(bin, args...), exited: make(chan struct{})}
	s.cmd.Stderr = &s.stderr
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.cmd.Stdout = w
	err = StartPinned(s.cmd, cpu)
	w.Close()
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	s.PID = s.cmd.Process.Pid
	go func() {
		s.cmd.Wait()
		close(s.exited)
	}()

	r.SetReadDeadline(time.Now().Add(readyTimeout))
	line, err := bufio.NewReader(r).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if err != nil || !ok {
		s.Stop()
		r.Close()
		return nil, fmt.Errorf("%s: no \"listening on\" line: got %q, %v\n%s", name, line, err, s.stderr.String())
	}
	s.Addr = addr
	go func() { // keep the pipe empty
		r.SetReadDeadline(time.Time{})
		io.Copy(io.Discard, r)
		r.Close()
	}()
	return s, nil
}

// StartAt is Start for a server that says nothing: it is ready when a connection to
// addr succeeds.
func StartAt(cpu int, addr, bin string, args ...string) (*Server, error) {
	s := &Server{cmd: exec.Command(bin, args...), exited: make(chan struct{}), Addr: "tcp://" + addr}
	s.cmd.Stderr = &s.stderr
	if err := StartPinned(s.cmd, cpu); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(bin), err)
	}
	s.PID = s.cmd.Process.Pid
	go func() {
		s.cmd.Wait()
		close(s.exited)
	}()
	for end := time.Now().Add(readyTimeout); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return s, nil
		}
		select {
		case <-s.exited:
			return nil, s.Stop()
		default:
		}
		if time.Now().After(end) {
			s.Stop()
			return nil, fmt.Errorf("%s does not listen: %w", filepath.Base(bin), err)
		}
	}
}

// Stop asks the server to end, and ends it if it does not within a few seconds.
// It reports a server that had already ended, or had to be killed, by an error.
func (s *Server) Stop() error {
	select {
	case <-s.exited:
		return fmt.Errorf("%s had ended: %v\n%s", filepath.Base(s.cmd.Path), s.cmd.ProcessState, s.stderr.String())
	default:
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
		return nil
	case <-time.After(8 * time.Second):
		s.cmd.Process.Kill()
		<-s.exited
		return fmt.Errorf("%s did not end on SIGTERM\n%s", filepath.Base(s.cmd.Path), s.stderr.String())
	}
}

// Exited is closed when the process has ended.
func (s *Server) Exited() <-chan struct{} { return s.exited }

// Stderr returns the end of what the server has logged.
func (s *Server) Stderr() string { return s.stderr.String() }

// StartPinned starts cmd on one core; a negative cpu leaves it free. The child
// inherits the mask of the thread that forks it and dies with this process.
func StartPinned(cmd *exec.Cmd, cpu int) error {
	// The death signal follows the thread that forked: exec.Cmd must not be started
	// from a locked thread that ends, so the lock is taken and given back here.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if cpu < 0 {
		return cmd.Start()
	}
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return os.NewSyscallError("sched_getaffinity", err)
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("core %d: %w", cpu, os.NewSyscallError("sched_setaffinity", err))
	}
	err := cmd.Start()
	if rerr := unix.SchedSetaffinity(0, &before); rerr != nil && err == nil {
		err = os.NewSyscallError("sched_setaffinity", rerr)
	}
	return err
}

// PinSelf moves every thread of this process to one core.
func PinSelf(cpu int) error {
	var one unix.CPUSet
	one.Set(cpu)
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if err := unix.SchedSetaffinity(tid, &one); err != nil && err != unix.ESRCH {
			return fmt.Errorf("core %d: %w", cpu, os.NewSyscallError("sched_setaffinity", err))
		}
	}
	runtime.GOMAXPROCS(1)
	return nil
}

// CPU returns the user and system time that a process has used, to the
// nanosecond, threads that have ended included: the process's own CPU clock.
func CPU(pid int) (time.Duration, error) {
	const sched = 2 // CPUCLOCK_SCHED; clock_getcpuclockid(3)
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// Switches returns how often the threads of a process have been switched, by themselves
// or by the system, those that have ended left out.
func Switches(pid int) (int64, error) {
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, name := range names {
		text, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		}
		if err != nil {
			return 0, err
		}
		for line := range bytes.Lines(text) {
			if f := bytes.Fields(line); len(f) == 2 && bytes.HasSuffix(f[0], []byte("voluntary_ctxt_switches:")) {
				n, err := strconv.ParseInt(string(f[1]), 10, 64)
				if err != nil {
					return 0, err
				}
				sum += n
			}
		}
	}
	return sum, nil
}

// Memory is what a process holds, in bytes.
type Memory struct {
	RSS       int64 // resident
	Anonymous int64 // of that, not backed by a file
}

// MemoryOf reads a process's memory exactly (smaps_rollup; the counters in
// /proc/PID/statm are approximate on several cores).
func MemoryOf(pid int) (Memory, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return Memory{}, err
	}
	var m Memory
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseInt(string(f[1]), 10, 64)
		switch string(f[0]) {
		case "Rss:":
			m.RSS = kb << 10
		case "Anonymous:":
			m.Anonymous = kb << 10
		}
	}
	if m.RSS == 0 {
		return m, fmt.Errorf("no Rss line in smaps_rollup of process %d", pid)
	}
	return m, nil
}

// RaiseFiles raises the soft limit of open files to the hard one, for this process
// and what it starts, and returns it.
func RaiseFiles() (uint64, error) {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return 0, os.NewSyscallError("getrlimit", err)
	}
	lim.Cur = lim.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return 0, os.NewSyscallError("setrlimit", err)
	}
	return lim.Cur, nil
}
