//go:build !linux

package sys

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"time"
	"unsafe"
)

var errUnsupported = errors.ErrUnsupported

// Iovec is one part of a vectored transfer. It keeps its memory alive.
type Iovec struct {
	Base *byte
	Len  uint64
}

// SetLen makes the part n bytes long.
func (v *Iovec) SetLen(n int) { v.Len = uint64(n) }

// MakeIovec returns the part that covers p.
func MakeIovec(p []byte) Iovec { return Iovec{unsafe.SliceData(p), uint64(len(p))} }

// Flags and events, with Linux's values.
const (
	MsgMore    = 0x8000
	EpollIn    = 0x1
	EpollOut   = 0x4
	EpollErr   = 0x8
	EpollHup   = 0x10
	EpollRdHup = 0x2000
	EpollET    = 0x80000000
)

// EpollEvent is one entry of what a wait returns.
type EpollEvent struct {
	Events uint32
	data   uint64
}

// Data returns what was given for the descriptor.
func (e *EpollEvent) Data() uint64 { return e.data }

// The functions below are described in the files for Linux.

func Features() FeatureSet                                    { return FeatureSet{} }
func Read(fd int, p []byte) (int, error)                      { return 0, errUnsupported }
func Readv(fd int, parts []Iovec) (int, error)                { return 0, errUnsupported }
func Write(fd int, p []byte) (int, error)                     { return 0, errUnsupported }
func WriteSlow(fd int, p []byte) (int, error)                 { return 0, errUnsupported }
func Writev(fd int, parts []Iovec) (int, error)               { return 0, errUnsupported }
func WritevSlow(fd int, parts []Iovec) (int, error)           { return 0, errUnsupported }
func Sendmsg(fd int, parts []Iovec, flags int) (int, error)   { return 0, errUnsupported }
func Pipe() (r, w int, err error)                             { return -1, -1, errUnsupported }
func Close(fd int) error                                      { return errUnsupported }
func ReadFile(fd int, p []byte, off int64) (int, error)       { return 0, errUnsupported }
func Sendfile(out, in int, off int64, n int) (int, error)     { return 0, errUnsupported }
func Cached(fd int, off int64) (bool, error)                  { return false, errUnsupported }
func Learn(fd int)                                            {}
func OpenDir(path string) (int, error)                        { return -1, errUnsupported }
func OpenBeneath(dir int, path string, c bool) (int, error)   { return -1, errUnsupported }
func LookBeneath(d int, p string, c bool) (FileInfo, error)   { return FileInfo{}, errUnsupported }
func Stat(fd int) (FileInfo, error)                           { return FileInfo{}, errUnsupported }
func Local(fd int) bool                                       { return false }
func EpollCreate() (int, error)                               { return -1, errUnsupported }
func EpollAdd(epfd, fd int, events uint32, data uint64) error { return errUnsupported }
func EpollMod(epfd, fd int, events uint32, data uint64) error { return errUnsupported }
func EpollDel(epfd, fd int) error                             { return errUnsupported }
func EpollWait(epfd int, e []EpollEvent, ms int) (int, error) { return 0, errUnsupported }
func Eventfd() (int, error)                                   { return -1, errUnsupported }
func EventfdWrite(fd int) error                               { return errUnsupported }
func EventfdRead(fd int) error                                { return errUnsupported }
func Reserve(n uintptr) (unsafe.Pointer, error)               { return nil, errUnsupported }
func Commit(p unsafe.Pointer, n uintptr) error                { return errUnsupported }
func HugePages(p unsafe.Pointer, n uintptr) error             { return errUnsupported }
func Decommit(p unsafe.Pointer, n uintptr) error              { return errUnsupported }
func MapFile(fd int, off int64, n int) ([]byte, error)        { return nil, errUnsupported }
func Unmap(b []byte) error                                    { return errUnsupported }
func Advise(b []byte, advice int) error                       { return errUnsupported }
func MemoryLimit() int64                                      { return 0 }
func Socket(addr net.Addr) (int, error)                       { return -1, errUnsupported }
func Bind(fd int, addr net.Addr) error                        { return errUnsupported }
func Listen(fd, backlog int) error                            { return errUnsupported }
func Connect(fd int, addr net.Addr) error                     { return errUnsupported }
func Accept(fd int) (int, Peer, error)                        { return -1, Peer{}, errUnsupported }
func LocalAddr(fd int, network string) (net.Addr, error)      { return nil, errUnsupported }
func RemoteAddr(fd int, network string) (net.Addr, error)     { return nil, errUnsupported }
func SocketError(fd int) error                                { return errUnsupported }
func SetNoDelay(fd int, on bool) error                        { return errUnsupported }
func SetReuseAddr(fd int, on bool) error                      { return errUnsupported }
func SetReusePort(fd int, on bool) error                      { return errUnsupported }
func SetIPv6Only(fd int, on bool) error                       { return errUnsupported }
func SetSendBuffer(fd, n int) error                           { return errUnsupported }
func SendBuffer(fd int) (int, error)                          { return 0, errUnsupported }
func SetRecvBuffer(fd, n int) error                           { return errUnsupported }
func RecvBuffer(fd int) (int, error)                          { return 0, errUnsupported }
func SetLinger(fd, seconds int) error                         { return errUnsupported }
func CloseSleeps(fd int) bool                                 { return false }
func SetUserTimeout(fd int, d time.Duration) error            { return errUnsupported }
func ShutdownRead(fd int) error                               { return errUnsupported }
func ShutdownWrite(fd int) error                              { return errUnsupported }
func Unread(fd int) (int, error)                              { return 0, errUnsupported }
func Unsent(fd int) (int, error)                              { return 0, errUnsupported }

// EpollWaitFor is described in the files for Linux.
func EpollWaitFor(epfd int, events []EpollEvent, timeout time.Duration) (int, error) {
	return 0, errUnsupported
}

// Messages is described in the files for Linux.
type Messages struct{}

func NewMessages(n int) *Messages                                         { return &Messages{} }
func (m *Messages) Lend(i int, p []byte)                                  {}
func (m *Messages) Take(i int) (unsafe.Pointer, int)                      { return nil, 0 }
func (m *Messages) Truncated(i int) bool                                  { return false }
func (m *Messages) From(i int) netip.AddrPort                             { return netip.AddrPort{} }
func (m *Messages) FromName(i int, known string) string                   { return "" }
func (m *Messages) WantNotes(on bool)                                     {}
func (m *Messages) Notes(i int) (netip.AddrPort, int, bool)               { return netip.AddrPort{}, 0, false }
func (m *Messages) Reset()                                                {}
func (m *Messages) Add(parts []Iovec)                                     {}
func (m *Messages) AddTo(parts []Iovec, to netip.AddrPort, v6 bool) error { return errUnsupported }
func (m *Messages) AddToName(parts []Iovec, name string) error            { return errUnsupported }
func Recvmmsg(fd int, m *Messages, n int) (int, error)                    { return 0, errUnsupported }
func Sendmmsg(fd int, m *Messages, slow bool) (int, error)                { return 0, errUnsupported }
func DropErrors(fd int)                                                   {}

// SetKeepAlive is described in the files for Linux.
func SetKeepAlive(fd int, on bool, idle, interval time.Duration, count int) error {
	return errUnsupported
}

// InfoOf is described in the files for Linux.
func InfoOf(fi os.FileInfo) FileInfo {
	return FileInfo{Size: fi.Size(), Modified: fi.ModTime().UnixNano(), Regular: fi.Mode().IsRegular(), Dir: fi.IsDir()}
}
