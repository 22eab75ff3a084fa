package sys

import (
	"errors"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confirmations collects what is confirmed until call last is.
func confirmations(t *testing.T, fd int, last uint32) (calls []uint32, copied bool) {
	t.Helper()
	for {
		c, err := ReadConfirmation(fd)
		switch {
		case err == ErrAgain:
			await(t, fd, EpollErr)
			continue
		case err != nil:
			t.Fatal(err)
		case !c.Calls:
			t.Fatalf("got %+v, want a confirmation", c)
		}
		copied = copied || c.Copied
		for n := c.First; ; n++ {
			calls = append(calls, n)
			if n == c.Last {
				break
			}
		}
		if slices.Contains(calls, last) {
			return calls, copied
		}
	}
}

func TestSendZeroCopy(t *testing.T) {
	for _, family := range []string{"tcp4", "tcp6"} {
		t.Run(family, func(t *testing.T) {
			a, b := pair(t, endpoints(t)[family])
			check(t, EnableZeroCopy(a))
			if err := EnableZeroCopy(a); !errors.Is(err, syscall.EBUSY) {
				t.Errorf("enabled twice: got %v, want EBUSY", err)
			}
			if _, err := ReadConfirmation(a); err != ErrAgain {
				t.Errorf("an empty queue: got %v, want ErrAgain", err)
			}
			p, q := []byte("some bytes, "), pattern(10_000)
			for i := range 3 {
				n, err := SendZeroCopy(a, []Iovec{MakeIovec(p), MakeIovec(q)}, i == 1, i == 0)
				check(t, err)
				if n != len(p)+len(q) {
					t.Fatalf("taken: got %d bytes, want %d", n, len(p)+len(q))
				}
				same(t, readAll(t, b, n), append(slices.Clone(p), q...))
			}
			calls, copied := confirmations(t, a, 2)
			if !slices.Equal(calls, []uint32{0, 1, 2}) || !copied {
				t.Errorf("confirmed: got %v, copied %v; want 0 to 2, copied as always on loopback", calls, copied)
			}
			if err := SocketError(a); err != nil {
				t.Errorf("the socket's error: got %v, want none", err)
			}
		})
	}
}

// A call that takes nothing has no number.
func TestFailedCallsAreNotCounted(t *testing.T) {
	a, b := tcpPair(t)
	check(t, EnableZeroCopy(a))
	p := make([]byte, 1<<20)
	sent, calls := 0, uint32(0)
	for again := 0; again < 3; {
		n, err := SendZeroCopy(a, []Iovec{MakeIovec(p)}, false, false)
		switch err {
		case nil:
			sent += n
			calls++
		case ErrAgain:
			again++
		default:
			t.Fatal(err)
		}
	}
	readAll(t, b, sent)
	for {
		n, err := SendZeroCopy(a, []Iovec{MakeIovec(p[:100])}, false, false)
		if err == ErrAgain {
			continue // the last acknowledgement is still on its way
		}
		check(t, err)
		readAll(t, b, n)
		break
	}
	if got, _ := confirmations(t, a, calls); len(got) != int(calls)+1 {
		t.Errorf("confirmed: got %v, want 0 to %d", got, calls)
	}
}

func TestZeroCopyOfUnixSockets(t *testing.T) {
	a, _ := pair(t, endpoints(t)["unix"])
	if err := EnableZeroCopy(a); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("got %v, want EOPNOTSUPP", err)
	}
}

// A connection that is disconnected has its peer told, and everything confirmed that was
// under way, while the descriptor is open.
func TestDisconnect(t *testing.T) {
	a, b := tcpPair(t)
	check(t, EnableZeroCopy(a))
	p := make([]byte, 1<<20)
	calls := uint32(0)
	for {
		_, err := SendZeroCopy(a, []Iovec{MakeIovec(p)}, false, false)
		if err == ErrAgain {
			break
		}
		check(t, err)
		calls++
	}
	check(t, Disconnect(a))
	confirmations(t, a, calls-1)
	await(t, b, EpollErr|EpollHup)
	if err := SocketError(b); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer: got %v, want ECONNRESET", err)
	}
	for _, want := range []error{syscall.ECONNRESET, syscall.EPIPE} {
		if _, err := Write(a, p); !errors.Is(err, want) {
			t.Errorf("write: got %v, want %v", err, want)
		}
	}
}

// A socket that cannot be disconnected is shut.
func TestDisconnectUnix(t *testing.T) {
	a, b := pair(t, endpoints(t)["unix"])
	check(t, Disconnect(a))
	await(t, b, EpollIn)
	if n, err := Read(b, make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("the peer: got %d, %v; want the end", n, err)
	}
}

// Control messages are the kernel's, but nothing is read beyond them, whatever they say.
func TestConfirmationIn(t *testing.T) {
	message := func(level, typ int32, p []byte) []byte {
		b := make([]byte, unix.CmsgSpace(len(p)))
		h := unix.Cmsghdr{Level: level, Type: typ}
		h.SetLen(unix.CmsgLen(len(p)))
		*(*unix.Cmsghdr)(unsafe.Pointer(&b[0])) = h
		copy(b[unix.CmsgLen(0):], p)
		return b
	}
	zero := []byte{0, 0, 0, 0, unix.SO_EE_ORIGIN_ZEROCOPY, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0}
	copied := slices.Clone(zero)
	copied[6] = unix.SO_EE_CODE_ZEROCOPY_COPIED
	icmp := slices.Clone(zero)
	icmp[0], icmp[4] = byte(unix.EHOSTUNREACH), unix.SO_EE_ORIGIN_ICMP
	want := Confirmation{Calls: true, First: 7, Last: 9}
	short := message(unix.SOL_IP, unix.IP_RECVERR, zero)
	for _, tt := range []struct {
		name string
		in   []byte
		want Confirmation
	}{
		{"none", nil, Confirmation{}},
		{"IPv4", message(unix.SOL_IP, unix.IP_RECVERR, zero), want},
		{"IPv6", message(unix.SOL_IPV6, unix.IPV6_RECVERR, append(slices.Clone(zero), make([]byte, 28)...)), want},
		{"copied", message(unix.SOL_IP, unix.IP_RECVERR, copied), Confirmation{true, 7, 9, true}},
		{"behind a timestamp", append(message(unix.SOL_SOCKET, unix.SCM_TIMESTAMPNS, make([]byte, 16)), message(unix.SOL_IP, unix.IP_RECVERR, zero)...), want},
		{"ICMP", message(unix.SOL_IP, unix.IP_RECVERR, icmp), Confirmation{}},
		{"too short", message(unix.SOL_IP, unix.IP_RECVERR, zero[:15]), Confirmation{}},
		{"cut", short[:len(short)-1], Confirmation{}},
		{"cut in its header", short[:unix.SizeofCmsghdr-1], Confirmation{}},
		{"length 0", make([]byte, 64), Confirmation{}},
	} {
		if got := confirmationIn(tt.in); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}
