//go:build !linux

package transport

// datagramErrors is for Linux: elsewhere there are no datagram channels yet.
var datagramErrors []error
