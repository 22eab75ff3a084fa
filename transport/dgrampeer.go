package transport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// Connect has a channel of datagrams, bound or dialed, exchange datagrams with peer and
// with nobody else, until [Disconnect] or the next Connect. peer is a *net.UDPAddr or a
// *net.UnixAddr; names of hosts are not looked up. Netty: DatagramChannel.connect.
//
// Its messages are then those of a channel that was dialed, a *buffer.Buf each, and what
// is written has no address or that of peer. The kernel drops what others send; what they
// had sent before and was not read is dropped, too.
//
// It takes its turn behind what was written before: that leaves first, or fails, also what
// a Unix receiver without room keeps waiting; with Config.ManualFlush it is flushed. What
// is written afterwards goes to the new peer, or, if the connect fails, fails: the channel
// has no peer then, whatever it had before, and stays open. LocalAddr and RemoteAddr
// follow.
//
// then is called once, on the loop, with the outcome; it may be called before Connect
// returns. If it is nil a failure goes to HandleError. The error is an *OpError, one that
// matches pipeline.ErrClosed if the channel has closed, or errors.ErrUnsupported if it
// has no datagrams. Handlers see the operation as HandleConnect, which may refuse it.
//
// Any goroutine; it never waits.
func Connect(ch pipeline.Channel, peer net.Addr, then func(error)) {
	if peer == nil {
		changePeer(ch, noAddr{}, then) // nil would mean another thing
		return
	}
	changePeer(ch, peer, then)
}

// Disconnect takes the connection of a channel of datagrams back, one that Connect has
// made or with which it was dialed or adopted: from then on it hears everybody who sends
// to its LocalAddr, whose port stays the same, and its messages are *Datagram, in both
// directions. It takes its turn behind what was written before, and tells of its outcome,
// as Connect does. A channel without a connection stays as it is. Netty:
// DatagramChannel.disconnect; handlers see a HandleConnect without a remote address.
//
// What the peer has sent and was not read is still read, as a *Datagram; the kernel drops
// it on a Unix socket. If the system had chosen the port, it is free for a moment, and
// what comes then is lost: if another socket takes it the channel closes.
func Disconnect(ch pipeline.Channel, then func(error)) { changePeer(ch, nil, then) }

func changePeer(ch pipeline.Channel, peer net.Addr, then func(error)) {
	var p *eventloop.Promise
	if then != nil {
		p = eventloop.NewPromise(ch.Loop())
		p.Then(then)
	}
	if _, ok := ch.(peered); !ok {
		err := &OpError{Op: opOfChange(peer), Addr: ch.RemoteAddr(), Err: fmt.Errorf("%T has no datagrams: %w", ch, errors.ErrUnsupported)}
		if p == nil {
			ch.Pipeline().FireError(err)
		}
		p.Complete(err)
		return
	}
	ch.Pipeline().Connect(peer, nil, p)
}

// peered is a channel whose peer may change.
type peered interface {
	peerAtEnd() (p dgramPeer, connected bool)
}

// noAddr is an address of no network.
type noAddr struct{}

func (noAddr) Network() string { return "" }
func (noAddr) String() string  { return "" }

var errOtherNetwork = fmt.Errorf("address of another network: %w", syscall.EAFNOSUPPORT)

// dgramPeer is with whom a channel is connected, as its datagrams say it: by the address
// of UDP, or by a name, which is empty also for a Unix socket that has none.
type dgramPeer struct {
	addr netip.AddrPort
	name string
}

// peerOf returns the peer that has the address. An address of UDP is one of IPv4 where it
// can be.
func peerOf(a net.Addr) (p dgramPeer) {
	switch a := a.(type) {
	case *net.UDPAddr:
		p.addr = unmapped(a.AddrPort())
	case *net.UnixAddr:
		p.name = a.Name
	}
	return p
}

func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// peerChange is a connect, or without a remote address a disconnect, that waits in the
// queue for what was written before it.
type peerChange struct{ remote net.Addr }

func opOfChange(remote net.Addr) string {
	if remote == nil {
		return "disconnect"
	}
	return "connect"
}

// peerAtEnd returns with whom the channel is connected, if it is, when what is in the
// queue has been done: what is written now is judged by it.
func (s *dgram) peerAtEnd() (p dgramPeer, connected bool) {
	if c := s.change; c != nil {
		return peerOf(c.remote), c.remote != nil
	}
	return s.peer, s.connected
}

// changePeer queues a change. Loop-only.
func (s *dgram) changePeer(remote net.Addr, p *eventloop.Promise) {
	if s.at >= dgramClosing {
		err := s.CloseReason()
		if err == nil {
			err = pipeline.ErrClosed
		}
		p.Complete(err)
		return
	}
	if remote != nil {
		remote = candidatesOf(remote).addrs[0]
		_, udp := remote.(*net.UDPAddr)
		_, unix := remote.(*net.UnixAddr)
		if udp == s.unix || unix != s.unix {
			s.changeFailed(p, remote, errOtherNetwork)
			return
		}
	}
	s.change = &peerChange{remote}
	s.out.add(outDatagram{change: s.change, p: p})
	s.flushTo = s.out.queued
	s.flush()
	if s.at != dgramClosed {
		s.SetPending(s.out.pending())
	}
}

func (s *dgram) changeFailed(p *eventloop.Promise, remote net.Addr, err error) {
	s.Pipeline().FailWrite(p, &OpError{Op: opOfChange(remote), Addr: remote, Err: err})
}

// changeNow performs the change that is first in the queue.
func (s *dgram) changeNow() {
	e := s.out.take()
	if s.change == e.change {
		s.change = nil
	}
	remote := e.change.remote
	s.again = false
	if s.connected {
		// Also before a connect: the kernel keeps the local address that it has chosen for
		// the peer before, which may not be one to reach the next from; and what is written
		// for a peer that cannot be connected to must not go to another.
		if err := s.sock.disconnect(); err != nil {
			// Nobody may be able to reach it any more.
			defer e.p.Complete(&OpError{Op: "disconnect", Addr: s.remote.load(), Err: err})
			s.fail("disconnect", err)
			return
		}
		s.connected, s.peer = false, dgramPeer{}
		s.remote.clear()
	}
	if remote != nil {
		if err := s.sock.connect(remote); err != nil {
			s.readdress()
			s.changeFailed(e.p, remote, err)
			return
		}
		s.connected = true
		s.connectedTo(remote)
	}
	s.readdress()
	e.p.Complete(nil)
}

// readdress asks the socket for its addresses, which a change has changed.
func (s *dgram) readdress() {
	local, remote := s.sock.addresses(s.unix)
	if local != nil {
		s.boundTo(local)
	}
	if s.connected && remote != nil {
		s.connectedTo(remote)
	}
}

// foreign reports whether a datagram that has been received is of somebody with whom the
// channel is not connected: it came before the connect.
func (s *dgram) foreign(d *dgramSlot) bool {
	return s.connected && (d.addr != s.peer.addr || s.peer.name != "" && d.name != s.peer.name)
}
