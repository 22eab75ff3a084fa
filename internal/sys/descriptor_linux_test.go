package sys

import (
	"errors"
	"math"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
)

func TestDescribe(t *testing.T) {
	open := func(name string, flags int) int {
		t.Helper()
		fd, err := syscall.Open(name, flags|syscall.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { Close(fd) })
		return fd
	}
	r, w, err := Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer Close(r)
	defer Close(w)
	stream, err := Socket(&net.UnixAddr{})
	if err != nil {
		t.Fatal(err)
	}
	defer Close(stream)
	listener, err := Socket(&net.UnixAddr{})
	if err != nil {
		t.Fatal(err)
	}
	defer Close(listener)
	if err := errors.Join(Bind(listener, &net.UnixAddr{}), Listen(listener, 1), SetBlocking(listener, true)); err != nil {
		t.Fatal(err)
	}
	datagrams, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer Close(datagrams)
	for _, tt := range []struct {
		name     string
		fd       int
		want     Description
		pollable bool
	}{
		{"read end", r, Description{Kind: KindPipe, Reads: true}, true},
		{"write end", w, Description{Kind: KindPipe, Writes: true}, true},
		{"socket", stream, Description{Kind: KindStream, Reads: true, Writes: true}, true},
		{"listener", listener, Description{Kind: KindListener, Reads: true, Writes: true, Blocking: true}, true},
		{"datagrams", datagrams, Description{Kind: KindDatagram, Reads: true, Writes: true, Blocking: true}, true},
		{"directory", open("/", syscall.O_RDONLY), Description{Kind: KindOther, Reads: true, Blocking: true}, false},
		{"device", open(os.DevNull, syscall.O_WRONLY), Description{Kind: KindDevice, Writes: true, Blocking: true}, false},
		{"path", open("/", 0x200000 /* O_PATH */), Description{Kind: KindOther, Blocking: true}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fd, err := Dup(tt.fd)
			if err != nil {
				t.Fatal(err)
			}
			defer Close(fd)
			if got, err := Describe(fd); err != nil || got != tt.want {
				t.Errorf("got %+v, %v; want %+v", got, err, tt.want)
			}
			if err := Pollable(fd); (err == nil) != tt.pollable {
				t.Errorf("got %v, want pollable %v", err, tt.pollable)
			}
		})
	}
	if _, err := Describe(-1); !errors.Is(err, syscall.EBADF) {
		t.Errorf("no descriptor: got %v, want EBADF", err)
	}
	if _, err := Dup(-1); !errors.Is(err, syscall.EBADF) {
		t.Errorf("no descriptor: got %v, want EBADF", err)
	}
}

func TestOptionsOfNoSocket(t *testing.T) {
	r, w, err := Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer Close(r)
	defer Close(w)
	_, tcpInfo := GetTCPInfo(r)
	_, get := GetOption(r, SocketPriority)
	_, _, _, peer := PeerCredentials(r)
	_, v6 := IsIPv6(r)
	for name, err := range map[string]error{
		"GetTCPInfo": tcpInfo, "GetOption": get, "PeerCredentials": peer, "IsIPv6": v6,
		"SetOption": SetOption(r, SocketPriority, math.MinInt32),
		"SetMD5Key": SetMD5Key(r, netip.MustParsePrefix("10.0.0.0/8"), nil),
	} {
		if !errors.Is(err, syscall.ENOTSOCK) {
			t.Errorf("%s: got %v, want ENOTSOCK", name, err)
		}
	}
}
