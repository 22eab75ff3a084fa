package transport

import "syscall"

// connectionErrors are what accept returns for one connection that failed while it
// waited: accept(2).
var connectionErrors = []error{
	syscall.ECONNABORTED, syscall.EPROTO, syscall.EPERM, syscall.EOPNOTSUPP, syscall.ENOPROTOOPT,
	syscall.ENETDOWN, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENONET,
}

// descriptorErrors say that there are as many descriptors as there may be.
var descriptorErrors = []error{syscall.EMFILE, syscall.ENFILE}

// brokenErrors are those of a descriptor that will never accept again.
var brokenErrors = []error{syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK}
