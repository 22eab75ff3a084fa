package sys

import (
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newEpoll(t *testing.T) int {
	t.Helper()
	epfd, err := EpollCreate()
	check(t, err)
	return closing(t, epfd)
}

func TestEpoll(t *testing.T) {
	epfd := newEpoll(t)
	client, server := tcpPair(t)
	const data = 0xfedcba9876543210 // all 64 bits come back
	wait := func(timeout int) []EpollEvent {
		t.Helper()
		events := make([]EpollEvent, 4)
		n, err := EpollWait(epfd, events, timeout)
		check(t, err)
		return events[:n]
	}
	want := func(what string, events uint32, data uint64) {
		t.Helper()
		got := wait(10_000)
		if len(got) != 1 || got[0].Events != events || got[0].Data() != data {
			t.Errorf("%s: got %+v, want one of %#x with %#x", what, got, events, data)
		}
	}
	none := func(what string) {
		t.Helper()
		for _, timeout := range []int{0, 1} {
			if got := wait(timeout); len(got) != 0 {
				t.Errorf("%s, timeout %d: got %+v, want nothing", what, timeout, got)
			}
		}
	}

	none("empty set")
	check(t, EpollAdd(epfd, server, EpollIn, data))
	none("nothing to read")
	_, err := Write(client, []byte("x"))
	check(t, err)
	want("to read", EpollIn, data)
	want("still to read", EpollIn, data)
	check(t, EpollMod(epfd, server, EpollOut, 7))
	want("to write", EpollOut, 7)
	check(t, EpollMod(epfd, server, EpollIn|EpollOut|EpollRdHup, 8))
	want("both", EpollIn|EpollOut, 8)
	check(t, ShutdownWrite(client))
	await(t, server, EpollRdHup)
	want("half-closed", EpollIn|EpollOut|EpollRdHup, 8)
	check(t, EpollMod(epfd, server, 0, 9))
	none("half-closed, no interest")
	check(t, ShutdownWrite(server))
	await(t, server, EpollHup)
	want("closed, no interest", EpollHup, 9)
	check(t, EpollDel(epfd, server))
	none("taken out")

	wantErrno(t, EpollMod(epfd, server, EpollIn, 0), "epoll_ctl", syscall.ENOENT)
	wantErrno(t, EpollDel(epfd, server), "epoll_ctl", syscall.ENOENT)
	check(t, EpollAdd(epfd, server, 0, 0))
	wantErrno(t, EpollAdd(epfd, server, 0, 0), "epoll_ctl", syscall.EEXIST)
	_, err = EpollWait(epfd, nil, 0)
	wantErrno(t, err, "epoll_pwait", syscall.EINVAL)
	f := tempFile(t, nil)
	wantErrno(t, EpollAdd(epfd, int(f.Fd()), EpollIn, 0), "epoll_ctl", syscall.EPERM)
}

// A wait to the nanosecond ends with an event, or when its time has passed, and not
// before.
func TestEpollWaitFor(t *testing.T) {
	if !Features().EpollPwait2 {
		t.Skip("the kernel does not have epoll_pwait2, or does not allow it")
	}
	epfd := newEpoll(t)
	events := make([]EpollEvent, 4)
	for _, d := range []time.Duration{0, 1, 999, time.Microsecond, 350 * time.Microsecond, time.Millisecond + 1} {
		begin := time.Now()
		n, err := EpollWaitFor(epfd, events, d)
		if n != 0 || err != nil {
			t.Errorf("%v: got %d, %v, want nothing", d, n, err)
		}
		if took := time.Since(begin); took < d {
			t.Errorf("got the end of a wait of %v after %v", d, took)
		}
	}
	fd, err := Eventfd()
	check(t, err)
	closing(t, fd)
	check(t, EpollAdd(epfd, fd, EpollIn, 3))
	check(t, EventfdWrite(fd))
	for _, d := range []time.Duration{-1, -time.Hour, 0, time.Nanosecond, time.Hour, 1<<63 - 1} {
		n, err := EpollWaitFor(epfd, events, d)
		if n != 1 || err != nil || events[0].Data() != 3 {
			t.Errorf("%v: got %d, %v, want the event", d, n, err)
		}
	}
	_, err = EpollWaitFor(epfd, nil, time.Second)
	wantErrno(t, err, "epoll_pwait2", syscall.EINVAL)
}

// More descriptors may be ready than one wait returns.
func TestEpollMany(t *testing.T) {
	epfd := newEpoll(t)
	const n = 20
	for i := range n {
		fd, err := Eventfd()
		check(t, err)
		closing(t, fd)
		check(t, EventfdWrite(fd))
		check(t, EpollAdd(epfd, fd, EpollIn|EpollET, uint64(i)))
	}
	seen := map[uint64]int{}
	events := make([]EpollEvent, 8)
	for {
		k, err := EpollWait(epfd, events, 0)
		check(t, err)
		if k == 0 {
			break
		}
		for _, ev := range events[:k] {
			seen[ev.Data()]++
		}
	}
	for i := range uint64(n) {
		if seen[i] != 1 {
			t.Errorf("descriptor %d: got %d edge-triggered events, want 1", i, seen[i])
		}
	}
}

func TestEventfd(t *testing.T) {
	fd, err := Eventfd()
	check(t, err)
	closing(t, fd)
	if err := EventfdRead(fd); err != ErrAgain {
		t.Errorf("read of a new one: got %v, want ErrAgain", err)
	}
	for range 3 {
		check(t, EventfdWrite(fd))
	}
	await(t, fd, EpollIn)
	check(t, EventfdRead(fd)) // takes all
	if err := EventfdRead(fd); err != ErrAgain {
		t.Errorf("second read: got %v, want ErrAgain", err)
	}

	// A full one stays readable, and writing it is no error.
	full := []byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if isBigEndian() {
		full[0], full[7] = full[7], full[0]
	}
	_, err = Write(fd, full)
	check(t, err)
	for range 2 {
		if err := EventfdWrite(fd); err != nil {
			t.Errorf("write of a full one: got %v, want nil", err)
		}
	}
	check(t, EventfdRead(fd))
}

func isBigEndian() bool { return swap16(1) == 1 }

// A wait without end goes on after a signal, and an eventfd ends it.
func TestWaitInterrupted(t *testing.T) {
	epfd := newEpoll(t)
	efd, err := Eventfd()
	check(t, err)
	closing(t, efd)
	check(t, EpollAdd(epfd, efd, EpollIn, 1))
	tid := make(chan int)
	type result struct {
		n   int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid <- unix.Gettid()
		n, err := EpollWait(epfd, make([]EpollEvent, 1), -1)
		done <- result{n, err}
	}()
	id := <-tid
	for range 1000 {
		check(t, unix.Tgkill(unix.Getpid(), id, unix.SIGURG)) // the runtime ignores it
		runtime.Gosched()
	}
	select {
	case got := <-done:
		t.Fatalf("got %d, %v before anything was ready", got.n, got.err)
	default:
	}
	check(t, EventfdWrite(efd))
	if got := <-done; got.n != 1 || got.err != nil {
		t.Errorf("got %d, %v, want 1, nil", got.n, got.err)
	}
}

func BenchmarkEventfd(b *testing.B) {
	fd, err := Eventfd()
	if err != nil {
		b.Fatal(err)
	}
	defer Close(fd)
	b.ReportAllocs()
	for b.Loop() {
		EventfdWrite(fd)
	}
}
