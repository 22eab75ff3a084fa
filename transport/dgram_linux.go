package transport

import "syscall"

// datagramErrors are what a socket reports of datagrams that were sent before: what
// ICMP brought, and what a firewall or a route decided: ip(7), udp(7).
var datagramErrors = []error{
	syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN,
	syscall.ENETDOWN, syscall.ENONET, syscall.EMSGSIZE, syscall.EPROTO, syscall.ENOPROTOOPT,
	syscall.EOPNOTSUPP, syscall.EACCES, syscall.EPERM, syscall.ETIMEDOUT,
}
