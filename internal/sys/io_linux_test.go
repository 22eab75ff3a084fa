package sys

import (
	"math"
	"slices"
	"syscall"
	"testing"
	"unsafe"
)

func TestEmptySlices(t *testing.T) {
	client, server := tcpPair(t)
	for name, f := range map[string]func() (int, error){
		"read nil":        func() (int, error) { return Read(server, nil) },
		"read empty":      func() (int, error) { return Read(server, []byte{}) },
		"write nil":       func() (int, error) { return Write(client, nil) },
		"writev nil":      func() (int, error) { return Writev(client, nil) },
		"writev of empty": func() (int, error) { return Writev(client, make([]Iovec, 3)) },
		"readv nil":       func() (int, error) { return Readv(server, nil) },
		"sendmsg nil":     func() (int, error) { return Sendmsg(client, nil, 0) },
	} {
		if n, err := f(); n != 0 || err != nil {
			t.Errorf("%s: got %d, %v, want 0, nil", name, n, err)
		}
	}
}

// parts cuts b into parts of the sizes given; the last takes what is left.
func parts(b []byte, sizes ...int) []Iovec {
	var v []Iovec
	for _, n := range sizes {
		v = append(v, MakeIovec(b[:n]))
		b = b[n:]
	}
	return append(v, MakeIovec(b))
}

func TestVectored(t *testing.T) {
	writers := map[string]func(int, []Iovec) (int, error){
		"writev":     Writev,
		"writevslow": WritevSlow,
		"sendmsg":    func(fd int, v []Iovec) (int, error) { return Sendmsg(fd, v, 0) },
	}
	tests := []struct {
		name string
		size int
		cut  []int
	}{
		{"one", 100, nil},
		{"three", 1000, []int{1, 500}},
		{"empty ones between", 10, []int{0, 3, 0, 0, 4, 0}},
		{"as many as are allowed", 4096, slices.Repeat([]int{2}, IOVMax-1)},
	}
	for name, write := range writers {
		for _, tt := range tests {
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				client, server := tcpPair(t)
				want := pattern(tt.size)
				if n, err := write(client, parts(want, tt.cut...)); n != tt.size || err != nil {
					t.Fatalf("got %d, %v, want %d, nil", n, err, tt.size)
				}
				await(t, server, EpollIn)
				got := make([]byte, tt.size)
				n, err := Readv(server, parts(got, tt.cut...))
				check(t, err)
				same(t, append(got[:n:n], readAll(t, server, tt.size-n)...), want)
			})
		}
	}
}

// The kernel refuses what is more than IOVMax, and nothing is written.
func TestTooManyParts(t *testing.T) {
	client, server := tcpPair(t)
	b := make([]byte, IOVMax+1)
	v := parts(b, slices.Repeat([]int{1}, IOVMax)...)
	_, err := Writev(client, v)
	wantErrno(t, err, "writev", syscall.EINVAL)
	_, err = WritevSlow(client, v)
	wantErrno(t, err, "writev", syscall.EINVAL)
	_, err = Readv(server, v)
	wantErrno(t, err, "readv", syscall.EINVAL)
	_, err = Sendmsg(client, v, 0)
	wantErrno(t, err, "sendmsg", syscall.EMSGSIZE)
	if n, err := Unread(server); n != 0 || err != nil {
		t.Errorf("got %d bytes, %v at the peer, want none", n, err)
	}
}

// What is larger than a raw call moves is taken as far as the socket has room, byte
// for byte.
func TestLarge(t *testing.T) {
	const size = 3*MaxRaw + 17
	want := pattern(size)
	writers := map[string]func(int, []byte) (int, error){
		"write":     Write,
		"writeslow": WriteSlow,
		"writev":    func(fd int, p []byte) (int, error) { return Writev(fd, parts(p, len(p)/3)) },
		"sendmsg":   func(fd int, p []byte) (int, error) { return Sendmsg(fd, parts(p, len(p)/3), MsgMore) },
	}
	readers := map[string]func(int, []byte) (int, error){
		"read":  Read,
		"readv": func(fd int, p []byte) (int, error) { return Readv(fd, parts(p, len(p)/2)) },
	}
	for wname, write := range writers {
		for rname, read := range readers {
			t.Run(wname+"/"+rname, func(t *testing.T) {
				client, server := tcpPair(t)
				got := make([]byte, size)
				for w, r := 0, 0; r < size; {
					if w < size {
						switch n, err := write(client, want[w:]); err {
						case nil:
							w += n
						case ErrAgain:
						default:
							t.Fatal(err)
						}
						if w == size {
							check(t, ShutdownWrite(client)) // MsgMore: no more
						}
					}
					switch n, err := read(server, got[r:]); err {
					case nil:
						r += n
					case ErrAgain:
						await(t, server, EpollIn)
					default:
						t.Fatal(err)
					}
				}
				same(t, got, want)
			})
		}
	}
}

func TestRawSized(t *testing.T) {
	big := make([]byte, MaxRaw)
	huge := Iovec{Base: unsafe.SliceData(big)}
	huge.SetLen(math.MaxInt32)
	tests := []struct {
		name string
		v    []Iovec
		want bool
	}{
		{"none", nil, true},
		{"as much as a raw call moves", []Iovec{MakeIovec(big)}, true},
		{"a byte more", []Iovec{MakeIovec(big), MakeIovec(big[:1])}, false},
		{"more than fits 32 bits", []Iovec{huge, huge, huge}, false},
	}
	for _, tt := range tests {
		if got := rawSized(tt.v); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestFullSocket(t *testing.T) {
	for name, at := range endpoints(t) {
		t.Run(name, func(t *testing.T) {
			client, server := pair(t, at)
			sum := fill(t, client)
			for name, f := range map[string]func() (int, error){
				"write":   func() (int, error) { return Write(client, make([]byte, 1<<16)) },
				"writev":  func() (int, error) { return Writev(client, parts(make([]byte, 1<<16), 1)) },
				"sendmsg": func() (int, error) { return Sendmsg(client, parts(make([]byte, 1<<16), 1), 0) },
			} {
				if n, err := f(); n != 0 || err != ErrAgain {
					t.Errorf("%s: got %d, %v, want 0, ErrAgain", name, n, err)
				}
			}
			readAll(t, server, sum)
			await(t, client, EpollOut)
			if n, err := Write(client, []byte("x")); n != 1 || err != nil {
				t.Errorf("got %d, %v when there was room again, want 1, nil", n, err)
			}
		})
	}
}

func TestPipe(t *testing.T) {
	r, w, err := Pipe()
	check(t, err)
	closing(t, r)
	if _, err := Read(r, make([]byte, 1)); err != ErrAgain {
		t.Errorf("got %v, want ErrAgain", err)
	}
	if n, err := Write(w, []byte("abc")); n != 3 || err != nil {
		t.Errorf("got %d, %v, want 3, nil", n, err)
	}
	check(t, Close(w))
	same(t, readAll(t, r, 3), []byte("abc"))
	if n, err := Read(r, make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("got %d, %v, want 0, nil", n, err)
	}
}

// The calls of a turn allocate nothing, also when there is nothing to do.
func TestNoAllocations(t *testing.T) {
	client, server := tcpPair(t)
	epfd, err := EpollCreate()
	check(t, err)
	closing(t, epfd)
	efd, err := Eventfd()
	check(t, err)
	closing(t, efd)
	check(t, EpollAdd(epfd, server, EpollIn, 1))
	b := make([]byte, 64)
	v := parts(b, 32)
	events := make([]EpollEvent, 8)
	must := func(n int, err error) {
		if n < 0 || err != nil && err != ErrAgain {
			t.Fatalf("got %d, %v", n, err)
		}
	}
	got := testing.AllocsPerRun(100, func() {
		must(Read(server, b)) // ErrAgain
		must(Write(client, b))
		must(Writev(client, v))
		must(Sendmsg(client, v, MsgMore))
		must(Sendmsg(client, v, 0))
		must(EpollWait(epfd, events, 0))
		must(Readv(server, v))
		must(0, EventfdWrite(efd))
		must(0, EventfdRead(efd))
		must(0, EventfdRead(efd)) // ErrAgain
		must(0, EpollMod(epfd, server, EpollIn|EpollOut, 1))
		must(0, EpollMod(epfd, server, EpollIn, 1))
		for {
			n, err := Read(server, b)
			if err == ErrAgain {
				break
			}
			must(n, err)
		}
	})
	if got != 0 {
		t.Errorf("got %v allocations, want 0", got)
	}
}
