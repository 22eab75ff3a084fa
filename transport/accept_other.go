//go:build !linux

package transport

// connectionErrors is for Linux: elsewhere there are no listeners yet.
var connectionErrors []error
