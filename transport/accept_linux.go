package transport

import "syscall"

// connectionErrors are what accept returns for one connection that failed while it
// waited: accept(2).
var connectionErrors = []error{
	syscall.ECONNABORTED, syscall.EPROTO, syscall.EPERM, syscall.EOPNOTSUPP, syscall.ENOPROTOOPT,
	syscall.ENETDOWN, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENONET,
}
