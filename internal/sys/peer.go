package sys

import "net"

// Peer is who has connected to a listening socket.
type Peer struct {
	V4    V4
	Other net.Addr // if V4 is not valid: a *net.TCPAddr or a *net.UnixAddr
}

// Addr returns the address in the words of package net. Each call may make a new one.
func (p Peer) Addr() net.Addr {
	if p.V4.Valid() {
		return p.V4.TCPAddr()
	}
	return p.Other
}

// V4 is the address of a TCP peer that speaks IPv4, in eight bytes: a server keeps one
// for each connection. The zero value is none.
type V4 struct {
	ip   [4]byte
	port uint16
	form v4Form
}

type v4Form uint8

const (
	_        v4Form = iota
	v4Plain         // of an IPv4 socket
	v4Mapped        // of an IPv6 socket, on which IPv4 addresses have 16 bytes
)

// Valid reports whether v is an address.
func (v V4) Valid() bool { return v.form != 0 }

// IP returns the four bytes of the IP.
func (v V4) IP() [4]byte { return v.ip }

// TCPAddr returns v in the words of package net: a new one, whose IP has 16 bytes if the
// socket was one of IPv6.
func (v V4) TCPAddr() *net.TCPAddr {
	a := &struct {
		net.TCPAddr
		ip [16]byte
	}{ip: [16]byte{10: 0xff, 11: 0xff}} // one object, not two
	copy(a.ip[12:], v.ip[:])
	a.IP, a.Port = a.ip[:], int(v.port)
	if v.form == v4Plain {
		a.IP = a.ip[12:]
	}
	return &a.TCPAddr
}
