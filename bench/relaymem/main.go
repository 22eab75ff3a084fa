//go:build linux

// Command relaymem measures what relays cost in memory whose targets do not read: the
// relay example in a control group of its own, so that what the kernel holds for it in
// pipes is counted, too. Socket buffers are counted apart, as in groups of version 1.
//
//	go run ./relaymem
//
// Half of the connections send until nothing more is taken, the others go on talking.
// It needs to be root to make a control group (version 1); else it counts resident memory
// only, and says so. With -unprivileged the relay runs as a user who may have few pipes.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

func main() {
	relays := flag.Int("relays", 500, "connections")
	mode := flag.String("mode", "splice", "`mode` of the relay: splice, auto or copy")
	limit := flag.Int64("max", 64, "exit with status 1 when it grows by more `MiB`")
	unprivileged := flag.Bool("unprivileged", false, "run the relay as nobody")
	flag.Parse()
	if err := run(*relays, *mode, *limit, *unprivileged); err != nil {
		fmt.Fprintln(os.Stderr, "relaymem:", err)
		os.Exit(1)
	}
}

func run(relays int, mode string, limit int64, unprivileged bool) error {
	if _, err := proc.RaiseFiles(); err != nil {
		return err
	}
	b, err := proc.NewBuilder()
	if err != nil {
		return err
	}
	defer b.Close()
	bin, err := b.Example("relay")
	if err != nil {
		return err
	}
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer target.Close()
	args := []string{"-addr", "127.0.0.1:0", "-to", target.Addr().String(), "-mode", mode}
	if unprivileged {
		// The way to the program has to be open to that user.
		if err := os.Chmod(filepath.Dir(bin), 0o755); err != nil {
			return err
		}
		setpriv, err := exec.LookPath("setpriv")
		if err != nil {
			return err
		}
		args = append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", bin}, args...)
		bin = setpriv
	}
	s, err := proc.Start(-1, bin, args...)
	if err != nil {
		return err
	}
	defer s.Stop()
	group, err := newGroup(s.PID)
	if err != nil {
		fmt.Println("only resident memory is counted:", err)
	}
	defer group.remove()

	var clients, servers []net.Conn
	defer func() {
		for _, c := range append(clients, servers...) {
			c.Close()
		}
	}()
	for range relays {
		c, err := net.Dial("tcp", strings.TrimPrefix(s.Addr, "tcp://"))
		if err != nil {
			return err
		}
		clients = append(clients, c)
		u, err := target.Accept()
		if err != nil {
			return err
		}
		servers = append(servers, u)
		if err := talk(c, u, 1<<10); err != nil {
			return err
		}
	}
	before, err := group.usage(s.PID)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var stuck int64
	var failed error
	for i := range clients {
		wg.Go(func() {
			var n int64
			var err error
			if i%2 == 0 {
				n, err = fill(clients[i])
			} else {
				for range 20 {
					if err = talk(clients[i], servers[i], 256<<10); err != nil {
						break
					}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			stuck += n
			failed = errors.Join(failed, err)
		})
	}
	wg.Wait()
	if failed != nil {
		return failed
	}
	after, err := group.usage(s.PID)
	if err != nil {
		return err
	}
	grown := after.all() - before.all()
	tcp := after.tcp - before.tcp
	fmt.Printf("%d relays, -mode %s, unprivileged %v; %d stuck, with %.1f MiB under way in all buffers of both sides and the relay\n",
		relays, mode, unprivileged, (relays+1)/2, mib(stuck))
	fmt.Printf("%-8s %10s %10s %10s\n", "MiB", "group", "TCP", "resident")
	for _, u := range []struct {
		name string
		usage
	}{{"before", before}, {"after", after}} {
		fmt.Printf("%-8s %10.1f %10.1f %10.1f\n", u.name, mib(u.group), mib(u.tcp), mib(u.resident))
	}
	fmt.Printf("grown by %.1f MiB, and %.1f MiB in socket buffers\n", mib(grown), mib(tcp))
	if grown > limit<<20 {
		return fmt.Errorf("grown by %.1f MiB, the limit is %d", mib(grown), limit)
	}
	return nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// talk sends n bytes each way.
func talk(c, u net.Conn, n int) error {
	for _, way := range [][2]net.Conn{{c, u}, {u, c}} {
		sent := make(chan error, 1)
		go func() {
			_, err := way[0].Write(make([]byte, n))
			sent <- err
		}()
		_ = way[1].SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.ReadFull(way[1], make([]byte, n)); err != nil {
			return err
		}
		if err := <-sent; err != nil {
			return err
		}
	}
	return nil
}

// fill sends until nothing has been taken for a second.
func fill(c net.Conn) (sum int64, err error) {
	p := make([]byte, 64<<10)
	for {
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := c.Write(p)
		sum += int64(n)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if n == 0 {
				return sum, nil
			}
			continue
		}
		if err != nil {
			return sum, err
		}
	}
}

// usage is what a process and the kernel hold for it, in bytes.
type usage struct{ group, tcp, resident int64 }

func (u usage) all() int64 {
	if u.group == 0 {
		return u.resident
	}
	return u.group
}

// cgroup is a control group of version 1; the zero value is none.
type cgroup struct{ dir string }

func newGroup(pid int) (cgroup, error) {
	root := "/sys/fs/cgroup/memory"
	if _, err := os.Stat(filepath.Join(root, "memory.kmem.tcp.usage_in_bytes")); err != nil {
		return cgroup{}, err
	}
	g := cgroup{filepath.Join(root, "runnel-bench-"+strconv.Itoa(pid))}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return cgroup{}, err
	}
	// Socket memory is counted only where there is a limit for it.
	_ = os.WriteFile(filepath.Join(g.dir, "memory.kmem.tcp.limit_in_bytes"), []byte("1099511627776"), 0)
	if err := os.WriteFile(filepath.Join(g.dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		os.Remove(g.dir)
		return cgroup{}, err
	}
	return g, nil
}

func (g cgroup) usage(pid int) (u usage, err error) {
	m, err := proc.MemoryOf(pid)
	if err != nil {
		return u, err
	}
	u.resident = m.RSS
	if g.dir == "" {
		return u, nil
	}
	if u.group, err = g.read("memory.usage_in_bytes"); err != nil {
		return u, err
	}
	u.tcp, err = g.read("memory.kmem.tcp.usage_in_bytes")
	return u, err
}

func (g cgroup) read(name string) (int64, error) {
	text, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}

// remove removes the group once its process has ended.
func (g cgroup) remove() {
	for range 100 {
		if g.dir == "" || !errors.Is(os.Remove(g.dir), syscall.EBUSY) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}
