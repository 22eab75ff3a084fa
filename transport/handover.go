package transport

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
)

// firstInherited is the first descriptor that is passed on, sd_listen_fds(3).
const firstInherited = 3

// Inherited returns the sockets that this process was started with by whoever listens
// for it: a service manager, or the process that it takes the place of. It follows
// sd_listen_fds(3): LISTEN_FDS says how many there are, from descriptor 3 on, and
// LISTEN_FDNAMES, separated by colons, what they are called, which is the Name of the
// files. LISTEN_PID must be this process if it is set; a predecessor need not know it.
//
// The variables are removed and the descriptors are not passed on to other children,
// so that only the first call returns any. Without LISTEN_FDS there are none, and no
// error. The files are for [Server.Adopt], or else the caller's to close.
func Inherited() ([]*os.File, error) {
	names, err := listenNames(os.Getpid(), os.Getenv)
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		err = errors.Join(err, os.Unsetenv(v))
	}
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i, name := range names {
		fd := firstInherited + i
		if err := sys.CloseOnExec(fd); err != nil {
			return nil, fmt.Errorf("transport: inherited descriptor %d: %w", fd, err)
		}
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	return files, nil
}

// maxInherited is more than anybody passes on: a number beyond it is a mistake.
const maxInherited = 1 << 12

// listenNames returns the names of the descriptors that the environment tells of.
func listenNames(pid int, env func(string) string) ([]string, error) {
	count := env("LISTEN_FDS")
	if count == "" {
		return nil, nil
	}
	if p := env("LISTEN_PID"); p != "" {
		n, err := strconv.Atoi(p)
		if err != nil || n <= 0 {
			return nil, fmt.Errorf("transport: LISTEN_PID is %q", p)
		}
		if n != pid {
			return nil, nil // for our parent
		}
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > maxInherited {
		return nil, fmt.Errorf("transport: LISTEN_FDS is %q", count)
	}
	names := make([]string, n)
	if s := env("LISTEN_FDNAMES"); s != "" {
		copy(names, strings.Split(s, ":"))
	}
	for i := range names {
		if names[i] == "" {
			names[i] = "LISTEN_FD_" + strconv.Itoa(firstInherited+i)
		}
	}
	return names, nil
}

// ListenerFiles returns duplicates of the server's listening sockets, and of those by
// which it gets datagrams from anybody, in the order in which they were bound, for a
// process that takes this one's place; with PerLoop, all of each address. Both may accept
// and receive from then on, until this server shuts down, and nobody who connects
// meanwhile is refused or lost, nor a datagram. The files of Unix sockets, which
// are the successor's now, are not removed when the listeners close. The files are the
// caller's to close. It must not be called on a loop.
func (s *Server) ListenerFiles() ([]*os.File, error) {
	if eventloop.WouldDeadlock() {
		return nil, eventloop.ErrWouldDeadlock
	}
	s.setUp()
	if s.err != nil {
		return nil, s.err
	}
	var files []*os.File
	for _, b := range s.s.allBound() {
		f, err := b.dup()
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
			return nil, err
		}
		if f != nil {
			files = append(files, f)
		}
	}
	return files, nil
}

// bound is a socket of a server that others send to: a listener's or one of datagrams.
type bound interface {
	// dup returns a duplicate of the socket, or nil if it has closed. Off the loop.
	dup() (*os.File, error)
}

// allBound returns the sockets that a successor needs.
func (s *server) allBound() []bound {
	type numbered struct {
		bound
		nth uint64
	}
	var all []numbered
	s.mu.Lock()
	for _, l := range s.listeners {
		all = append(all, numbered{l, l.nth})
	}
	for ch := range s.dgrams {
		if ch.RemoteAddr() == nil { // else it was adopted, and is of one peer
			all = append(all, numbered{ch, ch.nth})
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b numbered) int { return cmp.Compare(a.nth, b.nth) })
	list := make([]bound, len(all))
	for i, b := range all {
		list[i] = b.bound
	}
	return list
}

func (l *listener) dup() (*os.File, error) {
	return dupBound(l.Loop(), l.local.load(), &l.handedOver, func() (int, bool) { return int(l.fd.fd), !l.done })
}

func (s *dgram) dup() (*os.File, error) {
	return dupBound(s.Loop(), s.local.load(), &s.handedOver, func() (int, bool) { return int(s.fd.fd), s.at < dgramClosing })
}

// dupBound duplicates a descriptor on its loop, which alone knows whether it is still this
// socket's: open says so.
func dupBound(loop *eventloop.Loop, addr net.Addr, handedOver *atomic.Bool, open func() (fd int, ok bool)) (*os.File, error) {
	var (
		fd   = -1
		err  error
		done = make(chan struct{})
	)
	if loop.Execute(func() {
		defer close(done)
		if n, ok := open(); ok {
			if fd, err = sys.Dup(n); err == nil {
				handedOver.Store(true)
			}
		}
	}) != nil {
		return nil, nil // the loop has ended, and the socket with it
	}
	<-done
	if err != nil {
		return nil, &OpError{Op: "listen", Addr: addr, Err: err}
	}
	if fd < 0 {
		return nil, nil
	}
	return os.NewFile(uintptr(fd), addr.Network()+"://"+addr.String()), nil
}

// removeFile removes the file of a Unix socket, unless it is somebody else's.
func (l *listener) removeFile() {
	if !l.handedOver.Load() {
		l.file.remove()
	}
}
