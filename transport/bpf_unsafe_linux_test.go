package transport

import (
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"unsafe"
)

// attachXDP has the driver of an interface, of the namespace of the calling thread, run
// a program that passes every packet on, until the test ends. The driver of a veth then
// copies each packet into pages of its own, as a card does, and gives the sender's back.
func attachXDP(t testing.TB, name string) {
	t.Helper()
	number, ok := map[string]uintptr{"amd64": 321, "arm64": 280, "386": 357}[runtime.GOARCH]
	if !ok {
		t.Skip("the number of bpf(2) is not known on " + runtime.GOARCH)
	}
	bpf := func(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, syscall.Errno) {
		fd, _, e := syscall.Syscall(number, cmd, uintptr(attr), size)
		return int(fd), e
	}
	iface, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	// r0 = XDP_PASS; exit
	code := [16]byte{0: 0xb7, 4: 2, 8: 0x95}
	license := [4]byte{'G', 'P', 'L'}
	load := struct {
		kind, n       uint32
		code, license uint64
		rest          [48]byte
	}{kind: 6, n: 2, code: uint64(uintptr(unsafe.Pointer(&code))), license: uint64(uintptr(unsafe.Pointer(&license)))}
	prog, e := bpf(5, unsafe.Pointer(&load), unsafe.Sizeof(load))
	runtime.KeepAlive(&code)
	runtime.KeepAlive(&license)
	if e != 0 {
		t.Skip(os.NewSyscallError("bpf", e))
	}
	defer syscall.Close(prog)
	// BPF_XDP, in the driver.
	link := struct{ prog, target, attach, flags uint32 }{uint32(prog), uint32(iface.Index), 37, 1 << 2}
	fd, e := bpf(28, unsafe.Pointer(&link), unsafe.Sizeof(link))
	if e != 0 {
		t.Skip(os.NewSyscallError("bpf", e))
	}
	t.Cleanup(func() { syscall.Close(fd) })
}

// threadTime returns how much processor time the calling thread has used, in
// nanoseconds.
func threadTime() int64 {
	var ts syscall.Timespec
	const threadClock = 3 // CLOCK_THREAD_CPUTIME_ID
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, threadClock, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Nano()
}
