package transport

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/pipeline"
)

// namespace is a network namespace, for as long as a test, and a thread that is in it.
type namespace struct {
	t   testing.TB
	tid int
	run chan func()
}

// newNamespace makes one. It skips the test where that is not allowed.
func newNamespace(t testing.TB) *namespace {
	t.Helper()
	n := &namespace{t: t, run: make(chan func())}
	entered := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		n.tid = syscall.Gettid()
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		entered <- err
		if err != nil {
			return
		}
		for f := range n.run {
			f()
		}
	}()
	t.Cleanup(func() { close(n.run); <-ended })
	if err := <-entered; err != nil {
		t.Skip("no network namespace of its own: ", err)
	}
	n.ip("link set lo up")
	return n
}

// do calls f on a thread that is in the namespace. What f makes is in it; f must not end
// the test.
func (n *namespace) do(f func()) {
	done := make(chan struct{})
	n.run <- func() { defer close(done); f() }
	<-done
}

// ip runs ip(8) in the namespace.
func (n *namespace) ip(args string) {
	n.t.Helper()
	var out []byte
	var err error
	n.do(func() { out, err = exec.Command("ip", strings.Fields(args)...).CombinedOutput() })
	switch {
	case err == nil:
	case strings.Contains(err.Error(), "executable file not found"), strings.Contains(string(out), "not supported"):
		n.t.Skipf("ip %s: %v %s", args, err, out)
	default:
		n.t.Fatalf("ip %s: %v %s", args, err, out)
	}
}

// veth is two namespaces that are joined by a pair of interfaces.
type veth struct {
	server, client *namespace
}

// serverIP and clientIP are the ends of a veth.
const serverIP, clientIP = "192.0.2.1", "192.0.2.2"

// newVeth makes one. If lends is set what is sent from one to the other is not copied on
// its way out, as with a network card; else it is, because the interface hands it over to
// a receiver in the same kernel.
func newVeth(t testing.TB, lends bool) *veth {
	t.Helper()
	v := &veth{server: newNamespace(t), client: newNamespace(t)}
	v.server.ip(fmt.Sprintf("link add server type veth peer name client netns %d", v.client.tid))
	for n, end := range map[*namespace][2]string{v.server: {"server", serverIP}, v.client: {"client", clientIP}} {
		n.ip("addr add " + end[1] + "/24 dev " + end[0])
		n.ip("link set " + end[0] + " up")
	}
	if lends {
		v.client.attach("client")
	}
	return v
}

// attach runs attachXDP, which may skip the test.
func (n *namespace) attach(name string) {
	n.t.Helper()
	var skipped, failed bool
	n.do(func() {
		probe := &probing{TB: n.t}
		defer func() { skipped, failed = probe.skipped, probe.failed }()
		defer func() {
			if v := recover(); v != nil && v != probe {
				panic(v)
			}
		}()
		attachXDP(probe, name)
	})
	switch {
	case failed:
		n.t.FailNow()
	case skipped:
		n.t.SkipNow()
	}
}

// probing is a test whose Skip and Fatal leave the goroutine alone.
type probing struct {
	testing.TB
	skipped, failed bool
}

func (p *probing) Skip(args ...any) {
	p.Log(args...)
	p.skipped = true
	panic(p)
}

func (p *probing) Fatal(args ...any) {
	p.Error(args...)
	p.failed = true
	panic(p)
}

// listen has srv listen in the server's namespace.
func (v *veth) listen(t testing.TB, srv *Server) pipeline.Channel {
	t.Helper()
	var l pipeline.Channel
	var err error
	v.server.do(func() { l, err = srv.Listen(context.Background(), "tcp", serverIP+":0") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
	return l
}

// dial connects to l from the client's namespace.
func (v *veth) dial(t testing.TB, l pipeline.Channel) net.Conn {
	t.Helper()
	var nc net.Conn
	var err error
	v.client.do(func() { nc, err = net.Dial("tcp", l.LocalAddr().String()) })
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { nc.Close() })
	return nc
}
